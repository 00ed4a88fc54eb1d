//! The output folder: one run at a time, its log, and the result.

use crate::checkpoint;
use crate::error::TrainError;
use crate::events::{Event, Observer};
use crate::manifest::MANIFEST_FILE;
use crate::tensorboard::EventFile;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the log, one JSON object per line.
pub const LOG_FILE: &str = "train_log.jsonl";
const LOCK_FILE: &str = ".train.lock";

/// Whether a run is going on in `dir`: its lock is held.
pub fn is_running(dir: &Path) -> bool {
    let lock = File::open(dir.join(LOCK_FILE));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// The files of a model folder that belong to its tokenizer and must go where the weights go.
pub fn tokenizer_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = text::Tokenizer::source_files(dir);
    let around = [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        crate::manifest::CHAT_TEMPLATE_FILE,
    ];
    files.extend(around.map(|name| dir.join(name)));
    files.retain(|path| path.is_file());
    files
}

/// Where the numbers of a run go beside its log, under Hugging Face's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportTo {
    /// An event file for TensorBoard in the output folder.
    Tensorboard,
}

pub(crate) struct Output<'a> {
    pub(crate) dir: PathBuf,
    event_file: Option<EventFile>,
    log: File,
    log_path: PathBuf,
    observer: &'a mut dyn Observer,
    /// Held until the run ends, also when it is killed.
    _lock: File,
}

impl<'a> Output<'a> {
    /// Takes the folder for this run.
    ///
    /// # Errors
    /// [`TrainError::OutputLocked`] while another run has it; [`TrainError::OutputTaken`] when it
    /// holds an earlier run that is not to be resumed.
    pub(crate) fn open(
        dir: &Path,
        resume: bool,
        report_to: &[ReportTo],
        observer: &'a mut dyn Observer,
    ) -> Result<Output<'a>, TrainError> {
        fs::create_dir_all(dir).map_err(|e| TrainError::io(dir, e))?;
        let lock_path = dir.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|e| TrainError::io(&lock_path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TrainError::OutputLocked(dir.to_owned())),
            Err(TryLockError::Error(e)) => return Err(TrainError::io(&lock_path, e)),
        }
        if !resume {
            let earlier = [MANIFEST_FILE, "adapter_model.safetensors", "model.safetensors"]
                .into_iter()
                .find(|name| dir.join(name).exists())
                .map(str::to_owned)
                .or_else(|| {
                    checkpoint::list(dir)
                        .ok()?
                        .first()
                        .map(|(step, _)| format!("checkpoint-{step}"))
                });
            if let Some(found) = earlier {
                return Err(TrainError::OutputTaken { path: dir.to_owned(), found });
            }
        }
        checkpoint::clean(dir)?;
        let log_path = dir.join(LOG_FILE);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(|e| TrainError::io(&log_path, e))?;
        if !resume {
            log.set_len(0).map_err(|e| TrainError::io(&log_path, e))?;
        }
        let event_file = match report_to.contains(&ReportTo::Tensorboard) {
            true => Some(EventFile::open(dir, resume)?),
            false => None,
        };
        Ok(Output { dir: dir.to_owned(), event_file, log, log_path, observer, _lock: lock })
    }

    /// Tells the observer, writes a log line, and what is drawn.
    pub(crate) fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        self.observer.event(event);
        let mut line = serde_json::to_vec(event).expect("an event is plain JSON");
        line.push(b'\n');
        self.log.write_all(&line).map_err(|e| TrainError::io(&self.log_path, e))?;
        self.event_file.as_mut().map_or(Ok(()), |file| file.event(event))
    }

    /// Tells the observer alone.
    pub(crate) fn event_unlogged(&mut self, event: &Event) {
        self.observer.event(event);
    }

    /// Drops log lines of steps after `step`, which will be done again, those about the end, and a
    /// half-written one; all lines when the run begins anew.
    pub(crate) fn rewind_log(&mut self, step: Option<u64>) -> Result<(), TrainError> {
        let io = |e| TrainError::io(&self.log_path, e);
        let text = String::from_utf8_lossy(&fs::read(&self.log_path).map_err(io)?).into_owned();
        let kept: String = text
            .lines()
            .filter(|line| {
                serde_json::from_str::<serde_json::Value>(line).is_ok_and(|v| {
                    let done = |s: u64| step.is_some_and(|step| s <= step);
                    let last = v["event"] == "end" || v["event"] == "guard";
                    step.is_some() && !last && v["step"].as_u64().is_none_or(done)
                })
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        model::write_atomic(&self.log_path, kept.as_bytes())?;
        self.log = OpenOptions::new().append(true).open(&self.log_path).map_err(io)?;
        match (&mut self.event_file, step) {
            (None, _) => {}
            (Some(file), Some(step)) => file.rewind(step)?,
            (Some(file), None) => *file = EventFile::open(&self.dir, false)?,
        }
        Ok(())
    }
}
