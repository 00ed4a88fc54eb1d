//! From mixed files to sets on the disk and back.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use data::{DataReport, PrepareOptions, ReadOptions, SplitOptions, TokenCounter, prepare, read};
use text::{ChatTemplate, Tokenizer};

fn write_inputs(dir: &Path) -> Vec<PathBuf> {
    let mut csv = String::from("text,label,group\n");
    let mut jsonl = String::new();
    for i in 0..60 {
        csv +=
            &format!("\"message {i} about topic{i}, please\",label{},customer{}\n", i % 3, i / 2);
        jsonl += &format!(
            "{{\"id\":{i},\"messages\":[{{\"role\":\"user\",\"content\":\"q{i} of chat{i}\"}},\
             {{\"role\":\"assistant\",\"content\":\"été {i}\"}}]}}\n"
        );
    }
    csv += "\"Message 3 about topic3, PLEASE!\",label0,other\n";
    let (a, b, c) = (dir.join("a.csv"), dir.join("b.jsonl"), dir.join("c.jsonl"));
    fs::write(&a, csv).unwrap();
    fs::write(&b, &jsonl).unwrap();
    fs::write(&c, jsonl.replace("été", "hiver").replace("of chat", "in conversation")).unwrap();
    vec![a, b, c]
}

#[test]
fn sets_are_disjoint_complete_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_inputs(dir.path());
    let out = dir.path().join("out/deep");
    let options = PrepareOptions {
        split: SplitOptions { valid_fraction: 0.1, test_fraction: 0.2, ..Default::default() },
        ..Default::default()
    };
    let prepared = prepare(&files, &out, &options, None).unwrap();
    let report = &prepared.report;
    assert_eq!((report.duplicates.rows_in, report.duplicates.normalised), (181, 1));
    let split = report.split.as_ref().unwrap();
    assert_eq!((split.train, split.valid, split.test), (126, 18, 36));
    assert!(report.blocking.is_empty(), "{:?}", report.blocking);
    assert_eq!(report.leaks.len(), 2);

    let mut names: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["data_report.json", "test.jsonl", "train.jsonl", "valid.jsonl"]);
    let saved = fs::read_to_string(out.join("data_report.json")).unwrap();
    let saved: DataReport = serde_json::from_str(&saved).unwrap();
    assert_eq!(saved, *report);

    let mut ids = HashSet::new();
    let mut groups: Vec<HashSet<String>> = Vec::new();
    for (name, rows) in [
        ("train", &prepared.split.train),
        ("valid", &prepared.split.valid),
        ("test", &prepared.split.test),
    ] {
        let back = read(&out.join(format!("{name}.jsonl")), &ReadOptions::default()).unwrap();
        assert_eq!(back.len(), rows.len());
        for (read, wrote) in back.iter().zip(rows) {
            assert_eq!(
                (&read.id, &read.conversation, &read.group),
                (&wrote.id, &wrote.conversation, &wrote.group)
            );
            assert!(ids.insert(read.id.clone()), "{} twice", read.id);
        }
        groups.push(back.iter().filter_map(|e| e.group.clone()).collect());
    }
    assert_eq!(ids.len(), 180);
    assert!(groups[0].is_disjoint(&groups[2]) && groups[0].is_disjoint(&groups[1]));

    let first = fs::read(out.join("train.jsonl")).unwrap();
    prepare(&files, &out, &options, None).unwrap();
    assert_eq!(fs::read(out.join("train.jsonl")).unwrap(), first, "same seed, same files");
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = write_inputs(dir.path());
    files.push(dir.path().join("missing.csv"));
    let out = dir.path().join("out");
    assert!(prepare(&files, &out, &PrepareOptions::default(), None).is_err());
    assert!(!out.exists());
}

#[test]
fn tokens_are_counted_as_they_are_trained() {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano");
    let tokenizer = Tokenizer::from_dir(&nano).unwrap();
    let template = ChatTemplate::from_dir(&nano).unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = write_inputs(dir.path());
    let counter = TokenCounter { tokenizer: &tokenizer, template: &template, limit: 8 };
    let out = dir.path().join("out");
    let prepared = prepare(&files, &out, &PrepareOptions::default(), Some(counter)).unwrap();
    let stats = &prepared.report.tokens["train"];
    let mut total = 0;
    let mut learnt = 0;
    for example in &prepared.split.train {
        let rendered = template.render(&tokenizer, &example.conversation, false).unwrap();
        total += rendered.ids.len() as u64;
        learnt += rendered.mask.iter().filter(|&&m| m).count() as u64;
    }
    assert_eq!((stats.total, stats.supervised), (total, learnt));
    assert!(stats.min <= stats.median && stats.median <= stats.p95 && stats.p95 <= stats.max);
    assert!(stats.over_limit > 0 && !stats.over_limit_at.is_empty());
    assert!(prepared.report.warnings.iter().any(|w| w.contains("longer than 8 tokens")));
    assert_eq!(stats.without_supervised, 0);
}
