//! From files as they come to sets to train and test with: read, deduplicate, split, check for
//! leaks, count, write.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use sha2::{Digest, Sha256};
use text::{ChatTemplate, Tokenizer};

use crate::dedup::{DedupOptions, DedupReport, deduplicate};
use crate::error::DataError;
use crate::example::{Example, hex, make_ids_unique};
use crate::files::write_all_atomic;
use crate::folder::{FolderSplit, files_of, license_of};
use crate::leak::{LeakOptions, LeakReport, leak_check};
use crate::personal::{PersonalReport, personal_data};
use crate::preference::{Answers, Preference};
use crate::readers::{ReadOptions, read_preference_file, read_with_format};
use crate::report::{DataReport, InputReport, SCHEMA_VERSION, SetLeaks};
use crate::split::{Split, SplitOptions, SplitReport, split};
use crate::stats::{TokenStats, token_stats};

/// What counts the tokens.
#[derive(Clone, Copy)]
pub struct TokenCounter<'a> {
    /// Of the base model.
    pub tokenizer: &'a Tokenizer,
    /// Of the base model.
    pub template: &'a ChatTemplate,
    /// Longest row that fits, in tokens.
    pub limit: usize,
}

/// Options of [`check`].
#[derive(Debug, Clone, Default)]
pub struct CheckOptions {
    /// How rows become conversations.
    pub read: ReadOptions,
    /// What counts as a duplicate.
    pub dedup: DedupOptions,
    /// What counts as a leak.
    pub leak: LeakOptions,
}

/// Options of [`prepare`].
#[derive(Debug, Clone, Default)]
pub struct PrepareOptions {
    /// How rows become conversations.
    pub read: ReadOptions,
    /// What counts as a duplicate.
    pub dedup: DedupOptions,
    /// How to split.
    pub split: SplitOptions,
    /// What counts as a leak.
    pub leak: LeakOptions,
}

/// What [`prepare`] made.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// The sets as they were written.
    pub split: Split,
    /// The report as it was written.
    pub report: DataReport,
}

/// Reads training files and, where there is one, a test file, and reports what is wrong with them
/// or between them. Writes nothing.
///
/// # Errors
/// Those of [`read`](crate::read), [`leak_check`] and [`token_stats`].
pub fn check(
    train_files: &[PathBuf],
    test_file: Option<&Path>,
    options: &CheckOptions,
    counter: Option<TokenCounter<'_>>,
) -> Result<DataReport, DataError> {
    let (train, mut inputs) = read_all(train_files, "train", &options.read)?;
    let mut tokens = BTreeMap::new();
    let mut leaks = Vec::new();
    count(&mut tokens, "train", &train, counter)?;
    let mut test = Vec::new();
    if let Some(file) = test_file {
        let read = ReadOptions { split: FolderSplit::Test, ..options.read.clone() };
        let more;
        (test, more) = read_all(&[file.to_owned()], "test", &read)?;
        inputs.extend(more);
        count(&mut tokens, "test", &test, counter)?;
        leaks.push(between("train", &train, "test", &test, &options.leak)?);
    }
    let personal = personal_data(train.iter().chain(&test));
    let (_, duplicates) = deduplicate(train, &options.dedup);
    Ok(report(inputs, duplicates, None, leaks, tokens, personal))
}

