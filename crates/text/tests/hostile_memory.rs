//! Tokenizer files of every form with changed bytes: a tokenizer or an error, never a panic, and
//! memory within a multiple of the file. A binary of its own: it counts all memory of the process.

mod common;

use common::{byte_level_json, sentence_piece_json};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use std::fs;
use std::path::{Path, PathBuf};
use text::Tokenizer;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes of memory per byte of file: JSON values, maps from token to id and back, merges.
const FACTOR: usize = 100;
/// The expressions that cut words, compiled.
const BASE: usize = 16 << 20;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizers").join(name)
}

/// A rank file: all bytes, and some words.
fn ranks() -> Vec<u8> {
    use base64::Engine;
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    tokens.extend(["th", "the", " the", "in", "ing", "aa", "aaa", "aaaa"].map(|t| t.into()));
    let encode = |token: &[u8]| base64::engine::general_purpose::STANDARD.encode(token);
    let lines = tokens.iter().zip(0..).map(|(token, rank)| format!("{} {rank}\n", encode(token)));
    lines.collect::<String>().into_bytes()
}

/// A file's name and bytes.
type Named = (&'static str, Vec<u8>);

/// Each form: the file's name, its honest bytes, and files beside it.
fn forms() -> Vec<(&'static str, Vec<u8>, Vec<Named>)> {
    let json = |value: serde_json::Value| value.to_string().into_bytes();
    let pairs = byte_level_json(&["<b>"]);
    let merges = pairs["model"]["merges"].as_array().unwrap().iter();
    let merges =
        merges.map(|pair| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
    let merges: Vec<u8> = merges.collect::<String>().into_bytes();
    let vocab = json(pairs["model"]["vocab"].clone());
    let model = |name: &str| fs::read(testdata(name).join("tokenizer.model")).unwrap();
    vec![
        ("tokenizer.json", json(byte_level_json(&["<b>", "<e>"])), vec![]),
        ("tokenizer.json", json(sentence_piece_json(&["<b>"])), vec![]),
        ("tokenizer.model", model("bpe"), vec![]),
        ("tokenizer.model", model("unigram"), vec![]),
        ("qwen.tiktoken", ranks(), vec![]),
        ("encoder.json", vocab.clone(), vec![("vocab.bpe", merges.clone())]),
        ("vocab.bpe", merges, vec![("encoder.json", vocab)]),
    ]
}

#[test]
fn no_panic_and_no_more_memory_than_the_files_are_worth() {
    for (name, honest, beside) in forms() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in &beside {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let others: usize = beside.iter().map(|(_, bytes)| bytes.len()).sum();
        fs::write(dir.path().join(name), &honest).unwrap();
        Tokenizer::from_dir(dir.path()).unwrap_or_else(|error| panic!("{name}: {error}"));

        let size = honest.len();
        let at = move || 0..size;
        // What numbers and lengths are made of, in JSON as in a protocol buffer.
        let byte =
            || prop_oneof![prop::sample::select(b"0123456789-{}[]\",:eE= ".to_vec()), any::<u8>()];
        let change = prop_oneof![
            6 => (at(), Just(1), prop::collection::vec(byte(), 1..2)),
            2 => (at(), 1usize..40, Just(Vec::new())),
            2 => (at(), Just(0), prop::collection::vec(byte(), 1..40)),
            1 => (at(), Just(size), Just(Vec::new())),
            1 => (at(), Just(8), Just(vec![0xff, 0xff, 0xff, 0xff, 0x0f])),
        ];
        let changes = prop::collection::vec(change, 1..4);
        let config = Config {
            cases: 1000,
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(3),
            ..Config::default()
        };
        let result = TestRunner::new(config).run(&changes, |changes| {
            let mut bytes = honest.clone();
            for (at, remove, insert) in changes {
                let at = at.min(bytes.len());
                let end = (at + remove).min(bytes.len());
                bytes.splice(at..end, insert);
            }
            // Some file systems wait for the disk when a file is overwritten, but not for a new one.
            fs::remove_file(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name), &bytes).unwrap();
            let before = MEMORY.current_usage();
            MEMORY.reset_peak_usage();
            let loaded = Tokenizer::from_dir(dir.path());
            if let Ok(tokenizer) = &loaded {
                let _ =
                    tokenizer.encode("the  end </s> <0x41> é😀").map(|ids| tokenizer.decode(&ids));
            }
            let taken = MEMORY.peak_usage().saturating_sub(before);
            let allowed = FACTOR * (bytes.len() + others) + BASE;
            prop_assert!(taken <= allowed, "{taken} bytes of memory, allowed are {allowed}");
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
        println!("{name}: {size} bytes");
    }
}
