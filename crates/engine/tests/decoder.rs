//! The engine on a real (tiny, random) decoder: text does not depend on the company it keeps.

use engine::{
    Completion, DraftModel, Engine, EngineError, EngineOptions, Event, FinishReason, Sampler,
    SamplingParams, SequenceRequest, TokenLogprobs,
};
use model::{
    AdapterSet, Batch, Decoder, DecoderConfig, KvCache, KvDtype, LoadOptions, LoraAdapter,
    LoraConfig, Memory, Pooling, Segment,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64;
use std::path::Path;
use std::sync::Arc;

const CONTEXT: usize = 96;
const VOCAB: u32 = 61;

/// Two layers, grouped KV heads; weights large enough that contexts matter.
fn decoder() -> Arc<Decoder> {
    let json = format!(
        r#"{{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": {VOCAB}, "max_position_embeddings": {CONTEXT}, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true}}"#
    );
    let config = DecoderConfig::from_json(json.as_bytes(), Path::new("config.json")).unwrap();
    let mut decoder = Decoder::init(&config, 11);
    let mut params = decoder.params();
    for spec in decoder.param_layout().iter().filter(|s| s.shape.len() == 2) {
        params[spec.range.clone()].iter_mut().for_each(|w| *w *= 12.0);
    }
    decoder.set_params(&params).unwrap();
    Arc::new(decoder)
}

/// The above, and one whose longer sequences are run again with other rotary frequencies.
fn decoders() -> [Arc<Decoder>; 2] {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/families/phi3");
    let long = Decoder::load(&dir, &LoadOptions::default()).unwrap();
    assert_eq!(long.config().rope_switch(), Some(24));
    [decoder(), Arc::new(long)]
}

fn adapter(decoder: &Decoder, seed: u64) -> LoraAdapter {
    let config = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
    let mut adapter = LoraAdapter::init(&config, decoder, seed).unwrap();
    let mut rng = Pcg64::seed_from_u64(seed);
    for value in &mut adapter.params {
        *value = rng.random_range(-0.3..0.3);
    }
    adapter
}

fn engine(decoder: &Arc<Decoder>, num_blocks: usize, max_batch_tokens: usize) -> Engine {
    let options = EngineOptions {
        num_blocks,
        max_batch_tokens,
        max_num_seqs: 8,
        max_queue: 64,
        ..EngineOptions::default()
    };
    with_adapters(decoder, options)
}

fn with_adapters(decoder: &Arc<Decoder>, options: EngineOptions) -> Engine {
    let mut engine = Engine::new(Arc::clone(decoder), options).unwrap();
    for seed in 0..3 {
        let adapter = adapter(decoder, seed);
        let slot = engine.adapters_mut().insert(&format!("a{seed}"), &adapter, decoder);
        assert_eq!(slot.unwrap(), seed as usize);
    }
    engine
}

/// Requests of mixed length, adapter and temperature.
fn requests(n: usize) -> Vec<SequenceRequest> {
    let mut rng = Pcg64::seed_from_u64(5);
    (0..n)
        .map(|i| {
            let len = rng.random_range(1..45);
            SequenceRequest {
                prompt: (0..len).map(|_| rng.random_range(0..VOCAB)).collect(),
                params: SamplingParams {
                    temperature: if i % 3 == 2 { 0.9 } else { 0.0 },
                    top_p: 0.95,
                    max_tokens: rng.random_range(1..45),
                    seed: rng.next_u64(),
                    stop_ids: vec![7],
                    ..SamplingParams::default()
                },
                adapter: [None, Some(0), Some(1), Some(2)][i % 4],
                ..SequenceRequest::default()
            }
        })
        .collect()
}

/// The answers, but for how much was known already, which company decides.
fn ok(answers: Vec<Result<Completion, EngineError>>) -> Vec<Completion> {
    let mut answers: Vec<Completion> = answers.into_iter().map(Result::unwrap).collect();
    answers.iter_mut().for_each(|a| a.usage.cached_tokens = 0);
    answers
}

/// Each request on an engine of its own that guesses nothing.
fn singles(decoder: &Arc<Decoder>, requests: &[SequenceRequest]) -> Vec<Completion> {
    let options = EngineOptions {
        num_blocks: 8,
        prefix_caching: false,
        num_speculative_tokens: 0,
        ..EngineOptions::default()
    };
    let alone = |r: &SequenceRequest| {
        ok(with_adapters(decoder, options).generate(vec![r.clone()], |_, _| {}))
    };
    requests.iter().flat_map(alone).collect()
}

#[test]
fn a_batch_with_three_adapters_equals_singles() {
    for decoder in decoders() {
        let requests = requests(24);
        let expected = singles(&decoder, &requests);
        assert!(expected.iter().any(|c| c.reason == FinishReason::Stop));
        assert!(expected.iter().any(|c| c.reason == FinishReason::Length));
        for (num_blocks, max_batch_tokens) in [(100, 512), (100, 13), (7, 512), (6, 5)] {
            let mut engine = engine(&decoder, num_blocks, max_batch_tokens);
            let found = ok(engine.generate(requests.clone(), |_, _| {}));
            assert_eq!(found, expected, "{num_blocks} pages, {max_batch_tokens} tokens a step");
            let stats = engine.stats();
            assert_eq!(stats.preemptions > 0, num_blocks < 10, "{stats:?}");
            assert_eq!(stats.free_blocks, num_blocks);
        }
    }
}

#[test]
fn the_adapters_differ() {
    let decoder = decoder();
    let base = SequenceRequest {
        prompt: vec![1, 2, 3],
        params: SamplingParams { max_tokens: 20, ..SamplingParams::default() },
        ..SequenceRequest::default()
    };
    let requests: Vec<_> = [None, Some(0), Some(1), Some(2)]
        .map(|adapter| SequenceRequest { adapter, ..base.clone() })
        .into();
    let found = ok(engine(&decoder, 100, 512).generate(requests, |_, _| {}));
    for i in 0..4 {
        for j in 0..i {
            assert_ne!(found[i].tokens, found[j].tokens, "{i} and {j}");
        }
    }
}

/// The whole prefix anew for every token, without engine, scheduler or page reuse.
#[test]
fn generation_equals_repeated_full_forwards() {
    for decoder in decoders() {
        let mut adapters = AdapterSet::new();
        adapters.insert("a0", &adapter(&decoder, 0), &decoder).unwrap();
        for request in requests(4).into_iter().map(|r| SequenceRequest { adapter: Some(0), ..r }) {
            let mut sampler = Sampler::new(&request.params, &request.prompt);
            let mut tokens = request.prompt.clone();
            for found in ok(engine(&decoder, 8, 9).generate(vec![request.clone()], |_, _| {}))[0]
                .tokens
                .iter()
            {
                let segment = Segment {
                    len: tokens.len(),
                    pages: (0..6).collect(),
                    adapter: request.adapter,
                    ..Segment::default()
                };
                let batch = Batch {
                    logit_rows: vec![tokens.len() - 1],
                    tokens: tokens.clone(),
                    segments: vec![segment],
                };
                let mut cache = KvCache::new(decoder.config(), 6);
                let hidden = decoder.forward(&batch, &adapters, Memory::Cache(&mut cache)).unwrap();
                assert_eq!(sampler.sample(&decoder.logits(&hidden), None).unwrap().token, *found);
                tokens.push(*found);
            }
        }
    }
}

#[test]
fn broken_adapters_fail_alone_and_leave_clean_pages() {
    let decoder = decoder();
    let requests = requests(8);
    let expected = singles(&decoder, &requests);
    let mut engine = engine(&decoder, 20, 64);
    let mut broken = adapter(&decoder, 9);
    broken.params.fill(f32::NAN);
    let slot = engine.adapters_mut().insert("broken", &broken, &decoder).unwrap();
    let mut with_broken = requests.clone();
    for i in [0, 3, 6] {
        let bad =
            SequenceRequest { adapter: Some(slot), prompt: vec![5; 40], ..requests[i].clone() };
        with_broken.insert(i, bad);
    }
    let found = engine.generate(with_broken, |_, _| {});
    let (bad, good): (Vec<_>, Vec<_>) = found.into_iter().partition(Result::is_err);
    assert_eq!(bad.len(), 3);
    for error in bad {
        assert_eq!(error.unwrap_err(), EngineError::NonFinite { position: 40 });
    }
    assert_eq!(ok(good), expected);
    // The pages that held NaN are used again.
    assert_eq!(ok(engine.generate(requests, |_, _| {})), expected);
}

#[test]
fn an_empty_slot_fails_its_own_sequence_only() {
    let decoder = decoder();
    let mut requests = requests(5);
    let expected = singles(&decoder, &requests);
    requests[2].adapter = Some(17);
    let found = engine(&decoder, 40, 512).generate(requests, |_, _| {});
    for (i, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        match found {
            Ok(found) => assert_eq!((i != 2, &found), (true, &expected)),
            Err(error) => assert!(i == 2 && error.to_string().contains("slot 17"), "{error}"),
        }
    }
}

#[test]
fn beginnings_and_guesses_change_no_text() {
    for decoder in decoders() {
        // Few beginnings, repetitive text: much is known, many guesses are right.
        let mut requests = requests(16);
        for (i, request) in requests.iter_mut().enumerate() {
            let mut prompt: Vec<u32> = (0..35).map(|t| (t % 5 + i as u32 / 8) % VOCAB).collect();
            prompt.extend(request.prompt.iter().take(6));
            request.prompt = prompt;
        }
        let expected = singles(&decoder, &requests);
        for prefix_caching in [false, true] {
            for num_speculative_tokens in [0, 4] {
                let options = EngineOptions {
                    num_blocks: 60,
                    prefix_caching,
                    num_speculative_tokens,
                    max_num_seqs: 3,
                    ..EngineOptions::default()
                };
                let mut engine = with_adapters(&decoder, options);
                let found = engine.generate(requests.clone(), |_, _| {});
                let cached = found.iter().flatten().map(|c| c.usage.cached_tokens).sum::<usize>();
                assert_eq!(cached > 0, prefix_caching);
                assert_eq!(ok(found), expected, "{prefix_caching} {num_speculative_tokens}");
                let stats = engine.stats();
                assert_eq!(stats.guessed_tokens > 0, num_speculative_tokens > 0, "{stats:?}");
                assert!(num_speculative_tokens == 0 || stats.accepted_tokens > 0, "{stats:?}");
            }
        }
    }
}

#[test]
fn a_draft_model_changes_no_text() {
    let [decoder, other] = decoders();
    let mixed = requests(12);
    let mut greedy = mixed.clone();
    for request in &mut greedy {
        (request.adapter, request.params.temperature) = (None, 0.0);
    }
    let with = |requests: &[SequenceRequest], draft: &Arc<Decoder>, draft_blocks, running| {
        let options =
            EngineOptions { num_blocks: 60, max_num_seqs: running, ..EngineOptions::default() };
        let draft = DraftModel::new(Arc::clone(draft), draft_blocks, KvDtype::F32);
        let mut engine = with_adapters(&decoder, options).with_drafter(draft);
        let found = engine.generate(requests.to_vec(), |_, _| {});
        assert_eq!(ok(found), singles(&decoder, requests));
        engine.stats()
    };
    // The model itself foretells what the base says greedily, but for what follows a stop token.
    let same = with(&greedy, &decoder, 60, 3);
    assert!(same.accepted_tokens * 10 > same.guessed_tokens * 8, "{same:?}");
    let adapted = with(&mixed, &decoder, 60, 3);
    assert!(adapted.accepted_tokens > 0, "{adapted:?}");
    let different = with(&mixed, &other, 60, 3);
    assert!(different.accepted_tokens < different.guessed_tokens / 2, "{different:?}");
    let crowded = with(&greedy, &decoder, 4, 3);
    assert!(0 < crowded.accepted_tokens && crowded.accepted_tokens < same.accepted_tokens);
    assert!(with(&greedy, &decoder, 60, 16).accepted_tokens > 0, "at the end few are left");
}

#[test]
fn a_cache_of_shorter_numbers_gives_the_same_text_alone_and_together() {
    let decoder = decoder();
    let mut requests = requests(12);
    for request in &mut requests {
        request.prompt.truncate(10);
        (request.params.max_tokens, request.params.ignore_eos) = (45, true);
    }
    for kv_cache_dtype in [KvDtype::Bf16, KvDtype::Q8] {
        let options = EngineOptions { num_blocks: 8, kv_cache_dtype, ..EngineOptions::default() };
        let alone = |r: &SequenceRequest| {
            ok(with_adapters(&decoder, options).generate(vec![r.clone()], |_, _| {}))
        };
        let expected: Vec<Completion> = requests.iter().flat_map(alone).collect();
        // Together, in chunks, with preemptions.
        let options =
            EngineOptions { num_blocks: 6, max_batch_tokens: 20, max_num_seqs: 8, ..options };
        let mut engine = with_adapters(&decoder, options);
        assert_eq!(ok(engine.generate(requests.clone(), |_, _| {})), expected);
        assert!(engine.stats().preemptions > 0, "{:?}", engine.stats());
    }
}

#[test]
fn a_changed_adapter_finds_nothing_of_its_former_self() {
    let decoder = decoder();
    let mut engine = engine(&decoder, 60, 512);
    let request = SequenceRequest {
        prompt: (0..40).collect(),
        adapter: Some(0),
        ..SequenceRequest::default()
    };
    let mut ask = |change: Option<u64>| {
        if let Some(seed) = change {
            let changed = adapter(&decoder, seed);
            engine.adapters_mut().remove(0);
            let slot = engine.adapters_mut().insert("changed", &changed, &decoder);
            assert_eq!(slot.unwrap(), 0, "the same slot");
        }
        engine.generate(vec![request.clone()], |_, _| {}).remove(0).unwrap()
    };
    let first = ask(None);
    let again = ask(None);
    assert_eq!((first.usage.cached_tokens, again.usage.cached_tokens), (0, 32));
    let changed = ask(Some(77));
    assert_eq!(changed.usage.cached_tokens, 0);
    assert_ne!(changed.tokens, first.tokens);
}

#[test]
fn an_adapter_that_goes_ends_its_sequences() {
    let decoder = decoder();
    let mut engine = engine(&decoder, 60, 512);
    for adapter in [Some(0), Some(1)] {
        let prompt = vec![1, 2, 3];
        engine.add(SequenceRequest { prompt, adapter, ..SequenceRequest::default() }).unwrap();
    }
    assert!(engine.step().iter().all(|event| !event.is_last()));
    engine.adapters_mut().remove(0);
    engine.adapters_mut().insert("another", &adapter(&decoder, 8), &decoder).unwrap();
    let events = engine.step();
    let failed: Vec<&Event> = events.iter().filter(|e| e.is_last()).collect();
    let gone = EngineError::AdapterGone { slot: 0 };
    assert!(matches!(failed[..], [Event::Failed { error, .. }] if *error == gone), "{events:?}");
    assert_eq!(engine.stats().running, 1);
}

/// What stands before the first token told is taken from the pages, the last one is not run at all, and
/// neither changes a number.
#[test]
fn a_prompt_that_is_scored_from_a_place_on_skips_what_is_known() {
    let decoder = decoder();
    let prompt: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % VOCAB).collect();
    let scored = |from: usize| SequenceRequest {
        prompt: prompt.clone(),
        params: SamplingParams {
            max_tokens: 0,
            logprobs: Some(1),
            prompt_logprobs: true,
            prompt_logprobs_from: from,
            ..SamplingParams::default()
        },
        ..SequenceRequest::default()
    };
    for max_batch_tokens in [512, 7] {
        let options =
            EngineOptions { num_blocks: 40, max_batch_tokens, ..EngineOptions::default() };
        let mut engine = Engine::new(Arc::clone(&decoder), options).unwrap();
        let mut run = |from| {
            let before = engine.stats().tokens_run;
            let answer = engine.generate(vec![scored(from)], |_, _| {}).remove(0).unwrap();
            (answer.prompt_logprobs, engine.stats().tokens_run - before)
        };
        let (all, tokens) = run(0);
        assert_eq!((all.len(), tokens), (39, 39));
        for (from, known) in [(1, 0), (16, 0), (17, 16), (33, 32), (39, 32), (40, 32)] {
            let (told, tokens) = run(from);
            assert_eq!(told, all[from - 1..], "from {from}");
            assert_eq!(tokens, 39 - known, "from {from}");
        }
    }
}

