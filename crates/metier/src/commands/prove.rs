//! `metier prove`: candidates side by side on the sealed test set, with cost and a verdict.

use super::data::read_options;
use super::eval::{ask, embedding_model, local};
use super::opened;
use crate::cli::{ColumnArgs, ProveArgs, StateArgs, WeightArgs};
use crate::config::ConfigFile;
use crate::embedder::Texts;
use crate::exit;
use crate::gate;
use crate::machine;
use crate::price_store;
use crate::progress;
use crate::prove_plan::{CandidatePlan, ProveSetup, Who};
use crate::resolve::{Adapter, Base};
use crate::state;
use ::data::{Example, FolderSplit, LeakOptions, ReadOptions};
use ::eval::{
    BaselineCandidate, Better, Candidate, CandidateResult, DataSummary, EvalItem, EvalResult,
    FileDigest, Finding, Judge, Judgement, Licence, Prompted, ProofFacts, ProofFiles, ProofPlan,
    RecordedCandidate, RentedCandidate, Report, Rule, Verdict, plain_name, stats,
};
use anyhow::{Context, Result, bail};
use indexmap::IndexMap;
use model::{KvDtype, WeightDtype};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

/// Under what the report names the digest of the model that compares answers with references.
pub(super) const EMBEDDING_MODEL: &str = "embedding model";

pub(super) fn run(args: &ProveArgs) -> Result<ExitCode> {
    let config = ConfigFile::read(&args.config)?;
    let today = time::OffsetDateTime::now_utc().date().to_string();
    let mut setup = ProveSetup::resolve(&config, args.out.as_deref(), args.retry_failed, &today)?;
    let prices = price_table(&config, &mut setup)?;
    let metrics = ::eval::metrics_by_name(&setup.metrics)?;
    if metrics.iter().any(|m| m.name == setup.metric && m.better == Better::Lower) {
        bail!("{}: of {} less is better, so it cannot decide", args.config.display(), setup.metric);
    }
    let texts = embedding_model(&metrics, setup.embedding_model.as_deref())?;
    let options = read_options(&config.data.columns(&ColumnArgs::default()));
    let test_options = ReadOptions { split: FolderSplit::Test, ..options.clone() };
    let mut test = ::data::read(&setup.data, &test_options)?;
    test.truncate(setup.limit.unwrap_or(usize::MAX));
    let items = test.iter().map(EvalItem::from_example).collect::<Result<Vec<_>, _>>()?;
    if args.dry_run {
        return dry_run(&setup, items.len());
    }
    // Before anybody is asked, who may cost money.
    let texts = texts.map(Texts::load).transpose()?;
    let train = read_train(&config, &options)?;
    let shots = worked_examples(&train);
    let opened = opening_rule(&setup);
    let mut run = Run {
        setup: &setup,
        train: &train,
        shots: &shots,
        texts: texts.as_ref(),
        facts: Facts::default(),
        base: None,
    };
    let mut result =
        EvalResult { items: Vec::new(), metrics: metrics.clone(), candidates: Vec::new() };
    for plan in &setup.candidates {
        let candidate = run.answer(plan, &items, &metrics)?;
        eprintln!(
            "{}: {} answers, {} failed",
            plan.name,
            candidate.answers.len(),
            candidate.failed()
        );
        result.candidates.push(candidate);
    }
    result.items = items.clone();
    if let Some(path) = &args.against {
        result.candidates.push(earlier(path, &setup.judged, texts.as_ref(), items, metrics)?);
    }
    let mut facts = run.facts;
    facts.prices = prices;
    if let Some(texts) = &texts {
        facts.digests.insert(EMBEDDING_MODEL.to_owned(), texts.digest());
    }
    let judgements = judge(&setup, &result)?;
    let report = report(
        &config,
        &setup,
        &result,
        (&train, &test),
        (facts, judgements),
        (opened, args.lang),
    )?;
    finish(args, &setup, &result, report)
}

fn dry_run(setup: &ProveSetup, n: usize) -> Result<ExitCode> {
    println!("{}: {n} examples from {}", setup.title, setup.data.display());
    println!("{} is judged against {} by {}", setup.judged, setup.against, setup.metric);
    for candidate in &setup.candidates {
        let who = match &candidate.who {
            Who::Local { model, adapter: Some(adapter), .. } => {
                format!("{model} with the adapter {}", adapter.display())
            }
            Who::Local { model, .. } => format!("{model}, here"),
            Who::Rented(endpoint) => format!("{} at {}", endpoint.model, endpoint.url),
            Who::Recorded(path) => format!("answers recorded in {}", path.display()),
            Who::Baseline(kind) => format!("the baseline {kind}"),
        };
        println!("  {}: {who}, {} worked examples in front", candidate.name, candidate.shots);
    }
    for share in [0.1, 0.2, 0.3] {
        if let Some(gap) = stats::detectable_difference(n, share)? {
            println!(
                "where the two differ on {:.0} % of the examples, a gap of {:.1} points is found with a chance of 80 %",
                100.0 * share,
                100.0 * gap
            );
        }
    }
    Ok(exit::done())
}

