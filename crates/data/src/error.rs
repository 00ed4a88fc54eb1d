//! Everything that can be wrong with data, said so that its owner can mend it.

use std::fmt;
use std::path::PathBuf;

/// An error of this crate. Each message names the place, what was found and what was expected, and
/// ends with a hint where there is something to do.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The system refused to read or write.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "read", "write", ...
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file's name does not say a format that is known here.
    #[error("{path}: unknown format {found:?}; expected one of {known}\nhint: {hint}")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its extension, empty when it has none.
        found: String,
        /// The known extensions with what they hold.
        known: String,
        /// What to do.
        hint: &'static str,
    },
    /// The file has no content.
    #[error("{path}: the file is empty; expected {expected}\nhint: check the export that wrote it")]
    Empty {
        /// The file.
        path: PathBuf,
        /// What should have been there.
        expected: String,
    },
    /// The file is not UTF-8.
    #[error(
        "{path}:{line}: found {found} at byte {offset} of the file; expected UTF-8 text\nhint: {hint}"
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line of the first bad byte, from 1.
        line: usize,
        /// The first bad byte's offset in the file, from 0.
        offset: usize,
        /// What is there.
        found: String,
        /// How to convert the file.
        hint: String,
    },
    /// Columns or fields cannot be matched to prompt and completion.
    #[error("{path}: {found}; expected {expected}\nhint: {hint}")]
    Columns {
        /// The file.
        path: PathBuf,
        /// Which columns there are, and what is wrong with them.
        found: String,
        /// What should have been there.
        expected: String,
        /// What to do.
        hint: String,
    },
    /// Preferences between answers, where conversations are wanted.
    #[error(
        "{path}: found preference data (the fields are {fields}); expected conversations, or prompts \
         with one answer each to learn\nhint: preferences are learnt with an objective such as dpo or \
         kto; to learn all answers of one field, name it with --completion-column"
    )]
    Preferences {
        /// The file.
        path: PathBuf,
        /// The fields of its first row.
        fields: String,
    },
    /// A folder does not say which of its files are meant.
    #[error("{path}: {found}; expected {expected}\nhint: {hint}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        found: String,
        /// What should have been there.
        expected: String,
        /// What to do.
        hint: String,
    },
    /// Rows are wrong; the first of them are listed.
    #[error("{0}")]
    Rows(RowErrors),
    /// An option is out of its range.
    #[error("{option}: found {found}; expected {expected}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A split leaves a set without rows.
    #[error("the split leaves the {set} set without rows: {found}\nhint: {hint}")]
    Split {
        /// Which set.
        set: &'static str,
        /// Why.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// A conversation could not be turned into tokens.
    #[error("{path}:{line}: {source}")]
    Tokens {
        /// The file of the example.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The reason.
        source: text::TextError,
    },
}

/// The wrong rows of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowErrors {
    /// The file.
    pub path: PathBuf,
    /// The first of them, in the order of the file; at least one.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
}

impl fmt::Display for RowErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let Problem { line, field, found, expected, hint } = problem;
            write!(f, "{}:{line}: ", self.path.display())?;
            if !field.is_empty() {
                write!(f, "field \"{field}\": ")?;
            }
            write!(f, "found {found}; expected {expected}")?;
            if !hint.is_empty() {
                write!(f, "\nhint: {hint}")?;
            }
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\n... and {more} more wrong rows in this file"),
        }
    }
}

/// One wrong row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its line in the file, from 1; the first one when the row spans several.
    pub line: usize,
    /// Which field, such as `messages[2].role`; empty when it is the row as a whole.
    pub field: String,
    /// What is there.
    pub found: String,
    /// What should be there.
    pub expected: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl Problem {
    pub(crate) fn new(
        line: usize,
        field: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            line,
            field: field.into(),
            found: found.into(),
            expected: expected.into(),
            hint: hint.into(),
        }
    }
}

/// The beginning of `text` on one line, short enough for a message.
pub(crate) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut short: String =
        text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}
