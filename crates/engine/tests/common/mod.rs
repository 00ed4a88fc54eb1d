//! A fake model for scheduling tests, and its answers computed without any engine.

// Each test file uses its own part of this.
#![allow(dead_code)]

use engine::{EngineError, FinishReason, Limits, Runner, Sampler, SequenceRequest};
use model::{BLOCK_SIZE, Batch, ModelError};

/// V of the fake model.
pub(crate) const VOCAB: usize = 32;
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
        self.longest = self.longest.max(batch.tokens.len());
        self.widest = self.widest.max(batch.segments.len());
        assert_eq!(batch.tokens.len(), batch.segments.iter().map(|s| s.len).sum::<usize>());
        let mut owned = vec![false; self.num_blocks()];
        let mut logits = Vec::new();
        let mut start = 0;
        for segment in &batch.segments {
            assert!(segment.len > 0, "empty segment");
            for &page in &segment.pages {
                assert!(
                    !std::mem::replace(&mut owned[page as usize], true),
                    "page {page} owned twice"
                );
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
                if batch.logit_rows.contains(&(start + i)) {
                    let prefix: Vec<u32> =
                        (0..=segment.past + i).map(|pos| self.pages[slot(pos)]).collect();
                    logits.extend(fake_logits(segment.adapter, &prefix));
                }
            }
            start += segment.len;
        }
        Ok(logits)
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
                -1e4
            } else {
                (x >> 40) as f32 / (1u64 << 22) as f32 - 2.0
            }
        })
        .collect()
}

/// What the request gives alone, without engine, pages or batch.
pub(crate) fn alone(
    request: &SequenceRequest,
    limits: &Limits,
) -> Result<(Vec<u32>, FinishReason), EngineError> {
    limits.check(request)?;
    let params = &request.params;
    if let Some(bad) = request.prompt.iter().find(|&&t| t == FAIL || t == PANIC) {
        return Err(EngineError::Forward(format!("{bad}")));
    }
    let mut sampler = Sampler::new(params);
    let mut tokens = request.prompt.clone();
    let mut out = Vec::new();
    loop {
        let sampled = sampler
            .sample(&fake_logits(request.adapter, &tokens))
            .ok_or(EngineError::NonFinite { position: tokens.len() })?;
        tokens.push(sampled.token);
        if params.stop_ids.contains(&sampled.token) && !params.ignore_eos {
            return Ok((out, FinishReason::Stop));
        }
        out.push(sampled.token);
        if out.len() == params.max_tokens
            || tokens.len() == limits.context_len.min(limits.cache_tokens)
        {
            return Ok((out, FinishReason::Length));
        }
    }
}
