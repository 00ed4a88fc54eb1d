//! Parts of a proof, read without computing the whole again.

use super::files::{ITEMS, answers_file};
use super::verify::{broken, parse_items, read_own, read_report};
use crate::candidate::{Answer, Candidate, RecordedCandidate, answered};
use crate::error::EvalError;
use crate::item::EvalItem;
use crate::metrics::{EmbedTexts, similarities};
use crate::report::Report;
use std::path::Path;

/// How far a cosine may lie from the recorded one: other processors add in another order.
const NEAR: f64 = 1e-3;

/// The examples of a proof, from the file whose digest its report names.
pub(crate) fn read_items(report_path: &Path, report: &Report) -> Result<Vec<EvalItem>, EvalError> {
    parse_items(&read_own(report_path, report, ITEMS)?, &report_path.with_file_name(ITEMS))
}

/// The answers of the candidate at a place of the report, likewise.
pub(crate) fn read_answers(
    report_path: &Path,
    report: &Report,
    place: usize,
    items: &[EvalItem],
) -> Result<Vec<Answer>, EvalError> {
    let name = &report.candidates[place].name;
    let file = answers_file(place, name);
    read_own(report_path, report, &file)?;
    let path = report_path.with_file_name(file);
    RecordedCandidate::read(name, &path)?.answer(items, &mut |_| ())
}

/// Compares the recorded cosines of a proof with those that an embedding model gives now; how many there
/// are.
///
/// # Errors
/// [`EvalError::Broken`] naming the first answer that is not as near to its reference as was recorded;
/// [`EvalError::Embedding`]; as [`super::verify`].
pub fn verify_similarities(report_path: &Path, embed: &mut EmbedTexts) -> Result<usize, EvalError> {
    let report = read_report(report_path)?;
    let items = read_items(report_path, &report)?;
    let mut compared = 0;
    for (place, candidate) in report.candidates.iter().enumerate() {
        let answers = read_answers(report_path, &report, place, &items)?;
        let pairs: Vec<(&EvalItem, &Answer)> = answered(&items, &answers).collect();
        let now = similarities(&pairs, embed)?;
        for ((item, answer), now) in pairs.into_iter().zip(now) {
            let (Some(was), Some(now)) = (answer.similarity, now) else { continue };
            // What is no number is not near.
            let near = (was - now).abs() <= NEAR;
            if !near {
                let reason = format!(
                    "the answer of {} to {:?} has the similarity {was}; compared again it is {now}",
                    candidate.name, item.id
                );
                return Err(broken(report_path, reason));
            }
            compared += 1;
        }
    }
    Ok(compared)
}
