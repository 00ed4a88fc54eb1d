//! Perplexity per word.

use super::likelihood::weighed;
use super::{Corpus, Metric, Score};

/// e to the loss per word of the references, `word_perplexity` of lm-evaluation-harness. Words are what
/// space parts. Lower is better.
pub(super) static METRIC: Metric = Metric {
    name: "word_perplexity",
    what: "How surprised the model is by the references, per word. Lower is better.",
    reads_as: "perplexity per word",
    score: Score::Item(&|item, answer| {
        let likelihood = weighed(answer)?;
        Ok(value(&[likelihood.sum, weight(&item.reference)]))
    }),
    corpus: Some(Corpus {
        parts: &|item, answer| Ok(vec![weighed(answer)?.sum, weight(&item.reference)]),
        value,
    }),
    check_reference: |reference| match weight(reference) {
        weight if weight > 0.0 => Ok(()),
        _ => Err("it is empty".to_owned()),
    },
    ..Metric::LESS_OF
};

/// Parts between spaces: as Python's re.split(r"\s+", text) counts, space at an end has an empty word
/// behind it.
fn weight(text: &str) -> f64 {
    let mut words = 1;
    let mut within = false;
    for c in text.chars() {
        let space = super::python::is_space(c);
        words += usize::from(space && !within);
        within = space;
    }
    words as f64
}

fn value(sums: &[f64]) -> f64 {
    (-sums[0] / sums[1]).exp()
}
