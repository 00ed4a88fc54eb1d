//! `metier perplexity` against Transformers and llama.cpp, and what it refuses.

mod common;

use common::shared;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

fn perplexity(model: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_metier"));
    command.args(["perplexity", "--model", model.to_str().unwrap()]).args(arguments);
    command.output().unwrap()
}

#[track_caller]
fn measured(model: &Path, arguments: &[&str]) -> Value {
    let output = perplexity(model, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn near(found: &Value, expected: f64, bound: f64) {
    let found = found.as_f64().unwrap();
    assert!((found / expected - 1.0).abs() <= bound, "found {found}, expected {expected}");
}

/// testdata/perplexity.json, made by scripts/make_perplexity_golden.py.
fn golden(case: &str) -> Value {
    let text = std::fs::read(repository("testdata/perplexity.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()[case].clone()
}

#[track_caller]
fn holds(found: &Value, case: &Value) {
    for (field, expected) in case["expected"].as_object().unwrap() {
        match expected.as_f64() {
            Some(expected) if field != "context" => near(&found[field], expected, 1e-4),
            _ => assert_eq!(&found[field], expected, "{field}"),
        }
    }
}

#[test]
fn a_text_and_ids_as_transformers_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let case = golden("nano_text");
    let text = dir.path().join("text.txt");
    std::fs::write(&text, case["text"].as_str().unwrap()).unwrap();
    let text = text.to_str().unwrap();
    let nano = repository("assets/nano");
    holds(&measured(&nano, &["--text", text, "--context", "64"]), &case);
    // Shorter keys and values change the numbers, a little.
    let held =
        |dtype| measured(&nano, &["--text", text, "--context", "64", "--kv-cache-dtype", dtype]);
    let exact = held("f32")["perplexity"].as_f64().unwrap();
    for dtype in ["bf16", "q8"] {
        let found = &held(dtype)["perplexity"];
        near(found, exact, 0.01);
        assert_ne!(found, exact, "{dtype}");
    }
    let plain = perplexity(&nano, &["--text", text, "--context", "64"]);
    let said = String::from_utf8(plain.stdout).unwrap();
    assert!(said.starts_with("perplexity ") && said.contains("bits per byte"), "{said}");

    let case = golden("llama_tiny_ids");
    let ids = dir.path().join("ids.json");
    std::fs::write(&ids, case["ids"].to_string()).unwrap();
    let ids = ids.to_str().unwrap();
    let found = measured(&repository("testdata/llama_tiny"), &["--ids", ids, "--context", "33"]);
    holds(&found, &case);
    assert_eq!(found["bits_per_byte"], Value::Null);
}

#[test]
fn a_story_as_llama_cpp_has_it() {
    let Some(folder) = shared("models/stories260K") else { return };
    let text = folder.join("greedy_more_prompts.txt");
    let arguments = ["--text", text.to_str().unwrap(), "--context", "128"];
    let found = measured(&folder.join("hf"), &arguments);
    // llama-perplexity (llama-cpp-python 0.3.36) on this model as a GGUF file in f32, -c 128.
    near(&found["perplexity"], 2.2478, 1e-4);
    near(&found["standard_error"], 0.10496, 1e-3);
    assert_eq!((&found["windows"], &found["counted_tokens"]), (&5.into(), &315.into()));
}

#[test]
fn a_window_in_pieces_is_one_window() {
    // 700 tokens go in as 512 and 188; the same window once more behind it changes nothing.
    let dir = tempfile::tempdir().unwrap();
    let nano = repository("assets/nano");
    let check = |times: usize| {
        let one: Vec<usize> = (0..700).map(|i| (i * 7919 + 11) % 4096).collect();
        let path = dir.path().join(format!("{times}.json"));
        std::fs::write(&path, serde_json::to_string(&one.repeat(times)).unwrap()).unwrap();
        measured(&nano, &["--ids", path.to_str().unwrap(), "--context", "700"])
    };
    let (once, twice) = (check(1), check(2));
    assert_eq!(once["counted_tokens"], 349);
    assert_eq!(twice["windows"], 2);
    near(&twice["nats_per_token"], once["nats_per_token"].as_f64().unwrap(), 1e-12);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let nano = repository("assets/nano");
    let (short, latin) = (file("short.txt", b"Good day."), file("latin.txt", b"caf\xe9"));
    let (words, negative) = (file("words.json", b"[\"a\"]"), file("negative.json", b"[1, -2]"));
    let large = file("large.json", b"[1, 2, 3, 4096, 5]");
    let check = |arguments: &[&str], code: i32, parts: &[&str]| {
        let output = perplexity(&nano, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        for part in parts {
            assert!(said.contains(part), "expected {part:?} in: {said}");
        }
    };
    check(&["--text", &short], 1, &["short.txt", "expected at least one window of 512", "hint"]);
    check(&["--text", &short, "--context", "2"], 1, &["--context 2", "expected 3 to 1024"]);
    check(&["--text", &short, "--context", "1025"], 1, &["--context 1025", "3 to 1024"]);
    check(&["--text", &latin], 1, &["latin.txt", "UTF-8"]);
    check(&["--text", "no-such-file"], 1, &["no-such-file"]);
    check(&["--ids", &words], 1, &["words.json", "expected a JSON array of token ids"]);
    check(&["--ids", &negative], 1, &["negative.json", "-2"]);
    check(&["--ids", &large], 1, &["large.json", "element 3 is 4096", "vocabulary of 4096"]);
    check(&[], 2, &["--text"]);
    check(&["--text", &short, "--ids", &large], 2, &["--ids"]);
}
