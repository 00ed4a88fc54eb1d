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
            let calls = calls.as_array_mut().unwrap();
            if call.get("id").is_some() {
                assert_eq!(index, calls.len());
                calls.push(call);
                continue;
            }
            // More arguments of the latest call, and nothing else.
            assert_eq!((index, call.as_object().unwrap().len()), (json!(calls.len() - 1), 1));
            let told = &mut calls.last_mut().unwrap()["function"]["arguments"];
            let more = call["function"]["arguments"].as_str().unwrap();
            assert!(!more.is_empty());
            *told = format!("{}{more}", told.as_str().unwrap()).into();
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
    // In its arguments there is one, as far as it was written.
    let cut = asked(1, json!({"max_tokens": 50}));
    for (message, reason) in [self::message(&server, &cut).await, streamed(&server, &cut).await] {
        let function = &message["tool_calls"][0]["function"];
        assert_eq!((&function["arguments"], reason.as_str()), (&json!("{\"at\":  "), "length"));
    }
}

#[tokio::test]
async fn arguments_are_told_while_they_are_written() {
    let server = TestServer::scripted(TOOLS, SCRIPTS).await;
    let chunks = server.stream(CHAT, &asked(1, json!({"stream": true}))).await;
    let calls: Vec<&Value> = (chunks.iter())
        .map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0])
        .filter(|call| !call.is_null())
        .collect();
    assert_eq!(calls[0]["function"], json!({"name": "look", "arguments": ""}));
    assert_eq!(calls[1]["function"], json!({"arguments": "{"}));
    // One for each of the script's tokens, but for the letter of two bytes.
    assert_eq!(calls.len(), 1 + r#"{"at":  "é"}"#.chars().count());
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
        (json!({"tool_choice": "any"}), "tool_choice"),
        (json!({"tool_choice": {"function": {"name": "look"}}}), "tool_choice.type"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice.name"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "feel"}}}),
            "tool_choice.function.name",
        ),
        (
            json!({"tool_choice": "required", "response_format": {"type": "json_object"}}),
            "tool_choice",
        ),
        (
            json!({"tool_choice": "required", "tools": [{"type": "function", "function":
                {"name": "f", "parameters": {"type": "string"}}}]}),
            "tools[0]",
        ),
        (
            json!({"tool_choice": "required", "tools": [{"type": "function", "function":
                {"name": "f", "parameters": {"type": "object", "$ref": "https://example.org/x"}}}]}),
            "tools",
        ),
        (json!({"tools": [{"type": "custom", "custom": {"name": "x"}}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function.name"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "<x>"}}]}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]}),
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

/// A template that tells of tools and says nothing of calls but these words.
fn template(words: &str) -> String {
    format!(
        "{{{{- bos_token -}}}}{{%- if tools -%}}{{{{- '<|system|>' ~ tools | tojson ~ '<|end|>' -}}}}\
         {{%- endif -%}}{{%- for m in messages -%}}{{{{- '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' -}}}}\
         {{%- endfor -%}}{{# {words} #}}{{%- if add_generation_prompt -%}}{{{{- '<|assistant|>' -}}}}{{%- endif -%}}"
    )
}

/// Two functions whose arguments end soon, whatever the model says.
fn bounded() -> Value {
    let look = json!({"type": "object", "properties": {"at": {"type": "string", "maxLength": 4},
        "how": {"enum": ["closely", "in passing"]}}, "required": ["at", "how"],
        "additionalProperties": false});
    let ask = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["n"], "additionalProperties": false});
    json!([{"type": "function", "function": {"name": "look", "parameters": look}},
           {"type": "function", "function": {"name": "ask", "parameters": ask}}])
}

/// Every call of a message keeps to its function's schema; the names called.
fn checked(message: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let name = call["function"]["name"].as_str().unwrap();
        let tools = bounded();
        let tool = tools.as_array().unwrap().iter().find(|t| t["function"]["name"] == name);
        let schema = &tool.expect("one of the tools")["function"]["parameters"];
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let arguments: Value = serde_json::from_str(arguments).expect("JSON");
        assert!(jsonschema::is_valid(schema, &arguments), "{message}");
        names.push(name.to_owned());
    }
    names
}

#[tokio::test]
async fn a_model_that_would_not_calls_when_it_must_in_every_format() {
    for words in [
        "<tool_call>",
        "[TOOL_CALLS]",
        "[TOOL_CALLS] [ARGS]",
        "<|tool_call|>",
        "functools",
        "<|start_header_id|> \"parameters\"",
    ] {
        let server = TestServer::templated(&template(words)).await;
        let body = |change: Value| {
            let body = with(chat("base", "Hello", 1500), json!({"tools": bounded(), "seed": 5}));
            with(with(body, json!({"temperature": 1.0, "parallel_tool_calls": false})), change)
        };
        let (free, _) = message(&server, &body(json!({"max_tokens": 60}))).await;
        assert_eq!(free.get("tool_calls"), None, "{words}: it calls nothing of itself");
        let named = json!({"type": "function", "function": {"name": "ask"}});
        for (choice, name) in [(json!("required"), None), (named, Some("ask"))] {
            let body = body(json!({"tool_choice": choice}));
            let (whole, reason) = message(&server, &body).await;
            assert_eq!(reason, "tool_calls", "{words}: {whole}");
            assert_eq!((checked(&whole).len(), &whole["content"]), (1, &Value::Null), "{words}");
            assert!(name.is_none_or(|name| checked(&whole) == [name]), "{words}: {whole}");
            let (streamed, _) = streamed(&server, &body).await;
            assert_eq!(streamed["tool_calls"][0]["function"], whole["tool_calls"][0]["function"]);
        }
    }
}

#[tokio::test]
async fn strict_tools_and_forms_stand_side_by_side() {
    let server = TestServer::templated(&template("<tool_call>")).await;
    let mut tools = bounded();
    for tool in tools.as_array_mut().unwrap() {
        tool["function"]["strict"] = json!(true);
    }
    let form = json!({"type": "json_schema", "json_schema": {"name": "n", "schema":
        {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"],
         "additionalProperties": false}}});
    let mut kinds = [0, 0];
    for seed in 0..12 {
        let body = with(chat("base", "Hello", 2000), json!({"tools": tools, "seed": seed}));
        let body = with(body, json!({"temperature": 1.0, "response_format": form}));
        let (message, _) =
            message(&server, &with(body, json!({"parallel_tool_calls": false}))).await;
        if checked(&message).is_empty() {
            let content: Value =
                serde_json::from_str(message["content"].as_str().unwrap()).expect("the form");
            assert!(content["yes"].is_boolean(), "{content}");
            kinds[0] += 1;
        } else {
            kinds[1] += 1;
        }
    }
    assert!(kinds[0] > 0 && kinds[1] > 0, "{kinds:?}");
}

#[tokio::test]
async fn calls_are_forced_on_the_other_endpoints_too() {
    let server = TestServer::templated(&template("<tool_call>")).await;
    let flat = |schema: &str| -> Value {
        let function = |tool: &Value| {
            let function = &tool["function"];
            let mut flat = json!({"name": function["name"]});
            flat[schema] = function["parameters"].clone();
            if schema == "parameters" {
                flat["type"] = json!("function");
            }
            flat
        };
        bounded().as_array().unwrap().iter().map(function).collect()
    };
    let as_message = |name: &Value, arguments: String| json!({"tool_calls": [{"function": {"name": name, "arguments": arguments}}]});
    for (choice, name) in
        [(json!({"type": "any"}), None), (json!({"type": "tool", "name": "ask"}), Some("ask"))]
    {
        let choice = with(choice, json!({"disable_parallel_tool_use": true}));
        let body = json!({"model": "base", "max_tokens": 1500, "tools": flat("input_schema"),
            "tool_choice": choice, "messages": [{"role": "user", "content": "Hello"}]});
        let answer = server.ok("/v1/messages", &body).await;
        assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
        let block = &answer["content"][0];
        let called = checked(&as_message(&block["name"], block["input"].to_string()));
        assert!(name.is_none_or(|name| called == [name]), "{answer}");
        let events = server.events("/v1/messages", &with(body, json!({"stream": true}))).await;
        let of = |kind: &'static str| {
            events.iter().filter(move |(name, _)| name == kind).map(|(_, data)| data.clone())
        };
        let input: String = of("content_block_delta")
            .map(|data| data["delta"]["partial_json"].as_str().unwrap().to_owned())
            .collect();
        let block = of("content_block_start").next().unwrap()["content_block"].clone();
        checked(&as_message(&block["name"], input));
        assert_eq!((of("content_block_start").count(), of("content_block_stop").count()), (1, 1));
        assert!(of("content_block_delta").count() > 3, "told while it is written");
    }
    for (choice, name) in
        [(json!("required"), None), (json!({"type": "function", "name": "ask"}), Some("ask"))]
    {
        let body = json!({"model": "base", "tools": flat("parameters"), "tool_choice": choice,
            "parallel_tool_calls": false, "input": "Hello"});
        let answer = server.ok("/v1/responses", &body).await;
        assert_eq!((&answer["status"], &answer["tool_choice"]), (&json!("completed"), &choice));
        let item = &answer["output"][0];
        let called =
            checked(&as_message(&item["name"], item["arguments"].as_str().unwrap().into()));
        assert!(name.is_none_or(|name| called == [name]), "{answer}");
        let events = server.events("/v1/responses", &with(body, json!({"stream": true}))).await;
        let of = |kind: &'static str| {
            events.iter().filter(move |(name, _)| name == kind).map(|(_, data)| data.clone())
        };
        let deltas: Vec<Value> = of("response.function_call_arguments.delta").collect();
        let told: String = deltas.iter().map(|data| data["delta"].as_str().unwrap()).collect();
        let done = of("response.function_call_arguments.done").next().unwrap();
        let item = of("response.output_item.done").next().unwrap()["item"].clone();
        assert_eq!((&done["arguments"], &item["arguments"]), (&json!(told), &json!(told)));
        assert!(deltas.len() > 3 && deltas.iter().all(|data| data["item_id"] == item["id"]));
        checked(&as_message(&item["name"], told));
    }
}

