//! `metier watch` on the books of a real server: zero while all is well, three once a bound is proven crossed.
#![cfg(unix)]

mod common;

use common::serving::{METIER, Serving};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Exit code of `metier watch` on the state of `server`, and what it says.
fn watch(server: &Serving, more: &[&str]) -> (i32, Value) {
    let mut command = Command::new(METIER);
    command.args(["watch", "--json"]).args(more).env("METIER_STATE", server.state.path());
    let output = command.output().unwrap();
    let said = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), said)
}

async fn rated(server: &Serving, rating: &str) {
    let ask = json!({"model": "nano", "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1, "temperature": 0});
    let answer = server.post("/chat/completions", ask).await;
    server.post("/feedback", json!({"id": answer["id"], "rating": rating})).await;
}

#[tokio::test]
async fn the_exit_code_says_whether_a_bound_is_proven_crossed() {
    let mut server = Serving::start(Path::new("nano"));
    let bounds = ["--max-disliked", "0.2", "--max-errors", "0.1"];
    let crossed = |said: &Value, name: &str| {
        let found = said["watched"].as_array().unwrap().iter().find(|w| w["name"] == name);
        found.unwrap()["crossed"].clone()
    };
    // Nothing was asked yet, so nothing is proven.
    assert_eq!(watch(&server, &bounds).0, 0);
    for turn in 0..40 {
        rated(&server, if turn % 10 == 0 { "down" } else { "up" }).await;
    }
    let (code, said) = watch(&server, &bounds);
    assert_eq!((code, &said["crossed"]), (0, &json!(false)), "{said}");
    // It has turned bad.
    for _ in 0..40 {
        rated(&server, "down").await;
    }
    let (code, said) = watch(&server, &bounds);
    assert_eq!((code, crossed(&said, "disliked")), (3, json!(true)), "{said}");
    assert_eq!(crossed(&said, "errors"), false);
    let (code, said) = watch(&server, &["--max-disliked", "0.9"]);
    assert_eq!((code, crossed(&said, "disliked")), (0, json!(false)), "{said}");
    let (code, _) = watch(&server, &["--max-disliked", "0.2", "--name", "nobody"]);
    assert_eq!(code, 0);
    // Without a bound there is nothing to watch, which is a mistake and no alarm.
    assert_eq!(watch(&server, &[]).0, 1);
    assert!(server.terminate().success());
}
