//! Perplexity per byte.

use super::likelihood::weighed;
use super::{Corpus, Metric, Score};

/// e to the loss per byte of the references in UTF-8, `byte_perplexity` of lm-evaluation-harness. Lower is
/// better.
pub(super) static METRIC: Metric = Metric {
    name: "byte_perplexity",
    what: "How surprised the model is by the references, per byte. Lower is better.",
    reads_as: "perplexity per byte",
    score: Score::Item(&|item, answer| {
        let likelihood = weighed(answer)?;
        Ok(value(&[likelihood.sum, weight(&item.reference)]))
    }),
    corpus: Some(Corpus {
        parts: &|item, answer| Ok(vec![weighed(answer)?.sum, weight(&item.reference)]),
        value,
    }),
    check_reference: |reference| match weight(reference) {
        weight if weight > 0.0 => Ok(()),
        _ => Err("it is empty".to_owned()),
    },
    ..Metric::LESS_OF
};

fn weight(text: &str) -> f64 {
    text.len() as f64
}

fn value(sums: &[f64]) -> f64 {
    (-sums[0] / sums[1]).exp()
}