/// The price table that counts beside the one that comes with the program, as a name for the report and a
/// file: the config file's, or the one that `metier prices update` has kept.
fn price_table(config: &ConfigFile, setup: &mut ProveSetup) -> Result<Option<(String, PathBuf)>> {
    if let Some(path) = config.cost.get("prices").and_then(toml::Value::as_str) {
        return Ok(Some(("price table".to_owned(), config.anchored(Path::new(path)))));
    }
    // Whoever has no folder for state has kept no table there.
    let Ok(dir) = state::dir(&StateArgs::default()) else { return Ok(None) };
    let Some(kept) = price_store::newest(&dir)? else { return Ok(None) };
    setup.update_prices(kept.table);
    let name = format!("price table of {} from {}", kept.entry.read, kept.entry.source);
    Ok(Some((name, kept.path)))
}

fn read_train(config: &ConfigFile, options: &ReadOptions) -> Result<Vec<Example>> {
    let mut all = Vec::new();
    for source in &config.data.train {
        all.extend(::data::read(&source.path, options)?);
    }
    Ok(all)
}

/// Questions and answers of the training data, for those who are asked with examples in front.
fn worked_examples(train: &[Example]) -> Vec<(String, String)> {
    train.iter().map(|e| (e.question(), e.completion().to_owned())).collect()
}

/// Facts about the candidates, gathered while they answer.
#[derive(Default)]
struct Facts {
    asked: IndexMap<String, String>,
    files: IndexMap<String, PathBuf>,
    digests: IndexMap<String, String>,
    licences: Vec<Licence>,
    /// The price table, by name.
    prices: Option<(String, PathBuf)>,
}

struct Run<'a> {
    setup: &'a ProveSetup,
    train: &'a [Example],
    shots: &'a [(String, String)],
    /// Compares answers with references, where a metric asks for it.
    texts: Option<&'a Texts>,
    facts: Facts,
    /// The base of the last local candidate, by name and type.
    base: Option<(String, Option<WeightDtype>, Rc<Base>)>,
}

