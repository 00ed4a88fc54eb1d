//! JSONL: one object per line.

use serde_json::{Map, Value};

use super::rows::check_length;
use super::values::describe;
use super::{Container, ReadOptions, RowSink, lines};
use crate::error::{DataError, Problem, excerpt};
use crate::files::read_utf8;
use std::path::Path;

pub(super) const CONTAINER: Container = Container {
    name: "jsonl",
    extensions: &["jsonl", "ndjson"],
    holds: "one JSON object per line",
    read,
};

fn read(path: &Path, options: &ReadOptions, sink: &mut dyn RowSink) -> Result<(), DataError> {
    read_lines(&read_utf8(path, &super::rows_expected())?, options, sink)
}

/// Reads each line of a text as an object.
pub(super) fn read_lines(
    text: &str,
    options: &ReadOptions,
    sink: &mut dyn RowSink,
) -> Result<(), DataError> {
    for (line, text) in lines(text) {
        let row = check_length(line, text.len(), options).and_then(|()| object(line, text));
        sink.row(line, row)?;
    }
    Ok(())
}

/// The object in `text`, which begins at `line`.
pub(super) fn object(line: usize, text: &str) -> Result<Map<String, Value>, Problem> {
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

const ARRAY_HINT: &str = "a JSON array is read from a file named .json; it becomes JSONL with: \
                          jq -c '.[]' in.json > out.jsonl";