#[test]
fn a_scored_prompt_has_the_log_probabilities_of_a_plain_forward() {
    let decoder = decoder();
    let mut request = requests(8).remove(5);
    request.prompt = (0..40).map(|i| (i * 7 + 3) % VOCAB).collect();
    let params = SamplingParams {
        max_tokens: 3,
        logprobs: Some(2),
        prompt_logprobs: true,
        ..SamplingParams::default()
    };
    request = SequenceRequest { params, adapter: Some(1), ..request };
    let mut adapters = AdapterSet::new();
    (0..2).for_each(|i| {
        adapters.insert(&format!("a{i}"), &adapter(&decoder, i), &decoder).unwrap();
    });
    let vocab = VOCAB as usize;
    for (max_batch_tokens, max_logit_bytes) in [(512, 64 << 20), (512, 4 * vocab * 7), (5, 1)] {
        let options = EngineOptions {
            num_blocks: 40,
            max_batch_tokens,
            max_logit_bytes,
            max_num_seqs: 2,
            ..EngineOptions::default()
        };
        let mut engine = with_adapters(&decoder, options);
        // Twice: what is known of the beginning must not leave scores out.
        for _ in 0..2 {
            let answer = engine.generate(vec![request.clone()], |_, _| {}).remove(0).unwrap();
            let mut tokens = request.prompt.clone();
            tokens.extend(&answer.tokens);
            let batch = Batch {
                logit_rows: (0..tokens.len()).collect(),
                segments: vec![Segment {
                    len: tokens.len(),
                    pages: (0..3).collect(),
                    adapter: Some(1),
                    ..Segment::default()
                }],
                tokens: tokens.clone(),
            };
            let mut cache = KvCache::new(decoder.config(), 3);
            let hidden = decoder.forward(&batch, &adapters, Memory::Cache(&mut cache)).unwrap();
            let logits = decoder.logits(&hidden);
            let expected: Vec<TokenLogprobs> = (1..tokens.len())
                .map(|i| TokenLogprobs::new(&logits[(i - 1) * vocab..][..vocab], tokens[i], 2))
                .collect();
            assert_eq!([answer.prompt_logprobs, answer.logprobs].concat(), expected);
        }
    }
}

