//! The server over a real connection: shapes, errors, streams, cancellation, shutdown.

mod common;

use common::{CONTEXT, MODELS, TestServer, chat, error_of, roomy, tokenizer, with};
use engine::EngineOptions;
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use serve::ServePlan;
use std::io::{Read, Write};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A stream that does not end by itself.
fn endless(model: &str) -> Value {
    with(chat(model, "go on", CONTEXT), json!({"stream": true, "ignore_eos": true}))
}

fn content(answer: &Value, choice: usize) -> String {
    answer["choices"][choice]["message"]["content"].as_str().unwrap().to_owned()
}

/// The text of a choice, put together from its chunks.
fn joined(chunks: &[Value], choice: u64, text: impl Fn(&Value) -> &Value) -> String {
    chunks
        .iter()
        .flat_map(|c| c["choices"].as_array().unwrap())
        .filter(|c| c["index"] == choice)
        .filter_map(|c| text(c).as_str())
        .collect()
}

fn chat_text(chunks: &[Value], choice: u64) -> String {
    joined(chunks, choice, |c| &c["delta"]["content"])
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let server = TestServer::start().await;
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["object"], "list");
    let ids: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, MODELS);
    let red: Value = server.get("/v1/models/red").await.json().await.unwrap();
    assert_eq!((&red["object"], &red["parent"]), (&json!("model"), &json!("base")));
    assert!(red["created"].is_u64() && red["owned_by"].is_string());
    let (status, error) = error_of(server.get("/v1/models/mauve").await).await;
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")));
    assert!(error["message"].as_str().unwrap().contains("base, red, green, blue"), "{error}");
}

#[tokio::test]
async fn a_chat_answer_has_openai_s_shape() {
    let server = TestServer::start().await;
    let answer = server.ok(CHAT, &chat("base", "hello", 12)).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("base")));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    let choice = &answer["choices"][0];
    assert_eq!((&choice["index"], &choice["logprobs"]), (&json!(0), &Value::Null));
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["refusal"], Value::Null);
    assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()));
    // <|bos|> <|user|> 5 letters <|end|> <|assistant|>
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], 9);
    let completion = usage["completion_tokens"].as_u64().unwrap();
    assert!((1..=12).contains(&completion));
    assert_eq!(usage["total_tokens"], 9 + completion);
    assert_eq!(server.ok(CHAT, &chat("base", "hello", 12)).await["choices"], answer["choices"]);
}

#[tokio::test]
async fn a_chat_stream_is_the_same_text_in_openai_s_chunks() {
    let server = TestServer::start().await;
    for model in MODELS {
        let body = with(chat(model, "hello", 40), json!({"ignore_eos": true}));
        let whole = server.ok(CHAT, &body).await;
        let chunks = server.stream(CHAT, &with(body.clone(), json!({"stream": true}))).await;
        assert_eq!(chat_text(&chunks, 0), content(&whole, 0));
        let first = &chunks[0]["choices"][0];
        assert_eq!(first["delta"], json!({"role": "assistant", "content": ""}));
        let last = &chunks[chunks.len() - 1]["choices"][0];
        assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("length")));
        for chunk in &chunks {
            assert_eq!(chunk["object"], "chat.completion.chunk");
            assert_eq!((&chunk["id"], &chunk["model"]), (&chunks[0]["id"], &json!(model)));
            assert!(chunk.get("usage").is_none());
        }
        assert!(
            chunks[..chunks.len() - 1].iter().all(|c| c["choices"][0]["finish_reason"].is_null())
        );

        let options = json!({"stream": true, "stream_options": {"include_usage": true}});
        let mut chunks = server.stream(CHAT, &with(body, options)).await;
        let last = chunks.pop().unwrap();
        assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
        assert!(chunks.iter().all(|c| c.get("usage") == Some(&Value::Null)));
    }
}

