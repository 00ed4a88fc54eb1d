//! Random arrivals, cancellations and broken requests against a fake model: whatever the batch,
//! every sequence gets what it would get alone, pages are conserved, and nothing starves.

mod common;

use common::{FAIL, FakeRunner, NAN, ORDINARY, PANIC, alone};
use engine::{
    Engine, EngineError, EngineOptions, Event, FinishReason, SamplingParams, SequenceId,
    SequenceRequest, Usage,
};
use proptest::prelude::*;
use std::collections::HashMap;

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
    let prompt = prop::collection::vec(0..ORDINARY, 1..50);
    let poison = prop_oneof![20 => Just(None), 1 => Just(Some(NAN)), 1 => Just(Some(FAIL))];
    let one = (
        0usize..60,
        prop::option::weighted(0.25, 0usize..30),
        prompt,
        params,
        prop::option::of(0usize..3),
        poison,
    );
    let one = one.prop_map(|(at, cancel_after, mut prompt, p, adapter, poison)| {
        let (temperature, top_p, top_k, max_tokens, seed, stop) = p;
        if let Some(token) = poison {
            let at = prompt.len() / 2;
            prompt[at] = token;
        }
        let stop_ids = vec![stop];
        let params = SamplingParams {
            temperature,
            top_p,
            top_k,
            max_tokens,
            seed,
            stop_ids,
            ignore_eos: false,
        };
        Arrival { at, cancel_after, request: SequenceRequest { prompt, params, adapter } }
    });
    prop::collection::vec(one, 1..25)
}

/// What a sequence gave.
#[derive(Debug, Default)]
struct Seen {
    tokens: Vec<u32>,
    end: Option<Result<(FinishReason, Usage), EngineError>>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_sequence_gets_what_it_gets_alone(
        arrivals in arrivals(),
        num_blocks in 1usize..14, max_batch_tokens in 1usize..60, max_num_seqs in 1usize..8,
        context_len in 20usize..80,
    ) {
        let options = EngineOptions { num_blocks, max_batch_tokens, max_num_seqs, max_queue: 100 };
        let mut engine = Engine::with_runner(FakeRunner::new(num_blocks, context_len), options).unwrap();
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
                    Event::Token { token, .. } => s.tokens.push(token),
                    Event::Finished { reason, usage, .. } => s.end = Some(Ok((reason, usage))),
                    Event::Failed { error, .. } => s.end = Some(Err(error)),
                }
            }
            let stats = engine.stats();
            prop_assert!(stats.running <= max_num_seqs);
            prop_assert!(stats.running <= stats.total_blocks - stats.free_blocks);
            prop_assert!(stats.running > 0 || stats.free_blocks == stats.total_blocks, "{:?}", stats);
            now += 1;
            prop_assert!(now < 100_000, "the engine never finishes");
        }
        prop_assert_eq!(engine.stats().free_blocks, num_blocks);
        prop_assert!(engine.runner().longest <= max_batch_tokens);

        // While a sequence is the oldest it advances at every step, so all of them together take
        // no longer than one after the other (plus one step that reports a cancellation).
        let bound: usize = arrivals.iter().map(|a| {
            let longest = a.request.prompt.len() + a.request.params.max_tokens;
            longest.div_ceil(max_batch_tokens) + a.request.params.max_tokens + 1
        }).sum();
        prop_assert!(busy_steps <= bound, "{busy_steps} steps, at most {bound} expected");

        for (a, s) in arrivals.iter().zip(&seen) {
            let expected = alone(&a.request, &limits);
            match (s.end.as_ref().expect("every sequence ends"), expected) {
                (Ok((FinishReason::Cancelled, usage)), expected) => {
                    prop_assert!(a.cancel_after.is_some());
                    prop_assert_eq!(usage.completion_tokens, s.tokens.len());
                    if let Ok((tokens, _)) = expected {
                        prop_assert!(tokens.starts_with(&s.tokens));
                    }
                }
                (Ok((reason, usage)), Ok((tokens, expected))) => {
                    prop_assert_eq!(&s.tokens, &tokens);
                    prop_assert_eq!(*reason, expected);
                    prop_assert_eq!(usage.prompt_tokens, a.request.prompt.len());
                    let stop = usize::from(expected == FinishReason::Stop);
                    prop_assert_eq!(usage.completion_tokens, tokens.len() + stop);
                }
                (Err(EngineError::Forward(_)), Err(EngineError::Forward(_))) => {
                    prop_assert!(a.request.prompt.contains(&FAIL));
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
        adapter: None,
    }
}

fn engine(num_blocks: usize, max_queue: usize) -> Engine<FakeRunner> {
    let options = EngineOptions { num_blocks, max_batch_tokens: 64, max_num_seqs: 8, max_queue };
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
                Ok(c) => assert_eq!((c.tokens.clone(), c.reason), alone(request, &limits).unwrap()),
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
        assert_eq!(answer.unwrap().tokens, alone(request, &limits).unwrap().0);
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
    assert_eq!(answers[0].as_ref().unwrap().tokens, alone(&requests[0], &limits).unwrap().0);
    assert_eq!(answers[1], Err(EngineError::EmptyPrompt));
    assert_eq!(answers[2], Err(EngineError::PromptExceedsCache { tokens: 80, capacity: 80 }));
    assert_eq!(answers[3].as_ref().unwrap().tokens, alone(&requests[3], &limits).unwrap().0);
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
