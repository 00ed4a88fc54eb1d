//! Data sets as the Hub has them: a folder with files for each split, whole or in parts, and a card.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::readers::is_known;

/// A part of a data set, by what it is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FolderSplit {
    /// To learn from.
    #[default]
    Train,
    /// Held out while training.
    Valid,
    /// Sealed.
    Test,
}

impl FolderSplit {
    /// Words that say so in names of files and folders, as the `datasets` library reads them.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train", "training"],
            Self::Valid => &["validation", "valid", "val", "dev"],
            Self::Test => &["test", "testing", "eval", "evaluation"],
        }
    }

    /// The split that a path below the folder names, the file's own name first.
    fn of(path: &Path) -> Option<Self> {
        let names = path.iter().rev().map(|name| name.to_string_lossy().to_lowercase());
        names.into_iter().find_map(|name| {
            let words: Vec<&str> = name.split(|c: char| !c.is_alphanumeric()).collect();
            [Self::Train, Self::Valid, Self::Test]
                .into_iter()
                .find(|split| split.words().iter().any(|word| words.contains(word)))
        })
    }
}

/// The files that `path` stands for: itself, or, where it is a folder, the files of one split in it
/// or the folders directly in it (`train.jsonl`, `data/train-00000-of-00002.parquet`,
/// `train/a.csv`), in the order of their names. Files that name no split are to train with, where no
/// file names that one.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Folder`] when the split has no file, files of several kinds, or
/// not all of its parts.
pub fn files_of(path: &Path, split: FolderSplit) -> Result<Vec<PathBuf>, DataError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut below = Vec::new();
    for child in children(path)? {
        match child.is_dir() {
            true => below.extend(children(&child)?.into_iter().filter(|file| file.is_file())),
            false => below.push(child),
        }
    }
    below.retain(|file| is_known(file));
    below.sort();
    let split_of = |file: &PathBuf| FolderSplit::of(file.strip_prefix(path).unwrap_or(file));
    let of = |wanted| below.iter().filter(move |file| split_of(file) == wanted).cloned();
    let mut files: Vec<PathBuf> = of(Some(split)).collect();
    if files.is_empty() && split == FolderSplit::Train {
        files = of(None).collect();
    }
    let fail = |found: String, hint: &str| DataError::Folder {
        path: path.to_owned(),
        found,
        expected: format!("the files of one split, named {}", split.words()[0]),
        hint: hint.to_owned(),
    };
    let names = |files: &[PathBuf]| {
        let shown: Vec<_> = files
            .iter()
            .take(5)
            .map(|file| file.strip_prefix(path).unwrap_or(file).display().to_string())
            .collect();
        let more = files.len().saturating_sub(shown.len());
        shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    };
    if files.is_empty() {
        let found = match below.is_empty() {
            true => "no file of a known kind".to_owned(),
            false => format!("none among {}", names(&below)),
        };
        return Err(fail(found, "name the files themselves"));
    }
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for file in &files {
        let kind = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        *kinds.entry(kind).or_default() += 1;
    }
    let folders: std::collections::BTreeSet<_> = files.iter().filter_map(|f| f.parent()).collect();
    if kinds.len() > 1 || folders.len() > 1 {
        let hint = "they may hold the same rows twice: name the files to read";
        return Err(fail(names(&files), hint));
    }
    if let Some(whole) = files.iter().find_map(|file| parts(file)).filter(|&n| n != files.len()) {
        let found = format!("{} of {whole} parts ({})", files.len(), names(&files));
        return Err(fail(found, "fetch the others, or name the files to read"));
    }
    Ok(files)
}

/// Whether `path` is plain text, by names alone: a `.txt` or `.md` file, or a folder with such files and
/// no file of rows (the card of a data set is none).
pub fn is_text(path: &Path) -> bool {
    if !path.is_dir() {
        return crate::readers::text::is_text_file(path);
    }
    let mut open = vec![path.to_owned()];
    let mut found = false;
    while let Some(folder) = open.pop() {
        for child in children(&folder).unwrap_or_default() {
            // A linked folder could contain itself.
            if child.is_dir() && !child.is_symlink() {
                open.push(child);
            } else if is_known(&child) {
                return false;
            } else {
                found |= crate::readers::text::is_text_file(&child);
            }
        }
    }
    found
}

