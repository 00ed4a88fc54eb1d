//! Numbers that are not finite stop the run, with the examples named.

use crate::error::{TrainError, name_some};
use crate::pack::MicroBatch;
use crate::rows::Row;

/// Sum of `losses` in f64.
///
/// # Errors
/// [`TrainError::NonFinite`] with the rows whose own loss is not finite.
pub(crate) fn finite_sum(
    losses: &[f32],
    micro: &MicroBatch,
    rows: &[Row],
    step: u64,
    what: &'static str,
) -> Result<f64, TrainError> {
    let sum: f64 = losses.iter().map(|&l| l as f64).sum();
    if sum.is_finite() {
        return Ok(sum);
    }
    let broken = micro
        .rows
        .iter()
        .filter(|(_, targets)| losses[targets.clone()].iter().any(|l| !l.is_finite()))
        .map(|(index, _)| &rows[*index].id);
    let examples = name_some(broken);
    Err(TrainError::NonFinite { step, what, value: sum.to_string(), examples })
}

/// Refuses a gradient norm that is not finite, naming all rows of the step.
///
/// # Errors
/// [`TrainError::NonFinite`].
pub(crate) fn finite_norm(
    norm: f64,
    chosen: &[usize],
    rows: &[Row],
    step: u64,
) -> Result<(), TrainError> {
    if norm.is_finite() {
        return Ok(());
    }
    let examples = name_some(chosen.iter().map(|&i| &rows[i].id));
    Err(TrainError::NonFinite { step, what: "gradient norm", value: norm.to_string(), examples })
}
