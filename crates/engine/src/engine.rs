//! The engine: a step is schedule, run, postprocess.

use crate::error::EngineError;
use crate::runner::{DecoderRunner, Runner};
use crate::scheduler::{Scheduler, Step};
use crate::sequence::{FinishReason, Limits, Sequence, SequenceId, SequenceRequest, Usage};
use model::{AdapterSet, Batch, Decoder, DecoderConfig, KvCache};
use serde::Serialize;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// How much the engine may take on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EngineOptions {
    /// Pages of [`model::BLOCK_SIZE`] tokens in the KV cache.
    pub num_blocks: usize,
    /// Most tokens in one forward; longer prompts are run in chunks.
    pub max_batch_tokens: usize,
    /// Most sequences running at the same time.
    pub max_num_seqs: usize,
    /// Most sequences waiting; more are refused with [`EngineError::QueueFull`].
    pub max_queue: usize,
}

impl Default for EngineOptions {
    /// 512 pages (8,192 tokens), 512 tokens a step, 64 sequences running and 256 waiting.
    fn default() -> EngineOptions {
        EngineOptions { num_blocks: 512, max_batch_tokens: 512, max_num_seqs: 64, max_queue: 256 }
    }
}

impl EngineOptions {
    /// The same options with as many pages as fit into `bytes` for a model of this shape.
    pub fn with_cache_bytes(self, config: &DecoderConfig, bytes: usize) -> EngineOptions {
        EngineOptions { num_blocks: bytes / KvCache::bytes_per_block(config).max(1), ..self }
    }

    fn validate(&self) -> Result<(), EngineError> {
        for (field, value) in [
            ("num_blocks", self.num_blocks),
            ("max_batch_tokens", self.max_batch_tokens),
            ("max_num_seqs", self.max_num_seqs),
            ("max_queue", self.max_queue),
        ] {
            if value == 0 {
                return Err(EngineError::Options(format!("{field} is 0; expected at least 1")));
            }
        }
        Ok(())
    }
}

/// What happened to a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It gained a token.
    Token {
        /// Which sequence.
        id: SequenceId,
        /// The token; never a stop token.
        token: u32,
        /// Natural log probability under the model, before temperature, top_k and top_p.
        logprob: f32,
    },
    /// It ended; nothing follows.
    Finished {
        /// Which sequence.
        id: SequenceId,
        /// Why.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// It failed; nothing follows. Other sequences are not concerned.
    Failed {
        /// Which sequence.
        id: SequenceId,
        /// Why.
        error: EngineError,
    },
}

impl Event {
    /// The sequence concerned.
    pub fn id(&self) -> SequenceId {
        match self {
            Event::Token { id, .. } | Event::Finished { id, .. } | Event::Failed { id, .. } => *id,
        }
    }

    /// Whether this is the sequence's last event.
    pub fn is_last(&self) -> bool {
        !matches!(self, Event::Token { .. })
    }
}

/// A finished answer, from [`Engine::generate`].
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Generated tokens, without the stop token.
    pub tokens: Vec<u32>,
    /// Natural log probability of each of `tokens`.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub reason: FinishReason,
    /// What it took.
    pub usage: Usage,
}

/// What the engine holds at the moment, and what it has done in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EngineStats {
    /// Sequences with pages.
    pub running: usize,
    /// Sequences without.
    pub waiting: usize,
    /// Pages that nobody holds.
    pub free_blocks: usize,
    /// Pages in all.
    pub total_blocks: usize,
    /// Steps run since the start.
    pub steps: u64,
    /// Tokens run through the model since the start, prompts and recomputation included.
    pub tokens_run: u64,
    /// Sequences preempted since the start.
    pub preemptions: u64,
}

/// Continuous batching over a [`Runner`].
pub struct Engine<R: Runner = DecoderRunner> {
    runner: R,
    scheduler: Scheduler,
    limits: Limits,
    options: EngineOptions,
    next_id: u64,
    /// Events of cancelled sequences, handed out by the next step.
    pending: Vec<Event>,
    steps: u64,
    tokens_run: u64,
}

impl<R: Runner> Engine<R> {
    /// Runs one batch and returns what happened to its sequences. Does nothing when there is
    /// nothing to do.
    pub fn step(&mut self) -> Vec<Event> {
        let step = self.schedule();
        self.execute(step)
    }

    /// The first part of a step: decides what runs. Cheap, unlike the rest, so that the thread of
    /// [`crate::EngineHandle`] can publish the queues' lengths in between.
    pub(crate) fn schedule(&mut self) -> Option<Step> {
        self.scheduler.schedule()
    }

