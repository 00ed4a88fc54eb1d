//! Proving: candidates answer the same examples, metrics score the answers, paired statistics say
//! what the scores can carry, cost says what a request takes, and a verdict puts it in plain words.
//!
//! Read [`evaluate`] first, then [`compare`] and [`decide`]. Everything between the answers and the
//! report is a pure function of its input; only [`Candidate`]s compute answers and only
//! [`Report::write`] and [`EvalResult::write_answers`] touch files.

mod baseline;
mod candidate;
mod cost;
mod error;
mod files;
mod french;
mod item;
mod judge;
mod metrics;
mod numbers;
mod openings;
mod prompting;
mod proof;
mod recorded;
mod rented;
mod repeated;
mod report;
mod review;
mod rubric;
mod run;
mod shift;
mod slices;
pub mod stats;
mod tasks;
mod verdict;
mod words;

pub use baseline::{BaselineCandidate, baseline_names};
pub use candidate::{Answer, Candidate, Generator, Likelihood, LocalCandidate, RecordedCandidate};
pub use cost::{
    ApiPrice, ArmEconomics, ArmPlan, Cost, CostError, CostPlan, Crossing, Economics, EconomicsPlan,
    Estimate, Exchange, MachineHour, MachinePlan, MachinePrice, OneOff, PairEconomics, PairPlan,
    PriceError, PriceTable, Rates, RequestTokens, Running, Saving, Throughput, Tier, TokenPrice,
    Traffic, economics, own_machine_per_hour,
};
pub use error::EvalError;
pub use item::EvalItem;
pub use judge::{Agreement, Games, Judge, Judgement, LEAST_LABELS, Preference};
pub use metrics::{
    Better, Corpus, CorpusDifference, EmbedTexts, Embedded, FAMILIES, Family, FieldScore, METRICS,
    Metric, Parts, RUBRIC, Scale, Score, metrics_by_name,
};
pub use openings::{
    OPENINGS_SUFFIX, Opening, Openings, count_opening, openings_in, openings_path, sealed_digests,
};
pub use prompting::{Prompted, Prompting};
pub use proof::{
    Arm, Forgotten, Look, ProofFacts, ProofFiles, ProofPlan, Sealed, Verified, plain_name, prove,
    read_sealed, verify, verify_similarities,
};
pub use rented::{Endpoint, Key, Outcome, Protocol, Record, RentedCandidate, in_the_clear};
pub use repeated::Repeated;
pub use report::{
    CandidateReport, Changed, ComparisonReport, DataSummary, ExampleAnswer, ExampleReport,
    FieldCell, FieldReport, FileDigest, Finding, JudgedReport, Latency, Licence, LossPoint,
    Machine, Measurement, MetricReport, Report, Rule, RunColumn, RunsPage, SCHEMA_VERSION,
    TrainSummary, candidate_reports, comparison_report, example_reports, field_reports,
};
pub use review::{Label, LabelFile, Pair, Review, ReviewSummary, Shown, labels_of, read_labels};
pub use rubric::{Graded, GradesReport, Rubric};
pub use run::{CandidateResult, EvalResult, Progress, compare, evaluate};
pub use shift::{ShiftOptions, ShiftReport, ShiftTest, input_shift};
pub use slices::{
    ConfusedPair, LeakScores, Outcomes, SliceReport, WithoutLeaks, confused_pairs, outcomes,
    slice_reports, slice_sizes, without_leaks,
};
pub use tasks::{OutputType, Task, TaskError, TaskModel, TaskResult, TaskSample, TaskValue};
pub use verdict::{Decision, Verdict, decide, sentences, sentences_in};
pub use words::Language;
