//! Two lists as sets.

use super::{Metric, Score, json};
use std::collections::HashSet;

/// The F1 of two sets: 2·|both| / (|answer| + |reference|). A text that is a JSON array is the set of
/// its elements; any other is the set of its parts between commas, semicolons and line ends, without
/// space around them and without empty ones. Two empty sets agree (1), one empty and one not do not.
pub(super) static METRIC: Metric = Metric {
    name: "set_f1",
    what: "Shared elements between the answer's list and the reference's, in any order: the harmonic mean of precision and recall.",
    reads_as: "of the elements right (F1)",
    score: Score::Text(&score),
    examples: &[
        ("a, b", "b; a", 1.0),
        ("a", "a, b", 2.0 / 3.0),
        ("a, c", "a, b", 0.5),
        ("a, a, b", "a, b", 1.0),
        (r#"["a", "b"]"#, "a\nb", 1.0),
        ("[1.0]", "[1]", 1.0),
        ("A", "a", 0.0),
        ("", "a", 0.0),
        (" , ", "", 1.0),
    ],
    ..Metric::GRADED
};

fn score(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (elements(answer), elements(reference));
    if answer.is_empty() && reference.is_empty() {
        return 1.0;
    }
    let both = answer.intersection(&reference).count();
    2.0 * both as f64 / (answer.len() + reference.len()) as f64
}

fn elements(text: &str) -> HashSet<String> {
    if let Some(serde_json::Value::Array(values)) = json::parse(text) {
        return values.iter().map(canonical).collect();
    }
    let parts = text.split([',', ';', '\n']).map(str::trim);
    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Strings as they are, so that a JSON list and a plain one can be compared; numbers by value.
fn canonical(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.trim().to_owned(),
        serde_json::Value::Number(n) => match n.as_f64() {
            Some(float) if n.is_f64() => float.to_string(),
            _ => n.to_string(),
        },
        other => other.to_string(),
    }
}