#[tokio::test]
async fn adapters_answer_differently_and_each_in_its_own_template() {
    let server = TestServer::start().await;
    let mut texts = Vec::new();
    for model in MODELS {
        texts.push(content(&server.ok(CHAT, &chat(model, "hello", 30)).await, 0));
    }
    for i in 0..texts.len() {
        for j in 0..i {
            assert_ne!(texts[i], texts[j], "{} and {}", MODELS[i], MODELS[j]);
        }
    }
    // The template of "blue" writes capitals, and refuses system texts.
    let upper = server.ok(CHAT, &chat("blue", "HELLO", 30)).await;
    assert_eq!(content(&upper, 0), texts[3]);
    let system =
        json!({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]});
    let (status, error) = server.refused(CHAT, &with(chat("blue", "", 5), system.clone())).await;
    assert_eq!((status, &error["param"]), (400, &json!("messages")));
    assert!(error["message"].as_str().unwrap().contains("no system text, please"), "{error}");
    server.ok(CHAT, &with(chat("base", "", 5), system)).await;
}

#[tokio::test]
async fn concurrent_streams_over_all_adapters_equal_one_at_a_time() {
    // A small cache and short steps, so that prompts are chunked and sequences preempted.
    let options =
        EngineOptions { num_blocks: 24, max_batch_tokens: 20, max_num_seqs: 8, ..roomy() };
    let server = TestServer::start_with(ServePlan::default(), options).await;
    let bodies: Vec<Value> = (0..12)
        .map(|i| {
            let change = json!({"stream": true, "temperature": if i % 3 == 0 { 0.8 } else { 0.0 },
                                "seed": i, "ignore_eos": true});
            with(chat(MODELS[i % 4], &"word ".repeat(i), 60), change)
        })
        .collect();
    let mut alone = Vec::new();
    for body in &bodies {
        alone.push(chat_text(&server.stream(CHAT, body).await, 0));
    }
    // How many run at once depends on when they arrive; now and then it is too few for a preemption.
    let mut health = Value::Null;
    for _ in 0..50 {
        let together = join_all(bodies.iter().map(|body| server.stream(CHAT, body))).await;
        for (i, chunks) in together.iter().enumerate() {
            assert_eq!(chat_text(chunks, 0), alone[i], "request {i}");
        }
        health = server.wait_until("running", 0).await;
        assert_eq!(health["free_blocks"], 24);
        if health["preemptions"].as_u64().unwrap() > 0 {
            return;
        }
    }
    panic!("no preemption in fifty rounds: {health}");
}

#[tokio::test]
async fn n_choices_come_from_their_own_seeds() {
    let server = TestServer::start().await;
    let body = with(chat("red", "hello", 20), json!({"temperature": 1.0, "seed": 5, "n": 3}));
    let answer = server.ok(CHAT, &body).await;
    assert_eq!(answer["choices"].as_array().unwrap().len(), 3);
    let texts: Vec<String> = (0..3).map(|i| content(&answer, i)).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2], "{texts:?}");
    assert_eq!(server.ok(CHAT, &body).await["choices"], answer["choices"], "the same seed");
    let one = server.ok(CHAT, &with(body.clone(), json!({"n": 1}))).await;
    assert_eq!(content(&one, 0), texts[0]);
    assert_eq!(one["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens"], "counted once");
    let chunks = server.stream(CHAT, &with(body.clone(), json!({"stream": true}))).await;
    for (i, text) in texts.iter().enumerate() {
        assert_eq!(chat_text(&chunks, i as u64), *text);
    }
    let unseeded = with(body, json!({"seed": null, "n": 1}));
    let (a, b) = (server.ok(CHAT, &unseeded).await, server.ok(CHAT, &unseeded).await);
    assert_ne!(content(&a, 0), content(&b, 0), "without a seed answers vary");
}

#[tokio::test]
async fn stop_strings_end_the_text_before_them() {
    let server = TestServer::start().await;
    let body = with(chat("green", "hello", 80), json!({"ignore_eos": true}));
    let whole = server.ok(CHAT, &body).await;
    let text = content(&whole, 0);
    // Three characters from the middle: a stop string that spans tokens.
    let start = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop: String = text[start..].chars().take(3).collect();
    let expected = text.split(&stop).next().unwrap();
    let stopped = server.ok(CHAT, &with(body.clone(), json!({"stop": stop}))).await;
    assert_eq!(content(&stopped, 0), expected);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert!(
        stopped["usage"]["completion_tokens"].as_u64()
            < whole["usage"]["completion_tokens"].as_u64()
    );
    let change = json!({"stop": ["never in there", stop], "stream": true});
    let chunks = server.stream(CHAT, &with(body, change)).await;
    assert_eq!(chat_text(&chunks, 0), expected);
    assert_eq!(chunks[chunks.len() - 1]["choices"][0]["finish_reason"], "stop");
    // The sequence ended with its text, not at max_tokens.
    let health = server.wait_until("running", 0).await;
    assert_eq!(health["free_blocks"], health["total_blocks"]);
}

