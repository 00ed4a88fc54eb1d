//! Whatever the bytes of a GGUF file say, opening it does not panic and takes no more memory than a
//! constant times the file's size. A binary of its own: it counts all memory of the process.

mod gguf_files;

use gguf_files::{Gguf, array, entry, tensor, text};
use model::GgufFile;
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use std::fs;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes of memory per byte of file. The worst case is many entries of 14 bytes, which take a key,
/// a value and a place in the index each, twice while the index grows.
const FACTOR: usize = 40;
/// Paths, messages, the index's first allocation.
const BASE: usize = 16 << 10;

/// Opens `bytes` and reads all that it offers.
fn check(path: &std::path::Path, bytes: &[u8]) -> Result<(), TestCaseError> {
    // Some file systems wait for the disk when a file is overwritten, but not for a new one.
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    if let Ok(file) = GgufFile::open(path) {
        let tensors: usize = file.tensors().map(|tensor| tensor.bytes.len()).sum();
        prop_assert!(tensors <= bytes.len());
    }
    let taken = MEMORY.peak_usage().saturating_sub(before);
    prop_assert!(
        taken <= FACTOR * bytes.len() + BASE,
        "{taken} bytes of memory for a file of {}",
        bytes.len()
    );
    Ok(())
}

#[test]
fn no_panic_and_no_more_memory_than_the_file_is_worth() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mutated.gguf");
    let honest = Gguf::honest().bytes();

    // Large honest files first: each kind of content that takes most memory for its bytes.
    let mut entries = Gguf::honest();
    entries.entries.extend((0..20_000).map(|n| entry(&format!("{n}"), 0, [0])));
    let mut strings = Gguf::honest();
    strings.entries.push(entry("empty", 9, array(8, 50_000, text("").repeat(50_000))));
    strings.entries.push(entry("short", 9, array(8, 50_000, text("x").repeat(50_000))));
    let mut tensors = Gguf::honest();
    tensors.data = vec![0; 32 * 5_000];
    tensors.tensors = (0..5_000).map(|n| tensor(&format!("{n}"), &[8], 0, n * 32)).collect();
    for gguf in [&entries, &strings, &tensors] {
        check(&path, &gguf.bytes()).unwrap();
        assert!(GgufFile::open(&path).is_ok());
    }

    let position = 0..honest.len();
    let number = prop_oneof![
        any::<u64>(),
        Just(u64::MAX),
        (0u32..64).prop_map(|bit| 1u64 << bit),
        0u64..40,
    ];
    let edits = prop::collection::vec(
        prop_oneof![
            (position.clone(), any::<u8>()).prop_map(|(at, byte)| (at, vec![byte])),
            (position.clone(), number.clone()).prop_map(|(at, n)| (at, n.to_le_bytes().to_vec())),
            (position, number).prop_map(|(at, n)| (at, (n as u32).to_le_bytes().to_vec())),
        ],
        0..4,
    );
    let cut = prop_oneof![9 => Just(honest.len()), 1 => 0..honest.len()];
    let mut runner =
        TestRunner::new(Config { cases: 2500, rng_seed: RngSeed::Fixed(3), ..Config::default() });
    runner
        .run(&(edits, cut), |(edits, cut)| {
            let mut bytes = honest.clone();
            for (at, new) in edits {
                let end = (at + new.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&new[..end - at]);
            }
            bytes.truncate(cut);
            check(&path, &bytes)
        })
        .unwrap();
}
