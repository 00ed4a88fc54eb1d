//! The books: what is written down of each request, feedback on it, and what Prometheus reads.

mod common;

use common::{CONTEXT, TestServer, chat, named, now, roomy, with};
use engine::EngineOptions;
use futures_util::StreamExt;
use reqwest::Client;
use serde_json::{Value, json};
use serve::{NewKey, ServePlan, UsageBy, UsageRow};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const FEEDBACK: &str = "/v1/feedback";

fn endless(model: &str) -> Value {
    with(chat(model, "go on", CONTEXT), json!({"stream": true, "ignore_eos": true}))
}

/// All usage, by model.
fn usage(server: &TestServer) -> Vec<UsageRow> {
    server.database().usage(UsageBy::Adapter, 0, u64::MAX).unwrap()
}

#[tokio::test]
async fn whoever_has_a_whole_answer_stands_in_the_books() {
    let server = TestServer::start().await;
    let body = with(chat("red", "hello", 12), json!({"ignore_eos": true, "n": 2}));
    let answer = server.ok(CHAT, &body).await;
    // Read by another connection, at once: the record was committed before the answer.
    let rows = usage(&server);
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((row.group.as_str(), row.detail.as_str()), ("red", "digest of red"));
    assert_eq!((row.requests, row.cancelled, row.failed), (1, 0, 0));
    assert_eq!(json!(row.prompt_tokens), answer["usage"]["prompt_tokens"]);
    assert_eq!(json!(row.completion_tokens), answer["usage"]["completion_tokens"]);
    let (queue, first) = (row.mean_queue_seconds.unwrap(), row.mean_first_token_seconds.unwrap());
    assert!(0.0 <= queue && queue <= first && first <= row.mean_total_seconds, "{row:?}");

    // A stream is committed before its last event, whatever ends it.
    let stop = with(chat("green", "hello", 80), json!({"ignore_eos": true}));
    let text = server.ok(CHAT, &stop).await["choices"][0]["message"]["content"].clone();
    let middle: String = text.as_str().unwrap().chars().skip(20).take(3).collect();
    let stream = json!({"stop": middle, "stream": true, "stream_options": {"include_usage": true}});
    let chunks = server.stream(CHAT, &with(stop, stream)).await;
    let told = &chunks[chunks.len() - 1]["usage"];
    let green = &usage(&server)[0];
    assert_eq!((green.group.as_str(), green.requests), ("green", 2));
    assert_eq!(json!(green.completion_tokens - 80), told["completion_tokens"]);
    server.ok(TEXT, &json!({"model": "base", "prompt": ["a", "b"]})).await;
    assert_eq!(usage(&server)[0].group, "base");
    let keys = server.database().usage(UsageBy::Key, 0, u64::MAX).unwrap();
    assert_eq!((keys.len(), keys[0].group.as_str(), keys[0].requests), (1, "(no key)", 4));
}

#[tokio::test]
async fn cancelled_and_failed_requests_are_written_down_too() {
    let one = EngineOptions { max_num_seqs: 1, max_queue: 1, ..roomy() };
    let server = TestServer::start_with(ServePlan::default(), one).await;
    let running = server.post(CHAT, &endless("red")).await;
    let mut stream = running.bytes_stream();
    server.wait_until("running", 1).await;
    let waiting = server.post(CHAT, &endless("green")).await;
    server.wait_until("waiting", 1).await;
    let (status, _) = server.refused(CHAT, &chat("blue", "x", 1)).await;
    assert_eq!(status, 429);
    for _ in 0..3 {
        stream.next().await.unwrap().unwrap();
    }
    // In this order: the place of the one that runs would go to the one that waits.
    drop(waiting);
    server.wait_until("waiting", 0).await;
    drop(stream);
    server.wait_until("running", 0).await;
    // Refused before a model was reached: counted in the metrics, not in the books.
    server.refused(CHAT, &with(chat("red", "x", 1), json!({"n": 0}))).await;
    let state = server.finish().await;
    let rows = serve::Database::open(state.path()).unwrap();
    let rows = rows.usage(UsageBy::Adapter, 0, u64::MAX).unwrap();
    let shown: Vec<_> =
        rows.iter().map(|r| (r.group.as_str(), r.requests, r.cancelled, r.failed)).collect();
    assert_eq!(shown, [("blue", 1, 0, 1), ("green", 1, 1, 0), ("red", 1, 1, 0)]);
    assert!(rows[2].completion_tokens > 0, "what was generated counts: {:?}", rows[2]);
    assert_eq!((rows[1].completion_tokens, rows[1].mean_queue_seconds), (0, None), "never ran");
}

