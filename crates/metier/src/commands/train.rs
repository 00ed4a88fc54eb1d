//! `metier train`: from a config file and flags to a plan, and the plan carried out.

use super::data::read_options;
use crate::card::{self, Card};
use crate::cli::{ColumnArgs, TrainArgs};
use crate::config::{ConfigFile, RunSection, Source};
use crate::exit;
use crate::machine;
use crate::progress::{TrainBars, clock};
use crate::resolve::{NANO, license_of, load_decoder, load_text, model_path};
use ::data::{Example, FolderSplit, Preference, ReadOptions, SplitOptions, files_of};
use ::train::{
    Event, Job, MANIFEST_FILE, Manifest, MemoryEstimate, Method, Provenance, ReportTo, StepSize,
    TrainData, TrainOutcome, TrainPlan, TrainStatus,
};
use anyhow::{Context, Result, bail};
use model::{Decoder, DecoderConfig, WeightDtype};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use text::{ChatTemplate, Tokenizer};

/// Share of the training rows that is held out when the user names no validation set.
const VALID_FRACTION: f64 = 0.05;

/// Trainings that share the base at a time: what each adds in memory is its adapter four times over.
const MOST_TOGETHER: usize = 8;

pub(super) fn run(args: &TrainArgs) -> Result<ExitCode> {
    let file = match &args.config {
        Some(path) => ConfigFile::read(path)?,
        None => ConfigFile::default(),
    };
    let mut start = Start::load(args, &file)?;
    let jobs = jobs(args, &file, &start)?;
    if args.dry_run {
        return dry_run(&jobs, start);
    }
    let cancel = cancel_on_ctrl_c()?;
    let full = jobs.iter().any(|job| job.plan.method == Method::Full);
    let mut outcomes: Vec<TrainOutcome> = Vec::new();
    for (i, group) in jobs.chunks(if full { 1 } else { MOST_TOGETHER }).enumerate() {
        if full && i > 0 {
            // The one before has trained the base itself.
            start.decoder = load_decoder(&start.dir, WeightDtype::F32)?;
        }
        let provenances: Vec<Provenance> =
            group.iter().map(|job| job.provenance(&start, &file)).collect();
        let together: Vec<Job<'_>> = group
            .iter()
            .zip(&provenances)
            .map(|(job, provenance)| Job { plan: &job.plan, data: &job.data.rows, provenance })
            .collect();
        let names: Vec<&str> = group.iter().map(|job| job.name.as_str()).collect();
        let mut bars = TrainBars::new(&names);
        let mut observe = |lane: usize, event: &Event| match (args.json, names[lane]) {
            (true, "") => println!("{}", serde_json::json!(event)),
            (true, name) => {
                let mut line = serde_json::json!(event);
                line["run"] = name.into();
                println!("{line}");
            }
            (false, _) => bars.event(lane, event),
        };
        let resume = args.resume;
        let ended =
            ::train::run_together(&together, &mut start.decoder, resume, &mut observe, cancel)?;
        for (job, outcome) in together.iter().zip(&ended) {
            if outcome.status != TrainStatus::Interrupted {
                let dir = &outcome.output_dir;
                write_card(dir, &start.name, job.provenance, job.plan.method)?;
            }
        }
        outcomes.extend(ended);
        if outcomes.iter().any(|o| o.status == TrainStatus::Interrupted) {
            break;
        }
    }
    let interrupted = outcomes.iter().any(|o| o.status == TrainStatus::Interrupted);
    match (&outcomes[..], args.json) {
        ([outcome], false) => print_outcome(outcome, &start.name, jobs[0].plan.method),
        ([_], true) => {}
        (outcomes, _) => print_runs(&jobs, outcomes, &start.name, args.json),
    }
    Ok(if interrupted { ExitCode::from(exit::FAILED) } else { exit::done() })
}

/// One of the trainings of a command.
struct TrainJob {
    /// Empty where there is only one.
    name: String,
    plan: TrainPlan,
    data: Rc<JobData>,
}

