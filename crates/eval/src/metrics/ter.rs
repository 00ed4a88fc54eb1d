//! Translation edit rate (aclanthology.org/2006.amta-papers.25).

use super::corpus::of_texts;
use super::{Better, Corpus, Metric, Scale, Score, python};
use std::collections::HashMap;

/// Edits over words of the reference, where an edit inserts, deletes or replaces a word or moves a
/// run of words. Words are what space parts, lowercased. Which moves are tried, and in which order,
/// is Tercom's search as sacrebleu documents it: the value of a test set equals `sacrebleu.corpus_ter`
/// over 100, an example's score `sacrebleu.sentence_ter` over 100. Lower is better; may exceed 1.
pub(super) static METRIC: Metric = Metric {
    name: "ter",
    what: "Words to insert, delete, replace or move until the answers are the references, over the words of the references (TER as sacrebleu computes it, over 100). Lower is better.",
    reads_as: "TER",
    scale: Scale::Unbounded,
    better: Better::Lower,
    score: Score::Text(&|answer, reference| value(&statistics(answer, reference))),
    corpus: Some(Corpus { parts: &|item, answer| Ok(of_texts(item, answer, statistics)), value }),
    examples: &[
        ("the drum does not turn", "The drum does not turn", 0.0),
        ("the drum turn", "the drum does not turn", 0.4),
        ("not turn the drum does", "the drum does not turn", 0.2),
        ("pump", "drum", 1.0),
        ("a b c", "a", 2.0),
        ("", "drum", 1.0),
        ("drum", "", 1.0),
        ("", "", 0.0),
    ],
    ..Metric::GRADED
};

const MAX_SHIFT_LEN: usize = 10;
const MAX_SHIFT_DISTANCE: usize = 50;
const MAX_CANDIDATES: usize = 1000;
/// Cells on either side of the diagonal that are looked at.
const BEAM: usize = 25;
const FAR: u32 = u32::MAX / 2;

/// Edits, and words of the reference.
fn statistics(answer: &str, reference: &str) -> Vec<f64> {
    let (answer, reference) = (answer.to_lowercase(), reference.to_lowercase());
    // Words as numbers: the search compares them often.
    let mut ids: HashMap<&str, u32> = HashMap::new();
    let mut numbered = |text| -> Vec<u32> {
        python::split(text)
            .map(|word| {
                let next = ids.len() as u32;
                *ids.entry(word).or_insert(next)
            })
            .collect()
    };
    let (answer, reference) = (numbered(&answer), numbered(&reference));
    vec![edits(answer, &reference) as f64, reference.len() as f64]
}

fn value(statistics: &[f64]) -> f64 {
    match (statistics[0], statistics[1]) {
        (edits, words) if words > 0.0 => edits / words,
        (edits, _) => f64::from(edits > 0.0),
    }
}

/// Moves while moving pays, then counts what is left to edit.
fn edits(mut answer: Vec<u32>, reference: &[u32]) -> usize {
    if reference.is_empty() {
        return answer.len();
    }
    let (mut moves, mut tried) = (0, 0);
    while let Some((gain, moved)) = best_move(&answer, reference, &mut tried) {
        if tried >= MAX_CANDIDATES || gain <= 0 {
            break;
        }
        moves += 1;
        answer = moved;
    }
    moves + distance(&answer, reference).0 as usize
}

/// What is done to a word on the way from the answer to the reference.
#[derive(Clone, Copy, PartialEq)]
enum Edit {
    Keep,
    Replace,
    /// A word of the reference that the answer lacks.
    Insert,
    /// A word of the answer that the reference lacks.
    Delete,
    Unknown,
}

/// The move that brings the answer nearest, with what it gains. Among equals the longer run, then the
/// earlier one, then the earlier target wins. `tried` counts candidates over all moves.
fn best_move(answer: &[u32], reference: &[u32], tried: &mut usize) -> Option<(i64, Vec<u32>)> {
    let (before, path) = distance(answer, reference);
    let alignment = Alignment::new(&path, answer.len(), reference.len());
    // Ordered by gain, then length, then -start, then -target, then the words themselves.
    let mut best: Option<(i64, usize, i64, i64, Vec<u32>)> = None;
    for (start, at, len) in shared_runs(answer, reference) {
        let wrong = alignment.answer_wrong[start..start + len].iter().any(|&w| w)
            && alignment.reference_wrong[at..at + len].iter().any(|&w| w);
        // A run is not moved into itself.
        let within = (start as i64..(start + len) as i64).contains(&alignment.place_of[at]);
        if !wrong || within {
            continue;
        }
        let mut last = None;
        for place in at..=at + len {
            // Behind the answer's word that stands for the reference's word before `place`.
            let target = match place {
                0 => 0,
                _ => (alignment.place_of[place - 1] + 1) as usize,
            };
            if last == Some(target) {
                continue;
            }
            last = Some(target);
            let moved = moved(answer, start, len, target);
            let gain = i64::from(before) - i64::from(distance(&moved, reference).0);
            *tried += 1;
            let candidate = (gain, len, -(start as i64), -(target as i64), moved);
            if best.as_ref().is_none_or(|best| candidate > *best) {
                best = Some(candidate);
            }
        }
        if *tried >= MAX_CANDIDATES {
            break;
        }
    }
    best.map(|(gain, .., moved)| (gain, moved))
}

