//! ROUGE-L.

use super::{Metric, Score, rouge};

/// The F1 of ROUGE-L over the whole text, equal to `rouge-score`'s `rougeL`.
pub(super) static METRIC: Metric = Metric {
    name: "rougeL",
    what: "The longest sequence of words that answer and reference share in order (ROUGE-L, F1).",
    reads_as: "of the words right in order (ROUGE-L)",
    score: Score::Text(&rouge::subsequence_f1),
    check_reference: |reference| rouge::check_reference(reference, 1),
    examples: &[
        ("The drum!", "the drum", 1.0),
        ("drum the", "the drum", 0.5),
        ("a x b y c", "a b c", 0.75),
        ("a b c d", "d c b a", 0.25),
        ("pump", "drum", 0.0),
        ("", "drum", 0.0),
    ],
    ..Metric::GRADED
};
