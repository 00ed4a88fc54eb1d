//! Bits per byte.

use super::likelihood::weighed;
use super::{Corpus, Metric, Score};

/// The references' losses in bits over their bytes in UTF-8, `bits_per_byte` of lm-evaluation-harness: it
/// compares models whatever their tokenizers. Lower is better.
pub(super) static METRIC: Metric = Metric {
    name: "bits_per_byte",
    what: "Bits that the model would need per byte of the references. Lower is better.",
    reads_as: "bits per byte",
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
    -sums[0] / sums[1] / std::f64::consts::LN_2
}
