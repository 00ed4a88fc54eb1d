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
mod item;
mod metrics;
mod numbers;
mod openings;
mod recorded;
mod report;
mod run;
mod shift;
mod slices;
pub mod stats;
mod tasks;
mod verdict;

pub use baseline::{BaselineCandidate, baseline_names};
pub use candidate::{Answer, Candidate, Generator, Likelihood, LocalCandidate, RecordedCandidate};
pub use cost::{ApiPrice, Cost, CostError, CostPlan, MachinePrice, Traffic};
pub use error::EvalError;
pub use item::EvalItem;
pub use metrics::{
    Better, Corpus, CorpusDifference, FAMILIES, Family, FieldScore, METRICS, Metric, Scale, Score,
    metrics_by_name,
};
pub use openings::{
    OPENINGS_SUFFIX, Opening, Openings, count_opening, openings_in, openings_path, sealed_digests,
};
pub use report::{
    CandidateReport, ComparisonReport, DataSummary, ExampleAnswer, ExampleReport, FieldCell,
    FieldReport, FileDigest, Licence, LossPoint, Machine, Measurement, MetricReport, Report,
    RunColumn, RunsPage, SCHEMA_VERSION, TrainSummary, candidate_reports, comparison_report,
    example_reports, field_reports,
};
pub use run::{CandidateResult, EvalResult, Progress, compare, evaluate};
pub use shift::{ShiftOptions, ShiftReport, ShiftTest, input_shift};
pub use slices::{
    ConfusedPair, Outcomes, SliceReport, WithoutLeaks, confused_pairs, outcomes, slice_reports,
    slice_sizes, without_leaks,
};
pub use tasks::{OutputType, Task, TaskError, TaskModel, TaskResult, TaskSample, TaskValue};
pub use verdict::{Decision, Lang, Verdict, decide, sentences, sentences_in};
