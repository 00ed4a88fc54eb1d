//! A file as bytes in memory without reading it first. Here because mapping is `unsafe`.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A read-only memory map of a whole file.
#[derive(Debug)]
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

    /// Has the system begin to read the whole file into its cache. Does nothing where it declines.
    pub fn will_need(&self) {
        #[cfg(unix)]
        let _ = self.0.advise(memmap2::Advice::WillNeed);
    }

    /// Lets the pages of `part` leave this process: what was read of a file counts as its memory
    /// until then. The bytes stay readable (from the system's cache or the disk). Does nothing
    /// where `part` is not of this file or the system declines.
    pub fn release(&self, part: &[u8]) {
        let (start, map) = (part.as_ptr() as usize, self.0.as_ptr() as usize);
        let inside = start >= map && start + part.len() <= map + self.0.len();
        #[cfg(unix)]
        if inside && !part.is_empty() {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is read-only and of a file, so pages that are dropped come back with
            // the same bytes.
            let _ = unsafe { self.0.unchecked_advise_range(advice, start - map, part.len()) };
        }
        #[cfg(not(unix))]
        let _ = inside;
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
