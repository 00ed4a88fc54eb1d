//! Random arrivals, cancellations and broken requests against a fake model: whatever the batch,
//! every sequence gets what it would get alone, pages are conserved, and nothing starves. Beginnings
//! that were seen before, guesses and other tenants change nothing of that.

mod common;

use common::{Answer, FAIL, FakeRunner, NAN, ORDINARY, PANIC, Trouble, VOCAB, alone};
use engine::{
    Ask, Drafter, Engine, EngineError, EngineOptions, Event, FinishReason, SamplingParams,
    SequenceId, SequenceRequest, Usage,
};
use model::{KvDtype, Pooling};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

#[derive(Clone, Debug)]
struct Arrival {
    /// Engine step before which it is added.
    at: usize,
    /// Steps after which it is cancelled.
    cancel_after: Option<usize>,
    request: SequenceRequest,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let params = (
        prop_oneof![Just(0f32), 0.5f32..2.0],
        0.3f32..=1.0,
        0usize..8,
        1usize..40,
        any::<u64>(),
        0u32..60,
    );
    // Beginnings that several share, then a rest of their own.
    let prompt = (0u32..3, 0u32..40, prop::collection::vec(0..ORDINARY, 1..20));
    let poison = prop_oneof![20 => Just(None), 1 => Just(Some(NAN)), 1 => Just(Some(FAIL))];
    let logprobs = (prop::option::weighted(0.3, 0usize..4), prop::bool::weighted(0.3));
    let grammar = prop_oneof![
        8 => Just(None),
        2 => Just(Some(Trouble::None)),
        1 => Just(Some(Trouble::Error)),
        1 => Just(Some(Trouble::Panic)),
    ];
    let pooling = prop_oneof![
        6 => Just(None),
        1 => Just(Some(Pooling::Mean)),
        1 => Just(Some(Pooling::Last)),
        1 => Just(Some(Pooling::Cls)),
    ];
    let one = (
        0usize..60,
        prop::option::weighted(0.25, 0usize..30),
        prompt,
        params,
        prop::option::of(0usize..3),
        poison,
        logprobs,
        grammar,
        (0u64..3, 0u32..4, pooling),
    );
    let one =
        one.prop_map(|(at, cancel_after, prompt, p, adapter, poison, logprobs, trouble, who)| {
            let (temperature, top_p, top_k, max_tokens, seed, stop) = p;
            let (kind, shared, rest) = prompt;
            let mut prompt: Vec<u32> = (0..shared).map(|i| i * (kind + 1) % 11).collect();
            prompt.extend(rest);
            if let Some(token) = poison {
                let at = prompt.len() / 2;
                prompt[at] = token;
            }
            let params = SamplingParams {
                temperature,
                top_p,
                top_k,
                max_tokens,
                seed,
                stop_ids: vec![stop],
                presence_penalty: if seed % 4 == 0 { 0.7 } else { 0.0 },
                repetition_penalty: if seed % 5 == 0 { 1.3 } else { 1.0 },
                logprobs: logprobs.0,
                prompt_logprobs: logprobs.0.is_some() && logprobs.1,
                ..SamplingParams::default()
            };
            let grammar = trouble.map(common::grammar);
            let (tenant, weight, pooling) = who;
            let request =
                SequenceRequest { prompt, params, adapter, grammar, pooling, tenant, weight };
            Arrival { at, cancel_after, request }
        });
    prop::collection::vec(one, 1..25)
}

/// Guesses whatever comes to its mind: often what the runner answers, sometimes tokens that do not
/// exist, too many or none.
struct FakeDrafter(u64);

impl Drafter for FakeDrafter {
    fn guess(&mut self, asks: &[Ask], running: &HashSet<SequenceId>) -> Vec<Vec<u32>> {
        assert!(asks.iter().all(|ask| ask.most > 0 && running.contains(&ask.id)));
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) as usize
        };
        let one = |ask: &Ask| {
            let mut tokens = ask.tokens.to_vec();
            for _ in 0..next() % (ask.most + 3) {
                let right = (tokens[tokens.len() - 1] + 1) % 7;
                // Any ordinary token, or one that does not exist: the poisonous ones trouble the
                // runner, as no token troubles a real one.
                let any = match next() as u32 % (ORDINARY + 2) {
                    token @ 0..ORDINARY => token,
                    beyond => beyond - ORDINARY + VOCAB as u32,
                };
                tokens.push(if next() % 4 > 0 { right } else { any });
            }
            tokens.split_off(ask.tokens.len())
        };
        asks.iter().map(one).collect()
    }
}

