//! The report: one structure, written as `report.json` for programs and `report.html` for people.

mod drawing;
mod html;
mod junit;
mod markdown;
mod money;
mod runs;

pub(crate) use money::volume_words;
pub use runs::{RunColumn, RunsPage};

use crate::cost::{Cost, Economics, Traffic};
use crate::error::EvalError;
use crate::files::write_atomic;
use crate::item::EvalItem;
use crate::judge::Judgement;
use crate::proof::ProofPlan;
use crate::rubric::GradesReport;
use crate::run::{CandidateResult, EvalResult};
use crate::slices::{ConfusedPair, LeakScores, SliceReport};
use crate::stats::{Interval, PairedDifference, PairedTest, mean, mean_interval};
use crate::verdict::Verdict;
use crate::words::Language;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Version of the JSON form: fields are added without a new one, never renamed.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything there is to say about a comparison of candidates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The decision.
    pub verdict: Verdict,
    /// The decision in three plain sentences, from [`crate::sentences`].
    pub sentences: [String; 3],
    /// Name of the metric that decides.
    pub metric: String,
    /// The gain that had to be exceeded, as a share.
    pub margin: f64,
    /// What was tried, for the heading.
    pub title: String,
    /// When, as it shall be printed.
    pub created: String,
    /// Name and version of the program.
    pub program: String,
    /// Scores, costs and behaviour of each candidate.
    pub candidates: Vec<CandidateReport>,
    /// Paired differences.
    pub comparisons: Vec<ComparisonReport>,
    /// Accuracy field by field, for structured answers.
    pub fields: Vec<FieldReport>,
    /// Some examples side by side.
    pub examples: Vec<ExampleReport>,
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
    /// Digests of what went in and came out, by name.
    pub files: IndexMap<String, FileDigest>,
    /// What was decided before the run, from which everything else is computed again; None in a
    /// report that is no proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<ProofPlan>,
    /// Each rule of the verdict with its evidence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Money by month and volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub economics: Option<Economics>,
    /// The judged candidate by the values of the examples' fields, worst difference first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<SliceReport>,
    /// What was won and lost between the two that are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Changed>,
    /// Each judged candidate beside the one compared with, in the plan's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub judged: Vec<JudgedReport>,
    /// For classification: which right answers the judged candidate takes for which others, most frequent
    /// first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confused: Vec<ConfusedPair>,
    /// Scores with and without test examples that are in the training data, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_leaks: Option<LeakScores>,
    /// What a judge said; it decides nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub judgements: Vec<Judgement>,
    /// What is known of a judge's grades, where the metric `rubric` is among the metrics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grades: Vec<GradesReport>,
    /// SHA-256 of this file with nothing in this place, in hexadecimal; empty in a report that is no
    /// proof.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub seal: String,
}

/// One of the judged candidates beside the one that all are compared with, by the metric that decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JudgedReport {
    /// Its name.
    pub name: String,
    /// What would be said of it alone, at the confidence that its company leaves.
    pub verdict: Verdict,
    /// Whether the report's verdict is about it.
    pub decides: bool,
    /// Mean of its score minus the other's, between -1 and 1.
    pub difference: f64,
    /// Interval of the difference at `confidence`.
    pub interval: Interval,
    /// Confidence of `interval`: that of the step of Holm's procedure at which this candidate was decided,
    /// and of the look at the test set.
    pub confidence: f64,
    /// Two-sided p-value of "there is no difference".
    pub p_value: f64,
    /// The same adjusted for all judged candidates by Holm.
    pub p_holm: f64,
}

/// One rule of the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// Its name, for scripts.
    pub name: String,
    /// What it asks for, one sentence.
    pub asks: String,
    /// What was found.
    pub finding: Finding,
    /// The evidence, one sentence.
    pub evidence: String,
}

/// What a rule found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// It is kept.
    Kept,
    /// It is not known whether it is kept; the reader is warned.
    Warning,
    /// It is not kept yet: nothing can be called proven.
    Open,
    /// It is broken for good.
    Broken,
}

/// Which examples one candidate has right and the other does not, or more right than the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Changed {
    /// Name of the candidate compared with.
    pub a: String,
    /// Name of the candidate judged.
    pub b: String,
    /// Ids of the examples that `b` does better.
    pub won: Vec<String>,
    /// Ids of the examples that `b` does worse.
    pub lost: Vec<String>,
}

