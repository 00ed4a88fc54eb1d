//! What the binary carries: the bundled base model and the sample trade.

use anyhow::{Context, Result, bail};
use rust_embed::RustEmbed;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Everything in `assets/` of the repository, inside the binary (read from the folder in debug
/// builds).
#[derive(RustEmbed)]
#[folder = "../../assets/"]
struct Assets;

/// Bytes of one bundled file.
pub(crate) fn read(name: &str) -> Result<Vec<u8>> {
    let file = Assets::get(name).with_context(|| {
        format!("this build of metier carries no {name}\nhint: build it from a complete checkout")
    })?;
    Ok(file.data.into_owned())
}

/// Unpacks the bundled folder `name` into the user's cache (or the temporary folder when there is
/// none) and returns where it is. The folder's name holds a digest of its content, so that another
/// build's files are never taken for this one's.
pub(crate) fn unpack(name: &str) -> Result<PathBuf> {
    let prefix = format!("{name}/");
    // Of whoever ran the recipes or the tests before the build.
    let counts = |file: &str| file.contains(::eval::OPENINGS_SUFFIX);
    let mut files: Vec<String> = Assets::iter()
        .filter(|file| file.starts_with(&prefix) && !counts(file))
        .map(|file| file.into_owned())
        .collect();
    files.sort();
    if files.is_empty() {
        bail!("this build of metier carries no {name}\nhint: build it from a complete checkout");
    }
    let mut hasher = Sha256::new();
    let mut contents = Vec::new();
    for file in &files {
        let data = read(file)?;
        hasher.update(file.as_bytes());
        hasher.update((data.len() as u64).to_le_bytes());
        hasher.update(&data);
        contents.push(data);
    }
    let digest: String = hasher.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    let dir = cache_dir().join(format!("{name}-{digest}"));
    for (file, data) in files.iter().zip(contents) {
        let path = dir.join(&file[prefix.len()..]);
        // A whole file is there or none (it is renamed into place), so its length tells.
        if std::fs::metadata(&path).is_ok_and(|m| m.len() == data.len() as u64) {
            continue;
        }
        model::write_atomic(&path, &data)
            .with_context(|| format!("unpacking the bundled {name}\nhint: set METIER_CACHE to a folder that can be written"))?;
    }
    Ok(dir)
}

/// `METIER_CACHE`, else the platform's cache folder, else the temporary folder.
fn cache_dir() -> PathBuf {
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = env("METIER_CACHE") {
        return dir;
    }
    let base = env("XDG_CACHE_HOME")
        .or_else(|| env("HOME").map(|home| home.join(".cache")))
        .filter(|p| p.is_absolute());
    base.unwrap_or_else(std::env::temp_dir).join(Path::new("metier"))
}
