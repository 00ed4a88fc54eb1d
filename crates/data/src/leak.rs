//! Does the test set hold what the model was trained on? Then its score says nothing.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::error::{DataError, excerpt};
use crate::example::{Example, Origin};
use crate::minhash::{Index, Shingles};
use crate::normalise::normalise;

/// What counts as a leak.
#[derive(Debug, Clone, PartialEq)]
pub struct LeakOptions {
    /// Least overlap (Jaccard over word 3-grams of the normalised texts, above 0 and at most 1) at
    /// which two questions are near-duplicates; `None` looks for equal ones only.
    pub near_threshold: Option<f64>,
    /// How many leaks the report shows in full; all are counted and named.
    pub listed: usize,
}

impl Default for LeakOptions {
    fn default() -> Self {
        Self { near_threshold: Some(0.8), listed: 50 }
    }
}

/// How alike a test row and a training row are, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeakKind {
    /// The same bytes.
    Exact,
    /// The same after [`normalise`].
    Normalised,
    /// Near-duplicates at the threshold.
    Near,
}

/// A test row that the training set gives away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leak {
    /// How alike the two are.
    pub kind: LeakKind,
    /// Jaccard similarity; 1 for exact and normalised.
    pub similarity: f64,
    /// Whether the answers are the same too.
    pub same_completion: bool,
    /// Id of the test row.
    pub test_id: String,
    /// Where the test row is.
    pub test: Origin,
    /// The beginning of its question.
    pub test_text: String,
    /// Id of the training row.
    pub train_id: String,
    /// Where the training row is.
    pub train: Origin,
    /// The beginning of its question.
    pub train_text: String,
}

/// What [`leak_check`] found. Each test row counts once, by its strongest leak.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeakReport {
    /// Rows of the training set.
    pub train_rows: usize,
    /// Rows of the test set.
    pub test_rows: usize,
    /// The threshold of near-duplicates, if they were looked for.
    pub near_threshold: Option<f64>,
    /// Test rows whose question is a training question byte by byte.
    pub exact: usize,
    /// Further test rows whose question is a training question after normalisation.
    pub normalised: usize,
    /// Further test rows whose question is a near-duplicate of a training question.
    pub near: usize,
    /// Leaked rows whose answer differs from the training row's.
    pub different_completion: usize,
    /// Ids of all leaked test rows in the order of the test set: what to leave out for a score
    /// without them.
    pub leaked_ids: Vec<String>,
    /// The first leaks in full, strongest first.
    pub leaks: Vec<Leak>,
}

impl LeakReport {
    /// Test rows that leaked in any way.
    pub fn total(&self) -> usize {
        self.exact + self.normalised + self.near
    }

    /// [`LeakReport::total`] over the test rows, between 0 and 1.
    pub fn share(&self) -> f64 {
        if self.test_rows == 0 { 0.0 } else { self.total() as f64 / self.test_rows as f64 }
    }

    /// Whether nothing leaked.
    pub fn is_clean(&self) -> bool {
        self.total() == 0
    }
}

/// Compares every test question with every training question. A question is what was said before
/// the last answer, without system turns.
///
/// # Errors
/// [`DataError::Option`] when the threshold is not in (0, 1].
pub fn leak_check(
    train: &[Example],
    test: &[Example],
    options: &LeakOptions,
) -> Result<LeakReport, DataError> {
    check_threshold(options.near_threshold)?;
    let train_texts: Vec<String> = train.iter().map(Example::question).collect();
    let test_texts: Vec<String> = test.iter().map(Example::question).collect();
    let mut exact: HashMap<&str, usize> = HashMap::new();
    let mut normalised: HashMap<String, usize> = HashMap::new();
    for (i, text) in train_texts.iter().enumerate() {
        exact.entry(text).or_insert(i);
        normalised.entry(normalise(text)).or_insert(i);
    }
    let mut near = near_matches(&train_texts, &test_texts, options.near_threshold);

    let mut leaks: Vec<(usize, usize, LeakKind, f64)> = Vec::new();
    for (i, text) in test_texts.iter().enumerate() {
        if let Some(&j) = exact.get(text.as_str()) {
            leaks.push((i, j, LeakKind::Exact, 1.0));
        } else if let Some(&j) = normalised.get(&normalise(text)) {
            leaks.push((i, j, LeakKind::Normalised, 1.0));
        } else if let Some((j, similarity)) = near.remove(&i) {
            leaks.push((i, j, LeakKind::Near, similarity));
        }
    }
    let leaked_ids = leaks.iter().map(|leak| test[leak.0].id.clone()).collect();
    let count = |kind| leaks.iter().filter(|leak| leak.2 == kind).count();
    let same = |i: usize, j: usize| test[i].answer() == train[j].answer();
    let mut report = LeakReport {
        train_rows: train.len(),
        test_rows: test.len(),
        near_threshold: options.near_threshold,
        exact: count(LeakKind::Exact),
        normalised: count(LeakKind::Normalised),
        near: count(LeakKind::Near),
        different_completion: leaks.iter().filter(|&&(i, j, ..)| !same(i, j)).count(),
        leaked_ids,
        leaks: Vec::new(),
    };
    // Stable: within a kind and a similarity, the order of the test set.
    leaks.sort_by(|a, b| a.2.cmp(&b.2).then(b.3.total_cmp(&a.3)));
    let shown = leaks.into_iter().take(options.listed);
    report.leaks = shown
        .map(|(i, j, kind, similarity)| Leak {
            kind,
            similarity,
            same_completion: same(i, j),
            test_id: test[i].id.clone(),
            test: test[i].origin.clone(),
            test_text: excerpt(&test_texts[i]),
            train_id: train[j].id.clone(),
            train: train[j].origin.clone(),
            train_text: excerpt(&train_texts[j]),
        })
        .collect();
    Ok(report)
}

