//! From files to examples. One format is one file here and one line in [`FORMATS`].

mod chat_jsonl;
mod columns;
mod csv;
mod json_lines;
mod prompt_completion;
mod rows;
pub(crate) mod text;

use std::path::Path;

use crate::error::DataError;
use crate::example::Example;
use crate::files::read_utf8;

/// A format of examples.
#[derive(Debug)]
pub struct Format {
    /// Its name in reports.
    pub name: &'static str,
    /// File name extensions, lower-case, without the dot.
    pub extensions: &'static [&'static str],
    /// What a row looks like, for people.
    pub holds: &'static str,
    /// A whole small file of this format: documentation, and the input of the conformance tests.
    pub sample: &'static str,
    /// Whether a file with one of the extensions is of this format, by its text.
    accepts: fn(text: &str) -> bool,
    /// Reads a file's text.
    read: fn(&Source<'_>, &ReadOptions) -> Result<Vec<Example>, DataError>,
}

/// Every format, one line each. Where several share an extension, the first that accepts the
/// content is taken.
pub const FORMATS: &[Format] = &[chat_jsonl::FORMAT, prompt_completion::FORMAT, csv::FORMAT];

/// How rows become conversations.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Column (CSV) or field (JSONL) with the input; by default that of the one recognised pair:
    /// prompt/completion, text/category, text/label, question/answer, input/output.
    pub prompt_column: Option<String>,
    /// Column or field with the wanted answer; by default that of the recognised pair.
    pub completion_column: Option<String>,
    /// Column or field with the group; by default `group` where it exists.
    pub group_column: Option<String>,
    /// Column or field with the id; by default `id` where it exists, otherwise a hash of the
    /// content.
    pub id_column: Option<String>,
    /// Put before every example that is not a chat, as a system turn.
    pub system_prompt: Option<String>,
    /// Builds the user turn of examples that are not chats from columns in braces, such as
    /// `Text: {text}`; `{{` and `}}` stand for braces. Takes the place of `prompt_column`.
    pub prompt_template: Option<String>,
    /// Longest row in bytes; longer ones are refused.
    pub max_row_bytes: usize,
    /// How many wrong rows an error lists; the rest is counted.
    pub max_problems: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            prompt_column: None,
            completion_column: None,
            group_column: None,
            id_column: None,
            system_prompt: None,
            prompt_template: None,
            max_row_bytes: 8 << 20,
            max_problems: 20,
        }
    }
}

/// Reads every example of a file, in its order. The format follows from the extension and, for
/// JSONL, from the first row. A byte order mark, CRLF line ends and blank lines are accepted.
///
/// # Errors
/// [`DataError::Io`], [`DataError::UnknownFormat`], [`DataError::Empty`], [`DataError::NotUtf8`],
/// [`DataError::Columns`], and [`DataError::Rows`] with the first `max_problems` wrong rows.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Example>, DataError> {
    let formats = by_extension(path)?;
    let expected: Vec<&str> = formats.iter().map(|f| f.holds).collect();
    let text = read_utf8(path, &expected.join(" or "))?;
    let format = choose(&formats, &text);
    (format.read)(&Source { path, text: &text }, options)
}

/// The format [`read`] would take for a file.
///
/// # Errors
/// As [`read`] before its first row.
pub fn detect(path: &Path) -> Result<&'static Format, DataError> {
    let formats = by_extension(path)?;
    if let [only] = formats[..] {
        return Ok(only);
    }
    Ok(choose(&formats, &read_utf8(path, "rows")?))
}

/// A file in memory.
struct Source<'a> {
    path: &'a Path,
    /// Not empty, without a byte order mark.
    text: &'a str,
}

impl Source<'_> {
    /// The lines with their numbers from 1, without line ends, without blank ones.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self.text.lines().enumerate().map(|(i, line)| (i + 1, line));
        numbered.filter(|(_, line)| !line.trim().is_empty())
    }
}

