//! Train, validation and test sets that share no group.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::example::Example;
use crate::leak::check_threshold;
use crate::minhash::{Index, Shingles};
use crate::normalise::normalise;

/// How to split.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitOptions {
    /// Share of the rows for validation, at least 0.
    pub valid_fraction: f64,
    /// Share of the rows for the sealed test, at least 0; both together below 1.
    pub test_fraction: f64,
    /// Same seed and same rows: same split.
    pub seed: u64,
    /// Rows whose questions are near-duplicates at this Jaccard threshold stay together, as rows of
    /// one group and rows with the same question always do; `None` switches this off.
    pub near_threshold: Option<f64>,
}

impl Default for SplitOptions {
    fn default() -> Self {
        Self { valid_fraction: 0.05, test_fraction: 0.1, seed: 42, near_threshold: Some(0.8) }
    }
}

/// Three sets, each in the order of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// To learn from.
    pub train: Vec<Example>,
    /// To steer the training by.
    pub valid: Vec<Example>,
    /// To judge the result by, once.
    pub test: Vec<Example>,
}

/// What [`split`] did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitReport {
    /// The seed.
    pub seed: u64,
    /// Rows of the training set.
    pub train: usize,
    /// Rows of the validation set.
    pub valid: usize,
    /// Rows of the test set.
    pub test: usize,
    /// Sets of rows that had to stay together, single rows included.
    pub units: usize,
    /// Rows of the largest of them.
    pub largest_unit: usize,
    /// The threshold of near-duplicates, if they were kept together.
    pub near_threshold: Option<f64>,
}

/// Splits so that rows of one group, with the same question, or with near-duplicate questions are
/// never torn apart.
///
/// The order in which such units are dealt follows from a hash of the seed and the unit, not from
/// the order of the rows. The test set is filled first, then validation; a unit that no longer fits
/// goes on to the next set.
///
/// # Errors
/// [`DataError::Option`] for fractions or thresholds out of range; [`DataError::Split`] when a set
/// that was asked for stays empty.
pub fn split(
    examples: Vec<Example>,
    options: &SplitOptions,
) -> Result<(Split, SplitReport), DataError> {
    check_fractions(options)?;
    check_threshold(options.near_threshold)?;
    let units = units(&examples, options.near_threshold);
    let rows = examples.len();
    let share = |fraction: f64| {
        let wanted = (rows as f64 * fraction).round() as usize;
        if fraction > 0.0 { wanted.max(1) } else { 0 }
    };
    let (mut test_room, mut valid_room) =
        (share(options.test_fraction), share(options.valid_fraction));

    let mut set_of = vec![Set::Train; rows];
    for unit in &units_in_order(&units, &examples, options.seed) {
        let set = if unit.len() <= test_room {
            test_room -= unit.len();
            Set::Test
        } else if unit.len() <= valid_room {
            valid_room -= unit.len();
            Set::Valid
        } else {
            Set::Train
        };
        for &row in unit.iter() {
            set_of[row] = set;
        }
    }
    let mut split = Split { train: Vec::new(), valid: Vec::new(), test: Vec::new() };
    for (example, set) in examples.into_iter().zip(set_of) {
        match set {
            Set::Train => split.train.push(example),
            Set::Valid => split.valid.push(example),
            Set::Test => split.test.push(example),
        }
    }
    let report = SplitReport {
        seed: options.seed,
        train: split.train.len(),
        valid: split.valid.len(),
        test: split.test.len(),
        units: units.len(),
        largest_unit: units.iter().map(Vec::len).max().unwrap_or(0),
        near_threshold: options.near_threshold,
    };
    let wanted = [
        ("test", options.test_fraction > 0.0, report.test),
        ("validation", options.valid_fraction > 0.0, report.valid),
        ("training", true, report.train),
    ];
    for (set, asked, got) in wanted {
        if asked && got == 0 {
            return Err(DataError::Split {
                set,
                found: format!(
                    "{rows} rows in {} units, the largest of {} rows",
                    report.units, report.largest_unit
                ),
                hint: "a unit holds rows of one group or with alike questions; give more rows, a \
                       larger fraction, a finer group column, or a higher near-duplicate threshold",
            });
        }
    }
    Ok((split, report))
}

#[derive(Clone, Copy)]
enum Set {
    Train,
    Valid,
    Test,
}

fn check_fractions(options: &SplitOptions) -> Result<(), DataError> {
    let (valid, test) = (options.valid_fraction, options.test_fraction);
    for (option, fraction) in [("valid_fraction", valid), ("test_fraction", test)] {
        if !(0.0..1.0).contains(&fraction) {
            let expected = "a share of at least 0 and below 1";
            return Err(DataError::Option { option, found: fraction.to_string(), expected });
        }
    }
    if valid + test >= 1.0 {
        return Err(DataError::Option {
            option: "valid_fraction + test_fraction",
            found: (valid + test).to_string(),
            expected: "less than 1, so that something is left to train on",
        });
    }
    Ok(())
}

