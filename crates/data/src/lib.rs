//! Data on its way to training and to the test: readers (one file for each form of rows and each
//! kind of file, tables in [`FORMS`] and [`CONTAINERS`]), preferences between answers, duplicate
//! removal, group-aware split, the train/test leak check, token statistics and the report that joins
//! them.
//!
//! Everything is judged at the edge: an [`Example`] that exists has a conversation of known roles in
//! a sensible order, with text or tool calls in every turn, ending with the assistant. Memory is
//! bounded by a small constant times the size of the files read.

mod dedup;
mod error;
mod example;
mod files;
mod folder;
mod leak;
mod minhash;
mod mix;
mod normalise;
mod personal;
mod preference;
mod prepare;
mod readers;
mod report;
mod split;
mod stats;

pub use dedup::{
    Conflict, DedupOptions, DedupReport, DuplicateKind, Removed, conflicts, deduplicate,
};
pub use error::{DataError, Problem, RowErrors};
pub use example::{Example, MAX_SLICES, Origin, make_ids_unique};
pub use folder::{FolderSplit, files_of, is_text, license_of};
pub use leak::{Leak, LeakKind, LeakOptions, LeakReport, leak_check};
pub use mix::{Drawn, mix};
pub use normalise::normalise;
pub use personal::{PersonalKind, PersonalPlace, PersonalReport, personal_data, redacted};
pub use preference::{Answers, Preference};
pub use prepare::{
    CheckOptions, PrepareOptions, Prepared, TokenCounter, check, check_preferences, prepare,
};
pub use readers::text::{Document, read_text};
pub use readers::{CONTAINERS, Container, FORMS, Form, ReadOptions, read, read_preferences};
pub use report::{DataReport, InputReport, SCHEMA_VERSION, SetLeaks};
pub use split::{Split, SplitOptions, SplitReport, split};
pub use stats::{TokenStats, token_stats};
