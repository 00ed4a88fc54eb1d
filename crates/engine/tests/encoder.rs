//! The engine on a tiny encoder: whole texts, several in a step, each as it would be alone.

use engine::{Engine, EngineError, EngineOptions, SamplingParams, SequenceRequest};
use model::{Encoder, LoadOptions, Pooling};
use std::path::Path;
use std::sync::Arc;

fn engine(max_batch_tokens: usize) -> Engine<engine::EncoderRunner> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/encoders/bert");
    let encoder = Encoder::load(&dir, &LoadOptions::default()).unwrap();
    let options = EngineOptions { num_blocks: 6, max_batch_tokens, ..EngineOptions::default() };
    Engine::encoding(Arc::new(encoder), options).unwrap()
}

fn text(len: u32, pooling: Pooling) -> SequenceRequest {
    let prompt = (0..len).map(|i| (i * 7 + len) % 60 + 4).collect();
    SequenceRequest { prompt, pooling: Some(pooling), ..SequenceRequest::default() }
}

#[test]
fn texts_are_embedded_whole_and_alike_in_any_company() {
    let texts: Vec<SequenceRequest> = (1..40)
        .map(|len| text(len, [Pooling::Mean, Pooling::Cls, Pooling::Last][len as usize % 3]))
        .collect();
    let embed = |engine: &mut Engine<_>, texts: &[SequenceRequest]| -> Vec<Vec<f32>> {
        let answers = engine.generate(texts.to_vec(), |_, _| {});
        answers.into_iter().map(|answer| answer.unwrap().embedding).collect()
    };
    let alone: Vec<_> =
        texts.iter().flat_map(|text| embed(&mut engine(64), std::slice::from_ref(text))).collect();
    for max_batch_tokens in [40, 64, 512] {
        let mut engine = engine(max_batch_tokens);
        assert_eq!(embed(&mut engine, &texts), alone, "{max_batch_tokens} tokens a step");
        let stats = engine.stats();
        let tokens: usize = texts.iter().map(|t| t.prompt.len()).sum();
        assert_eq!(stats.tokens_run, tokens as u64, "no text is run twice: {stats:?}");
        assert!(stats.steps < texts.len() as u64 && stats.free_blocks == 6, "{stats:?}");
    }
}

#[test]
fn what_an_encoder_cannot_do_is_refused() {
    let mut answers = engine(64).generate(vec![text(41, Pooling::Mean)], |_, _| {});
    assert_eq!(answers.remove(0), Err(EngineError::InputTooLong { tokens: 41, most: 40 }));
    // A step must hold a whole text.
    let mut answers = engine(20).generate(vec![text(21, Pooling::Mean)], |_, _| {});
    assert_eq!(answers.remove(0), Err(EngineError::InputTooLong { tokens: 21, most: 20 }));
    let params = SamplingParams { max_tokens: 3, ..SamplingParams::default() };
    let asked = SequenceRequest { pooling: None, params, ..text(3, Pooling::Mean) };
    let mut answers = engine(64).generate(vec![asked, text(3, Pooling::Mean)], |_, _| {});
    assert!(answers.remove(1).is_ok(), "the other one is not concerned");
    let error = answers.remove(0).unwrap_err().to_string();
    assert!(error.contains("only makes embeddings"), "{error}");
}
