//! `[prove]` and `[cost]` of the config file, resolved: who is asked what, and what that costs.

use crate::config::{ConfigFile, check_keys};
use ::eval::{
    ArmPlan, EconomicsPlan, Endpoint, Exchange, Key, Language, MachinePlan, OneOff, PairPlan,
    PriceTable, Prompting, Protocol, RUBRIC, Running, Throughput, own_machine_per_hour,
};
use anyhow::{Context, Result, bail};
use engine::SamplingParams;
use indexmap::IndexMap;
use model::WeightDtype;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::{Table, Value};

const PROVE_KEYS: &[&str] = &[
    "title",
    "data",
    "metrics",
    "metric",
    "judge",
    "against",
    "margin",
    "max_cost_per_1000",
    "must_be_cheaper",
    "max_tokens",
    "limit",
    "out",
    "candidate",
    "pairwise",
    "rubric",
    "repeats",
    "least_slice",
    "slice_margin",
    "looks",
    "max_forgetting",
    "embedding_model",
];
const JUDGE_KEYS: &[&str] = &[
    "rented",
    "url",
    "protocol",
    "key_env",
    "parameters",
    "omit",
    "concurrency",
    "timeout_s",
    "criteria",
    "labels",
];
const CANDIDATE_KEYS: &[&str] = &[
    "name",
    "model",
    "adapter",
    "dtype",
    "rented",
    "url",
    "protocol",
    "key_env",
    "parameters",
    "omit",
    "concurrency",
    "timeout_s",
    "answers",
    "baseline",
    "instructions",
    "shots",
    "price",
    "service",
    "cached_share",
    "runs_on",
    "fixed_per_month",
    "one_off",
];
/// What `parameters` says of a model that runs here.
const SAMPLING_KEYS: &[&str] = &[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
];
const MACHINE_KEYS: &[&str] = &[
    "name",
    "price",
    "price_per_hour",
    "currency",
    "price_source",
    "purchase_price",
    "life_months",
    "watts",
    "price_per_kwh",
    "hours_per_month",
    "at_least",
    "peak",
    "utilisation",
    "this_machine",
    "tokens_per_second",
    "prefill_per_second",
    "decode_per_second",
    "measured_on",
    "measured_how",
];

/// `[prove]` as written.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ProveSection {
    title: Option<String>,
    data: Option<PathBuf>,
    metrics: Vec<String>,
    metric: Option<String>,
    judge: Option<Names>,
    against: Option<String>,
    margin: Option<f64>,
    looks: Option<usize>,
    max_forgetting: Option<f64>,
    max_cost_per_1000: Option<f64>,
    must_be_cheaper: Option<bool>,
    least_slice: Option<usize>,
    slice_margin: Option<f64>,
    max_tokens: Option<usize>,
    limit: Option<usize>,
    repeats: Option<usize>,
    out: Option<PathBuf>,
    embedding_model: Option<String>,
}

/// A name, or a list of them.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a candidate's name, or a list of them")]
enum Names {
    One(String),
    Several(Vec<String>),
}

impl Names {
    fn into_list(self) -> Vec<String> {
        match self {
            Names::One(name) => vec![name],
            Names::Several(names) => names,
        }
    }
}

/// `[[prove.candidate]]` as written.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct CandidateSection {
    name: String,
    model: Option<String>,
    adapter: Option<PathBuf>,
    dtype: Option<String>,
    rented: Option<String>,
    url: Option<String>,
    protocol: Option<Protocol>,
    key_env: Option<String>,
    parameters: Table,
    omit: Vec<String>,
    concurrency: Option<usize>,
    timeout_s: Option<u64>,
    answers: Option<PathBuf>,
    baseline: Option<String>,
    instructions: Option<String>,
    shots: usize,
    price: Option<String>,
    service: Option<String>,
    cached_share: Option<f64>,
    runs_on: Option<String>,
    fixed_per_month: f64,
    one_off: IndexMap<String, f64>,
}

/// `[[cost.machine]]` as written.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct MachineSection {
    name: String,
    price: Option<String>,
    price_per_hour: Option<f64>,
    currency: Option<String>,
    price_source: Option<String>,
    purchase_price: Option<f64>,
    life_months: Option<f64>,
    watts: Option<f64>,
    price_per_kwh: Option<f64>,
    hours_per_month: Option<f64>,
    at_least: Option<u32>,
    peak: Option<f64>,
    utilisation: Option<f64>,
    this_machine: bool,
    tokens_per_second: Option<f64>,
    prefill_per_second: Option<f64>,
    decode_per_second: Option<f64>,
    measured_on: Option<String>,
    measured_how: Option<String>,
}

/// Who answers.
#[derive(Clone, Debug)]
pub(crate) enum Who {
    /// A model here, with or without an adapter.
    Local {
        /// Folder, file, Hub id or `nano`.
        model: String,
        /// The adapter's folder.
        adapter: Option<PathBuf>,
        /// How weights are held.
        dtype: Option<WeightDtype>,
        /// How it is sampled; greedy where nothing is said.
        params: Box<SamplingParams>,
    },
    /// A rented model.
    Rented(Box<Endpoint>),
    /// Answers from a file.
    Recorded(PathBuf),
    /// Something simple that learns from the training data.
    Baseline(String),
}

