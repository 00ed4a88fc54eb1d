//! The folder of a proof: the report in its forms, the examples, and every candidate's answers.

use crate::error::EvalError;
use crate::files::write_atomic;
use crate::item::EvalItem;
use crate::report::{FileDigest, Report};
use crate::run::{CandidateResult, EvalResult};
use indexmap::IndexMap;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The examples, one JSON object a line.
pub(super) const ITEMS: &str = "items.jsonl";
/// The report for programs.
pub(super) const REPORT: &str = "report.json";

/// The files of a proof beside the report.
#[derive(Clone, Debug, PartialEq)]
pub struct ProofFiles {
    /// Path from the folder on, and content.
    files: IndexMap<String, String>,
}

impl ProofFiles {
    /// Examples and answers of a run.
    pub fn of(result: &EvalResult) -> ProofFiles {
        let mut files = IndexMap::new();
        // Strings and maps with string keys: nothing here can fail to serialise.
        let line = |item: &EvalItem| serde_json::to_string(item).unwrap_or_default() + "\n";
        files.insert(ITEMS.to_owned(), result.items.iter().map(line).collect());
        for (place, candidate) in result.candidates.iter().enumerate() {
            files.insert(answers_path(place, candidate), result.answers_jsonl(candidate));
        }
        ProofFiles { files }
    }

    /// The digests of these files, by their paths.
    pub fn digests(&self) -> IndexMap<String, FileDigest> {
        let digest = |(path, text): (&String, &String)| {
            let digest = FileDigest {
                sha256: hex(&Sha256::digest(text.as_bytes())),
                bytes: text.len() as u64,
                path: Some(path.clone()),
            };
            (path.clone(), digest)
        };
        self.files.iter().map(digest).collect()
    }

    /// Writes everything into `dir`, which is made when it is not there: the report last, so that a
    /// report always has its answers beside it.
    ///
    /// # Errors
    /// [`EvalError::Io`] naming the file, [`EvalError::Render`].
    pub fn write(&self, report: &Report, dir: &Path) -> Result<(), EvalError> {
        let make = |path: PathBuf| {
            std::fs::create_dir_all(&path).map_err(|source| EvalError::Io {
                action: "make the folder",
                path,
                source,
            })
        };
        make(dir.join("answers"))?;
        for (path, text) in &self.files {
            write_atomic(&dir.join(path), text.as_bytes())?;
        }
        for (name, text) in forms(report)? {
            write_atomic(&dir.join(name), text.as_bytes())?;
        }
        write_atomic(&dir.join(REPORT), report.sealed()?.as_bytes())
    }

    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }
}

/// The report's other forms: file name and content.
pub(super) fn forms(report: &Report) -> Result<[(&'static str, String); 3], EvalError> {
    Ok([
        ("report.html", report.to_html()?),
        ("report.md", report.to_markdown()),
        ("report.junit.xml", report.to_junit()),
    ])
}

/// A file name that any system takes, and that no two candidates share.
pub(super) fn answers_path(place: usize, candidate: &CandidateResult) -> String {
    answers_file(place, &candidate.name)
}

/// [`answers_path`] of the candidate of this name.
pub(super) fn answers_file(place: usize, name: &str) -> String {
    format!("answers/{}_{}.jsonl", place + 1, plain_name(name))
}

/// A candidate's name as part of a file's: 60 letters, digits, `-` and `_` at most.
pub fn plain_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' };
    name.chars().take(60).map(plain).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Report {
    /// `report.json` with its seal: the digest of the file as it is with nothing in the seal's place.
    ///
    /// # Errors
    /// [`EvalError::Render`].
    pub fn sealed(&self) -> Result<String, EvalError> {
        let open = Report { seal: String::new(), ..self.clone() };
        let seal = hex(&Sha256::digest(open.to_json()?.as_bytes()));
        Report { seal, ..open }.to_json()
    }
}