    /// The rest of a step.
    pub(crate) fn execute(&mut self, step: Option<Step>) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.pending);
        if let Some(step) = step {
            let logits = self.run(&step);
            self.postprocess(&step, logits, &mut events);
        }
        events
    }

    /// Each segment's logits [V] where it asked for them. When the whole batch fails, every
    /// segment is run alone, so that only the guilty ones fail.
    fn run(&mut self, step: &Step) -> Vec<Result<Option<Vec<f32>>, EngineError>> {
        self.steps += 1;
        self.tokens_run += step.batch.tokens.len() as u64;
        match run_checked(&mut self.runner, &step.batch) {
            Ok(logits) => {
                let vocab = self.limits.vocab_size;
                let row = |row: usize| logits[row * vocab..][..vocab].to_vec();
                step.scheduled.iter().map(|&(_, wanted)| Ok(wanted.map(row))).collect()
            }
            Err(error) if step.scheduled.len() == 1 => vec![Err(error)],
            Err(_) => (0..step.scheduled.len())
                .map(|i| {
                    let logits = run_checked(&mut self.runner, &step.alone(i))?;
                    Ok(step.scheduled[i].1.map(|_| logits))
                })
                .collect(),
        }
    }

    /// Notes what is computed, samples where a row of logits came back, lets finished and failed
    /// sequences go.
    fn postprocess(
        &mut self,
        step: &Step,
        logits: Vec<Result<Option<Vec<f32>>, EngineError>>,
        events: &mut Vec<Event>,
    ) {
        for ((&(id, _), segment), logits) in
            step.scheduled.iter().zip(&step.batch.segments).zip(logits)
        {
            let Some(sequence) = self.scheduler.running_mut(id) else { continue };
            sequence.computed += segment.len;
            let last = match logits {
                Ok(None) => None,
                Err(error) => Some(Event::Failed { id, error }),
                Ok(Some(row)) => match sequence.advance(&row, &self.limits) {
                    Err(error) => Some(Event::Failed { id, error }),
                    Ok(advance) => {
                        let beyond = self.runner.recompute_beyond();
                        if beyond.is_some_and(|most| sequence.tokens.len() == most + 1) {
                            sequence.computed = 0;
                        }
                        let token = advance.output;
                        events.extend(token.map(|(token, logprob)| Event::Token {
                            id,
                            token,
                            logprob,
                        }));
                        let usage = sequence.usage();
                        advance.finished.map(|reason| Event::Finished { id, reason, usage })
                    }
                },
            };
            if let Some(event) = last {
                self.scheduler.remove(id);
                events.push(event);
            }
        }
    }

    /// An engine over `runner`, which has as many pages as `options` says.
    ///
    /// # Errors
    /// [`EngineError::Options`] naming the option.
    pub fn with_runner(runner: R, options: EngineOptions) -> Result<Engine<R>, EngineError> {
        options.validate()?;
        if runner.num_blocks() != options.num_blocks {
            return Err(EngineError::Options(format!(
                "num_blocks is {}, the runner has {}",
                options.num_blocks,
                runner.num_blocks()
            )));
        }
        Ok(Engine {
            limits: Limits::new(runner.context_len(), options.num_blocks, runner.vocab_size()),
            scheduler: Scheduler::new(
                options.num_blocks,
                options.max_batch_tokens,
                options.max_num_seqs,
            ),
            runner,
            options,
            next_id: 0,
            pending: Vec::new(),
            steps: 0,
            tokens_run: 0,
        })
    }

    /// Queues a request. Its first tokens come with a later [`Engine::step`].
    ///
    /// # Errors
    /// [`EngineError::QueueFull`], or the rule of [`Limits::check`] that it breaks.
    pub fn add(&mut self, request: SequenceRequest) -> Result<SequenceId, EngineError> {
        self.limits.check(&request)?;
        if self.scheduler.waiting.len() >= self.options.max_queue {
            return Err(EngineError::QueueFull { limit: self.options.max_queue });
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.scheduler.add(Sequence::new(id, request));
        Ok(id)
    }

    /// Ends a sequence and frees its pages at once; the next step reports it as
    /// [`FinishReason::Cancelled`]. False when it has ended already.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.scheduler.remove(id) else { return false };
        let reason = FinishReason::Cancelled;
        self.pending.push(Event::Finished { id, reason, usage: sequence.usage() });
        true
    }

    /// Whether [`Engine::step`] has something to do or to say.
    pub fn has_work(&self) -> bool {
        !(self.pending.is_empty()
            && self.scheduler.running.is_empty()
            && self.scheduler.waiting.is_empty())
    }

    /// What requests must keep within.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The options it was built with.
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    /// The runner, for instance to look at it in tests.
    pub fn runner(&self) -> &R {
        &self.runner
    }

    /// The runner, to be changed between two steps: see [`crate::EngineHandle::between_steps`].
    pub(crate) fn runner_mut(&mut self) -> &mut R {
        &mut self.runner
    }

    /// The state of the moment.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.scheduler.running.len(),
            waiting: self.scheduler.waiting.len(),
            free_blocks: self.scheduler.blocks.num_free(),
            total_blocks: self.scheduler.blocks.num_blocks(),
            steps: self.steps,
            tokens_run: self.tokens_run,
            preemptions: self.scheduler.preemptions,
        }
    }

    /// Answers all `requests`, however many, and returns the answers in their order. `on_event`
    /// gets (index of the request, event) as things happen; a refused request has no event.
    ///
    /// Whatever else the engine was working on goes on beside it, unreported: use it on an idle
    /// engine.
    pub fn generate(
        &mut self,
        requests: Vec<SequenceRequest>,
        mut on_event: impl FnMut(usize, &Event),
    ) -> Vec<Result<Completion, EngineError>> {
        let mut answers: Vec<Answer> = requests.iter().map(|_| Answer::default()).collect();
        let mut index_of = HashMap::new();
        let mut todo = requests.into_iter().enumerate().peekable();
        loop {
            while self.scheduler.waiting.len() < self.options.max_queue
                && let Some((index, request)) = todo.next()
            {
                match self.add(request) {
                    Ok(id) => _ = index_of.insert(id, index),
                    Err(error) => answers[index].end = Some(Err(error)),
                }
            }
            if index_of.is_empty() && todo.peek().is_none() {
                break;
            }
            for event in self.step() {
                let Some(&index) = index_of.get(&event.id()) else { continue };
                on_event(index, &event);
                if event.is_last() {
                    index_of.remove(&event.id());
                }
                answers[index].note(event);
            }
        }
        answers.into_iter().map(Answer::completion).collect()
    }
}

