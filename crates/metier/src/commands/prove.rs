//! `metier prove`: candidates side by side on the sealed test set, with cost and a verdict.

use super::data::read_options;
use super::eval::{Scorers, ask, embedding_model, local};
use super::opened;
use crate::cli::{ColumnArgs, ProveArgs, StateArgs, WeightArgs};
use crate::config::ConfigFile;
use crate::embedder::Texts;
use crate::exit;
use crate::findings;
use crate::gate;
use crate::machine;
use crate::price_store;
use crate::progress;
use crate::prove_plan::{CandidatePlan, JudgeSetup, ProveSetup, Who};
use crate::resolve::{self, Adapter, Base};
use crate::sealed;
use crate::state;
use ::data::{Example, FolderSplit, ReadOptions};
use ::eval::{
    Arm, BaselineCandidate, Better, Candidate, CandidateResult, Endpoint, EvalItem, EvalResult,
    FileDigest, Forgotten, Games, Judge, Language, Licence, Look, Preference, Prompted, ProofFacts,
    ProofFiles, ProofPlan, RecordedCandidate, RentedCandidate, Repeated, Report, Rubric, Verdict,
    plain_name, stats,
};
use anyhow::{Context, Result, bail};
use indexmap::IndexMap;
use model::{KvDtype, WeightDtype};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use train::Manifest;

/// Under what the report names the digest of the model that compares answers with references.
pub(super) const EMBEDDING_MODEL: &str = "embedding model";

pub(super) fn run(args: &ProveArgs) -> Result<ExitCode> {
    let config = ConfigFile::read(&args.config)?;
    let today = time::OffsetDateTime::now_utc().date().to_string();
    let (out, retry) = (args.out.as_deref(), args.retry_failed);
    let mut setup = ProveSetup::resolve(&config, out, retry, &today, args.lang)?;
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
        return dry_run(&setup, &items);
    }
    // Before anybody is asked, who may cost money.
    let texts = texts.map(Texts::load).transpose()?;
    let train = read_train(&config, &options)?;
    // What stands in the test set is no worked example, and no baseline learns from it.
    let (apart, _) = sealed::apart(train.clone(), &test)?;
    let shots = worked_examples(&apart);
    let rubric = setup.rubric.as_ref().map(|rubric| judge_of(rubric, rubric_records(&setup)));
    let mut run = Run {
        rubric: rubric.as_ref(),
        setup: &setup,
        sealed: sealed::digests(&setup.data)?,
        train: &apart,
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
    let before = match &args.against {
        Some(path) => {
            let scorers = (texts.as_ref(), rubric.as_ref());
            let (name, candidate) = earlier(path, &setup, scorers, items, metrics)?;
            result.candidates.push(candidate);
            Some(name)
        }
        None => None,
    };
    let mut facts = run.facts;
    facts.prices = prices;
    if let Some(texts) = &texts {
        facts.digests.insert(EMBEDDING_MODEL.to_owned(), texts.digest());
    }
    let judged = Judged { games: judge(&setup, &result)?, rubric: graded(&setup, &result)? };
    // A run that ended before its scores were known looked at nothing.
    let opened = opened::count(&setup.data, &opening_words(&setup)).map(|openings| openings.count);
    let rows = Rows { train: &train, apart: &apart, test: &test };
    let report = report(&config, &setup, &result, rows, (facts, judged), opened)?;
    finish(args, &setup, &result, report, before.as_deref())
}