#[tokio::test]
async fn text_completions_take_every_shape_of_prompt() {
    let server = TestServer::start().await;
    let body = json!({"model": "red", "prompt": "abc", "temperature": 0});
    let answer = server.ok(TEXT, &body).await;
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    let choice = &answer["choices"][0];
    let text = choice["text"].as_str().unwrap();
    assert_eq!((&choice["index"], &choice["logprobs"]), (&json!(0), &Value::Null));
    assert_eq!(answer["usage"]["prompt_tokens"], 4, "a BOS token and three letters");
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() <= 16, "OpenAI's default");

    let ids = tokenizer().encode_prompt("abc").unwrap();
    let by_ids = server.ok(TEXT, &with(body.clone(), json!({"prompt": ids}))).await;
    assert_eq!(by_ids["choices"], answer["choices"]);
    let many = json!({"prompt": ["x", "abc"], "n": 2});
    let many = server.ok(TEXT, &with(body.clone(), many)).await;
    let texts: Vec<&str> =
        many["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!((texts.len(), texts[2], texts[3]), (4, text, text), "prompt 1 is choices 2 and 3");
    let lists = server.ok(TEXT, &with(body.clone(), json!({"prompt": [[256, 120], ids]}))).await;
    assert_eq!(
        (&lists["choices"][0]["text"], &lists["choices"][1]["text"]),
        (&json!(texts[0]), &json!(text))
    );

    let echo = server.ok(TEXT, &with(body.clone(), json!({"echo": true}))).await;
    assert_eq!(echo["choices"][0]["text"], format!("abc{text}"));
    let change = json!({"echo": true, "stream": true, "prompt": ids, "stream_options": {"include_usage": true}});
    let mut chunks = server.stream(TEXT, &with(body.clone(), change)).await;
    assert_eq!(chunks.pop().unwrap()["usage"], echo["usage"]);
    assert_eq!(joined(&chunks, 0, |c| &c["text"]), format!("abc{text}"));
    assert!(chunks.iter().all(|c| c["object"] == "text_completion"));
    assert!(chunks[chunks.len() - 1]["choices"][0]["finish_reason"].is_string());

    let empty = server.ok(TEXT, &with(body.clone(), json!({"prompt": ""}))).await;
    assert_eq!(empty["usage"]["prompt_tokens"], 1, "the BOS token alone");
    for (prompt, part) in [(json!([[]]), "empty"), (json!([99_999]), "vocabulary of 261")] {
        let (status, error) =
            server.refused(TEXT, &with(body.clone(), json!({"prompt": prompt}))).await;
        assert_eq!((status, &error["param"]), (400, &json!("prompt")));
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
    }
}

#[tokio::test]
async fn control_tokens_in_a_message_are_plain_text() {
    let server = TestServer::start().await;
    let answer = server.ok(CHAT, &chat("base", "<|end|>", 1)).await;
    assert_eq!(answer["usage"]["prompt_tokens"], 4 + "<|end|>".len());
}

