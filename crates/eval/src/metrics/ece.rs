//! Expected calibration error.

use super::likelihood::{choices, first_largest, probabilities};
use super::{Corpus, Metric, Score};
use crate::candidate::Answer;
use crate::item::EvalItem;

/// Bins of equal width for the confidence.
const BINS: usize = 10;

/// The mean distance between how sure the model is of its choice and how often it is right, over ten
/// bins of equal width (arXiv 1706.04599, equation 3; the upper edge belongs to a bin). The score of an
/// example is the distance of its confidence from 1 or 0; only the value of all of them is the error.
pub(super) static METRIC: Metric = Metric {
    name: "ece",
    what: "How far the model's confidence in its choices is from how often it is right (expected calibration error, ten bins). Lower is better.",
    reads_as: "calibration error",
    score: Score::Item(&|item, answer| {
        confidence(item, answer).map(|(confidence, right)| (confidence - right).abs())
    }),
    corpus: Some(Corpus { parts: &parts, value }),
    ..Metric::LESS_OF
};

/// Probability of the likeliest choice, and whether it is right; a failed answer was sure and wrong.
fn confidence(item: &EvalItem, answer: &Answer) -> Result<(f64, f64), String> {
    if answer.error.is_some() {
        return Ok((1.0, 0.0));
    }
    let (likelihoods, gold) = choices(item, answer)?;
    let probabilities = probabilities(likelihoods);
    let chosen = first_largest(probabilities.iter().copied()).unwrap_or_default();
    Ok((probabilities[chosen], f64::from(chosen == gold)))
}

/// For each bin: examples, their confidence, how many are right.
fn parts(item: &EvalItem, answer: &Answer) -> Result<Vec<f64>, String> {
    let (confidence, right) = confidence(item, answer)?;
    let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
    let mut parts = vec![0.0; 3 * BINS];
    parts[3 * bin..3 * bin + 3].copy_from_slice(&[1.0, confidence, right]);
    Ok(parts)
}

fn value(sums: &[f64]) -> f64 {
    let (mut gap, mut n) = (0.0, 0.0);
    for bin in sums.chunks_exact(3) {
        gap += (bin[1] - bin[2]).abs();
        n += bin[0];
    }
    if n > 0.0 { gap / n } else { 0.0 }
}
