//! Every family of encoders against Transformers, on the tiny checkpoints that
//! `scripts/make_golden_encoders.py` makes. The folders are the table: each is loaded and compared.

mod common;

use common::{Golden, relative, testdata};
use model::{
    Batch, DecoderConfig, EmbeddingForm, Encoder, EncoderConfig, LoadOptions, Pooling, Segment,
    WeightDtype, is_encoder,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(testdata("encoders"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(folders.len() >= 4, "{folders:?}");
    folders
}

fn load(dir: &Path) -> Encoder {
    Encoder::load(dir, &LoadOptions { dtype: WeightDtype::F32 }).unwrap()
}

/// Whole texts in one batch, all rows wanted.
fn batch(texts: &[Vec<u32>]) -> Batch {
    let tokens = texts.concat();
    Batch {
        logit_rows: (0..tokens.len()).collect(),
        segments: texts.iter().map(|t| Segment { len: t.len(), ..Segment::default() }).collect(),
        tokens,
    }
}

#[test]
fn hidden_states_and_embeddings_match_the_reference() {
    let mut families = std::collections::BTreeSet::new();
    for dir in folders() {
        let (encoder, golden) = (load(&dir), Golden::read(&dir));
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        families.insert(golden.json["model_type"].as_str().unwrap().to_owned());
        let texts = golden.sequences();
        let states = encoder.forward(&batch(&texts)).unwrap();
        let difference = relative(&states, &golden.logits("hidden"));
        assert!(difference < 1e-4, "{name}: hidden states differ by {difference}");

        let form = EmbeddingForm::read(&dir, Pooling::Mean).unwrap();
        let h = encoder.config().hidden_size;
        let mut start = 0;
        for (i, text) in texts.iter().enumerate() {
            let rows = states[start * h..(start + text.len()) * h].chunks_exact(h);
            start += text.len();
            let pooled = match form.pooling {
                Pooling::Cls => rows.take(1).flatten().copied().collect(),
                Pooling::Mean => {
                    let mean = |j| rows.clone().map(|row| row[j]).sum::<f32>() / text.len() as f32;
                    (0..h).map(mean).collect()
                }
                Pooling::Last => panic!("{name}: no encoder here is made so"),
            };
            let embedding: Vec<f32> = form.finish(pooled, None);
            let difference = relative(&embedding, &golden.floats[&format!("embedding.{i}")]);
            assert!(difference < 1e-4, "{name}: embedding {i} differs by {difference}");
        }
    }
    assert_eq!(families.into_iter().collect::<Vec<_>>(), ["bert", "roberta", "xlm-roberta"]);
}

#[test]
fn a_text_s_bits_do_not_depend_on_its_company() {
    for dir in folders() {
        let (encoder, texts) = (load(&dir), Golden::read(&dir).sequences());
        let together = encoder.forward(&batch(&texts)).unwrap();
        let alone: Vec<f32> = texts
            .iter()
            .flat_map(|text| encoder.forward(&batch(std::slice::from_ref(text))).unwrap())
            .collect();
        assert_eq!(together, alone);
        let mut some = batch(&texts);
        some.logit_rows = vec![1, 4];
        let h = encoder.config().hidden_size;
        let expected = [&together[h..2 * h], &together[4 * h..5 * h]].concat();
        assert_eq!(encoder.forward(&some).unwrap(), expected);
    }
}

#[test]
fn batches_that_break_a_rule_are_refused() {
    let encoder = load(&folders()[0]);
    let config = encoder.config().clone();
    let refused = |change: &dyn Fn(&mut Batch), expected: &str| {
        let mut batch = batch(&[vec![1, 2, 3]]);
        change(&mut batch);
        let error = encoder.forward(&batch).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(&|b| b.segments[0].past = 1, "past");
    refused(&|b| b.segments[0].adapter = Some(0), "adapter");
    refused(&|b| b.segments[0].len = 2, "segments hold 2");
    refused(&|b| b.segments[0].len = 0, "expected 1 to");
    refused(&|b| *b = Batch::default(), "segments hold 0");
    refused(&|b| b.tokens[1] = config.vocab_size as u32, "vocabulary");
    refused(&|b| b.logit_rows = vec![3], "row 3 of 3");
    let long = vec![1; config.max_tokens() + 1];
    refused(&|b| *b = batch(std::slice::from_ref(&long)), "expected 1 to");
    assert!(encoder.forward(&batch(&[vec![1; config.max_tokens()]])).is_ok());
}

/// The config.json of the first folder of a family with `change` over it.
fn changed(family: &str, change: Value) -> Result<EncoderConfig, String> {
    let path = testdata("encoders").join(family).join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (field, value) in change.as_object().unwrap() {
        config[field] = value.clone();
    }
    EncoderConfig::from_json(config.to_string().as_bytes(), Path::new("config.json"))
        .map_err(|e| e.to_string())
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    for (field, value) in [
        ("position_embedding_type", json!("relative_key")),
        ("hidden_act", json!("relu")),
        ("hidden_act", json!(3)),
        ("is_decoder", json!(true)),
        ("embedding_size", json!(64)),
        ("num_attention_heads", json!(5)),
        ("num_hidden_layers", json!(1_000_000_000_000u64)),
        ("hidden_size", json!(0)),
        ("vocab_size", json!(-1)),
        ("layer_norm_eps", json!("small")),
        ("layer_norm_eps", json!(0)),
        ("max_position_embeddings", json!(1u64 << 40)),
        ("quantization_config", json!({"bits": 4})),
        ("model_type", json!("distilbert")),
    ] {
        let error = changed("bert", json!({field: value})).unwrap_err();
        assert!(error.contains(field), "{field} = {value}: {error}");
    }
    let error = changed("xlm_roberta", json!({"pad_token_id": 4_000_000_000u32})).unwrap_err();
    assert!(error.contains("max_position_embeddings"), "{error}");
    assert!(changed("bert", json!({"classifier_dropout": null, "pooler_type": "x"})).is_ok());

    let bytes = std::fs::read(testdata("encoders/bert/config.json")).unwrap();
    let error = DecoderConfig::from_json(&bytes, Path::new("config.json")).unwrap_err();
    assert!(error.to_string().contains("only makes embeddings"), "{error}");
    assert!(is_encoder(&testdata("encoders/bert")).unwrap());
    assert!(!is_encoder(&testdata("llama_tiny")).unwrap());
}

/// A folder of bert's files, with its weights changed.
fn with_weights(change: impl FnOnce(&mut Vec<u8>)) -> Result<Encoder, String> {
    let from = testdata("encoders/bert");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
    let mut bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    change(&mut bytes);
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    Encoder::load(dir.path(), &LoadOptions::default()).map_err(|e| e.to_string())
}

#[test]
fn weights_that_lie_are_refused() {
    assert!(with_weights(|_| {}).is_ok());
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        with_weights(|bytes| {
            let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect(from);
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        })
    };
    let cut = with_weights(|bytes| bytes.truncate(bytes.len() - 1));
    let claims = with_weights(|bytes| bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes()));
    let nan = with_weights(|bytes| {
        // The first tensor; the last is of the head, which is not read.
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    for (found, expected) in [
        (replaced("layer.0.intermediate", "layer.9.intermediate"), "layer.0.intermediate"),
        (replaced("LayerNorm.weight", "LayerNorm.weighs"), "LayerNorm.weighs"),
        (cut, "not a valid safetensors file"),
        (claims, "claims"),
        (nan, "not finite"),
    ] {
        let error = found.err().expect(expected);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
