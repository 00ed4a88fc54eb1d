//! From files to examples. What a row looks like is a form, what rows stand in is a container; each
//! is one file here and one line in [`FORMS`] or [`CONTAINERS`], and every form can stand in every
//! container.

mod alpaca;
mod chat;
mod columns;
mod csv;
mod json_array;
mod json_lines;
mod preference;
mod prompt_completion;
mod rows;
mod share_gpt;
pub(crate) mod text;
mod turns;
mod values;

use std::path::Path;

use ::text::Message;
use serde_json::{Map, Value};

use crate::error::{DataError, Problem, excerpt};
use crate::example::{Example, make_ids_unique};
use rows::{Draft, Rows};

pub use preference::read_preferences;

/// How rows are written down.
#[derive(Debug)]
pub struct Form {
    /// Its name in reports.
    pub name: &'static str,
    /// What a row looks like, for people.
    pub holds: &'static str,
    /// A whole small JSONL file of this form: documentation, and the input of the conformance tests.
    pub sample: &'static str,
    /// Whether a row with fields of these names is of this form.
    accepts: fn(names: &[&str], options: &ReadOptions) -> bool,
    /// What reads the rows of one file.
    open: for<'a> fn(&Opening<'a, '_>) -> Result<RowReader<'a>, DataError>,
}

/// What rows stand in.
#[derive(Debug)]
pub struct Container {
    /// Its name in reports.
    pub name: &'static str,
    /// File name extensions, lower-case, without the dot.
    pub extensions: &'static [&'static str],
    /// What a file looks like, for people.
    pub holds: &'static str,
    /// Hands the rows of a file to `sink`, in their order.
    read: fn(&Path, &ReadOptions, sink: &mut dyn RowSink) -> Result<(), DataError>,
}

/// Every form, one line each. The first that accepts a row's fields is taken.
pub const FORMS: &[Form] = &[chat::FORM, share_gpt::FORM, alpaca::FORM, prompt_completion::FORM];

/// Every container, one line each.
pub const CONTAINERS: &[Container] =
    &[json_lines::CONTAINER, json_array::CONTAINER, csv::CONTAINER];

/// What a form knows of a file when its first row comes.
struct Opening<'a, 'n> {
    path: &'a Path,
    /// Names of the columns, or of the first row's fields.
    names: &'n [&'n str],
    /// Which of the two they are, for messages.
    kind: &'static str,
    options: &'a ReadOptions,
}

/// Understands one row.
type RowReader<'a> = Box<dyn FnMut(usize, Map<String, Value>) -> Result<Draft, Problem> + 'a>;

/// Takes the rows of a file.
trait RowSink {
    /// The names of the columns, before the first row, where the container names them once for all.
    fn header(&mut self, names: &[&str]) -> Result<(), DataError>;

    /// A row as an object, with its line from 1 (its number, where the container has no lines), or
    /// what is wrong with it. An error ends the reading.
    fn row(
        &mut self,
        line: usize,
        row: Result<Map<String, Value>, Problem>,
    ) -> Result<(), DataError>;
}

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

impl ReadOptions {
    /// The system turn for rows that are not chats.
    fn system_turn(&self) -> Option<Message> {
        let system = self.system_prompt.as_deref().filter(|s| !s.trim().is_empty());
        system.map(|text| Message::new("system", text))
    }
}

/// Reads every example of a file, in its order. The container follows from the file's name, the
/// form from the first row. A byte order mark, CRLF line ends and blank lines are accepted.
///
/// # Errors
/// [`DataError::Io`], [`DataError::UnknownFormat`], [`DataError::Empty`], [`DataError::NotUtf8`],
/// [`DataError::Columns`], and [`DataError::Rows`] with the first `max_problems` wrong rows.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Example>, DataError> {
    read_with_format(path, options).map(|(_, examples)| examples)
}

/// [`read`], with the names of form and container, such as `chat_jsonl`.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_with_format(
    path: &Path,
    options: &ReadOptions,
) -> Result<(String, Vec<Example>), DataError> {
    let container = container_of(path)?;
    let mut sink = Examples::new(path, options);
    (container.read)(path, options, &mut sink)?;
    let form = sink.form.as_ref().map_or("", |(form, ..)| form.name);
    let format = format!("{form}_{}", container.name);
    let mut examples = sink.rows.finish()?;
    // Rows without an own id that are equal have equal hashes.
    make_ids_unique(&mut examples);
    Ok((format, examples))
}

/// Makes examples of rows.
struct Examples<'a> {
    path: &'a Path,
    options: &'a ReadOptions,
    /// The file's form, what reads it, and the line of the row that decided it (0: the header).
    form: Option<(&'static Form, RowReader<'a>, usize)>,
    rows: Rows<'a, Example>,
}

