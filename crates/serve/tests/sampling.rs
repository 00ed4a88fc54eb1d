//! Log probabilities, penalties and forms of answers, over the real server.

mod common;

use common::{MODELS, TestServer, chat, tokenizer, with};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn sum(logprobs: &[Value]) -> f64 {
    logprobs.iter().map(|l| l.as_f64().unwrap()).sum()
}

#[tokio::test]
async fn a_chat_tells_log_probabilities() {
    let server = TestServer::start().await;
    let body = with(
        chat("red", "hello", 8),
        json!({"logprobs": true, "top_logprobs": 2, "ignore_eos": true}),
    );
    let answer = server.ok(CHAT, &body).await;
    let told = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(told.len(), 8);
    for token in told {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // At temperature 0 the chosen one is the likeliest.
        assert_eq!(top[0]["bytes"], token["bytes"]);
        assert_eq!(top[0]["logprob"], token["logprob"]);
        assert!(top[1]["logprob"].as_f64() <= top[0]["logprob"].as_f64());
        let bytes: Vec<u8> = serde_json::from_value(token["bytes"].clone()).unwrap();
        assert_eq!(token["token"], String::from_utf8_lossy(&bytes).as_ref());
    }
    let stream = with(body.clone(), json!({"stream": true}));
    let chunks = server.stream(CHAT, &stream).await;
    let streamed: Vec<Value> = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(&streamed, told);
    let plain =
        server.ok(CHAT, &with(body, json!({"logprobs": false, "top_logprobs": null}))).await;
    assert_eq!(plain["choices"][0]["logprobs"], Value::Null);
    assert_eq!(content(&plain), content(&answer));
}

