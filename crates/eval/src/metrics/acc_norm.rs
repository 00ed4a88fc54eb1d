//! Multiple choice by the likelihood per character.

use super::{Metric, Score, accuracy::accuracy};

/// `acc_norm` of lm-evaluation-harness: the choice that is likeliest per character of it (Unicode scalar
/// values, without the delimiter before it), so that long choices are not at a disadvantage.
pub(super) static METRIC: Metric = Metric {
    name: "acc_norm",
    what: "The share of examples whose right choice is the likeliest per character.",
    reads_as: "of the choices right",
    score: Score::Item(&|item, answer| accuracy(item, answer, |text| text.chars().count() as f64)),
    ..Metric::BINARY
};
