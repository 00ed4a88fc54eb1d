//! What a training costs in general ability: a small text that has nothing to do with the task is read
//! by the base and by what was trained.
//!
//! An adapter leaves its base as it was, so that both are read at the end, adapter off and adapter on,
//! and there is nothing to keep or to lose on the way. A base that is trained itself is gone at the end:
//! its losses and logits are taken before the first step (after a resume from the reloaded base, so
//! with the same bits) and kept in memory. To reload it at the end instead would need its files, which
//! a new model has not, and a second model beside the trained one; to keep its weights would cost a
//! fifth more memory. Where the vocabulary is large, the logits of evenly spaced tokens are kept: the
//! divergence is then exact on fewer tokens, and the losses are still those of all.

use crate::divergence::{Divergence, Reader, log_sum};
use crate::error::TrainError;
use model::ModelError;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows of logits held at once, of each model.
const LOGIT_ROWS: usize = 64;
/// Most bytes of a base's logits that are kept while it is trained itself: a vocabulary of 32,000 keeps
/// 524 tokens, one of 128,000 keeps 131, beside gigabytes of optimizer state.
const KEPT_BYTES: usize = 64 << 20;
/// Share of intervals that contain the true difference, as elsewhere in Metier.
const CONFIDENCE: f64 = 0.95;

/// A text to tell by what was forgotten; empty measures nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GeneralText {
    /// What it is, for people.
    pub what: String,
    /// Its pieces, each read on its own.
    pub pieces: Vec<Piece>,
}

/// A piece of a general text.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Token ids [T].
    pub ids: Vec<u32>,
    /// For each id, whether foretelling it counts; the first one cannot be foretold.
    pub mask: Vec<bool>,
    /// Bytes of text that the counted tokens spell.
    pub bytes: usize,
}

impl Piece {
    /// Positions of the tokens that count.
    fn counted(&self) -> impl Iterator<Item = usize> {
        (1..self.ids.len()).filter(|&i| self.mask[i])
    }

    /// Positions that foretell a token that counts, and these tokens.
    fn foretold(&self) -> (Vec<usize>, Vec<usize>) {
        self.counted().map(|at| (at - 1, self.ids[at] as usize)).unzip()
    }
}

impl GeneralText {
    /// Bytes that are kept of it while a base with a vocabulary of `vocab_size` is trained itself.
    pub fn kept_bytes(&self, vocab_size: usize) -> usize {
        let tokens = self.tokens();
        let every = Kept::every(tokens, vocab_size);
        tokens.div_ceil(every) * vocab_size * size_of::<f32>() + tokens * size_of::<f64>()
    }

    fn tokens(&self) -> usize {
        self.pieces.iter().map(|piece| piece.counted().count()).sum()
    }
}

/// How a general text is foretold before and after a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forgetting {
    /// What was read, for people.
    pub text: String,
    /// Optimizer steps of the weights that were measured: those that are saved.
    pub step: u64,
    /// Tokens counted.
    pub tokens: u64,
    /// Pieces of text that the interval is over.
    pub pieces: u64,
    /// Mean loss of the base, nats per token.
    pub loss_before: f64,
    /// Mean loss of what was trained, nats per token.
    pub loss_after: f64,
    /// 95 % interval of the difference of the two, paired by piece; None for a single piece.
    pub difference_interval: Option<[f64; 2]>,
    /// The loss of the base in bits per byte of the counted text; None where that has none.
    pub bits_per_byte_before: Option<f64>,
    /// The loss of what was trained in bits per byte.
    pub bits_per_byte_after: Option<f64>,
    /// Mean KL(base || trained) over the whole vocabulary, nats per token.
    pub kl: f64,
    /// Tokens that the divergence is over.
    pub kl_tokens: u64,
}

impl Forgetting {
    /// How much worse the text is foretold, nats per token.
    pub fn rise(&self) -> f64 {
        self.loss_after - self.loss_before
    }

