//! JSON as the metrics see it.

use serde_json::{Map, Number, Value};

/// The whole text, apart from space at the ends, as one JSON value (RFC 8259). Words around it or a
/// code fence make it none: the program that reads the answer would stumble too. Nesting beyond 128
/// levels is refused by the parser.
pub(super) fn parse(text: &str) -> Option<Value> {
    parse_or_reason(text).ok()
}

/// [`parse`], when the value is an object. Of a key that occurs twice the last value counts.
pub(super) fn parse_object(text: &str) -> Option<Map<String, Value>> {
    match parse(text)? {
        Value::Object(fields) => Some(fields),
        _ => None,
    }
}

/// Equality of values: numbers by value (1, 1.0 and 1e0 are equal), strings character for
/// character, arrays in order, objects whatever the order of their keys.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => same_number(a, b),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// A reference must be an object for metrics that compare fields.
pub(super) fn check_object(reference: &str) -> Result<(), String> {
    match parse_or_reason(reference)? {
        Value::Object(_) => Ok(()),
        _ => Err("it is JSON, but not an object; expected {\"field\": value, ...}".to_owned()),
    }
}

/// A reference must be JSON at all.
pub(super) fn check_json(reference: &str) -> Result<(), String> {
    parse_or_reason(reference).map(|_| ())
}

fn parse_or_reason(text: &str) -> Result<Value, String> {
    serde_json::from_str(text.trim()).map_err(|error| format!("it is not JSON: {error}"))
}

fn same_number(a: &Number, b: &Number) -> bool {
    // Integers beyond 2^53 would collide as f64, so they are compared as they are.
    a == b || ((a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_by_meaning() {
        for (a, b, expected) in [
            ("1", "1.0", true),
            ("100", "1e2", true),
            ("9007199254740993", "9007199254740992", false),
            ("1", "\"1\"", false),
            ("[1, 2]", "[1.0, 2]", true),
            ("[1, 2]", "[2, 1]", false),
            (r#"{"a": 1, "b": [null]}"#, r#"{"b": [null], "a": 1.0}"#, true),
            (r#"{"a": 1}"#, r#"{"a": 1, "b": null}"#, false),
            ("null", "false", false),
            (r#""é""#, r#""\u00e9""#, true),
        ] {
            assert_eq!(same(&parse(a).unwrap(), &parse(b).unwrap()), expected, "{a} and {b}");
        }
    }

    #[test]
    fn deep_nesting_is_no_json_rather_than_a_crash() {
        assert_eq!(parse(&"[".repeat(100_000)), None);
        assert_eq!(parse(&format!("{}{}", "[".repeat(1000), "]".repeat(1000))), None);
    }
}
