//! Perplexity per byte.

use super::Metric;
use super::likelihood::{LossPer, loss_metric};

/// e to the loss per byte of the references in UTF-8, `byte_perplexity` of lm-evaluation-harness. Lower is
/// better.
pub(super) static METRIC: Metric = loss_metric::<PerByte>(
    "byte_perplexity",
    "How surprised the model is by the references, per byte. Lower is better.",
    "perplexity per byte",
);

struct PerByte;

impl LossPer for PerByte {
    fn weight(text: &str) -> f64 {
        text.len() as f64
    }
}
