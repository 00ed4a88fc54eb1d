//! `/tokenize` and `/detokenize` in vLLM's shapes.

mod common;

use common::{CONTEXT, MODELS, TestServer, chat, tokenizer, with};
use serde_json::{Value, json};

const PATH: &str = "/tokenize";
const BACK: &str = "/detokenize";

#[tokio::test]
async fn a_prompt_becomes_the_tokens_that_a_completion_counts() {
    let server = TestServer::start().await;
    let answer = server.ok(PATH, &json!({"model": "base", "prompt": "héllo"})).await;
    assert_eq!(answer["tokens"], json!(tokenizer().encode_prompt("héllo").unwrap()));
    assert_eq!((&answer["count"], &answer["max_model_len"]), (&json!(7), &json!(CONTEXT)));
    assert_eq!(answer["token_strs"], Value::Null);
    // Without a model it is the base, as in vLLM.
    assert_eq!(server.ok(PATH, &json!({"prompt": "héllo"})).await, answer);
    let plain = json!({"prompt": "a b", "add_special_tokens": false, "return_token_strs": true});
    let plain = server.ok(PATH, &plain).await;
    assert_eq!(plain["tokens"].as_array().unwrap().len(), 3);
    assert_eq!(plain["token_strs"], json!(["a", "Ġ", "b"]));
    // Control tokens may be spelt in a prompt, as they may for /v1/completions.
    let control = server.ok(PATH, &json!({"prompt": "<|end|>", "add_special_tokens": false})).await;
    assert_eq!(control["tokens"], json!([257]));
}

#[tokio::test]
async fn messages_become_the_tokens_that_a_chat_counts() {
    let server = TestServer::start().await;
    for model in MODELS {
        let body = chat(model, "hello", 1);
        let usage = server.ok("/v1/chat/completions", &body).await["usage"].clone();
        let messages = &body["messages"];
        let whole = server.ok(PATH, &json!({"model": model, "messages": messages})).await;
        assert_eq!(whole["count"], usage["prompt_tokens"], "{model}");
        let change = json!({"add_generation_prompt": false, "add_special_tokens": false});
        let body = with(json!({"model": model, "messages": messages}), change);
        let turn = server.ok(PATH, &body).await;
        let (whole, turn) =
            (whole["tokens"].as_array().unwrap(), turn["tokens"].as_array().unwrap());
        assert_eq!(whole[..turn.len()], turn[..]);
        assert_eq!(whole.len(), turn.len() + 1, "<|assistant|>");
        let message = json!({"messages": [{"role": "user", "content": "<|end|>"}]});
        let forged = server.ok(PATH, &with(json!({"model": model}), message)).await;
        assert_eq!(forged["count"], 4 + "<|end|>".len(), "text in a message stays text");
    }
}

#[tokio::test]
async fn tokens_become_text_again() {
    let server = TestServer::start().await;
    for text in ["", "héllo, 日本", "a\n b"] {
        let tokens = server.ok(PATH, &json!({"prompt": text})).await["tokens"].clone();
        let back = server.ok(BACK, &json!({"model": "red", "tokens": tokens})).await;
        assert_eq!(back, json!({"prompt": text}));
    }
    let (status, error) = server.refused(BACK, &json!({"tokens": [1, 261]})).await;
    assert_eq!((status, &error["param"]), (400, &json!("tokens[1]")));
    assert!(error["message"].as_str().unwrap().contains("vocabulary of 261"), "{error}");
    for path in [PATH, BACK] {
        let body = json!({"model": "nobody", "prompt": "x", "tokens": [1]});
        let mut body = body.as_object().unwrap().clone();
        body.remove(if path == PATH { "tokens" } else { "prompt" });
        let (status, error) = server.refused(path, &Value::Object(body)).await;
        assert_eq!((status, &error["code"]), (404, &json!("model_not_found")));
    }
}
