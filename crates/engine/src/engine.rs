//! The engine: a step is schedule, run, postprocess.

use crate::draft::Drafter;
use crate::error::EngineError;
use crate::runner::{DecoderRunner, EncoderRunner, Runner};
use crate::sampler::TokenLogprobs;
use crate::scheduler::{Bounds, Scheduled, Scheduler, Step};
use crate::sequence::{
    Advance, FinishReason, Limits, Sequence, SequenceId, SequenceRequest, Usage,
};
use model::{AdapterSet, Batch, Decoder, Encoder, KvDtype};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;
use std::iter::Sum;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// How much the engine may take on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Pages of [`model::BLOCK_SIZE`] tokens in the KV cache.
    pub num_blocks: usize,
    /// How the pages hold keys and values. Shorter forms hold more tokens and change the numbers.
    pub kv_cache_dtype: KvDtype,
    /// Most tokens in one forward; longer prompts are run in chunks.
    pub max_batch_tokens: usize,
    /// Most sequences running at the same time.
    pub max_num_seqs: usize,
    /// Most sequences waiting; more are refused with [`EngineError::QueueFull`].
    pub max_queue: usize,
    /// Whether the keys and values of a finished sequence are kept, while pages are left, for those
    /// that begin with the same tokens and the same adapter. Changes no text.
    pub prefix_caching: bool,
    /// Most tokens guessed for a sequence where few run, by prompt lookup or by a drafter; one forward
    /// checks them all. Changes no text. 0 guesses nothing.
    pub num_speculative_tokens: usize,
    /// Most bytes that the logits of a step may take (a row of V floats at least): bounds how much of
    /// a prompt is scored at once.
    pub max_logit_bytes: usize,
}

impl Default for EngineOptions {
    /// 512 pages (8,192 tokens) in f32, 512 tokens a step, 64 sequences running and 256 waiting, beginnings
    /// kept, four guesses, 64 MiB of logits.
    fn default() -> EngineOptions {
        EngineOptions {
            num_blocks: 512,
            kv_cache_dtype: KvDtype::F32,
            max_batch_tokens: 512,
            max_num_seqs: 64,
            max_queue: 256,
            prefix_caching: true,
            num_speculative_tokens: 4,
            max_logit_bytes: 64 << 20,
        }
    }
}

impl EngineOptions {
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
    /// It has run for the first time: what came before was the queue.
    Started {
        /// Which sequence.
        id: SequenceId,
        /// Tokens of its prompt whose keys and values were there already.
        cached_tokens: usize,
    },
    /// It gained a token.
    Token {
        /// Which sequence.
        id: SequenceId,
        /// The token; never a stop token.
        token: u32,
        /// What the model thought of it, where [`crate::SamplingParams::logprobs`] asks for that.
        logprobs: Option<TokenLogprobs>,
    },
    /// More of its prompt has been scored, see [`crate::SamplingParams::prompt_logprobs`].
    Prompt {
        /// Which sequence.
        id: SequenceId,
        /// The prompt's next tokens, beginning with its second: nothing stands before the first.
        logprobs: Vec<TokenLogprobs>,
    },
    /// What its prompt is as a whole, see [`SequenceRequest::pooling`]; its end follows.
    Embedding {
        /// Which sequence.
        id: SequenceId,
        /// The pooled hidden states, [H]; not normalised.
        embedding: Vec<f32>,
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
            Event::Started { id, .. }
            | Event::Token { id, .. }
            | Event::Prompt { id, .. }
            | Event::Embedding { id, .. }
            | Event::Finished { id, .. }
            | Event::Failed { id, .. } => *id,
        }
    }

    /// Whether this is the sequence's last event.
    pub fn is_last(&self) -> bool {
        matches!(self, Event::Finished { .. } | Event::Failed { .. })
    }
}

/// A finished answer, from [`Engine::generate`].
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Generated tokens, without the stop token.
    pub tokens: Vec<u32>,
    /// What the model thought of each of `tokens`; empty unless asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// The same of the prompt's tokens from the second on; empty unless asked for.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// The prompt's embedding [H]; empty unless asked for.
    pub embedding: Vec<f32>,
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
    /// Pages that nobody holds, those that still know something included.
    pub free_blocks: usize,
    /// Pages that nobody holds but that know the beginning of a past sequence.
    pub cached_blocks: usize,
    /// Pages in all.
    pub total_blocks: usize,
    /// Steps run since the start.
    pub steps: u64,
    /// Tokens run through the model since the start, prompts and recomputation included.
    pub tokens_run: u64,
    /// Sequences preempted since the start.
    pub preemptions: u64,
    /// Tokens guessed since the start.
    pub guessed_tokens: u64,
    /// Of those, the right ones.
    pub accepted_tokens: u64,
}

