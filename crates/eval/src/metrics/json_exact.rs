//! A JSON answer is right in every field.

use super::{Metric, Score, json};

/// The answer is an object with the same fields as the reference and the same values (numbers by
/// value, order of keys of no account). A field too many makes it wrong, unlike in
/// `json_field_accuracy`: what reads the answer would act on it.
pub(super) static METRIC: Metric = Metric {
    name: "json_exact",
    what: "The share of answers that have exactly the reference's fields, all with the same values.",
    reads_as: "of the answers right in every field",
    score: Score::Text(&score),
    check_reference: json::check_object,
    examples: &[
        (r#"{"a": 1, "b": "x"}"#, r#"{"b": "x", "a": 1.0}"#, 1.0),
        (r#"{"a": 1, "b": "y"}"#, r#"{"a": 1, "b": "x"}"#, 0.0),
        (r#"{"a": 1}"#, r#"{"a": 1, "b": null}"#, 0.0),
        (r#"{"a": 1, "b": "x", "c": 0}"#, r#"{"a": 1, "b": "x"}"#, 0.0),
        ("```\n{\"a\": 1}\n```", r#"{"a": 1}"#, 0.0),
        ("", "{}", 0.0),
        ("{}", "{}", 1.0),
    ],
    ..Metric::BINARY
};

fn score(answer: &str, reference: &str) -> f64 {
    match (json::parse(answer), json::parse(reference)) {
        (Some(answer), Some(reference)) => f64::from(json::same(&answer, &reference)),
        _ => 0.0,
    }
}
