//! `metier eval`: one model on one test set.

use super::data::read_options;
use super::opened;
use super::tasks;
use crate::cli::EvalArgs;
use crate::embedder::Texts;
use crate::exit;
use crate::progress;
use crate::resolve::{self, Adapter, Base};
use ::data::{FolderSplit, ReadOptions};
use ::eval::{
    Candidate, Embedded, EvalItem, EvalResult, Graded, Judge, LocalCandidate, Metric, Progress,
    RUBRIC,
};
use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use engine::{Engine, EngineOptions, SamplingParams};
use model::KvDtype;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

/// Memory for the KV cache of an evaluation.
const KV_BYTES: usize = 1 << 30;
/// Answers under way at once.
const MAX_NUM_SEQS: usize = 64;

pub(super) fn run(args: &EvalArgs) -> Result<ExitCode> {
    let Some(data) = &args.data else { return tasks::run(args) };
    let metrics = ::eval::metrics_by_name(&args.metrics)?;
    if metrics.iter().any(|metric| metric.name == RUBRIC) {
        bail!(
            "the metric {RUBRIC} needs a judge, which only `metier prove` asks\nhint: [prove.rubric] in its config file"
        );
    }
    let texts = embedding_model(&metrics, args.embedding_model.as_deref())?;
    let texts = texts.map(Texts::load).transpose()?;
    let base = Base::load(&args.model, args.weights)?;
    let adapter = adapted(args.adapter.as_ref(), &base)?;
    let options = ReadOptions { split: FolderSplit::Test, ..read_options(&args.columns) };
    let mut examples = ::data::read(data, &options)?;
    examples.truncate(args.limit.unwrap_or(usize::MAX));
    let items = examples.iter().map(EvalItem::from_example).collect::<Result<Vec<_>, _>>()?;
    let dtype = args.kv_cache.dtype();
    let name = adapter.as_ref().map_or("base", |a| &a.name);
    let params = SamplingParams { max_tokens: args.max_tokens, ..SamplingParams::default() };
    let candidate = local(name, &base, adapter.as_ref(), params, dtype)?;
    let result = ask(Box::new(candidate), (texts.as_ref(), None), items, metrics)?;
    let [candidate] = &result.candidates[..] else { bail!("one candidate gave no result") };
    let adapter_name = args.adapter.as_ref().map(|a| format!(" with {}", a.display()));
    let by = format!("eval of {}{}", args.model, adapter_name.unwrap_or_default());
    let openings = opened::count(data, &by);
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
                "openings": openings.map(|o| o.count),
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

/// The adapter of a folder, where one is named.
pub(super) fn adapted(dir: Option<&PathBuf>, base: &Base) -> Result<Option<Adapter>> {
    dir.map(|dir| Adapter::load("adapted", dir, base)).transpose()
}

/// An engine for tests on `base`, and the slot of `adapter` in it.
pub(super) fn engine(
    base: &Base,
    adapter: Option<&Adapter>,
    kv_cache_dtype: KvDtype,
) -> Result<(Engine, Option<usize>)> {
    let adapters: Vec<&Adapter> = adapter.into_iter().collect();
    let options =
        EngineOptions { max_num_seqs: MAX_NUM_SEQS, kv_cache_dtype, ..EngineOptions::default() };
    let (engine, slots) = resolve::engine(base, &adapters, KV_BYTES, options)?;
    Ok((engine, slots.first().copied()))
}

/// `base`, or the adapter on it, as a candidate that answers on the serving engine.
pub(super) fn local(
    name: &str,
    base: &Base,
    adapter: Option<&Adapter>,
    params: SamplingParams,
    kv_cache_dtype: KvDtype,
) -> Result<LocalCandidate> {
    let (engine, slot) = engine(base, adapter, kv_cache_dtype)?;
    let template = adapter.map_or(&base.template, |a| &a.template);
    Ok(LocalCandidate::new(
        name,
        Arc::new(Mutex::new(engine)),
        Arc::clone(&base.tokenizer),
        Arc::new(template.clone()),
        slot,
        params,
    ))
}

/// The model that compares answers with references: one is named where a metric asks for it, and only there.
pub(super) fn embedding_model<'a>(
    metrics: &[&Metric],
    model: Option<&'a str>,
) -> Result<Option<&'a str>> {
    const METRIC: &str = "embedding_similarity";
    match (metrics.iter().any(|m| m.name == METRIC), model) {
        (true, None) => bail!(
            "the metric {METRIC} needs a model that compares\nhint: name one: embedding_model in [prove], or \
             --embedding-model"
        ),
        (false, Some(model)) => {
            bail!(
                "embedding model {model}: nothing asks for it; expected {METRIC} among the metrics"
            )
        }
        _ => Ok(model),
    }
}

/// What scores answers beside their text, where a metric asks for it: the model that compares them with the
/// references, and the judge who grades them.
pub(super) type Scorers<'a> = (Option<&'a Texts>, Option<&'a Judge>);

/// Has a candidate answer every item, with a progress bar.
pub(super) fn ask(
    candidate: Box<dyn Candidate + '_>,
    (texts, judge): Scorers<'_>,
    items: Vec<EvalItem>,
    metrics: Vec<&'static Metric>,
) -> Result<EvalResult> {
    let mut bar = progress::Counted::default();
    let report = &mut |p: Progress<'_>| bar.set(p.candidate, p.done, p.total);
    let mut embed = |some: &[&str]| match texts {
        Some(texts) => texts.embed(some).map_err(|error| format!("{error:#}")),
        None => Ok(Vec::new()),
    };
    let candidate: Box<dyn Candidate + '_> = match texts {
        Some(_) => Box::new(Embedded::new(candidate, &mut embed)),
        None => candidate,
    };
    let mut grades = progress::Counted::default();
    let mut graded = |done, total| grades.set("judge", done, total);
    let candidate: Box<dyn Candidate + '_> = match judge {
        Some(judge) => Box::new(Graded::new(candidate, judge, &mut graded)),
        None => candidate,
    };
    Ok(::eval::evaluate(&mut [candidate], items, metrics, report)?)
}

/// Asks base or adapter every item: [`local`], then [`ask`].
pub(super) fn evaluate(
    base: &Base,
    adapter: Option<&Adapter>,
    items: Vec<EvalItem>,
    metrics: Vec<&'static Metric>,
    max_tokens: usize,
    kv_cache_dtype: KvDtype,
) -> Result<EvalResult> {
    let name = adapter.map_or("base", |a| &a.name);
    let params = SamplingParams { max_tokens, ..SamplingParams::default() };
    let candidate = local(name, base, adapter, params, kv_cache_dtype)?;
    ask(Box::new(candidate), (None, None), items, metrics)
}