#[tokio::test]
async fn contents_are_kept_only_where_the_key_says_so() {
    let mut server = TestServer::start().await;
    server.key = Some(server.create_key(named("private")));
    server.ok(CHAT, &chat("red", "secret words", 5)).await;
    let kept = NewKey { retention_days: Some(1), ..named("kept") };
    server.key = Some(server.create_key(kept));
    let answer = server.ok(CHAT, &chat("red", "I am ann@firm.eu", 9)).await;
    let body = with(chat("red", "again", 9), json!({"stream": true, "ignore_eos": true}));
    let chunks = server.stream(CHAT, &body).await;
    server.ok(TEXT, &json!({"model": "red", "prompt": "plain", "max_tokens": 3})).await;

    let rows = server.database().kept(now()).unwrap();
    assert_eq!(rows.len(), 3, "{rows:?}");
    let asked = json!({"messages": [{"role": "user", "content": "I am [e-mail address]"}]});
    assert_eq!(rows[0].asked, asked);
    let choice = &answer["choices"][0];
    assert_eq!(rows[0].answers.len(), 1);
    assert_eq!(rows[0].answers[0].text, choice["message"]["content"].as_str().unwrap());
    assert_eq!(json!(rows[0].answers[0].finish_reason), choice["finish_reason"]);
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(rows[1].answers[0].text, text);
    assert_eq!(rows[1].answers[0].finish_reason.as_deref(), Some("length"));
    assert_eq!(rows[2].asked, json!({"prompt": ["plain"]}));
    assert!(server.database().kept(now() + 86_401).unwrap().is_empty());
    let state = server.finish().await;
    for file in std::fs::read_dir(state.path()).unwrap() {
        // The log goes when the last connection is closed, which may be now.
        let bytes = std::fs::read(file.unwrap().path()).unwrap_or_default();
        for gone in ["secret words", "firm.eu"] {
            assert!(!bytes.windows(gone.len()).any(|w| w == gone.as_bytes()), "{gone} was kept");
        }
    }
}

#[tokio::test]
async fn feedback_is_kept_for_requests_of_the_same_key() {
    let mut server = TestServer::start().await;
    let ann = server.create_key(NewKey { retention_days: Some(1), ..named("ann") });
    let bob = server.create_key(named("bob"));
    server.key = Some(ann);
    let response = server.post(CHAT, &chat("red", "hello", 5)).await;
    let request_id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let answer: Value = response.json().await.unwrap();
    let id = answer["id"].as_str().unwrap();
    assert_eq!(id, format!("chatcmpl-{request_id}"));

    let given = server.ok(FEEDBACK, &json!({"id": id, "rating": "down"})).await;
    assert_eq!(given["request_id"], request_id);
    let correction = json!({"request_id": request_id, "correction": "Better", "comment": "wrong"});
    server.ok(FEEDBACK, &correction).await;
    let kept = server.database().kept(now()).unwrap();
    assert_eq!((kept[0].rating, kept[0].correction.as_deref()), (Some(-1.0), Some("Better")));
    assert_eq!(kept[0].digest, "digest of red");

    for unknown in ["chatcmpl-0", "", &"0".repeat(32), &format!("{id}0"), "' OR 1 --"] {
        let (status, error) = server.refused(FEEDBACK, &json!({"id": unknown, "rating": 1})).await;
        assert_eq!((status, &error["param"]), (404, &json!("id")), "{unknown}");
    }
    let (status, error) = server.refused(FEEDBACK, &json!({"id": id, "rating": 2})).await;
    assert_eq!((status, &error["param"]), (400, &json!("rating")));
    server.key = Some(bob);
    let (status, error) = server.refused(FEEDBACK, &json!({"id": id, "rating": 1})).await;
    assert_eq!((status, &error["code"]), (404, &json!("request_not_found")));
    // A request that is still running has no feedback yet.
    let running = server.post(CHAT, &endless("red")).await;
    let id = running.headers()["x-request-id"].to_str().unwrap().to_owned();
    let (status, _) = server.refused(FEEDBACK, &json!({"request_id": id, "rating": 1})).await;
    assert_eq!(status, 404);
}

/// Every endpoint that answers writes the same books, and its ids can be given feedback on.
#[tokio::test]
async fn all_endpoints_that_answer_are_in_the_books() {
    let mut server = TestServer::start().await;
    let key = server.create_key(NewKey { retention_days: Some(1), ..named("ann") });
    let messages = json!([{"role": "user", "content": "hello"}]);
    let create = json!({"model": "red", "messages": messages, "max_tokens": 4});
    let refused = server.post("/v1/messages", &create).await;
    assert_eq!(refused.status(), 401);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["type"], "error", "in Anthropic's shape: {refused}");
    assert_eq!(refused["error"]["type"], "authentication_error");

    server.key = Some(key);
    let respond = json!({"model": "red", "input": "hello", "max_output_tokens": 4, "store": false});
    let complete = json!({"model": "red", "prompt": "hello", "max_tokens": 4});
    let (mut prompt, mut answer) = (0, 0);
    for (path, body, mark, names) in [
        (
            CHAT,
            with(create.clone(), json!({"n": 1})),
            "chatcmpl-",
            ["prompt_tokens", "completion_tokens"],
        ),
        ("/v1/messages", create, "msg_", ["input_tokens", "output_tokens"]),
        ("/v1/responses", respond, "resp_", ["input_tokens", "output_tokens"]),
        (TEXT, complete, "cmpl-", ["prompt_tokens", "completion_tokens"]),
    ] {
        let told = server.ok(path, &body).await;
        prompt += told["usage"][names[0]].as_u64().unwrap();
        answer += told["usage"][names[1]].as_u64().unwrap();
        assert!(told["id"].as_str().unwrap().starts_with(mark), "{told}");
        server.ok(FEEDBACK, &json!({"id": told["id"], "rating": 0.5})).await;
    }
    let row = usage(&server).remove(0);
    assert_eq!((row.requests, row.prompt_tokens, row.completion_tokens), (4, prompt, answer));
    let kept = server.database().kept(now()).unwrap();
    assert_eq!(kept.len(), 4);
    assert!(kept.iter().all(|k| k.rating == Some(0.5) && k.answers.len() == 1), "{kept:?}");
    assert!(kept[..3].iter().all(|k| k.asked["messages"][0]["content"] == "hello"), "{kept:?}");
    // Counting and spelling reach no model.
    let count = json!({"model": "red", "messages": messages});
    server.ok("/v1/messages/count_tokens", &count).await;
    server.ok("/tokenize", &json!({"model": "red", "prompt": "hello"})).await;
    assert_eq!(usage(&server)[0].requests, 4);
}

