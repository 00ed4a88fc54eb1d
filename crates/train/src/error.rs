//! What stops a training, said so that the reader can act.

use std::path::{Path, PathBuf};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A field of the plan cannot be honoured.
    #[error("{field}: found {found}, expected {expected}")]
    Plan {
        /// Name of the field in [`crate::TrainPlan`].
        field: &'static str,
        /// Its value.
        found: String,
        /// What is allowed, and a hint.
        expected: String,
    },
    /// Nothing to train on.
    #[error("no rows to train on: {0}")]
    NoData(String),
    /// Too many rows had to be left out.
    #[error(
        "{dropped} of {total} rows cannot be used ({percent:.1} %, at most {allowed:.1} % allowed): {why}\n  first ones: {examples}\nhint: {hint}"
    )]
    TooManyDropped {
        /// Rows left out.
        dropped: usize,
        /// Rows read.
        total: usize,
        /// Share left out, in percent.
        percent: f64,
        /// Share allowed, in percent.
        allowed: f64,
        /// Counts by reason.
        why: String,
        /// Ids of some of them.
        examples: String,
        /// What to do.
        hint: String,
    },
    /// A row breaks a rule that would spoil the training silently.
    #[error("{id}: {problem}")]
    Row {
        /// The example.
        id: String,
        /// What is wrong, what was expected, and a hint.
        problem: String,
    },
    /// A loss or gradient is not a finite number; nothing was saved since the last checkpoint.
    #[error(
        "step {step}: the {what} is {value}, expected a finite number; examples of this step: {examples}\nhint: look at these examples; lower learning_rate, or set max_grad_norm = 1.0. The last good state is the newest checkpoint"
    )]
    NonFinite {
        /// Optimizer step, from 1.
        step: u64,
        /// Loss, gradient norm or parameter.
        what: &'static str,
        /// As found.
        value: String,
        /// Ids of the examples concerned.
        examples: String,
    },
    /// Parameters that must move did not: the training would change nothing.
    #[error(
        "after step {step}, {count} {side} did not move: {modules}\nhint: the training has no effect there; check learning_rate and that the rows have supervised tokens"
    )]
    DidNotMove {
        /// Optimizer step, from 1.
        step: u64,
        /// How many.
        count: usize,
        /// lora_A, lora_B or tensors.
        side: &'static str,
        /// Their names.
        modules: String,
    },
    /// The adapter read back from disk is not the one in memory.
    #[error(
        "{0}: what was read back differs from what was trained\nhint: the disk or another process changed the file; train again with --resume to write it anew"
    )]
    ReadBack(PathBuf),
    /// The output folder holds another run.
    #[error(
        "{path}: holds an earlier training ({found})\nhint: continue it with --resume, or choose another output folder"
    )]
    OutputTaken {
        /// The output folder.
        path: PathBuf,
        /// What was found in it.
        found: String,
    },
    /// Another process trains into the same folder.
    #[error(
        "{0}: another training is writing there\nhint: wait for it, or choose another output folder"
    )]
    OutputLocked(PathBuf),
    /// A checkpoint belongs to another run.
    #[error(
        "{path}: this checkpoint belongs to another run:\n  {differences}\nhint: resume with the plan, data and base it was started with, or choose another output folder"
    )]
    ResumeMismatch {
        /// The checkpoint.
        path: PathBuf,
        /// One line each.
        differences: String,
    },
    /// No checkpoint can be read.
    #[error(
        "{path}: none of the {count} checkpoint(s) can be read:\n  {problems}\nhint: delete the checkpoint folders to start again"
    )]
    NoUsableCheckpoint {
        /// The output folder.
        path: PathBuf,
        /// How many there are.
        count: usize,
        /// One line each.
        problems: String,
    },
    /// A checkpoint file is broken.
    #[error("{path}: {problem}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file could not be written while the training went on.
    #[error(
        "{source}\n{stands}\nhint: {hint}, then the same command with --resume goes on from there"
    )]
    Stopped {
        /// What went wrong, with the file.
        source: Box<TrainError>,
        /// Which checkpoints stand.
        stands: String,
        /// What to do first.
        hint: &'static str,
    },
    /// From the model.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// From tokenizer or chat template.
    #[error("{id}: {source}")]
    Text {
        /// The example or document.
        id: String,
        /// What went wrong.
        source: text::TextError,
    },
}

impl TrainError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> TrainError {
        TrainError::Io { path: path.to_owned(), source }
    }
    /// What the system said, where a file could not be read or written.
    pub(crate) fn io_source(&self) -> Option<&std::io::Error> {
        match self {
            TrainError::Io { source, .. } => Some(source),
            TrainError::Model(model::ModelError::Io { source, .. }) => Some(source),
            _ => None,
        }
    }
    pub(crate) fn checkpoint(path: &Path, problem: impl Into<String>) -> TrainError {
        TrainError::Checkpoint { path: path.to_owned(), problem: problem.into() }
    }
    pub(crate) fn plan(
        field: &'static str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> TrainError {
        TrainError::Plan { field, found: found.to_string(), expected: expected.into() }
    }
}

/// The first few of `ids`, and how many more there are.
pub(crate) fn name_some<S: AsRef<str>>(ids: impl IntoIterator<Item = S>) -> String {
    const SHOWN: usize = 8;
    let mut shown = Vec::new();
    let mut more = 0;
    for id in ids {
        if shown.len() < SHOWN {
            shown.push(id.as_ref().to_owned());
        } else {
            more += 1;
        }
    }
    let list = shown.join(", ");
    if more == 0 { list } else { format!("{list} and {more} more") }
}
