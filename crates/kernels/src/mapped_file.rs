//! A file as bytes in memory without reading it first. Here because mapping is `unsafe`.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A read-only memory map of a whole file.
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps `path`.
    ///
    /// # Errors
    /// What the system says when the file cannot be opened or mapped; an empty file cannot.
    pub fn open(path: &Path) -> io::Result<MappedFile> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only and private to this process. Another process that cuts the
        // file short while it is read would end this one with SIGBUS; model files are not
        // rewritten in place (our own writers rename a new file over the old one), and no value
        // read from the map is trusted without a check.
        Ok(MappedFile(unsafe { memmap2::Mmap::map(&file)? }))
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