/// One candidate, resolved but for the worked examples in front, which are read with the data.
#[derive(Clone, Debug)]
pub(crate) struct CandidatePlan {
    /// Its name.
    pub(crate) name: String,
    /// Who answers.
    pub(crate) who: Who,
    /// Instructions in front.
    pub(crate) instructions: Option<String>,
    /// How many worked examples stand in front.
    pub(crate) shots: usize,
    /// How often it is asked each question: once, unless its answers are sampled.
    pub(crate) repeats: usize,
    cost: CostOf,
}

#[derive(Clone, Debug)]
struct CostOf {
    price: Option<String>,
    service: Option<String>,
    cached_share: Option<f64>,
    runs_on: Option<String>,
    fixed_per_month: f64,
    one_off: Vec<OneOff>,
}

/// `[prove]` and `[cost]`, resolved.
pub(crate) struct ProveSetup {
    /// Heading.
    pub(crate) title: String,
    /// The sealed test set.
    pub(crate) data: PathBuf,
    /// Names of the metrics; the one that decides is among them.
    pub(crate) metrics: Vec<String>,
    /// The metric that decides.
    pub(crate) metric: String,
    /// Who is judged, at least one.
    pub(crate) judged: Vec<String>,
    /// Who is compared with.
    pub(crate) against: String,
    /// Gain that must be exceeded, as a share.
    pub(crate) margin: f64,
    /// Bound on cost.
    pub(crate) max_cost_per_1000: Option<f64>,
    /// Whether the judged one must be cheaper.
    pub(crate) must_be_cheaper: bool,
    /// Fewest examples of a slice that is reported.
    pub(crate) least_slice: usize,
    /// What no slice may be proven to lose beyond, as a share.
    pub(crate) slice_margin: Option<f64>,
    /// Looks planned at the test set; None: it is meant to be opened once.
    pub(crate) looks: Option<usize>,
    /// What a judged adapter may lose on general text at most, nats per token.
    pub(crate) max_forgetting: Option<f64>,
    /// Language of the report.
    pub(crate) language: Language,
    /// Only the first examples.
    pub(crate) limit: Option<usize>,
    /// Folder of the proof.
    pub(crate) out: PathBuf,
    /// Who answers, in the file's order.
    pub(crate) candidates: Vec<CandidatePlan>,
    /// The model that compares answers with references, where a metric asks for it.
    pub(crate) embedding_model: Option<String>,
    /// Who says which of two answers is better.
    pub(crate) pairwise: Option<JudgeSetup>,
    /// Who grades answers.
    pub(crate) rubric: Option<JudgeSetup>,
    costs: CostSetup,
}

/// `[prove.pairwise]` or `[prove.rubric]`, resolved.
pub(crate) struct JudgeSetup {
    /// The judge.
    pub(crate) endpoint: Box<Endpoint>,
    /// What makes an answer good.
    pub(crate) criteria: String,
    /// People's preferences, by example.
    pub(crate) labels: Option<PathBuf>,
}

/// `[cost]`, resolved.
struct CostSetup {
    currency: Option<String>,
    exchange: Vec<Exchange>,
    requests_per_month: Option<f64>,
    amortise_months: f64,
    prices: PriceTable,
    date: String,
    machines: Vec<MachineSection>,
    place: String,
}