/// How long answers took, from sending the request to the whole answer, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// Answers of which it is known.
    pub n: usize,
    /// Half of them took at most this.
    pub p50: f64,
    /// 95 of 100 took at most this.
    pub p95: f64,
    /// The longest.
    pub max: f64,
}

/// One candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CandidateReport {
    /// Its name.
    pub name: String,
    /// `local` or `recorded`.
    pub kind: String,
    /// Mean scores by metric.
    pub metrics: IndexMap<String, MetricReport>,
    /// Price of 1,000 requests in the currency of `cost`; None when not stated.
    pub cost_per_1000_requests: Option<f64>,
    /// The same with its assumptions.
    pub cost: Option<Cost>,
    /// Answers that failed; they are scored 0.
    pub failed: usize,
    /// Share of answers that ended by themselves, when known.
    pub stopped_share: Option<f64>,
    /// The mean request, when known.
    pub traffic: Option<Traffic>,
    /// Tokens of prompts and answers per second of the evaluation, when known.
    pub tokens_per_second: Option<f64>,
    /// Wall time of answering the test set, seconds.
    pub seconds: f64,
    /// How long single answers took, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// Models that answered, as a rented one names itself; more than one means that it changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Ids of the examples that are not wholly right by the metric that decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<String>,
}

impl CandidateReport {
    /// Adds what 1,000 requests cost.
    pub fn set_cost(&mut self, cost: Cost) {
        self.cost_per_1000_requests = Some(cost.per_1000_requests);
        self.cost = Some(cost);
    }
}

/// A mean score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricReport {
    /// Mean over examples, in [0, 1].
    pub value: f64,
    /// 95 % interval.
    pub ci95: Interval,
    /// Examples.
    pub n: usize,
    /// What the metric measures.
    pub what: String,
}

/// A paired difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ComparisonReport {
    /// Name of the metric.
    pub metric: String,
    /// Name of the candidate compared with.
    pub a: String,
    /// Name of the candidate judged.
    pub b: String,
    /// Mean of b minus a, between -1 and 1.
    pub difference: f64,
    /// 95 % interval.
    pub ci95: Interval,
    /// Two-sided p-value of "there is no difference".
    pub p_value: f64,
    /// The test behind it.
    pub test: PairedTest,
    /// Examples.
    pub n: usize,
}

/// One field of structured answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FieldReport {
    /// Name of the field.
    pub field: String,
    /// Examples whose reference has it.
    pub n: usize,
    /// Share of right values by candidate.
    pub scores: IndexMap<String, FieldAccuracy>,
}

/// How often a candidate has a field right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FieldAccuracy {
    /// Share of right values.
    pub value: f64,
    /// 95 % interval.
    pub ci95: Interval,
}

/// One example with every candidate's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExampleReport {
    /// Name of the example.
    pub id: String,
    /// The question.
    pub prompt: String,
    /// The right answer.
    pub reference: String,
    /// The answers, in the order of the candidates.
    pub answers: Vec<ExampleAnswer>,
}

/// One candidate's answer to an example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExampleAnswer {
    /// Name of the candidate.
    pub candidate: String,
    /// Its answer.
    pub text: String,
    /// Why there is none.
    pub error: Option<String>,
    /// Score by the metric that decides.
    pub score: f64,
    /// The answer field by field, when metric and answer have fields.
    pub fields: Vec<FieldCell>,
}

/// One field of an answer beside the reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FieldCell {
    /// Name of the field.
    pub field: String,
    /// Its value in the answer as JSON; None when it is missing.
    pub value: Option<String>,
    /// Whether the reference has the same.
    pub right: bool,
    /// Whether the reference does not have this field at all.
    pub extra: bool,
}

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrainSummary {
    /// Trained tokens per second of the whole run.
    pub tokens_per_second: f64,
    /// Most memory the process held, bytes.
    pub peak_rss_bytes: u64,
    /// Wall time, seconds.
    pub seconds: f64,
    /// Optimizer steps.
    pub steps: u64,
    /// How it was trained, one phrase: `LoRA, rank 32, on all linear layers`.
    pub method: String,
    /// Loss by step.
    pub curve: Vec<LossPoint>,
}

