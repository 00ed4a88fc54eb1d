//! How often a sealed test set was opened. A test set that is looked at again and again becomes a second
//! validation set: whoever picks the best of twenty runs on it has measured luck. So every run counts, and
//! the count is printed with every result.

use crate::error::EvalError;
use crate::files::write_atomic;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Openings told in full; older ones are only counted.
const KEPT: usize = 200;
/// A larger file is none of ours.
const MOST_BYTES: u64 = 4 << 20;
/// What the file's name ends with. No ending of a data file, or a folder's test set would grow by it.
pub const OPENINGS_SUFFIX: &str = ".openings";

/// One run on a test set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// When, as printed.
    pub at: String,
    /// What was run: the command and the candidates.
    pub by: String,
}

/// The runs on one test set, known by its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Openings {
    /// How often it was opened.
    pub count: usize,
    /// The last of them, at most 200.
    pub last: Vec<Opening>,
    /// Size of the test set, by which one that grew is known again; 0 where it was not noted.
    #[serde(default)]
    pub bytes: u64,
}

impl Openings {
    /// These and one more: what is stored after a run.
    pub fn opened(mut self, opening: Opening) -> Openings {
        self.count += 1;
        self.last.push(opening);
        let gone = self.last.len().saturating_sub(KEPT);
        self.last.drain(..gone);
        self
    }
}

/// The file: openings by SHA-256 of the test set, so that another test set of the same name starts anew. One
/// that only got more rows at its end goes on: it shows what its beginning showed before.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    test_sets: IndexMap<String, Openings>,
}

/// The file beside a test set in which its openings are counted: `test.jsonl.openings`.
pub fn openings_path(test_set: &Path) -> PathBuf {
    let mut name = test_set.file_name().unwrap_or_default().to_owned();
    name.push(OPENINGS_SUFFIX);
    test_set.with_file_name(name)
}

/// Counts a run on a test set, whose bytes are `content`, in the file at `path` and returns all of its
/// openings, this one and those of its beginning among them. Runs at the same time are counted one after the
/// other (a lock file beside it), and a crash leaves the old count or the new one.
///
/// # Errors
/// [`EvalError::Io`] naming the file; [`EvalError::Openings`] for a file that is no record of openings.
pub fn count_opening(path: &Path, content: &[u8], opening: Opening) -> Result<Openings, EvalError> {
    let io = |action| move |source| EvalError::Io { action, path: path.to_owned(), source };
    let lock = OpenOptions::new().create(true).append(true).open(lock_path(path));
    let lock: File = lock.map_err(io("write"))?;
    lock.lock().map_err(io("lock"))?;
    let mut record = read(path)?;
    let digest = digest_of(content);
    let before = match record.test_sets.shift_remove(&digest) {
        Some(same) => same,
        None => grown_from(&record, content).cloned().unwrap_or_default(),
    };
    let opened = Openings { bytes: content.len() as u64, ..before.opened(opening) };
    record.test_sets.insert(digest, opened.clone());
    let text = serde_json::to_string_pretty(&record).unwrap_or_default();
    write_atomic(path, text.as_bytes())?;
    Ok(opened)
}

/// The longest test set on record that `content` begins with.
fn grown_from<'a>(record: &'a Record, content: &[u8]) -> Option<&'a Openings> {
    let begins = |(digest, openings): &(&String, &Openings)| {
        let beginning = usize::try_from(openings.bytes).ok().and_then(|n| content.get(..n));
        beginning.is_some_and(|b| !b.is_empty() && digest_of(b) == **digest)
    };
    let known = record.test_sets.iter().filter(begins);
    known.map(|(_, openings)| openings).max_by_key(|openings| openings.bytes)
}

fn digest_of(content: &[u8]) -> String {
    crate::proof::hex(&Sha256::digest(content))
}

/// Digests of the test sets that the file at `path` counts: sealed ones, which nobody may train on. None
/// when there is no such file.
///
/// # Errors
/// As [`count_opening`].
pub fn sealed_digests(path: &Path) -> Result<Vec<String>, EvalError> {
    Ok(read(path)?.test_sets.into_keys().collect())
}

fn lock_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.lock"))
}

fn read(path: &Path) -> Result<Record, EvalError> {
    let io = |source| EvalError::Io { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Record::default()),
        opened => opened.map_err(io)?,
    };
    let wrong = |found: String| EvalError::Openings { path: path.to_owned(), found };
    let mut text = String::new();
    file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(wrong(format!("more than {MOST_BYTES} bytes")));
    }
    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
}

/// The openings files in a folder.
///
/// # Errors
/// [`EvalError::Io`] when the folder cannot be listed.
pub fn openings_in(folder: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let io = |source| EvalError::Io { action: "list", path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.file_name().is_some_and(|n| n.to_string_lossy().ends_with(OPENINGS_SUFFIX)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(by: &str) -> Opening {
        Opening { at: "today".into(), by: by.into() }
    }

    #[test]
    fn every_run_counts_and_another_test_set_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = openings_path(&dir.path().join("test.jsonl"));
        assert!(path.ends_with("test.jsonl.openings"));
        assert!(sealed_digests(&path).unwrap().is_empty());
        assert_eq!(count_opening(&path, b"aa", opening("eval")).unwrap().count, 1);
        assert_eq!(count_opening(&path, b"aa", opening("prove")).unwrap().count, 2);
        let other = count_opening(&path, b"bb", opening("eval")).unwrap();
        assert_eq!((other.count, other.last), (1, vec![opening("eval")]));
        assert_eq!(sealed_digests(&path).unwrap(), [digest_of(b"aa"), digest_of(b"bb")]);
        assert_eq!(openings_in(dir.path()).unwrap(), [path]);
    }

    #[test]
    fn a_test_set_that_grew_goes_on_counting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.openings");
        let count = |content: &[u8]| count_opening(&path, content, opening("x")).unwrap().count;
        assert_eq!(
            [count(b"row 1"), count(b"row 1\nrow 2"), count(b"row 1\nrow 2\nrow 3")],
            [1, 2, 3]
        );
        // The shorter one is still the one it was, and a row changed is another test set.
        assert_eq!([count(b"row 1"), count(b"row 2\nrow 1")], [2, 1]);
        assert_eq!(sealed_digests(&path).unwrap().len(), 4);
        // A record without sizes is read, and knows only the very same test set again.
        let old = format!(
            "{{\"test_sets\": {{\"{}\": {{\"count\": 7, \"last\": []}}}}}}",
            digest_of(b"a")
        );
        fs::write(&path, old).unwrap();
        assert_eq!([count(b"ab"), count(b"a")], [1, 8]);
    }

    #[test]
    fn runs_at_the_same_time_are_all_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.openings");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        count_opening(&path, b"aa", opening("eval")).unwrap();
                    }
                });
            }
        });
        assert_eq!(count_opening(&path, b"aa", opening("eval")).unwrap().count, 21);
    }

    #[test]
    fn many_runs_stay_counted_and_a_broken_file_is_named() {
        let mut openings = Openings::default();
        for _ in 0..500 {
            openings = openings.opened(opening("x"));
        }
        assert_eq!((openings.count, openings.last.len()), (500, 200));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.openings");
        fs::write(&path, "{\"test_sets\": 3}").unwrap();
        let error = count_opening(&path, b"aa", opening("x")).unwrap_err().to_string();
        assert!(error.contains("t.openings") && error.contains("hint"), "{error}");
    }
}