impl Sum for EngineStats {
    /// Of several engines together.
    fn sum<I: Iterator<Item = EngineStats>>(all: I) -> EngineStats {
        all.fold(EngineStats::default(), |a, b| EngineStats {
            running: a.running + b.running,
            waiting: a.waiting + b.waiting,
            free_blocks: a.free_blocks + b.free_blocks,
            cached_blocks: a.cached_blocks + b.cached_blocks,
            total_blocks: a.total_blocks + b.total_blocks,
            steps: a.steps + b.steps,
            tokens_run: a.tokens_run + b.tokens_run,
            preemptions: a.preemptions + b.preemptions,
            guessed_tokens: a.guessed_tokens + b.guessed_tokens,
            accepted_tokens: a.accepted_tokens + b.accepted_tokens,
        })
    }
}

/// Continuous batching over a [`Runner`].
pub struct Engine<R: Runner = DecoderRunner> {
    runner: R,
    scheduler: Scheduler,
    drafter: Option<Box<dyn Drafter>>,
    limits: Limits,
    options: EngineOptions,
    next_id: u64,
    /// Events of cancelled sequences, handed out by the next step.
    pending: Vec<Event>,
    steps: u64,
    tokens_run: u64,
    guessed: u64,
    accepted: u64,
}

/// What a step gave, and where each segment's rows are in it: logits [n, V] or hidden states [n, H].
struct Outputs {
    all: Vec<f32>,
    of: Vec<Result<Range<usize>, EngineError>>,
}

impl<R: Runner> Engine<R> {
    /// Runs one batch and returns what happened to its sequences. Does nothing when there is
    /// nothing to do.
    pub fn step(&mut self) -> Vec<Event> {
        self.draft();
        let step = self.schedule();
        self.execute(step)
    }

