//! What the JSONL formats share: one object per line, and fields of it.

use serde_json::{Map, Value};

use super::rows::{Draft, Rows, check_length};
use super::{ReadOptions, Source};
use crate::error::{DataError, Problem, excerpt};
use crate::example::Example;

/// Reads each line as an object and hands it to `draft`.
pub(super) fn read_objects(
    source: &Source<'_>,
    options: &ReadOptions,
    mut draft: impl FnMut(usize, Map<String, Value>) -> Result<Draft, Problem>,
) -> Result<Vec<Example>, DataError> {
    let mut rows = Rows::new(source.path, options);
    for (line, text) in source.lines() {
        let row = check_length(line, text.len(), options)
            .and_then(|()| object(line, text))
            .and_then(|object| draft(line, object));
        rows.push(line, row);
    }
    rows.finish()
}

/// The object of the first line, if it is one: what a format is recognised by.
pub(super) fn first_object(text: &str) -> Option<Map<String, Value>> {
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    serde_json::from_str(line).ok()
}

fn object(line: usize, text: &str) -> Result<Map<String, Value>, Problem> {
    let expected = "one JSON object";
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(Value::Array(_)) => Err(Problem::new(line, "", "an array", expected, ARRAY_HINT)),
        Ok(other) => Err(Problem::new(line, "", describe(&other), expected, "")),
        Err(error) => {
            // Its own text ends in "at line 1 column N"; only the column is about this file.
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            let hint = match text.trim_start().as_bytes() {
                [b'[', ..] => ARRAY_HINT,
                _ if reason.contains("recursion limit") => "values may be nested 127 deep at most",
                _ if text.trim() == "{" => "an object must stand on one line (jq -c . in > out)",
                _ => "quotes and line breaks inside texts are written \\\" and \\n",
            };
            let found = format!(
                "broken JSON at column {}: {reason} (the line begins {:?})",
                error.column(),
                excerpt(text)
            );
            Err(Problem::new(line, "", found, expected, hint))
        }
    }
}

const ARRAY_HINT: &str = "a JSON array becomes JSONL with: jq -c '.[]' in.json > out.jsonl";

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