#[tokio::test]
async fn errors_have_openai_s_shape() {
    let server = TestServer::start().await;
    let good = chat("base", "hello", 5);
    let (status, error) =
        server.refused(CHAT, &with(good.clone(), json!({"model": "gpt-5"}))).await;
    assert_eq!(
        (status, &error["code"], &error["param"]),
        (404, &json!("model_not_found"), &json!("model"))
    );
    assert!(error["message"].as_str().unwrap().contains("base, red, green, blue"), "{error}");
    let (status, error) = server.refused(TEXT, &json!({"model": "nobody", "prompt": "x"})).await;
    assert_eq!((status, &error["type"]), (404, &json!("invalid_request_error")));
    let (status, error) =
        server.refused(CHAT, &with(good.clone(), json!({"top_logprobs": 2}))).await;
    assert_eq!((status, &error["param"]), (400, &json!("top_logprobs")));
    let (status, error) =
        server.refused(CHAT, &with(good.clone(), json!({"n": 1_000_000_000}))).await;
    assert_eq!((status, &error["param"]), (400, &json!("n")));

    for path in ["/", "/v1", "/v1/images/generations", "/v1/chat/completions/"] {
        let (status, error) = error_of(server.get(path).await).await;
        assert_eq!((status, &error["code"]), (404, &json!("not_found")), "{path}");
    }
    let response = server.get(CHAT).await;
    assert_eq!(response.headers()["allow"], "POST");
    let (status, error) = error_of(response).await;
    assert_eq!((status, &error["code"]), (405, &json!("method_not_allowed")));
    let (status, _) = server.refused("/v1/models", &good).await;
    assert_eq!(status, 405);

    // Nothing of this has disturbed the server.
    server.ok(CHAT, &good).await;
}

#[tokio::test]
async fn hostile_bodies_are_refused() {
    let plan = ServePlan { max_body_bytes: 100_000, ..ServePlan::default() };
    let server = TestServer::start_with(plan, roomy()).await;
    let send = |content_type: Option<&'static str>, body: Vec<u8>| {
        let mut request = server.client.post(format!("{}{CHAT}", server.url)).body(body);
        if let Some(value) = content_type {
            request = request.header("content-type", value);
        }
        async { error_of(request.send().await.unwrap()).await }
    };
    let json_type = Some("application/json; charset=utf-8");
    for body in [
        b"".to_vec(),
        b"{\"model\": \"base\"".to_vec(),
        b"null".to_vec(),
        b"{\"model\": \"\xff\xfe\"}".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        "[".repeat(90_000).into_bytes(),
        format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000)).into_bytes(),
        b"{\"model\": \"base\", \"messages\": 5}".to_vec(),
        b"{\"model\": 5, \"messages\": []}".to_vec(),
    ] {
        let (status, error) = send(json_type, body).await;
        assert_eq!((status, &error["type"]), (400, &json!("invalid_request_error")), "{error}");
    }
    for size in [100_001, 1_000_000] {
        let (status, error) = send(json_type, vec![b' '; size]).await;
        assert_eq!((status, &error["code"]), (413, &json!("body_too_large")));
    }
    let body = serde_json::to_vec(&chat("base", "x", 1)).unwrap();
    for content_type in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let (status, error) = send(content_type, body.clone()).await;
        assert_eq!((status, &error["code"]), (415, &json!("unsupported_media_type")));
    }
    server.ok(CHAT, &chat("base", "x", 1)).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let plan = ServePlan { body_timeout_seconds: 0, ..ServePlan::default() };
    let server = TestServer::start_with(plan, roomy()).await;
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let client = move || {
        let mut connection = std::net::TcpStream::connect(address).unwrap();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
             Content-Length: 50\r\n\r\n{{"
        );
        connection.write_all(head.as_bytes()).unwrap();
        let mut answer = vec![0; 12];
        connection.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = tokio::task::spawn_blocking(client).await.unwrap();
    assert_eq!(answer, "HTTP/1.1 408");
}

#[tokio::test]
async fn the_context_bounds_prompt_and_answer() {
    let options = EngineOptions { num_blocks: 8, max_num_seqs: 4, max_queue: 4, ..roomy() };
    let server = TestServer::start_with(ServePlan::default(), options).await;
    // 8 pages hold 128 tokens; the prompt takes 104.
    let body = with(chat("base", &"x".repeat(100), 1_000_000), json!({"ignore_eos": true}));
    let answer = server.ok(CHAT, &body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 24);
    let (status, error) = server.refused(CHAT, &chat("base", &"x".repeat(200), 5)).await;
    assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")));
    assert_eq!(error["param"], "messages");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("204 tokens") && message.contains("128"), "{message}");
    let long = json!({"model": "base", "prompt": vec![1; CONTEXT]});
    let (status, error) = server.refused(TEXT, &long).await;
    assert_eq!((status, &error["param"]), (400, &json!("prompt")));
    assert!(error["message"].as_str().unwrap().contains("context of 100000"), "{error}");
}