/// One point of a loss curve, in nats per supervised token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LossPoint {
    /// Optimizer step.
    pub step: u64,
    /// Training loss, where noted.
    pub loss: Option<f64>,
    /// Loss on held-out data, where measured.
    pub held_out: Option<f64>,
}

/// The machine everything was measured on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// Instruction set in use: `AVX-512`.
    pub instructions: String,
    /// Logical cores.
    pub cores: usize,
    /// Threads used.
    pub threads: usize,
    /// Memory in all, bytes.
    pub memory_bytes: u64,
    /// Operating system.
    pub os: String,
}

/// Something measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Measurement {
    /// What.
    pub what: String,
    /// How much, with its unit.
    pub value: String,
    /// How it was measured.
    pub how: String,
}

/// The data in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DataSummary {
    /// Training examples.
    pub train_rows: usize,
    /// Held-out examples.
    pub valid_rows: usize,
    /// Test examples.
    pub test_rows: usize,
    /// Rows left out because another says the same.
    pub duplicates_removed: usize,
    /// Test examples that are in the training data, exactly or nearly.
    pub leaks: usize,
    /// How leaks were looked for, one sentence.
    pub leak_check: String,
}

/// A licence of something that went in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Licence {
    /// What: a model, a data set.
    pub what: String,
    /// Its licence, as an SPDX expression where there is one.
    pub licence: String,
}

/// A file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileDigest {
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// Size, bytes.
    pub bytes: u64,
    /// Where it is: from the report's folder on, or anywhere. None: nowhere to look for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

impl Report {
    /// The language it is written in.
    pub(crate) fn language(&self) -> Language {
        self.plan.as_ref().map_or(Language::En, |plan| plan.language)
    }

    /// The report for programs: indented JSON with a newline at the end.
    ///
    /// # Errors
    /// [`EvalError::Render`].
    pub fn to_json(&self) -> Result<String, EvalError> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| EvalError::Render { format: "JSON", reason: error.to_string() })?;
        text.push('\n');
        Ok(text)
    }

    /// The report for a pull request: Markdown.
    pub fn to_markdown(&self) -> String {
        markdown::render(self)
    }

    /// The rules of the verdict as JUnit's XML, which CI servers show: a rule that is broken or open is
    /// a failure.
    pub fn to_junit(&self) -> String {
        junit::render(self)
    }

    /// The JSON Schema of `report.json`.
    pub fn json_schema() -> Value {
        schemars::schema_for!(Report).to_value()
    }

    /// The report for people: one HTML page that needs no network and no script.
    ///
    /// # Errors
    /// [`EvalError::Render`].
    pub fn to_html(&self) -> Result<String, EvalError> {
        html::render(self)
    }

    /// Writes `report.json` and `report.html` into `dir`, each whole or not at all.
    ///
    /// # Errors
    /// [`EvalError::Io`] naming the file, [`EvalError::Render`].
    pub fn write(&self, dir: &Path) -> Result<(), EvalError> {
        let (json, html) = (self.to_json()?, self.to_html()?);
        write_atomic(&dir.join("report.json"), json.as_bytes())?;
        write_atomic(&dir.join("report.html"), html.as_bytes())
    }
}

/// Every candidate of an evaluation, without costs.
///
/// # Errors
/// [`EvalError::Stats`] when there are no scores.
pub fn candidate_reports(result: &EvalResult) -> Result<Vec<CandidateReport>, EvalError> {
    let report = |candidate: &CandidateResult| {
        let mut metrics = IndexMap::new();
        for (place, metric) in result.metrics.iter().enumerate() {
            let (value, ci95) = result.summary(candidate, place)?;
            let (n, what) = (result.items.len(), metric.what.to_owned());
            metrics.insert(metric.name.to_owned(), MetricReport { value, ci95, n, what });
        }
        Ok(CandidateReport {
            name: candidate.name.clone(),
            kind: candidate.kind.clone(),
            metrics,
            cost_per_1000_requests: None,
            cost: None,
            failed: candidate.failed(),
            stopped_share: candidate.stopped_share(),
            traffic: candidate.traffic(),
            tokens_per_second: candidate.tokens_per_second(),
            seconds: candidate.seconds,
            latency: latency(candidate),
            models: models(candidate),
            wrong: Vec::new(),
        })
    };
    result.candidates.iter().map(report).collect()
}

