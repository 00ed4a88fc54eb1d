//! What scores can carry: intervals for one candidate, paired comparison of two, and the number of
//! examples a question needs.
//!
//! Two candidates answer the same examples, so only the differences per example are compared; an
//! unpaired test on such data throws away what they share (arXiv 2411.00640). Intervals are two-sided,
//! with 95 % confidence unless many questions share a test set ([`Protection`]); all random numbers come
//! from a fixed seed. How often the intervals hold the truth, and how often a verdict is false, is shown in
//! docs/benchmarks/statistics.md by `tests/simulated_worlds.rs`.

mod clusters;
mod conclusion;
mod family;
mod interval;
mod paired;
mod power;
mod sequential;

pub(crate) use clusters::clusters_at;
pub use clusters::{ClusterError, cluster_error, clusters_of};
pub use conclusion::{Conclusion, Pilot};
pub use family::{FamilyMember, Protection, holm, paired_family, spent};
pub use interval::{
    Interval, clopper_pearson, cluster_interval, mean_interval, mean_interval_in, student_t, wilson,
};
pub(crate) use paired::shares_interval;
pub use paired::{
    PairedDifference, PairedOptions, PairedTest, bootstrap, mcnemar_exact, mcnemar_mid_p,
    paired_difference, paired_difference_in, paired_interval, sign_flip, tango,
};
pub use power::{
    detectable_difference, graded_sample_size, non_inferiority_sample_size, paired_sample_size,
};

pub use sequential::{ShareAlarm, evidence_above, share_sequence};

/// Share of intervals that hold the true value, when everything is repeated often.
pub const CONFIDENCE: f64 = 0.95;

/// What the statistics refuse.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StatsError {
    /// No scores, so nothing can be said.
    #[error("there are no scores; expected at least one")]
    Empty,
    /// Paired scores must belong to the same examples.
    #[error(
        "{a} scores on one side, {b} on the other; a paired comparison needs one of each per example"
    )]
    Unpaired {
        /// Scores of the first.
        a: usize,
        /// Scores of the second.
        b: usize,
    },
    /// Examples of one cluster are one observation.
    #[error(
        "there are {found} clusters; expected at least two. hint: an error between clusters needs more than one"
    )]
    Clusters {
        /// Clusters there are.
        found: usize,
    },
    /// A number is outside its range.
    #[error("{what} is {found}; expected {expected}")]
    Range {
        /// Name of the number.
        what: &'static str,
        /// What was given.
        found: f64,
        /// What would be accepted.
        expected: &'static str,
    },
}

/// Arithmetic mean; 0 of nothing.
pub(crate) fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Sample variance with the divisor n-1; 0 of fewer than two values.
pub(crate) fn variance(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64
}