/// In any company, cut anywhere, through any adapter: the bits of the plain forward, pooled.
#[test]
fn embeddings_are_pooled_rows_of_a_plain_forward() {
    for decoder in decoders() {
        let mut adapters = AdapterSet::new();
        (0..3).for_each(|i| {
            adapters.insert(&format!("a{i}"), &adapter(&decoder, i), &decoder).unwrap();
        });
        let poolings = [Some(Pooling::Mean), None, Some(Pooling::Last), Some(Pooling::Cls)];
        let mut requests = requests(16);
        requests[0].prompt = vec![5; CONTEXT.min(decoder.config().max_position_embeddings)];
        for (i, request) in requests.iter_mut().enumerate() {
            request.pooling = poolings[i % 3 + usize::from(i % 5 == 0)];
        }
        requests[0].pooling = Some(Pooling::Mean);
        let h = decoder.config().hidden_size;
        let expected = |request: &SequenceRequest| -> Vec<f32> {
            let Some(pooling) = request.pooling else { return Vec::new() };
            let len = request.prompt.len();
            let segment = Segment {
                len,
                pages: (0..6).collect(),
                adapter: request.adapter,
                ..Segment::default()
            };
            let tokens = request.prompt.clone();
            let batch = Batch { logit_rows: (0..len).collect(), tokens, segments: vec![segment] };
            let mut cache = KvCache::new(decoder.config(), 6);
            let rows = decoder.forward(&batch, &adapters, Memory::Cache(&mut cache)).unwrap();
            let mut rows = rows.chunks_exact(h);
            match pooling {
                Pooling::Cls => rows.next().unwrap().to_vec(),
                Pooling::Last => rows.next_back().unwrap().to_vec(),
                Pooling::Mean => (0..h)
                    .map(|i| {
                        let sum: f64 = rows.clone().map(|row| f64::from(row[i])).sum();
                        (sum / len as f64) as f32
                    })
                    .collect(),
            }
        };
        let alone = singles(&decoder, &requests);
        for (num_blocks, max_batch_tokens) in [(100, 512), (100, 13), (7, 512), (6, 5)] {
            let found = ok(engine(&decoder, num_blocks, max_batch_tokens)
                .generate(requests.clone(), |_, _| {}));
            assert_eq!(found, alone, "{num_blocks} pages, {max_batch_tokens} tokens a step");
            for (found, request) in found.iter().zip(&requests) {
                assert_eq!(found.embedding, expected(request));
                assert_eq!(found.tokens.is_empty(), request.pooling.is_some());
            }
        }
    }
}

#[test]
fn a_max_tokens_beyond_the_context_ends_with_length() {
    let decoder = decoder();
    let params = SamplingParams { max_tokens: 10_000, ..SamplingParams::default() };
    let request = SequenceRequest { prompt: vec![3; 50], params, ..SequenceRequest::default() };
    let found = ok(engine(&decoder, 40, 512).generate(vec![request.clone()], |_, _| {}));
    assert_eq!((found[0].tokens.len(), found[0].reason), (CONTEXT - 50, FinishReason::Length));
    let long = SequenceRequest { prompt: vec![3; CONTEXT], ..request };
    let error = engine(&decoder, 40, 512).generate(vec![long], |_, _| {}).remove(0).unwrap_err();
    assert_eq!(error, EngineError::PromptTooLong { tokens: CONTEXT, context_len: CONTEXT });
}