impl Engine<DecoderRunner> {
    /// An engine over a decoder, with a KV cache of `options.num_blocks` pages and no adapters.
    ///
    /// # Errors
    /// [`EngineError::Options`] naming the option.
    pub fn new(decoder: Arc<Decoder>, options: EngineOptions) -> Result<Engine, EngineError> {
        options.validate()?;
        Engine::with_runner(DecoderRunner::new(decoder, options.num_blocks), options)
    }

    /// The adapters that requests can name by slot. A sequence whose slot is emptied fails at its
    /// next step; the others go on.
    pub fn adapters_mut(&mut self) -> &mut AdapterSet {
        &mut self.runner.adapters
    }
}

/// An answer being collected by [`Engine::generate`].
#[derive(Default)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    end: Option<Result<(FinishReason, Usage), EngineError>>,
}

impl Answer {
    fn note(&mut self, event: Event) {
        match event {
            Event::Token { token, logprob, .. } => {
                self.tokens.push(token);
                self.logprobs.push(logprob);
            }
            Event::Finished { reason, usage, .. } => self.end = Some(Ok((reason, usage))),
            Event::Failed { error, .. } => self.end = Some(Err(error)),
        }
    }

    fn completion(self) -> Result<Completion, EngineError> {
        let (reason, usage) = self.end.unwrap_or(Err(EngineError::Stopped))?;
        Ok(Completion { tokens: self.tokens, logprobs: self.logprobs, reason, usage })
    }
}

/// Runs `batch`; a panic and a result of the wrong length are errors like any other. After a
/// panic the runner is used again: pages are written before they are read by whoever holds them
/// next, and nothing else in it changes during a run.
fn run_checked<R: Runner>(runner: &mut R, batch: &Batch) -> Result<Vec<f32>, EngineError> {
    let logits = match catch_unwind(AssertUnwindSafe(|| runner.run(batch))) {
        Ok(result) => result.map_err(|e| EngineError::Forward(e.to_string()))?,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            return Err(EngineError::Forward(format!("panic: {}", text.unwrap_or("unknown"))));
        }
    };
    let expected = batch.logit_rows.len() * runner.vocab_size();
    if logits.len() != expected {
        return Err(EngineError::Forward(format!("{} logits, expected {expected}", logits.len())));
    }
    Ok(logits)
}
