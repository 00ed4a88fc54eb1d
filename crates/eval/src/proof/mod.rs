//! The proof: from what was decided before the run, and the recorded answers, to the whole report.
//!
//! [`prove`] is a pure function: the same plan, facts and answers give the same report to the last
//! byte. [`ProofFiles::write`] lays report, examples and answers side by side in one folder;
//! [`verify`] computes everything in that folder again and names what differs.

mod files;
mod judged;
mod recorded;
mod rules;
mod verify;

pub(crate) use files::hex;
pub use files::{ProofFiles, plain_name};
pub use recorded::verify_similarities;
pub(crate) use recorded::{read_answers, read_items};
pub(crate) use verify::read_report;
pub use verify::{Sealed, Verified, read_sealed, verify};

use crate::cost::{Cost, EconomicsPlan, RequestTokens, economics};
use crate::error::EvalError;
use crate::judge::{Games, Judgement};
use crate::metrics::Scale;
use crate::report::{
    CandidateReport, Changed, DataSummary, FileDigest, Licence, Machine, Measurement, Report, Rule,
    SCHEMA_VERSION, TrainSummary, candidate_reports, comparison_report, example_report,
    field_reports,
};
use crate::rubric::{GradesReport, Rubric};
use crate::run::{CandidateResult, EvalResult, compare};
use crate::slices::{ConfusedPair, Outcomes, confused_pairs, outcomes, without_leaks};
use crate::stats::{Interval, PairedOptions};
use crate::words::Language;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is decided before the run. It is saved in `report.json`, and everything there that is not a
/// fact from outside is computed from it and the answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProofPlan {
    /// Language of the report.
    #[serde(default)]
    pub language: Language,
    /// Names of the metrics.
    pub metrics: Vec<String>,
    /// The metric that decides.
    pub metric: String,
    /// The candidate that is judged; of several the one named first.
    pub judged: String,
    /// Further candidates that are judged on the same test set. The verdict is about the best of those that
    /// are worth it, else about the first named that is not ruled out; claims hold for all together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_judged: Vec<String>,
    /// The candidate that it is compared with.
    pub against: String,
    /// The gain that must be exceeded, as a share; below 0, how much may be lost.
    pub margin: f64,
    /// What 1,000 requests to the judged candidate may cost at most.
    pub max_cost_per_1000: Option<f64>,
    /// Whether the judged candidate must be the cheaper one.
    pub must_be_cheaper: bool,
    /// Fewest examples of a slice that is reported.
    pub least_slice: usize,
    /// What no slice may be proven to lose beyond, as a share; None: slices are shown only.
    pub slice_margin: Option<f64>,
    /// Which of how many planned looks at the test set this is; None: it is meant to be the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub look: Option<Look>,
    /// What the judged candidate may lose on general text at most, nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_forgetting: Option<f64>,
    /// The model that compared answers with references, where one did: a name, or a way from the proof's
    /// folder on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_model: Option<String>,
    /// Arms and prices; None when no cost is stated.
    pub economics: Option<EconomicsPlan>,
    /// Facts about how each candidate was asked, by its name, for the reader.
    #[serde(default)]
    pub asked: IndexMap<String, String>,
    /// How the candidates that ran here were asked, token by token, by name; of others it is not known.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub arms: IndexMap<String, Arm>,
    /// What candidates forgot in training, by name, where that was measured.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub forgotten: IndexMap<String, Forgotten>,
    /// Ids of test examples that are in the training data, exactly or nearly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaked: Vec<String>,
    /// Rules whose evidence comes from outside: leaks, licences, terms of use.
    #[serde(default)]
    pub findings: Vec<Rule>,
    /// What a judge answered; it decides nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub games: Vec<Games>,
    /// By what answers were graded; None without the metric `rubric`. The grades are with the answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rubric: Option<Rubric>,
}

impl ProofPlan {
    /// Names of all judged candidates, the one named first in front.
    pub fn all_judged(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.judged).chain(&self.also_judged).map(String::as_str)
    }
}

/// A look at a test set that more looks are planned at, while it grows or after what was tried is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Look {
    /// Looks planned, at least 1.
    pub planned: usize,
    /// Which one this is, from 1; above `planned` nothing can be claimed any more.
    pub at: usize,
}

impl Look {
    /// Shares of the way at which the looks so far were planned, as [`crate::stats::Protection`] wants them.
    fn shares(self) -> Vec<f64> {
        let planned = self.planned.max(1);
        (1..=self.at.clamp(1, planned)).map(|k| k as f64 / planned as f64).collect()
    }
}

