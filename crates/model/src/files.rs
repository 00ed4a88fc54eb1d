//! Files on disk: bounded reads, writes that never leave half a file, digests.

use crate::ModelError;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

/// JSON files of a model are small; anything larger than this is not one.
pub(crate) const MAX_JSON_BYTES: u64 = 64 << 20;

/// Writes `bytes` to `path` so that a reader sees the old file or the whole new one: written
/// beside, flushed to disk, then renamed over.
///
/// # Errors
/// [`ModelError::Io`] with the path; the old file, if any, is untouched then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], for what is too large to be held as one piece: `write` is given the file.
pub(crate) fn write_atomic_with(
    path: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> Result<(), ModelError> {
    let io = |e| ModelError::io(path, e);
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(io)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = File::create(&beside)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        // The rename itself is durable only once the folder is.
        File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        // Best effort: the error that matters is the one being returned.
        let _ = fs::remove_file(&beside);
    }
    written.map_err(io)
}

/// Lower-case hexadecimal SHA-256 of `bytes`.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 over the named files, each by name and content, in the order given.
pub(crate) fn digest_files(dir: &Path, names: &[String]) -> Result<String, ModelError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    for name in names {
        let path = dir.join(name);
        let mut file = File::open(&path).map_err(|e| ModelError::io(&path, e))?;
        hasher.update(name.as_bytes());
        hasher.update([0]);
        loop {
            let n = file.read(&mut buffer).map_err(|e| ModelError::io(&path, e))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// Reads a JSON file of at most [`MAX_JSON_BYTES`].
pub(crate) fn read_json_bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
    let size = fs::metadata(path).map_err(|e| ModelError::io(path, e))?.len();
    if size > MAX_JSON_BYTES {
        return Err(ModelError::config(
            path,
            format!("found {size} bytes, expected at most {MAX_JSON_BYTES} for a JSON file"),
        ));
    }
    fs::read(path).map_err(|e| ModelError::io(path, e))
}

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}