/// Rows, the files that they came from, and what the user named to have them.
struct JobData {
    rows: TrainData,
    files: Vec<PathBuf>,
    named: Vec<PathBuf>,
}

impl TrainJob {
    fn provenance(&self, start: &Start, file: &ConfigFile) -> Provenance {
        Provenance {
            base_name: start.name.clone(),
            base_licence: file.base.license.clone().unwrap_or_else(|| license_of(&start.dir)),
            data_files: self.data.files.iter().map(|p| p.display().to_string()).collect(),
            data_licences: licences(&self.data.named, file),
            tokenizer_sha256: start.tokenizer.sha256().to_owned(),
            chat_template: start.template.source().to_owned(),
            copied_files: ::train::tokenizer_files(&start.dir),
        }
    }
}

/// Every `[[run]]` with every combination of the sweep; one training where there is neither.
fn jobs(args: &TrainArgs, file: &ConfigFile, start: &Start) -> Result<Vec<TrainJob>> {
    let config = start.decoder.config();
    let combinations = combinations(&swept(args, file)?);
    let alone = [RunSection::default()];
    let runs = if file.runs.is_empty() { &alone[..] } else { &file.runs };
    let several = runs.len() * combinations.len() > 1;
    let common = file.train_plan(config, args.objective, &toml::Table::new())?;
    let split_seed = args.seed.unwrap_or(common.seed);
    let mut loaded: Vec<(String, Rc<JobData>)> = Vec::new();
    let mut jobs: Vec<TrainJob> = Vec::new();
    for run in runs {
        for (name, values) in &combinations {
            let mut keys = run.train.clone();
            keys.extend(values.clone());
            let mut plan = file.train_plan(config, args.objective, &keys)?;
            override_plan(&mut plan, args, file, &keys);
            let name = [run.name.as_str(), name.as_str()].into_iter().filter(|n| !n.is_empty());
            let name = name.collect::<Vec<_>>().join(",");
            if several {
                plan.output_dir = plan.output_dir.join(&name);
            }
            plan.validate(config)?;
            // What decides the rows; equal rows are read once.
            let key = serde_json::json!([
                run.name,
                run.valid,
                plan.objective,
                plan.max_length,
                plan.max_dropped_share,
                plan.held_out_share,
                plan.held_out_block_bytes,
            ])
            .to_string();
            let data = match loaded.iter().find(|(k, _)| *k == key) {
                Some((_, data)) => Rc::clone(data),
                None => {
                    let data = Rc::new(load_data(args, file, run, start, &plan, split_seed)?);
                    loaded.push((key, Rc::clone(&data)));
                    data
                }
            };
            if jobs.iter().any(|job| job.name == name) {
                bail!("two runs are named \"{name}\"\nhint: give each [[run]] another name");
            }
            jobs.push(TrainJob { name: if several { name } else { String::new() }, plan, data });
        }
    }
    Ok(jobs)
}

/// Keys of the plan with the values to try, from `[sweep]` and then from --sweep.
fn swept(args: &TrainArgs, file: &ConfigFile) -> Result<Vec<(String, Vec<toml::Value>)>> {
    let mut swept: Vec<(String, Vec<toml::Value>)> = Vec::new();
    for (key, values) in &file.sweep {
        let Some(values) = values.as_array().filter(|v| !v.is_empty()) else {
            bail!("[sweep] {key}: found {values}, expected a list of values to try");
        };
        swept.push((key.clone(), values.clone()));
    }
    for text in &args.sweep {
        let Some((key, values)) = text.split_once('=') else {
            bail!("--sweep {text}: expected KEY=VALUE,VALUE,...\nhint: --sweep r=8,32");
        };
        let values: toml::Table = format!("values = [{values}]")
            .parse()
            .or_else(|_| {
                // Words need no quotes on the command line.
                let quoted: Vec<String> = values.split(',').map(|v| format!("{v:?}")).collect();
                format!("values = [{}]", quoted.join(",")).parse()
            })
            .with_context(|| format!("--sweep {text}"))?;
        let values = values["values"].as_array().cloned().unwrap_or_default();
        swept.retain(|(k, _)| k != key);
        swept.push((key.to_owned(), values));
    }
    Ok(swept)
}

