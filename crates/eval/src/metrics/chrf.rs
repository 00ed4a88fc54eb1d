//! chrF (aclanthology.org/W15-3049).

use super::corpus::of_texts;
use super::{Corpus, Metric, Score, python};
use std::collections::HashMap;

const ORDER: usize = 6;
/// How much more recall counts than precision, squared.
const BETA_SQUARED: f64 = 4.0;

/// chrF2: runs of one to six characters, space left out. The value of a test set is that of all
/// answers together and equals `sacrebleu.corpus_chrf` over 100; an example's score equals
/// `sacrebleu.sentence_chrf` over 100.
pub(super) static METRIC: Metric = Metric {
    name: "chrf",
    what: "Runs of one to six characters that the answers share with the references, of all answers together (chrF2 as sacrebleu computes it, over 100).",
    reads_as: "chrF",
    score: Score::Text(&|answer, reference| value(&statistics(answer, reference))),
    corpus: Some(Corpus { parts: &|item, answer| Ok(of_texts(item, answer, statistics)), value }),
    check_reference: |reference| match python::split(reference).next() {
        None => Err("it has no character but space".to_owned()),
        Some(_) => Ok(()),
    },
    examples: &[
        ("drum", "drum", 1.0),
        ("d r u m", "drum", 1.0),
        ("drum", "pike", 0.0),
        // Of 1 character 1 of 2 on both sides, of 2 none: the mean of 1/2 and 0 on both sides.
        ("ab", "ac", 0.25),
        ("", "drum", 0.0),
    ],
    ..Metric::GRADED
};

/// For each order: runs of the answer (0 where the reference has none), of the reference, shared.
fn statistics(answer: &str, reference: &str) -> Vec<f64> {
    let (answer, reference) = (characters(answer), characters(reference));
    let mut statistics = Vec::with_capacity(3 * ORDER);
    for n in 1..=ORDER {
        let mut left: HashMap<&[char], usize> = HashMap::new();
        for run in reference.windows(n) {
            *left.entry(run).or_default() += 1;
        }
        let present = !left.is_empty();
        let mut shared = 0;
        for run in answer.windows(n) {
            if let Some(count) = left.get_mut(run)
                && *count > 0
            {
                *count -= 1;
                shared += 1;
            }
        }
        let runs = if present { answer.windows(n).count() } else { 0 };
        statistics.extend([runs as f64, reference.windows(n).count() as f64, f64::from(shared)]);
    }
    statistics
}

fn characters(text: &str) -> Vec<char> {
    text.chars().filter(|c| !python::is_space(*c)).collect()
}

/// F2 of the mean precision and the mean recall over the orders that both sides have, in [0, 1].
fn value(statistics: &[f64]) -> f64 {
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for order in statistics.chunks_exact(3) {
        if order[0] > 0.0 && order[1] > 0.0 {
            precision += order[2] / order[0];
            recall += order[2] / order[1];
            orders += 1.0;
        }
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / orders, recall / orders);
    (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
}