/// [`check`] for files of preferences: rows, tokens of each kind of answer, rows that are there twice,
/// hints at personal data. Labelled answers that are all good, or all bad, block: there is nothing to
/// tell apart.
///
/// # Errors
/// Those of [`read_preferences`](crate::read_preferences) and [`token_stats`].
pub fn check_preferences(
    files: &[PathBuf],
    options: &CheckOptions,
    counter: Option<TokenCounter<'_>>,
) -> Result<DataReport, DataError> {
    let mut preferences: Vec<Preference> = Vec::new();
    let mut inputs = Vec::new();
    for path in files {
        let license = license_of(path);
        for file in files_of(path, options.read.split)? {
            let (format, rows) = read_preference_file(&file, &options.read)?;
            inputs.push(input(file, "train", format, rows.len(), license.clone())?);
            preferences.extend(rows);
        }
    }
    let mut answers: BTreeMap<&str, Vec<Example>> = BTreeMap::new();
    for preference in &preferences {
        let names = preference.answers.named().into_iter().map(|(name, _)| name);
        for (name, conversation) in names.zip(preference.conversations()) {
            answers.entry(name).or_default().push(Example {
                id: preference.id.clone(),
                conversation,
                group: preference.group.clone(),
                slices: IndexMap::new(),
                origin: preference.origin.clone(),
            });
        }
    }
    let mut tokens = BTreeMap::new();
    for (name, examples) in &answers {
        count(&mut tokens, name, examples, counter)?;
    }
    // The prompt stands in every answer's conversation; it counts with the first.
    let personal = personal_data(answers.values().next().into_iter().flatten());
    let same: HashSet<_> = preferences.iter().map(|p| (&p.prompt, &p.answers)).collect();
    let duplicates = DedupReport {
        rows_in: preferences.len(),
        rows_out: same.len(),
        exact: preferences.len() - same.len(),
        ..DedupReport::default()
    };
    let labels: HashSet<bool> = preferences
        .iter()
        .filter_map(|p| match p.answers {
            Answers::Labelled { label, .. } => Some(label),
            Answers::Pair { .. } => None,
        })
        .collect();
    let mut report = report(inputs, duplicates, None, Vec::new(), tokens, personal);
    if labels.len() == 1 {
        let all = if labels.contains(&true) { "good" } else { "bad" };
        report
            .blocking
            .push(format!("all answers are labelled {all}: there is nothing to tell apart"));
    }
    Ok(report)
}

/// Reads files, removes duplicates, splits, checks the sets against one another and writes
/// `train.jsonl`, `valid.jsonl`, `test.jsonl` (chat JSONL; a set with fraction 0 is not written)
/// and `data_report.json` into `out`. All are on the disk before the first takes its place, the
/// report last.
///
/// # Errors
/// Those of [`read`](crate::read), [`split`], [`leak_check`] and [`token_stats`]; [`DataError::Io`] when `out`
/// cannot be written.
pub fn prepare(
    files: &[PathBuf],
    out: &Path,
    options: &PrepareOptions,
    counter: Option<TokenCounter<'_>>,
) -> Result<Prepared, DataError> {
    let (examples, inputs) = read_all(files, "train", &options.read)?;
    let personal = personal_data(&examples);
    let (examples, duplicates) = deduplicate(examples, &options.dedup);
    let (split, split_report) = split(examples, &options.split)?;
    let sets = [("train", &split.train), ("valid", &split.valid), ("test", &split.test)];

    let mut leaks = Vec::new();
    let mut tokens = BTreeMap::new();
    let mut outputs = BTreeMap::new();
    let mut written: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, rows) in sets.into_iter().filter(|(_, rows)| !rows.is_empty()) {
        if name != "train" {
            leaks.push(between("train", &split.train, name, rows, &options.leak)?);
        }
        count(&mut tokens, name, rows, counter)?;
        let lines: String = rows.iter().map(|e| e.to_json_line() + "\n").collect();
        outputs.insert(format!("{name}.jsonl"), hex(&Sha256::digest(lines.as_bytes())));
        written.push((format!("{name}.jsonl"), lines.into_bytes()));
    }
    let mut report = report(inputs, duplicates, Some(split_report), leaks, tokens, personal);
    report.outputs = outputs;
    written.push(("data_report.json".to_owned(), report.to_json().into_bytes()));
    let written: Vec<(&str, Vec<u8>)> =
        written.iter_mut().map(|(name, bytes)| (name.as_str(), std::mem::take(bytes))).collect();
    write_all_atomic(out, &written)?;
    Ok(Prepared { split, report })
}

