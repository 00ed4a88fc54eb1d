//! Small proofs made with the binary, of recorded answers.

use serde_json::json;
use std::path::Path;
use std::process::{Command, Output};

pub(crate) fn metier(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_metier"));
    command.current_dir(dir).env("METIER_STATE", dir.join("state")).args(arguments);
    command.output().unwrap()
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// The right answer to the example at a place.
pub(crate) fn label(i: usize) -> String {
    format!("label-{}", i % 5)
}

/// A test set of `n` short labels.
pub(crate) fn write_test(dir: &Path, n: usize) {
    let row = |i: usize| {
        json!({"id": format!("row-{i}"), "messages": [
            {"role": "user", "content": format!("message {i}")},
            {"role": "assistant", "content": label(i)}]})
        .to_string()
    };
    std::fs::write(dir.join("test.jsonl"), (0..n).map(row).collect::<Vec<_>>().join("\n")).unwrap();
}

/// Recorded answers to `n` examples.
pub(crate) fn write_answers(dir: &Path, name: &str, n: usize, answer: impl Fn(usize) -> String) {
    let row = |i: usize| {
        json!({"id": format!("row-{i}"), "answer": answer(i), "prompt_tokens": 400 + i % 50,
            "answer_tokens": 5, "seconds": 0.5})
        .to_string()
    };
    std::fs::write(dir.join(name), (0..n).map(row).collect::<Vec<_>>().join("\n")).unwrap();
}

/// `[prove]` of two recorded candidates, `rented` and `ours`, with further sections.
pub(crate) fn write_config(dir: &Path, more: &str) {
    let text = format!(
        "[data]\ntest = 'test.jsonl'\n[prove]\nmetric = 'exact_match'\n
[[prove.candidate]]\nname = 'rented'\nanswers = 'rented.jsonl'\n
[[prove.candidate]]\nname = 'ours'\nanswers = 'ours.jsonl'\n{more}"
    );
    std::fs::write(dir.join("metier.toml"), text).unwrap();
}
