//! A JSON file: an array of objects, or, as some export it, one object per line.

use std::path::Path;

use serde_json::value::RawValue;

use super::json_lines::{object, read_lines};
use super::rows::check_length;
use super::{Container, ReadOptions, RowSink};
use crate::error::{DataError, Problem};
use crate::files::read_utf8;

pub(super) const CONTAINER: Container =
    Container { name: "json", extensions: &["json"], holds: "an array of JSON objects", read };

fn read(path: &Path, options: &ReadOptions, sink: &mut dyn RowSink) -> Result<(), DataError> {
    let text = read_utf8(path, &super::rows_expected())?;
    if !text.trim_start().starts_with('[') {
        return read_lines(&text, options, sink);
    }
    // Only where each row begins and ends is found here, so that a broken row is told by its line
    // and the values of one row at a time are in memory.
    let rows: Vec<&RawValue> = match serde_json::from_str(&text) {
        Ok(rows) => rows,
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            let found = format!("broken JSON at column {}: {reason}", error.column());
            let hint = "an array ends with ], and a comma stands between any two rows";
            let problem = Problem::new(error.line(), "", found, "an array of objects", hint);
            return sink.row(error.line(), Err(problem));
        }
    };
    let (mut line, mut at) = (1, 0);
    for row in rows {
        // A raw value is a part of the text it was read from.
        let start = row.get().as_ptr() as usize - text.as_ptr() as usize;
        line += text[at..start].bytes().filter(|&b| b == b'\n').count();
        at = start;
        let checked = check_length(line, row.get().len(), options);
        sink.row(line, checked.and_then(|()| object(line, row.get())))?;
    }
    Ok(())
}
