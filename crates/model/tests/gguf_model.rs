//! Models from GGUF files: against Transformers with the same weights, and every choice of the type
//! in memory.

use kernels::Dtype;
use model::gguf::{GGUF_DTYPES, Value};
use model::{
    AdapterSet, Batch, Decoder, DecoderConfig, GgufFile, Grads, KvCache, LoadOptions, LoraAdapter,
    LoraConfig, Memory, Segment, Tape, TapeMode, WeightDtype,
};
use safetensors::SafeTensors;
use std::path::PathBuf;

fn testdata(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

fn load(name: &str, dtype: WeightDtype) -> Decoder {
    Decoder::load(&testdata(name), &LoadOptions { dtype }).unwrap()
}

/// Logits [T, V] of one sequence.
fn logits(decoder: &Decoder, tokens: &[u32]) -> Vec<f32> {
    let blocks = tokens.len().div_ceil(model::BLOCK_SIZE);
    let mut cache = KvCache::new(decoder.config(), blocks);
    let batch = Batch {
        tokens: tokens.to_vec(),
        segments: vec![Segment {
            len: tokens.len(),
            pages: (0..blocks as u32).collect(),
            ..Segment::default()
        }],
        logit_rows: (0..tokens.len()).collect(),
    };
    let memory = Memory::Cache(&mut cache);
    let hidden = decoder.forward(&batch, &AdapterSet::new(), memory).unwrap();
    decoder.logits(&hidden)
}

/// Largest difference relative to the largest value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |m, x| m.max(x.abs()));
    let scale = largest(&mut expected.iter().copied());
    largest(&mut found.iter().zip(expected).map(|(f, e)| f - e)) / scale
}

/// Root of the mean square difference relative to that of the values.
fn mean_difference(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| (x as f64).powi(2)).sum();
    let error: f64 = square(&mut found.iter().zip(expected).map(|(f, e)| f - e));
    (error / square(&mut expected.iter().copied())).sqrt()
}

