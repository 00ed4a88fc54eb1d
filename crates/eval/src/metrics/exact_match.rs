//! The answer is the reference, character for character.

use super::{Metric, Scale, any_reference};

/// Whitespace (Unicode `White_Space`) is removed at both ends of answer and reference, and nothing
/// else is touched: case, punctuation, accents and inner spaces count. A label or code is either
/// the one asked for or it is not; forgiving more is a decision for the reader, not for a metric.
pub(super) static METRIC: Metric = Metric {
    name: "exact_match",
    what: "The share of answers that are the reference exactly, apart from space at the ends.",
    reads_as: "of the answers exactly right",
    scale: Scale::Binary,
    score: |answer, reference| f64::from(answer.trim() == reference.trim()),
    check_reference: any_reference,
    fields: None,
    examples: &[
        ("card_arrival", "card_arrival", 1.0),
        ("  card_arrival\n", "card_arrival", 1.0),
        ("\u{a0}card_arrival", "card_arrival", 1.0),
        ("Card_arrival", "card_arrival", 0.0),
        ("card_arrival.", "card_arrival", 0.0),
        ("card arrival", "card  arrival", 0.0),
        ("", "card_arrival", 0.0),
        ("", "", 1.0),
    ],
};
