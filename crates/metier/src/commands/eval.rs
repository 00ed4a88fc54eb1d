//! `metier eval`: one model on one test set.

use super::data::read_options;
use super::tasks;
use crate::cli::EvalArgs;
use crate::exit;
use crate::progress;
use crate::resolve::{self, Adapter, Base};
use ::data::{FolderSplit, ReadOptions};
use ::eval::{Candidate, EvalItem, EvalResult, LocalCandidate, Metric};
use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use engine::{EngineOptions, SamplingParams};
use indicatif::ProgressBar;
use model::KvDtype;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

/// Memory for the KV cache of an evaluation.
const KV_BYTES: usize = 1 << 30;
/// Answers under way at once.
const MAX_NUM_SEQS: usize = 64;

pub(super) fn run(args: &EvalArgs) -> Result<ExitCode> {
    let Some(data) = &args.data else { return tasks::run(args) };
    let metrics = ::eval::metrics_by_name(&args.metrics)?;
    let base = Base::load(&args.model, args.weights)?;
    let adapter = match &args.adapter {
        Some(dir) => Some(Adapter::load("adapted", dir, &base)?),
        None => None,
    };
    let options = ReadOptions { split: FolderSplit::Test, ..read_options(&args.columns) };
    let mut examples = ::data::read(data, &options)?;
    examples.truncate(args.limit.unwrap_or(usize::MAX));
    let items = examples.iter().map(EvalItem::from_example).collect::<Result<Vec<_>, _>>()?;
    let dtype = args.kv_cache.dtype();
    let result = evaluate(&base, adapter.as_ref(), items, metrics, args.max_tokens, dtype)?;
    let [candidate] = &result.candidates[..] else { bail!("one candidate gave no result") };
    if let Some(path) = &args.answers {
        result.write_answers(candidate, path)?;
    }
    let reports = ::eval::candidate_reports(&result)?;
    let report = &reports[0];
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "model": args.model,
                "adapter": args.adapter,
                "data": args.data,
                "metrics": report.metrics,
                "failed": report.failed,
                "stopped_share": report.stopped_share,
                "tokens_per_second": report.tokens_per_second,
                "seconds": report.seconds,
            })
        );
        return Ok(exit::done());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["metric", "value", "95 % interval", "n"]);
    for (name, m) in &report.metrics {
        table.add_row([
            name.clone(),
            format!("{:.4}", m.value),
            format!("[{:.4}, {:.4}]", m.ci95.lo, m.ci95.hi),
            m.n.to_string(),
        ]);
    }
    println!("{table}");
    let stopped = report
        .stopped_share
        .map_or(String::new(), |s| format!(", {:.1} % ended by themselves", 100.0 * s));
    println!(
        "{} answers in {}{stopped}, {} failed",
        result.items.len(),
        progress::clock(report.seconds),
        report.failed
    );
    Ok(exit::done())
}

/// Asks base or adapter every item at temperature 0, with a progress bar, on the serving engine.
pub(super) fn evaluate(
    base: &Base,
    adapter: Option<&Adapter>,
    items: Vec<EvalItem>,
    metrics: Vec<&'static Metric>,
    max_tokens: usize,
    kv_cache_dtype: KvDtype,
) -> Result<EvalResult> {
    let adapters: Vec<&Adapter> = adapter.into_iter().collect();
    let options =
        EngineOptions { max_num_seqs: MAX_NUM_SEQS, kv_cache_dtype, ..EngineOptions::default() };
    let (engine, slots) = resolve::engine(base, &adapters, KV_BYTES, options)?;
    let template = adapter.map_or(&base.template, |a| &a.template);
    let name = adapter.map_or_else(|| "base".to_owned(), |a| a.name.clone());
    let candidate = LocalCandidate::new(
        name,
        Arc::new(Mutex::new(engine)),
        Arc::clone(&base.tokenizer),
        Arc::new(template.clone()),
        slots.first().copied(),
        SamplingParams { max_tokens, ..SamplingParams::default() },
    );
    let mut candidates: [Box<dyn Candidate>; 1] = [Box::new(candidate)];
    let mut bar: Option<ProgressBar> = None;
    let result = ::eval::evaluate(&mut candidates, items, metrics, &mut |p| {
        bar.get_or_insert_with(|| progress::bar(p.candidate, p.total as u64))
            .set_position(p.done as u64);
    })?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(result)
}
