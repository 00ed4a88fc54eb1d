//! ROUGE (C.-Y. Lin 2004, aclanthology.org/W04-1013) as Google's `rouge-score` computes it, without
//! its stemmer: words are runs of a-z and 0-9 of the lowercased text, everything else parts them.

use std::collections::HashMap;
use std::hash::Hash;

/// The words that count. Letters beyond a-z are no part of words: a text in Greek has none.
pub(super) fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let runs = lower.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
    runs.filter(|run| !run.is_empty()).map(str::to_owned).collect()
}

/// A reference must have at least `n` words.
pub(super) fn check_reference(reference: &str, n: usize) -> Result<(), String> {
    match words(reference).len() {
        found if found < n => Err(format!(
            "it has {found} words of the letters a-z and digits, which are all that ROUGE counts; expected at least {n}"
        )),
        _ => Ok(()),
    }
}

/// ROUGE-n's F1: runs of n words as multisets.
pub(super) fn ngram_f1(answer: &str, reference: &str, n: usize) -> f64 {
    let (answer, reference) = (words(answer), words(reference));
    let mut left = counts(reference.windows(n));
    let mut shared = 0;
    for run in answer.windows(n) {
        if let Some(count) = left.get_mut(run)
            && *count > 0
        {
            *count -= 1;
            shared += 1;
        }
    }
    let of = |words: &[String]| (words.len() + 1).saturating_sub(n);
    f1(shared, of(&answer), of(&reference))
}

/// ROUGE-L's F1: the longest common subsequence of words.
pub(super) fn subsequence_f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (words(answer), words(reference));
    // One row of the table is enough for the length.
    let mut row = vec![0_usize; reference.len() + 1];
    for word in &answer {
        let mut diagonal = 0;
        for (place, other) in reference.iter().enumerate() {
            let above = row[place + 1];
            row[place + 1] = if word == other { diagonal + 1 } else { above.max(row[place]) };
            diagonal = above;
        }
    }
    f1(row[reference.len()], answer.len(), reference.len())
}

fn f1(shared: usize, answer: usize, reference: usize) -> f64 {
    if shared == 0 {
        return 0.0;
    }
    let (precision, recall) = (shared as f64 / answer as f64, shared as f64 / reference as f64);
    2.0 * precision * recall / (precision + recall)
}

fn counts<T: Hash + Eq>(items: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    counts
}
