//! Models from GGUF files: against Transformers with the same weights, and every choice of the type
//! in memory.

use kernels::Dtype;
use model::{
    AdapterSet, Batch, Decoder, Grads, KvCache, LoadOptions, LoraAdapter, LoraConfig, Memory,
    Segment, Tape, TapeMode, WeightDtype,
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
    let decoder = load("gguf_tiny/model.gguf", WeightDtype::AsPublished);
    let bytes = std::fs::read(testdata("gguf_tiny/golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let ids: Vec<u32> = words("ids").into_iter().map(u32::from_le_bytes).collect();
    let expected: Vec<f32> = words("logits").into_iter().map(f32::from_le_bytes).collect();
    let found = logits(&decoder, &ids);
    let error = difference(&found[found.len() - expected.len()..], &expected);
    println!("largest logit difference {error:.2e} of the largest logit");
    assert!(error < 2e-5, "{error:.2e}");

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
fn an_adapter_on_a_quantised_base_has_the_gradients_of_the_dequantised_one() {
    // The quantised model and the same weights in f32: forward and backward agree to the bit.
    let quantised = load("llama_tiny", WeightDtype::Q8_0);
    let mut plain = load("llama_tiny", WeightDtype::F32);
    plain.set_params(&quantised.params()).unwrap();
    let gradients = |decoder: &Decoder| {
        let config = LoraConfig::default();
        let adapter = LoraAdapter::init(&config, decoder.config(), 3).unwrap();
        let mut adapters = AdapterSet::new();
        let slot = adapters.insert("a", &adapter, decoder.config()).unwrap();
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
    let (found, expected) = (gradients(&quantised), gradients(&plain));
    assert!(expected.iter().any(|g| *g != 0.0));
    assert!(found == expected, "gradients differ");
}
