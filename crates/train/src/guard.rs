//! Numbers that are not finite stop the run, with the examples named.

use crate::error::{TrainError, name_some};
use crate::rows::Row;

/// Refuses a gradient norm that is not finite, naming all rows of the step.
///
/// # Errors
/// [`TrainError::NonFinite`].
pub(crate) fn finite_norm(
    norm: f64,
    chosen: &[usize],
    rows: &[Row],
    per_example: usize,
    step: u64,
) -> Result<(), TrainError> {
    if norm.is_finite() {
        return Ok(());
    }
    let examples = name_some(chosen.iter().map(|&i| &rows[i * per_example].id));
    Err(TrainError::NonFinite { step, what: "gradient norm", value: norm.to_string(), examples })
}
