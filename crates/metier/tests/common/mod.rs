//! What several tests of the binary need.

// Each test file uses its own part of this.
#![allow(dead_code)]

pub(crate) mod proving;
#[cfg(unix)]
pub(crate) mod serving;

use std::path::{Path, PathBuf};

/// A file or folder of the real material beside the repository (or in METIER_SHARED); None, and
/// said loudly, when it is not there.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("METIER_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not there", path.display());
    None
}
