//! A folder that is there as a whole or not at all: built beside under a hidden name and renamed at the
//! end. An error, Ctrl-C and SIGTERM take the half-made one away.

use crate::exit;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;

/// What a signal has to take away.
static UNDER_WAY: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Begins the hidden folder's name; only SIGKILL or a power cut can leave one behind.
const PREFIX: &str = ".metier-export-";

pub(super) struct Staging {
    beside: TempDir,
    dir: PathBuf,
}

impl Staging {
    /// A folder beside `out`, which becomes it in [`Staging::publish`].
    pub(super) fn new(out: &Path) -> Result<Staging> {
        let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        ctrlc::set_handler(take_away)?;
        // Under the lock: a signal in between would not know of the folder.
        let mut under_way = lock();
        let beside = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(parent)
            .with_context(|| parent.display().to_string())?;
        *under_way = Some(beside.path().to_owned());
        drop(under_way);
        let dir = beside.path().join("export");
        std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Staging { beside, dir })
    }

    /// Where to write.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives the folder its name.
    pub(super) fn publish(self, out: &Path) -> Result<()> {
        let mut under_way = lock();
        std::fs::rename(&self.dir, out).with_context(|| out.display().to_string())?;
        self.beside.close().with_context(|| out.display().to_string())?;
        *under_way = None;
        Ok(())
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<PathBuf>> {
    UNDER_WAY.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// On a signal: waits for a rename under way, deletes what is half made, and ends the program.
fn take_away() {
    if let Some(folder) = lock().take() {
        // The export goes on meanwhile and may put a file into a folder that was just found empty.
        for _ in 0..100 {
            let _ = std::fs::remove_dir_all(&folder);
            if !folder.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("interrupted; nothing was written");
    }
    std::process::exit(i32::from(exit::FAILED));
}