    /// What comes before a step: the draft model guesses, where there is one.
    pub(crate) fn draft(&mut self) {
        if let Some(drafter) = &mut self.drafter {
            self.scheduler.draft(drafter.as_mut());
        }
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
            let outputs = self.run(&step);
            let started = step.started.iter();
            events.extend(started.map(|&(id, cached_tokens)| Event::Started { id, cached_tokens }));
            self.postprocess(&step, outputs, &mut events);
        }
        events
    }

    /// Runs the batch; meanwhile the grammars say what may follow. When the whole batch fails, every
    /// segment is run alone, so that only the guilty ones fail.
    fn run(&mut self, step: &Step) -> Outputs {
        self.steps += 1;
        self.tokens_run += step.batch.tokens.len() as u64;
        let Engine { runner, scheduler, .. } = self;
        let mut constrained: Vec<&mut Sequence> = work(&mut scheduler.running, step)
            .filter(|(sequence, scheduled, _)| {
                sequence.is_constrained() && !scheduled.rows.is_empty()
            })
            .map(|(sequence, ..)| sequence)
            .collect();
        let hidden = step.hidden();
        let whole = match constrained.is_empty() {
            true => run_checked(runner, &step.batch, &hidden),
            false => std::thread::scope(|scope| {
                scope.spawn(|| constrained.iter_mut().for_each(|sequence| sequence.prepare()));
                run_checked(runner, &step.batch, &hidden)
            }),
        };
        match whole {
            Ok((mut all, states)) => {
                let vocab = self.limits.vocab_size;
                let width = states.len() / hidden.len().max(1);
                let (mut logit, mut state) = (0, all.len());
                all.extend(states);
                let place = |s: &Scheduled| {
                    let (next, width) =
                        if s.embeds { (&mut state, width) } else { (&mut logit, vocab) };
                    let start = *next;
                    *next += s.rows.len() * width;
                    Ok(start..*next)
                };
                Outputs { all, of: step.scheduled.iter().map(place).collect() }
            }
            Err(error) if step.scheduled.len() == 1 => {
                Outputs { all: Vec::new(), of: vec![Err(error)] }
            }
            Err(_) => {
                let mut all = Vec::new();
                let alone = |(i, s): (usize, &Scheduled)| {
                    let hidden: Vec<usize> = (0..s.rows.len()).filter(|_| s.embeds).collect();
                    let (logits, states) = run_checked(&mut self.runner, &step.alone(i), &hidden)?;
                    let start = all.len();
                    all.extend(logits);
                    all.extend(states);
                    Ok(start..all.len())
                };
                let of = step.scheduled.iter().enumerate().map(alone).collect();
                Outputs { all, of }
            }
        }
    }

    /// Notes what is computed, chooses tokens where rows of logits came back, lets finished and failed
    /// sequences go.
    fn postprocess(&mut self, step: &Step, outputs: Outputs, events: &mut Vec<Event>) {
        let (limits, runner) = (self.limits, &self.runner);
        let work = work(&mut self.scheduler.running, step).zip(outputs.of);
        let work = work.map(|((sequence, scheduled, len), range)| {
            let range = match runner.adapter_generation(sequence.adapter) {
                Some(generation) if generation == sequence.generation => range,
                _ => Err(gone(sequence.adapter)),
            };
            (sequence, scheduled, len, range)
        });
        // Choosing looks at V numbers, often more than once: side by side for several sequences.
        let work: Vec<_> = work.collect();
        let advances: Vec<Result<Advance, EngineError>> = work
            .into_par_iter()
            .map(|(sequence, scheduled, len, range)| {
                sequence.advance(len, &scheduled.guesses, &outputs.all[range?], &limits)
            })
            .collect();
        let mut ended = Vec::new();
        for ((scheduled, advanced), index) in step.scheduled.iter().zip(advances).zip(0..) {
            let id = scheduled.id;
            let advance = match advanced {
                Ok(advance) => advance,
                Err(error) => {
                    ended.push(Event::Failed { id, error });
                    continue;
                }
            };
            self.guessed += scheduled.guesses.len() as u64;
            self.accepted += advance.accepted as u64;
            self.note(index, advance.tokens.len());
            if !advance.prompt.is_empty() {
                events.push(Event::Prompt { id, logprobs: advance.prompt });
            }
            let tokens = advance.tokens.into_iter();
            events.extend(tokens.map(|(token, logprobs)| Event::Token { id, token, logprobs }));
            let embedding = advance.embedding;
            events.extend(embedding.map(|embedding| Event::Embedding { id, embedding }));
            let usage = self.scheduler.running[index].usage();
            ended.extend(advance.finished.map(|reason| Event::Finished { id, reason, usage }));
        }
        for event in ended {
            self.scheduler.remove(event.id());
            events.push(event);
        }
    }

    /// The running sequence at `index` has come further, by so many chosen tokens.
    fn note(&mut self, index: usize, chosen: usize) {
        let len = self.scheduler.running[index].tokens.len();
        match self.runner.recompute_beyond() {
            Some(most) if len > most && len <= most + chosen => self.scheduler.restart(index),
            _ => self.scheduler.remember(index),
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
        let vocab_size = runner.vocab_size();
        let context_len = match runner.whole_prompts() {
            true => runner.context_len().min(options.max_batch_tokens),
            false => runner.context_len(),
        };
        let limits = Limits::new(context_len, options.num_blocks, vocab_size);
        let bounds = Bounds {
            limits,
            max_batch_tokens: options.max_batch_tokens,
            max_num_seqs: options.max_num_seqs,
            max_logit_rows: (options.max_logit_bytes / (4 * vocab_size).max(1))
                .max(options.max_num_seqs),
            num_speculative_tokens: options.num_speculative_tokens,
            recompute_beyond: runner.recompute_beyond(),
            whole_prompts: runner.whole_prompts(),
        };
        Ok(Engine {
            limits,
            scheduler: Scheduler::new(options.num_blocks, options.prefix_caching, bounds),
            runner,
            drafter: None,
            options,
            next_id: 0,
            pending: Vec::new(),
            steps: 0,
            tokens_run: 0,
            guessed: 0,
            accepted: 0,
        })
    }

    /// Has `drafter` guess [`EngineOptions::num_speculative_tokens`] at most where few sequences run,
    /// before what followed earlier is looked up. Changes no text.
    pub fn with_drafter(self, drafter: impl Drafter + 'static) -> Engine<R> {
        Engine { drafter: Some(Box::new(drafter)), ..self }
    }

    /// Queues a request. Its first tokens come with a later [`Engine::step`].
    ///
    /// # Errors
    /// [`EngineError::QueueFull`], [`EngineError::AdapterGone`], or the rule of [`Limits::check`] that
    /// it breaks.
    pub fn add(&mut self, request: SequenceRequest) -> Result<SequenceId, EngineError> {
        self.limits.check(&request)?;
        if self.scheduler.waiting.len() >= self.options.max_queue {
            return Err(EngineError::QueueFull { limit: self.options.max_queue });
        }
        let generation = self.runner.adapter_generation(request.adapter);
        let generation = generation.ok_or_else(|| gone(request.adapter))?;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.scheduler.add(Sequence::new(id, request, generation, self.limits.vocab_size));
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
            cached_blocks: self.scheduler.blocks.num_idle(),
            total_blocks: self.scheduler.blocks.num_blocks(),
            steps: self.steps,
            tokens_run: self.tokens_run,
            preemptions: self.scheduler.preemptions,
            guessed_tokens: self.guessed,
            accepted_tokens: self.accepted,
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
        let runner = DecoderRunner::new(decoder, options.num_blocks, options.kv_cache_dtype);
        Engine::with_runner(runner, options)
    }

    /// The adapters that requests can name by slot. A sequence whose slot is emptied fails at its
    /// next step; the others go on.
    pub fn adapters_mut(&mut self) -> &mut AdapterSet {
        &mut self.runner.adapters
    }
}

