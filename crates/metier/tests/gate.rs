//! The gate for releases: adapters are proven with the binary, then served, refused or marked by it.
#![cfg(unix)]

mod common;

use common::proving::{code, metier, said};
use common::serving::{METIER, Serving, adapter, nano};
use model::{Decoder, LoadOptions};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// Enough for a verdict where one side is always right and the other never.
const N: usize = 24;

/// What the adapter in the folder `name` answers to `N` questions.
fn answers(dir: &Path, name: &str) -> Vec<String> {
    let row = |i: usize| {
        json!({"id": format!("row-{i}"), "prompt": format!("Question {i}"), "completion": "x"})
            .to_string()
    };
    let rows: Vec<String> = (0..N).map(row).collect();
    std::fs::write(dir.join("questions.jsonl"), rows.join("\n")).unwrap();
    let eval =
        "eval --model nano --data questions.jsonl --max-tokens 4 --answers said.jsonl --adapter";
    let output = metier(dir, &[&eval.split(' ').collect::<Vec<_>>()[..], &[name]].concat());
    assert_eq!(code(&output), 0, "{}", said(&output));
    let text = std::fs::read_to_string(dir.join("said.jsonl")).unwrap();
    let answer = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["answer"].as_str().unwrap().to_owned()
    };
    text.lines().map(answer).collect()
}

/// Proves the adapter in the folder `name` on a test set whose right answers are `right`; the exit code.
fn prove(dir: &Path, name: &str, right: &[String], other: impl Fn(usize) -> String) -> i32 {
    let write = |file: &str, row: &dyn Fn(usize) -> Value| {
        let rows: Vec<String> = (0..N).map(|i| row(i).to_string()).collect();
        std::fs::write(dir.join(file), rows.join("\n")).unwrap();
    };
    write(
        "test.jsonl",
        &|i| json!({"id": format!("row-{i}"), "prompt": format!("Question {i}"), "completion": right[i]}),
    );
    write("other.jsonl", &|i| json!({"id": format!("row-{i}"), "answer": other(i)}));
    let text = format!(
        "[data]\ntest = 'test.jsonl'\n[prove]\nmetric = 'exact_match'\nmax_tokens = 4\nmargin = 0.0\n
[[prove.candidate]]\nname = 'other'\nanswers = 'other.jsonl'\n
[[prove.candidate]]\nname = 'ours'\nmodel = 'nano'\nadapter = '{name}'\n"
    );
    std::fs::write(dir.join("metier.toml"), text).unwrap();
    let output = metier(dir, &["prove", "--out", &format!("proof-{name}")]);
    assert_ne!(code(&output), 1, "{}", said(&output));
    code(&output)
}

