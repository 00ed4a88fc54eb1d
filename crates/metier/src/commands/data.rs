//! `metier data`: check and prepare.

use crate::cli::{ColumnArgs, DataCheckArgs, DataCommand, DataPrepareArgs};
use crate::exit;
use crate::resolve::{load_text, model_dir};
use anyhow::Result;
use comfy_table::{Table, presets};
use data::{
    CheckOptions, DataError, DataReport, PrepareOptions, ReadOptions, SplitOptions, TokenCounter,
};
use model::DecoderConfig;
use std::process::ExitCode;
use std::sync::Arc;
use text::{ChatTemplate, Tokenizer};

pub(super) fn run(command: &DataCommand) -> Result<ExitCode> {
    match command {
        DataCommand::Check(args) => check(args),
        DataCommand::Prepare(args) => prepare(args),
        DataCommand::Show(args) => super::data_show::run(args),
        DataCommand::Harvest(args) => super::harvest::run(args),
    }
}

fn check(args: &DataCheckArgs) -> Result<ExitCode> {
    let counting = Counting::load(&args.model)?;
    let options = CheckOptions { read: read_options(&args.columns), ..CheckOptions::default() };
    let counter = Some(counting.counter());
    let report = match data::check(&args.files, args.test.as_deref(), &options, counter) {
        // Leaks are looked for between conversations.
        Err(DataError::Preferences { .. }) if args.test.is_none() => {
            data::check_preferences(&args.files, &options, counter)?
        }
        report => report?,
    };
    if let Some(path) = &args.report {
        report.write(path)?;
    }
    show(&report, args.json);
    Ok(if report.blocking.is_empty() { exit::done() } else { ExitCode::from(exit::FAILED) })
}

fn prepare(args: &DataPrepareArgs) -> Result<ExitCode> {
    let counting = Counting::load(&args.model)?;
    let split = SplitOptions {
        valid_fraction: args.valid_fraction,
        test_fraction: args.test_fraction,
        seed: args.seed,
        ..SplitOptions::default()
    };
    let options =
        PrepareOptions { read: read_options(&args.columns), split, ..PrepareOptions::default() };
    let prepared = data::prepare(&args.files, &args.out, &options, Some(counting.counter()))?;
    show(&prepared.report, args.json);
    if !args.json {
        println!("wrote {}", args.out.display());
    }
    let clean = prepared.report.blocking.is_empty();
    Ok(if clean { exit::done() } else { ExitCode::from(exit::FAILED) })
}

/// Reading options from the flags that several commands share.
pub(super) fn read_options(columns: &ColumnArgs) -> ReadOptions {
    ReadOptions {
        prompt_column: columns.prompt_column.clone(),
        completion_column: columns.completion_column.clone(),
        group_column: columns.group_column.clone(),
        system_prompt: columns.system_prompt.clone(),
        ..ReadOptions::default()
    }
}

/// A model's text side, for counting tokens; its weights are not read.
pub(super) struct Counting {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: ChatTemplate,
    /// The model's context, tokens.
    pub(super) limit: usize,
}

impl Counting {
    pub(super) fn load(model: &str) -> Result<Counting> {
        let dir = model_dir(model)?;
        let config = DecoderConfig::load(&dir)?;
        let (tokenizer, template) = load_text(&dir, &config)?;
        Ok(Counting { tokenizer, template, limit: config.max_position_embeddings })
    }

    fn counter(&self) -> TokenCounter<'_> {
        TokenCounter { tokenizer: &self.tokenizer, template: &self.template, limit: self.limit }
    }
}

/// The report for a person, or as JSON.
pub(super) fn show(report: &DataReport, json: bool) {
    if json {
        print!("{}", report.to_json());
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["set", "rows", "tokens", "learnt", "median", "p95", "longest", "too long"]);
    for (set, s) in &report.tokens {
        table.add_row([
            set.clone(),
            s.rows.to_string(),
            s.total.to_string(),
            s.supervised.to_string(),
            s.median.to_string(),
            s.p95.to_string(),
            s.max.to_string(),
            s.over_limit.to_string(),
        ]);
    }
    println!("{table}");
    let d = &report.duplicates;
    println!(
        "duplicates: {} exact, {} after normalising; questions with several answers: {}",
        d.exact, d.normalised, d.conflicts
    );
    for leak in &report.leaks {
        let r = &leak.report;
        println!(
            "leaks {} -> {}: {} exact, {} after normalising, {} nearly the same, of {} rows",
            leak.train, leak.test, r.exact, r.normalised, r.near, r.test_rows
        );
    }
    for (file, license) in report.inputs.iter().filter_map(|i| Some((&i.file, i.license.as_ref()?)))
    {
        println!("licence of {}: {license}", file.display());
    }
    for place in &report.personal.places {
        let data::PersonalPlace { kind, origin, field, masked } = place;
        let data::Origin { file, line } = origin;
        println!("{}: {}:{line} {field}: {masked}", kind.name(), file.display());
    }
    report.warnings.iter().for_each(|w| println!("warning: {w}"));
    report.blocking.iter().for_each(|b| println!("blocks: {b}"));
}
