//! Model folders with changed bytes: an error or a model, never a panic, and memory within a small
//! multiple of the files. A bounded fuzz run, the same on every machine.

use model::{Decoder, DecoderConfig, LoadOptions};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Memory is counted for the whole process, so one test measures at a time.
static MEASURING: Mutex<()> = Mutex::new(());

/// Bytes that loading may take for each byte of the files: packed weights, and a second copy while
/// they are converted.
const TIMES: usize = 8;
/// What a load takes beside that: threads, tables, names.
const BESIDE: usize = 16 << 20;

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/llama_tiny").join(name)
}

fn gguf(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/gguf_families");
    folder.join(name).with_extension("gguf")
}

/// Loads a folder with these files; panics when it takes too much memory.
fn load(config: &[u8], weights: &[u8]) -> Result<Decoder, String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config).unwrap();
    fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    measured(dir.path(), config.len() + weights.len())
}

/// Loads one GGUF file; panics when it takes too much memory.
fn load_gguf(bytes: &[u8]) -> Result<Decoder, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    measured(file.path(), bytes.len())
}

/// Loads what is `size` bytes on disk.
fn measured(path: &Path, size: usize) -> Result<Decoder, String> {
    let _one = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let loaded = Decoder::load(path, &LoadOptions::default()).map_err(|e| e.to_string());
    let taken = ALLOCATOR.peak_usage().saturating_sub(before);
    let most = TIMES * size + BESIDE;
    assert!(taken <= most, "loading took {taken} bytes, allowed are {most}");
    if let Err(message) = &loaded {
        assert!(!message.is_empty() && message.len() < 1 << 20);
    }
    loaded
}

/// One change of some bytes.
#[derive(Clone, Debug)]
enum Change {
    Set {
        at: usize,
        to: u8,
    },
    Remove {
        at: usize,
        len: usize,
    },
    Insert {
        at: usize,
        bytes: Vec<u8>,
    },
    Cut {
        len: usize,
    },
    /// The first eight bytes: the length that a safetensors header claims.
    Claim(u64),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: usize| at % bytes.len().max(1);
        match self {
            _ if bytes.is_empty() => {}
            Change::Set { at, to } => {
                let at = place(*at);
                bytes[at] = *to;
            }
            Change::Remove { at, len } => {
                let at = place(*at);
                let end = (at + len).min(bytes.len());
                bytes.drain(at..end);
            }
            Change::Insert { at, bytes: new } => {
                let at = place(*at);
                bytes.splice(at..at, new.iter().copied());
            }
            Change::Cut { len } => bytes.truncate(*len),
            Change::Claim(length) => {
                let end = bytes.len().min(8);
                bytes[..end].copy_from_slice(&length.to_le_bytes()[..end]);
            }
        }
    }
}

/// Changes of a file of `size` bytes whose first `dense` ones decide most.
fn changes(dense: usize, size: usize) -> impl Strategy<Value = Vec<Change>> {
    let at = move || prop_oneof![4 => 0..dense, 1 => 0..size];
    // Digits, brackets and quotes make more of JSON than other bytes do.
    let byte = || prop_oneof![prop::sample::select(b"0123456789-{}[]\",:eE".to_vec()), any::<u8>()];
    let change = prop_oneof![
        6 => (at(), byte()).prop_map(|(at, to)| Change::Set { at, to }),
        2 => (at(), 1usize..40).prop_map(|(at, len)| Change::Remove { at, len }),
        2 => (at(), prop::collection::vec(byte(), 1..40)).prop_map(|(at, bytes)| Change::Insert { at, bytes }),
        1 => (0..size).prop_map(|len| Change::Cut { len }),
        1 => prop_oneof![any::<u64>(), Just(u64::MAX), Just(1 << 63), 0..size as u64].prop_map(Change::Claim),
    ];
    prop::collection::vec(change, 1..4)
}

/// Every place in a JSON value that holds a number, string, flag or null, by path of keys.
fn leaves(value: &Value, path: Vec<String>, found: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                leaves(value, [path.clone(), vec![key.clone()]].concat(), found);
            }
        }
        _ => found.push(path),
    }
}

/// Values that a field of config.json may be given.
fn odd_values() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(0),
            json!(-1),
            json!(1),
            json!(2),
            json!(3),
            json!(7),
            json!(1e12),
            json!(1_000_000_000_000_u64),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1e-30),
            json!(1e300),
            json!(0.5),
            json!(""),
            json!("llama"),
            json!("NaN"),
            json!([]),
            json!({}),
            json!([1, 2]),
            json!({"rope_type": "linear"}),
            json!(1 << 16),
            json!(1 << 22),
            json!(1 << 26),
        ]),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|x| json!(x)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(3),
        ..ProptestConfig::default()
    })]

    #[test]
    fn changed_weights_never_panic(changes in changes(4000, 535_904)) {
        let config = fs::read(tiny("config.json")).unwrap();
        let mut weights = fs::read(tiny("model.safetensors")).unwrap();
        changes.iter().for_each(|change| change.apply(&mut weights));
        let _ = load(&config, &weights);
    }

    #[test]
    fn changed_config_bytes_never_panic(changes in changes(700, 716)) {
        let mut config = fs::read(tiny("config.json")).unwrap();
        changes.iter().for_each(|change| change.apply(&mut config));
        let _ = load(&config, &fs::read(tiny("model.safetensors")).unwrap());
    }

    /// The files with most to say beside their matrices: two rotations, factors of frequencies,
    /// experts.
    #[test]
    fn changed_gguf_files_never_panic(
        name in prop::sample::select(vec!["gemma3", "phi3", "qwen3_moe", "llama"]),
        changes in changes(1500, 40_000),
    ) {
        let mut bytes = fs::read(gguf(name)).unwrap();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        let _ = load_gguf(&bytes);
    }

    #[test]
    fn odd_config_values_never_panic(picks in prop::collection::vec((any::<prop::sample::Index>(), odd_values()), 1..4)) {
        let mut config: Value = serde_json::from_slice(&fs::read(tiny("config.json")).unwrap()).unwrap();
        let mut places = Vec::new();
        leaves(&config, Vec::new(), &mut places);
        for (place, odd) in picks {
            let path = place.get(&places);
            // An earlier pick may have replaced what leads here: then there is nothing to change.
            let place = path.iter().try_fold(&mut config, |at, key| at.get_mut(key.as_str()));
            if let Some(value) = place {
                *value = odd;
            }
        }
        let bytes = serde_json::to_vec(&config).unwrap();
        let _ = DecoderConfig::from_json(&bytes, Path::new("config.json"));
        let _ = load(&bytes, &fs::read(tiny("model.safetensors")).unwrap());
    }
}

#[test]
fn the_unchanged_folder_loads_within_the_bounds() {
    let read = |name| fs::read(tiny(name)).unwrap();
    load(&read("config.json"), &read("model.safetensors")).unwrap();
    load_gguf(&fs::read(gguf("phi3")).unwrap()).unwrap();
}
