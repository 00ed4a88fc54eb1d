//! A base with an adapter is written to files without a copy of the model: beside the base, about one
//! tensor is in memory. A binary of its own: it counts all memory of the process.

use kernels::Dtype;
use model::{
    Decoder, DecoderConfig, LoadOptions, LoraAdapter, LoraConfig, Merged, ModelError, WeightDtype,
};
use peak_alloc::PeakAlloc;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Held by the test at work: what another allocates meanwhile would count as its own.
static ALONE: Mutex<()> = Mutex::new(());

/// The writer's buffer, the header, a row for each thread and what rayon keeps.
const BASE: usize = 3 << 20;

fn config() -> DecoderConfig {
    let json = br#"{"model_type":"llama","hidden_size":512,"intermediate_size":1024,
        "num_hidden_layers":8,"num_attention_heads":8,"num_key_value_heads":4,"vocab_size":2000,
        "max_position_embeddings":128,"rms_norm_eps":1e-5,"tie_word_embeddings":true}"#;
    DecoderConfig::from_json(json, Path::new("config.json")).unwrap()
}

fn adapter(base: &Decoder) -> LoraAdapter {
    let lora = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
    let mut adapter = LoraAdapter::init(&lora, base, 1).unwrap();
    for m in adapter.modules().to_vec() {
        let b = adapter.params[m.b].iter_mut().enumerate();
        b.for_each(|(i, x)| *x = (i % 7) as f32 * 0.01 - 0.03);
    }
    adapter
}

fn bytes_of(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&p).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn one_tensor_at_a_time() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let base_dir = dir.path().join("base");
    Decoder::init(&config(), 3).save(&base_dir, WeightDtype::Bf16).unwrap();
    let base = Decoder::load(&base_dir, &LoadOptions::default()).unwrap();
    let adapter = adapter(&base);
    let merged = Merged::new(&base, Some(&adapter)).unwrap();
    let largest = base.param_layout().iter().map(|s| s.range.len()).max().unwrap();
    let whole_in_f32 = 4 * base.param_count();
    let measure = |what: &str, most: usize, write: &dyn Fn()| {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        write();
        let taken = MEMORY.peak_usage().saturating_sub(before);
        println!("{what}: {taken} bytes beside the base of {} parameters", base.param_count());
        assert!(taken <= most, "{what}: {taken} bytes, expected at most {most}");
    };
    // The bound could not be met by anything that makes a copy of the model.
    assert!(4 * largest + BASE < whole_in_f32 / 4);
    let save = |name: &str, dtype, shard_bytes| {
        merged.save(&dir.path().join(name), dtype, shard_bytes).unwrap();
    };
    measure("bf16", 2 * largest + BASE, &|| save("bf16", WeightDtype::Bf16, u64::MAX));
    measure("f32", 4 * largest + BASE, &|| save("f32", WeightDtype::F32, u64::MAX));
    measure("shards", 2 * largest + BASE, &|| save("shards", WeightDtype::Bf16, 4 << 20));
    let gguf = dir.path().join("model.gguf");
    measure("gguf", 4 * largest + BASE, &|| merged.save_gguf(&gguf, Dtype::F32, vec![]).unwrap());

    // What was written is the merged model.
    let params = merged.decoder().params();
    let load = |path: &Path| Decoder::load(path, &LoadOptions::default()).unwrap().params();
    assert!(load(&dir.path().join("f32")) == params);
    assert!(load(&gguf) == params);
    assert!(params != base.params());
    let rounded = load(&dir.path().join("bf16"));
    assert!(rounded.iter().zip(&params).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0));
    assert!(load(&dir.path().join("shards")) == rounded);

    // Shards as Hugging Face names them, none larger than asked for, all listed in the index.
    let files = bytes_of(&dir.path().join("shards"));
    let shards: Vec<_> = files.iter().filter(|(n, _)| n.ends_with(".safetensors")).collect();
    assert!(shards.len() > 3);
    for (i, (name, bytes)) in shards.iter().enumerate() {
        assert_eq!(*name, format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len()));
        assert!(bytes.len() <= (4 << 20) + (64 << 10), "{name}: {} bytes", bytes.len());
    }
    let index = files.iter().find(|(n, _)| n == "model.safetensors.index.json").unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index.1).unwrap();
    assert_eq!(index["metadata"]["total_size"], 2 * base.param_count());
    assert_eq!(index["weight_map"].as_object().unwrap().len(), base.param_layout().len());
}

#[test]
fn what_is_not_finite_leaves_no_file() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let base = Decoder::init(&config(), 3);
    let mut adapter = adapter(&base);
    let last = adapter.modules().last().unwrap().clone();
    adapter.params[last.b.start] = f32::INFINITY;
    let merged = Merged::new(&base, Some(&adapter)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = merged.save(dir.path(), WeightDtype::Bf16, u64::MAX).unwrap_err();
    assert!(
        matches!(&error, ModelError::Params(p) if p.contains("layers.7.mlp.down_proj.weight")),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