/// How a candidate that runs here is asked, token by token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Arm {
    /// SHA-256 of the base.
    pub base: String,
    /// SHA-256 of the chat template.
    pub template: String,
    /// The first token of its prompts.
    pub first_token: String,
    /// Whether that is the tokenizer's beginning-of-sequence token.
    pub bos: bool,
    /// Tokens that end an answer.
    pub stops: Vec<String>,
}

/// What a training costs in general ability, on a text that has nothing to do with the task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Forgotten {
    /// What was read.
    pub text: String,
    /// Tokens counted.
    pub tokens: u64,
    /// Mean loss of the base, nats per token.
    pub loss_before: f64,
    /// Mean loss of what was trained, nats per token.
    pub loss_after: f64,
    /// 95 % interval of the difference; None for a single piece of text.
    pub ci95: Option<Interval>,
}

/// Facts from outside, which no answer tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProofFacts {
    /// Heading.
    pub title: String,
    /// When, as it shall be printed.
    pub created: String,
    /// Name and version of the program.
    pub program: String,
    /// The training run, when there was one.
    pub train: Option<TrainSummary>,
    /// Where everything was measured.
    pub machine: Machine,
    /// Further measurements.
    pub measurements: Vec<Measurement>,
    /// The data, when it was checked.
    pub data: Option<DataSummary>,
    /// Licences of what went in.
    pub licences: Vec<Licence>,
    /// Digests of what went in.
    pub files: IndexMap<String, FileDigest>,
}

impl ProofFacts {
    /// The facts that a report was made with.
    fn of(report: &Report) -> ProofFacts {
        ProofFacts {
            title: report.title.clone(),
            created: report.created.clone(),
            program: report.program.clone(),
            train: report.train.clone(),
            machine: report.machine.clone(),
            measurements: report.measurements.clone(),
            data: report.data.clone(),
            licences: report.licences.clone(),
            files: report.files.clone(),
        }
    }
}

/// Examples shown whatever their result, at even distances.
const SHOWN_EVENLY: usize = 10;
/// Examples shown of those won, of those lost, and of those that a candidate has wrong.
const SHOWN_EACH: usize = 25;
/// Confused pairs that are named.
const MOST_CONFUSED: usize = 20;

/// The report of a run.
///
/// # Errors
/// [`EvalError::UnknownCandidate`] and [`EvalError::UnknownMetric`] for a plan that names what was not
/// run; [`EvalError::Cost`]; [`EvalError::Stats`].
pub fn prove(
    plan: &ProofPlan,
    facts: ProofFacts,
    result: &EvalResult,
) -> Result<Report, EvalError> {
    let index = result.metric(&plan.metric)?;
    let against = result.candidate(&plan.against)?;
    let mut candidates = candidate_reports(result)?;
    for (report, candidate) in candidates.iter_mut().zip(&result.candidates) {
        report.wrong = wrong(result, candidate, index);
    }
    let money = plan.economics.as_ref();
    let money = money.map(|money| reckon(money, plan.language, result, index)).transpose()?;
    for arm in money.iter().flat_map(|money| &money.arms) {
        let candidate = candidates.iter_mut().find(|c| c.name == arm.name);
        if let (Some(candidate), Some(money)) = (candidate, &money) {
            candidate.set_cost(Cost {
                per_1000_requests: arm.per_1000_requests.value.unwrap_or(f64::NAN),
                currency: money.currency.clone(),
                assumptions: arm.assumptions.clone(),
            });
        }
    }
    let judgements = plan.games.iter().map(|games| {
        let (a, b) = (result.candidate(&games.a)?, result.candidate(&games.b)?);
        games.judgement(&result.items, a, b, plan.language)
    });
    let judgements = judgements.collect::<Result<Vec<Judgement>, EvalError>>()?;
    let grades = plan.rubric.iter().flat_map(|rubric| {
        plan.all_judged().map(|name| {
            let b = result.candidate(name)?;
            Ok(rubric.report(&result.items, against, b, plan.language))
        })
    });
    let grades = grades.collect::<Result<Vec<GradesReport>, EvalError>>()?;
    let evidence = judged::Evidence {
        plan,
        result,
        index,
        against,
        candidates: &candidates,
        money: money.as_ref(),
        judgements: &judgements,
        grades: &grades,
    };
    let (chosen, judged) = evidence.judge()?;
    let about = result.candidate(&chosen.name)?;
    let Outcomes { won, lost, .. } = outcomes(result, against, about, index);
    let changed = Changed { a: against.name.clone(), b: about.name.clone(), won, lost };
    let confused = confused_pairs(result, about, MOST_CONFUSED);
    let examples = shown(result, index, &candidates, &changed, &confused);
    Ok(Report {
        schema_version: SCHEMA_VERSION,
        verdict: chosen.verdict,
        sentences: chosen.sentences,
        metric: plan.metric.clone(),
        margin: plan.margin,
        title: facts.title,
        created: facts.created,
        program: facts.program,
        comparisons: comparisons(plan, result, about)?,
        fields: field_reports(result)?,
        examples,
        candidates,
        train: facts.train,
        machine: facts.machine,
        measurements: facts.measurements,
        data: facts.data,
        licences: facts.licences,
        files: facts.files,
        plan: Some(plan.clone()),
        rules: chosen.rules,
        economics: money,
        slices: chosen.slices,
        without_leaks: without_leaks(result, (against, about), index, &plan.leaked)?,
        changed: Some(changed),
        judged,
        confused,
        judgements,
        grades,
        seal: String::new(),
    })
}

