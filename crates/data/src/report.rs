//! `data_report.json`: what was read, removed, split, leaked and counted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dedup::DedupReport;
use crate::error::DataError;
use crate::files::write_all_atomic;
use crate::leak::LeakReport;
use crate::personal::PersonalReport;
use crate::split::SplitReport;
use crate::stats::TokenStats;

/// Version of [`DataReport`]'s JSON; it rises when a field changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// The findings about a data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataReport {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// The files that were read.
    pub inputs: Vec<InputReport>,
    /// Duplicates and conflicts among the training files' rows.
    pub duplicates: DedupReport,
    /// The split, where there was one.
    pub split: Option<SplitReport>,
    /// Leaks between the sets.
    pub leaks: Vec<SetLeaks>,
    /// Token statistics by set, where there was a tokenizer.
    pub tokens: BTreeMap<String, TokenStats>,
    /// Hints at personal data in all rows that were read; they never block.
    #[serde(default)]
    pub personal: PersonalReport,
    /// SHA-256 of the files that were written, by name.
    pub outputs: BTreeMap<String, String>,
    /// What must be mended before a result can be trusted.
    pub blocking: Vec<String>,
    /// What somebody should look at.
    pub warnings: Vec<String>,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputReport {
    /// The file.
    pub file: PathBuf,
    /// Which set it is for: `train` or `test`.
    pub set: String,
    /// Name of its format.
    pub format: String,
    /// Its rows.
    pub rows: usize,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Licence that the card of its folder states, where a folder with one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

/// Leaks from one set into another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetLeaks {
    /// The set that is learnt.
    pub train: String,
    /// The set that should be unseen.
    pub test: String,
    /// What was found.
    pub report: LeakReport,
}

impl DataReport {
    /// Pretty JSON with a line end.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("strings and numbers serialise");
        json.push('\n');
        json
    }

    /// Writes [`DataReport::to_json`] to a file, whole or not at all.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        write_all_atomic(folder, &[(&name, self.to_json().into_bytes())])
    }
}