#[tokio::test]
async fn metrics_are_labelled_by_what_is_served_only() {
    let mut server = TestServer::start().await;
    let few = NewKey { requests_per_minute: Some(60), ..named("few") };
    let user = server.create_key(few);
    let admin = server.create_key(NewKey { admin: true, ..named("admin") });
    server.key = Some(user);
    let body = with(chat("red", "hello", 12), json!({"ignore_eos": true}));
    for _ in 0..2 {
        server.ok(CHAT, &body).await;
    }
    for name in ["made-up-1", "made-up-2"] {
        server.refused(CHAT, &chat(name, "x", 1)).await;
        server.get(&format!("/v1/models/{name}")).await;
        server.get(&format!("/{name}")).await;
    }
    server.key = Some(admin);
    let answer = server.get("/metrics").await;
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = answer.text().await.unwrap();
    let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    has(r#"metier_requests_total{adapter="red",endpoint="/v1/chat/completions",outcome="ok"} 2"#);
    has(r#"metier_tokens_total{adapter="red",kind="prompt"} 18"#);
    has(r#"metier_tokens_total{adapter="red",kind="completion"} 24"#);
    has(r#"metier_tokens_total{adapter="red",kind="cached"} 0"#);
    has(r#"metier_responses_total{endpoint="/v1/chat/completions",status="200"} 2"#);
    has(r#"metier_responses_total{endpoint="/v1/chat/completions",status="404"} 2"#);
    has(r#"metier_responses_total{endpoint="/v1/models/{model}",status="404"} 2"#);
    has(r#"metier_responses_total{endpoint="other",status="404"} 2"#);
    for histogram in [
        "request_queue_seconds",
        "time_to_first_token_seconds",
        "time_per_output_token_seconds",
        "request_seconds",
    ] {
        has(&format!(r#"metier_{histogram}_count{{adapter="red"}} 2"#));
    }
    for gauge in ["running 0", "waiting 0", "records_lost_total 0"] {
        has(&format!("metier_{gauge}"));
    }
    let health = server.health().await;
    has(&format!("metier_kv_blocks_free {}", health["free_blocks"]));
    has(&format!("metier_tokens_run_total {}", health["tokens_run"]));
    assert!(
        text.contains(&format!("metier_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")))
    );
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains("made-up"), "{text}");
}

#[tokio::test]
async fn a_draining_server_says_so_and_finishes_what_runs() {
    let mut server = TestServer::start().await;
    // Connections that nothing runs on are closed, so each question comes on its own.
    server.client = Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let ready: Value = server.get("/ready").await.json().await.unwrap();
    assert_eq!(ready["status"], "ready");
    let version: Value = server.get("/version").await.json().await.unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    let body = with(endless("red"), json!({"max_tokens": 4_000}));
    let running = server.post(CHAT, &body).await;
    server.wait_until("running", 1).await;
    server.stop.take().unwrap().send(()).unwrap();
    // Others are told to go elsewhere until the answer is whole.
    loop {
        let answer = server.get("/ready").await;
        if answer.status() == 503 {
            let ready: Value = answer.json().await.unwrap();
            assert_eq!(ready["status"], "draining");
            break;
        }
    }
    let (status, error) = server.refused(CHAT, &chat("red", "x", 1)).await;
    assert_eq!((status, &error["code"]), (503, &json!("shutting_down")));
    let text = running.text().await.unwrap();
    assert!(text.trim_end().ends_with("data: [DONE]"), "the answer is whole");
    server.running.await.unwrap().unwrap();
    let rows = serve::Database::open(server.state.path()).unwrap();
    let rows = rows.usage(UsageBy::Adapter, 0, u64::MAX).unwrap();
    assert_eq!((rows[0].requests, rows[0].cancelled, rows[0].failed), (1, 0, 0));
}
