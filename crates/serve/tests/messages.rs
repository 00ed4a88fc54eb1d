//! `/v1/messages` and `/v1/messages/count_tokens` in Anthropic's shapes.

mod common;

use common::{MODELS, TOOLS, TestServer, with};
use serde_json::{Value, json};

const PATH: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

fn asked(model: &str, text: &str, change: Value) -> Value {
    let body = json!({"model": model, "max_tokens": 300, "temperature": 0,
                      "messages": [{"role": "user", "content": text}]});
    with(body, change)
}

const SCRIPTS: &[&str] = &[
    "Well, it is 42.",
    "<think>Hm.</think>I look.\n<tool_call>{\"name\": \"look\", \"arguments\": {\"at\": 1}}</tool_call>\
     <tool_call>{\"name\": \"look\"}</tool_call>",
];

fn tools() -> Value {
    json!([{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}])
}

/// The message that a stream's events make, put together as clients do.
fn assembled(events: &[(String, Value)]) -> Value {
    let (first, rest) = events.split_first().unwrap();
    assert_eq!(first.0, "message_start");
    let mut message = first.1["message"].clone();
    assert_eq!((&message["stop_reason"], &message["content"]), (&Value::Null, &json!([])));
    let mut inputs: Vec<String> = Vec::new();
    for (name, data) in rest {
        let content = message["content"].as_array_mut().unwrap();
        match name.as_str() {
            "ping" => {}
            "content_block_start" => {
                assert_eq!(data["index"], content.len());
                content.push(data["content_block"].clone());
                inputs.push(String::new());
            }
            "content_block_delta" => {
                assert_eq!(data["index"], content.len() - 1);
                let block = content.last_mut().unwrap();
                let delta = &data["delta"];
                let field = match delta["type"].as_str().unwrap() {
                    "text_delta" => "text",
                    "thinking_delta" => "thinking",
                    "input_json_delta" => {
                        *inputs.last_mut().unwrap() += delta["partial_json"].as_str().unwrap();
                        continue;
                    }
                    other => panic!("{other}"),
                };
                let more = delta[field].as_str().unwrap();
                block[field] = format!("{}{more}", block[field].as_str().unwrap()).into();
            }
            "content_block_stop" => {
                let input = inputs.last().unwrap();
                if !input.is_empty() {
                    content.last_mut().unwrap()["input"] = serde_json::from_str(input).unwrap();
                }
            }
            "message_delta" => {
                for (field, value) in data["delta"].as_object().unwrap() {
                    message[field] = value.clone();
                }
                message["usage"] = data["usage"].clone();
            }
            "message_stop" => assert_eq!(Some(data), events.last().map(|e| &e.1)),
            other => panic!("{other}"),
        }
    }
    assert_eq!(events.last().unwrap().0, "message_stop");
    message
}

/// Without what is another one each time.
fn without_ids(mut message: Value) -> Value {
    message["id"] = Value::Null;
    for block in message["content"].as_array_mut().unwrap() {
        if block["type"] == "tool_use" {
            block["id"] = Value::Null;
        }
    }
    message
}

