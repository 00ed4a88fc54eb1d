//! How few characters would have to change.

use super::{Metric, Score};

/// 1 - d / max(|answer|, |reference|), where d is Levenshtein's distance (insertions, deletions and
/// substitutions of one character each) and lengths count Unicode scalar values. Two empty texts
/// agree (1).
pub(super) static METRIC: Metric = Metric {
    name: "edit_similarity",
    what: "How near answer and reference are letter by letter: the share of the longer one that need not change.",
    reads_as: "of the characters right (edit similarity)",
    score: Score::Text(&strsim::normalized_levenshtein),
    examples: &[
        ("drum", "drum", 1.0),
        ("drums", "drum", 0.8),
        ("kitten", "sitting", 1.0 - 3.0 / 7.0),
        ("été", "ete", 1.0 / 3.0),
        ("", "drum", 0.0),
        ("", "", 1.0),
    ],
    ..Metric::GRADED
};
