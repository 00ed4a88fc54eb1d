//! CSV with named columns (RFC 4180), separated by commas, semicolons, tabs or bars: whichever the
//! header line has most of.

use std::path::Path;

use csv::{Position, ReaderBuilder, StringRecord, Terminator, Trim};

use super::rows::check_length;
use super::{Container, ReadOptions, RowSink};
use crate::error::{DataError, Problem};
use crate::files::read_utf8;

pub(super) const CONTAINER: Container = Container {
    name: "csv",
    extensions: &["csv", "tsv"],
    holds: "a header line, then one row per example",
    read,
};

fn read(path: &Path, options: &ReadOptions, sink: &mut dyn RowSink) -> Result<(), DataError> {
    let text = read_utf8(path, "a header line, then one row per example")?;
    let text = text.as_str();
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter(text))
        .flexible(true)
        .terminator(Terminator::CRLF)
        .trim(Trim::Headers)
        .from_reader(text.as_bytes());
    let broken = |error: csv::Error| DataError::Io {
        path: path.to_owned(),
        action: "parse as CSV",
        source: std::io::Error::other(error),
    };
    let header = reader.headers().map_err(broken)?.clone();
    let names: Vec<&str> = header.iter().collect();
    sink.header(&names)?;
    let mut record = StringRecord::new();
    let mut lines = Lines::new(text);
    loop {
        let more = reader.read_record(&mut record).map_err(broken)?;
        if !more {
            break;
        }
        let from = record.position().map_or(0, Position::byte) as usize;
        let to = reader.position().byte() as usize;
        let (line, raw) = lines.record(from, to);
        if record.len() == 1 && record[0].trim().is_empty() {
            continue;
        }
        let row = check_length(line, raw.len(), options)
            .and_then(|()| check_shape(line, &record, raw, to == text.len(), &names))
            .map(|()| {
                // Line ends inside quotes are the file's, not the text's.
                let values = record.iter().map(|v| v.replace("\r\n", "\n").into());
                names.iter().map(|name| (*name).to_owned()).zip(values).collect()
            });
        sink.row(line, row)?;
    }
    Ok(())
}

/// The separator that the header line has most of; a comma when it has none.
fn delimiter(text: &str) -> u8 {
    let header = text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
    let count = |d: u8| header.bytes().filter(|&b| b == d).count();
    // The later of two equal ones wins, so the comma stands last.
    let separators = [b'|', b'\t', b';', b','];
    separators.into_iter().max_by_key(|&d| count(d)).unwrap_or(b',')
}

fn check_shape(
    line: usize,
    record: &StringRecord,
    raw: &str,
    last: bool,
    names: &[&str],
) -> Result<(), Problem> {
    // The parser takes the end of the file for the closing quote, so one that is missing would
    // swallow all rows below it without a word.
    let odd = || raw.bytes().filter(|&b| b == b'"').count() % 2 == 1;
    let opened = |field: &str| {
        let field = field.trim_end_matches(['\r', '\n']).replace('"', "\"\"");
        raw.contains(&format!("\"{field}"))
    };
    if last && odd() && record.iter().any(opened) {
        return Err(Problem::new(
            line,
            "",
            "a quote that is never closed",
            "a closing quote before the separator or the line end",
            "a quote inside a quoted field is written twice (\"\")",
        ));
    }
    if record.len() == names.len() {
        return Ok(());
    }
    Err(Problem::new(
        line,
        "",
        format!("{} fields", record.len()),
        format!("{}, as in the header ({})", names.len(), names.join(", ")),
        "a field that holds the separator, a quote or a line break stands in double quotes",
    ))
}

/// Counts lines while the records go by.
struct Lines<'a> {
    text: &'a str,
    /// Where the counting has come to.
    byte: usize,
    /// The line of that byte, from 1.
    line: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, byte: 0, line: 1 }
    }

    /// The line and the raw text of the record in `from..to`. The parser counts blank lines before
    /// a record as part of it; here they are not.
    fn record(&mut self, from: usize, to: usize) -> (usize, &'a str) {
        let text = self.text;
        let span = text.get(from..to).unwrap_or_default();
        let raw = span.trim_start_matches(['\r', '\n']);
        let start = from + (span.len() - raw.len());
        let skipped = text.get(self.byte..start).unwrap_or_default();
        self.line += skipped.bytes().filter(|&b| b == b'\n').count();
        self.byte = start.max(self.byte);
        (self.line, raw.trim_end_matches(['\r', '\n']))
    }
}