#[test]
fn a_gguf_file_gives_the_logits_of_transformers() {
    let published = load("gguf_tiny/model.gguf", WeightDtype::AsPublished);
    let decoder = load("gguf_tiny/model.gguf", WeightDtype::F32);
    let bytes = std::fs::read(testdata("gguf_tiny/golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let ids: Vec<u32> = words("ids").into_iter().map(u32::from_le_bytes).collect();
    let expected: Vec<f32> = words("logits").into_iter().map(f32::from_le_bytes).collect();
    // Transformers unpacks the weights to f32; as they are in the file, they are multiplied in
    // integers, with activations in 8 bits.
    for (decoder, bound) in [(&decoder, 2e-5), (&published, 8e-2)] {
        let found = logits(decoder, &ids);
        let error = difference(&found[found.len() - expected.len()..], &expected);
        println!("largest logit difference {error:.2e} of the largest logit");
        assert!(error < bound, "{error:.2e}");
    }

    let decoder = published;
    let config = decoder.config();
    assert_eq!((config.family.name(), config.bos_token_id), ("llama", Some(1)));
    assert_eq!(config.eos_token_ids, [2]);
    // Quantised matrices are held as they are in the file.
    let held: Vec<Dtype> = decoder.held().into_iter().map(|(dtype, _)| dtype).collect();
    for dtype in [Dtype::Q8_0, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q4_0, Dtype::Q4_1, Dtype::Bf16] {
        assert!(held.contains(&dtype), "{dtype:?} in {held:?}");
    }
    assert_eq!(decoder.digest().unwrap().len(), 64);
}

#[test]
fn every_type_in_memory_is_near_the_published_one() {
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 320).collect();
    let published = load("llama_tiny", WeightDtype::AsPublished);
    let expected = logits(&published, &tokens);
    // This model's weights are random and large, so that errors grow more than in a trained one.
    for (name, bound) in [("f32", 0.0), ("bf16", 0.05), ("q8_0", 0.06), ("q4_0", 0.6), ("nf4", 0.6)]
    {
        let dtype = WeightDtype::from_name(name).unwrap();
        let decoder = load("llama_tiny", dtype);
        let error = mean_difference(&logits(&decoder, &tokens), &expected);
        println!("{name}: {error:.3e}, {} bytes, {:?}", decoder.weight_bytes(), decoder.held());
        assert!(error <= bound, "{name}: {error}");
        assert_eq!(decoder.held()[0].0.name(), if name == "nf4" { "nf4" } else { name });
        assert!(name == "f32" || decoder.weight_bytes() < published.weight_bytes());
    }
    assert_eq!(WeightDtype::from_name("int3"), None);
    for name in WeightDtype::NAMES {
        assert!(WeightDtype::from_name(name).is_some());
    }
}

#[test]
fn an_adapter_on_a_quantised_base_has_nearly_the_gradients_of_the_dequantised_one() {
    // The quantised model and the same weights in f32. Activations take 8 bits before q8_0, which
    // in an nf4 model is the head alone; the weights here are large, and let such errors grow.
    let gradients = |decoder: &Decoder| {
        let config = LoraConfig::default();
        let adapter = LoraAdapter::init(&config, decoder, 3).unwrap();
        let mut adapters = AdapterSet::new();
        let slot = adapters.insert("a", &adapter, decoder).unwrap();
        let batch = Batch {
            tokens: (0..30).collect(),
            segments: vec![Segment { len: 30, adapter: Some(slot), ..Segment::default() }],
            logit_rows: (0..30).collect(),
        };
        let mut tape = Tape::new(decoder.config(), TapeMode::Keep);
        let hidden = decoder.forward(&batch, &adapters, Memory::Tape(&mut tape)).unwrap();
        let mut grads = Grads::for_adapter(slot, adapter.params.len());
        let dhidden = decoder.head_backward(&hidden, 8, &mut grads, &mut |_, logits| {
            logits.iter_mut().for_each(|x| *x = x.sin());
        });
        decoder.backward(&batch, &adapters, &mut tape, &dhidden, &mut grads).unwrap();
        grads.adapters[slot].take().unwrap()
    };
    for (dtype, bound) in [("nf4", 0.02), ("q8_0", 0.1)] {
        let quantised = load("llama_tiny", WeightDtype::from_name(dtype).unwrap());
        let mut plain = load("llama_tiny", WeightDtype::F32);
        plain.set_params(&quantised.params()).unwrap();
        let (found, expected) = (gradients(&quantised), gradients(&plain));
        assert!(expected.iter().any(|g| *g != 0.0));
        let error = difference(&found, &expected);
        println!("{dtype}: {error:.2e} of the largest gradient");
        assert!(error <= bound, "{dtype}: {error:.2e}");
    }
}

/// Tiny models of the families that are written.
const WRITTEN: [&str; 2] = ["llama_tiny", "llama_tiny_tied_bf16"];

#[test]
fn a_written_file_gives_the_model_back() {
    let dir = tempfile::tempdir().unwrap();
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 256).collect();
    for name in WRITTEN {
        let model = load(name, WeightDtype::F32);
        let expected = logits(&model, &tokens);
        for (dtype, _) in GGUF_DTYPES {
            let path = dir.path().join(format!("{name}-{}.gguf", dtype.name()));
            let extra = vec![("general.name".to_owned(), Value::String(name.into()))];
            model.save_gguf(&path, dtype, extra).unwrap();
            let file = GgufFile::open(&path).unwrap();
            assert_eq!(file.get::<&str>("general.name").unwrap(), Some(name));
            // Each matrix is what its format makes of the values, in the rows where they belong.
            let options = LoadOptions { dtype: WeightDtype::AsPublished };
            let back = Decoder::load(&path, &options).unwrap();
            let (values, found) = (model.params(), back.params());
            for (spec, same) in model.param_layout().iter().zip(back.param_layout()) {
                assert_eq!(spec, same);
                let found = &found[spec.range.clone()];
                let values = &values[spec.range.clone()];
                let stored = stored_as(&spec.name, &spec.shape, dtype);
                let mut bytes = vec![0; stored.row_bytes(values.len()).unwrap()];
                stored.pack(values, &mut bytes);
                let mut expected = vec![0.0; values.len()];
                stored.unpack(&bytes, &mut expected);
                assert!(found == expected, "{name} {} {}", spec.name, dtype.name());
            }
            if dtype == Dtype::F16 {
                let error = mean_difference(&logits(&back, &tokens), &expected);
                assert!(error < 5e-3, "{name}: {error}");
            }
        }
    }
    let model = load(WRITTEN[0], WeightDtype::F32);
    let refused = model.save_gguf(&dir.path().join("x.gguf"), Dtype::Nf4, Vec::new());
    assert!(refused.unwrap_err().to_string().contains("not written in nf4"));
    assert!(!dir.path().join("x.gguf").exists());
}