impl ProveSetup {
    /// Resolves the sections. `today` is the day whose prices hold, year-month-day; `out` replaces the
    /// file's folder; `language` is that of the report.
    pub(crate) fn resolve(
        config: &ConfigFile,
        out: Option<&Path>,
        retry_failed: bool,
        today: &str,
        language: Language,
    ) -> Result<ProveSetup> {
        let place = format!("{}: [prove]", config.path.display());
        let mut table = config.prove.clone();
        check_keys(&table, PROVE_KEYS, &place)?;
        let candidates =
            tables(table.remove("candidate"), CANDIDATE_KEYS, &format!("{place} candidate"))?;
        let mut judge_of = |name: &str| {
            let value = table.remove(name);
            let place = format!("{place} {name}");
            value.map(|value| judge_setup(config, value, retry_failed, &place)).transpose()
        };
        let (pairwise, rubric) = (judge_of("pairwise")?, judge_of("rubric")?);
        let prove: ProveSection = table.try_into().with_context(|| place.clone())?;
        let max_tokens = prove.max_tokens.unwrap_or(256);
        let repeats = prove.repeats.unwrap_or(1);
        if !(1..=MOST_REPEATS).contains(&repeats) {
            bail!("{place}: repeats is {repeats}; expected 1 to {MOST_REPEATS}");
        }
        let candidates = candidates
            .into_iter()
            .map(|(section, shown)| {
                candidate(config, section, (max_tokens, repeats, retry_failed), &shown)
            })
            .collect::<Result<Vec<CandidatePlan>>>()?;
        if repeats > 1 && candidates.iter().all(|c| c.repeats == 1) {
            bail!(
                "{place}: repeats is {repeats}, but no candidate's answers are sampled, so that each would be the \
                 same again\nhint: parameters = {{ temperature = 0.7 }} in [[prove.candidate]]"
            );
        }
        let names: Vec<&str> = candidates.iter().map(|c| c.name.as_str()).collect();
        if names.len() < 2 {
            bail!(
                "{place}: found {} candidates, expected at least two\nhint: [[prove.candidate]]",
                names.len()
            );
        }
        let last = || vec![names[names.len() - 1].to_owned()];
        let judged = prove.judge.map_or_else(last, Names::into_list);
        let against = prove.against.unwrap_or_else(|| names[0].to_owned());
        check_named(&judged, &names, &format!("{place}: judge"))?;
        check_named(std::slice::from_ref(&against), &names, &format!("{place}: against"))?;
        if judged.contains(&against) {
            bail!("{place}: judge and against are both \"{against}\"; expected two candidates");
        }
        if prove.looks == Some(0) {
            bail!(
                "{place}: looks is 0; expected how often the test set may be looked at, such as 3"
            );
        }
        if let Some(bound) = prove.max_forgetting.filter(|bound| !(0.0..=100.0).contains(bound)) {
            bail!("{place}: max_forgetting is {bound}; expected nats per token, such as 0.05");
        }
        let mut metrics = prove.metrics;
        let metric = match (prove.metric, metrics.first()) {
            (Some(metric), _) => metric,
            (None, Some(first)) => first.clone(),
            (None, None) => bail!("{place}: metric is missing; expected the metric that decides"),
        };
        if !metrics.contains(&metric) {
            metrics.insert(0, metric.clone());
        }
        match (metrics.iter().any(|name| name == RUBRIC), &rubric) {
            (true, None) => bail!(
                "{place}: the metric {RUBRIC} needs a judge\nhint: name one, and what makes an answer good, in \
                 [prove.rubric]"
            ),
            (false, Some(_)) => {
                bail!("{place} rubric: nothing asks for it; expected {RUBRIC} among the metrics")
            }
            _ => {}
        }
        let embedding_model = prove.embedding_model.map(|name| config.model(&name));
        let data = prove.data.map(|path| config.anchored(&path)).or(config.data.test.clone());
        let Some(data) = data else {
            bail!(
                "{place}: data is missing; expected the sealed test set, here or as test in [data]"
            )
        };
        let margin = prove.margin.unwrap_or(0.0);
        if !(-1.0..1.0).contains(&margin) {
            bail!(
                "{place}: margin is {margin}; expected a share from -1 to 1, such as 0.02 for 2 points"
            );
        }
        let of = |name: &str| candidates.iter().find(|c| c.name == name);
        let rented = of(&against).is_some_and(|c| c.cost.price.is_some());
        let stated = |c: &CandidatePlan| c.cost.price.is_some() || c.cost.runs_on.is_some();
        let costed = judged.iter().all(|name| of(name).is_some_and(stated));
        let out = match (out, prove.out) {
            (Some(out), _) => out.to_owned(),
            (None, Some(out)) => config.anchored(&out),
            (None, None) => config.anchored(Path::new("proof")),
        };
        Ok(ProveSetup {
            title: prove.title.unwrap_or_else(|| {
                let judged = judged.join(", ");
                language.say("{b} beside {a}", &[("a", &against), ("b", &judged)])
            }),
            data,
            metrics,
            metric,
            margin,
            max_cost_per_1000: prove.max_cost_per_1000,
            must_be_cheaper: prove.must_be_cheaper.unwrap_or(rented && costed),
            least_slice: prove.least_slice.unwrap_or(20),
            slice_margin: prove.slice_margin,
            looks: prove.looks,
            max_forgetting: prove.max_forgetting,
            language,
            limit: prove.limit,
            out,
            costs: CostSetup::resolve(config, today)?,
            embedding_model,
            judged,
            against,
            candidates,
            pairwise,
            rubric,
        })
    }

    /// Puts the prices of a newer table over those that are known.
    pub(crate) fn update_prices(&mut self, newer: PriceTable) {
        self.costs.prices = std::mem::take(&mut self.costs.prices).updated(newer);
    }

    /// Arms, machines and prices; None when no candidate states any. `measured` tells, for candidates
    /// that ran here, how many tokens of prompts and answers a second they got through on `here`.
    pub(crate) fn economics(
        &self,
        measured: &IndexMap<String, f64>,
        here: &str,
    ) -> Result<Option<EconomicsPlan>> {
        let arms = self.candidates.iter().filter_map(|candidate| {
            let speed = measured.get(&candidate.name).copied();
            self.costs.arm(candidate, speed, here, self.language).transpose()
        });
        let arms = arms.collect::<Result<Vec<ArmPlan>>>()?;
        if arms.is_empty() {
            return Ok(None);
        }
        let Some(currency) = self.costs.currency.clone() else {
            bail!("{}: currency is missing; expected a code such as \"EUR\"", self.costs.place)
        };
        let priced = |name: &str| arms.iter().any(|arm| arm.name == name);
        let others = arms.iter().map(|arm| &arm.name).filter(|name| !self.judged.contains(name));
        let others: Vec<&String> = others.collect();
        let judged = self.judged.iter().filter(|name| priced(name));
        let pairs_of = |b: &String| {
            let pair = |a: &&String| PairPlan { a: (*a).clone(), b: b.clone() };
            others.iter().map(pair).collect::<Vec<_>>()
        };
        let mut pairs: Vec<PairPlan> = judged.flat_map(pairs_of).collect();
        // The pairs that decide stand first.
        pairs.sort_by_key(|pair| pair.a != self.against);
        Ok(Some(EconomicsPlan {
            currency,
            exchange: self.costs.exchange.clone(),
            requests_per_month: self.costs.requests_per_month,
            amortise_months: self.costs.amortise_months,
            arms,
            pairs,
        }))
    }
}

