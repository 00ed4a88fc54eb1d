//! The answer can be parsed at all.

use super::{Metric, Score, json};

/// The whole answer, apart from space at the ends, is one JSON value (RFC 8259). What the value
/// says is for the other metrics.
pub(super) static METRIC: Metric = Metric {
    name: "json_valid",
    what: "The share of answers that a JSON parser accepts as they are.",
    reads_as: "of the answers as valid JSON",
    score: Score::Text(&score),
    check_reference: json::check_json,
    examples: &[
        (r#"{"a": 1}"#, "{}", 1.0),
        ("\n {\"a\": [true, null]}\n", "{}", 1.0),
        ("{\"a\": 1", "{}", 0.0),
        ("{'a': 1}", "{}", 0.0),
        ("```json\n{\"a\": 1}\n```", "{}", 0.0),
        ("Sure! {\"a\": 1}", "{}", 0.0),
        ("{\"a\": 1} {\"a\": 1}", "{}", 0.0),
        ("", "{}", 0.0),
    ],
    ..Metric::BINARY
};

fn score(answer: &str, _: &str) -> f64 {
    f64::from(json::parse(answer).is_some())
}
