//! Known counts on a public data set, BANKING77 (Casanueva et al., arXiv:2003.04807), which is not
//! part of this repository.

use std::path::{Path, PathBuf};

use data::{
    CheckOptions, DedupOptions, LeakKind, LeakOptions, ReadOptions, check, deduplicate, leak_check,
    read,
};

fn shared() -> Option<PathBuf> {
    let root = std::env::var_os("METIER_SHARED").map(PathBuf::from);
    let root = root.unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let folder = root.join("data/banking77");
    if !folder.is_dir() {
        eprintln!("SKIPPED: no folder {}", folder.display());
        return None;
    }
    Some(folder)
}

/// The counts were made independently: by comparing every pair in a few lines of Python.
#[test]
fn known_leaks_and_duplicates() {
    let Some(folder) = shared() else { return };
    let options = ReadOptions::default();
    let train = read(&folder.join("train.csv"), &options).unwrap();
    let test = read(&folder.join("test.csv"), &options).unwrap();
    assert_eq!((train.len(), test.len()), (10_003, 3_080));

    let report = leak_check(&train, &test, &LeakOptions::default()).unwrap();
    assert_eq!((report.exact, report.normalised, report.near), (0, 25, 52));
    assert_eq!(report.different_completion, 2);
    assert_eq!(report.leaked_ids.len(), 77);
    assert!(report.leaks.iter().filter(|l| l.kind == LeakKind::Near).all(|l| l.similarity >= 0.8));
    let wider = LeakOptions { near_threshold: Some(0.5), ..LeakOptions::default() };
    let report = leak_check(&train, &test, &wider).unwrap();
    assert_eq!((report.normalised, report.near), (25, 624));

    let (kept, report) = deduplicate(train, &DedupOptions::default());
    assert_eq!((report.exact, report.normalised, report.conflicts), (0, 30, 1));
    assert_eq!(kept.len(), 9_973);
    assert_eq!(report.conflicting[0].answers.len(), 2);
}

#[test]
fn the_report_says_so() {
    let Some(folder) = shared() else { return };
    let test = folder.join("test.csv");
    let report = check(&[folder.join("train.csv")], Some(&test), &CheckOptions::default(), None);
    let report = report.unwrap();
    assert!(report.blocking[0].starts_with("25 of 3080 test rows"), "{:?}", report.blocking);
    assert!(report.warnings[0].starts_with("52 of 3080 test rows"), "{:?}", report.warnings);
    assert_eq!(report.inputs[1].rows, 3_080);
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["leaks"][0]["report"]["normalised"], 25);
}

/// Golden set of another kind: JSONL with question and answer.
#[test]
fn gsm8k_is_read() {
    let Some(folder) = shared() else { return };
    let path = folder.join("../gsm8k/train.jsonl");
    let rows = read(&path, &ReadOptions::default()).unwrap();
    assert_eq!(rows.len(), 7_473);
    assert!(rows[0].completion().ends_with("#### 72"));
}