/// A list of sections, each with its place in words.
fn tables<T: for<'a> Deserialize<'a>>(
    value: Option<Value>,
    known: &[&str],
    place: &str,
) -> Result<Vec<(T, String)>> {
    let list = match value {
        None => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => bail!("{place}: expected a list of sections, [[...]]"),
    };
    let section = |(index, value): (usize, Value)| {
        let shown = format!("{place} {}", index + 1);
        let Value::Table(table) = value else { bail!("{shown}: expected a section") };
        check_keys(&table, known, &shown)?;
        Ok((table.try_into().with_context(|| shown.clone())?, shown))
    };
    list.into_iter().enumerate().map(section).collect()
}

/// Every name must be a candidate's, and none may be there twice.
fn check_named(given: &[String], names: &[&str], place: &str) -> Result<()> {
    if given.is_empty() {
        bail!("{place}: found no name; expected at least one of {}", names.join(", "));
    }
    for (index, name) in given.iter().enumerate() {
        if !names.contains(&name.as_str()) {
            bail!("{place}: there is no candidate \"{name}\"; there are {}", names.join(", "));
        }
        if given[..index].contains(name) {
            bail!("{place}: \"{name}\" is named twice; expected each candidate once");
        }
    }
    Ok(())
}

fn candidate(
    config: &ConfigFile,
    section: CandidateSection,
    (max_tokens, repeats, retry_failed): (usize, usize, bool),
    place: &str,
) -> Result<CandidatePlan> {
    let s = section;
    if s.name.is_empty() {
        bail!("{place}: name is missing");
    }
    if let Some(kind) = &s.baseline {
        let known = ::eval::baseline_names();
        if s.rented.is_some() || s.answers.is_some() || s.model.is_some() || s.adapter.is_some() {
            bail!("{place}: found baseline beside another kind of candidate; expected one of them");
        }
        if !known.contains(&kind.as_str()) {
            bail!("{place}: baseline is \"{kind}\"; expected one of {}", known.join(", "));
        }
    }
    let who = match (&s.rented, &s.answers) {
        (None, None) if s.baseline.is_some() => {
            Who::Baseline(s.baseline.clone().unwrap_or_default())
        }
        (Some(_), Some(_)) => bail!("{place}: found rented and answers; expected one of them"),
        (Some(model), None) => {
            if s.model.is_some() || s.adapter.is_some() {
                bail!("{place}: found rented beside model or adapter; expected one of them");
            }
            Who::Rented(Box::new(endpoint(&s, model, max_tokens, retry_failed, place)?))
        }
        (None, Some(path)) => {
            if s.model.is_some() || s.adapter.is_some() {
                bail!("{place}: found answers beside model or adapter; expected one of them");
            }
            Who::Recorded(config.anchored(path))
        }
        (None, None) => {
            let model = match s.model.as_deref() {
                Some(name) => config.model(name),
                None => config.base.model.clone().unwrap_or_else(|| "nano".to_owned()),
            };
            let dtype = match &s.dtype {
                None => None,
                Some(name) => Some(WeightDtype::from_name(name).with_context(|| {
                    format!(
                        "{place}: dtype is \"{name}\"; expected one of {}",
                        WeightDtype::NAMES.join(", ")
                    )
                })?),
            };
            let adapter = s.adapter.as_ref().map(|path| config.anchored(path));
            let params = Box::new(sampling(&s.parameters, max_tokens, place)?);
            Who::Local { model, adapter, dtype, params }
        }
    };
    if !matches!(who, Who::Rented(_))
        && (s.url.is_some() || s.key_env.is_some() || s.protocol.is_some())
    {
        bail!("{place}: url, protocol and key_env belong to a rented model: rented = \"its name\"");
    }
    if matches!(who, Who::Recorded(_) | Who::Baseline(_))
        && (s.instructions.is_some() || s.shots > 0 || !s.parameters.is_empty())
    {
        bail!("{place}: instructions, shots and parameters belong to a model");
    }
    let samples = match &who {
        Who::Local { params, .. } => params.temperature > 0.0,
        Who::Rented(endpoint) => samples(endpoint),
        Who::Recorded(_) | Who::Baseline(_) => false,
    };
    if repeats > 1 && samples && matches!(who, Who::Rented(_)) && s.parameters.contains_key("seed")
    {
        bail!(
            "{place}: with repeats and one seed every answer would be the same again; leave seed out"
        );
    }
    if s.price.is_some() && s.runs_on.is_some() {
        bail!(
            "{place}: found price and runs_on; expected one of them: by the token, or by the hour"
        );
    }
    let one_off = s.one_off.into_iter().map(|(what, amount)| OneOff { what, amount }).collect();
    Ok(CandidatePlan {
        name: s.name,
        who,
        instructions: s.instructions,
        shots: s.shots,
        repeats: if samples { repeats } else { 1 },
        cost: CostOf {
            price: s.price,
            service: s.service,
            cached_share: s.cached_share,
            runs_on: s.runs_on,
            fixed_per_month: s.fixed_per_month,
            one_off,
        },
    })
}

