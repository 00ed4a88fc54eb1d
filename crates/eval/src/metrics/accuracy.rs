//! Accuracy of multiple choice by log-likelihoods, under the rules of lm-evaluation-harness.

use super::likelihood::{choices, first_largest};
use crate::candidate::Answer;
use crate::item::EvalItem;

/// 1 when the right choice has the largest log-likelihood over `length` of its text (the first of
/// equal ones counts as the model's), else 0. A failed answer chose nothing. An example without
/// choices is right when its reference is what the model would have said itself, token for token.
pub(super) fn accuracy(
    item: &EvalItem,
    answer: &Answer,
    length: fn(&str) -> f64,
) -> Result<f64, String> {
    if answer.error.is_some() {
        return Ok(0.0);
    }
    if let ([], [one]) = (&item.choices[..], &answer.likelihoods[..]) {
        return Ok(f64::from(one.greedy));
    }
    let (likelihoods, gold) = choices(item, answer)?;
    let scores = likelihoods.iter().zip(&item.choices).map(|(l, choice)| l.sum / length(choice));
    Ok(f64::from(first_largest(scores) == Some(gold)))
}
