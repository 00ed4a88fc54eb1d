//! `/v1/responses`, stateless, in OpenAI's shapes.

mod common;

use common::{MODELS, TOOLS, TestServer, with};
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";

const SCRIPTS: &[&str] = &[
    "It is 42.",
    "<think>Hm.</think>I look.\n<tool_call>{\"name\": \"look\", \"arguments\": {\"at\": 1}}</tool_call>",
];

fn tools() -> Value {
    json!([{"type": "function", "name": "look", "description": "Looks.",
            "parameters": {"type": "object"}}])
}

/// Without what is another one each time, and the times.
fn without_ids(mut response: Value) -> Value {
    response["id"] = Value::Null;
    for field in ["created_at", "completed_at"] {
        response[field] = Value::Null;
    }
    for item in response["output"].as_array_mut().unwrap() {
        item["id"] = Value::Null;
        if item["type"] == "function_call" {
            item["call_id"] = Value::Null;
        }
    }
    response
}

/// Checks that the events tell one story, and returns the response that they end with.
fn told(events: &[(String, Value)]) -> Value {
    let names: Vec<&str> = events.iter().map(|event| event.0.as_str()).collect();
    assert_eq!(names[..2], ["response.created", "response.in_progress"]);
    let mut done = Vec::new();
    let (mut open, mut text) = (None, String::new());
    for (i, (name, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], i);
        match name.as_str() {
            "response.output_item.added" => {
                assert_eq!((open.take(), &data["output_index"]), (None, &json!(done.len())));
                assert_eq!(data["item"]["status"], "in_progress");
                open = Some(data["item"]["id"].clone());
                text.clear();
            }
            "response.output_item.done" => {
                assert_eq!(open.take().as_ref(), Some(&data["item"]["id"]));
                done.push(data["item"].clone());
            }
            name if name.ends_with(".delta") => {
                assert_eq!(open.as_ref(), Some(&data["item_id"]));
                text += data["delta"].as_str().unwrap();
            }
            name if name.ends_with("_text.done") => assert_eq!(data["text"], text),
            "response.function_call_arguments.done" => assert_eq!(data["arguments"], text),
            _ => {}
        }
    }
    let response = events.last().unwrap().1["response"].clone();
    assert_eq!(response["output"], json!(done));
    assert_eq!(events[0].1["response"]["id"], response["id"]);
    response
}

#[tokio::test]
async fn a_response_is_that_of_a_chat_in_openai_s_newer_shape() {
    let server = TestServer::start().await;
    for model in MODELS {
        let body =
            json!({"model": model, "input": "hello", "temperature": 0, "max_output_tokens": 20});
        let response = server.ok(PATH, &body).await;
        let chat = server.ok("/v1/chat/completions", &common::chat(model, "hello", 20)).await;
        let text = &chat["choices"][0]["message"]["content"];
        assert_eq!(response["output"][0]["content"][0]["text"], *text);
        assert_eq!(response["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
        assert_eq!(response["usage"]["output_tokens"], chat["usage"]["completion_tokens"]);
        let status = match chat["choices"][0]["finish_reason"].as_str().unwrap() {
            "stop" => ("completed", Value::Null),
            _ => ("incomplete", json!({"reason": "max_output_tokens"})),
        };
        assert_eq!(
            (response["status"].as_str().unwrap(), response["incomplete_details"].clone()),
            status
        );
        for (field, value) in [
            ("object", json!("response")),
            ("model", json!(model)),
            ("store", json!(false)),
            ("previous_response_id", Value::Null),
            ("error", Value::Null),
            ("temperature", json!(0.0)),
            ("max_output_tokens", json!(20)),
        ] {
            assert_eq!(response[field], value, "{field}");
        }
        assert!(response["id"].as_str().unwrap().starts_with("resp_"));
        let events = server.events(PATH, &with(body, json!({"stream": true}))).await;
        assert_eq!(without_ids(told(&events)), without_ids(response));
    }
}

#[tokio::test]
async fn items_calls_and_thoughts_go_both_ways() {
    let server = TestServer::scripted(TOOLS, SCRIPTS).await;
    let body = json!({"model": "base", "input": "1", "instructions": "Be brief.", "tools": tools(),
                      "metadata": {"a": "b"}});
    let whole = server.ok(PATH, &body).await;
    let events = server.events(PATH, &with(body.clone(), json!({"stream": true}))).await;
    let streamed = told(&events);
    assert_eq!(without_ids(streamed), without_ids(whole.clone()));
    let kinds: Vec<&Value> =
        whole["output"].as_array().unwrap().iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"]);
    let call = &whole["output"][2];
    assert_eq!((&call["name"], &call["arguments"]), (&json!("look"), &json!("{\"at\": 1}")));
    assert_eq!(whole["status"], "completed");
    assert_eq!(whole["usage"]["output_tokens_details"]["reasoning_tokens"], 3);
    assert_eq!(
        (&whole["instructions"], &whole["metadata"]),
        (&json!("Be brief."), &json!({"a": "b"}))
    );
    assert_eq!(whole["tools"][0]["name"], "look");

    // Everything goes back as it came, with the tool's answer.
    let mut input = vec![json!({"role": "user", "content": "1"})];
    input.extend(whole["output"].as_array().unwrap().iter().cloned());
    input.push(json!({"type": "function_call_output", "call_id": call["call_id"], "output": "0"}));
    let answer = server.ok(PATH, &with(body, json!({"input": input}))).await;
    assert_eq!(answer["output"][0]["content"][0]["text"], SCRIPTS[0]);
    let cut = json!({"model": "base", "input": "0", "max_output_tokens": 5});
    let cut = server.ok(PATH, &cut).await;
    assert_eq!(
        (&cut["status"], &cut["output"][0]["status"]),
        (&json!("incomplete"), &json!("incomplete"))
    );
    let events = json!({"model": "base", "input": "0", "max_output_tokens": 5, "stream": true});
    let events = server.events(PATH, &events).await;
    assert_eq!(events.last().unwrap().0, "response.incomplete");
    for (change, param) in [
        (json!({"store": true}), "store"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"model": null}), "model"),
    ] {
        let body = with(json!({"model": "base", "input": "0"}), change);
        let (status, error) = server.refused(PATH, &body).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)));
    }
}