/// Runs (start in the answer, start in the reference, length) that both have, each with every length.
fn shared_runs<'a>(
    answer: &'a [u32],
    reference: &'a [u32],
) -> impl Iterator<Item = (usize, usize, usize)> + 'a {
    let pairs = (0..answer.len()).flat_map(move |start| {
        let near = start.saturating_sub(MAX_SHIFT_DISTANCE)
            ..(start + MAX_SHIFT_DISTANCE + 1).min(reference.len());
        near.map(move |at| (start, at))
    });
    pairs.flat_map(move |(start, at)| {
        let same = answer[start..].iter().zip(&reference[at..]).take(MAX_SHIFT_LEN);
        let longest = same.take_while(|(a, b)| a == b).count();
        (1..=longest).map(move |len| (start, at, len))
    })
}

/// The answer with `len` words from `start` put before what stood at `target`.
fn moved(words: &[u32], start: usize, len: usize, target: usize) -> Vec<u32> {
    let run = &words[start..start + len];
    let parts: [&[u32]; 4] = if target < start {
        [&words[..target], run, &words[target..start], &words[start + len..]]
    } else {
        // A target inside the run counts from the run's own place.
        let end = if target > start + len { target } else { (len + target).min(words.len()) };
        [&words[..start], &words[start + len..end], run, &words[end..]]
    };
    parts.concat()
}

/// Which words are wrong on either side, and which place of the answer stands for each word of the
/// reference (-1: before the first).
struct Alignment {
    answer_wrong: Vec<bool>,
    reference_wrong: Vec<bool>,
    place_of: Vec<i64>,
}

impl Alignment {
    fn new(path: &[Edit], answer: usize, reference: usize) -> Alignment {
        let mut alignment = Alignment {
            answer_wrong: Vec::with_capacity(answer),
            reference_wrong: Vec::with_capacity(reference),
            place_of: Vec::with_capacity(reference),
        };
        for &edit in path {
            if edit != Edit::Insert {
                alignment.answer_wrong.push(edit != Edit::Keep);
            }
            if edit != Edit::Delete {
                alignment.reference_wrong.push(edit != Edit::Keep);
                alignment.place_of.push(alignment.answer_wrong.len() as i64 - 1);
            }
        }
        alignment
    }
}

/// A row of the table of distances: the cells from `from` on, with how each was reached.
struct Row {
    from: usize,
    cells: Vec<(u32, Edit)>,
}

impl Row {
    fn at(&self, column: usize) -> (u32, Edit) {
        let place = column.checked_sub(self.from).and_then(|place| self.cells.get(place));
        place.copied().unwrap_or((FAR, Edit::Unknown))
    }
}

/// Levenshtein's distance of words within a beam around the diagonal, and the path of edits. Of edits
/// that cost the same, keeping or replacing goes before deleting, and that before inserting.
fn distance(answer: &[u32], reference: &[u32]) -> (u32, Vec<Edit>) {
    let columns = reference.len() + 1;
    let first = (0..columns as u32).map(|cost| (cost, Edit::Insert)).collect();
    let mut rows = vec![Row { from: 0, cells: first }];
    let ratio = if answer.is_empty() { 1.0 } else { reference.len() as f64 / answer.len() as f64 };
    let beam = match ratio / 2.0 {
        half if (BEAM as f64) < half => (half + BEAM as f64).ceil() as usize,
        _ => BEAM,
    };
    for (index, word) in answer.iter().enumerate() {
        let diagonal = ((index + 1) as f64 * ratio).floor() as usize;
        let from = diagonal.saturating_sub(beam);
        let end = if index + 1 == answer.len() { columns } else { columns.min(diagonal + beam) };
        let mut row = Row { from, cells: Vec::with_capacity(end.saturating_sub(from)) };
        let above = &rows[index];
        for column in from..end {
            let down = (above.at(column).0 + 1, Edit::Delete);
            if column == 0 {
                row.cells.push(down);
                continue;
            }
            let same = *word == reference[column - 1];
            let edit = if same { Edit::Keep } else { Edit::Replace };
            let mut best = (above.at(column - 1).0 + u32::from(!same), edit);
            for other in [down, (row.at(column - 1).0 + 1, Edit::Insert)] {
                if other.0 < best.0 {
                    best = other;
                }
            }
            row.cells.push(best);
        }
        rows.push(row);
    }
    let (mut index, mut column) = (answer.len(), reference.len());
    let cost = rows[index].at(column).0;
    let mut path = Vec::with_capacity(answer.len() + reference.len());
    while index > 0 || column > 0 {
        let edit = rows[index].at(column).1;
        path.push(edit);
        match edit {
            Edit::Keep | Edit::Replace => (index, column) = (index - 1, column - 1),
            Edit::Insert => column -= 1,
            Edit::Delete => index -= 1,
            // Outside the beam: no path leads there.
            Edit::Unknown => break,
        }
    }
    path.reverse();
    (cost, path)
}
