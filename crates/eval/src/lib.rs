//! Proving: candidates answer the same examples, metrics score the answers, paired statistics say
//! what the scores can carry, cost says what a request takes, and a verdict puts it in plain words.
//!
//! Read [`evaluate`] first, then [`compare`] and [`decide`]. Everything between the answers and the
//! report is a pure function of its input; only [`Candidate`]s compute answers and only
//! [`Report::write`] and [`EvalResult::write_answers`] touch files.

mod candidate;
mod cost;
mod error;
mod files;
mod item;
mod judge;
mod metrics;
mod numbers;
mod prompting;
mod proof;
mod rented;
mod report;
mod run;
pub mod stats;
mod verdict;
mod words;

pub use candidate::{Answer, Candidate, Generator, LocalCandidate, RecordedCandidate};
pub use cost::{
    ApiPrice, ArmEconomics, ArmPlan, Cost, CostError, CostPlan, Crossing, Economics, EconomicsPlan,
    Estimate, Exchange, MachineHour, MachinePlan, MachinePrice, OneOff, PairEconomics, PairPlan,
    PriceError, PriceTable, Rates, RequestTokens, Running, Saving, Throughput, Tier, TokenPrice,
    Traffic, economics, own_machine_per_hour,
};
pub use error::EvalError;
pub use item::EvalItem;
pub use judge::{Agreement, Judge, Judgement, LEAST_LABELS, Preference, read_labels};
pub use metrics::{FieldScore, METRICS, Metric, Scale, metrics_by_name};
pub use prompting::{Prompted, Prompting};
pub use proof::{ProofFacts, ProofFiles, ProofPlan, Verified, prove, verify};
pub use rented::{Endpoint, Key, Outcome, Protocol, Record, RentedCandidate};
pub use report::{
    CandidateReport, Changed, ComparisonReport, DataSummary, ExampleAnswer, ExampleReport,
    FieldCell, FieldReport, FileDigest, Finding, Latency, Licence, LossPoint, Machine, Measurement,
    MetricReport, Report, Rule, RunColumn, RunsPage, SCHEMA_VERSION, TrainSummary,
    candidate_reports, comparison_report, example_reports, field_reports,
};
pub use run::{CandidateResult, EvalResult, Progress, compare, evaluate};
pub use verdict::{Decision, Verdict, decide, sentences};
pub use words::Language;
