//! A folder that is there as a whole or not at all: built beside under a hidden name and renamed at the
//! end. An error, Ctrl-C and SIGTERM take the half-made one away; what SIGKILL or a power cut leaves, the
//! next export beside it does.

use crate::exit;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;

/// What a signal has to take away.
static UNDER_WAY: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Begins the hidden folder's name.
const PREFIX: &str = ".metier-export-";
/// File in the hidden folder that is locked as long as its export runs. It gets this name only once it is
/// locked: a free one is that of a process that is gone.
const LOCK: &str = "lock";

pub(super) struct Staging {
    beside: TempDir,
    dir: PathBuf,
    /// Dropped last: the system frees it when the process ends, however it ends.
    _lock: File,
}

impl Staging {
    /// A folder beside `out`, which becomes it in [`Staging::publish`].
    pub(super) fn new(out: &Path) -> Result<Staging> {
        let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        ctrlc::set_handler(take_away)?;
        remove_stale(parent);
        // Under the lock: a signal in between would not know of the folder.
        let mut under_way = lock();
        let beside = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(parent)
            .with_context(|| parent.display().to_string())?;
        *under_way = Some(beside.path().to_owned());
        drop(under_way);
        let lock = locked(beside.path()).with_context(|| beside.path().display().to_string())?;
        let dir = beside.path().join("export");
        std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Staging { beside, dir, _lock: lock })
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

/// A file in `folder` that is locked before it has its name.
fn locked(folder: &Path) -> std::io::Result<File> {
    let new = folder.join("lock.new");
    let file = File::create(&new)?;
    file.lock()?;
    std::fs::rename(&new, folder.join(LOCK))?;
    Ok(file)
}

/// Deletes the hidden folders in `parent` whose exports are gone. What is not surely one of those stays:
/// a folder without a lock file, a link, one whose lock is held or cannot be asked for.
fn remove_stale(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let file = OpenOptions::new().write(true).open(entry.path().join(LOCK));
        let Some(lock) = file.ok().filter(|_| ours && folder) else { continue };
        if lock.try_lock().is_ok() {
            let path = entry.path();
            match std::fs::remove_dir_all(&path) {
                Ok(()) => {
                    tracing::info!("removed {}, left by an export that was killed", path.display())
                }
                Err(error) => {
                    tracing::warn!("{}: left by a killed export: {error}", path.display())
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_what_a_dead_export_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.join("export")).unwrap();
            fs::write(path.join("export/model.safetensors"), "half").unwrap();
            path
        };
        let dead = folder(".metier-export-dead");
        drop(locked(&dead).unwrap());
        let running = folder(".metier-export-running");
        let held = locked(&running).unwrap();
        let beginning = folder(".metier-export-beginning");
        fs::write(beginning.join("lock.new"), "").unwrap();
        let other = folder("metier-export-of-mine");
        drop(locked(&other).unwrap());
        remove_stale(dir.path());
        assert!(!dead.exists());
        for path in [&running, &beginning, &other] {
            assert!(path.join("export/model.safetensors").is_file(), "{}", path.display());
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&other, dir.path().join(".metier-export-link")).unwrap();
            remove_stale(dir.path());
            assert!(other.join(LOCK).is_file());
        }
        drop(held);
        remove_stale(dir.path());
        assert!(!running.exists());
    }
}