fn dry_run(setup: &ProveSetup, items: &[EvalItem]) -> Result<ExitCode> {
    let n = items.len();
    println!("{}: {n} examples from {}", setup.title, setup.data.display());
    let (judged, is) = match &setup.judged[..] {
        [one] => (one.clone(), "is"),
        several => (several.join(", "), "are"),
    };
    println!("{judged} {is} judged against {} by {}", setup.against, setup.metric);
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
        let repeats = match candidate.repeats {
            1 => String::new(),
            n => format!(", {n} answers to each question"),
        };
        println!(
            "  {}: {who}, {} worked examples in front{repeats}",
            candidate.name, candidate.shots
        );
    }
    for (field, values) in ::eval::slice_sizes(items) {
        let enough = values.iter().filter(|(_, n)| **n >= setup.least_slice);
        let enough: Vec<String> = enough.map(|(value, n)| format!("{value} ({n})")).collect();
        if values.len() > 1 && !enough.is_empty() {
            println!("slices by {field}: {}", enough.join(", "));
        }
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
    arms: IndexMap<String, Arm>,
    forgotten: IndexMap<String, Forgotten>,
    /// Models that wrote training data, as the manifests of adapters say.
    writers: Vec<String>,
    /// Candidates of whose training it is not known that it left out what stands in this test set.
    not_apart: Vec<String>,
    /// The price table, by name.
    prices: Option<(String, PathBuf)>,
}

/// What was read.
struct Rows<'a> {
    train: &'a [Example],
    /// Those of `train` that do not stand in `test`.
    apart: &'a [Example],
    test: &'a [Example],
}

/// What judges said.
struct Judged {
    games: Vec<Games>,
    rubric: Option<Rubric>,
}

struct Run<'a> {
    setup: &'a ProveSetup,
    /// SHA-256 of the test set's files.
    sealed: Vec<String>,
    train: &'a [Example],
    shots: &'a [(String, String)],
    /// Compares answers with references, where a metric asks for it.
    texts: Option<&'a Texts>,
    /// Grades answers, likewise.
    rubric: Option<&'a Judge>,
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
                "{}: {} worked examples are to stand in front, but [data] train has {} that are not in the \
                 test set",
                plan.name,
                plan.shots,
                self.shots.len()
            );
        }
        let prompting = plan.prompting(self.shots[..plan.shots].to_vec());
        let language = self.setup.language;
        let mut words = prompting.in_words(language);
        let candidate: Box<dyn Candidate> = match &plan.who {
            Who::Recorded(path) => {
                words = language.say("answers recorded in {path}", &[("path", &path.display())]);
                self.facts.files.insert(format!("answers of {}", plan.name), path.clone());
                Box::new(RecordedCandidate::read(&plan.name, path)?)
            }
            Who::Baseline(kind) => {
                words = language.say("{kind}, learnt from the training data", &[("kind", kind)]);
                let items = self.train.iter().map(EvalItem::from_example);
                Box::new(BaselineCandidate::learn(kind, &items.collect::<Result<Vec<_>, _>>()?)?)
            }
            Who::Rented(endpoint) => {
                let (model, url) = (&endpoint.model, &endpoint.url);
                let at = language.say("{model} at {url}", &[("model", model), ("url", url)]);
                words = format!("{at}, {words}");
                let stated = endpoint.parameters.get("temperature");
                words = with_temperature(words, stated.and_then(|t| t.as_f64()), language);
                let path = self.setup.out.join("records").join(plain_name(&plan.name) + ".jsonl");
                repeated(plan.repeats, |draw| {
                    let endpoint = Endpoint { draw, ..(**endpoint).clone() };
                    let rented = RentedCandidate::new(&plan.name, endpoint, path.clone())?;
                    Ok(Box::new(Prompted::new(rented, prompting.clone())))
                })?
            }
            Who::Local { model, adapter, dtype, params } => {
                let base = self.base(model, *dtype)?;
                let adapter = adapter
                    .as_ref()
                    .map(|dir| Adapter::load(&plan.name, dir, &base))
                    .transpose()?;
                let held = match dtype {
                    Some(dtype) => language
                        .say("{model} as {dtype}", &[("model", model), ("dtype", &dtype.name())]),
                    None => model.clone(),
                };
                words = format!("{held}, {words}");
                self.note(plan, &base, adapter.as_ref())?;
                if let Some(first) = items.first() {
                    let arm = arm(&base, adapter.as_ref(), &prompting.apply(first))?;
                    self.facts.arms.extend(arm.map(|arm| (plan.name.clone(), arm)));
                }
                // As it was written: 0.7 as f32 is not 0.7 as f64.
                let stated = params.temperature.to_string().parse().ok();
                words = with_temperature(words, stated, language);
                let (params, dtype) = ((**params).clone(), KvDtype::default());
                let candidate = local(&plan.name, &base, adapter.as_ref(), params, dtype)?;
                repeated(plan.repeats, |draw| {
                    let candidate = candidate.draw(draw as u64);
                    Ok(Box::new(Prompted::new(candidate, prompting.clone())))
                })?
            }
        };
        if plan.repeats > 1 {
            words = language.say(
                "{words}, {n} answers to each question, of which the mean counts",
                &[("words", &words), ("n", &plan.repeats)],
            );
        }
        self.facts.asked.insert(plan.name.clone(), words);
        // What was adapted elsewhere may have been adapted to this training data.
        if matches!(plan.who, Who::Recorded(_) | Who::Rented(_))
            && self.setup.judged.contains(&plan.name)
        {
            self.facts.not_apart.push(plan.name.clone());
        }
        let scorers = (self.texts, self.rubric);
        let result = ask(candidate, scorers, items.to_vec(), metrics.to_vec())?;
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
            let manifest = resolve::manifest(dir)?;
            let knows = |of: &Manifest| self.sealed.iter().all(|test| of.kept_apart.contains(test));
            if !manifest.as_ref().is_some_and(knows) {
                self.facts.not_apart.push(name.clone());
            }
            if let Some(manifest) = manifest {
                let forgotten = manifest.guard.map(|guard| Forgotten {
                    text: guard.text,
                    tokens: guard.tokens,
                    loss_before: guard.loss_before,
                    loss_after: guard.loss_after,
                    ci95: guard.difference_interval.map(Into::into),
                });
                self.facts.forgotten.extend(forgotten.map(|f| (name.clone(), f)));
                self.facts.writers.extend(manifest.generated_by);
            }
        }
        let what = self.setup.language.say("base {name}", &[("name", &base.short_name())]);
        let licence = Licence { what, licence: base.license() };
        if !self.facts.licences.contains(&licence) {
            self.facts.licences.push(licence);
        }
        Ok(())
    }
}

