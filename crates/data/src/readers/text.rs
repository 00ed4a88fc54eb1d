//! Plain text for pretraining. It has no rows, so it is not in the table of formats.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::files::read_utf8;

/// What the names of text files end in, within a folder.
const EXTENSIONS: [&str; 2] = ["txt", "md"];

/// A text to learn as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Its path as given, or below the folder given.
    pub id: String,
    /// The text, with `\n` line ends.
    pub text: String,
}

/// Reads a UTF-8 text file, or all `.txt` and `.md` files of a folder and the folders in it, in the
/// order of their paths.
///
/// # Errors
/// [`DataError::Io`], [`DataError::Empty`] (a file without text, a folder without such files) and
/// [`DataError::NotUtf8`].
pub fn read_text(path: &Path) -> Result<Vec<Document>, DataError> {
    let io = |path: &Path, source| DataError::Io { path: path.to_owned(), action: "read", source };
    let mut files = Vec::new();
    if path.is_dir() {
        let mut folders = vec![path.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(|e| io(&folder, e))? {
                let entry = entry.map_err(|e| io(&folder, e))?;
                let kind = entry.file_type().map_err(|e| io(&entry.path(), e))?;
                let child = entry.path();
                // A linked folder could contain itself, so only real ones are entered.
                if kind.is_dir() {
                    folders.push(child);
                } else if is_text_file(&child) {
                    files.push(child);
                }
            }
        }
        files.sort();
        if files.is_empty() {
            let expected = "a folder with .txt or .md files".to_owned();
            return Err(DataError::Empty { path: path.to_owned(), expected });
        }
    } else {
        files.push(path.to_owned());
    }
    files.into_iter().map(|file| document(path, file)).collect()
}

/// Whether a file's name says that it is plain text.
pub(crate) fn is_text_file(path: &Path) -> bool {
    let end = path.extension();
    EXTENSIONS.iter().any(|known| end.is_some_and(|end| end.eq_ignore_ascii_case(known)))
}

fn document(root: &Path, file: PathBuf) -> Result<Document, DataError> {
    let text = read_utf8(&file, "text")?;
    let text = if text.contains('\r') { text.replace("\r\n", "\n") } else { text };
    let below = file.strip_prefix(root).ok().filter(|p| !p.as_os_str().is_empty());
    // `/` on every system, so that ids and what is drawn from them are the same everywhere.
    let id = match below {
        Some(below) => {
            let parts: Vec<_> = below.iter().map(|p| p.to_string_lossy()).collect();
            parts.join("/")
        }
        None => file.display().to_string(),
    };
    Ok(Document { id, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_order_and_a_file_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        for (name, text) in [
            ("c.txt", "third\r\nline"),
            ("a.txt", "\u{feff}first"),
            ("b/x.TXT", "second"),
            ("n.md", "# fourth"),
            ("o.rst", "no"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let read = read_text(dir.path()).unwrap();
        let read: Vec<_> = read.iter().map(|d| (d.id.as_str(), d.text.as_str())).collect();
        assert_eq!(
            read,
            [
                ("a.txt", "first"),
                ("b/x.TXT", "second"),
                ("c.txt", "third\nline"),
                ("n.md", "# fourth"),
            ]
        );

        assert!(crate::is_text(dir.path()) && crate::is_text(&dir.path().join("n.md")));
        fs::write(dir.path().join("b/rows.jsonl"), "{}").unwrap();
        assert!(!crate::is_text(dir.path()) && !crate::is_text(&dir.path().join("b/rows.jsonl")));
        assert!(!crate::is_text(&dir.path().join("none")));
        let file = dir.path().join("o.rst");
        assert_eq!(read_text(&file).unwrap()[0].text, "no");
        fs::write(&file, "caf\u{e9}\n".chars().map(|c| c as u8).collect::<Vec<_>>()).unwrap();
        assert!(matches!(read_text(&file), Err(DataError::NotUtf8 { line: 1, offset: 3, .. })));
        assert!(matches!(read_text(&dir.path().join("b/none")), Err(DataError::Io { .. })));
        fs::remove_file(dir.path().join("b/x.TXT")).unwrap();
        assert!(matches!(read_text(&dir.path().join("b")), Err(DataError::Empty { .. })));
    }
}
