//! Log-probabilities of answers under the reference: the base itself, with the adapter off.

use crate::objective::Learner;
use crate::pack::{Share, micro_batches};
use crate::rows::Row;
use model::ModelError;
use std::sync::atomic::{AtomicBool, Ordering};

/// Log-probability of the learnt part of each row, nats, where it is known.
pub(crate) struct References {
    logps: Vec<Option<f64>>,
}

impl References {
    pub(crate) fn new(rows: usize) -> References {
        References { logps: vec![None; rows] }
    }

    /// Makes those of the `chosen` examples known. A row's value does not depend on what else is
    /// computed with it. False when cancelled before the end.
    pub(crate) fn complete(
        &mut self,
        learner: &mut Learner<'_>,
        rows: &[Row],
        per_example: usize,
        chosen: &[usize],
        budget: usize,
        cancel: &AtomicBool,
    ) -> Result<bool, ModelError> {
        let missing: Vec<usize> =
            chosen.iter().copied().filter(|&i| self.logps[i * per_example].is_none()).collect();
        let logps = log_probabilities(learner, rows, per_example, &missing, None, budget, cancel)?;
        let Some(logps) = logps else { return Ok(false) };
        for (row, logp) in logps {
            self.logps[row] = Some(logp);
        }
        Ok(true)
    }

    /// That of row `row`; 0 where it is not known, for objectives that do without.
    pub(crate) fn of(&self, row: usize) -> f64 {
        self.logps[row].unwrap_or_default()
    }
}

/// The log-probability of the learnt part of each row of the `chosen` examples, nats, with the
/// adapter in slot `adapter` or with none; None when cancelled.
pub(crate) fn log_probabilities(
    learner: &mut Learner<'_>,
    rows: &[Row],
    per_example: usize,
    chosen: &[usize],
    adapter: Option<usize>,
    budget: usize,
    cancel: &AtomicBool,
) -> Result<Option<Vec<(usize, f64)>>, ModelError> {
    let share = Share { lane: 0, rows, per_example, chosen, adapter, dropout: None, whole: false };
    let mut logps = Vec::new();
    for micro in micro_batches(&[share], budget) {
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let losses = learner.losses(&micro)?;
        for example in &micro.examples {
            for (n, targets) in example.rows.iter().enumerate() {
                let sum: f64 = losses[targets.clone()].iter().map(|&l| l as f64).sum();
                logps.push((example.index * per_example + n, -sum));
            }
        }
    }
    Ok(Some(logps))
}
