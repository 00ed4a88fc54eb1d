//! The engine on its thread: events, cancellation, bounds, shutdown.

mod common;

use common::{FakeRunner, alone};
use engine::{
    Engine, EngineError, EngineHandle, EngineOptions, Event, FinishReason, Runner, SamplingParams,
    SequenceRequest,
};
use model::{Batch, ModelError};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

fn request(first: u32, max_tokens: usize) -> SequenceRequest {
    let params = SamplingParams { max_tokens, ..SamplingParams::default() };
    SequenceRequest { prompt: vec![first, 2, 3], params, ..SequenceRequest::default() }
}

fn options(max_queue: usize) -> EngineOptions {
    EngineOptions {
        num_blocks: 64,
        max_batch_tokens: 64,
        max_num_seqs: 2,
        max_queue,
        ..EngineOptions::default()
    }
}

fn spawn() -> EngineHandle {
    EngineHandle::spawn(Engine::with_runner(FakeRunner::new(64, 1000), options(8)).unwrap())
        .unwrap()
}

/// A runner that runs only when the test lets it: steps happen one by one.
struct Gated {
    inner: FakeRunner,
    gate: Receiver<()>,
}

impl Runner for Gated {
    fn run(&mut self, batch: &Batch) -> Result<Vec<f32>, ModelError> {
        self.gate.recv().map_err(|_| ModelError::Batch("the gate is gone".into()))?;
        self.inner.run(batch)
    }
    fn num_blocks(&self) -> usize {
        self.inner.num_blocks()
    }
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }
    fn context_len(&self) -> usize {
        self.inner.context_len()
    }
}

fn gated(max_queue: usize) -> (EngineHandle, SyncSender<()>) {
    let (open, gate) = sync_channel(1000);
    let runner = Gated { inner: FakeRunner::new(64, 1000), gate };
    let engine = Engine::with_runner(runner, options(max_queue)).unwrap();
    (EngineHandle::spawn(engine).unwrap(), open)
}

#[test]
fn events_arrive_in_order_and_end() {
    let handle = spawn();
    let receivers: Vec<_> =
        (0..5).map(|i| handle.submit_blocking(request(i, 10)).unwrap()).collect();
    for (i, receiver) in receivers.into_iter().enumerate() {
        let mut tokens = Vec::new();
        let mut end = None;
        while let Some(event) = receiver.recv() {
            assert!(end.is_none());
            match event {
                Event::Started { .. } => assert!(tokens.is_empty()),
                Event::Token { token, .. } => tokens.push(token),
                other => end = Some(other),
            }
        }
        let expected = alone(&request(i as u32, 10), &handle.limits()).unwrap();
        assert_eq!(tokens, expected.0.tokens);
        assert!(matches!(end, Some(Event::Finished { reason: FinishReason::Length, .. })));
    }
    assert!(handle.is_alive());
}

