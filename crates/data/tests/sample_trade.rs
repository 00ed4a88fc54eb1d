//! The bundled sample trade keeps what its card promises: the test set is unseen.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use data::{
    DedupOptions, Example, LeakOptions, ReadOptions, deduplicate, leak_check, read, token_stats,
};
use text::{ChatTemplate, Tokenizer};

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets")
}

fn set(name: &str) -> Vec<Example> {
    read(&assets().join("trade").join(name), &ReadOptions::default()).unwrap()
}

#[test]
fn nothing_leaks_and_nothing_is_double() {
    let (train, test) = (set("train.jsonl"), set("test.jsonl"));
    assert!(train.len() >= 2_000 && test.len() >= 400);
    // Far below the usual 0.8, so that not even half-alike messages are shared.
    let options = LeakOptions { near_threshold: Some(0.5), ..LeakOptions::default() };
    let report = leak_check(&train, &test, &options).unwrap();
    assert!(report.is_clean(), "{:#?}", report.leaks);
    for rows in [train, test] {
        let (_, report) = deduplicate(rows, &DedupOptions::default());
        assert_eq!((report.exact, report.normalised, report.conflicts), (0, 0, 0));
    }
}

#[test]
fn every_answer_is_a_ticket() {
    for example in set("train.jsonl").into_iter().chain(set("test.jsonl")) {
        let ticket: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(example.completion()).unwrap();
        let fields: Vec<&str> = ticket.keys().map(String::as_str).collect();
        assert_eq!(
            fields,
            ["appliance", "fault", "urgency", "postcode", "callback", "language"],
            "{}",
            example.id
        );
        assert_eq!(example.completion(), serde_json::to_string(&ticket).unwrap());
    }
}

/// The most frequent ticket is no way to a good score: the demo must learn to read.
#[test]
fn no_answer_is_frequent() {
    let mut counts: HashMap<String, usize> = HashMap::new();
    let test = set("test.jsonl");
    for example in &test {
        *counts.entry(example.completion().to_owned()).or_default() += 1;
    }
    let most = counts.values().max().unwrap();
    assert!(*most * 50 < test.len(), "{most}");
}

#[test]
fn rows_are_short_for_the_bundled_base() {
    let nano = assets().join("nano");
    let tokenizer = Tokenizer::from_dir(&nano).unwrap();
    let template = ChatTemplate::from_dir(&nano).unwrap().unwrap();
    for name in ["train.jsonl", "test.jsonl"] {
        let stats = token_stats(&set(name), &tokenizer, &template, 256).unwrap();
        println!("{name}: {stats:?}");
        assert!(stats.median <= 160 && stats.over_limit == 0, "{name}: {stats:?}");
        assert_eq!(stats.without_supervised, 0);
    }
}
