//! ROUGE-1.

use super::{Metric, Score, rouge};

/// The F1 of ROUGE-1, equal to `rouge-score`'s `rouge1`.
pub(super) static METRIC: Metric = Metric {
    name: "rouge1",
    what: "Shared words between answer and reference (ROUGE-1, F1).",
    reads_as: "of the words right (ROUGE-1)",
    score: Score::Text(&|answer, reference| rouge::ngram_f1(answer, reference, 1)),
    check_reference: |reference| rouge::check_reference(reference, 1),
    examples: EXAMPLES,
    ..Metric::GRADED
};

const EXAMPLES: &[(&str, &str, f64)] = &[
    ("The drum!", "the drum", 1.0),
    ("drum the", "the drum", 1.0),
    ("the drum", "the pump", 0.5),
    ("a b c d", "a b", 2.0 / 3.0),
    ("a a a", "a", 0.5),
    ("pump", "drum", 0.0),
    ("", "drum", 0.0),
];