fn latency(candidate: &CandidateResult) -> Option<Latency> {
    let mut times: Vec<f64> = candidate.all_answers().filter_map(|a| a.seconds).collect();
    times.sort_by(f64::total_cmp);
    let last = times.len().checked_sub(1)?;
    let at =
        |share: f64| times[((share * times.len() as f64).ceil() as usize).clamp(1, last + 1) - 1];
    Some(Latency { n: times.len(), p50: at(0.5), p95: at(0.95), max: times[last] })
}

fn models(candidate: &CandidateResult) -> Vec<String> {
    let mut names: Vec<String> = candidate.all_answers().filter_map(|a| a.model.clone()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A paired difference as it is reported.
pub fn comparison_report(
    metric: &str,
    a: &str,
    b: &str,
    paired: &PairedDifference,
) -> ComparisonReport {
    ComparisonReport {
        metric: metric.to_owned(),
        a: a.to_owned(),
        b: b.to_owned(),
        difference: paired.difference,
        ci95: paired.ci95,
        p_value: paired.p_value,
        test: paired.test,
        n: paired.n,
    }
}

/// Accuracy field by field, candidates side by side; empty when no metric of the run knows fields.
///
/// # Errors
/// [`EvalError::Stats`] when a field has no scores.
pub fn field_reports(result: &EvalResult) -> Result<Vec<FieldReport>, EvalError> {
    let mut fields: IndexMap<String, FieldReport> = IndexMap::new();
    for candidate in &result.candidates {
        for (field, scores) in result.field_scores(candidate) {
            let n = scores.len();
            let accuracy =
                FieldAccuracy { value: mean(&scores), ci95: mean_interval(&scores, true)? };
            let report = fields.entry(field.clone()).or_insert_with(|| FieldReport {
                field,
                n,
                scores: IndexMap::new(),
            });
            report.scores.insert(candidate.name.clone(), accuracy);
        }
    }
    Ok(fields.into_values().collect())
}

/// At most `count` examples at even distances through the test set: chosen by place, not by
/// result, so that they flatter nobody. `metric` is the place of the one that decides.
pub fn example_reports(result: &EvalResult, metric: usize, count: usize) -> Vec<ExampleReport> {
    let total = result.items.len();
    let count = count.min(total);
    (0..count).map(|i| example_report(result, metric, i * total / count)).collect()
}

pub(crate) fn example_report(result: &EvalResult, metric: usize, index: usize) -> ExampleReport {
    let item = &result.items[index];
    let answer = |candidate: &CandidateResult| {
        let answer = &candidate.answers[index];
        ExampleAnswer {
            candidate: candidate.name.clone(),
            text: answer.text.clone(),
            error: answer.error.clone(),
            score: candidate.scores.get(metric).map_or(0.0, |scores| scores[index]),
            fields: field_cells(result, item, &answer.text),
        }
    };
    ExampleReport {
        id: item.id.clone(),
        prompt: item.prompt(),
        reference: item.reference.clone(),
        answers: result.candidates.iter().map(answer).collect(),
    }
}

/// The answer field by field: those of the reference first, then those nobody asked for. Empty
/// unless the answer is an object and a metric of the run knows fields.
fn field_cells(result: &EvalResult, item: &EvalItem, answer: &str) -> Vec<FieldCell> {
    let Some(fields) = result.metrics.iter().find_map(|metric| metric.fields) else {
        return Vec::new();
    };
    let Ok(Value::Object(values)) = serde_json::from_str::<Value>(answer.trim()) else {
        return Vec::new();
    };
    let scores = fields(answer, &item.reference);
    let mut cells: Vec<FieldCell> = scores
        .into_iter()
        .map(|score| FieldCell {
            value: values.get(&score.field).map(Value::to_string),
            field: score.field,
            right: score.right,
            extra: false,
        })
        .collect();
    for (field, value) in &values {
        if !cells.iter().any(|cell| cell.field == *field) {
            let (field, value) = (field.clone(), Some(value.to_string()));
            cells.push(FieldCell { field, value, right: false, extra: true });
        }
    }
    cells
}