/// How the model of a local candidate is sampled: greedily, but for what is stated.
fn sampling(parameters: &Table, max_tokens: usize, place: &str) -> Result<SamplingParams> {
    check_keys(parameters, SAMPLING_KEYS, &format!("{place} parameters"))?;
    let mut given = parameters.clone();
    given.insert("max_tokens".to_owned(), Value::Integer(i64::try_from(max_tokens)?));
    let params: SamplingParams = given.try_into().with_context(|| format!("{place} parameters"))?;
    params.validate(usize::MAX).with_context(|| format!("{place} parameters"))?;
    Ok(params)
}

/// Whether a rented model's answers are drawn: it is asked at a temperature above 0, or at its own.
fn samples(endpoint: &Endpoint) -> bool {
    let temperature = endpoint.parameters.get("temperature").and_then(serde_json::Value::as_f64);
    endpoint.omit.iter().any(|field| field == "temperature") || temperature.is_some_and(|t| t > 0.0)
}

/// Longest answer of a judge, which is one short JSON object.
const JUDGE_TOKENS: usize = 64;
/// More draws of a question than this tell nothing more.
const MOST_REPEATS: usize = 100;

fn judge_setup(
    config: &ConfigFile,
    value: Value,
    retry_failed: bool,
    place: &str,
) -> Result<JudgeSetup> {
    let Value::Table(mut table) = value else {
        bail!("{place}: expected a section with the judge's model and the criteria")
    };
    check_keys(&table, JUDGE_KEYS, place)?;
    let mut text = |key: &str| match table.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => bail!("{place}: {key} is {other}; expected a text"),
    };
    let (criteria, labels) = (text("criteria")?, text("labels")?);
    let Some(criteria) = criteria else {
        bail!("{place}: criteria is missing; expected what makes an answer good")
    };
    let section: CandidateSection = table.try_into().with_context(|| place.to_owned())?;
    let Some(model) = section.rented.clone() else {
        bail!("{place}: rented is missing; expected the judge's model")
    };
    let endpoint = Box::new(endpoint(&section, &model, JUDGE_TOKENS, retry_failed, place)?);
    Ok(JudgeSetup {
        endpoint,
        criteria,
        labels: labels.map(|path| config.anchored(Path::new(&path))),
    })
}

fn endpoint(
    s: &CandidateSection,
    model: &str,
    max_tokens: usize,
    retry_failed: bool,
    place: &str,
) -> Result<Endpoint> {
    let protocol = s.protocol.unwrap_or(Protocol::Openai);
    let url = match (&s.url, protocol) {
        (Some(url), _) => url.clone(),
        (None, Protocol::Openai) => "https://api.openai.com/v1".to_owned(),
        (None, Protocol::Anthropic) => "https://api.anthropic.com".to_owned(),
    };
    let key = s.key_env.as_deref().map(Key::from_env).transpose()?;
    let mut endpoint = Endpoint::new(&url, protocol, model, key);
    for (name, value) in &s.parameters {
        endpoint
            .parameters
            .insert(name.clone(), serde_json::to_value(value).context(place.to_owned())?);
    }
    endpoint.omit.clone_from(&s.omit);
    endpoint.max_tokens = max_tokens;
    endpoint.retry_failed = retry_failed;
    endpoint.concurrency = s.concurrency.unwrap_or(endpoint.concurrency);
    endpoint.timeout = s.timeout_s.map_or(endpoint.timeout, Duration::from_secs);
    Ok(endpoint)
}

impl CandidatePlan {
    /// What stands in front of its questions, with these worked examples.
    pub(crate) fn prompting(&self, shots: Vec<(String, String)>) -> Prompting {
        Prompting { instructions: self.instructions.clone(), shots }
    }
}

