//! What metrics of likelihoods share: the likelihoods of the choices, and that of the one text that
//! was weighed.

use super::{Corpus, Metric, Score};
use crate::candidate::{Answer, Likelihood};
use crate::item::EvalItem;

const NONE: &str = "the candidate does not tell how likely texts are. hint: this metric is for local models and tasks of log-likelihoods";

/// The likelihoods of an example's choices, and which of them is right.
pub(super) fn choices<'a>(
    item: &EvalItem,
    answer: &'a Answer,
) -> Result<(&'a [Likelihood], usize), String> {
    if item.choices.is_empty() {
        return Err("it offers no choices. hint: give a test file of multiple choice".to_owned());
    }
    if answer.likelihoods.len() != item.choices.len() {
        return Err(NONE.to_owned());
    }
    let gold = item.gold.or_else(|| item.choices.iter().position(|c| *c == item.reference));
    match gold {
        Some(gold) if gold < item.choices.len() => Ok((&answer.likelihoods, gold)),
        _ => Err(format!("its reference {:?} is none of its choices", item.reference)),
    }
}

/// The likelihood of the example's reference, which was weighed as a whole.
fn weighed(answer: &Answer) -> Result<Likelihood, String> {
    match answer.likelihoods[..] {
        [one] => Ok(one),
        _ => Err(NONE.to_owned()),
    }
}

/// What the loss of references is divided by, and what is told of it.
pub(super) trait LossPer {
    /// How much a reference weighs; one that weighs nothing cannot be scored against.
    fn weight(reference: &str) -> f64;
    /// The number that is told of a loss per weight, in nats.
    fn value(loss: f64) -> f64 {
        loss.exp()
    }
}

/// A metric of the references' loss over their weight: of each one alone, and of all together.
pub(super) const fn loss_metric<P: LossPer + 'static>(
    name: &'static str,
    what: &'static str,
    reads_as: &'static str,
) -> Metric {
    Metric {
        name,
        what,
        reads_as,
        score: Score::Item(&score::<P>),
        corpus: Some(Corpus { parts: &parts::<P>, value: value::<P> }),
        check_reference: check_reference::<P>,
        ..Metric::LESS_OF
    }
}

fn parts<P: LossPer>(item: &EvalItem, answer: &Answer) -> Result<Vec<f64>, String> {
    Ok(vec![weighed(answer)?.sum, P::weight(&item.reference)])
}

fn value<P: LossPer>(sums: &[f64]) -> f64 {
    P::value(-sums[0] / sums[1])
}

fn score<P: LossPer>(item: &EvalItem, answer: &Answer) -> Result<f64, String> {
    Ok(value::<P>(&parts::<P>(item, answer)?))
}

fn check_reference<P: LossPer>(reference: &str) -> Result<(), String> {
    if P::weight(reference) > 0.0 { Ok(()) } else { Err("it is empty".to_owned()) }
}

/// The choices' probabilities: softmax of their log-likelihoods.
pub(super) fn probabilities(likelihoods: &[Likelihood]) -> Vec<f64> {
    let most = likelihoods.iter().map(|l| l.sum).fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = likelihoods.iter().map(|l| (l.sum - most).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// The place of the largest, the first of several.
pub(super) fn first_largest(values: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (place, value) in values.enumerate() {
        if best.is_none_or(|(_, most)| value > most) {
            best = Some((place, value));
        }
    }
    best.map(|(place, _)| place)
}
