//! The proof: from what was decided before the run, and the recorded answers, to the whole report.
//!
//! [`prove`] is a pure function: the same plan, facts and answers give the same report to the last
//! byte. [`ProofFiles::write`] lays report, examples and answers side by side in one folder;
//! [`verify`] computes everything in that folder again and names what differs.

mod files;
mod recorded;
mod rules;
mod verify;

pub use files::{ProofFiles, plain_name};
pub use recorded::verify_similarities;
pub(crate) use recorded::{read_answers, read_items};
pub(crate) use verify::read_sealed;
pub use verify::{Verified, verify};

use crate::cost::{Cost, EconomicsPlan, RequestTokens, economics};
use crate::error::EvalError;
use crate::judge::Judgement;
use crate::metrics::Scale;
use crate::report::{
    CandidateReport, Changed, DataSummary, FileDigest, Finding, Licence, Machine, Measurement,
    Report, Rule, SCHEMA_VERSION, TrainSummary, candidate_reports, comparison_report,
    example_report, field_reports,
};
use crate::run::{CandidateResult, EvalResult, compare};
use crate::slices::{Outcomes, outcomes, slice_reports};
use crate::stats::PairedOptions;
use crate::verdict::{Decision, decide, sentences_in};
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
    /// The candidate that is judged.
    pub judged: String,
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
    /// The model that compared answers with references, where one did: a name, or a way from the proof's
    /// folder on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_model: Option<String>,
    /// Arms and prices; None when no cost is stated.
    pub economics: Option<EconomicsPlan>,
    /// Facts about how each candidate was asked, by its name, for the reader.
    #[serde(default)]
    pub asked: IndexMap<String, String>,
    /// Rules whose evidence comes from outside: leaks, licences, terms of use.
    #[serde(default)]
    pub findings: Vec<Rule>,
    /// What a judge said; it decides nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub judgements: Vec<Judgement>,
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
    let (against, judged) = (result.candidate(&plan.against)?, result.candidate(&plan.judged)?);
    let options = PairedOptions::default();
    let paired = compare(against, judged, index, &options)?;
    let mut candidates = candidate_reports(result)?;
    for (report, candidate) in candidates.iter_mut().zip(&result.candidates) {
        report.wrong = wrong(result, candidate, index);
    }
    let money = plan.economics.as_ref().map(|plan| reckon(plan, result, index)).transpose()?;
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
    let of = |name: &str| candidates.iter().find(|c| c.name == name);
    let mut rules = vec![rules::quality(plan, &paired)];
    rules.extend(rules::failures(plan, against, judged));
    rules.extend(rules::money(plan, of(&plan.judged), money.as_ref()));
    let slices = slice_reports(result, against, judged, index, plan.least_slice)?;
    rules.extend(rules::slices(plan, &slices));
    rules.extend(plan.judgements.iter().map(|j| rules::judgement(plan.language, j)));
    rules.extend(plan.findings.iter().cloned());
    let broken: Vec<&Rule> = rules.iter().filter(|r| r.finding == Finding::Broken).collect();
    let open =
        rules.iter().skip(1).filter(|r| r.finding == Finding::Open || r.finding == Finding::Broken);
    let blockers: Vec<String> = open.map(|rule| as_clause(&rule.evidence)).collect();
    let score = |c: Option<&CandidateReport>| c.map_or(0.0, |c| c.metrics[&plan.metric].value);
    let decision = Decision {
        a: &plan.against,
        b: &plan.judged,
        metric: result.metrics[index],
        score_a: score(of(&plan.against)),
        score_b: score(of(&plan.judged)),
        paired: &paired,
        margin: plan.margin,
        blockers: &blockers,
        cost_a: of(&plan.against).and_then(|c| c.cost.as_ref()),
        cost_b: of(&plan.judged).and_then(|c| c.cost.as_ref()),
    };
    let (verdict, sentences) = match broken.iter().find(|rule| rule.name != "quality") {
        Some(rule) => {
            let [scored, sure, _] = sentences_in(&decision, plan.language);
            (crate::Verdict::NotWorthIt, [scored, sure, rule.evidence.clone()])
        }
        None => (decide(&decision), sentences_in(&decision, plan.language)),
    };
    let Outcomes { won, lost, .. } = outcomes(result, against, judged, index);
    let changed = Changed { a: against.name.clone(), b: judged.name.clone(), won, lost };
    let examples = shown(result, index, &candidates, &changed);
    Ok(Report {
        schema_version: SCHEMA_VERSION,
        verdict,
        sentences,
        metric: plan.metric.clone(),
        margin: plan.margin,
        title: facts.title,
        created: facts.created,
        program: facts.program,
        comparisons: comparisons(plan, result, &options)?,
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
        rules,
        economics: money,
        slices,
        changed: Some(changed),
        seal: String::new(),
    })
}

/// A sentence as the clause that completes "because ...".
fn as_clause(sentence: &str) -> String {
    let sentence = sentence.trim_end_matches('.');
    let mut letters = sentence.chars();
    let second_is_capital = sentence.chars().nth(1).is_some_and(char::is_uppercase);
    match letters.next() {
        Some(first) if first.is_uppercase() && !second_is_capital => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => sentence.to_owned(),
    }
}

/// The judged candidate against each other one by the metric that decides, and against the one that it
/// is compared with by every metric.
fn comparisons(
    plan: &ProofPlan,
    result: &EvalResult,
    options: &PairedOptions,
) -> Result<Vec<crate::ComparisonReport>, EvalError> {
    let judged = result.candidate(&plan.judged)?;
    let mut found = Vec::new();
    for (place, metric) in result.metrics.iter().enumerate() {
        for other in result.candidates.iter().filter(|c| c.name != judged.name) {
            // What is no share, or no mean of scores, has no paired interval of shares.
            let share = metric.scale != Scale::Unbounded && metric.corpus.is_none();
            if share && (other.name == plan.against || metric.name == plan.metric) {
                let paired = compare(other, judged, place, options)?;
                found.push(comparison_report(metric.name, &other.name, &judged.name, &paired));
            }
        }
    }
    // The comparison that decides stands first.
    found.sort_by_key(|c| (c.metric != plan.metric, c.a != plan.against));
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
    places.sort_unstable();
    places.dedup();
    places.into_iter().map(|place| example_report(result, metric, place)).collect()
}

fn reckon(
    plan: &EconomicsPlan,
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
    economics(plan, &tokens, &scores).map_err(EvalError::Cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_become_clauses() {
        for (sentence, clause) in [
            ("Three answers failed.", "three answers failed"),
            ("EUR 3 is too much.", "EUR 3 is too much"),
            ("2 rows leak.", "2 rows leak"),
            ("", ""),
        ] {
            assert_eq!(as_clause(sentence), clause);
        }
    }
}
