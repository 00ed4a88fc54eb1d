//! Values of a row's fields.

use serde_json::Value;

use crate::error::{Problem, excerpt};

/// A value that must be text. Numbers are texts too where `numbers` says so (ids, groups).
pub(super) fn text_of(
    line: usize,
    field: &str,
    value: Option<Value>,
    numbers: bool,
) -> Result<String, Problem> {
    let expected = if numbers { "a string or a number" } else { "a string" };
    let hint = match &value {
        Some(Value::Object(_) | Value::Array(_)) => {
            "structured values are written as a string that holds JSON"
        }
        Some(Value::Number(_) | Value::Bool(_)) => "put it in quotes",
        _ => "",
    };
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Number(number)) if numbers => Ok(number.to_string()),
        None => Err(Problem::new(line, field, "no such field", expected, hint)),
        Some(other) => Err(Problem::new(line, field, describe(&other), expected, hint)),
    }
}

/// Like [`text_of`] for a field that may be absent, null or empty.
pub(super) fn optional_text_of(
    line: usize,
    field: &str,
    value: Option<Value>,
) -> Result<Option<String>, Problem> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let text = text_of(line, field, Some(value), true)?;
            Ok(Some(text).filter(|text| !text.trim().is_empty()))
        }
    }
}

/// A value in words.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => format!("the string {:?}", excerpt(text)),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(fields) => {
            let names: Vec<_> = fields.keys().map(String::as_str).collect();
            format!("an object with the fields {}", excerpt(&names.join(", ")))
        }
    }
}