impl CostSetup {
    fn resolve(config: &ConfigFile, today: &str) -> Result<CostSetup> {
        let place = format!("{}: [cost]", config.path.display());
        let cost = &config.cost;
        let text = |key: &str| match cost.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => bail!("{place}: {key} is {other}; expected a text"),
        };
        let number = |key: &str| match cost.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) => Ok(Some(*number)),
            Some(Value::Integer(number)) => Ok(Some(*number as f64)),
            Some(other) => bail!("{place}: {key} is {other}; expected a number"),
        };
        let source = text("exchange_source")?;
        let exchange = match cost.get("exchange") {
            None => Vec::new(),
            Some(Value::Table(rates)) => {
                let Some(source) = source else {
                    bail!(
                        "{place}: exchange_source is missing; expected where the rates are from, and their day"
                    )
                };
                let rate = |(from, rate): (&String, &Value)| {
                    let rate = rate.as_float().or_else(|| rate.as_integer().map(|n| n as f64));
                    let rate = rate
                        .with_context(|| format!("{place}: exchange {from}: expected a number"))?;
                    Ok(Exchange { from: from.clone(), rate, source: source.clone() })
                };
                rates.iter().map(rate).collect::<Result<_>>()?
            }
            Some(_) => bail!("{place}: exchange: expected rates, such as {{ USD = 0.92 }}"),
        };
        let date = text("prices_date")?.unwrap_or_else(|| today.to_owned());
        let mut prices = PriceTable::shipped()?;
        if let Some(path) = text("prices")? {
            prices = prices.updated(PriceTable::read(&config.anchored(Path::new(&path)), &date)?);
        }
        let machines =
            tables(cost.get("machine").cloned(), MACHINE_KEYS, &format!("{place} machine"))?;
        Ok(CostSetup {
            currency: text("currency")?,
            exchange,
            requests_per_month: number("requests_per_month")?,
            amortise_months: number("amortise_months")?.unwrap_or(12.0),
            prices,
            date,
            machines: machines.into_iter().map(|(machine, _)| machine).collect(),
            place,
        })
    }

    fn arm(
        &self,
        candidate: &CandidatePlan,
        speed: Option<f64>,
        here: &str,
        language: Language,
    ) -> Result<Option<ArmPlan>> {
        let cost = &candidate.cost;
        let running = match (&cost.price, &cost.runs_on) {
            (Some(name), _) => Running::PerToken {
                price: self.prices.model(name, &self.date)?.clone(),
                service: cost.service.clone(),
                cached_share: cost.cached_share,
            },
            (None, Some(name)) => {
                Running::Machine(self.machine(name, candidate, speed, here, language)?)
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(ArmPlan {
            name: candidate.name.clone(),
            running,
            fixed_per_month: cost.fixed_per_month,
            one_off: cost.one_off.clone(),
        }))
    }

    fn machine(
        &self,
        name: &str,
        candidate: &CandidatePlan,
        speed: Option<f64>,
        here: &str,
        language: Language,
    ) -> Result<MachinePlan> {
        let known: Vec<&str> = self.machines.iter().map(|m| m.name.as_str()).collect();
        let Some(m) = self.machines.iter().find(|m| m.name == name) else {
            bail!(
                "{}: {} runs on \"{name}\", but there is no [[cost.machine]] of this name; there are {}",
                self.place,
                candidate.name,
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            )
        };
        let place = format!("{} machine \"{name}\"", self.place);
        let machine = if m.this_machine { here.to_owned() } else { name.to_owned() };
        let (price_per_hour, currency, price_source) = self.hour(m, &place, language)?;
        Ok(MachinePlan {
            throughput: throughput(m, &machine, speed, &candidate.name, &place, language)?,
            machine,
            price_per_hour,
            currency,
            price_source,
            hours_per_month: m.hours_per_month.unwrap_or(730.0),
            at_least: m.at_least.unwrap_or(1),
            peak: m.peak.unwrap_or(3.0),
            utilisation: m.utilisation.unwrap_or(0.7),
        })
    }

    /// Price of an hour, its currency and its source.
    fn hour(
        &self,
        m: &MachineSection,
        place: &str,
        language: Language,
    ) -> Result<(f64, String, String)> {
        let currency = m.currency.clone().or(self.currency.clone());
        let stated = || {
            let currency =
                currency.clone().with_context(|| format!("{place}: currency is missing"))?;
            let source = m.price_source.clone().with_context(|| {
                format!("{place}: price_source is missing; expected where the price is from, and its day")
            })?;
            Ok::<_, anyhow::Error>((currency, source))
        };
        match (&m.price, m.price_per_hour, m.purchase_price) {
            (Some(name), None, None) => {
                let price = self.prices.machine(name, &self.date)?;
                let name = format!("{}/{}", price.provider, price.machine);
                let source = language.say(
                    "{name}: {source}, read {day}",
                    &[("name", &name), ("source", &price.source), ("day", &price.read)],
                );
                Ok((price.per_hour, price.currency.clone(), source))
            }
            (None, Some(per_hour), None) => {
                let (currency, source) = stated()?;
                Ok((per_hour, currency, source))
            }
            (None, None, Some(price)) => {
                let (Some(life), Some(watts), Some(power)) =
                    (m.life_months, m.watts, m.price_per_kwh)
                else {
                    bail!(
                        "{place}: an own machine needs life_months, watts and price_per_kwh beside purchase_price"
                    )
                };
                let (currency, source) = stated()?;
                let words = language.say(
                    "bought for {price}, used for {life} months, {watts} W at {power} per kWh; {source}",
                    &[
                        ("price", &price),
                        ("life", &life),
                        ("watts", &watts),
                        ("power", &power),
                        ("source", &source),
                    ],
                );
                Ok((own_machine_per_hour(price, life, watts, power)?, currency, words))
            }
            _ => bail!(
                "{place}: expected one of price (a name of the price table), price_per_hour and purchase_price"
            ),
        }
    }
}