#[test]
fn dropping_the_receiver_frees_the_pages() {
    let (handle, open) = gated(8);
    let first = handle.submit_blocking(request(1, 900)).unwrap();
    let second = handle.submit_blocking(request(2, 5)).unwrap();
    open.send(()).unwrap();
    assert!(matches!(first.recv(), Some(Event::Started { .. })));
    assert!(matches!(first.recv(), Some(Event::Token { .. })));
    drop(first);
    // The other one is not disturbed.
    let mut tokens = Vec::new();
    loop {
        open.send(()).unwrap();
        match second.recv() {
            Some(Event::Started { .. }) => {}
            Some(Event::Token { token, .. }) => tokens.push(token),
            Some(Event::Finished { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(tokens, alone(&request(2, 5), &handle.limits()).unwrap().0.tokens);
    // The engine is idle (nothing opens the gate 900 times), so the first is really gone.
    while handle.stats().running > 0 {
        std::thread::yield_now();
    }
    assert_eq!(handle.stats().free_blocks, 64);
    assert!(handle.stats().tokens_run < 30, "{:?}", handle.stats());
}

#[test]
fn a_waiting_request_can_be_dropped_too() {
    let (handle, open) = gated(8);
    let running: Vec<_> = (0..2).map(|i| handle.submit_blocking(request(i, 2)).unwrap()).collect();
    let waiting = handle.submit_blocking(request(9, 900)).unwrap();
    drop(waiting);
    for _ in 0..10 {
        open.send(()).unwrap();
    }
    for receiver in running {
        while receiver.recv().is_some() {}
    }
    while handle.stats().running + handle.stats().waiting > 0 {
        std::thread::yield_now();
    }
    assert_eq!(handle.stats().free_blocks, 64);
}

#[test]
fn the_queue_bound_is_exact() {
    let (handle, open) = gated(3);
    let first = handle.submit_blocking(request(1, 3)).unwrap();
    while handle.stats().running == 0 {
        std::thread::yield_now();
    }
    // The first runs, held up by the gate; three wait; the next is refused.
    let held: Vec<_> = (0..3).map(|_| handle.submit_blocking(request(2, 3)).unwrap()).collect();
    assert_eq!(handle.stats().waiting, 3);
    let error = handle.submit_blocking(request(3, 3)).unwrap_err();
    assert_eq!(error, EngineError::QueueFull { limit: 3 });
    for _ in 0..20 {
        open.send(()).unwrap();
    }
    for receiver in held.iter().chain([&first]) {
        while receiver.recv().is_some() {}
    }
    assert!(handle.submit_blocking(request(3, 3)).is_ok(), "room again");
}

#[test]
fn broken_requests_are_refused_at_once() {
    let handle = spawn();
    let mut bad = request(1, 1);
    bad.prompt.clear();
    assert_eq!(handle.submit_blocking(bad).unwrap_err(), EngineError::EmptyPrompt);
    assert!(matches!(
        handle.submit_blocking(request(99, 1)).unwrap_err(),
        EngineError::TokenOutOfRange { token: 99, .. }
    ));
}

#[test]
fn shutdown_ends_what_is_running() {
    let (handle, open) = gated(8);
    let receiver = handle.submit_blocking(request(1, 900)).unwrap();
    open.send(()).unwrap();
    assert!(matches!(receiver.recv(), Some(Event::Started { .. })));
    assert!(matches!(receiver.recv(), Some(Event::Token { .. })));
    let for_thread = handle.clone();
    let stopper = std::thread::spawn(move || for_thread.shutdown());
    while handle.is_alive() {
        std::thread::yield_now();
    }
    // Lets the step that was under way, if one was, come to its end; there must be no other.
    _ = open.send(());
    while receiver.recv().is_some() {}
    stopper.join().unwrap();
    assert_eq!(handle.submit_blocking(request(1, 1)).unwrap_err(), EngineError::Stopped);
    assert_eq!(handle.stats().free_blocks, 64);
}

#[test]
fn a_ticket_knows_when_its_sequence_first_ran() {
    // Two run at a time.
    let (handle, open) = gated(8);
    let tickets: Vec<_> = (0..3).map(|i| handle.submit(request(i, 2), |_| true).unwrap()).collect();
    let started: Vec<_> = tickets.iter().map(|ticket| ticket.started()).collect();
    while started[1].get().is_none() {
        std::thread::yield_now();
    }
    assert!(started[2].get().is_none(), "it waits");
    let first = *started[0].get().unwrap();
    for _ in 0..4 {
        open.send(()).unwrap();
    }
    while handle.stats().running + handle.stats().waiting > 0 {
        std::thread::yield_now();
    }
    assert!(*started[2].get().unwrap() >= first);
    assert_eq!(*started[0].get().unwrap(), first, "the first time counts");
    drop(tickets);
}

#[test]
fn work_between_steps_finds_what_was_cancelled_gone() {
    let (handle, open) = gated(8);
    let receiver = handle.submit_blocking(request(1, 900)).unwrap();
    open.send(()).unwrap();
    assert!(matches!(receiver.recv(), Some(Event::Started { .. })));
    assert!(matches!(receiver.recv(), Some(Event::Token { .. })));
    let (sender, results) = sync_channel(10);
    // A panic is nobody else's business.
    handle.between_steps(|_| panic!("on purpose")).unwrap();
    drop(receiver);
    for i in 0..2 {
        let sender = sender.clone();
        let blocks = move |runner: &mut dyn Runner| sender.send((i, runner.num_blocks())).unwrap();
        handle.between_steps(blocks).unwrap();
    }
    // The step that is under way ends first; with the sequence gone there is no other.
    open.send(()).unwrap();
    assert_eq!((results.recv().unwrap(), results.recv().unwrap()), ((0, 64), (1, 64)));
    while handle.stats().running > 0 {
        std::thread::yield_now();
    }
    assert!(handle.stats().tokens_run <= 4, "{:?}", handle.stats());

    // An idle engine is woken, and goes on answering.
    let work = move |runner: &mut dyn Runner| {
        sender.send((9, usize::from(runner.adapters_mut().is_none()))).unwrap();
    };
    handle.between_steps(work).unwrap();
    assert_eq!(results.recv().unwrap(), (9, 1));
    assert!(results.recv().is_err(), "what was called is dropped");
    let receiver = handle.submit_blocking(request(2, 1)).unwrap();
    open.send(()).unwrap();
    assert!(matches!(receiver.recv(), Some(Event::Started { .. })));
    assert!(matches!(receiver.recv(), Some(Event::Token { .. })));

    handle.shutdown();
    assert_eq!(handle.between_steps(|_| ()).unwrap_err(), EngineError::Stopped);
}
