//! GGUF files of every family as llama.cpp's own converter makes them
//! (`scripts/make_golden_gguf_families.py`): read, they give Transformers' logits; written from here,
//! they say the same.

mod common;

use common::{Golden, relative, testdata};
use kernels::Dtype;
use model::gguf::{GgufTensor, Value};
use model::{
    AdapterSet, Decoder, DecoderConfig, Family, GgufFile, LoadOptions, LoraAdapter, LoraConfig,
    Memory, Tape, TapeMode, WeightDtype,
};
use std::collections::BTreeSet;
use std::path::Path;

/// Names of the files, which are also names of folders in testdata/families.
fn names() -> Vec<String> {
    let entries = std::fs::read_dir(testdata("gguf_families")).unwrap();
    let files = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> =
        files.filter_map(|name| Some(name.strip_suffix(".gguf")?.to_owned())).collect();
    names.sort();
    names
}

fn load(path: &Path) -> Decoder {
    Decoder::load(path, &LoadOptions { dtype: WeightDtype::F32 }).unwrap()
}

fn logits(decoder: &Decoder, golden: &Golden) -> Vec<f32> {
    let (batch, _) = golden.batch(None);
    let mut tape = Tape::new(decoder.config(), TapeMode::Recompute);
    let hidden = decoder.forward(&batch, &AdapterSet::new(), Memory::Tape(&mut tape)).unwrap();
    decoder.logits(&hidden)
}

/// Logits that the reference has for the file: its own where the checkpoint in testdata/families
/// says what GGUF cannot.
fn golden(name: &str) -> (Golden, bool) {
    let own = testdata("gguf_families").join(format!("{name}.safetensors"));
    match own.is_file() {
        true => (Golden::read_file(&own), true),
        false => (Golden::read(&testdata("families").join(name)), false),
    }
}

#[test]
fn every_family_has_a_file() {
    let of = |name: &String| {
        DecoderConfig::load(&testdata("families").join(name)).unwrap().family.name()
    };
    let found: BTreeSet<&str> = names().iter().map(of).collect();
    let families: BTreeSet<&str> = Family::all().map(Family::name).collect();
    assert_eq!(found, families, "see scripts/make_golden_gguf_families.py");
}

#[test]
fn the_converter_s_files_give_transformers_logits() {
    let mut wrong = Vec::new();
    for name in names() {
        let decoder = load(&testdata("gguf_families").join(format!("{name}.gguf")));
        let (golden, _) = golden(&name);
        let difference = relative(&logits(&decoder, &golden), &golden.logits("logits"));
        println!("{name}: {difference:.1e}");
        if difference.is_nan() || difference >= 1e-4 {
            wrong.push(format!("{name}: logits differ by {difference}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn written_files_say_what_the_converter_s_say() {
    let dir = tempfile::tempdir().unwrap();
    for name in names() {
        let theirs = testdata("gguf_families").join(format!("{name}.gguf"));
        let (_, changed) = golden(&name);
        let mut sources = vec![theirs.clone()];
        if !changed {
            sources.push(testdata("families").join(&name));
        }
        for source in sources {
            let path = dir.path().join("model.gguf");
            load(&source).save_gguf(&path, Dtype::F32, Vec::new()).unwrap();
            compare(&name, &GgufFile::open(&path).unwrap(), &GgufFile::open(&theirs).unwrap());
        }
    }
}

/// Keys that are written here for every architecture, and by the converter for some.
const ALWAYS: [&str; 5] = [
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
    "attention.key_length",
    "attention.value_length",
];

fn compare(name: &str, ours: &GgufFile, theirs: &GgufFile) {
    let architecture: &str = theirs.require("general.architecture").unwrap();
    assert_eq!(ours.require::<&str>("general.architecture").unwrap(), architecture, "{name}");
    let prefix = format!("{architecture}.");
    let mut keys: BTreeSet<&str> = BTreeSet::new();
    for (key, value) in theirs.all_metadata().filter(|(key, _)| key.starts_with(&prefix)) {
        let found = ours.metadata(key);
        assert!(found.is_some_and(|found| same(found, value)), "{name} {key}: {found:?} {value:?}");
        keys.insert(key);
    }
    for (key, _) in ours.all_metadata() {
        let Some(short) = key.strip_prefix(&prefix) else { continue };
        assert!(
            keys.contains(key) || ALWAYS.contains(&short),
            "{name}: {key} is written here only"
        );
    }
    let list = |file: &GgufFile| -> BTreeSet<(String, Vec<usize>)> {
        file.tensors().map(|t| (t.name.to_owned(), t.shape.to_vec())).collect()
    };
    assert_eq!(list(ours), list(theirs), "{name}");
    for tensor in theirs.tensors() {
        let (found, expected) = (values(&ours.tensor(tensor.name).unwrap()), values(&tensor));
        // Factors of frequencies, and norms that are stored as one less, are computed back.
        let computed = tensor.name.starts_with("rope_") || tensor.name.contains("norm");
        let bound = if computed { 1e-6 } else { 0.0 };
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= bound * b.abs();
        assert!(found.iter().zip(&expected).all(near), "{name}: {}", tensor.name);
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::F32(a), Value::F32(b)) => (a - b).abs() <= 1e-6 * b.abs(),
        _ => a == b,
    }
}

fn values(tensor: &GgufTensor<'_>) -> Vec<f32> {
    let mut values = vec![0.0; tensor.shape.iter().product()];
    tensor.ggml_type.dtype().unpack(tensor.bytes, &mut values);
    values
}

#[test]
fn what_a_file_cannot_say_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for (name, family, what) in [
        ("mistral", "mistral", "the sliding window of layer 0"),
        ("mixtral", "mixtral", "the sliding window of layer 1"),
        ("qwen2", "qwen2", "the sliding window of layer 1"),
        ("gemma2", "gemma2", "the scale of attention scores"),
        ("gemma3", "gemma3_text", "the scale of attention scores"),
        ("smollm3", "smollm3", "the rotary positions of layer 1"),
        ("qwen3_moe", "qwen3_moe", "the kind of feed-forward block of layer 1"),
        ("qwen3_moe_plain", "qwen3_moe", "how the experts are weighted"),
    ] {
        let model = load(&testdata("families").join(name));
        let refused = model.save_gguf(&path, Dtype::F16, Vec::new()).unwrap_err().to_string();
        let said = refused.contains(&format!("family {family} is not possible"));
        assert!(said && refused.contains(what), "{name}: {refused}");
        let adapter = LoraAdapter::init(&LoraConfig::default(), &model, 1).unwrap();
        adapter.save_gguf(&path, model.config(), Vec::new()).unwrap_err();
        assert!(!path.exists());
    }
}

#[test]
fn what_a_file_may_say_otherwise_is_read() {
    // A list of layers with a window in place of every sixth without.
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(testdata("families/gemma3/config.json")).unwrap())
            .unwrap();
    config["query_pre_attn_scalar"] = config["head_dim"].clone();
    let config = DecoderConfig::from_json(config.to_string().as_bytes(), Path::new("x")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    Decoder::init(&config, 1).save_gguf(&path, Dtype::F32, Vec::new()).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let list: &[bool] = file.require("gemma3.attention.sliding_window_pattern").unwrap();
    assert_eq!(list, [true, false]);
    assert_eq!(load(&path).config().layers, config.layers);
}
