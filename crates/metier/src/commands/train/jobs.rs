//! From flags and a config file to the trainings of a command: every `[[run]]` with every combination
//! of the sweep.

use super::rows;
use super::start::Start;
use crate::cli::TrainArgs;
use crate::config::{ConfigFile, RunSection};
use crate::resolve::license_of;
use ::train::{Guard, Provenance, ReportTo, TrainData, TrainPlan};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;

/// One of the trainings of a command.
pub(super) struct TrainJob {
    /// Empty where there is only one.
    pub(super) name: String,
    pub(super) plan: TrainPlan,
    pub(super) data: Rc<JobData>,
}

/// Rows, the files that they came from, and what the user named to have them.
pub(super) struct JobData {
    pub(super) rows: TrainData,
    pub(super) files: Vec<PathBuf>,
    pub(super) named: Vec<PathBuf>,
    /// Digests of the test files whose questions are not among the rows.
    pub(super) kept_apart: Vec<String>,
}

impl TrainJob {
    pub(super) fn provenance(&self, start: &Start, file: &ConfigFile) -> Provenance {
        Provenance {
            base_name: start.name.clone(),
            base_licence: file.base.license.clone().unwrap_or_else(|| license_of(&start.dir)),
            data_files: self.data.files.iter().map(|p| p.display().to_string()).collect(),
            data_licences: licences(&self.data.named, file),
            generated_by: file.data.generated_by.clone(),
            kept_apart: self.data.kept_apart.clone(),
            tokenizer_sha256: start.tokenizer.sha256().to_owned(),
            chat_template: start.template.source().to_owned(),
            copied_files: ::train::tokenizer_files(&start.dir),
        }
    }
}

/// Every `[[run]]` with every combination of the sweep; one training where there is neither.
pub(super) fn jobs(args: &TrainArgs, file: &ConfigFile, start: &Start) -> Result<Vec<TrainJob>> {
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
                run.data,
                run.valid,
                plan.objective,
                plan.max_length,
                plan.max_dropped_share,
                plan.held_out_share,
                plan.held_out_block_bytes,
                plan.guard,
            ])
            .to_string();
            let data = match loaded.iter().find(|(k, _)| *k == key) {
                Some((_, data)) => Rc::clone(data),
                None => {
                    let mut data = rows::load(args, file, run, start, &plan, split_seed)?;
                    data.rows.general = rows::general(start, &plan)?;
                    let data = Rc::new(data);
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
    match args.guard.as_ref().filter(|_| set("guard")) {
        Some(off) if off.as_os_str() == "off" => plan.guard = Guard::Off,
        Some(path) => plan.guard = Guard::Data(path.clone()),
        None => {}
    }
    match &args.out {
        Some(out) => plan.output_dir = out.clone(),
        None if !file.names_output_dir() => plan.output_dir = PathBuf::from("out/train"),
        None => {}
    }
}