/// How a candidate is asked, token by token, seen in its first prompt; None where that cannot be rendered.
fn arm(base: &Base, adapter: Option<&Adapter>, first: &EvalItem) -> Result<Option<Arm>> {
    let template = adapter.map_or(&base.template, |a| &a.template);
    let Ok(prompt) = template.render(&base.tokenizer, &first.conversation, true) else {
        return Ok(None);
    };
    let token = |id: u32| base.tokenizer.token(id).unwrap_or_else(|| id.to_string());
    let first = prompt.ids.first().copied();
    Ok(Some(Arm {
        base: base.decoder.digest()?.to_owned(),
        template: template.sha256().to_owned(),
        first_token: first.map(token).unwrap_or_default(),
        bos: first.is_some() && first == base.tokenizer.bos_id(),
        stops: template.stop_ids(&base.tokenizer).into_iter().map(token).collect(),
    }))
}

/// What the judge answers of each judged candidate beside the one that they are compared with.
fn judge(setup: &ProveSetup, result: &EvalResult) -> Result<Vec<Games>> {
    let Some(pairwise) = &setup.pairwise else { return Ok(Vec::new()) };
    let judge = judge_of(pairwise, judge_records(setup));
    let labels = labels(pairwise, setup, result)?;
    let a = result.candidate(&setup.against)?;
    let games = |name: &String| -> Result<Games> {
        let b = result.candidate(name)?;
        let bar = progress::bar("judge", 2 * result.items.len() as u64);
        let report = &mut |done| bar.set_position(done as u64);
        let games = judge.pairwise(&result.items, a, b, &labels[name], report)?;
        bar.finish_and_clear();
        Ok(games)
    };
    setup.judged.iter().map(games).collect()
}

fn judge_of(setup: &JudgeSetup, records: PathBuf) -> Judge {
    Judge { endpoint: (*setup.endpoint).clone(), criteria: setup.criteria.clone(), records }
}

/// By what the answers were graded.
fn graded(setup: &ProveSetup, result: &EvalResult) -> Result<Option<Rubric>> {
    let Some(rubric) = &setup.rubric else { return Ok(None) };
    Ok(Some(Rubric {
        judge: rubric.endpoint.model.clone(),
        criteria: rubric.criteria.clone(),
        labels: labels(rubric, setup, result)?,
    }))
}