#[tokio::test]
async fn an_answer_has_anthropic_s_shape_and_is_that_of_a_chat() {
    let server = TestServer::start().await;
    for model in MODELS {
        let answer = server.ok(PATH, &asked(model, "hello", json!({"max_tokens": 20}))).await;
        assert!(answer["id"].as_str().unwrap().starts_with("msg_"));
        for (field, value) in [("type", "message"), ("role", "assistant"), ("model", model)] {
            assert_eq!(answer[field], value);
        }
        let chat = server.ok("/v1/chat/completions", &common::chat(model, "hello", 20)).await;
        assert_eq!(answer["content"][0]["text"], chat["choices"][0]["message"]["content"]);
        assert_eq!(answer["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
        assert_eq!(answer["usage"]["output_tokens"], chat["usage"]["completion_tokens"]);
        let ended = ["end_turn", "max_tokens"].contains(&answer["stop_reason"].as_str().unwrap());
        assert!(ended && answer["stop_sequence"].is_null(), "{answer}");
        let body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
        let count = server.ok(COUNT, &body).await;
        assert_eq!(count, json!({"input_tokens": answer["usage"]["input_tokens"]}));
        let streaming = asked(model, "hello", json!({"max_tokens": 20, "stream": true}));
        let streamed = assembled(&server.events(PATH, &streaming).await);
        assert_eq!(without_ids(streamed), without_ids(answer));
    }
}

#[tokio::test]
async fn stop_sequences_system_texts_and_tools_are_honoured() {
    let server = TestServer::scripted(TOOLS, SCRIPTS).await;
    let stopping = asked("base", "0", json!({"stop_sequences": ["never", " is"]}));
    let both = [
        server.ok(PATH, &stopping).await,
        assembled(&server.events(PATH, &with(stopping, json!({"stream": true}))).await),
    ];
    for answer in both {
        assert_eq!(answer["content"], json!([{"type": "text", "text": "Well, it"}]));
        let ended = (&answer["stop_reason"], &answer["stop_sequence"]);
        assert_eq!(ended, (&json!("stop_sequence"), &json!(" is")));
    }
    let cut = server.ok(PATH, &asked("base", "0", json!({"max_tokens": 4}))).await;
    assert_eq!(
        (&cut["stop_reason"], &cut["content"][0]["text"]),
        (&json!("max_tokens"), &json!("Well"))
    );

    let calling = asked("base", "1", json!({"tools": tools(), "system": "Be brief."}));
    let whole = server.ok(PATH, &calling).await;
    let streamed = server.events(PATH, &with(calling.clone(), json!({"stream": true}))).await;
    let names: Vec<&str> = streamed.iter().map(|event| event.0.as_str()).collect();
    assert_eq!(names[..3], ["message_start", "ping", "content_block_start"]);
    let expected = json!([
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": null, "name": "look", "input": {"at": 1}},
        {"type": "tool_use", "id": null, "name": "look", "input": {}},
    ]);
    let content = whole["content"].clone();
    for answer in [assembled(&streamed), whole] {
        assert_eq!(answer["stop_reason"], "tool_use");
        assert_eq!(without_ids(answer)["content"], expected);
    }
    let one = json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": true}});
    let one = server.ok(PATH, &with(calling.clone(), one)).await;
    assert_eq!(one["content"].as_array().unwrap().len(), 3);

    // The answer goes back as it came, and the count covers system, tools and blocks.
    let mut body = calling;
    let results: Vec<Value> = content
        .as_array()
        .unwrap()
        .iter()
        .filter(|block| block["type"] == "tool_use")
        .map(|block| json!({"type": "tool_result", "tool_use_id": block["id"], "content": "0"}))
        .collect();
    body["messages"] = json!([{"role": "user", "content": "1"},
        {"role": "assistant", "content": content}, {"role": "user", "content": results}]);
    let answer = server.ok(PATH, &body).await;
    assert_eq!(answer["content"][0]["text"], SCRIPTS[0]);
    for field in ["max_tokens", "temperature"] {
        body.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(server.ok(COUNT, &body).await["input_tokens"], answer["usage"]["input_tokens"]);
}

#[tokio::test]
async fn errors_have_anthropic_s_shape_whoever_makes_them() {
    let server = TestServer::start().await;
    let good = asked("base", "hello", json!({"max_tokens": 3}));
    let send = |path: &'static str, content_type: &'static str, body: String| {
        let post = server.client.post(format!("{}{path}", server.url));
        let post =
            post.header("content-type", content_type).header("anthropic-version", "2023-06-01");
        post.body(body).send()
    };
    let json_type = "application/json";
    let mut no_model = good.clone();
    no_model["model"] = json!("claude");
    let mut bad = good.clone();
    bad["temperature"] = json!(2);
    for (path, content_type, body, status, kind) in [
        (PATH, json_type, no_model.to_string(), 404, "not_found_error"),
        (PATH, json_type, bad.to_string(), 400, "invalid_request_error"),
        (PATH, json_type, "{".into(), 400, "invalid_request_error"),
        (PATH, "text/plain", good.to_string(), 415, "invalid_request_error"),
        (PATH, json_type, " ".repeat(3 << 20), 413, "request_too_large"),
        (COUNT, json_type, good.to_string(), 400, "invalid_request_error"),
        ("/v1/messages/batches", json_type, "{}".into(), 404, "not_found_error"),
    ] {
        let response = send(path, content_type, body).await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        let error: Value = response.json().await.unwrap();
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)));
        assert!(error["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{error}");
        assert!(error["error"].get("param").is_none(), "{error}");
    }
    let wrong: Value = server.get(PATH).await.json().await.unwrap();
    assert_eq!(wrong["error"]["type"], "invalid_request_error");
    assert_eq!(send(PATH, json_type, good.to_string()).await.unwrap().status(), 200);
}