fn config(dir: &Path, require: &str) -> String {
    let path = dir.join("serve.toml");
    std::fs::write(&path, format!("[serve]\nrequire_verdict = \"{require}\"\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn card(server: &Serving, name: &str) -> Value {
    let url = format!("{}/models/{name}", server.url);
    reqwest::get(url).await.unwrap().json().await.unwrap()
}

/// Adapters `good` and `bad` with their verdicts, and `none` without one.
fn proven() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let base = Decoder::load(&nano(), &LoadOptions::default()).unwrap();
    let acts = |seed: usize| move |i: usize| ((i * 31 + seed * 17) % 97) as f32 / 97.0 - 0.5;
    for (seed, name) in ["good", "bad", "none"].iter().enumerate() {
        adapter(&base, &at.join(name), acts(seed + 1));
    }
    let right = answers(at, "good");
    assert!(right.iter().all(|answer| !answer.trim().is_empty()), "{right:?}");
    assert_eq!(prove(at, "good", &right, |_| "no".to_owned()), 0);
    assert_ne!(answers(at, "bad"), right);
    assert_eq!(prove(at, "bad", &right, |i| right[i].clone()), 4);
    dir
}

#[tokio::test]
async fn only_proven_adapters_pass_the_gate() {
    let dir = proven();
    let at = dir.path();
    let verdict: Value =
        serde_json::from_slice(&std::fs::read(at.join("good/metier_verdict.json")).unwrap())
            .unwrap();
    assert_eq!(verdict["verdict"], "worth_it");
    let config_path = config(at, "refuse");
    // At the start.
    for (name, words) in [("none", "it carries no verdict"), ("bad", "Not worth it")] {
        let spec = format!("{name}={}", at.join(name).display());
        let output = Command::new(METIER)
            .args(["serve", "--port", "0", "--model", "nano", "--config", &config_path])
            .args(["--adapter", &spec])
            .env("METIER_STATE", at.join("state"))
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{error}");
        assert!(error.contains("is not proven") && error.contains(words), "{error}");
        assert!(error.contains("hint: `metier prove`"), "{error}");
    }
    // While it runs; a verdict about another adapter is none.
    adapter(&Decoder::load(&nano(), &LoadOptions::default()).unwrap(), &at.join("foreign"), |i| {
        (i % 7) as f32 / 7.0 - 0.5
    });
    std::fs::copy(at.join("good/metier_verdict.json"), at.join("foreign/metier_verdict.json"))
        .unwrap();
    let spec = format!("good={}", at.join("good").display());
    let more =
        ["--config", &config_path, "--adapter", &spec, "--adapter-dir", at.to_str().unwrap()];
    let state = Arc::new(tempfile::tempdir().unwrap());
    let mut server = Serving::start_with(state, Path::new("nano"), &more);
    let found = card(&server, "good").await;
    assert_eq!((&found["proven"], &found["not_proven"]), (&json!(true), &Value::Null), "{found}");
    let reasons =
        [("none", "carries no verdict"), ("bad", "Not worth it"), ("foreign", "another adapter")];
    for (name, words) in reasons {
        let load = json!({"lora_name": name, "lora_path": name});
        let (status, answer) = server.try_post("/load_lora_adapter", &load).await.unwrap();
        assert_eq!(
            (status, &answer["error"]["code"]),
            (400, &json!("adapter_refused")),
            "{answer}"
        );
        assert!(answer["error"]["message"].as_str().unwrap().contains(words), "{answer}");
        assert_eq!(card(&server, name).await["error"]["code"], "model_not_found");
    }
    assert!(server.terminate().success());
}

#[tokio::test]
async fn unproven_adapters_are_marked_where_the_operator_says_so() {
    let dir = proven();
    let at = dir.path();
    let config_path = config(at, "mark");
    let spec = |name: &str| format!("{name}={}", at.join(name).display());
    let (good, bad) = (spec("good"), spec("bad"));
    let log = at.join("log.txt");
    let mut child = Command::new("sh")
        .args(["-c", "exec \"$0\" \"$@\" 2>\"$LOG\"", METIER])
        .args(["serve", "--port", "0", "--model", "nano", "--config", &config_path])
        .args(["--adapter", &good, "--adapter", &bad, "--adapter-dir", at.to_str().unwrap()])
        .env("METIER_STATE", at.join("state"))
        .env("LOG", &log)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = child.stdout.as_mut().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let url =
        line.split_whitespace().find(|word| word.starts_with("http://")).expect(&line).to_owned();
    let state = Arc::new(tempfile::tempdir().unwrap());
    let mut server = Serving { child, url, state, key: None };
    let load = json!({"lora_name": "none", "lora_path": "none"});
    let loaded = server.send("/load_lora_adapter", &load).await;
    assert_eq!(loaded.status(), 200);
    for (name, words) in [("bad", "Not worth it"), ("none", "it carries no verdict")] {
        let found = card(&server, name).await;
        assert_eq!(found["proven"], false, "{found}");
        let reason = found["not_proven"].as_str().unwrap();
        assert!(reason.contains(words) && !reason.contains(at.to_str().unwrap()), "{reason}");
    }
    assert_eq!(card(&server, "good").await["proven"], true);
    assert_eq!(card(&server, "nano").await["proven"], Value::Null);
    // Marked, and served all the same.
    let ask = json!({"model": "bad", "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 2, "temperature": 0});
    server.post("/chat/completions", ask).await;
    assert!(server.terminate().success());
    let log = std::fs::read_to_string(log).unwrap();
    for name in ["bad", "none"] {
        let words = format!("the adapter {name} is served though it is not proven");
        assert!(log.contains(&words), "{log}");
    }
    assert!(!log.contains("the adapter good"), "{log}");
}
