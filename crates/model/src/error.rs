//! What can go wrong with model files and batches, said so that the reader can act.

use std::path::{Path, PathBuf};

/// Errors of this crate. Each message names the file or place, what was found and what was
/// expected.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model folder lacks a file that every model has.
    #[error("{dir}: {missing} is missing. {hint}")]
    MissingFile {
        /// The model folder.
        dir: PathBuf,
        /// The file looked for.
        missing: String,
        /// What to do about it.
        hint: String,
    },
    /// config.json cannot be used.
    #[error("{path}: {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Field, what was found, what was expected.
        problem: String,
    },
    /// A safetensors file or its index is broken or lies.
    #[error("{path}: {problem}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// A GGUF file is broken, lies, or is of a kind that is not read.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// Tensors do not fit the configuration; all of them are listed.
    #[error(
        "{dir}: {count} tensor(s) do not fit config.json:\n  {list}\nhint: the weights and config.json must come from the same model"
    )]
    Mismatches {
        /// The model folder.
        dir: PathBuf,
        /// How many.
        count: usize,
        /// One line each: name, found, expected.
        list: String,
    },
    /// An adapter cannot be used with this base, or at all.
    #[error("adapter {path}: {problem}")]
    Adapter {
        /// The adapter's folder or file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// A batch breaks a rule of the decoder (an error of the caller).
    #[error("batch: {0}")]
    Batch(String),
    /// Parameters handed over do not fit this decoder.
    #[error("parameters: {0}")]
    Params(String),
}

impl ModelError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> ModelError {
        ModelError::Io { path: path.to_owned(), source }
    }
    pub(crate) fn weights(path: &Path, problem: impl Into<String>) -> ModelError {
        ModelError::Weights { path: path.to_owned(), problem: problem.into() }
    }
    pub(crate) fn adapter(path: &Path, problem: impl Into<String>) -> ModelError {
        ModelError::Adapter { path: path.to_owned(), problem: problem.into() }
    }
    pub(crate) fn config(path: &Path, problem: impl Into<String>) -> ModelError {
        ModelError::Config { path: path.to_owned(), problem: problem.into() }
    }
}
