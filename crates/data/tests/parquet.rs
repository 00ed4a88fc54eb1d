//! Parquet as pyarrow writes it (`scripts/make_parquet_golden.py`), and files that lie.

use std::fs;
use std::path::PathBuf;

use data::{Example, FolderSplit, ReadOptions, read};
use proptest::prelude::*;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/parquet").join(name)
}

fn read_golden(name: &str) -> Vec<Example> {
    read(&golden(name), &ReadOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn rows() -> Value {
    serde_json::from_slice(&fs::read(golden("golden.json")).unwrap()).unwrap()
}

#[test]
fn conversations_are_those_that_were_written() {
    let read = read_golden("chat.parquet");
    let rows = rows();
    let rows = rows["chat"].as_array().unwrap();
    assert_eq!(read.len(), rows.len());
    for (i, (example, row)) in read.iter().zip(rows).enumerate() {
        assert_eq!(example.origin.line, i + 1, "the number of the row");
        let messages = row["messages"].as_array().unwrap();
        assert_eq!(example.conversation.messages.len(), messages.len());
        for (message, expected) in example.conversation.messages.iter().zip(messages) {
            assert_eq!(message.role, expected["role"]);
            assert_eq!(message.content, expected["content"]);
            assert_eq!(message.train, expected["weight"].as_i64().map(|weight| weight == 1));
        }
    }
}

#[test]
fn every_compression_and_page_form_gives_the_same_rows() {
    let rows = rows();
    for name in ["none", "gzip", "lz4", "v2"] {
        let read = read_golden(&format!("pairs_{name}.parquet"));
        let rows = rows["pairs"].as_array().unwrap();
        assert_eq!(read.len(), rows.len(), "{name}");
        for (example, row) in read.iter().zip(rows) {
            assert_eq!(example.question(), row["prompt"], "{name}");
            assert_eq!(example.completion(), row["completion"], "{name}");
        }
    }
    let error = read(&golden("pairs_zstd.parquet"), &ReadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("compressed with zstd"), "{error}");
}

#[test]
fn columns_that_no_form_knows_do_no_harm() {
    let read = read_golden("odd.parquet");
    let pairs: Vec<_> = read.iter().map(|e| (e.question(), e.completion().to_owned())).collect();
    assert_eq!(pairs, [("a".into(), "c".into()), ("b".into(), "d".into())]);
    let options = ReadOptions { completion_column: Some("nothing".into()), ..Default::default() };
    let error = data::read(&golden("odd.parquet"), &options).unwrap_err().to_string();
    assert!(error.contains("no \"nothing\"") && error.contains("\"picture\""), "{error}");
}

#[test]
fn a_small_file_cannot_become_endless_rows() {
    let path = golden("bomb.parquet");
    assert!(fs::metadata(&path).unwrap().len() < 1 << 20);
    let error = read(&path, &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("rows that come to more than"), "{error}");
    let options = ReadOptions { max_row_bytes: 1000, ..ReadOptions::default() };
    let error = read(&path, &options).unwrap_err().to_string();
    assert!(error.contains("more than") || error.contains("at most 1000 bytes"), "{error}");
}

fn read_bytes(bytes: &[u8]) -> Result<Vec<Example>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    fs::write(&path, bytes).unwrap();
    read(&path, &ReadOptions::default()).map_err(|error| error.to_string())
}

#[test]
fn cut_short_and_lying_files_are_refused() {
    let whole = fs::read(golden("pairs_none.parquet")).unwrap();
    for end in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        let error = read_bytes(&whole[..end]).expect_err("a file cut short");
        assert!(error.contains("t.parquet") && error.contains("expected"), "{end}: {error}");
    }
    // The length of the footer stands before the mark at the end.
    for length in [0u32, 1, 7, u32::MAX, i32::MAX as u32, whole.len() as u32] {
        let mut lying = whole.clone();
        let at = lying.len() - 8;
        lying[at..at + 4].copy_from_slice(&length.to_le_bytes());
        let error = read_bytes(&lying).expect_err("a footer of another length");
        assert!(error.contains("t.parquet") && error.contains("expected"), "{length}: {error}");
    }
    assert!(read_bytes(b"PAR1PAR1").is_err());
    assert!(read_bytes(b"").unwrap_err().contains("empty"));
    assert!(read_bytes(&[b'x'; 100]).is_err());
}

/// A file without rows whose one column stands in `depth` groups within groups (Thrift's compact
/// form of the footer).
fn nested(depth: usize) -> Vec<u8> {
    let mut footer = vec![0x15, 0x02, 0x19, 0xfc];
    let mut count = depth + 1;
    while count > 0x7f {
        footer.push(count as u8 | 0x80);
        count >>= 7;
    }
    footer.push(count as u8);
    for _ in 0..depth {
        footer.extend([0x35, 0, 0x18, 1, b'a', 0x15, 0x02, 0]);
    }
    footer.extend([0x15, 0x0c, 0x25, 0, 0x18, 1, b'b', 0]);
    footer.extend([0x16, 0, 0x19, 0x0c, 0]);
    let mut file = b"PAR1".to_vec();
    file.extend(&footer);
    file.extend((footer.len() as u32).to_le_bytes());
    file.extend(b"PAR1");
    file
}

#[test]
fn deep_schemas_end_without_a_crash() {
    let error = read_bytes(&nested(3)).unwrap_err();
    assert!(error.contains("no recognised names"), "{error}");
    for depth in [65, 500_000] {
        let error = read_bytes(&nested(depth)).unwrap_err();
        assert!(error.contains("more than 64 deep"), "{depth}: {error}");
    }
    let error = read_bytes(&nested(600_000)).unwrap_err();
    assert!(error.contains("a footer of 48000"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever byte is changed: an error or rows, never a panic, and rows within bounds.
    #[test]
    fn changed_bytes_do_no_harm(at in any::<prop::sample::Index>(), byte: u8, tail: bool) {
        let mut bytes = fs::read(golden("chat.parquet")).unwrap();
        let at = if tail { bytes.len() - 1 - at.index(400) } else { at.index(bytes.len()) };
        bytes[at] = byte;
        if let Ok(rows) = read_bytes(&bytes) {
            prop_assert!(rows.len() < 100_000);
        }
    }
}

#[test]
fn a_folder_of_parts_is_one_set() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    for (name, from) in [
        ("train-00000-of-00002", "pairs_none"),
        ("train-00001-of-00002", "pairs_gzip"),
        ("test-00000-of-00001", "pairs_lz4"),
    ] {
        let to = dir.path().join(format!("data/{name}.parquet"));
        fs::copy(golden(&format!("{from}.parquet")), to).unwrap();
    }
    let train = read(dir.path(), &ReadOptions::default()).unwrap();
    assert_eq!(train.len(), 600);
    let ids: std::collections::HashSet<_> = train.iter().map(|e| &e.id).collect();
    assert_eq!(ids.len(), 600, "ids are unique over the parts");
    let options = ReadOptions { split: FolderSplit::Test, ..ReadOptions::default() };
    assert_eq!(read(dir.path(), &options).unwrap().len(), 300);
}
