//! BLEU (aclanthology.org/P02-1040).

use super::corpus::of_texts;
use super::{Corpus, Metric, Score, mt13a};
use std::collections::HashMap;

const ORDER: usize = 4;

/// BLEU of runs of up to four tokens, with the tokenisation `13a` and exponential smoothing. The value
/// of a test set is that of all answers together and equals `sacrebleu.corpus_bleu` over 100; an
/// example's score equals `sacrebleu.sentence_bleu` over 100, which leaves out the orders that the
/// answer is too short for.
pub(super) static METRIC: Metric = Metric {
    name: "bleu",
    what: "Runs of one to four words that the answers share with the references, of all answers together (BLEU as sacrebleu computes it, over 100).",
    reads_as: "BLEU",
    score: Score::Text(&|answer, reference| value(&statistics(answer, reference), true)),
    corpus: Some(Corpus {
        parts: &|item, answer| Ok(of_texts(item, answer, statistics)),
        value: |sums| value(sums, false),
    }),
    check_reference: |reference| match mt13a::tokens(reference).len() {
        0 => Err("it has no word".to_owned()),
        _ => Ok(()),
    },
    examples: &[
        ("the drum does not turn", "the drum does not turn", 1.0),
        ("the drum", "the drum", 1.0),
        ("drum", "drum", 1.0),
        ("the pump", "the drum", 0.5),
        ("pump", "drum", 0.0),
        ("", "drum", 0.0),
    ],
    ..Metric::GRADED
};

/// Tokens of the answer and of the reference, then for each order shared runs, then for each order
/// runs of the answer.
fn statistics(answer: &str, reference: &str) -> Vec<f64> {
    let (answer, reference) = (mt13a::tokens(answer), mt13a::tokens(reference));
    let mut statistics = vec![0.0; 2 + 2 * ORDER];
    (statistics[0], statistics[1]) = (answer.len() as f64, reference.len() as f64);
    for n in 1..=ORDER {
        let mut left: HashMap<&[String], usize> = HashMap::new();
        for run in reference.windows(n) {
            *left.entry(run).or_default() += 1;
        }
        for run in answer.windows(n) {
            statistics[1 + ORDER + n] += 1.0;
            if let Some(count) = left.get_mut(run)
                && *count > 0
            {
                *count -= 1;
                statistics[1 + n] += 1.0;
            }
        }
    }
    statistics
}

/// The geometric mean of the orders' precisions times the penalty for brevity, in [0, 1]. An order
/// without a shared run counts as half (a quarter, ...) a run. Orders that there is no run of are left
/// out of the mean where `only_present`, and make it 0 otherwise.
fn value(statistics: &[f64], only_present: bool) -> f64 {
    let (answer, reference) = (statistics[0], statistics[1]);
    let (shared, runs) = statistics[2..].split_at(ORDER);
    if shared.iter().all(|&s| s == 0.0) {
        return 0.0;
    }
    let (mut log_sum, mut smooth, mut orders) = (0.0, 1.0, 0);
    for (&shared, &runs) in shared.iter().zip(runs).take_while(|(_, runs)| **runs > 0.0) {
        orders += 1;
        log_sum += if shared == 0.0 {
            smooth *= 2.0;
            (1.0 / (smooth * runs)).ln()
        } else {
            (shared / runs).ln()
        };
    }
    if !only_present && orders < ORDER {
        return 0.0;
    }
    let brevity = if answer < reference { (1.0 - reference / answer).exp() } else { 1.0 };
    brevity * (log_sum / orders as f64).exp()
}