/// What a sequence gave.
#[derive(Debug, Default)]
struct Seen {
    started: bool,
    answer: Answer,
    end: Option<Result<(FinishReason, Usage), EngineError>>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_sequence_gets_what_it_gets_alone(
        arrivals in arrivals(),
        num_blocks in 1usize..14, max_batch_tokens in 1usize..60, max_num_seqs in 1usize..8,
        context_len in 20usize..80, prefix_caching: bool, num_speculative_tokens in 0usize..5,
        logit_rows in 1usize..40, drafter: Option<u64>,
    ) {
        let options = EngineOptions {
            num_blocks,
            max_batch_tokens,
            max_num_seqs,
            max_queue: 100,
            prefix_caching,
            num_speculative_tokens,
            kv_cache_dtype: KvDtype::F32,
            max_logit_bytes: 4 * VOCAB * logit_rows,
        };
        let mut engine = Engine::with_runner(FakeRunner::new(num_blocks, context_len), options).unwrap();
        if let Some(seed) = drafter {
            engine = engine.with_drafter(FakeDrafter(seed));
        }
        let limits = engine.limits();
        let mut ids: HashMap<SequenceId, usize> = HashMap::new();
        let mut seen: Vec<Seen> = arrivals.iter().map(|_| Seen::default()).collect();
        let mut now = 0;
        let mut busy_steps = 0;
        while now < 100 || engine.has_work() {
            for (i, a) in arrivals.iter().enumerate().filter(|(_, a)| a.at == now) {
                match engine.add(a.request.clone()) {
                    Ok(id) => _ = ids.insert(id, i),
                    Err(e) => seen[i].end = Some(Err(e)),
                }
            }
            for (&id, &i) in &ids {
                let a = &arrivals[i];
                if a.cancel_after.is_some_and(|n| a.at + n == now) {
                    let ended = seen[i].end.is_some();
                    prop_assert_eq!(engine.cancel(id), !ended);
                }
            }
            busy_steps += usize::from(engine.has_work());
            for event in engine.step() {
                let s = &mut seen[ids[&event.id()]];
                prop_assert!(s.end.is_none(), "an event after the last one");
                match event {
                    Event::Token { token, logprobs, .. } => {
                        s.answer.tokens.push(token);
                        s.answer.logprobs.extend(logprobs);
                    }
                    Event::Started { .. } => {
                        prop_assert!(!s.started && s.answer == Answer::default());
                        s.started = true;
                    }
                    Event::Prompt { logprobs, .. } => s.answer.prompt_logprobs.extend(logprobs),
                    Event::Embedding { embedding, .. } => {
                        prop_assert!(s.answer == Answer::default());
                        s.answer.embedding = embedding;
                    }
                    Event::Finished { reason, usage, .. } => s.end = Some(Ok((reason, usage))),
                    Event::Failed { error, .. } => s.end = Some(Err(error)),
                }
            }
            let stats = engine.stats();
            prop_assert!(stats.running <= max_num_seqs);
            prop_assert!(stats.running > 0 || stats.free_blocks == stats.total_blocks, "{:?}", stats);
            now += 1;
            prop_assert!(now < 100_000, "the engine never finishes");
        }
        prop_assert_eq!(engine.stats().free_blocks, num_blocks);
        prop_assert!(engine.runner().longest <= max_batch_tokens);

        // While a sequence is the oldest it advances at every step, so all of them together take
        // no longer than one after the other (plus one step that reports a cancellation).
        let at_once = max_batch_tokens.min(logit_rows.max(max_num_seqs));
        let bound: usize = arrivals.iter().map(|a| {
            let longest = a.request.prompt.len() + a.request.params.max_tokens;
            longest.div_ceil(at_once) + a.request.params.max_tokens + 1
        }).sum();
        prop_assert!(busy_steps <= bound, "{busy_steps} steps, at most {bound} expected");

        for (a, s) in arrivals.iter().zip(&seen) {
            let expected = alone(&a.request, &limits);
            match (s.end.as_ref().expect("every sequence ends"), expected) {
                (Ok((FinishReason::Cancelled, usage)), expected) => {
                    prop_assert!(a.cancel_after.is_some());
                    prop_assert_eq!(usage.completion_tokens, s.answer.tokens.len());
                    if let Ok((answer, _)) = expected {
                        prop_assert!(answer.tokens.starts_with(&s.answer.tokens));
                        prop_assert!(answer.logprobs.starts_with(&s.answer.logprobs));
                        let told = &s.answer.prompt_logprobs;
                        prop_assert!(answer.prompt_logprobs.starts_with(told));
                    }
                }
                (Ok((reason, usage)), Ok((answer, expected))) => {
                    prop_assert_eq!(&s.answer, &answer);
                    prop_assert_eq!(*reason, expected);
                    prop_assert_eq!(usage.prompt_tokens, a.request.prompt.len());
                    let stop = usize::from(expected == FinishReason::Stop);
                    if a.request.pooling.is_some() {
                        prop_assert!(usage.completion_tokens == 0);
                        continue;
                    }
                    let extra = usage.completion_tokens - answer.tokens.len();
                    // A grammar that must end ends without a stop token.
                    let free = a.request.grammar.is_some() && extra == 0;
                    prop_assert!(extra == stop || free, "{:?}", usage);
                    prop_assert!(usage.cached_tokens < usage.prompt_tokens);
                    prop_assert!(prefix_caching || usage.cached_tokens == 0);
                }
                (Err(EngineError::Forward(_)), Err(EngineError::Forward(_))) => {
                    prop_assert!(a.request.prompt.contains(&FAIL));
                }
                (Err(EngineError::Grammar(_)), Err(EngineError::Grammar(_))) => {
                    prop_assert!(a.request.grammar.is_some());
                }
                (Err(found), Err(expected)) => prop_assert_eq!(found, &expected),
                (found, expected) => prop_assert!(false, "{found:?}, alone {expected:?}"),
            }
        }
    }
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> SequenceRequest {
    SequenceRequest {
        prompt,
        params: SamplingParams { max_tokens, ..SamplingParams::default() },
        ..SequenceRequest::default()
    }
}

fn engine(num_blocks: usize, max_queue: usize) -> Engine<FakeRunner> {
    let options = EngineOptions {
        num_blocks,
        max_batch_tokens: 64,
        max_num_seqs: 8,
        max_queue,
        ..EngineOptions::default()
    };
    Engine::with_runner(FakeRunner::new(num_blocks, 1000), options).unwrap()
}

#[test]
fn one_panic_or_error_fails_only_its_own_sequence() {
    for poison in [PANIC, FAIL, NAN] {
        let mut engine = engine(40, 40);
        let mut requests: Vec<SequenceRequest> =
            (0..6).map(|i| request(vec![1, 2, i], 20)).collect();
        requests[3].prompt[1] = poison;
        let limits = engine.limits();
        let answers = engine.generate(requests.clone(), |_, _| {});
        for (i, (answer, request)) in answers.iter().zip(&requests).enumerate() {
            match answer {
                Ok(c) => {
                    let (expected, reason) = alone(request, &limits).unwrap();
                    assert_eq!((&c.tokens, c.reason), (&expected.tokens, reason));
                }
                Err(EngineError::Forward(text)) => {
                    assert!(i == 3 && text.contains("poisoned"), "{text}")
                }
                Err(e) => assert_eq!((i, e), (3, &EngineError::NonFinite { position: 3 })),
            }
            assert_eq!(answer.is_err(), i == 3);
        }
        assert!(engine.runner().widest >= 6, "they shared a batch");
        assert_eq!(engine.stats().free_blocks, 40);
    }
}

#[test]
fn tiny_cache_preempts_and_still_answers() {
    let mut engine = engine(5, 40);
    let requests: Vec<SequenceRequest> = (0..6).map(|i| request(vec![i; 10], 45)).collect();
    let limits = engine.limits();
    let answers = engine.generate(requests.clone(), |_, _| {});
    for (answer, request) in answers.into_iter().zip(&requests) {
        assert_eq!(answer.unwrap().tokens, alone(request, &limits).unwrap().0.tokens);
    }
    assert!(engine.stats().preemptions > 0, "{:?}", engine.stats());
}

#[test]
fn the_queue_is_bounded_and_generate_feeds_it() {
    let mut engine = engine(5, 2);
    engine.add(request(vec![1], 2)).unwrap();
    engine.add(request(vec![1], 2)).unwrap();
    assert_eq!(engine.add(request(vec![1], 2)), Err(EngineError::QueueFull { limit: 2 }));
    while engine.has_work() {
        engine.step();
    }
    let requests: Vec<SequenceRequest> = (0..20).map(|i| request(vec![i], 3)).collect();
    let mut order = Vec::new();
    let answers = engine.generate(requests, |i, event| {
        if event.is_last() {
            order.push(i);
        }
    });
    assert!(answers.iter().all(|a| a.as_ref().unwrap().tokens.len() == 3));
    order.sort_unstable();
    assert_eq!(order, (0..20).collect::<Vec<_>>());
}

#[test]
fn generate_keeps_the_order_of_requests_and_refuses_single_ones() {
    let mut engine = engine(5, 10);
    let requests = vec![
        request(vec![1], 30),
        request(vec![], 1),
        request(vec![2; 80], 1),
        request(vec![3], 1),
    ];
    let limits = engine.limits();
    let answers = engine.generate(requests.clone(), |_, _| {});
    assert_eq!(answers[0].as_ref().unwrap().tokens, alone(&requests[0], &limits).unwrap().0.tokens);
    assert_eq!(answers[1], Err(EngineError::EmptyPrompt));
    assert_eq!(answers[2], Err(EngineError::PromptExceedsCache { tokens: 80, capacity: 80 }));
    assert_eq!(answers[3].as_ref().unwrap().tokens, alone(&requests[3], &limits).unwrap().0.tokens);
}

#[test]
fn options_are_checked() {
    let options = EngineOptions { max_num_seqs: 0, num_blocks: 3, ..EngineOptions::default() };
    let error = Engine::with_runner(FakeRunner::new(3, 10), options).err().unwrap();
    assert!(error.to_string().contains("max_num_seqs"), "{error}");
    let options = EngineOptions { num_blocks: 4, ..EngineOptions::default() };
    let error = Engine::with_runner(FakeRunner::new(3, 10), options).err().unwrap();
    assert!(error.to_string().contains("num_blocks"), "{error}");
}
