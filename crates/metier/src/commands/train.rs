//! `metier train`: from a config file and flags to a plan, and the plan carried out.

use super::data::read_options;
use crate::cli::{ColumnArgs, TrainArgs};
use crate::config::{ConfigFile, Source};
use crate::exit;
use crate::progress::{TrainBar, clock};
use crate::resolve::{NANO, license_of, load_decoder, load_text, model_path};
use ::data::{Example, FolderSplit, ReadOptions, SplitOptions, files_of};
use ::train::{Event, Method, Provenance, TrainData, TrainOutcome, TrainPlan, TrainStatus};
use anyhow::{Context, Result, bail};
use model::{Decoder, DecoderConfig, WeightDtype};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use text::{ChatTemplate, Tokenizer};

/// Share of the training rows that is held out when the user names no validation set.
const VALID_FRACTION: f64 = 0.05;

pub(super) fn run(args: &TrainArgs) -> Result<ExitCode> {
    let file = match &args.config {
        Some(path) => ConfigFile::read(path)?,
        None => ConfigFile::default(),
    };
    let start = Start::load(args, &file)?;
    let mut plan = file.train_plan(start.decoder.config())?;
    override_plan(&mut plan, args, &file);
    plan.validate(start.decoder.config())?;
    let (data, data_files) = load_data(args, &file, &start, &plan)?;
    if args.dry_run {
        return dry_run(&plan, &data);
    }
    let provenance = Provenance {
        base_name: start.name.clone(),
        base_licence: file.base.license.clone().unwrap_or_else(|| license_of(&start.dir)),
        data_files: data_files.iter().map(|p| p.display().to_string()).collect(),
        data_licences: licences(args, &file),
        tokenizer_sha256: start.tokenizer.sha256().to_owned(),
        chat_template: start.template.source().to_owned(),
        copied_files: ::train::tokenizer_files(&start.dir),
    };
    let mut decoder = start.decoder;
    let mut bar = TrainBar::default();
    let mut observe = |event: &Event| match args.json {
        true => println!("{}", serde_json::json!(event)),
        false => bar.event(event),
    };
    let cancel = cancel_on_ctrl_c()?;
    let outcome =
        ::train::run(&plan, &mut decoder, &data, &provenance, args.resume, &mut observe, cancel)?;
    if !args.json {
        print_outcome(&outcome, &start.name, plan.method);
    }
    Ok(match outcome.status {
        TrainStatus::Interrupted => ExitCode::from(exit::FAILED),
        TrainStatus::Completed | TrainStatus::TimeLimit => exit::done(),
    })
}

/// The licence that the config file states for the data, and those on the cards of data folders.
fn licences(args: &TrainArgs, file: &ConfigFile) -> Vec<String> {
    let named: Vec<&Path> = match args.data.is_empty() {
        true => file.data.train.iter().map(|source| source.path.as_path()).collect(),
        false => args.data.iter().map(PathBuf::as_path).collect(),
    };
    let cards = named.into_iter().filter_map(::data::license_of);
    let all: BTreeSet<String> = file.data.license.iter().cloned().chain(cards).collect();
    all.into_iter().collect()
}

/// The model that training starts from.
struct Start {
    name: String,
    /// Folder of its tokenizer.
    dir: PathBuf,
    decoder: Decoder,
    tokenizer: std::sync::Arc<Tokenizer>,
    template: ChatTemplate,
}