impl Run<'_> {
    /// One candidate's answers to all examples, scored.
    fn answer(
        &mut self,
        plan: &CandidatePlan,
        items: &[EvalItem],
        metrics: &[&'static ::eval::Metric],
    ) -> Result<CandidateResult> {
        if plan.shots > self.shots.len() {
            bail!(
                "{}: {} worked examples are to stand in front, but [data] train has {}",
                plan.name,
                plan.shots,
                self.shots.len()
            );
        }
        let prompting = plan.prompting(self.shots[..plan.shots].to_vec());
        let mut words = prompting.in_words();
        let candidate: Box<dyn Candidate> = match &plan.who {
            Who::Recorded(path) => {
                words = format!("answers recorded in {}", path.display());
                self.facts.files.insert(format!("answers of {}", plan.name), path.clone());
                Box::new(RecordedCandidate::read(&plan.name, path)?)
            }
            Who::Baseline(kind) => {
                words = format!("{kind}, learnt from the training data");
                let items = self.train.iter().map(EvalItem::from_example);
                Box::new(BaselineCandidate::learn(kind, &items.collect::<Result<Vec<_>, _>>()?)?)
            }
            Who::Rented(endpoint) => {
                words = format!("{} at {}, {words}", endpoint.model, endpoint.url);
                let path = self.setup.out.join("records").join(plain_name(&plan.name) + ".jsonl");
                let rented = RentedCandidate::new(&plan.name, (**endpoint).clone(), path)?;
                Box::new(Prompted::new(rented, prompting))
            }
            Who::Local { model, adapter, dtype } => {
                let base = self.base(model, *dtype)?;
                let adapter = adapter
                    .as_ref()
                    .map(|dir| Adapter::load(&plan.name, dir, &base))
                    .transpose()?;
                let held = dtype.map_or(String::new(), |d| format!(" as {}", d.name()));
                words = format!("{model}{held}, {words}");
                self.note(plan, &base, adapter.as_ref())?;
                let max_tokens = self.setup.max_tokens;
                let dtype = KvDtype::default();
                let candidate = local(&plan.name, &base, adapter.as_ref(), max_tokens, dtype)?;
                Box::new(Prompted::new(candidate, prompting))
            }
        };
        self.facts.asked.insert(plan.name.clone(), words);
        let result = ask(candidate, self.texts, items.to_vec(), metrics.to_vec())?;
        let result =
            result.candidates.into_iter().next().context("one candidate gave no result")?;
        Ok(CandidateResult { name: plan.name.clone(), ..result })
    }

    /// A base as it is held: candidates on the same one, which follow each other as a rule, share it.
    fn base(&mut self, model: &str, dtype: Option<WeightDtype>) -> Result<Rc<Base>> {
        if let Some((name, held, base)) = &self.base
            && name == model
            && *held == dtype
        {
            return Ok(Rc::clone(base));
        }
        // The one before goes first: two may not fit.
        self.base = None;
        let base = Rc::new(Base::load(model, WeightArgs { dtype })?);
        self.base = Some((model.to_owned(), dtype, Rc::clone(&base)));
        Ok(base)
    }

    /// Digests and licences of a local candidate.
    fn note(&mut self, plan: &CandidatePlan, base: &Base, adapter: Option<&Adapter>) -> Result<()> {
        let name = &plan.name;
        let template = adapter.map_or(&base.template, |a| &a.template).source();
        let digests = &mut self.facts.digests;
        digests.insert(format!("base of {name}"), base.decoder.digest()?.to_owned());
        digests.insert(format!("chat template of {name}"), model::sha256_hex(template.as_bytes()));
        if let (Some(adapter), Who::Local { adapter: Some(dir), .. }) = (adapter, &plan.who) {
            digests.insert(format!("adapter of {name}"), adapter.lora.digest());
            let file = dir.join("adapter_model.safetensors");
            self.facts.files.insert(format!("adapter file of {name}"), file);
        }
        let licence =
            Licence { what: format!("base {}", base.short_name()), licence: base.license() };
        if !self.facts.licences.contains(&licence) {
            self.facts.licences.push(licence);
        }
        Ok(())
    }
}

/// What the judge says of the judged candidate beside the one that it is compared with.
fn judge(setup: &ProveSetup, result: &EvalResult) -> Result<Vec<Judgement>> {
    let Some(pairwise) = &setup.pairwise else { return Ok(Vec::new()) };
    let labels = match &pairwise.labels {
        Some(path) => {
            ::eval::read_labels(path)?.into_iter().map(|label| (label.id, label.better)).collect()
        }
        None => Default::default(),
    };
    let judge = Judge {
        endpoint: (*pairwise.endpoint).clone(),
        criteria: pairwise.criteria.clone(),
        records: judge_records(setup),
    };
    let (a, b) = (result.candidate(&setup.against)?, result.candidate(&setup.judged)?);
    let bar = progress::bar("judge", 2 * result.items.len() as u64);
    let judgement =
        judge.pairwise(&result.items, a, b, &labels, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(vec![judgement])
}

fn judge_records(setup: &ProveSetup) -> PathBuf {
    setup.out.join("records").join("judge.jsonl")
}

/// The judged candidate's answers of an earlier report. The report's seal and the digest of those
/// answers must hold; what it was made from (an adapter, say) may have changed since.
fn earlier(
    path: &Path,
    judged: &str,
    texts: Option<&Texts>,
    items: Vec<EvalItem>,
    metrics: Vec<&'static ::eval::Metric>,
) -> Result<CandidateResult> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let report: Report = serde_json::from_str(&text)
        .with_context(|| format!("{}: not a report of `metier prove`", path.display()))?;
    if report.seal.is_empty() || report.sealed()? != text {
        bail!("{}: the earlier report was changed: its seal does not fit", path.display());
    }
    let before = report.plan.as_ref().map_or("", |plan| plan.judged.as_str());
    let place = report.candidates.iter().position(|c| c.name == before);
    let place = place.with_context(|| format!("{}: it judges nobody", path.display()))?;
    let start = format!("answers/{}_", place + 1);
    let inside =
        |name: &str| Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    let file = report.files.keys().find(|name| name.starts_with(&start) && inside(name));
    let file =
        file.with_context(|| format!("{}: it names no answers of {before}", path.display()))?;
    let answers = path.parent().unwrap_or(Path::new("")).join(file);
    let bytes = std::fs::read(&answers).with_context(|| answers.display().to_string())?;
    if model::sha256_hex(&bytes) != report.files[file].sha256 {
        bail!("{}: its SHA-256 is not the one that the earlier report names", answers.display());
    }
    let recorded = RecordedCandidate::read(format!("{judged} (earlier)"), &answers)?;
    let result = ask(Box::new(recorded), texts, items, metrics)?;
    result.candidates.into_iter().next().context("one candidate gave no result")
}