/// What a machine gets through: as stated, with the machine it was measured on, or as measured here.
fn throughput(
    m: &MachineSection,
    machine: &str,
    speed: Option<f64>,
    candidate: &str,
    place: &str,
    language: Language,
) -> Result<Throughput> {
    let both = m.tokens_per_second.map(|speed| (speed, speed));
    let stated = m.prefill_per_second.zip(m.decode_per_second).or(both);
    let (prefill, decode, measured_on, source) = match (stated, speed) {
        (Some((prefill, decode)), _) => {
            let Some(on) = m.measured_on.clone() else {
                bail!(
                    "{place}: measured_on is missing; expected the machine that the speed was measured on"
                )
            };
            let how = m.measured_how.clone();
            let how = how.unwrap_or_else(|| language.say("as stated in the config file", &[]));
            (prefill, decode, on, how)
        }
        (None, Some(speed)) if m.this_machine => {
            let how =
                language.say("prompts and answers together, while the test set was answered", &[]);
            (speed, speed, machine.to_owned(), how)
        }
        (None, _) => bail!(
            "{place}: how fast {candidate} runs on it is not known\n\
             hint: measure it there (`metier bench serve`) and give prefill_per_second, decode_per_second and \
             measured_on; or say this_machine = true where it is the one that runs this"
        ),
    };
    if measured_on != machine {
        bail!(
            "{place}: its speed was measured on \"{measured_on}\"; what is measured on one machine is not \
             claimed for another\nhint: measure it on \"{machine}\""
        );
    }
    Ok(Throughput { prefill, decode, machine: measured_on, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: &str = "2026-11-27";

    fn setup(text: &str) -> Result<ProveSetup> {
        let config = ConfigFile::parse(text, Path::new("dir/m.toml"))?;
        ProveSetup::resolve(&config, None, false, TODAY, Language::En)
    }

    const WHOLE: &str = "
[data]
test = 'test.jsonl'
[prove]
metrics = ['exact_match', 'token_f1']
margin = -0.02
[[prove.candidate]]
name = 'gpt'
rented = 'gpt-4o-mini'
url = 'http://127.0.0.1:1/v1'
price = 'openai/gpt-4o-mini'
shots = 4
parameters = { seed = 1 }
[[prove.candidate]]
name = 'tickets'
adapter = 'out/tickets'
runs_on = 'server'
one_off = { labelling = 600.0 }
[cost]
currency = 'EUR'
exchange = { USD = 0.92 }
exchange_source = 'assumed'
requests_per_month = 100000
[[cost.machine]]
name = 'server'
price = 'hetzner/dedicated-cpu'
this_machine = true
";

    #[test]
    fn a_whole_file_is_resolved() {
        let setup = setup(WHOLE).unwrap();
        assert_eq!(
            (setup.judged.as_slice(), setup.against.as_str()),
            (&["tickets".to_owned()][..], "gpt")
        );
        assert_eq!((setup.metric.as_str(), setup.margin), ("exact_match", -0.02));
        assert_eq!(setup.out, Path::new("dir/proof"));
        assert!(setup.must_be_cheaper, "a rented arm with a price is to be beaten on cost");
        let Who::Rented(endpoint) = &setup.candidates[0].who else { panic!("rented") };
        assert_eq!((endpoint.parameters["seed"].clone(), setup.candidates[0].shots), (1.into(), 4));
        let Who::Local { model, adapter, .. } = &setup.candidates[1].who else { panic!("local") };
        assert_eq!(
            (model.as_str(), adapter.as_deref()),
            ("nano", Some(Path::new("dir/out/tickets")))
        );
        let measured = [("tickets".to_owned(), 500.0)].into();
        let plan = setup.economics(&measured, "this processor").unwrap().unwrap();
        assert_eq!(
            (plan.arms.len(), plan.pairs.len(), plan.requests_per_month),
            (2, 1, Some(100_000.0))
        );
        let Running::Machine(machine) = &plan.arms[1].running else { panic!("machine") };
        assert_eq!(
            (machine.machine.as_str(), machine.throughput.prefill),
            ("this processor", 500.0)
        );
        // The server's own prices are not touched by the keys of the proof.
        let config = ConfigFile::parse(WHOLE, Path::new("dir/m.toml")).unwrap();
        assert!(config.prices().unwrap().is_none());
    }

    #[test]
    fn several_candidates_can_be_judged_and_looks_planned() {
        let more = "judge = ['tickets', 'other']\nlooks = 3\nmax_forgetting = 0.05";
        let other =
            "[[prove.candidate]]\nname = 'other'\nmodel = 'nano'\nruns_on = 'server'\n[cost]\n";
        let text = WHOLE.replace("margin = -0.02", more).replacen("[cost]\n", other, 1);
        let setup = setup(&text).unwrap();
        assert_eq!(setup.judged, ["tickets", "other"]);
        assert_eq!((setup.looks, setup.max_forgetting), (Some(3), Some(0.05)));
        assert_eq!(setup.title, "tickets, other beside gpt");
        let measured = [("tickets".to_owned(), 500.0), ("other".to_owned(), 400.0)].into();
        let plan = setup.economics(&measured, "here").unwrap().unwrap();
        let pairs: Vec<_> = plan.pairs.iter().map(|p| (p.a.as_str(), p.b.as_str())).collect();
        assert_eq!(pairs, [("gpt", "tickets"), ("gpt", "other")]);
    }

    #[test]
    fn what_was_measured_elsewhere_is_not_claimed() {
        let elsewhere = WHOLE
            .replace("this_machine = true", "tokens_per_second = 900.0\nmeasured_on = 'my laptop'");
        let error =
            setup(&elsewhere).unwrap().economics(&IndexMap::new(), "here").unwrap_err().to_string();
        assert!(error.contains("measured on \"my laptop\"") && error.contains("hint"), "{error}");
        let unknown = WHOLE.replace("this_machine = true", "");
        let measured = [("tickets".to_owned(), 500.0)].into();
        let error = setup(&unknown).unwrap().economics(&measured, "here").unwrap_err().to_string();
        assert!(error.contains("how fast tickets runs on it is not known"), "{error}");
        let fine = WHOLE.replace(
            "this_machine = true",
            "prefill_per_second = 900.0\ndecode_per_second = 90.0\nmeasured_on = 'server'",
        );
        assert!(setup(&fine).unwrap().economics(&IndexMap::new(), "here").unwrap().is_some());
    }

    #[test]
    fn mistakes_are_named() {
        let with = |from: &str, to: &str| WHOLE.replace(from, to);
        for (text, said) in [
            (with("margin = -0.02", "margni = 0"), "did you mean \"margin\""),
            (with("shots = 4", "shot = 4"), "did you mean \"shots\""),
            (with("this_machine = true", "this_machien = true"), "did you mean \"this_machine\""),
            (with("margin = -0.02", "margin = 2"), "margin is 2"),
            (with("margin = -0.02", "judge = 'x'"), "there are gpt, tickets"),
            (with("margin = -0.02", "judge = ['tickets', 'x']"), "there are gpt, tickets"),
            (with("margin = -0.02", "judge = ['tickets', 'tickets']"), "is named twice"),
            (with("margin = -0.02", "judge = ['tickets', 'gpt']"), "both \"gpt\""),
            (with("margin = -0.02", "judge = []"), "found no name"),
            (with("margin = -0.02", "judge = 3"), "or a list of them"),
            (with("margin = -0.02", "looks = 0"), "looks is 0"),
            (with("margin = -0.02", "max_forgetting = -1.0"), "max_forgetting is -1"),
            (with("margin = -0.02", "judge = 'gpt'"), "both \"gpt\""),
            (with("name = 'gpt'", "name = ''"), "name is missing"),
            (with("shots = 4", "answers = 'a.jsonl'"), "rented and answers"),
            (with("shots = 4", "baseline = 'majority'"), "beside another kind"),
            (with("adapter = 'out/tickets'", "baseline = 'oracle'"), "expected one of majority"),
            (with("shots = 4", "runs_on = 'server'"), "by the token, or by the hour"),
            (with("adapter = 'out/tickets'", "url = 'https://x'"), "belong to a rented model"),
            (with("adapter = 'out/tickets'", "dtype = 'int3'"), "dtype is \"int3\""),
            (with("exchange_source = 'assumed'", ""), "exchange_source is missing"),
            (with("shots = 4", "key_env = 'METIER_NO_SUCH_KEY'"), "METIER_NO_SUCH_KEY"),
            (with("metrics = ['exact_match', 'token_f1']", ""), "metric is missing"),
            (with("test = 'test.jsonl'", ""), "sealed test set"),
            ("[prove]\nmetric = 'exact_match'\ndata = 'x'".to_owned(), "found 0 candidates"),
            (with("[cost]\n", "[prove.pairwise]\nrented = 'm'\n[cost]\n"), "criteria is missing"),
            (with("[cost]\n", "[prove.pairwise]\ncriteria = 'c'\n[cost]\n"), "rented is missing"),
            (
                with("[cost]\n", "[prove.pairwise]\ncritera = 'c'\n[cost]\n"),
                "did you mean \"criteria\"",
            ),
        ] {
            let error = match setup(&text) {
                Ok(_) => panic!("accepted, expected {said}"),
                Err(error) => format!("{error:#}"),
            };
            assert!(error.contains(said), "{error}, expected {said}");
        }
        let economics = |text: String| {
            let measured = [("tickets".to_owned(), 500.0)].into();
            format!("{:#}", setup(&text).unwrap().economics(&measured, "here").unwrap_err())
        };
        assert!(
            economics(with("runs_on = 'server'", "runs_on = 'sever'")).contains("there are server")
        );
        assert!(
            economics(with("openai/gpt-4o-mini'\nshots", "openai/gpt-9'\nshots"))
                .contains("no price is known")
        );
        assert!(economics(with("currency = 'EUR'", "")).contains("currency is missing"));
        assert!(
            economics(with("price = 'hetzner/dedicated-cpu'", "price_per_hour = 1.0"))
                .contains("price_source")
        );
    }
}
