//! Perplexity per reference.

use super::likelihood::weighed;
use super::{Corpus, Metric, Score};

/// e to the mean loss of a whole reference, `perplexity` of lm-evaluation-harness: for references of one
/// word it is the perplexity per word. Lower is better.
pub(super) static METRIC: Metric = Metric {
    name: "perplexity",
    what: "How surprised the model is by a whole reference: e to the mean of their losses. Lower is better.",
    reads_as: "perplexity",
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

/// Every reference weighs the same.
fn weight(_: &str) -> f64 {
    1.0
}

fn value(sums: &[f64]) -> f64 {
    (-sums[0] / sums[1]).exp()
}
