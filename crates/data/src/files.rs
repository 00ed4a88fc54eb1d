//! Whole files, in and out: text is checked once when it is read; what is written appears whole or
//! not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::DataError;

/// Reads a UTF-8 file, without its byte order mark. `expected` says what should be in it.
///
/// # Errors
/// [`DataError::Io`], [`DataError::Empty`] (also when there is only white space) and
/// [`DataError::NotUtf8`].
pub(crate) fn read_utf8(path: &Path, expected: &str) -> Result<String, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), action: "read", source };
    // A pipe or a device could go on for ever; only a file has an end.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(io(std::io::Error::other("it is not a file")));
    }
    let bytes = fs::read(path).map_err(io)?;
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        not_utf8(path, error.as_bytes(), at)
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    if text.trim().is_empty() {
        return Err(DataError::Empty { path: path.to_owned(), expected: expected.to_owned() });
    }
    Ok(text)
}

fn not_utf8(path: &Path, bytes: &[u8], at: usize) -> DataError {
    let shown = path.display();
    let (found, from) = match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => ("the mark of UTF-16".to_owned(), "UTF-16"),
        [b'P', b'K', 3, 4, ..] => ("a zip archive (a spreadsheet?)".to_owned(), ""),
        [0x1f, 0x8b, ..] => ("a gzip archive".to_owned(), ""),
        _ => (
            format!("the byte 0x{:02x}", bytes.get(at).copied().unwrap_or_default()),
            "WINDOWS-1252",
        ),
    };
    let hint = match from {
        "" => "unpack it, or export the table as CSV in UTF-8".to_owned(),
        from => format!(
            "convert it, for example: iconv -f {from} -t UTF-8 {shown} > utf8_{}",
            path.file_name().unwrap_or_default().to_string_lossy()
        ),
    };
    DataError::NotUtf8 {
        path: path.to_owned(),
        line: bytes[..at].iter().filter(|&&b| b == b'\n').count() + 1,
        offset: at,
        found,
        hint,
    }
}

/// Writes several files of one folder: each to a temporary file beside its place, and only when all
/// are on the disk are they renamed, in order. After a failure before the first rename nothing has
/// changed; a reader never sees half a file.
///
/// # Errors
/// [`DataError::Io`] naming the file; the temporary files are removed.
pub(crate) fn write_all_atomic(dir: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), DataError> {
    let io = |path: &Path, action| {
        let path = path.to_owned();
        move |source| DataError::Io { path, action, source }
    };
    fs::create_dir_all(dir).map_err(io(dir, "create the folder"))?;
    let mut temporaries: Vec<(PathBuf, PathBuf)> = Vec::new();
    let mut write = || {
        for (name, bytes) in files {
            let path = dir.join(name);
            let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
            temporaries.push((temporary.clone(), path.clone()));
            File::create(&temporary)
                .and_then(|mut file| {
                    file.write_all(bytes)?;
                    file.sync_all()
                })
                .map_err(io(&path, "write"))?;
        }
        for (temporary, path) in &temporaries {
            fs::rename(temporary, path).map_err(io(path, "write"))?;
        }
        Ok(())
    };
    let written = write();
    if written.is_err() {
        for (temporary, _) in &temporaries {
            // The write already failed with a better reason than the clean-up could give.
            let _ = fs::remove_file(temporary);
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_or_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("taken")).unwrap();
        let error = write_all_atomic(dir.path(), &[("taken", b"x".to_vec()), ("b", b"y".to_vec())]);
        assert!(error.unwrap_err().to_string().contains("taken"));
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");

        write_all_atomic(dir.path(), &[("a", b"1".to_vec()), ("b", b"2".to_vec())]).unwrap();
        write_all_atomic(dir.path(), &[("a", b"3".to_vec())]).unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"3");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn names_the_encoding_it_suspects() {
        let dir = tempfile::tempdir().unwrap();
        let check = |bytes: &[u8], expected: &[&str]| {
            let path = dir.path().join("f.csv");
            fs::write(&path, bytes).unwrap();
            let error = read_utf8(&path, "rows").unwrap_err().to_string();
            for part in expected {
                assert!(error.contains(part), "{error:?} lacks {part:?}");
            }
        };
        check(
            b"a,b\nok,ok\ncaf\xe9,x\n",
            &["f.csv:3:", "0xe9", "byte 13", "iconv -f WINDOWS-1252"],
        );
        check(b"\xff\xfea\0", &["UTF-16", "iconv -f UTF-16"]);
        check(b"PK\x03\x04\xff\xfe", &["zip", "export"]);
        check(b"", &["empty"]);
        check(b"\xef\xbb\xbf \r\n", &["empty", "rows"]);
        let error = read_utf8(dir.path(), "rows").unwrap_err().to_string();
        assert!(error.contains("not a file"), "{error}");
    }
}
