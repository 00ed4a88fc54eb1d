//! A fake model for scheduling tests, and its answers computed without any engine.

// Each test file uses its own part of this.
#![allow(dead_code)]

use engine::{
    Constraint, EngineError, FinishReason, Grammar, GrammarRef, Limits, Runner, Sampler,
    SequenceRequest, TokenLogprobs, TokenSet,
};
use model::{BLOCK_SIZE, Batch, ModelError, Pooling};
use std::sync::Arc;

/// V of the fake model.
pub(crate) const VOCAB: usize = 32;
/// H of the fake model.
pub(crate) const HIDDEN: usize = 3;
/// Generated tokens are below this; the others have a logit of -1e4.
pub(crate) const ORDINARY: u32 = 28;
/// A prompt with this token panics in the forward.
pub(crate) const PANIC: u32 = 29;
/// A prompt with this token gives NaN logits.
pub(crate) const NAN: u32 = 30;
/// A prompt with this token makes the forward fail.
pub(crate) const FAIL: u32 = 31;

/// Its logits are a hash of the adapter and all tokens up to the row, **as read back from the
/// pages**: a wrong page table, a stale page or a page owned twice changes the text.
pub(crate) struct FakeRunner {
    /// [pages * 16] tokens.
    pages: Vec<u32>,
    context_len: usize,
    /// Longest batch seen, tokens.
    pub(crate) longest: usize,
    /// Most segments seen in one batch.
    pub(crate) widest: usize,
}

impl FakeRunner {
    pub(crate) fn new(num_blocks: usize, context_len: usize) -> FakeRunner {
        FakeRunner {
            pages: vec![u32::MAX; num_blocks * BLOCK_SIZE],
            context_len,
            longest: 0,
            widest: 0,
        }
    }
}

impl Runner for FakeRunner {
    fn run(&mut self, batch: &Batch) -> Result<Vec<f32>, ModelError> {
        self.run_hidden(batch, &[]).map(|(logits, _)| logits)
    }
    /// A hidden state is the beginning of its logits.
    fn run_hidden(
        &mut self,
        batch: &Batch,
        hidden: &[usize],
    ) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
        self.longest = self.longest.max(batch.tokens.len());
        self.widest = self.widest.max(batch.segments.len());
        assert_eq!(batch.tokens.len(), batch.segments.iter().map(|s| s.len).sum::<usize>());
        // Pages that are written have one holder; those that are only read may have many.
        let mut readers = vec![0usize; self.num_blocks()];
        for segment in &batch.segments {
            segment.pages.iter().for_each(|&page| readers[page as usize] += 1);
        }
        let (mut logits, mut states) = (Vec::new(), Vec::new());
        let mut start = 0;
        for segment in &batch.segments {
            assert!(segment.len > 0, "empty segment");
            for &page in &segment.pages[segment.past / BLOCK_SIZE..] {
                assert_eq!(readers[page as usize], 1, "page {page} is written and has two holders");
            }
            let slot = |pos: usize| {
                segment.pages[pos / BLOCK_SIZE] as usize * BLOCK_SIZE + pos % BLOCK_SIZE
            };
            for i in 0..segment.len {
                let token = batch.tokens[start + i];
                if token == FAIL {
                    return Err(ModelError::Batch("poisoned".into()));
                }
                assert!(token != PANIC, "poisoned");
                self.pages[slot(segment.past + i)] = token;
                if let Ok(place) = batch.logit_rows.binary_search(&(start + i)) {
                    let prefix: Vec<u32> =
                        (0..=segment.past + i).map(|pos| self.pages[slot(pos)]).collect();
                    let row = fake_logits(segment.adapter, &prefix);
                    match hidden.contains(&place) {
                        true => states.extend_from_slice(&row[..HIDDEN]),
                        false => logits.extend(row),
                    }
                }
            }
            start += segment.len;
        }
        Ok((logits, states))
    }
    fn num_blocks(&self) -> usize {
        self.pages.len() / BLOCK_SIZE
    }
    fn vocab_size(&self) -> usize {
        VOCAB
    }
    fn context_len(&self) -> usize {
        self.context_len
    }
}

/// Logits [V] after `prefix`: FNV-1a of adapter and tokens, spread over -2..2.
fn fake_logits(adapter: Option<usize>, prefix: &[u32]) -> Vec<f32> {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |v: u64| hash = (hash ^ v).wrapping_mul(0x0100_0000_01b3);
    eat(adapter.map_or(0, |a| a as u64 + 1));
    prefix.iter().for_each(|&t| eat(u64::from(t)));
    (0..VOCAB as u64)
        .map(|i| {
            if prefix.contains(&NAN) {
                return f32::NAN;
            }
            let x = (hash ^ (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
                .wrapping_mul(0xff51_afd7_ed55_8ccd);
            if i >= u64::from(ORDINARY) {
                return -1e4;
            }
            // Mostly round in a circle of seven, so that guesses are often right, not always.
            let next = (prefix.last().copied().unwrap_or(0) + 1) % 7;
            let turn = if i == u64::from(next) { 2.5 } else { 0.0 };
            (x >> 40) as f32 / (1u64 << 22) as f32 - 2.0 + turn
        })
        .collect()
}

/// The pooled states of a request's prompt.
fn embedding(request: &SequenceRequest, pooling: Pooling) -> Result<Vec<f32>, EngineError> {
    let len = request.prompt.len();
    let positions = match pooling {
        Pooling::Mean => 0..len,
        Pooling::Cls => 0..1,
        Pooling::Last => len - 1..len,
    };
    let count = positions.len() as f64;
    let mut sum = [0.0; HIDDEN];
    for position in positions {
        let row = fake_logits(request.adapter, &request.prompt[..=position]);
        if row.iter().any(|x| x.is_nan()) {
            return Err(EngineError::NonFinite { position });
        }
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x));
    }
    Ok(sum.iter().map(|sum| (sum / count) as f32).collect())
}

