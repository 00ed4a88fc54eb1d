//! `metier tokenize` on every form in which a model brings its tokenizer.

mod common;

use assert_cmd::Command;
use common::shared;
use std::path::Path;

/// Ids of `text` as the command prints them.
#[track_caller]
fn ids(model: &Path, text: &str, more: &[&str]) -> Vec<u32> {
    let model = model.to_str().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_metier"))
        .args(["tokenize", "--json", "--model", model, "--text", text])
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn a_gguf_file_and_folders_with_other_forms() {
    let Some(root) = shared("tokenizers") else { return };
    let text = "Hello world";
    for model in ["gpt-2/ggml-vocab-gpt-2.gguf", "gpt-2"] {
        assert_eq!(ids(&root.join(model), text, &[]), [15496, 995], "{model}");
    }
    for model in ["phi-3-mini/ggml-vocab-phi-3.gguf", "phi-3-mini"] {
        assert_eq!(ids(&root.join(model), text, &[]), [15043, 3186], "{model}");
    }
    assert_eq!(
        ids(&root.join("llama-spm/ggml-vocab-llama-spm.gguf"), text, &["--special"]),
        [1, 15043, 3186]
    );
    assert_eq!(ids(&root.join("qwen2"), "Hello<|im_end|>", &["--special"]), [9707, 151645]);
    assert_eq!(ids(&root.join("mistral-v3"), text, &[]), [23325, 2294]);
}

#[test]
fn files_that_are_no_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, bytes: &[u8], parts: &[&str]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_metier"))
            .args(["tokenize", "--text", "x", "--model", path.to_str().unwrap()])
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "expected {part:?} in: {stderr}");
        }
    };
    check("a.gguf", b"", &["a.gguf", "not a GGUF file"]);
    let mut none = b"GGUF\x03\0\0\0".to_vec();
    none.extend([0; 16]);
    check("b.gguf", &none, &["b.gguf", "tokenizer.ggml.model", "expected a string"]);
    check("c.bin", &none, &["c.bin", "expected a model folder"]);
}
