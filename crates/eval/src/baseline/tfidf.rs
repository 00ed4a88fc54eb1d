//! Texts as weighted words and pairs of neighbouring words.

use std::collections::{BTreeSet, HashMap};

/// The words and pairs of a training set, with how telling each is: ln((1 + n) / (1 + df)) + 1, as in
/// scikit-learn's `TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)`.
pub(super) struct Vocabulary {
    terms: HashMap<String, usize>,
    telling: Vec<f64>,
}

impl Vocabulary {
    pub(super) fn learn<'a>(texts: impl Iterator<Item = &'a str>) -> Vocabulary {
        let (mut documents, mut n): (HashMap<String, usize>, usize) = (HashMap::new(), 0);
        for text in texts {
            n += 1;
            for term in terms(text).into_iter().collect::<BTreeSet<_>>() {
                *documents.entry(term).or_default() += 1;
            }
        }
        let mut sorted: Vec<(String, usize)> = documents.into_iter().collect();
        sorted.sort();
        let idf = |df: usize| ((1 + n) as f64 / (1 + df) as f64).ln() + 1.0;
        let telling = sorted.iter().map(|&(_, df)| idf(df)).collect();
        let terms = sorted.into_iter().enumerate().map(|(index, (term, _))| (term, index));
        Vocabulary { terms: terms.collect(), telling }
    }

    pub(super) fn len(&self) -> usize {
        self.telling.len()
    }

    /// The text's known terms, in order, with their weights: (1 + ln count) times how telling, of length 1.
    pub(super) fn vector(&self, text: &str) -> Vec<(usize, f64)> {
        let mut counts: HashMap<usize, f64> = HashMap::new();
        for term in terms(text).iter().filter_map(|term| self.terms.get(term)) {
            *counts.entry(*term).or_default() += 1.0;
        }
        let mut vector: Vec<(usize, f64)> = counts
            .into_iter()
            .map(|(term, count)| (term, (1.0 + count.ln()) * self.telling[term]))
            .collect();
        vector.sort_by_key(|&(term, _)| term);
        let length = vector.iter().map(|(_, weight)| weight * weight).sum::<f64>().sqrt();
        vector.iter_mut().for_each(|(_, weight)| *weight /= length);
        vector
    }
}

/// Lowercased words of at least two letters, digits or underscores, and pairs of neighbours.
fn terms(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| word.chars().nth(1).is_some())
        .collect();
    let pairs = words.windows(2).map(|pair| pair.join(" "));
    words.iter().map(|word| (*word).to_owned()).chain(pairs).collect()
}
