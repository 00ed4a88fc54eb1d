//! `metier train`: from a config file and flags to a plan, and the plan carried out.

use super::data::read_options;
use crate::card::{self, Card};
use crate::cli::{ColumnArgs, TrainArgs};
use crate::config::ConfigFile;
use crate::exit;
use crate::progress::{TrainBar, clock};
use crate::resolve::{NANO, license_of, load_decoder, load_text, model_path};
use ::data::{Example, SplitOptions};
use ::train::{
    Event, MANIFEST_FILE, Manifest, Method, Provenance, ReportTo, TrainData, TrainOutcome,
    TrainPlan, TrainStatus,
};
use anyhow::{Context, Result, bail};
use model::{Decoder, DecoderConfig, WeightDtype};
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
        data_licences: file.data.license.iter().cloned().collect(),
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
    if outcome.status != TrainStatus::Interrupted {
        write_card(&outcome.output_dir, &start.name, &provenance, plan.method)?;
    }
    if !args.json {
        print_outcome(&outcome, &start.name, plan.method);
    }
    Ok(match outcome.status {
        TrainStatus::Interrupted => ExitCode::from(exit::FAILED),
        _ => exit::done(),
    })
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
    if !args.report_to.is_empty() {
        plan.report_to = vec![ReportTo::Tensorboard];
    }
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
    let mut files = if args.data.is_empty() { file.data.train.clone() } else { args.data.clone() };
    if files.is_empty() {
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
    for path in &files {
        train.extend(::data::read(path, &options)?);
    }
    if let Some(test) = &file.data.test {
        warn_of_leaks(&train, &::data::read(test, &options)?, test)?;
    }
    let held_out = match args.valid.as_ref().or(file.data.valid.as_ref()) {
        Some(path) => {
            files.push(path.clone());
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
    let data =
        TrainData::from_conversations(&train, &held_out, &start.tokenizer, &start.template, plan)?;
    Ok((data, files))
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

/// The model card beside the result.
fn write_card(dir: &Path, base: &str, provenance: &Provenance, method: Method) -> Result<()> {
    let path = dir.join(MANIFEST_FILE);
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(&path)?)
        .with_context(|| format!("{}: not a manifest of Metier", path.display()))?;
    let adapter = method == Method::Lora;
    let card = Card {
        title: card::title(dir),
        what: match adapter {
            true => "a LoRA adapter in PEFT's format",
            false => "a whole model in Hugging Face's form",
        },
        base_name: base,
        base_licence: provenance.base_licence.clone(),
        adapter,
        manifest: Some(&manifest),
        usage: if adapter { card::adapter_usage(base, dir) } else { card::model_usage(dir) },
        checked: None,
    };
    model::write_atomic(&dir.join(card::FILE), card.render().as_bytes())?;
    Ok(())
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
    if outcome.status == TrainStatus::EarlyStopped {
        println!("stopped early: the held-out loss no longer fell");
    }
    println!("wrote {dir}");
    match method {
        Method::Lora => {
            println!("next: metier eval --model {base} --adapter {dir} --data TEST.jsonl")
        }
        Method::Full => println!("next: metier eval --model {dir} --data TEST.jsonl"),
    }
}
