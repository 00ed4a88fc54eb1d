//! What can go wrong in an evaluation, said so that the reader can act.

use std::path::PathBuf;

/// Errors of this crate, except those of [`crate::stats`].
///
/// A single answer that fails is no error: it is an [`crate::Answer`] with a reason, scored 0.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// There is nothing to evaluate on.
    #[error("there are no test examples. hint: give a test file with at least one example")]
    NoItems,
    /// There is nothing to measure with.
    #[error("no metric is named. hint: name at least one of {known}")]
    NoMetrics {
        /// Names of all metrics.
        known: String,
    },
    /// A metric nobody knows.
    #[error("unknown metric {found:?}; known are {known}{hint}")]
    UnknownMetric {
        /// The name given.
        found: String,
        /// Names of all metrics.
        known: String,
        /// `. hint: did you mean ...?`, or nothing.
        hint: String,
    },
    /// Two test examples have one id, so answers could not be told apart.
    #[error(
        "test examples {first} and {second} (counted from 1) both have the id {id:?}. hint: give every example its own id"
    )]
    DuplicateId {
        /// The id.
        id: String,
        /// Place of the first, from 1.
        first: usize,
        /// Place of the second, from 1.
        second: usize,
    },
    /// A reference cannot be scored by a metric.
    #[error(
        "the reference of example {id:?} does not suit the metric {metric}: {reason}. hint: correct the test file or leave the metric out"
    )]
    BadReference {
        /// Id of the example.
        id: String,
        /// Name of the metric.
        metric: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A conversation that ends with something else than an answer has no reference.
    #[error(
        "example {id:?} ends with {found}; expected a last message of the role \"assistant\", the reference answer"
    )]
    NoReference {
        /// Id of the example.
        id: String,
        /// What was found.
        found: String,
    },
    /// Two candidates have one name.
    #[error("two candidates are called {name:?}. hint: give each its own name")]
    DuplicateCandidate {
        /// The name.
        name: String,
    },
    /// A candidate that is asked for is not part of the result.
    #[error("there is no candidate {found:?}; there are {known}")]
    UnknownCandidate {
        /// The name given.
        found: String,
        /// Names of all candidates.
        known: String,
    },
    /// A candidate gave back another number of answers than it was asked.
    #[error("candidate {name:?} gave {found} answers to {expected} examples")]
    AnswerCount {
        /// Name of the candidate.
        name: String,
        /// Answers it gave.
        found: usize,
        /// Examples it was asked.
        expected: usize,
    },
    /// A recorded answer cannot be read or belongs to another test set.
    #[error("{path}, line {line}: {reason}")]
    Recorded {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What was found and what was expected.
        reason: String,
    },
    /// None of the recorded answers belongs to a test example.
    #[error(
        "{path}: none of its {recorded} recorded answers has the id of one of the {items} test examples. hint: record the answers with the same test file"
    )]
    NothingRecorded {
        /// The file.
        path: PathBuf,
        /// Answers in it.
        recorded: usize,
        /// Test examples.
        items: usize,
    },
    /// A rented model cannot be asked at all.
    #[error("{name}: {reason}")]
    Rented {
        /// Name of the candidate.
        name: String,
        /// Why, with a hint.
        reason: String,
    },
    /// A proof does not hold.
    #[error("{path}: {reason}")]
    Broken {
        /// The file in which something is not as it was.
        path: PathBuf,
        /// What.
        reason: String,
    },
    /// A cost cannot be reckoned.
    #[error(transparent)]
    Cost(#[from] crate::cost::CostError),
    /// The statistics refused.
    #[error(transparent)]
    Stats(#[from] crate::stats::StatsError),
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// `read`, `write`, `lock` or `list`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The report could not be turned into text.
    #[error("cannot write the report as {format}: {reason}")]
    Render {
        /// `HTML` or `JSON`.
        format: &'static str,
        /// Why.
        reason: String,
    },
    /// A file that should count the openings of a test set does not.
    #[error(
        "{path}: {found}; expected the record of a test set's openings. hint: move the file away to start counting anew, and remember that it was opened before"
    )]
    Openings {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// A metric does not take the parameter it was given.
    #[error(
        "the metric {name} cannot be used: {reason}. hint: the parameter is all that stands behind the colon"
    )]
    MetricParameter {
        /// The metric with its parameter.
        name: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// An answer cannot be scored by a metric.
    #[error(
        "{candidate} cannot be scored by the metric {metric}, first at example {id:?}: {reason}"
    )]
    NotScored {
        /// Name of the candidate.
        candidate: String,
        /// Name of the metric.
        metric: &'static str,
        /// Id of the example.
        id: String,
        /// What is not known of the answer, or what went wrong.
        reason: String,
    },
    /// An embedding model cannot compare texts.
    #[error("the embedding model cannot compare answers with references: {0}")]
    Embedding(String),
    /// A baseline nobody knows.
    #[error("unknown baseline {found:?}; known are {known}")]
    UnknownBaseline {
        /// The name given.
        found: String,
        /// Names of all baselines.
        known: String,
    },
}
