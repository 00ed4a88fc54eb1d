//! Hints at personal data on public sets that are not part of this repository: ordinary numbers are
//! left alone, and numbers for everybody to call are found.

use std::fs;
use std::path::{Path, PathBuf};

use data::{Example, Origin, PersonalKind, PersonalReport, ReadOptions, personal_data, read};
use serde_json::Value;
use text::{Conversation, Message};

fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("METIER_SHARED").map(PathBuf::from);
    let root = root.unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let path = root.join("data").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not there", path.display());
    None
}

/// The strings of a JSON file as one row each, as they stand.
fn strings(path: &Path) -> Vec<Example> {
    fn collect(value: &Value, texts: &mut Vec<String>) {
        match value {
            Value::String(text) => texts.push(text.clone()),
            Value::Array(items) => items.iter().for_each(|item| collect(item, texts)),
            Value::Object(fields) => fields.values().for_each(|item| collect(item, texts)),
            _ => {}
        }
    }
    let mut texts = Vec::new();
    // Some files of SNIPS are in Latin-1; what is not UTF-8 is not what is looked for.
    let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    collect(&serde_json::from_str(&text).unwrap(), &mut texts);
    let example = |(i, text): (usize, String)| Example {
        id: i.to_string(),
        conversation: Conversation::new(vec![Message::new("user", text)]),
        group: None,
        slices: Default::default(),
        origin: Origin { file: path.to_owned(), line: i + 1 },
    };
    texts.into_iter().enumerate().map(example).collect()
}

#[test]
fn questions_and_sums_hold_none() {
    for name in
        ["banking77/train.csv", "banking77/test.csv", "gsm8k/train.jsonl", "gsm8k/test.jsonl"]
    {
        let Some(path) = shared(name) else { continue };
        let rows = read(&path, &ReadOptions::default()).unwrap();
        assert_eq!(personal_data(&rows), PersonalReport::default(), "{name}: {} rows", rows.len());
    }
    let Some(snips) = shared("snips") else { return };
    for folder in fs::read_dir(snips).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "json") {
                assert_eq!(personal_data(&strings(&path)), PersonalReport::default(), "{path:?}");
            }
        }
    }
}

#[test]
fn an_authority_tells_how_it_is_reached() {
    let Some(path) = shared("cnil-faq/squad.json") else { return };
    let report = personal_data(&strings(&path));
    println!("{:?}", report.summary());
    let kinds: Vec<_> = report.counts.keys().copied().collect();
    assert_eq!(kinds, [PersonalKind::Email, PersonalKind::Phone], "{report:?}");
}