fn by_extension(path: &Path) -> Result<Vec<&'static Format>, DataError> {
    let found = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let formats: Vec<_> =
        FORMATS.iter().filter(|f| f.extensions.contains(&found.as_str())).collect();
    if !formats.is_empty() {
        return Ok(formats);
    }
    let known = FORMATS.iter().map(|f| {
        let extensions: Vec<_> = f.extensions.iter().map(|e| format!(".{e}")).collect();
        format!("{} ({})", extensions.join("/"), f.holds)
    });
    Err(DataError::UnknownFormat {
        path: path.to_owned(),
        hint: match found.as_str() {
            "json" => "a JSON array becomes JSONL with: jq -c '.[]' in.json > out.jsonl",
            "txt" | "md" => "plain text is for pretraining: name it under `text` in [data]",
            "parquet" | "arrow" => "export the table as JSONL or CSV",
            "xls" | "xlsx" | "ods" => "save the sheet as CSV in UTF-8",
            "gz" | "zip" | "zst" | "bz2" | "xz" => "unpack the file first",
            _ => "rename the file after what it holds, or convert it",
        },
        found,
        known: known.collect::<Vec<_>>().join(", "),
    })
}

fn choose(formats: &[&'static Format], text: &str) -> &'static Format {
    let accepting = formats.iter().find(|f| (f.accepts)(text));
    accepting.or(formats.last()).expect("an extension belongs to at least one format")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Writes `bytes` to a file with the first extension of `format` and reads it.
    fn read_as(format: &Format, bytes: &[u8]) -> Result<Vec<Example>, DataError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("rows.{}", format.extensions[0]));
        fs::write(&path, bytes).unwrap();
        if bytes == format.sample.as_bytes() {
            assert_eq!(detect(&path).unwrap().name, format.name);
        }
        read(&path, &ReadOptions::default())
    }

    /// Every format in the table must pass; a new one is tested by its line there.
    #[test]
    fn conformance() {
        for format in FORMATS {
            let name = format.name;
            let sample = format.sample;
            let plain = read_as(format, sample.as_bytes()).unwrap();
            assert!(plain.len() >= 2, "{name}");
            let lines: Vec<_> = plain.iter().map(|e| e.origin.line).collect();
            assert!(lines.is_sorted() && lines[0] >= 1, "{name}: {lines:?}");
            let contents = |examples: &[Example]| -> Vec<_> {
                examples.iter().map(|e| (e.id.clone(), e.conversation.clone())).collect()
            };

            let windows = format!("\u{feff}{}", sample.replace('\n', "\r\n"));
            let read_back = read_as(format, windows.as_bytes()).unwrap();
            assert_eq!(contents(&plain), contents(&read_back), "{name}: BOM and CRLF");
            let unended = read_as(format, sample.trim_end().as_bytes()).unwrap();
            assert_eq!(contents(&plain), contents(&unended), "{name}: no last line end");
            let spaced = read_as(format, format!("{sample}\n \n\n").as_bytes()).unwrap();
            assert_eq!(contents(&plain), contents(&spaced), "{name}: blank lines");

            let error = read_as(format, b"").unwrap_err().to_string();
            assert!(error.contains("empty") && error.contains(format.holds), "{name}: {error}");
            let mut broken = sample.as_bytes().to_vec();
            broken.extend(b"\xff\xff\n");
            let error = read_as(format, &broken).unwrap_err();
            let at = sample.lines().count() + 1;
            assert!(
                matches!(error, DataError::NotUtf8 { line, offset, .. }
                    if line == at && offset == sample.len()),
                "{name}: {error}"
            );
            let long = sample.replacen(plain[0].completion(), &"x".repeat((8 << 20) + 1), 1);
            let error = read_as(format, long.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("8388608 bytes"), "{name}: {error}");
            // No prefix of the file may panic; where it parses, it has no more rows than the whole.
            for end in (0..sample.len()).filter(|&end| sample.is_char_boundary(end)) {
                if let Ok(rows) = read_as(format, &sample.as_bytes()[..end]) {
                    assert!(rows.len() <= plain.len(), "{name}: {end}");
                }
            }
        }
    }

    #[test]
    fn unknown_extensions_list_the_known_ones() {
        fn check(name: &str, hint: &str) {
            let error = read(Path::new(name), &ReadOptions::default()).unwrap_err().to_string();
            for known in [".jsonl/.ndjson", ".csv/.tsv", "messages", hint] {
                assert!(error.contains(known), "{error:?} lacks {known:?}");
            }
        }
        check("data.parquet", "export");
        check("data.json", "jq -c");
        check("book.txt", "pretraining");
        check("DATA", "rename");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("no/such.jsonl"), &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().starts_with("no/such.jsonl: cannot read: "), "{error}");
    }
}
