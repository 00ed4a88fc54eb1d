//! How many fields of a JSON answer are right.

use super::{FieldScore, Metric, Score, json};

/// The share of the reference's top-level fields for which the answer has the same value (numbers
/// by value, everything else exactly). A field that is missing is wrong; fields that the reference
/// does not have are not counted here, but by `json_exact`. An answer that is no JSON object has
/// every field wrong. The mean over examples weighs every example alike, whatever its number of
/// fields.
pub(super) static METRIC: Metric = Metric {
    name: "json_field_accuracy",
    what: "The share of the reference's fields that have the same value in the answer, averaged over examples.",
    reads_as: "of the fields right",
    score: Score::Text(&score),
    check_reference: json::check_object,
    fields: Some(fields),
    examples: &[
        (r#"{"a": 1, "b": "x"}"#, r#"{"a": 1, "b": "x"}"#, 1.0),
        (r#"{"b": "x", "a": 1.0}"#, r#"{"a": 1, "b": "x"}"#, 1.0),
        (r#"{"a": 1, "b": "X"}"#, r#"{"a": 1, "b": "x"}"#, 0.5),
        (r#"{"a": 1}"#, r#"{"a": 1, "b": null}"#, 0.5),
        (r#"{"a": 1, "b": "x", "c": 0}"#, r#"{"a": 1, "b": "x"}"#, 1.0),
        (r#"{"a": "1"}"#, r#"{"a": 1}"#, 0.0),
        (r#"[1]"#, r#"{"a": 1}"#, 0.0),
        ("a: 1", r#"{"a": 1}"#, 0.0),
        ("", r#"{"a": 1}"#, 0.0),
        ("{}", "{}", 1.0),
        ("", "{}", 0.0),
    ],
    ..Metric::GRADED
};

fn score(answer: &str, reference: &str) -> f64 {
    let fields = fields(answer, reference);
    if fields.is_empty() {
        // Nothing was asked for: any object is right, anything else is not.
        return f64::from(json::parse_object(answer).is_some());
    }
    fields.iter().filter(|f| f.right).count() as f64 / fields.len() as f64
}

/// One score for each field of the reference, in its order.
pub(super) fn fields(answer: &str, reference: &str) -> Vec<FieldScore> {
    let answer = json::parse_object(answer).unwrap_or_default();
    let reference = json::parse_object(reference).unwrap_or_default();
    let right = |field: &str, expected| answer.get(field).is_some_and(|v| json::same(v, expected));
    reference
        .iter()
        .map(|(field, expected)| FieldScore { field: field.clone(), right: right(field, expected) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breakdown_names_every_field_of_the_reference_in_order() {
        let found = fields(r#"{"c": 3, "a": 0}"#, r#"{"b": 1, "a": 0, "c": 4}"#);
        let found: Vec<_> = found.iter().map(|f| (f.field.as_str(), f.right)).collect();
        assert_eq!(found, [("b", false), ("a", true), ("c", false)]);
        assert!(fields("no JSON", r#"{"a": null}"#).iter().all(|f| !f.right));
    }
}