impl Start {
    fn load(args: &TrainArgs, file: &ConfigFile) -> Result<Start> {
        if args.base.is_none()
            && let Some(shape) = &file.base.init
        {
            let Some(dir) = &file.base.tokenizer else {
                bail!(
                    "[base] init needs [base] tokenizer: the folder with the new model's tokenizer.json"
                );
            };
            let bytes = std::fs::read(shape)
                .with_context(|| format!("{}: cannot read it", shape.display()))?;
            let config = DecoderConfig::from_json(&bytes, shape)?;
            let (tokenizer, template) = load_text(dir, &config)?;
            // The seed of the initial weights is fixed; [train] seed orders the data.
            let decoder = Decoder::init(&config, 1);
            return Ok(Start {
                name: shape.display().to_string(),
                dir: dir.clone(),
                decoder,
                tokenizer,
                template,
            });
        }
        let name = args
            .base
            .clone()
            .or_else(|| file.base.model.clone())
            .unwrap_or_else(|| NANO.to_owned());
        let dir = model_path(&name)?;
        let full = file.method()? == Some(Method::Full);
        let dtype = match (args.weights.dtype, full) {
            (None | Some(WeightDtype::F32), true) => WeightDtype::F32,
            (Some(_), true) => {
                bail!(
                    "--dtype: full fine-tuning holds every weight in f32\nhint: LoRA trains on a base in any type"
                );
            }
            (dtype, false) => dtype.unwrap_or_default(),
        };
        let decoder = load_decoder(&dir, dtype)?;
        let (tokenizer, template) = load_text(&dir, decoder.config())?;
        Ok(Start { name, dir, decoder, tokenizer, template })
    }
}

fn override_plan(plan: &mut TrainPlan, args: &TrainArgs, file: &ConfigFile) {
    fn set<T: Copy>(field: &mut T, flag: Option<T>) {
        if let Some(value) = flag {
            *field = value;
        }
    }
    set(&mut plan.learning_rate, args.learning_rate);
    set(&mut plan.r, args.r);
    set(&mut plan.lora_alpha, args.lora_alpha);
    set(&mut plan.seed, args.seed);
    set(&mut plan.num_train_epochs, args.num_train_epochs);
    if args.num_train_epochs.is_some() {
        plan.max_steps = 0;
    }
    set(&mut plan.max_steps, args.max_steps.map(|n| n as u64));
    match &args.out {
        Some(out) => plan.output_dir = out.clone(),
        None if !file.names_output_dir() => plan.output_dir = PathBuf::from("out/train"),
        None => {}
    }
}

/// The rows to train on, and the files they came from.
fn load_data(
    args: &TrainArgs,
    file: &ConfigFile,
    start: &Start,
    plan: &TrainPlan,
) -> Result<(TrainData, Vec<PathBuf>)> {
    if args.data.is_empty() && !file.data.text.is_empty() {
        let mut documents = Vec::new();
        for path in &file.data.text {
            documents.extend(::data::read_text(path)?);
        }
        return Ok((
            TrainData::from_text(&documents, &start.tokenizer, plan)?,
            file.data.text.clone(),
        ));
    }
    let sources: Vec<Source> = match args.data.is_empty() {
        true => file.data.train.clone(),
        false => args.data.iter().cloned().map(Source::new).collect(),
    };
    if sources.is_empty() {
        bail!("no training data\nhint: give --data FILE, or [data] train in the config file");
    }
    let columns = ColumnArgs {
        prompt_column: args
            .columns
            .prompt_column
            .clone()
            .or_else(|| file.data.prompt_column.clone()),
        completion_column: args
            .columns
            .completion_column
            .clone()
            .or_else(|| file.data.completion_column.clone()),
        group_column: args.columns.group_column.clone().or_else(|| file.data.group_column.clone()),
        system_prompt: args
            .columns
            .system_prompt
            .clone()
            .or_else(|| file.data.system_prompt.clone()),
    };
    let options = read_options(&columns);
    let mut train: Vec<Example> = Vec::new();
    // Where each file's rows come from, to weigh them when some are held out.
    let mut source_of: HashMap<PathBuf, usize> = HashMap::new();
    let mut files = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        for part in files_of(&source.path, options.split)? {
            train.extend(::data::read(&part, &options)?);
            if source_of.insert(part.clone(), index).is_some() {
                bail!(
                    "{}: named twice as training data\nhint: to see its rows oftener, write {{ path = \"...\", weight = 2.0 }}",
                    part.display()
                );
            }
            files.push(part);
        }
    }
    if let Some(test) = &file.data.test {
        let options = ReadOptions { split: FolderSplit::Test, ..options.clone() };
        warn_of_leaks(&train, &::data::read(test, &options)?, test)?;
    }
    let held_out = match args.valid.as_ref().or(file.data.valid.as_ref()) {
        Some(path) => {
            let options = ReadOptions { split: FolderSplit::Valid, ..options.clone() };
            files.extend(files_of(path, options.split)?);
            ::data::read(path, &options)?
        }
        None => {
            let share = file.data.valid_fraction.unwrap_or(VALID_FRACTION);
            let options = SplitOptions {
                valid_fraction: share,
                test_fraction: 0.0,
                seed: plan.seed,
                ..SplitOptions::default()
            };
            let (split, _) = ::data::split(train, &options)?;
            train = split.train;
            split.valid
        }
    };
    let train = weighed(train, &sources, &source_of, plan.seed)?;
    let data =
        TrainData::from_conversations(&train, &held_out, &start.tokenizer, &start.template, plan)?;
    Ok((data, files))
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

