//! Perplexity per word.

use super::Metric;
use super::likelihood::{LossPer, loss_metric};

/// e to the loss per word of the references, `word_perplexity` of lm-evaluation-harness. Words are what
/// space parts. Lower is better.
pub(super) static METRIC: Metric = loss_metric::<PerWord>(
    "word_perplexity",
    "How surprised the model is by the references, per word. Lower is better.",
    "perplexity per word",
);

struct PerWord;

impl LossPer for PerWord {
    /// Parts between spaces: as Python's re.split(r"\s+", text) counts, space at an end has an empty
    /// word behind it.
    fn weight(text: &str) -> f64 {
        let mut words = 1;
        let mut within = false;
        for c in text.chars() {
            let space = super::python::is_space(c);
            words += usize::from(space && !within);
            within = space;
        }
        words as f64
    }
}
