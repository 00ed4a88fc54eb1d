//! Multiple choice by the likelihood of whole choices.

use super::{Metric, Score, accuracy::accuracy};

/// `acc` of lm-evaluation-harness: the choice that is likeliest as a whole.
pub(super) static METRIC: Metric = Metric {
    name: "acc",
    what: "The share of examples whose right choice is the likeliest as a whole.",
    reads_as: "of the choices right",
    score: Score::Item(&|item, answer| accuracy(item, answer, |_| 1.0)),
    ..Metric::BINARY
};