    /// The numbers in one line.
    pub fn sentence(&self) -> String {
        let interval = self.difference_interval.map_or(String::new(), |[lo, hi]| {
            format!(" ({:+.4}, 95 % interval {lo:+.4} to {hi:+.4})", self.rise())
        });
        let bits = match (self.bits_per_byte_before, self.bits_per_byte_after) {
            (Some(before), Some(after)) => format!(", {before:.3} -> {after:.3} bits per byte"),
            _ => String::new(),
        };
        let part = match self.kl_tokens == self.tokens {
            true => String::new(),
            false => format!(" (on {} of them)", self.kl_tokens),
        };
        format!(
            "{}, {} tokens: loss {:.4} -> {:.4}{interval}{bits}, KL from the base {:.4} per token{part}",
            self.text, self.tokens, self.loss_before, self.loss_after, self.kl
        )
    }
}

/// What a base that is trained itself makes of the text.
pub(crate) struct Kept {
    /// Loss of each counted token, nats.
    losses: Vec<f64>,
    /// Logits [K, V] of every so many of them, from the first.
    logits: Vec<f32>,
    every: usize,
}

impl Kept {
    /// Of how many counted tokens the logits of one are kept.
    fn every(tokens: usize, vocab_size: usize) -> usize {
        let most = (KEPT_BYTES / size_of::<f32>() / vocab_size).max(1);
        tokens.div_ceil(most).max(1)
    }

    /// None when cancelled before the end.
    pub(crate) fn of(
        text: &GeneralText,
        base: &Reader<'_>,
        cancel: &AtomicBool,
    ) -> Result<Option<Kept>, ModelError> {
        let v = base.decoder.config().vocab_size;
        let every = Kept::every(text.tokens(), v);
        let mut kept = Kept { losses: Vec::new(), logits: Vec::new(), every };
        for piece in &text.pieces {
            if cancel.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let (rows, targets) = piece.foretold();
            let hidden = base.hidden(&piece.ids, &rows)?;
            for start in (0..rows.len()).step_by(LOGIT_ROWS) {
                let chunk = start..rows.len().min(start + LOGIT_ROWS);
                let logits = base.logits(&hidden, chunk.clone());
                for (logits, &target) in logits.chunks_exact(v).zip(&targets[chunk]) {
                    if kept.losses.len().is_multiple_of(every) {
                        kept.logits.extend_from_slice(logits);
                    }
                    kept.losses.push(log_sum(logits) - f64::from(logits[target]));
                }
            }
        }
        Ok(Some(kept))
    }
}