/// The format that a tensor of these models is written in, when `dtype` is asked for: they are too
/// narrow for blocks of 256, and their widest rows are not whole blocks of 32.
fn stored_as(name: &str, shape: &[usize], dtype: Dtype) -> Dtype {
    let [_, k] = shape[..] else { return Dtype::F32 };
    let ends = name.contains("embed_tokens") || name.contains("lm_head");
    match dtype {
        Dtype::F32 => Dtype::F32,
        _ if !k.is_multiple_of(32) => Dtype::F16,
        Dtype::Q4K | Dtype::Q6K => Dtype::Q8_0,
        // The table and the head would take q6_k.
        Dtype::Q4_0 if ends => Dtype::Q8_0,
        other => other,
    }
}

#[test]
fn wide_models_are_written_in_blocks_of_256() {
    let config = br#"{"model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "tie_word_embeddings": false,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}"#;
    let config = DecoderConfig::from_json(config, std::path::Path::new("config.json")).unwrap();
    let model = Decoder::init(&config, 1);
    let tokens: Vec<u32> = (0..50).collect();
    let expected = logits(&model, &tokens);
    let dir = tempfile::tempdir().unwrap();
    for (dtype, bound) in [
        (Dtype::F16, 1e-3),
        (Dtype::Q8_0, 0.02),
        (Dtype::Q6K, 0.05),
        (Dtype::Q4K, 0.2),
        (Dtype::Q4_0, 0.25),
    ] {
        let path = dir.path().join("model.gguf");
        model.save_gguf(&path, dtype, Vec::new()).unwrap();
        let back = Decoder::load(&path, &LoadOptions::default()).unwrap();
        let held = if dtype == Dtype::F16 { Dtype::F32 } else { dtype };
        assert_eq!(back.held()[0].0, held);
        let error = mean_difference(&logits(&back, &tokens), &expected);
        println!("{}: {error:.3e}, {:?}", dtype.name(), back.held());
        assert!(error < bound, "{}: {error}", dtype.name());
    }
}

#[test]
fn a_written_adapter_has_its_rows_where_the_base_has_them() {
    let model = load("llama_tiny", WeightDtype::F32);
    let config = LoraConfig { r: 4, ..LoraConfig::default() };
    let mut adapter = LoraAdapter::init(&config, &model, 3).unwrap();
    adapter.params.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 97) as f32);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.gguf");
    adapter.save_gguf(&path, model.config(), Vec::new()).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.require::<&str>("general.type").unwrap(), "adapter");
    assert_eq!(file.require::<f32>("adapter.lora.alpha").unwrap(), config.lora_alpha);
    assert_eq!(file.tensors().len(), 2 * adapter.modules().len());
    let floats = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        let values: Vec<f32> = floats_of(tensor.bytes);
        (tensor.shape.to_vec(), values)
    };
    let q = adapter.modules().iter().find(|m| m.name.ends_with("0.self_attn.q_proj")).unwrap();
    let (shape, a) = floats("blk.0.attn_q.weight.lora_a");
    assert_eq!((shape, &a[..]), (vec![4, 64], &adapter.params[q.a.clone()]));
    let (shape, b) = floats("blk.0.attn_q.weight.lora_b");
    assert_eq!(shape, [64, 4]);
    let own = &adapter.params[q.b.clone()];
    // Heads of 16: rows 0, 8, 1, 9, ... of the first.
    for (row, from) in [(0, 0), (1, 8), (2, 1), (15, 15), (16, 16), (17, 24)] {
        assert_eq!(b[row * 4..row * 4 + 4], own[from * 4..from * 4 + 4], "row {row}");
    }
}

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