#[tokio::test]
async fn forms_are_kept_to_on_the_other_endpoints_too() {
    let server = TestServer::templated(&template("")).await;
    let schema = json!({"type": "object", "properties": {"kind": {"enum": ["leak", "noise"]}},
        "required": ["kind"], "additionalProperties": false});
    let is_kept = |text: &Value| {
        let value: Value = serde_json::from_str(text.as_str().unwrap()).expect("JSON");
        assert!(jsonschema::is_valid(&schema, &value), "{value}");
    };
    let format = json!({"type": "json_schema", "schema": schema});
    let named = with(format.clone(), json!({"name": "report"}));
    let body = json!({"model": "base", "input": "Hello", "text": {"format": named}});
    let answer = server.ok("/v1/responses", &body).await;
    is_kept(&answer["output"][0]["content"][0]["text"]);
    assert_eq!(answer["text"]["format"]["name"], "report");
    let object = json!({"model": "base", "input": "Hello", "max_output_tokens": 200,
                        "text": {"format": {"type": "json_object"}}});
    let answer = server.ok("/v1/responses", &object).await;
    assert!(answer["output"][0]["content"][0]["text"].as_str().unwrap().starts_with('{'));
    for field in [json!({"output_config": {"format": format}}), json!({"output_format": format})] {
        let body = json!({"model": "base", "max_tokens": 300,
                          "messages": [{"role": "user", "content": "Hello"}]});
        let answer = server.ok("/v1/messages", &with(body, field)).await;
        is_kept(&answer["content"][0]["text"]);
    }
    let broken =
        json!({"format": {"type": "json_schema", "name": "n", "schema": {"type": "nothing"}}});
    let (status, error) = server
        .refused("/v1/responses", &json!({"model": "base", "input": "x", "text": broken}))
        .await;
    assert_eq!((status, &error["param"]), (400, &json!("text.format")), "{error}");
}