/// Every combination with its name, as `r=8,learning_rate=0.001`.
fn combinations(swept: &[(String, Vec<toml::Value>)]) -> Vec<(String, toml::Table)> {
    let mut all = vec![(String::new(), toml::Table::new())];
    for (key, values) in swept {
        all = all
            .iter()
            .flat_map(|(name, table)| {
                values.iter().map(move |value| {
                    let shown = match value.as_str() {
                        Some(text) => text.to_owned(),
                        None => value.to_string(),
                    };
                    // A folder's name: what a list or a path holds besides becomes a dash.
                    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
                    let shown = shown.replace(|c| !plain(c), "-");
                    let comma = if name.is_empty() { "" } else { "," };
                    let mut table = table.clone();
                    table.insert(key.clone(), value.clone());
                    (format!("{name}{comma}{key}={shown}"), table)
                })
            })
            .collect();
    }
    all
}

/// The licence that the config file states for the data, and those on the cards of data folders.
fn licences(named: &[PathBuf], file: &ConfigFile) -> Vec<String> {
    let cards = named.iter().filter_map(|path| ::data::license_of(path));
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

/// Flags come after the file, but before what one run of several has for itself (`own`).
fn override_plan(plan: &mut TrainPlan, args: &TrainArgs, file: &ConfigFile, own: &toml::Table) {
    let set = |key: &str| !own.contains_key(key);
    fn put<T: Copy>(field: &mut T, flag: Option<T>, free: bool) {
        if let (Some(value), true) = (flag, free) {
            *field = value;
        }
    }
    put(&mut plan.learning_rate, args.learning_rate, set("learning_rate"));
    put(&mut plan.r, args.r, set("r"));
    put(&mut plan.lora_alpha, args.lora_alpha, set("lora_alpha"));
    put(&mut plan.seed, args.seed, set("seed"));
    put(&mut plan.num_train_epochs, args.num_train_epochs, set("num_train_epochs"));
    if args.num_train_epochs.is_some() && set("max_steps") {
        plan.max_steps = 0;
    }
    put(&mut plan.max_steps, args.max_steps.map(|n| n as u64), set("max_steps"));
    if !args.report_to.is_empty() && set("report_to") {
        plan.report_to = vec![ReportTo::Tensorboard];
    }
    match &args.out {
        Some(out) => plan.output_dir = out.clone(),
        None if !file.names_output_dir() => plan.output_dir = PathBuf::from("out/train"),
        None => {}
    }
}

/// The rows to train on and to hold out. `split_seed` decides which are held out where the user names
/// none: the same for all runs of a sweep.
fn load_data(
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
        return Ok(JobData { rows, named: files.clone(), files });
    }
    let Some(sources) = named else {
        bail!("no training data\nhint: give --data FILE, or [data] train in the config file");
    };
    let named: Vec<PathBuf> = sources.iter().map(|source| source.path.clone()).collect();
    let valid = [run.valid.as_ref(), args.valid.as_ref(), file.data.valid.as_ref()];
    let valid = valid.into_iter().flatten().next();
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
    for (index, source) in sources.iter().enumerate() {
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
    let held_options = ReadOptions { split: FolderSplit::Valid, ..options.clone() };
    if let Some(path) = valid {
        files.extend(files_of(path, held_options.split)?);
    }
    let (tokenizer, template) = (&start.tokenizer, &start.template);
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
        return Ok(JobData { rows, files, named });
    }
    if let Some(test) = &file.data.test {
        let options = ReadOptions { split: FolderSplit::Test, ..options.clone() };
        warn_of_leaks(&train, &::data::read(test, &options)?, test)?;
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
    let rows = TrainData::from_conversations(&train, &held_out, tokenizer, template, plan)?;
    Ok(JobData { rows, files, named })
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

/// An example in the place of each preference, named by its index: the prompt with its first answer.
fn stand_ins(judged: &[Preference]) -> Vec<Example> {
    let stand_in = |(i, p): (usize, &Preference)| Example {
        id: i.to_string(),
        conversation: p.conversations().swap_remove(0),
        group: p.group.clone(),
        origin: p.origin.clone(),
    };
    judged.iter().enumerate().map(stand_in).collect()
}

/// The preferences that examples of [`stand_ins`] stand for.
fn stood_for(examples: &[Example], judged: &[Preference]) -> Vec<Preference> {
    let indices = examples.iter().filter_map(|e| e.id.parse::<usize>().ok());
    indices.filter_map(|i| judged.get(i).cloned()).collect()
}

/// Prints the plans and what they would take: memory by what the loop allocates, time from one real
/// step on some of the rows.
fn dry_run(jobs: &[TrainJob], mut start: Start) -> Result<ExitCode> {
    let plans: Vec<&TrainPlan> = jobs.iter().map(|job| &job.plan).collect();
    match &plans[..] {
        [plan] => println!("{}", serde_json::to_string_pretty(plan)?),
        plans => println!("{}", serde_json::to_string_pretty(plans)?),
    }
    let report = |name: &str, r: &::train::RowReport| {
        eprintln!(
            "{name}: {} rows, {} tokens, {} learnt, longest {}; left out: {} too long, {} without a learnt token",
            r.rows, r.tokens, r.supervised_tokens, r.longest, r.too_long, r.unsupervised
        );
    };
    for job in jobs {
        if !job.name.is_empty() {
            eprintln!("{}:", job.name);
        }
        report("train", &job.data.rows.train_report);
        report("held out", &job.data.rows.held_out_report);
        let expected = Expected::of(job, &mut start)?;
        eprintln!("{expected}");
        if expected.peak_bytes() > expected.available_bytes {
            eprintln!(
                "warning: that is more than this machine has free\n\
                 hint: lower micro_batch_tokens or max_length, or hold the base in less: --dtype q8_0 or nf4"
            );
        }
        // A step of full fine-tuning has changed the base.
        if job.plan.method == Method::Full && jobs.len() > 1 {
            start.decoder = load_decoder(&start.dir, WeightDtype::F32)?;
        }
    }
    eprintln!("nothing was written (--dry-run)");
    Ok(exit::done())
}

/// What a training is expected to take.
struct Expected {
    memory: MemoryEstimate,
    /// Memory of this process with the base loaded.
    loaded_bytes: u64,
    available_bytes: u64,
    /// Tokens of all passes, held-out rows included as often as they are measured.
    tokens: f64,
    tokens_per_second: f64,
}

impl Expected {
    fn of(job: &TrainJob, start: &mut Start) -> Result<Expected> {
        let (plan, rows) = (&job.plan, &job.data.rows);
        let memory = ::train::estimate(plan, &start.decoder, rows);
        let (loaded_bytes, free) = (machine::rss_bytes(), machine::available_bytes());
        let dir = tempfile::tempdir()?;
        // One step, as large as a micro-batch, on the rows themselves.
        let probe = TrainPlan {
            output_dir: dir.path().join("probe"),
            step_size: StepSize::Tokens(plan.micro_batch_tokens),
            max_steps: 1,
            eval_steps: 0,
            save_steps: 0,
            ..plan.clone()
        };
        let data = TrainData { held_out: Vec::new(), ..rows.clone() };
        let mut done = None;
        let mut observe = |event: &Event| {
            if let Event::Step { tokens, seconds, .. } = event {
                done = Some(*tokens as f64 / seconds.max(1e-9));
            }
        };
        let (decoder, never) = (&mut start.decoder, AtomicBool::new(false));
        let provenance = Provenance::default();
        ::train::run(&probe, decoder, &data, &provenance, false, &mut observe, &never)?;
        let tokens_per_second = done.context("the step that was to be timed did not end")?;
        let passes = match plan.max_steps {
            0 => plan.num_train_epochs,
            steps => steps as f64 / ::train::steps_per_epoch(plan, &rows.train) as f64,
        };
        let steps = passes * ::train::steps_per_epoch(plan, &rows.train) as f64;
        let measured = 2.0 + if plan.eval_steps > 0 { steps / plan.eval_steps as f64 } else { 0.0 };
        // A forward is a third of a step, or half of it where nothing is computed again.
        let forward = if plan.gradient_checkpointing { 1.0 / 3.0 } else { 0.5 };
        let held_out = rows.held_out_report.tokens as f64 * measured * forward;
        Ok(Expected {
            memory,
            loaded_bytes,
            available_bytes: free + loaded_bytes,
            tokens: rows.train_report.tokens as f64 * passes + held_out,
            tokens_per_second,
        })
    }

    fn peak_bytes(&self) -> u64 {
        self.loaded_bytes + self.memory.total() as u64
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        let m = &self.memory;
        write!(
            f,
            "expected: {:.2} GiB at most (loaded base {:.2}, what is trained {:.2}, activations {:.2}, logits \
             {:.2}, the rest {:.2}; {:.1} GiB are free), about {} at {:.0} tokens/s (one step was timed)",
            gib(self.peak_bytes() as usize),
            gib(self.loaded_bytes as usize),
            gib(m.trainable),
            gib(m.activations),
            gib(m.logits),
            gib(m.data + m.kernels),
            gib(self.available_bytes as usize),
            clock(self.tokens / self.tokens_per_second),
            self.tokens_per_second
        )
    }
}

/// The runs as a table, the lowest held-out loss first, and which won.
fn print_runs(jobs: &[TrainJob], outcomes: &[TrainOutcome], base: &str, json: bool) {
    let reached = |o: &TrainOutcome| {
        let last = o.held_out.map(|h| h.loss);
        o.best.map(|h| h.loss).into_iter().chain(last).fold(f64::INFINITY, f64::min)
    };
    let mut order: Vec<(&TrainJob, &TrainOutcome)> = jobs.iter().zip(outcomes).collect();
    order.sort_by(|a, b| reached(a.1).total_cmp(&reached(b.1)));
    let comparable = order.iter().all(|(job, _)| {
        job.data.rows.held_out == order[0].0.data.rows.held_out
            && !job.data.rows.held_out.is_empty()
    }) && outcomes.iter().all(|o| o.status != TrainStatus::Interrupted);
    let winner = comparable.then(|| order[0].0.name.as_str());
    if json {
        let runs: Vec<_> = order
            .iter()
            .map(|(job, o)| {
                serde_json::json!({
                    "run": job.name, "output_dir": o.output_dir, "status": o.status, "step": o.step,
                    "train_loss": o.train_loss, "held_out_before": o.held_out_before,
                    "held_out": o.held_out, "best": o.best,
                })
            })
            .collect();
        println!("{}", serde_json::json!({"event": "runs", "runs": runs, "winner": winner}));
        return;
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["run", "steps", "held out before", "best", "at step", "last", "train loss"]);
    let loss = |h: Option<::train::HeldOut>| h.map_or("-".into(), |h| format!("{:.4}", h.loss));
    for (job, o) in &order {
        table.add_row([
            job.name.clone(),
            format!("{} of {}", o.step, o.total_steps),
            loss(o.held_out_before),
            loss(o.best),
            o.best.map_or("-".into(), |h| h.step.to_string()),
            loss(o.held_out),
            format!("{:.4}", o.train_loss),
        ]);
    }
    println!("{table}");
    match winner {
        Some(name) => {
            let dir = order[0].1.output_dir.display();
            println!("lowest held-out loss: {name}");
            println!("next: metier eval --model {base} --adapter {dir} --data TEST.jsonl");
        }
        None => println!("no winner: the runs were not all measured on the same held-out rows"),
    }
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
    for sentence in &outcome.guidance {
        println!("  {sentence}");
    }
    println!("wrote {dir}");
    match method {
        Method::Lora => {
            println!("next: metier eval --model {base} --adapter {dir} --data TEST.jsonl")
        }
        Method::Full => println!("next: metier eval --model {dir} --data TEST.jsonl"),
    }
}
