//! Tools and thoughts in chat completions: what is asked, what is read out of an answer, and that no
//! half of a marker is ever told as text.

mod common;

use common::{TOOLS, TestServer, chat, with};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// What the model says to the texts that begin with 0, 1, ...
const SCRIPTS: &[&str] = &[
    "Plain text, <tool_cal and more.",
    "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\":  \"é\"}}\n</tool_call>",
    "I look.\n<tool_call>{\"name\": \"look\", \"arguments\": {}}</tool_call>\n\
     <tool_call>{\"name\": \"ask\", \"arguments\": {\"n\": 1}}</tool_call>",
    "<think>\nIs it <b>?\n</think>\n\nYes.",
    "<think>Tools.</think><tool_call>{\"name\": \"ask\"}</tool_call>",
    "<tool_call>{\"name\": \"look\", \"argu",
];

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "look", "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}},
        {"type": "function", "function": {"name": "ask"}}])
}

fn asked(script: usize, change: Value) -> Value {
    with(with(chat("base", &script.to_string(), 300), json!({"tools": tools()})), change)
}

async fn message(server: &TestServer, body: &Value) -> (Value, String) {
    let answer = server.ok(CHAT, body).await;
    let choice = &answer["choices"][0];
    (choice["message"].clone(), choice["finish_reason"].as_str().unwrap().to_owned())
}

/// The message that a stream's chunks make, put together as clients do.
async fn streamed(server: &TestServer, body: &Value) -> (Value, String) {
    let chunks = server.stream(CHAT, &with(body.clone(), json!({"stream": true}))).await;
    let mut message = json!({"role": "assistant", "content": null, "refusal": null});
    let mut reason = String::new();
    for chunk in &chunks {
        let choice = &chunk["choices"][0];
        assert!(reason.is_empty(), "nothing follows the finish reason");
        reason = choice["finish_reason"].as_str().unwrap_or_default().to_owned();
        for field in ["content", "reasoning_content"] {
            let text = choice["delta"][field].as_str().unwrap_or_default();
            if !text.is_empty() {
                let before = message[field].as_str().unwrap_or_default();
                message[field] = format!("{before}{text}").into();
            }
        }
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let mut call = call.clone();
            let index = call.as_object_mut().unwrap().remove("index").unwrap();
            let calls = message.as_object_mut().unwrap().entry("tool_calls").or_insert(json!([]));
            assert_eq!(index, calls.as_array().unwrap().len());
            calls.as_array_mut().unwrap().push(call);
        }
    }
    (message, reason)
}

/// Without the ids of calls, which are other ones each time.
fn without_ids(mut message: Value) -> Value {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let id = call.as_object_mut().unwrap().remove("id").unwrap();
        assert!(id.as_str().unwrap().starts_with("call_"), "{id}");
    }
    message
}

