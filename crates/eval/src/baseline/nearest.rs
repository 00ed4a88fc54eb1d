//! The answer to the question with the most similar words.

use super::Kind;
use super::tfidf::Vocabulary;

/// Similarity is the cosine of TF-IDF vectors; of several equally near ones the first in the training set
/// counts.
pub(super) static KIND: Kind = Kind {
    name: "nearest",
    learn: |pairs| {
        let vocabulary = Vocabulary::learn(pairs.iter().map(|(question, _)| question.as_str()));
        let rows: Vec<(Vec<(usize, f64)>, String)> = pairs
            .iter()
            .map(|(question, answer)| (vocabulary.vector(question), answer.clone()))
            .collect();
        Box::new(move |question| {
            let mut dense = vec![0.0; vocabulary.len()];
            for (term, weight) in vocabulary.vector(question) {
                dense[term] = weight;
            }
            let mut best = (f64::NEG_INFINITY, "");
            for (row, answer) in &rows {
                let near: f64 = row.iter().map(|&(term, weight)| weight * dense[term]).sum();
                if near > best.0 {
                    best = (near, answer);
                }
            }
            best.1.to_owned()
        })
    },
};
