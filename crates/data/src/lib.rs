//! Data on its way to training and to the test: readers (one file per format, one table in
//! [`FORMATS`]), duplicate removal, group-aware split, the train/test leak check, token statistics
//! and the report that joins them.
//!
//! Everything is judged at the edge: an [`Example`] that exists has a conversation of known roles in
//! a sensible order, with text in every turn, ending with the assistant. Memory is bounded by a
//! small constant times the size of the files read.

mod dedup;
mod error;
mod example;
mod files;
mod leak;
mod minhash;
mod normalise;
mod prepare;
mod readers;
mod report;
mod split;
mod stats;

pub use dedup::{
    Conflict, DedupOptions, DedupReport, DuplicateKind, Removed, conflicts, deduplicate,
};
pub use error::{DataError, Problem, RowErrors};
pub use example::{Example, Origin, make_ids_unique};
pub use leak::{Leak, LeakKind, LeakOptions, LeakReport, leak_check};
pub use normalise::normalise;
pub use prepare::{CheckOptions, PrepareOptions, Prepared, TokenCounter, check, prepare};
pub use readers::text::{Document, read_text};
pub use readers::{FORMATS, Format, ReadOptions, detect, read};
pub use report::{DataReport, InputReport, SCHEMA_VERSION, SetLeaks};
pub use split::{Split, SplitOptions, SplitReport, split};
pub use stats::{TokenStats, token_stats};