#[tokio::test]
async fn calls_text_and_thoughts_come_apart_streamed_or_not() {
    let server = TestServer::scripted(TOOLS, SCRIPTS).await;
    let call = |name: &str, arguments: &str| json!({"type": "function", "function": {"name": name, "arguments": arguments}});
    for (script, expected, reason) in [
        (0, json!({"content": SCRIPTS[0]}), "stop"),
        (
            1,
            json!({"content": null, "tool_calls": [call("look", r#"{"at":  "é"}"#)]}),
            "tool_calls",
        ),
        (
            2,
            json!({"content": "I look.", "tool_calls": [call("look", "{}"), call("ask", r#"{"n": 1}"#)]}),
            "tool_calls",
        ),
        (3, json!({"content": "Yes.", "reasoning_content": "Is it <b>?"}), "stop"),
        (
            4,
            json!({"content": null, "reasoning_content": "Tools.", "tool_calls": [call("ask", "{}")]}),
            "tool_calls",
        ),
        (5, json!({"content": SCRIPTS[5]}), "stop"),
    ] {
        let expected = with(json!({"role": "assistant", "refusal": null}), expected);
        let body = asked(script, json!({}));
        for (message, found) in [message(&server, &body).await, streamed(&server, &body).await] {
            assert_eq!(
                (without_ids(message), found.as_str()),
                (expected.clone(), reason),
                "{script}"
            );
        }
    }
    // Cut off in the middle of a call there is none, and the reason is the length.
    let (message, reason) = message(&server, &asked(1, json!({"max_tokens": 30}))).await;
    assert_eq!((message["content"].as_str(), reason.as_str()), (Some(&SCRIPTS[1][..30]), "length"));
}

#[tokio::test]
async fn tools_are_offered_and_choices_honoured() {
    let server = TestServer::scripted(TOOLS, SCRIPTS).await;
    let tokens = |answer: Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let without = tokens(server.ok(CHAT, &chat("base", "1", 9)).await);
    let with_tools = tokens(server.ok(CHAT, &asked(1, json!({}))).await);
    let none = json!({"tool_choice": "none"});
    assert!(with_tools > without + 100, "the template tells of them");
    // A model that does not see a tool does not call it, and nothing is read as a call.
    assert_eq!(tokens(server.ok(CHAT, &asked(1, none.clone())).await), without);
    let (raw, reason) = message(&server, &asked(1, none)).await;
    assert_eq!((raw["content"].as_str(), reason.as_str()), (Some(SCRIPTS[1]), "stop"));
    let one = asked(2, json!({"parallel_tool_calls": false, "tool_choice": "auto"}));
    for (message, _) in [message(&server, &one).await, streamed(&server, &one).await] {
        assert_eq!(message["tool_calls"].as_array().unwrap().len(), 1);
    }
    for (change, param) in [
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "look"}}}), "tool_choice"),
        (json!({"tools": [{"type": "custom", "custom": {"name": "x"}}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function.name"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "<x>"}}]}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "strict": true}}]}),
            "tools[0].function.strict",
        ),
        (json!({"tools": vec![tools()[1].clone(); 129]}), "tools"),
    ] {
        let (status, error) = server.refused(CHAT, &asked(1, change)).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
    }
}

#[tokio::test]
async fn a_conversation_with_calls_goes_on() {
    let server = TestServer::scripted(TOOLS, SCRIPTS).await;
    let (mut said, _) = message(&server, &asked(4, json!({}))).await;
    let id = said["tool_calls"][0]["id"].clone();
    // Sent back as it came, with the index that some clients keep.
    said["tool_calls"][0]["index"] = json!(0);
    let messages = json!([{"role": "user", "content": "4"}, said,
        {"role": "tool", "tool_call_id": id, "content": [{"type": "text", "text": "0 or so"}]}]);
    let body = asked(0, json!({"messages": messages}));
    let answer = server.ok(CHAT, &body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], SCRIPTS[0]);
    // Everything of it is in the prompt.
    let tokenized = json!({"model": "base", "messages": messages, "return_token_strs": true});
    let tokenized = server.ok("/tokenize", &tokenized).await;
    let back = server.ok("/detokenize", &json!({"tokens": tokenized["tokens"]})).await;
    let id = id.as_str().unwrap();
    let expected = format!(
        "4<think>Tools.</think><tool_call>{{\"name\": \"ask\", \"arguments\": {{}}}}</tool_call>0 or so ({id})"
    );
    assert_eq!(back["prompt"], expected);
    for (message, param) in [
        (json!({"role": "tool", "content": "x"}), "messages[0].tool_call_id"),
        (json!({"role": "user", "content": "x", "tool_calls": [{}]}), "messages[0].tool_calls"),
        (
            json!({"role": "user", "content": "x", "reasoning_content": "y"}),
            "messages[0].reasoning_content",
        ),
        (json!({"role": "assistant", "content": null}), "messages[0].content"),
        (
            json!({"role": "assistant", "tool_calls": [{"id": "a"}]}),
            "messages[0].tool_calls[0].function",
        ),
        (
            json!({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}),
            "messages[0].tool_calls[0].id",
        ),
        (
            json!({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "["}}]}),
            "messages[0].tool_calls[0].function.arguments",
        ),
    ] {
        let body = with(chat("base", "0", 5), json!({"messages": [message]}));
        let (status, error) = server.refused(CHAT, &body).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
    }
}

#[tokio::test]
async fn models_without_tools_say_so() {
    // The first knows no calls, the second is not told of tools.
    for (template, part) in [
        (
            "{%- for m in messages -%}<|user|>{{ m.content }}{%- endfor -%}<|assistant|>",
            "does not say",
        ),
        (
            "{%- for m in messages -%}<|user|>{{ m.content }}{%- endfor -%}{# <tool_call> #}<|assistant|>",
            "writes nothing of tools",
        ),
    ] {
        let server = TestServer::scripted(template, SCRIPTS).await;
        let (status, error) = server.refused(CHAT, &asked(0, json!({}))).await;
        assert_eq!((status, &error["param"]), (400, &json!("tools")));
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
        let (text, _) = message(&server, &asked(1, json!({"tool_choice": "none"}))).await;
        assert_eq!(text["content"], SCRIPTS[1]);
    }
}
