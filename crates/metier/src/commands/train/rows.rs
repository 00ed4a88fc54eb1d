//! The rows of a training: read, held out, weighed and rendered.

use super::jobs::JobData;
use super::start::Start;
use crate::cli::TrainArgs;
use crate::commands::data::read_options;
use crate::config::{ConfigFile, RunSection, Source};
use crate::general_text;
use crate::sealed;
use ::data::{Example, FolderSplit, Preference, ReadOptions, SplitOptions, files_of};
use ::train::{GeneralText, Guard, Row, TrainData, TrainPlan};
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::path::PathBuf;

/// Share of the training rows that is held out when the user names no validation set.
const VALID_FRACTION: f64 = 0.05;

/// The text to tell forgetting by. Random weights know nothing of the bundled one.
pub(super) fn general(start: &Start, plan: &TrainPlan) -> Result<GeneralText> {
    if start.random && plan.guard == Guard::Bundled {
        return Ok(GeneralText::default());
    }
    let longest = start.decoder.config().max_position_embeddings;
    general_text::load(&plan.guard, &start.template, &start.tokenizer, longest)
}

/// The rows to train on and those to hold out. `split_seed` decides which are held out where the user
/// names none: the same for all runs of a sweep.
pub(super) fn load(
    args: &TrainArgs,
    file: &ConfigFile,
    run: &RunSection,
    start: &Start,
    plan: &TrainPlan,
    split_seed: u64,
) -> Result<JobData> {
    let typed: Vec<Source> = args.data.iter().cloned().map(Source::new).collect();
    let named = [&run.data, &typed, &file.data.train].into_iter().find(|s| !s.is_empty());
    if named.is_none() && !file.data.text.is_empty() {
        let mut documents = Vec::new();
        for path in &file.data.text {
            documents.extend(::data::read_text(path)?);
        }
        let rows = TrainData::from_text(&documents, &start.tokenizer, plan)?;
        let files = file.data.text.clone();
        return Ok(JobData { rows, named: files.clone(), files, kept_apart: Vec::new() });
    }
    let Some(sources) = named else {
        bail!("no training data\nhint: give --data FILE, or [data] train in the config file");
    };
    let named: Vec<PathBuf> = sources.iter().map(|source| source.path.clone()).collect();
    let valid = [run.valid.as_ref(), args.valid.as_ref(), file.data.valid.as_ref()];
    let valid = valid.into_iter().flatten().next();
    let options = read_options(&file.data.columns(&args.columns));
    let split = SplitOptions {
        valid_fraction: file.data.valid_fraction.unwrap_or(VALID_FRACTION),
        test_fraction: 0.0,
        seed: split_seed,
        ..SplitOptions::default()
    };
    let mut train: Vec<Example> = Vec::new();
    let mut judged: Vec<Preference> = Vec::new();
    // Where each file's rows come from, to weigh them when some are held out.
    let mut source_of: HashMap<PathBuf, usize> = HashMap::new();
    let mut files = Vec::new();
    let (tokenizer, template) = (&start.tokenizer, &start.template);
    // Plain text among them, as windows that are learnt whole.
    let mut texts: Vec<Vec<Row>> = vec![Vec::new(); sources.len()];
    for (index, source) in sources.iter().enumerate() {
        if ::data::is_text(&source.path) {
            if plan.objective.is_preference() {
                bail!(
                    "{}: plain text, expected judged answers: text cannot be mixed with them",
                    source.path.display()
                );
            }
            let documents = ::data::read_text(&source.path)?;
            texts[index] = TrainData::text_rows(&documents, tokenizer, plan)?;
            files.push(source.path.clone());
            continue;
        }
        for part in files_of(&source.path, options.split)? {
            match plan.objective.is_preference() {
                true => judged.extend(::data::read_preferences(&part, &options)?),
                false => train.extend(::data::read(&part, &options)?),
            }
            if source_of.insert(part.clone(), index).is_some() {
                bail!(
                    "{}: named twice as training data\nhint: to see its rows oftener, write {{ path = \"...\", weight = 2.0 }}",
                    part.display()
                );
            }
            files.push(part);
        }
    }
    sealed::refuse_sealed_files(&files, file.data.test.as_deref())?;
    let held_options = ReadOptions { split: FolderSplit::Valid, ..options.clone() };
    if let Some(path) = valid {
        files.extend(files_of(path, held_options.split)?);
    }
    if train.is_empty() && texts.iter().any(|rows| !rows.is_empty()) {
        bail!(
            "the training data is plain text alone\nhint: name it as [data] text = [...] in a config file: then a \
             part of it is held out"
        );
    }
    if plan.objective.is_preference() {
        // Dealt and weighed by their questions, as conversations are.
        let (rows, held_out) = match valid {
            Some(path) => {
                let mut held_out = Vec::new();
                for part in files_of(path, held_options.split)? {
                    held_out.extend(::data::read_preferences(&part, &held_options)?);
                }
                (stand_ins(&judged), held_out)
            }
            None => {
                let (dealt, _) = ::data::split(stand_ins(&judged), &split)?;
                let held_out = stood_for(&dealt.valid, &judged);
                (dealt.train, held_out)
            }
        };
        let rows = weighed(rows, sources, &source_of, split_seed)?;
        let train = stood_for(&rows, &judged);
        let rows = TrainData::from_preferences(&train, &held_out, tokenizer, template, plan)?;
        return Ok(JobData { rows, files, named, kept_apart: Vec::new() });
    }
    let mut kept_apart = Vec::new();
    if let Some(test) = &file.data.test {
        let options = ReadOptions { split: FolderSplit::Test, ..options.clone() };
        train = sealed::without_test_rows(train, &::data::read(test, &options)?, test)?;
        kept_apart = sealed::digests(test)?;
    }
    let held_out = match valid {
        Some(path) => ::data::read(path, &held_options)?,
        None => {
            let (dealt, _) = ::data::split(train, &split)?;
            train = dealt.train;
            dealt.valid
        }
    };
    let train = weighed(train, sources, &source_of, split_seed)?;
    let mut rows = TrainData::from_conversations(&train, &held_out, tokenizer, template, plan)?;
    rows.add_text(weighed_texts(texts, sources, split_seed)?);
    Ok(JobData { rows, files, named, kept_apart })
}

