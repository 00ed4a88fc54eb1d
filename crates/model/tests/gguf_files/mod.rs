//! GGUF files for tests, built byte by byte so that they can lie.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::PathBuf;

/// What a GGUF file says about itself, true or not.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    /// In place of the true counts.
    pub(crate) tensor_count: Option<u64>,
    pub(crate) entry_count: Option<u64>,
    /// Whole entries: key, type, value.
    pub(crate) entries: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Vec<u8>>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

impl Gguf {
    /// Two tensors and some metadata, all true: an f32 vector of 8 ones, and a Q8_0 matrix of
    /// [2, 32].
    pub(crate) fn honest() -> Gguf {
        let mut data = 1f32.to_le_bytes().repeat(8);
        data.extend([7; 68]);
        Gguf {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: vec![
                entry("general.architecture", 8, text("nano")),
                entry("nano.block_count", 4, 2u32.to_le_bytes()),
                entry("nano.epsilon", 6, 0.5f32.to_le_bytes()),
                entry("nano.flag", 7, [1]),
                entry("tokens", 9, array(8, 2, [text("a"), text("bc")].concat())),
                entry("scores", 9, array(6, 1, 2.5f32.to_le_bytes())),
            ],
            tensors: vec![tensor("norm", &[8], 0, 0), tensor("weight", &[32, 2], 8, 32)],
            alignment: 32,
            data,
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        out.extend(self.entries.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

pub(crate) fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

pub(crate) fn entry(key: &str, kind: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value.as_ref()].concat()
}

pub(crate) fn array(kind: u32, len: u64, values: impl AsRef<[u8]>) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &len.to_le_bytes(), values.as_ref()].concat()
}

/// `dimensions` innermost first, as in the file.
pub(crate) fn tensor(name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = text(name);
    out.extend((dimensions.len() as u32).to_le_bytes());
    for n in dimensions {
        out.extend(n.to_le_bytes());
    }
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

/// A file or folder of the shared material, or `None` with a loud line when it is not there.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("METIER_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not there", path.display());
    None
}