impl<'a> Examples<'a> {
    fn new(path: &'a Path, options: &'a ReadOptions) -> Self {
        Self { path, options, form: None, rows: Rows::new(path, options) }
    }

    /// Settles on the form of a file with fields of these names.
    fn open(&mut self, names: &[&str], kind: &'static str, line: usize) -> Result<(), DataError> {
        let Self { path, options, .. } = *self;
        if preference::accepts(names, options) {
            return Err(preference::not_here(path, names));
        }
        let form = form_of(names, options);
        let reader = (form.open)(&Opening { path, names, kind, options })?;
        self.form = Some((form, reader, line));
        Ok(())
    }
}

impl RowSink for Examples<'_> {
    fn header(&mut self, names: &[&str]) -> Result<(), DataError> {
        self.open(names, "columns", 0)
    }

    fn row(
        &mut self,
        line: usize,
        row: Result<Map<String, Value>, Problem>,
    ) -> Result<(), DataError> {
        let object = match row {
            Ok(object) => object,
            Err(problem) => {
                self.rows.push(Err(problem));
                return Ok(());
            }
        };
        let names: Vec<&str> = object.keys().map(String::as_str).collect();
        if self.form.is_none() {
            self.open(&names, "fields of the first row", line)?;
        }
        let (form, reader, first) = self.form.as_mut().expect("opened above");
        let drafted = match check_form(line, &names, form, *first, self.options) {
            Ok(()) => reader(line, object),
            Err(problem) => Err(problem),
        };
        let example = drafted.and_then(|draft| self.rows.example(line, draft));
        self.rows.push(example);
        Ok(())
    }
}

/// Refuses a row of another form than the file's, which its first row decided.
fn check_form(
    line: usize,
    names: &[&str],
    form: &Form,
    first: usize,
    options: &ReadOptions,
) -> Result<(), Problem> {
    let other = match preference::accepts(names, options) {
        true => "preference",
        false => form_of(names, options).name,
    };
    if first == 0 || other == form.name {
        return Ok(());
    }
    // A row that lacks a field looks like the form that asks for nothing.
    let known = FORMS.last().is_some_and(|last| last.name != other);
    Err(Problem::new(
        line,
        "",
        match known {
            true => format!("a row of the form {other}, with the fields {}", names.join(", ")),
            false => format!("a row with the fields {}", excerpt(&names.join(", "))),
        },
        format!("{}, as in line {first}", form.holds),
        "one file holds one form of rows",
    ))
}

fn form_of(names: &[&str], options: &ReadOptions) -> &'static Form {
    let accepting = FORMS.iter().find(|form| (form.accepts)(names, options));
    accepting.expect("the last form accepts everything")
}

fn container_of(path: &Path) -> Result<&'static Container, DataError> {
    let found = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if let Some(known) = CONTAINERS.iter().find(|c| c.extensions.contains(&found.as_str())) {
        return Ok(known);
    }
    let known = CONTAINERS.iter().map(|c| {
        let extensions: Vec<_> = c.extensions.iter().map(|e| format!(".{e}")).collect();
        format!("{} ({})", extensions.join("/"), c.holds)
    });
    Err(DataError::UnknownFormat {
        path: path.to_owned(),
        hint: match found.as_str() {
            "txt" | "md" => "plain text is for pretraining: name it under `text` in [data]",
            "arrow" | "feather" => "export the table as JSONL or CSV",
            "xls" | "xlsx" | "ods" => "save the sheet as CSV in UTF-8",
            "gz" | "zip" | "zst" | "bz2" | "xz" => "unpack the file first",
            _ => "rename the file after what it holds, or convert it",
        },
        found,
        known: known.collect::<Vec<_>>().join(", "),
    })
}

/// What rows may look like, for messages.
fn rows_expected() -> String {
    let forms: Vec<&str> = FORMS.iter().map(|form| form.holds).collect();
    format!("rows such as {}", forms.join(" or "))
}