/// Row numbers that must stay together, each list ascending.
fn units(examples: &[Example], near_threshold: Option<f64>) -> Vec<Vec<usize>> {
    let questions: Vec<String> = examples.iter().map(Example::question).collect();
    let mut sets = DisjointSets::new(examples.len());
    let mut first_of_group: HashMap<&str, usize> = HashMap::new();
    let mut first_of_question: HashMap<String, usize> = HashMap::new();
    for (i, example) in examples.iter().enumerate() {
        if let Some(group) = &example.group {
            sets.join(i, *first_of_group.entry(group).or_insert(i));
        }
        sets.join(i, *first_of_question.entry(normalise(&questions[i])).or_insert(i));
    }
    if let Some(threshold) = near_threshold {
        let shingles = Shingles::new(questions.iter().map(String::as_str));
        let mut index = Index::new(&shingles, threshold);
        for i in 0..examples.len() {
            for j in index.candidates(i, true) {
                if sets.root(i) != sets.root(j) && shingles.jaccard(i, j) >= threshold {
                    sets.join(i, j);
                }
            }
        }
    }
    let mut by_root: HashMap<usize, usize> = HashMap::new();
    let mut units: Vec<Vec<usize>> = Vec::new();
    for i in 0..examples.len() {
        let unit = *by_root.entry(sets.root(i)).or_insert(units.len());
        if unit == units.len() {
            units.push(Vec::new());
        }
        units[unit].push(i);
    }
    units
}

/// The units by a hash of the seed and their smallest content, which does not depend on where in
/// the file they stand.
fn units_in_order<'a>(
    units: &'a [Vec<usize>],
    examples: &[Example],
    seed: u64,
) -> Vec<&'a Vec<usize>> {
    let key = |unit: &Vec<usize>| -> (Vec<u8>, String) {
        let questions = unit.iter().map(|&i| normalise(&examples[i].question()));
        let name = questions.min().unwrap_or_default();
        let mut hasher = Sha256::new();
        hasher.update(seed.to_le_bytes());
        hasher.update(name.as_bytes());
        (hasher.finalize().to_vec(), name)
    };
    let mut order: Vec<_> = units.iter().map(|unit| (key(unit), unit)).collect();
    order.sort();
    order.into_iter().map(|(_, unit)| unit).collect()
}

/// Union-find with path halving; the smaller root wins, so roots do not depend on the order.
struct DisjointSets(Vec<usize>);

impl DisjointSets {
    fn new(n: usize) -> Self {
        Self((0..n).collect())
    }

    fn root(&mut self, mut i: usize) -> usize {
        while self.0[i] != i {
            self.0[i] = self.0[self.0[i]];
            i = self.0[i];
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::tests::example;
    use crate::leak::{LeakOptions, leak_check};
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn rows(n: usize) -> Vec<Example> {
        (1..=n).map(|i| example(i, &format!("question number {i} about q{i}"), "a")).collect()
    }

    #[test]
    fn fractions_are_met_and_the_seed_decides() {
        let options =
            SplitOptions { valid_fraction: 0.1, test_fraction: 0.2, ..Default::default() };
        let (first, report) = split(rows(100), &options).unwrap();
        assert_eq!((report.train, report.valid, report.test, report.units), (70, 10, 20, 100));
        assert_eq!(split(rows(100), &options).unwrap().0, first);
        let other = SplitOptions { seed: 7, ..options.clone() };
        assert_ne!(split(rows(100), &other).unwrap().0.test, first.test);

        let mut reversed = rows(100);
        reversed.reverse();
        let mut back = split(reversed, &options).unwrap().0.test;
        back.reverse();
        assert_eq!(back, first.test, "the order of the rows must not matter");
    }

    #[test]
    fn near_duplicates_stay_together() {
        let base = "the tap in the upstairs bathroom has been dripping since last tuesday and";
        let mut examples = rows(30);
        for i in 0..10 {
            examples.push(example(100 + i, &format!("{base} it gets worse v{i}"), "a"));
        }
        let options = SplitOptions { test_fraction: 0.3, ..Default::default() };
        let (parts, report) = split(examples.clone(), &options).unwrap();
        assert_eq!(report.largest_unit, 10);
        let leaks = leak_check(&parts.train, &parts.test, &LeakOptions::default()).unwrap();
        assert!(leaks.is_clean());
        let apart = SplitOptions { near_threshold: None, ..options };
        assert_eq!(split(examples, &apart).unwrap().1.largest_unit, 1);
    }

    #[test]
    fn impossible_wishes_are_refused() {
        fn check(examples: Vec<Example>, options: SplitOptions, expected: &str) {
            let error = split(examples, &options).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
        let with = |valid, test| SplitOptions {
            valid_fraction: valid,
            test_fraction: test,
            ..Default::default()
        };
        check(rows(9), with(0.5, 0.5), "less than 1");
        check(rows(9), with(-0.1, 0.5), "valid_fraction: found -0.1");
        check(rows(9), with(0.1, f64::NAN), "test_fraction: found NaN");
        check(Vec::new(), with(0.1, 0.1), "test set without rows");
        check(rows(1), with(0.0, 0.5), "training set without rows");
        let mut one_group = rows(9);
        for example in &mut one_group {
            example.group = Some("g".into());
        }
        check(one_group, with(0.1, 0.1), "the largest of 9 rows");
    }

    proptest! {
        #[test]
        fn groups_are_never_torn(groups in prop::collection::vec(0u8..12, 40..80), seed: u64) {
            let mut examples = rows(groups.len());
            for (example, group) in examples.iter_mut().zip(&groups) {
                example.group = Some(group.to_string());
            }
            let options = SplitOptions { valid_fraction: 0.25, test_fraction: 0.25, seed, near_threshold: None };
            if let Ok((parts, report)) = split(examples, &options) {
                prop_assert_eq!(report.train + report.valid + report.test, groups.len());
                let of = |set: &[Example]| -> HashSet<String> {
                    set.iter().filter_map(|e| e.group.clone()).collect()
                };
                let (train, valid, test) = (of(&parts.train), of(&parts.valid), of(&parts.test));
                prop_assert!(train.is_disjoint(&valid));
                prop_assert!(train.is_disjoint(&test));
                prop_assert!(valid.is_disjoint(&test));
            }
        }
    }
}