#[tokio::test]
async fn an_echoed_prompt_is_scored_as_evaluation_harnesses_want_it() {
    let server = TestServer::start().await;
    let ids = tokenizer().encode_prompt("what follows").unwrap();
    let ask = |change: Value| {
        with(
            json!({"model": "green", "prompt": ids, "temperature": 0, "max_tokens": 1, "logprobs": 1,
                   "echo": true, "ignore_eos": true}),
            change,
        )
    };
    let answer = server.ok(TEXT, &ask(json!({}))).await;
    let told = &answer["choices"][0]["logprobs"];
    let lists = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
    let lengths: Vec<usize> = lists.iter().map(|l| told[l].as_array().unwrap().len()).collect();
    assert_eq!(lengths, [ids.len() + 1; 4], "the prompt and one token");
    assert_eq!(
        (&told["token_logprobs"][0], &told["top_logprobs"][0]),
        (&Value::Null, &Value::Null)
    );
    for i in 1..ids.len() {
        let own = told["token_logprobs"][i].as_f64().unwrap();
        let top = told["top_logprobs"][i].as_object().unwrap();
        let best = top.values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert!(own <= best && best < 0.0);
        assert_eq!(top[told["tokens"][i].as_str().unwrap()].as_f64().unwrap(), own);
    }
    // The score of a continuation is the same however it was reached: generated, or given.
    let generated = server.ok(TEXT, &ask(json!({"max_tokens": 6, "echo": false}))).await;
    let own = generated["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    let mut longer = ids.clone();
    let texts = generated["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    for text in texts {
        let bytes = match text.as_str().unwrap().strip_prefix("bytes:\\x") {
            Some(hex) => vec![u8::from_str_radix(hex, 16).unwrap()],
            None => text.as_str().unwrap().as_bytes().to_vec(),
        };
        // A token for each byte, or the name of a control token.
        match tokenizer().token_id(text.as_str().unwrap()).filter(|&id| id >= 256) {
            Some(id) => longer.push(id),
            None => longer.extend(bytes.iter().map(|&b| u32::from(b))),
        }
    }
    assert_eq!(longer.len(), ids.len() + 6, "{texts:?}");
    let scored = server.ok(TEXT, &ask(json!({"prompt": longer, "max_tokens": 0}))).await;
    let given = scored["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(&given[ids.len()..], own.as_slice());
    assert!(sum(own) < 0.0);
    assert_eq!(scored["usage"]["completion_tokens"], 0);
    assert_eq!(scored["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn biases_and_penalties_change_the_answer() {
    let server = TestServer::start().await;
    let body = with(chat("base", "hello", 12), json!({"ignore_eos": true}));
    let letter = |c: char| json!({"logit_bias": {(c as u32).to_string(): 100}});
    let forced = server.ok(CHAT, &with(body.clone(), letter('q'))).await;
    assert_eq!(content(&forced), "q".repeat(12));
    // A penalty on what was said is stronger than nothing but not than the bias.
    let varied = with(body.clone(), json!({"frequency_penalty": 2, "presence_penalty": 2}));
    let varied = server.ok(CHAT, &with(varied, json!({"logprobs": true}))).await;
    let tokens = varied["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 12);
    let (status, error) =
        server.refused(CHAT, &with(body, json!({"logit_bias": {"9999": 1}}))).await;
    assert_eq!((status, &error["param"]), (400, &json!("logit_bias")));
}

#[tokio::test]
async fn answers_keep_to_the_form_asked_for() {
    let server = TestServer::start().await;
    let schema = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "n": {"enum": [1, 2, 3]}},
        "required": ["city", "n"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema",
                        "json_schema": {"name": "city", "strict": true, "schema": schema}});
    // A random model at a high temperature says anything; the grammar lets only JSON through.
    for (seed, model) in MODELS.iter().enumerate() {
        for temperature in [0.0, 1.5] {
            let body = with(
                chat(model, "where?", 400),
                json!({"response_format": format, "temperature": temperature, "seed": seed}),
            );
            let answer = server.ok(CHAT, &body).await;
            let text = content(&answer);
            let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert!(value["city"].as_str().unwrap().chars().count() <= 12);
            assert!([1, 2, 3].contains(&value["n"].as_i64().unwrap()));
            assert_eq!(value.as_object().unwrap().len(), 2);
            assert_eq!(answer["choices"][0]["finish_reason"], "stop");
            let chunks = server.stream(CHAT, &with(body, json!({"stream": true}))).await;
            let streamed: String = chunks
                .iter()
                .filter_map(|c| c["choices"][0]["delta"]["content"].as_str())
                .collect();
            assert_eq!(streamed, text);
        }
    }
    let choice = json!({"structured_outputs": {"choice": ["refund", "delivery"]}});
    let answer = server.ok(CHAT, &with(chat("blue", "what?", 50), choice)).await;
    assert!(["refund", "delivery"].contains(&content(&answer)));
    let regex = json!({"model": "red", "prompt": "x", "max_tokens": 50, "n": 3,
                       "structured_outputs": {"regex": "[0-9]{4}-[a-f]{2}"}});
    let answer = server.ok(TEXT, &regex).await;
    for choice in answer["choices"].as_array().unwrap() {
        let text = choice["text"].as_str().unwrap();
        assert!(text.len() == 7 && text.as_bytes()[4] == b'-', "{text}");
    }
}

#[tokio::test]
async fn broken_forms_harm_nobody_else() {
    let server = TestServer::start().await;
    let other = with(chat("red", "hello", 60), json!({"ignore_eos": true}));
    let expected = server.ok(CHAT, &other).await["choices"].clone();
    let bomb = json!({"$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}]}},
                      "$ref": "#/$defs/n"});
    for (form, param) in [
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs"),
        (json!({"structured_outputs": {"grammar": "start: nowhere"}}), "structured_outputs"),
        (
            json!({"structured_outputs": {"regex": "(((a{0,99}){0,99}){0,99}){0,99}b"}}),
            "structured_outputs",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema":
                {"name": "x", "schema": {"type": "nothing"}}}}),
            "response_format",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema":
                {"name": "x", "schema": {"$ref": "https://example.org/x.json"}}}}),
            "response_format",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema":
                {"name": "x", "schema": bomb}}}),
            "response_format",
        ),
    ] {
        let body = with(chat("base", "x", 30), form.clone());
        let (broken, good) = tokio::join!(server.post(CHAT, &body), server.ok(CHAT, &other));
        let status = broken.status().as_u16();
        let error: Value = broken.json().await.unwrap();
        assert_eq!(status, 400, "{form}: {error}");
        assert_eq!(error["error"]["param"], param, "{error}");
        assert_eq!(good["choices"], expected);
    }
}
