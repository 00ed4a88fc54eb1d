//! How far the predictions of two models are apart, on the same tokens.

use model::{AdapterSet, Batch, Decoder, KvCache, Memory, ModelError, Segment};
use std::ops::Range;

/// A model that reads one sequence at a time: a base, with an adapter or without.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    /// The base.
    pub decoder: &'a Decoder,
    /// Where its adapter is.
    pub adapters: &'a AdapterSet,
    /// Slot of the adapter; None reads the base alone.
    pub slot: Option<usize>,
}

impl Reader<'_> {
    /// Final hidden rows [rows, H] of `ids` [T] at the positions `rows`.
    ///
    /// # Errors
    /// [`ModelError::Batch`] when the sequence does not fit the model.
    pub fn hidden(&self, ids: &[u32], rows: &[usize]) -> Result<Vec<f32>, ModelError> {
        let blocks = ids.len().div_ceil(model::BLOCK_SIZE);
        let mut cache = KvCache::new(self.decoder.config(), blocks);
        let batch = Batch {
            tokens: ids.to_vec(),
            segments: vec![Segment {
                len: ids.len(),
                pages: (0..blocks as u32).collect(),
                adapter: self.slot,
                ..Segment::default()
            }],
            logit_rows: rows.to_vec(),
        };
        self.decoder.forward(&batch, self.adapters, Memory::Cache(&mut cache))
    }

    /// Logits [rows, V] of some of the hidden rows [N, H].
    pub fn logits(&self, hidden: &[f32], rows: Range<usize>) -> Vec<f32> {
        let h = self.decoder.config().hidden_size;
        self.decoder.logits(&hidden[rows.start * h..rows.end * h])
    }
}

/// Losses of two models and the divergence between them, summed over tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Cross-entropies of the first and of the second model, nats.
    pub losses: [f64; 2],
    /// KL(first || second) over the whole vocabulary, nats.
    pub kl: f64,
    /// Tokens counted.
    pub tokens: usize,
    /// Of these, tokens that the divergence is over.
    pub kl_tokens: usize,
}

impl Divergence {
    /// Of one token, `target`, from the logits [V] that foretell it.
    pub fn of(first: &[f32], second: &[f32], target: usize) -> Divergence {
        let (norm_a, norm_b) = (log_sum(first), log_sum(second));
        let kl = first.iter().zip(second).map(|(a, b)| {
            let (log_a, log_b) = (f64::from(*a) - norm_a, f64::from(*b) - norm_b);
            log_a.exp() * (log_a - log_b)
        });
        Divergence {
            losses: [norm_a - f64::from(first[target]), norm_b - f64::from(second[target])],
            kl: kl.sum(),
            tokens: 1,
            kl_tokens: 1,
        }
    }

    /// Adds another sum.
    pub fn add(&mut self, other: &Divergence) {
        self.losses[0] += other.losses[0];
        self.losses[1] += other.losses[1];
        self.kl += other.kl;
        self.tokens += other.tokens;
        self.kl_tokens += other.kl_tokens;
    }
}

/// ln of the sum of e to each logit.
pub(crate) fn log_sum(logits: &[f32]) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_and_loss() {
        // Probabilities 1/2, 1/2 against 1/4, 3/4.
        let logits = |p: [f64; 2]| p.map(|p| p.ln() as f32);
        let found = Divergence::of(&logits([0.5, 0.5]), &logits([0.25, 0.75]), 1);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        near(found.losses[0], 2f64.ln());
        near(found.losses[1], (4.0f64 / 3.0).ln());
        near(found.kl, 0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln());
    }
}