fn report(
    config: &ConfigFile,
    setup: &ProveSetup,
    result: &EvalResult,
    (train, test): (&[Example], &[Example]),
    (facts, judgements): (Facts, Vec<Judgement>),
    (opened, language): (Rule, ::eval::Language),
) -> Result<Report> {
    let machine = machine::detect();
    let here = format!("{}, {} cores", machine.cpu, machine.cores);
    let local = result.candidates.iter().filter(|c| c.kind == "local");
    let measured: IndexMap<String, f64> =
        local.filter_map(|c| Some((c.name.clone(), c.tokens_per_second()?))).collect();
    let economics = setup.economics(&measured, &here)?;
    let (leaks, data) = leak_rule(train, test)?;
    let mut licences = facts.licences;
    if let Some(licence) = &config.data.license {
        licences.push(Licence { what: "training data".into(), licence: licence.clone() });
    }
    let findings =
        [leaks, Some(opened), Some(licence_rule(&licences))].into_iter().flatten().collect();
    let plan = ProofPlan {
        language,
        metrics: setup.metrics.clone(),
        metric: setup.metric.clone(),
        judged: setup.judged.clone(),
        against: setup.against.clone(),
        margin: setup.margin,
        max_cost_per_1000: setup.max_cost_per_1000,
        embedding_model: setup.embedding_model.as_ref().map(|name| {
            // A folder is found again from the proof's; other names go everywhere.
            relative(Path::new(name), &setup.out).unwrap_or_else(|| name.clone())
        }),
        must_be_cheaper: setup.must_be_cheaper,
        least_slice: setup.least_slice,
        slice_margin: setup.slice_margin,
        economics,
        asked: facts.asked,
        findings,
        judgements,
    };
    let mut files = ProofFiles::of(result).digests();
    let judge = setup.pairwise.as_ref();
    let judge = judge.map(|_| ("records of the judge".to_owned(), judge_records(setup)));
    let prices = facts.prices.filter(|_| plan.economics.is_some());
    let sources = [("test set".to_owned(), setup.data.clone())].into_iter();
    let sources = sources.chain(facts.files).chain(judge).chain(prices);
    for (name, path) in sources.filter(|(_, path)| path.is_file()) {
        files.insert(name, file_digest(&path, &setup.out)?);
    }
    for (name, sha256) in facts.digests {
        files.insert(name, FileDigest { sha256, bytes: 0, path: None });
    }
    let now = time::OffsetDateTime::now_utc();
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    let facts = ProofFacts {
        title: setup.title.clone(),
        created: now.format(&format)?,
        program: format!("metier {}", env!("CARGO_PKG_VERSION")),
        machine,
        data: Some(data),
        licences,
        files,
        ..ProofFacts::default()
    };
    Ok(::eval::prove(&plan, facts, result)?)
}

/// Counts this run on the sealed test set. Choosing by what a test set says wears it out, so the reader
/// is told how often that was possible.
fn opening_rule(setup: &ProveSetup) -> Rule {
    let names: Vec<&str> = setup.candidates.iter().map(|c| c.name.as_str()).collect();
    let by = format!("metier prove: {}", names.join(", "));
    let counted = opened::count(&setup.data, &by).map(|openings| openings.count);
    let (finding, evidence) = match counted {
        Some(1) => (Finding::Kept, "It was opened for the first time.".to_owned()),
        Some(n) => (
            Finding::Warning,
            format!("It was opened {n} times; each look makes a chance finding likelier."),
        ),
        None => (Finding::Warning, "Its openings could not be counted.".to_owned()),
    };
    let asks = "The sealed test set is opened once.".to_owned();
    Rule { name: "openings".into(), asks, finding, evidence }
}

