//! Multiple choice by the likelihood per byte.

use super::{Metric, Score, accuracy::accuracy};

/// `acc_bytes` of lm-evaluation-harness: the choice that is likeliest per byte of its UTF-8 form.
pub(super) static METRIC: Metric = Metric {
    name: "acc_bytes",
    what: "The share of examples whose right choice is the likeliest per byte.",
    reads_as: "of the choices right",
    score: Score::Item(&|item, answer| accuracy(item, answer, |text| text.len() as f64)),
    ..Metric::BINARY
};
