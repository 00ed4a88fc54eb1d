//! The metric embedding_similarity with a model of its own: measured, proven, computed again or said not to be.

mod common;

use common::proving::{code, label, metier, said, write_answers, write_config, write_test};
use serde_json::Value;
use std::path::{Path, PathBuf};

const N: usize = 24;

fn bert() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/encoders/bert")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => _ = std::fs::copy(entry.path(), target).unwrap(),
        }
    }
}

/// What `metier embed` makes of a text.
fn embedded(dir: &Path, text: &str) -> Vec<f64> {
    std::fs::write(dir.join("line.txt"), text).unwrap();
    let output = metier(dir, &["embed", "--model", bert().to_str().unwrap(), "--file", "line.txt"]);
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    row["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn verified(dir: &Path, more: &[&str]) -> Value {
    let output = metier(dir, &[&["verify", "proof/report.json", "--json"][..], more].concat());
    assert_eq!(code(&output), 0, "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn answers_are_compared_by_meaning_and_the_proof_says_with_what() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    write_test(at, N);
    write_answers(at, "rented.jsonl", N, |_| "a leak in the boiler of the house".to_owned());
    write_answers(at, "ours.jsonl", N, label);
    write_config(at, "");
    let config = std::fs::read_to_string(at.join("metier.toml")).unwrap();
    let put = |more: &str| {
        let text = config.replace("metric = 'exact_match'", more);
        std::fs::write(at.join("metier.toml"), text).unwrap();
    };
    for (more, words) in [
        ("metric = 'embedding_similarity'", "embedding_model in [prove]"),
        ("metric = 'exact_match'\nembedding_model = 'bert'", "nothing asks for it"),
        ("metric = 'embedding_similarity'\nembedding_model = 'nobody/none'", "nobody/none"),
    ] {
        put(more);
        let output = metier(at, &["prove"]);
        assert!(code(&output) == 1 && said(&output).contains(words), "{}", said(&output));
    }
    copy(&bert(), &at.join("bert"));
    put("metric = 'embedding_similarity'\nmetrics = ['exact_match']\nembedding_model = 'bert'");
    let output = metier(at, &["prove"]);
    assert!(matches!(code(&output), 0 | 3), "{}", said(&output));
    let text = std::fs::read_to_string(at.join("proof/report.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["plan"]["embedding_model"], "../bert");
    assert_eq!(report["files"]["embedding model"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(report["candidates"][1]["metrics"]["embedding_similarity"]["value"], 1.0);
    // The same number as from the vectors of `metier embed`.
    let answers = std::fs::read_to_string(at.join("proof/answers/1_rented.jsonl")).unwrap();
    let first: Value = serde_json::from_str(answers.lines().next().unwrap()).unwrap();
    let (a, b) = (embedded(at, "label-0"), embedded(at, "a leak in the boiler of the house"));
    let cosine: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
    assert!((first["similarity"].as_f64().unwrap() - cosine).abs() < 1e-5, "{first} {cosine}");
    assert_eq!(
        first["scores"]["embedding_similarity"],
        first["similarity"].as_f64().unwrap().max(0.0)
    );

    let found = verified(at, &[]);
    assert_eq!((&found["similarities"], &found["verified"]), (&(2 * N).into(), &true.into()));
    // Another model in its place, then none; what was recorded holds all the same.
    std::fs::rename(at.join("bert"), at.join("moved")).unwrap();
    copy(&bert(), &at.join("bert"));
    let weights = at.join("bert/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let found = verified(at, &[]);
    let why = found["similarities_not_computed_again"].as_str().unwrap();
    assert!(found["similarities"].is_null() && why.contains("another model"), "{found}");
    let output = metier(at, &["verify", "proof/report.json", "--embedding-model", "bert"]);
    assert!(code(&output) == 1 && said(&output).contains("another model"), "{}", said(&output));
    std::fs::remove_dir_all(at.join("bert")).unwrap();
    let output = metier(at, &["verify", "proof/report.json"]);
    assert!(said(&output).contains("NOT computed again"), "{}", said(&output));
    let found = verified(at, &["--embedding-model", "moved"]);
    assert_eq!(found["similarities"], 2 * N);
}

#[test]
fn an_evaluation_compares_too_and_long_texts_by_their_beginnings() {
    let dir = tempfile::tempdir().unwrap();
    let bert = bert();
    let model = bert.to_str().unwrap();
    let long = "the boiler leaks ".repeat(400);
    let row = serde_json::json!({"prompt": "Hello", "completion": long});
    std::fs::write(dir.path().join("test.jsonl"), row.to_string()).unwrap();
    let eval = ["eval", "--model", "nano", "--data", "test.jsonl", "--max-tokens", "4"];
    let metrics = ["--metrics", "embedding_similarity", "--json"];
    let more = ["--embedding-model", model];
    let output = metier(dir.path(), &[&eval[..], &metrics, &more].concat());
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(said(&output).contains("1 texts are longer"), "{}", said(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let value = result["metrics"]["embedding_similarity"]["value"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&value), "{result}");
    let output = metier(dir.path(), &[&eval[..], &metrics].concat());
    assert!(code(&output) == 1 && said(&output).contains("--embedding-model"), "{}", said(&output));
}