/// Test examples in the training data.
fn leak_rule(train: &[Example], test: &[Example]) -> Result<(Option<Rule>, DataSummary)> {
    let mut data =
        DataSummary { test_rows: test.len(), train_rows: train.len(), ..DataSummary::default() };
    if train.is_empty() {
        data.leak_check = "Not done: [data] names no training data.".to_owned();
        return Ok((None, data));
    }
    let leaks = ::data::leak_check(train, test, &LeakOptions::default())?;
    data.leaks = leaks.total();
    data.leak_check = format!(
        "Every test question was compared with every training question: {} the same byte by byte, {} more after \
         normalising, {} more by overlap of three-word sequences.",
        leaks.exact, leaks.normalised, leaks.near
    );
    let first: Vec<&str> = leaks.leaked_ids.iter().take(5).map(String::as_str).collect();
    let (finding, evidence) = match leaks.total() {
        0 => (Finding::Kept, "None was found.".to_owned()),
        n => (
            Finding::Open,
            format!(
                "{n} test examples are in the training data, exactly or nearly, such as {}.",
                first.join(", ")
            ),
        ),
    };
    let asks = "No test example is in the training data.".to_owned();
    Ok((Some(Rule { name: "leaks".into(), asks, finding, evidence }), data))
}

/// Licences that are not known are a warning: nobody can say whether this may be used.
fn licence_rule(licences: &[Licence]) -> Rule {
    let asks = "The licences of base and data are known, and what they ask for.".to_owned();
    let unknown = licences.iter().filter(|l| crate::licences::find(&l.licence).is_none());
    let unknown: Vec<String> = unknown.map(|l| format!("{}: {}", l.what, l.licence)).collect();
    let obligations = licences.iter().filter_map(|l| crate::licences::find(&l.licence));
    let told: Vec<String> =
        obligations.map(|l| format!("{}: {}", l.name, l.obligations.join(" "))).collect();
    let (finding, evidence) = match (unknown.is_empty(), licences.len()) {
        (true, 0) => (Finding::Warning, "No licence is stated.".to_owned()),
        (true, _) => (Finding::Kept, told.join(" ")),
        (false, _) => {
            (Finding::Warning, format!("Not known: {}. {}", unknown.join("; "), told.join(" ")))
        }
    };
    Rule { name: "licences".into(), asks, finding, evidence: evidence.trim().to_owned() }
}

fn file_digest(path: &Path, out: &Path) -> Result<FileDigest> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let (sha256, len) = (model::sha256_hex(&bytes), bytes.len() as u64);
    Ok(FileDigest { sha256, bytes: len, path: relative(path, out) })
}

/// The way from the folder of the proof to a file elsewhere; None where there is none.
fn relative(path: &Path, out: &Path) -> Option<String> {
    std::fs::create_dir_all(out).ok()?;
    let (path, out) = (path.canonicalize().ok()?, out.canonicalize().ok()?);
    let shared = path.components().zip(out.components()).take_while(|(a, b)| a == b).count();
    let up = out.components().skip(shared).map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(path.components().skip(shared)).collect();
    way.to_str().map(str::to_owned)
}

fn finish(
    args: &ProveArgs,
    setup: &ProveSetup,
    result: &EvalResult,
    report: Report,
) -> Result<ExitCode> {
    std::fs::create_dir_all(&setup.out).with_context(|| setup.out.display().to_string())?;
    ProofFiles::of(result).write(&report, &setup.out)?;
    for candidate in &setup.candidates {
        if let Who::Local { adapter: Some(dir), .. } = &candidate.who
            && candidate.name == setup.judged
        {
            gate::write(dir, &report, &setup.judged, &setup.out.join("report.json"))?;
        }
    }
    if args.json {
        print!("{}", report.sealed()?);
    } else {
        println!("{}", report.verdict.title());
        report.sentences.iter().for_each(|sentence| println!("  {sentence}"));
        println!("{}", setup.out.join("report.html").display());
    }
    Ok(match &args.against {
        Some(_) => regression(setup, &report)?,
        None => match report.verdict {
            Verdict::WorthIt => exit::done(),
            Verdict::NotProven => exit::not_proven(),
            Verdict::NotWorthIt => ExitCode::from(exit::NOT_WORTH_IT),
        },
    })
}

/// Fails only where the judged candidate is proven worse than it was.
fn regression(setup: &ProveSetup, report: &Report) -> Result<ExitCode> {
    let earlier = format!("{} (earlier)", setup.judged);
    let found = report.comparisons.iter().find(|c| c.a == earlier && c.metric == setup.metric);
    let found = found.context("the earlier answers were not compared")?;
    let words = format!(
        "against the earlier report: {:+.1} points by {} (95 % between {:+.1} and {:+.1})",
        100.0 * found.difference,
        setup.metric,
        100.0 * found.ci95.lo,
        100.0 * found.ci95.hi
    );
    if found.ci95.hi < 0.0 {
        eprintln!("proven worse {words}");
        return Ok(ExitCode::from(exit::NOT_WORTH_IT));
    }
    eprintln!("no proven regression {words}");
    Ok(exit::done())
}