fn children(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let io = |source| DataError::Io { path: folder.to_owned(), action: "read", source };
    let entries = fs::read_dir(folder).map_err(io)?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(io)).collect()
}

/// `N` of a name that ends in `-of-000N`.
fn parts(file: &Path) -> Option<usize> {
    let stem = file.file_stem()?.to_string_lossy().into_owned();
    let (before, whole) = stem.rsplit_once("-of-")?;
    let part = before.rsplit_once('-')?.1;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(part) && digits(whole)).then(|| whole.parse().ok())?
}

/// The licence that a folder's card (`README.md`) states in its front matter, as on the Hub:
/// `license: mit`, or a list below `license:`.
pub fn license_of(folder: &Path) -> Option<String> {
    let card = fs::read_to_string(folder.join("README.md")).ok()?;
    let mut lines = card.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let front: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    let at = front.iter().position(|line| line.starts_with("license:"))?;
    let unquoted = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    let own = unquoted(&front[at]["license:".len()..]);
    let listed = front[at + 1..].iter().map_while(|line| line.trim_start().strip_prefix("- "));
    let named: Vec<String> = match own.is_empty() {
        true => listed.map(unquoted).collect(),
        false => own.trim_matches(['[', ']']).split(',').map(unquoted).collect(),
    };
    Some(named.join(", ")).filter(|named| !named.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        dir
    }

    #[test]
    fn splits_are_found_as_the_hub_names_them() {
        fn check(files: &[&str], split: FolderSplit, expected: &[&str]) {
            let dir = folder(files);
            let found = files_of(dir.path(), split).unwrap();
            let found: Vec<_> = found
                .iter()
                .map(|f| f.strip_prefix(dir.path()).unwrap().to_str().unwrap())
                .collect();
            assert_eq!(found, expected);
        }
        use FolderSplit::{Test, Train, Valid};
        let parts = [
            "README.md",
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
            "data/validation-00000-of-00001.parquet",
        ];
        check(
            &parts,
            Train,
            &["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        );
        check(&parts, Test, &["data/test-00000-of-00001.parquet"]);
        check(&parts, Valid, &["data/validation-00000-of-00001.parquet"]);
        check(&["train.jsonl", "dev.jsonl", "notes.txt"], Train, &["train.jsonl"]);
        check(&["train.jsonl", "dev.jsonl"], Valid, &["dev.jsonl"]);
        check(
            &["train/a.csv", "train/b.csv", "test/a.csv"],
            Train,
            &["train/a.csv", "train/b.csv"],
        );
        check(&["tickets.csv", "README.md"], Train, &["tickets.csv"]);
        check(&["constraints_train.json"], Train, &["constraints_train.json"]);
    }

    #[test]
    fn doubtful_folders_are_refused() {
        fn check(files: &[&str], split: FolderSplit, expected: &[&str]) {
            let dir = folder(files);
            let error = files_of(dir.path(), split).unwrap_err().to_string();
            for part in expected {
                assert!(error.contains(part), "{error:?} lacks {part:?}");
            }
        }
        use FolderSplit::{Test, Train};
        check(
            &["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
            Train,
            &["2 of 3"],
        );
        check(&["train.jsonl", "train.csv"], Train, &["train.csv, train.jsonl", "twice"]);
        check(&["en/train.csv", "fr/train.csv"], Train, &["en/train.csv", "twice"]);
        check(&["train.jsonl"], Test, &["none among train.jsonl", "named test"]);
        check(&["a.txt"], Train, &["no file of a known kind"]);
    }

    #[test]
    fn the_card_states_the_licence() {
        let check = |card: &str, expected: Option<&str>| {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("README.md"), card).unwrap();
            assert_eq!(license_of(dir.path()).as_deref(), expected, "{card}");
        };
        check("---\nlanguage: fr\nlicense: etalab-2.0\n---\n# Card", Some("etalab-2.0"));
        check(
            "---\r\nlicense:\r\n- mit\r\n- cc-by-4.0\r\nsize: x\r\n---\r\n",
            Some("mit, cc-by-4.0"),
        );
        check("---\nlicense: [mit, \"apache-2.0\"]\n---\n", Some("mit, apache-2.0"));
        check("---\nlicense:\n---\n", None);
        check("# Card\nlicense: mit\n", None);
        check("", None);
        assert_eq!(license_of(Path::new("no/such")), None);
    }
}
