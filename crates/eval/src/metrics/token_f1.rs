//! How many words answer and reference share.

use super::{Metric, Score};
use std::collections::HashMap;

/// The F1 of SQuAD (arXiv 1606.05250, section 6.1) with a tokenisation that is the same for every
/// language: a word is a longest run of letters and digits (Unicode `Alphabetic` or `Numeric`),
/// lowercased. SQuAD's own script also drops the English articles; here they count like any word.
/// Words are compared as multisets. Two texts without any word agree (1), one without and one with
/// do not (0).
pub(super) static METRIC: Metric = Metric {
    name: "token_f1",
    what: "Shared words between answer and reference: the harmonic mean of how much of the answer is in the reference and how much of the reference is in the answer.",
    reads_as: "of the words right (F1)",
    score: Score::Text(&score),
    examples: &[
        ("The drum does not turn", "the drum does not turn.", 1.0),
        ("drum turn", "turn drum", 1.0),
        ("the drum", "the pump", 0.5),
        // 2 shared of 4 and 2: precision 1/2, recall 1.
        ("a b c d", "a b", 2.0 / 3.0),
        // A word counts as often as both have it.
        ("a a a", "a", 0.5),
        ("ÉTÉ", "été", 1.0),
        ("pump", "drum", 0.0),
        ("", "drum", 0.0),
        ("drum", "", 0.0),
        ("!", "...", 1.0),
    ],
    ..Metric::GRADED
};

fn score(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (words(answer), words(reference));
    if answer.is_empty() || reference.is_empty() {
        return f64::from(answer.is_empty() && reference.is_empty());
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &reference {
        *left.entry(word).or_default() += 1;
    }
    let mut shared = 0_usize;
    for word in &answer {
        if let Some(count) = left.get_mut(word.as_str())
            && *count > 0
        {
            *count -= 1;
            shared += 1;
        }
    }
    // 2PR/(P+R) with P = shared/|answer| and R = shared/|reference|.
    2.0 * shared as f64 / (answer.len() + reference.len()) as f64
}

fn words(text: &str) -> Vec<String> {
    let runs = text.split(|c: char| !c.is_alphanumeric());
    runs.filter(|run| !run.is_empty()).map(str::to_lowercase).collect()
}