/// The lines of a text with their numbers from 1, without line ends, without blank ones.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    numbered.filter(|(_, line)| !line.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::text::Conversation;
    use std::fs;

    fn read_as(name: &str, bytes: &[u8]) -> Result<(String, Vec<Example>), DataError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        read_with_format(&path, &ReadOptions::default())
    }

    fn contents(examples: &[Example]) -> Vec<(String, Conversation)> {
        examples.iter().map(|e| (e.id.clone(), e.conversation.clone())).collect()
    }

    /// Every form in the table must pass; a new one is tested by its line there.
    #[test]
    fn forms_conform() {
        for form in FORMS {
            let (name, sample) = (form.name, form.sample);
            let read = |bytes: &[u8]| read_as("rows.jsonl", bytes);
            let (format, plain) = read(sample.as_bytes()).unwrap();
            assert_eq!(format, format!("{name}_jsonl"));
            assert!(plain.len() >= 2, "{name}");
            let lines: Vec<_> = plain.iter().map(|e| e.origin.line).collect();
            assert!(lines.is_sorted() && lines[0] >= 1, "{name}: {lines:?}");

            // What was read is written as chat JSONL and read back.
            let written: String = plain.iter().map(|e| e.to_json_line() + "\n").collect();
            let (_, again) = read(written.as_bytes()).unwrap();
            assert_eq!(contents(&plain), contents(&again), "{name}: written and read");

            let windows = format!("\u{feff}{}", sample.replace('\n', "\r\n"));
            let read_back = read(windows.as_bytes()).unwrap().1;
            assert_eq!(contents(&plain), contents(&read_back), "{name}: BOM and CRLF");
            let unended = read(sample.trim_end().as_bytes()).unwrap().1;
            assert_eq!(contents(&plain), contents(&unended), "{name}: no last line end");
            let spaced = read(format!("{sample}\n \n\n").as_bytes()).unwrap().1;
            assert_eq!(contents(&plain), contents(&spaced), "{name}: blank lines");

            let error = read(b"").unwrap_err().to_string();
            assert!(error.contains("empty") && error.contains(form.holds), "{name}: {error}");
            let mut broken = sample.as_bytes().to_vec();
            broken.extend(b"\xff\xff\n");
            let error = read(&broken).unwrap_err();
            let at = sample.lines().count() + 1;
            assert!(
                matches!(error, DataError::NotUtf8 { line, offset, .. }
                    if line == at && offset == sample.len()),
                "{name}: {error}"
            );
            let long = sample.replacen(plain[0].completion(), &"x".repeat((8 << 20) + 1), 1);
            let error = read(long.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("8388608 bytes"), "{name}: {error}");
            // No prefix of the file may panic; where it parses, it has no more rows than the whole.
            for end in (0..sample.len()).filter(|&end| sample.is_char_boundary(end)) {
                if let Ok((_, rows)) = read(&sample.as_bytes()[..end]) {
                    assert!(rows.len() <= plain.len(), "{name}: {end}");
                }
            }
            // Each pair of forms in one file is a mixture that is named.
            for other in FORMS.iter().filter(|other| other.name != name) {
                let first = sample.lines().next().unwrap();
                let second = other.sample.lines().next().unwrap();
                let error = read(format!("{first}\n{second}\n").as_bytes()).unwrap_err();
                let error = error.to_string();
                for part in
                    ["rows.jsonl:2: ", form.holds, "as in line 1", "one file holds one form"]
                {
                    assert!(error.contains(part), "{name}, {}: {error:?}", other.name);
                }
            }
        }
    }

    #[test]
    fn tables_are_read() {
        let sample = "text,category,id\n\
                      \"Two, and two?\",sum,a\n\
                      Été ?,season,b\n\
                      \"over\n\"\"two\"\" lines\",other,c\n\
                      plain,other,d\n";
        let read = |bytes: &[u8]| read_as("rows.csv", bytes);
        let (format, plain) = read(sample.as_bytes()).unwrap();
        assert_eq!((format.as_str(), plain.len()), ("prompt_completion_csv", 4));
        let windows = format!("\u{feff}{}", sample.replace('\n', "\r\n"));
        for bytes in [windows.as_str(), sample.trim_end(), &format!("{sample}\n\n")] {
            assert_eq!(contents(&plain), contents(&read(bytes.as_bytes()).unwrap().1));
        }
        let long = sample.replacen("sum", &"x".repeat((8 << 20) + 1), 1);
        let error = read(long.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("8388608 bytes"), "{error}");
        let error = read(b"").unwrap_err().to_string();
        assert!(error.contains("empty") && error.contains("header"), "{error}");
        for end in (0..sample.len()).filter(|&end| sample.is_char_boundary(end)) {
            if let Ok((_, rows)) = read(&sample.as_bytes()[..end]) {
                assert!(rows.len() <= plain.len(), "{end}");
            }
        }
    }

    #[test]
    fn unknown_extensions_list_the_known_ones() {
        fn check(name: &str, hint: &str) {
            let error = read(Path::new(name), &ReadOptions::default()).unwrap_err().to_string();
            for known in [".jsonl/.ndjson", ".csv/.tsv", "JSON object per line", hint] {
                assert!(error.contains(known), "{error:?} lacks {known:?}");
            }
        }
        check("data.arrow", "export");
        check("book.txt", "pretraining");
        check("DATA", "rename");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("no/such.jsonl"), &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().starts_with("no/such.jsonl: cannot read: "), "{error}");
    }
}