/// Tokens whose parity alternates, beginning with even ones; it may end after [`LEAST`] and must after
/// [`MOST`].
pub(crate) struct Alternating {
    /// What happens before its third token.
    pub(crate) trouble: Trouble,
}

/// What goes wrong with a grammar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Trouble {
    None,
    Error,
    Panic,
}

const LEAST: usize = 3;
const MOST: usize = 9;

struct Place {
    trouble: Trouble,
    len: usize,
}

impl Grammar for Alternating {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(Place { trouble: self.trouble, len: 0 })
    }
}

impl Constraint for Place {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        assert!(allowed.is_empty());
        if self.len == 2 {
            assert!(self.trouble != Trouble::Panic, "a broken grammar");
            if self.trouble == Trouble::Error {
                return Err("too much work".into());
            }
        }
        if self.len < MOST {
            let tokens = (0..ORDINARY).filter(|t| *t as usize % 2 == self.len % 2);
            tokens.for_each(|t| allowed.insert(t));
        }
        Ok(())
    }
    fn accept(&mut self, token: u32) -> Result<(), String> {
        assert_eq!(token as usize % 2, self.len % 2);
        self.len += 1;
        Ok(())
    }
    fn may_end(&mut self) -> bool {
        self.len >= LEAST
    }
    fn must_end(&mut self) -> bool {
        self.len >= MOST
    }
}

pub(crate) fn grammar(trouble: Trouble) -> GrammarRef {
    GrammarRef(Arc::new(Alternating { trouble }))
}

/// What a request gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) prompt_logprobs: Vec<TokenLogprobs>,
    pub(crate) embedding: Vec<f32>,
}

/// What the request gives alone, without engine, pages, guesses or batch.
pub(crate) fn alone(
    request: &SequenceRequest,
    limits: &Limits,
) -> Result<(Answer, FinishReason), EngineError> {
    limits.check(request)?;
    let params = &request.params;
    if let Some(bad) = request.prompt.iter().find(|&&t| t == FAIL || t == PANIC) {
        return Err(EngineError::Forward(format!("{bad}")));
    }
    if let Some(pooling) = request.pooling {
        let embedding = embedding(request, pooling)?;
        return Ok((Answer { embedding, ..Answer::default() }, FinishReason::Stop));
    }
    let mut sampler = Sampler::new(params, &request.prompt);
    let mut constraint = request.grammar.as_ref().map(|g| g.0.start());
    let mut tokens = request.prompt.clone();
    let mut answer = Answer::default();
    if params.prompt_logprobs {
        for i in 1..tokens.len() {
            let logits = fake_logits(request.adapter, &tokens[..i]);
            if logits.iter().any(|l| l.is_nan()) {
                return Err(EngineError::NonFinite { position: i });
            }
            let top = params.logprobs.unwrap_or(0);
            answer.prompt_logprobs.push(TokenLogprobs::new(&logits, tokens[i], top));
        }
    }
    if params.max_tokens == 0 {
        return Ok((answer, FinishReason::Length));
    }
    loop {
        let mut allowed = TokenSet::new(VOCAB);
        if let Some(constraint) = &mut constraint {
            let asked = std::panic::AssertUnwindSafe(|| constraint.allowed(&mut allowed));
            let asked = std::panic::catch_unwind(asked).unwrap_or_else(|_| Err("panic".into()));
            asked.map_err(EngineError::Grammar)?;
            if constraint.may_end() {
                params.stop_ids.iter().for_each(|&id| allowed.insert(id));
            }
        }
        let logits = fake_logits(request.adapter, &tokens);
        let sampled = sampler
            .sample(&logits, constraint.as_ref().map(|_| &allowed))
            .ok_or(EngineError::NonFinite { position: tokens.len() })?;
        tokens.push(sampled.token);
        if params.stop_ids.contains(&sampled.token) && !params.ignore_eos {
            return Ok((answer, FinishReason::Stop));
        }
        answer.tokens.push(sampled.token);
        answer.logprobs.extend(sampled.logprobs);
        if let Some(constraint) = &mut constraint {
            constraint.accept(sampled.token).map_err(EngineError::Grammar)?;
            if constraint.must_end() {
                return Ok((answer, FinishReason::Stop));
            }
        }
        if answer.tokens.len() == params.max_tokens
            || tokens.len() == limits.context_len.min(limits.cache_tokens)
        {
            return Ok((answer, FinishReason::Length));
        }
    }
}