fn read_all(
    files: &[PathBuf],
    set: &str,
    options: &ReadOptions,
) -> Result<(Vec<Example>, Vec<InputReport>), DataError> {
    let mut examples = Vec::new();
    let mut inputs = Vec::new();
    for path in files {
        let license = license_of(path);
        for file in files_of(path, options.split)? {
            let (format, rows) = read_with_format(&file, options)?;
            inputs.push(input(file, set, format, rows.len(), license.clone())?);
            examples.extend(rows);
        }
    }
    make_ids_unique(&mut examples);
    Ok((examples, inputs))
}

fn input(
    file: PathBuf,
    set: &str,
    format: String,
    rows: usize,
    license: Option<String>,
) -> Result<InputReport, DataError> {
    let io = |source| DataError::Io { path: file.clone(), action: "read", source };
    let sha256 = hex(&Sha256::digest(fs::read(&file).map_err(io)?));
    Ok(InputReport { file, set: set.to_owned(), format, rows, sha256, license })
}

fn between(
    train: &str,
    train_rows: &[Example],
    test: &str,
    test_rows: &[Example],
    options: &LeakOptions,
) -> Result<SetLeaks, DataError> {
    let report = leak_check(train_rows, test_rows, options)?;
    Ok(SetLeaks { train: train.to_owned(), test: test.to_owned(), report })
}

fn count(
    tokens: &mut BTreeMap<String, TokenStats>,
    set: &str,
    rows: &[Example],
    counter: Option<TokenCounter<'_>>,
) -> Result<(), DataError> {
    if let Some(TokenCounter { tokenizer, template, limit }) = counter {
        tokens.insert(set.to_owned(), token_stats(rows, tokenizer, template, limit)?);
    }
    Ok(())
}

/// Joins the findings and says which of them block.
fn report(
    inputs: Vec<InputReport>,
    duplicates: DedupReport,
    split: Option<SplitReport>,
    leaks: Vec<SetLeaks>,
    tokens: BTreeMap<String, TokenStats>,
    personal: PersonalReport,
) -> DataReport {
    let mut blocking = Vec::new();
    let mut warnings = Vec::new();
    for SetLeaks { train, test, report } in &leaks {
        let LeakReport { exact, normalised, near, test_rows, .. } = report;
        if exact + normalised > 0 {
            blocking.push(format!(
                "{} of {test_rows} {test} rows ask what a {train} row asks ({exact} byte by byte, \
                 {normalised} after normalisation): remove them from {train}, or report the score \
                 without them",
                exact + normalised
            ));
        }
        if *near > 0 {
            warnings.push(format!(
                "{near} of {test_rows} {test} rows are near-duplicates of {train} rows: report the \
                 score with and without them"
            ));
        }
    }
    let DedupReport { rows_in, exact, normalised, conflicts, .. } = &duplicates;
    if exact + normalised > 0 {
        warnings.push(format!(
            "{} of {rows_in} rows are duplicates ({exact} exact, {normalised} after normalisation)",
            exact + normalised
        ));
    }
    if *conflicts > 0 {
        warnings.push(format!(
            "{conflicts} questions have more than one answer: the model cannot get both right"
        ));
    }
    if let Some(found) = personal.summary() {
        warnings.push(format!(
            "what looks like personal data: {found}; a model may repeat what it has learnt"
        ));
    }
    for (set, stats) in &tokens {
        if stats.over_limit > 0 {
            warnings.push(format!(
                "{} of {} {set} rows are longer than {} tokens and would be left out",
                stats.over_limit, stats.rows, stats.limit
            ));
        }
        if stats.without_supervised > 0 {
            blocking.push(format!(
                "{} of {} {set} rows have no token to learn",
                stats.without_supervised, stats.rows
            ));
        }
    }
    DataReport {
        schema_version: SCHEMA_VERSION,
        inputs,
        duplicates,
        split,
        leaks,
        tokens,
        personal,
        outputs: BTreeMap::new(),
        blocking,
        warnings,
    }
}