/// A leaked test row makes the later score too good; the user must know before training.
fn warn_of_leaks(train: &[Example], test: &[Example], path: &Path) -> Result<()> {
    let report = ::data::leak_check(train, test, &::data::LeakOptions::default())?;
    if !report.is_clean() {
        eprintln!(
            "warning: {} of {} test rows in {} are in the training data too ({} exactly, {} after normalising, \
             {} nearly): scores on them prove nothing",
            report.total(),
            report.test_rows,
            path.display(),
            report.exact,
            report.normalised,
            report.near
        );
    }
    Ok(())
}

fn dry_run(plan: &TrainPlan, data: &TrainData) -> Result<ExitCode> {
    println!("{}", serde_json::to_string_pretty(plan)?);
    let report = |name: &str, r: &::train::RowReport| {
        eprintln!(
            "{name}: {} rows, {} tokens, {} learnt, longest {}; left out: {} too long, {} without a learnt token",
            r.rows, r.tokens, r.supervised_tokens, r.longest, r.too_long, r.unsupervised
        );
    };
    report("train", &data.train_report);
    report("held out", &data.held_out_report);
    eprintln!("nothing was trained (--dry-run)");
    Ok(exit::done())
}

/// A flag that the first Ctrl-C or SIGTERM raises.
fn cancel_on_ctrl_c() -> Result<&'static AtomicBool> {
    static CANCEL: AtomicBool = AtomicBool::new(false);
    ctrlc::set_handler(|| {
        if CANCEL.swap(true, Ordering::SeqCst) {
            // A second one: do not wait for the step to end. Checkpoints are whole or absent.
            std::process::exit(i32::from(exit::FAILED));
        }
        eprintln!("\nsaving a checkpoint ... (again to stop at once)");
    })?;
    Ok(&CANCEL)
}

fn print_outcome(outcome: &TrainOutcome, base: &str, method: Method) {
    let dir = outcome.output_dir.display();
    if outcome.status == TrainStatus::Interrupted {
        eprintln!(
            "interrupted after step {} of {}; the same command with --resume goes on from there",
            outcome.step, outcome.total_steps
        );
        return;
    }
    let held = match (&outcome.held_out_before, &outcome.held_out) {
        (Some(before), Some(after)) => {
            format!(", held-out loss {:.4} -> {:.4}", before.loss, after.loss)
        }
        _ => String::new(),
    };
    println!(
        "trained {} steps in {} ({:.0} tokens/s){held}",
        outcome.step,
        clock(outcome.seconds),
        outcome.tokens as f64 / outcome.seconds.max(1e-9)
    );
    println!("wrote {dir}");
    match method {
        Method::Lora => {
            println!("next: metier eval --model {base} --adapter {dir} --data TEST.jsonl")
        }
        Method::Full => println!("next: metier eval --model {dir} --data TEST.jsonl"),
    }
}