/// Each judged candidate against each other one by the metric that decides, and against the one that it is
/// compared with by every metric. `about` is the one that the verdict is about.
fn comparisons(
    plan: &ProofPlan,
    result: &EvalResult,
    about: &CandidateResult,
) -> Result<Vec<crate::ComparisonReport>, EvalError> {
    let judged = plan.all_judged().map(|name| result.candidate(name));
    let judged = judged.collect::<Result<Vec<_>, _>>()?;
    let is_judged = |name: &str| judged.iter().any(|c| c.name == name);
    let options = PairedOptions::default();
    let mut found = Vec::new();
    for (place, metric) in result.metrics.iter().enumerate() {
        // What is no share, or no mean of scores, has no paired interval of shares.
        if metric.scale == Scale::Unbounded || metric.corpus.is_some() {
            continue;
        }
        for other in result.candidates.iter().filter(|c| !is_judged(&c.name)) {
            if other.name == plan.against || metric.name == plan.metric {
                for b in &judged {
                    let paired = compare(other, b, place, &options)?;
                    found.push(comparison_report(metric.name, &other.name, &b.name, &paired));
                }
            }
        }
    }
    // The comparison that decides stands first.
    found.sort_by_key(|c| (c.metric != plan.metric, c.a != plan.against, c.b != about.name));
    Ok(found)
}

fn wrong(result: &EvalResult, candidate: &CandidateResult, metric: usize) -> Vec<String> {
    let scores = candidate.scores_of(metric).iter();
    let wrong = result.items.iter().zip(scores).filter(|(_, score)| **score < 1.0);
    wrong.map(|(item, _)| item.id.clone()).collect()
}

/// The examples that the page shows, in the test set's order: some at even distances, then the first
/// of each list that a number stands for.
fn shown(
    result: &EvalResult,
    metric: usize,
    candidates: &[CandidateReport],
    changed: &Changed,
    confused: &[ConfusedPair],
) -> Vec<crate::ExampleReport> {
    let total = result.items.len();
    let evenly = SHOWN_EVENLY.min(total);
    let mut places: Vec<usize> = (0..evenly).map(|i| i * total / evenly).collect();
    let place_of: std::collections::HashMap<&str, usize> =
        result.items.iter().enumerate().map(|(place, item)| (item.id.as_str(), place)).collect();
    let lists = candidates.iter().map(|c| &c.wrong).chain([&changed.won, &changed.lost]);
    for list in lists {
        places.extend(list.iter().take(SHOWN_EACH).filter_map(|id| place_of.get(id.as_str())));
    }
    let first = confused.iter().filter_map(|pair| pair.ids.first());
    places.extend(first.filter_map(|id| place_of.get(id.as_str())));
    places.sort_unstable();
    places.dedup();
    places.into_iter().map(|place| example_report(result, metric, place)).collect()
}

fn reckon(
    plan: &EconomicsPlan,
    language: Language,
    result: &EvalResult,
    metric: usize,
) -> Result<crate::cost::Economics, EvalError> {
    let arms = plan.arms.iter().map(|arm| result.candidate(&arm.name));
    let arms = arms.collect::<Result<Vec<_>, _>>()?;
    // A request counts where every arm knows its tokens: they are resampled together.
    let known = |place: &usize| {
        arms.iter().all(|arm| {
            let answer = &arm.answers[*place];
            answer.prompt_tokens.is_some() && answer.answer_tokens.is_some()
        })
    };
    let places: Vec<usize> = (0..result.items.len()).filter(known).collect();
    let tokens: Vec<Vec<RequestTokens>> =
        arms.iter().map(|arm| places.iter().map(|&p| arm.tokens(p)).collect()).collect();
    let scores: Vec<Option<Vec<f64>>> = arms
        .iter()
        .map(|arm| Some(places.iter().map(|&p| arm.scores_of(metric)[p]).collect()))
        .collect();
    economics(plan, &tokens, &scores, language).map_err(EvalError::Cost)
}
