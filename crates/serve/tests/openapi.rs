//! What the server answers, held against OpenAI's own description of its API, where that is there.

mod common;

use common::{TOOLS, TestServer, chat, with};
use jsonschema::Validator;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const SCRIPTS: &[&str] = &[
    "It is 42.",
    "<think>Hm.</think>I look.\n<tool_call>{\"name\": \"look\", \"arguments\": {\"at\": 1}}</tool_call>",
];

/// The description; None, and said loudly, when it is not there.
fn description() -> Option<Value> {
    let root = std::env::var_os("METIER_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let path = root.join("api/openai-openapi.yaml");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED: {} is not there", path.display());
        return None;
    };
    // The file is larger than what the crate takes from strangers, and `y` is a field's name in it.
    let options = serde_saphyr::options! { budget: None, strict_booleans: true };
    Some(serde_saphyr::from_str_with_options(&text, options).expect("YAML"))
}

/// Validators of the description's schemas, each with those that it refers to.
struct Schemas {
    all: Value,
    made: HashMap<String, Validator>,
}

impl Schemas {
    fn check(&mut self, name: &str, answer: &Value) {
        let Schemas { all, made } = self;
        let validator = made.entry(name.to_owned()).or_insert_with(|| {
            let mut schemas = serde_json::Map::new();
            cut_out(all, name, &mut schemas);
            schemas.values_mut().for_each(to_json_schema);
            let schema = json!({"$ref": format!("#/components/schemas/{name}"),
                                "components": {"schemas": schemas}});
            jsonschema::validator_for(&schema).expect("a schema")
        });
        let errors: Vec<String> =
            validator.iter_errors(answer).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{name}: {}\n{answer:#}", errors.join("\n"));
    }
}

/// Puts the schema `name`, and what it refers to, into `into`.
fn cut_out(all: &Value, name: &str, into: &mut serde_json::Map<String, Value>) {
    if into.contains_key(name) {
        return;
    }
    let schema = &all[name];
    assert!(schema.is_object(), "the description has no {name}");
    into.insert(name.to_owned(), schema.clone());
    let mut todo = vec![schema];
    while let Some(value) = todo.pop() {
        match value {
            Value::Array(items) => todo.extend(items),
            Value::Object(fields) => {
                if let Some(Value::String(target)) = fields.get("$ref") {
                    let target = target.strip_prefix("#/components/schemas/").expect("a schema");
                    cut_out(all, target, into);
                }
                todo.extend(fields.values());
            }
            _ => {}
        }
    }
}

/// The description says `nullable` in places, which older versions of OpenAPI had.
fn to_json_schema(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(to_json_schema),
        Value::Object(fields) => {
            fields.values_mut().for_each(to_json_schema);
            if fields.get("nullable") == Some(&json!(true)) {
                fields.remove("nullable");
                let schema = Value::Object(std::mem::take(fields));
                fields.insert("anyOf".into(), json!([schema, {"type": "null"}]));
            }
        }
        _ => {}
    }
}

#[tokio::test]
async fn answers_keep_to_openai_s_description() {
    let Some(mut description) = description() else { return };
    let all = description["components"]["schemas"].take();
    let mut schemas = Schemas { all, made: HashMap::new() };
    // A check that cannot fail shows nothing.
    let bad = json!({"id": 5, "object": "response"});
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        schemas.check("Response", &bad);
    }));
    assert!(caught.is_err(), "a broken answer is found");

    let scripted = TestServer::scripted(TOOLS, SCRIPTS).await;
    let plain = TestServer::start().await;
    let tool =
        json!({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}});
    let calling = with(chat("base", "1", 300), json!({"tools": [tool]}));
    let several = with(chat("red", "hello", 9), json!({"n": 2, "temperature": 1, "seed": 1}));
    let told = with(chat("red", "hello", 9), json!({"logprobs": true, "top_logprobs": 2}));
    for (server, body) in [(&scripted, calling), (&plain, several), (&plain, told)] {
        let path = "/v1/chat/completions";
        schemas.check("CreateChatCompletionResponse", &server.ok(path, &body).await);
        let options = json!({"stream": true, "stream_options": {"include_usage": true}});
        for chunk in server.stream(path, &with(body, options)).await {
            schemas.check("CreateChatCompletionStreamResponse", &chunk);
        }
    }
    // Of a stream of this endpoint the description says nothing, and it forgets that the first token of
    // an echo has no probability.
    let path = "/v1/completions";
    for change in [json!({}), json!({"n": 2}), json!({"logprobs": 2}), json!({"echo": true})] {
        let body = with(json!({"model": "red", "prompt": "abc", "max_tokens": 5}), change);
        schemas.check("CreateCompletionResponse", &plain.ok(path, &body).await);
    }
    let path = "/v1/responses";
    let tool = json!({"type": "function", "name": "look", "parameters": {"type": "object"}});
    for body in [
        json!({"model": "base", "input": "0", "instructions": "Be brief."}),
        json!({"model": "base", "input": "0", "max_output_tokens": 3, "metadata": {"a": "b"}}),
        json!({"model": "base", "input": [{"role": "user", "content": "1"}], "tools": [tool]}),
    ] {
        schemas.check("Response", &scripted.ok(path, &body).await);
        for (_, event) in scripted.events(path, &with(body, json!({"stream": true}))).await {
            schemas.check("ResponseStreamEvent", &event);
        }
    }
    let body = json!({"model": "red", "input": ["abc", "d"]});
    schemas.check("CreateEmbeddingResponse", &plain.ok("/v1/embeddings", &body).await);
    let models = plain.get("/v1/models").await.json().await.unwrap();
    schemas.check("ListModelsResponse", &models);
    schemas.check("Model", &plain.get("/v1/models/red").await.json().await.unwrap());
    for (path, body) in [
        ("/v1/chat/completions", json!({"model": "nobody", "messages": []})),
        ("/v1/completions", json!({"model": "red"})),
        ("/v1/responses", json!({"model": "nobody", "input": "x"})),
        ("/v1/embeddings", json!({"model": "nobody", "input": "x"})),
    ] {
        let error: Value = plain.post(path, &body).await.json().await.unwrap();
        schemas.check("ErrorResponse", &error);
    }
}