/// People's preferences between the candidate compared with and each judged one, by its name and example.
/// Labels that do not say which answers they are about are about the first judged one's.
fn labels(
    judge: &JudgeSetup,
    setup: &ProveSetup,
    result: &EvalResult,
) -> Result<IndexMap<String, IndexMap<String, Preference>>> {
    let read = match &judge.labels {
        Some(path) => ::eval::read_labels(path)?,
        None => Vec::new(),
    };
    let a = result.candidate(&setup.against)?;
    let of = |(place, name): (usize, &String)| {
        let b = result.candidate(name)?;
        Ok((name.clone(), ::eval::labels_of(&read, place == 0, &result.items, a, b)))
    };
    setup.judged.iter().enumerate().map(of).collect()
}

/// Says at which temperature above 0 a candidate answers.
fn with_temperature(words: String, temperature: Option<f64>, language: Language) -> String {
    let Some(temperature) = temperature.filter(|t| *t > 0.0) else { return words };
    let t = language.number(temperature.to_string());
    language.say("{words}, temperature {t}", &[("words", &words), ("t", &t)])
}

/// A candidate for each draw, as one that answers as often.
fn repeated<'a>(
    draws: usize,
    mut candidate: impl FnMut(usize) -> Result<Box<dyn Candidate + 'a>>,
) -> Result<Box<dyn Candidate + 'a>> {
    let first = candidate(0)?;
    if draws == 1 {
        return Ok(first);
    }
    let further = (1..draws).map(candidate).collect::<Result<_>>()?;
    Ok(Box::new(Repeated::new(first, further)))
}

fn judge_records(setup: &ProveSetup) -> PathBuf {
    setup.out.join("records").join("judge.jsonl")
}

fn rubric_records(setup: &ProveSetup) -> PathBuf {
    setup.out.join("records").join("rubric.jsonl")
}

/// The answers of the candidate that an earlier report's verdict is about, and the name of the judged one
/// that they are compared with. The report's seal and the digests of all files in its folder must hold; what
/// it was made from (an adapter, say) may have changed since, which is told.
fn earlier(
    path: &Path,
    setup: &ProveSetup,
    scorers: Scorers<'_>,
    items: Vec<EvalItem>,
    metrics: Vec<&'static ::eval::Metric>,
) -> Result<(String, CandidateResult)> {
    let sealed = ::eval::read_sealed(path)?;
    for (file, reason) in &sealed.changed {
        eprintln!("changed since the earlier report: {}: {reason}", file.display());
    }
    let report = sealed.report;
    let before = report.changed.as_ref().map_or("", |changed| changed.b.as_str());
    let place = report.candidates.iter().position(|c| c.name == before);
    let place = place.with_context(|| format!("{}: it judges nobody", path.display()))?;
    let start = format!("answers/{}_", place + 1);
    let inside =
        |name: &str| Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    let file = report.files.keys().find(|name| name.starts_with(&start) && inside(name));
    let file =
        file.with_context(|| format!("{}: it names no answers of {before}", path.display()))?;
    let answers = path.parent().unwrap_or(Path::new("")).join(file);
    let now = setup.judged.iter().find(|name| *name == before).unwrap_or(&setup.judged[0]);
    let recorded = RecordedCandidate::read(earlier_name(setup, now), &answers)?;
    let result = ask(Box::new(recorded), scorers, items, metrics)?;
    let candidate = result.candidates.into_iter().next().context("one candidate gave no result")?;
    Ok((now.clone(), candidate))
}

/// Name of a judged candidate's answers of an earlier report.
fn earlier_name(setup: &ProveSetup, judged: &str) -> String {
    setup.language.say("{name} (earlier)", &[("name", &judged)])
}