/// Refuses thresholds outside (0, 1].
pub(crate) fn check_threshold(threshold: Option<f64>) -> Result<(), DataError> {
    match threshold {
        Some(t) if !(t > 0.0 && t <= 1.0) => Err(DataError::Option {
            option: "near_threshold",
            found: t.to_string(),
            expected: "a share above 0 and at most 1",
        }),
        _ => Ok(()),
    }
}

/// For each test text with near-duplicates in train: the most similar one (the first of equals).
fn near_matches(
    train: &[String],
    test: &[String],
    threshold: Option<f64>,
) -> HashMap<usize, (usize, f64)> {
    let Some(threshold) = threshold else { return HashMap::new() };
    let shingles = Shingles::new(train.iter().chain(test).map(String::as_str));
    let mut index = Index::new(&shingles, threshold);
    for i in 0..train.len() {
        index.candidates(i, true);
    }
    let mut best = HashMap::new();
    for i in 0..test.len() {
        let in_all = train.len() + i;
        for j in index.candidates(in_all, false) {
            let similarity = shingles.jaccard(in_all, j);
            let known = best.get(&i).map_or(0.0, |&(_, s)| s);
            if similarity >= threshold && similarity > known {
                best.insert(i, (j, similarity));
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::tests::example;

    fn rows(questions: &[&str]) -> Vec<Example> {
        questions.iter().enumerate().map(|(i, q)| example(i + 1, q, "yes")).collect()
    }

    #[test]
    fn each_row_counts_once_by_its_strongest_leak() {
        let long = "the boiler in the kitchen makes a loud noise every morning at six";
        let train = rows(&[
            "Where is my card?",
            "the boiler in the kitchen makes a loud noise every morning at seven",
            long,
        ]);
        let mut test = rows(&[
            "Where is my card?",
            "where is my CARD",
            &long.replace("at six", "at eight"),
            "something else altogether",
        ]);
        let options = LeakOptions { near_threshold: Some(0.7), ..LeakOptions::default() };
        test[1].conversation.messages[1].content = "no".into();
        let report = leak_check(&train, &test, &options).unwrap();
        assert_eq!((report.exact, report.normalised, report.near), (1, 1, 1));
        assert_eq!(report.different_completion, 1);
        assert_eq!(report.leaked_ids, ["row-1", "row-2", "row-3"]);
        assert_eq!(report.total(), 3);
        assert_eq!(report.share(), 0.75);
        let near = &report.leaks[2];
        // 11 three-grams each, 10 shared.
        assert_eq!((near.kind, near.similarity), (LeakKind::Near, 10.0 / 12.0));
        assert_eq!((near.test.line, near.train.line), (3, 2));

        let equal_only = LeakOptions { near_threshold: None, listed: 1 };
        let report = leak_check(&train, &test, &equal_only).unwrap();
        assert_eq!((report.total(), report.leaks.len()), (2, 1));
        assert!(leak_check(&train, &rows(&["quite different"]), &options).unwrap().is_clean());
    }

    #[test]
    fn a_shared_system_turn_is_no_leak_and_hides_none() {
        let mut train = rows(&["how are you today"]);
        let mut test = rows(&["what time is it now", "how are you today"]);
        for example in &mut train {
            let system = text::Message::new("system", "You are a very helpful assistant. Be kind.");
            example.conversation.messages.insert(0, system);
        }
        let system = train[0].conversation.messages[0].clone();
        test[0].conversation.messages.insert(0, system);
        let report = leak_check(&train, &test, &LeakOptions::default()).unwrap();
        assert_eq!(report.leaked_ids, ["row-2"]);
    }

    #[test]
    fn thresholds_are_checked() {
        for bad in [0.0, -1.0, 1.01, f64::NAN] {
            let options = LeakOptions { near_threshold: Some(bad), listed: 1 };
            assert!(leak_check(&[], &[], &options).is_err(), "{bad}");
        }
        let report = leak_check(&[], &[], &LeakOptions::default()).unwrap();
        assert_eq!(report.share(), 0.0);
    }
}