impl Engine<EncoderRunner> {
    /// An engine over an encoder: it makes embeddings of texts of at most `options.max_batch_tokens`
    /// tokens, and knows no beginnings.
    ///
    /// # Errors
    /// [`EngineError::Options`] naming the option.
    pub fn encoding(
        encoder: Arc<Encoder>,
        options: EngineOptions,
    ) -> Result<Engine<EncoderRunner>, EngineError> {
        options.validate()?;
        // The keys of a beginning are not the same in another text.
        let options = EngineOptions { prefix_caching: false, ..options };
        Engine::with_runner(EncoderRunner::new(encoder, options.num_blocks), options)
    }
}

/// An answer being collected by [`Engine::generate`].
#[derive(Default)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    prompt_logprobs: Vec<TokenLogprobs>,
    embedding: Vec<f32>,
    end: Option<Result<(FinishReason, Usage), EngineError>>,
}

impl Answer {
    fn note(&mut self, event: Event) {
        match event {
            Event::Token { token, logprobs, .. } => {
                self.tokens.push(token);
                self.logprobs.extend(logprobs);
            }
            Event::Prompt { logprobs, .. } => self.prompt_logprobs.extend(logprobs),
            Event::Embedding { embedding, .. } => self.embedding = embedding,
            Event::Started { .. } => {}
            Event::Finished { reason, usage, .. } => self.end = Some(Ok((reason, usage))),
            Event::Failed { error, .. } => self.end = Some(Err(error)),
        }
    }

    fn completion(self) -> Result<Completion, EngineError> {
        let (reason, usage) = self.end.unwrap_or(Err(EngineError::Stopped))?;
        let Answer { tokens, logprobs, prompt_logprobs, embedding, .. } = self;
        Ok(Completion { tokens, logprobs, prompt_logprobs, embedding, reason, usage })
    }
}

fn gone(adapter: Option<usize>) -> EngineError {
    EngineError::AdapterGone { slot: adapter.unwrap_or_default() }
}

/// The sequences of a step with what is scheduled of each and how many tokens that is. They are the
/// first of those running, because nothing comes or goes between a step's schedule and its end.
fn work<'a>(
    running: &'a mut [Sequence],
    step: &'a Step,
) -> impl Iterator<Item = (&'a mut Sequence, &'a Scheduled, usize)> {
    let work = running.iter_mut().zip(&step.scheduled).zip(&step.batch.segments);
    work.map(|((sequence, scheduled), segment)| {
        assert_eq!(sequence.id, scheduled.id, "a sequence came or went during a step");
        (sequence, scheduled, segment.len)
    })
}

/// Runs `batch`, the rows at `hidden` without logits; a panic and a result of the wrong length are errors like any other. After a
/// panic the runner is used again: pages are written before they are read by whoever holds them
/// next, and nothing else in it changes during a run.
fn run_checked<R: Runner>(
    runner: &mut R,
    batch: &Batch,
    hidden: &[usize],
) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
    let outputs = match catch_unwind(AssertUnwindSafe(|| runner.run_hidden(batch, hidden))) {
        Ok(result) => result.map_err(|e| EngineError::Forward(e.to_string()))?,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            return Err(EngineError::Forward(format!("panic: {}", text.unwrap_or("unknown"))));
        }
    };
    let (logits, states) = &outputs;
    let expected = (batch.logit_rows.len() - hidden.len()) * runner.vocab_size();
    let whole = states.len().checked_rem(hidden.len()).unwrap_or(states.len()) == 0;
    if logits.len() != expected || !whole {
        let (logits, states, rows) = (logits.len(), states.len(), hidden.len());
        return Err(EngineError::Forward(format!(
            "{logits} logits, expected {expected}; {states} values in {rows} hidden states"
        )));
    }
    Ok(outputs)
}
