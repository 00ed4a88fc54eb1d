//! ROUGE-2.

use super::{Metric, Score, rouge};

/// The F1 of ROUGE-2, equal to `rouge-score`'s `rouge2`.
pub(super) static METRIC: Metric = Metric {
    name: "rouge2",
    what: "Shared pairs of neighbouring words between answer and reference (ROUGE-2, F1).",
    reads_as: "of the pairs of words right (ROUGE-2)",
    score: Score::Text(&|answer, reference| rouge::ngram_f1(answer, reference, 2)),
    check_reference: |reference| rouge::check_reference(reference, 2),
    examples: EXAMPLES,
    ..Metric::GRADED
};

const EXAMPLES: &[(&str, &str, f64)] = &[
    ("The drum!", "the drum", 1.0),
    ("drum the", "the drum", 0.0),
    ("a b c", "a b", 2.0 / 3.0),
    ("a b a b", "a b", 0.5),
    ("a b x b c", "a b c", 2.0 / 3.0),
    ("drum", "the drum", 0.0),
];
