//! How good an answer is by a judge's grade.

use super::{Metric, Score};
use crate::rubric::BEST;

/// Its name, by which commands know that a judge is wanted.
pub const RUBRIC: &str = "rubric";

/// The grade of [`crate::Graded`], from 1 (0) to 5 (1). A grade that could not be read scores 0, as a failed
/// answer does.
pub(super) static METRIC: Metric = Metric {
    name: RUBRIC,
    what: "Grade of a judge by criteria of the trade, from 1 (0 %) to 5 (100 %).",
    reads_as: "by the judge's grades",
    score: Score::Item(&|_, answer| match (&answer.error, answer.grade) {
        (Some(_), _) | (None, Some(0)) => Ok(0.0),
        (None, Some(grade)) if grade <= BEST => Ok(f64::from(grade - 1) / f64::from(BEST - 1)),
        (None, Some(grade)) => Err(format!("its grade is {grade}; expected 1 to {BEST}")),
        (None, None) => Err("no judge graded it. hint: name one in [prove.rubric]".to_owned()),
    }),
    ..Metric::GRADED
};