#[tokio::test]
async fn a_dropped_stream_frees_its_pages() {
    let server = TestServer::start().await;
    let response = server.post(CHAT, &endless("red")).await;
    let mut stream = response.bytes_stream();
    stream.next().await.unwrap().unwrap();
    let health = server.wait_until("running", 1).await;
    assert!(health["free_blocks"].as_u64() < health["total_blocks"].as_u64());
    drop(stream);
    let health = server.wait_until("running", 0).await;
    assert_eq!(health["free_blocks"], health["total_blocks"]);
    assert!(
        health["tokens_run"].as_u64().unwrap() < CONTEXT as u64 / 2,
        "it was cancelled: {health}"
    );
}

#[tokio::test]
async fn a_dropped_request_frees_its_pages_too() {
    let server = TestServer::start().await;
    for change in [json!({"stream": false}), json!({"stream": false, "n": 3})] {
        let choices = change["n"].as_u64().unwrap_or(1);
        let request = with(endless("red"), change);
        let post = server.client.post(format!("{}{CHAT}", server.url)).json(&request).send();
        let waiting = tokio::spawn(post);
        server.wait_until("running", choices).await;
        waiting.abort();
        let health = server.wait_until("running", 0).await;
        assert_eq!(health["free_blocks"], health["total_blocks"]);
        assert!(health["tokens_run"].as_u64().unwrap() < CONTEXT as u64 / 2, "{health}");
    }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let options = EngineOptions { max_num_seqs: 1, max_queue: 1, ..roomy() };
    let server = TestServer::start_with(ServePlan::default(), options).await;
    let running = server.post(CHAT, &endless("red")).await;
    server.wait_until("running", 1).await;
    let waiting = server.post(CHAT, &endless("green")).await;
    server.wait_until("waiting", 1).await;
    let refused = server.post(CHAT, &chat("blue", "me too", 5)).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let (status, error) = error_of(refused).await;
    assert_eq!((status, &error["code"]), (429, &json!("queue_full")));
    drop((running, waiting));
    server.wait_until("waiting", 0).await;
    server.wait_until("running", 0).await;
    server.ok(CHAT, &chat("blue", "me too", 5)).await;
    // Several choices are queued together or not at all. Endless ones: short ones may be done before
    // the next is queued.
    let (status, _) = server.refused(CHAT, &with(endless("blue"), json!({"n": 8}))).await;
    assert_eq!(status, 429);
    server.wait_until("waiting", 0).await;
    let health = server.wait_until("running", 0).await;
    assert_eq!(health["free_blocks"], health["total_blocks"]);
}

#[tokio::test]
async fn shutdown_lets_running_answers_finish() {
    let mut server = TestServer::start().await;
    let body = with(endless("red"), json!({"max_tokens": 2_000}));
    let response = server.post(CHAT, &body).await;
    server.wait_until("running", 1).await;
    server.stop.take().unwrap().send(()).unwrap();
    let text = response.text().await.unwrap();
    assert!(text.trim_end().ends_with("data: [DONE]"), "the answer is whole");
    assert!(text.contains("\"finish_reason\":\"length\""));
    server.running.await.unwrap().unwrap();
    let refused = server.client.get(format!("{}/health", server.url)).send().await;
    assert!(refused.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let plan = ServePlan { shutdown_seconds: 0, ..ServePlan::default() };
    let mut server = TestServer::start_with(plan, roomy()).await;
    let response = server.post(CHAT, &endless("red")).await;
    let body = tokio::spawn(response.text());
    server.wait_until("running", 1).await;
    server.stop.take().unwrap().send(()).unwrap();
    server.running.await.unwrap().unwrap();
    let text = body.await.unwrap().unwrap();
    assert!(!text.contains("[DONE]"));
    let last = text.lines().filter_map(|l| l.strip_prefix("data: ")).next_back().unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["error"]["code"], "shutting_down");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody_up() {
    let server = TestServer::start().await;
    let idle = server.post(CHAT, &endless("red")).await;
    server.wait_until("running", 1).await;
    for _ in 0..3 {
        server.ok(CHAT, &chat("green", "hello", 20)).await;
    }
    drop(idle);
    server.wait_until("running", 0).await;
}
