//! The Brier score of choices.

use super::likelihood::{choices, probabilities};
use super::{Metric, Score};

/// The squared distance between the choices' probabilities (softmax of their log-likelihoods) and the
/// truth, summed over choices: from 0, sure and right, to 2, sure and wrong (G. W. Brier 1950, doi
/// 10.1175/1520-0493(1950)078). `brier_score` of lm-evaluation-harness; a failed answer is held to
/// have been sure and wrong.
pub(super) static METRIC: Metric = Metric {
    name: "brier_score",
    what: "How far the probabilities of the choices are from the truth: 0 is sure and right, 2 sure and wrong. Lower is better.",
    reads_as: "Brier score",
    score: Score::Item(&|item, answer| {
        if answer.error.is_some() {
            return Ok(2.0);
        }
        let (likelihoods, gold) = choices(item, answer)?;
        let truth = |place| f64::from(place == gold);
        let squares = probabilities(likelihoods).into_iter().enumerate();
        Ok(squares.map(|(place, p)| (p - truth(place)).powi(2)).sum())
    }),
    ..Metric::LESS_OF
};