fn report(
    config: &ConfigFile,
    setup: &ProveSetup,
    result: &EvalResult,
    Rows { train, apart, test }: Rows<'_>,
    (facts, judged): (Facts, Judged),
    opened: Option<usize>,
) -> Result<Report> {
    let (machine, language) = (machine::detect(), setup.language);
    let here = language.say("{cpu}, {n} cores", &[("cpu", &machine.cpu), ("n", &machine.cores)]);
    let local = result.candidates.iter().filter(|c| c.kind == "local");
    let measured: IndexMap<String, f64> =
        local.filter_map(|c| Some((c.name.clone(), c.tokens_per_second()?))).collect();
    let economics = setup.economics(&measured, &here)?;
    let mut licences = facts.licences;
    if let Some(licence) = &config.data.license {
        let what = language.say("training data", &[]);
        licences.push(Licence { what, licence: licence.clone() });
    }
    let leaks = findings::leaks((train, apart), test, &facts.not_apart, language)?;
    let mut writers = findings::writers(train);
    writers.extend(config.data.generated_by.iter().cloned().chain(facts.writers));
    let findings = [
        leaks.rule,
        findings::openings(opened, setup.looks.is_some(), language),
        Some(findings::licences(&licences, language)),
        findings::terms_of_use(&writers, language),
        Some(findings::personal_data(train, test, language)),
    ];
    let plan = ProofPlan {
        language,
        metrics: setup.metrics.clone(),
        metric: setup.metric.clone(),
        judged: setup.judged[0].clone(),
        also_judged: setup.judged[1..].to_vec(),
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
        look: setup.looks.zip(opened).map(|(planned, at)| Look { planned, at }),
        max_forgetting: setup.max_forgetting,
        economics,
        asked: facts.asked,
        arms: facts.arms,
        forgotten: facts.forgotten,
        leaked: leaks.ids,
        findings: findings.into_iter().flatten().collect(),
        games: judged.games,
        rubric: judged.rubric,
    };
    let mut files = ProofFiles::of(result).digests();
    let pairwise = setup.pairwise.as_ref();
    let pairwise = pairwise.map(|_| ("records of the judge".to_owned(), judge_records(setup)));
    let rubric = setup.rubric.as_ref();
    let rubric = rubric.map(|_| ("records of the grades".to_owned(), rubric_records(setup)));
    let prices = facts.prices.filter(|_| plan.economics.is_some());
    let sources = [("test set".to_owned(), setup.data.clone())].into_iter();
    let sources = sources.chain(facts.files).chain(pairwise).chain(rubric).chain(prices);
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
        data: Some(leaks.summary),
        licences,
        files,
        ..ProofFacts::default()
    };
    Ok(::eval::prove(&plan, facts, result)?)
}

/// What is noted of this run beside the test set.
fn opening_words(setup: &ProveSetup) -> String {
    let names: Vec<&str> = setup.candidates.iter().map(|c| c.name.as_str()).collect();
    format!("metier prove: {}", names.join(", "))
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
    before: Option<&str>,
) -> Result<ExitCode> {
    std::fs::create_dir_all(&setup.out).with_context(|| setup.out.display().to_string())?;
    ProofFiles::of(result).write(&report, &setup.out)?;
    for candidate in &setup.candidates {
        if let Who::Local { adapter: Some(dir), .. } = &candidate.who
            && let Some(judged) = report.judged.iter().find(|j| j.name == candidate.name)
        {
            gate::write(dir, &report, judged, &setup.out.join("report.json"))?;
        }
    }
    if args.json {
        print!("{}", report.sealed()?);
    } else {
        println!("{}", report.verdict.title());
        report.sentences.iter().for_each(|sentence| println!("  {sentence}"));
        println!("{}", setup.out.join("report.html").display());
    }
    Ok(match before {
        Some(judged) => regression(setup, &report, judged)?,
        None => match report.verdict {
            Verdict::WorthIt => exit::done(),
            Verdict::NotProven => exit::not_proven(),
            Verdict::NotWorthIt => ExitCode::from(exit::NOT_WORTH_IT),
        },
    })
}

/// Fails only where the judged candidate is proven worse than it was.
fn regression(setup: &ProveSetup, report: &Report, judged: &str) -> Result<ExitCode> {
    let earlier = earlier_name(setup, judged);
    let mut deciding = report.comparisons.iter().filter(|c| c.metric == setup.metric);
    let found = deciding.find(|c| c.a == earlier && c.b == judged);
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