/// The windows of each source of plain text as often as its weight says.
fn weighed_texts(texts: Vec<Vec<Row>>, sources: &[Source], seed: u64) -> Result<Vec<Row>> {
    let weights: Vec<f64> = sources.iter().map(|source| source.weight).collect();
    let counts: Vec<usize> = texts.iter().map(Vec::len).collect();
    let drawn = ::data::mix(&counts, &weights, seed).context("[data] train")?;
    Ok(drawn.iter().map(|drawn| texts[drawn.source][drawn.row].clone()).collect())
}

/// Each source's rows as often as its weight says. Rows are held out before this, so that none is
/// on both sides.
fn weighed(
    rows: Vec<Example>,
    sources: &[Source],
    source_of: &HashMap<PathBuf, usize>,
    seed: u64,
) -> Result<Vec<Example>> {
    let weights: Vec<f64> = sources.iter().map(|source| source.weight).collect();
    let mut by_source: Vec<Vec<&Example>> = vec![Vec::new(); sources.len()];
    for row in &rows {
        by_source[source_of[&row.origin.file]].push(row);
    }
    let counts: Vec<usize> = by_source.iter().map(Vec::len).collect();
    let drawn = ::data::mix(&counts, &weights, seed).context("[data] train")?;
    if weights.iter().all(|&weight| weight == 1.0) {
        return Ok(rows);
    }
    for (index, (source, count)) in sources.iter().zip(&counts).enumerate() {
        let seen = drawn.iter().filter(|drawn| drawn.source == index).count();
        tracing::info!(
            "{}: {seen} rows per epoch from {count} (weight {})",
            source.path.display(),
            source.weight
        );
    }
    Ok(drawn.iter().map(|drawn| by_source[drawn.source][drawn.row].clone()).collect())
}

/// An example in the place of each preference, named by its index: the prompt with its first answer.
fn stand_ins(judged: &[Preference]) -> Vec<Example> {
    let stand_in = |(i, p): (usize, &Preference)| Example {
        id: i.to_string(),
        conversation: p.conversations().swap_remove(0),
        group: p.group.clone(),
        slices: Default::default(),
        origin: p.origin.clone(),
    };
    judged.iter().enumerate().map(stand_in).collect()
}

/// The preferences that examples of [`stand_ins`] stand for.
fn stood_for(examples: &[Example], judged: &[Preference]) -> Vec<Preference> {
    let indices = examples.iter().filter_map(|e| e.id.parse::<usize>().ok());
    indices.filter_map(|i| judged.get(i).cloned()).collect()
}