/// Where the base's side of the comparison comes from.
pub(crate) enum Before<'a> {
    /// The base is there.
    Base(Reader<'a>),
    /// It was read before it was trained.
    Kept(&'a Kept),
}

/// Reads `text` with the base and with what was trained, `after`, whose weights are those of `step`. None
/// when cancelled before the end.
pub(crate) fn measure(
    text: &GeneralText,
    before: &Before<'_>,
    after: &Reader<'_>,
    step: u64,
    cancel: &AtomicBool,
) -> Result<Option<Forgetting>, TrainError> {
    let v = after.decoder.config().vocab_size;
    let mut by_piece: Vec<Divergence> = Vec::new();
    let mut seen = 0;
    for piece in &text.pieces {
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let (rows, targets) = piece.foretold();
        let hidden = after.hidden(&piece.ids, &rows)?;
        let base_hidden = match before {
            Before::Base(base) => base.hidden(&piece.ids, &rows)?,
            Before::Kept(_) => Vec::new(),
        };
        let mut sums = Divergence::default();
        for start in (0..rows.len()).step_by(LOGIT_ROWS) {
            let chunk = start..rows.len().min(start + LOGIT_ROWS);
            let logits = after.logits(&hidden, chunk.clone());
            let base_logits = match before {
                Before::Base(base) => base.logits(&base_hidden, chunk.clone()),
                Before::Kept(_) => Vec::new(),
            };
            // Side by side, and added up in the order of the tokens.
            let tokens: Vec<Divergence> = logits
                .par_chunks_exact(v)
                .zip(&targets[chunk.clone()])
                .enumerate()
                .map(|(i, (logits, &target))| {
                    let base = match before {
                        Before::Base(_) => &base_logits[i * v..(i + 1) * v],
                        Before::Kept(kept) => {
                            let n = seen + chunk.start + i;
                            if !n.is_multiple_of(kept.every) {
                                let loss = log_sum(logits) - f64::from(logits[target]);
                                let losses = [kept.losses[n], loss];
                                return Divergence { losses, tokens: 1, ..Divergence::default() };
                            }
                            let k = n / kept.every;
                            &kept.logits[k * v..(k + 1) * v]
                        }
                    };
                    Divergence::of(base, logits, target)
                })
                .collect();
            tokens.iter().for_each(|token| sums.add(token));
        }
        seen += targets.len();
        by_piece.push(sums);
    }
    let mut all = Divergence::default();
    by_piece.iter().for_each(|sums| all.add(sums));
    let n = all.tokens as f64;
    let bytes: usize = text.pieces.iter().map(|piece| piece.bytes).sum();
    let bits = |loss: f64| (bytes > 0).then(|| loss / std::f64::consts::LN_2 / bytes as f64);
    Ok(Some(Forgetting {
        text: text.what.clone(),
        step,
        tokens: all.tokens as u64,
        pieces: by_piece.len() as u64,
        loss_before: all.losses[0] / n,
        loss_after: all.losses[1] / n,
        difference_interval: interval(&by_piece),
        bits_per_byte_before: bits(all.losses[0]),
        bits_per_byte_after: bits(all.losses[1]),
        kl: all.kl / all.kl_tokens as f64,
        kl_tokens: all.kl_tokens as u64,
    }))
}

/// Student's interval of the difference per token, as a ratio of two sums over pieces (the tokens of a
/// piece are not independent, its pieces are): W. G. Cochran, Sampling Techniques, section 6.3.
fn interval(pieces: &[Divergence]) -> Option<[f64; 2]> {
    let k = pieces.len() as f64;
    let rise = |s: &Divergence| s.losses[1] - s.losses[0];
    let tokens: f64 = pieces.iter().map(|s| s.tokens as f64).sum();
    let mean = pieces.iter().map(rise).sum::<f64>() / tokens;
    let squares: f64 = pieces.iter().map(|s| (rise(s) - mean * s.tokens as f64).powi(2)).sum();
    let error = (k / (k - 1.0) * squares).sqrt() / tokens;
    let t = StudentsT::new(0.0, 1.0, k - 1.0).ok()?.inverse_cdf(0.5 + CONFIDENCE / 2.0);
    Some([mean - t * error, mean + t * error])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_of_the_paired_difference() {
        let piece = |before: f64, after: f64, tokens: usize| Divergence {
            losses: [before, after],
            tokens,
            ..Divergence::default()
        };
        // Pieces of one length: Student's interval of the means by piece, 0.1, 0.2 and 0.3, whose
        // standard deviation is 0.1; t with two degrees of freedom is 4.302653.
        let equal = [piece(30.0, 31.0, 10), piece(10.0, 12.0, 10), piece(20.0, 23.0, 10)];
        let [lo, hi] = interval(&equal).unwrap();
        let half = 4.302_653 * 0.1 / 3f64.sqrt();
        assert!((lo - (0.2 - half)).abs() < 1e-6 && (hi - (0.2 + half)).abs() < 1e-6, "{lo} {hi}");
        // Where each token costs the same, however long its piece, there is no doubt.
        let [lo, hi] = interval(&[piece(1.0, 2.0, 10), piece(5.0, 10.0, 50)]).unwrap();
        assert!((lo - 0.1).abs() < 1e-12 && (hi - 0.1).abs() < 1e-12);
        assert_eq!(interval(&[piece(1.0, 2.0, 10)]), None);
    }

    #[test]
    fn logits_are_kept_within_bounds() {
        for (tokens, vocab) in [(1200, 4096), (1200, 32_000), (2048, 256_000), (1, 1 << 30)] {
            let every = Kept::every(tokens, vocab);
            assert!(tokens.div_ceil(every) * vocab * 4 <= KEPT_BYTES.max(vocab * 4));
        }
        assert_eq!(Kept::every(1200, 4096), 1);
        assert_eq!(Kept::every(2048, 128_000), 16);
    }
}
