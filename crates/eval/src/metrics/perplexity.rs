//! Perplexity per reference.

use super::Metric;
use super::likelihood::{LossPer, loss_metric};

/// e to the mean loss of a whole reference, `perplexity` of lm-evaluation-harness: for references of one
/// word it is the perplexity per word. Lower is better.
pub(super) static METRIC: Metric = loss_metric::<PerReference>(
    "perplexity",
    "How surprised the model is by a whole reference: e to the mean of their losses. Lower is better.",
    "perplexity",
);

struct PerReference;

impl LossPer for PerReference {
    /// Every reference weighs the same.
    fn weight(_: &str) -> f64 {
        1.0
    }
}
