//! How long an answer takes.

use super::{Metric, Score};

/// Seconds from the moment that the candidate began to work on an example to its answer's last token,
/// with whatever else it worked on at the same time. Waiting for its turn does not count.
pub(super) static METRIC: Metric = Metric {
    name: "latency",
    what: "Seconds from the beginning of the work on an answer to its end. Lower is better.",
    reads_as: "seconds per answer",
    score: Score::Item(&|_, answer| {
        answer.seconds.ok_or_else(|| "the candidate does not tell how long it took".to_owned())
    }),
    ..Metric::LESS_OF
};
