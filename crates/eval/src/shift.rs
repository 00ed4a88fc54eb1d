//! Has the input changed since training? Answered without labels, from the texts alone.

use crate::stats::{StatsError, holm};
use indexmap::IndexMap;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Places of a text's vector: 3-grams of letters share them by hash.
const PLACES: usize = 512;
/// Bins of the lengths, each with as many training texts.
const BINS: usize = 10;
/// Most texts compared on either side; of more, as many are drawn.
const MOST: usize = 1000;
/// Letters of a text that are looked at.
const MOST_LETTERS: usize = 4000;

/// How much is permuted, and from which start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShiftOptions {
    /// Permutations of each test.
    pub permutations: usize,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Default for ShiftOptions {
    /// 999 permutations: p-values down to 0.001.
    fn default() -> ShiftOptions {
        ShiftOptions { permutations: 999, seed: 12_345 }
    }
}

/// One way in which inputs may have changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShiftTest {
    /// `wording`, `language` or `length`.
    pub name: String,
    /// How far apart: squared maximum mean discrepancy of the wording, population stability index of
    /// language and length (0: alike; above 0.25 is commonly called a large shift).
    pub distance: f64,
    /// Permutation p-value of "both are drawn from the same".
    pub p_value: f64,
    /// The same, adjusted for the three tests by Holm.
    pub p_holm: f64,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShiftReport {
    /// Texts of the training set that were compared.
    pub reference: usize,
    /// Texts of today that were compared.
    pub recent: usize,
    /// The three tests.
    pub tests: Vec<ShiftTest>,
    /// Words whose share of texts rose most, with the share then and now: at most ten.
    pub risen: Vec<(String, f64, f64)>,
    /// Share of texts in each language, then and now, by ISO 639-3 code; `und` where none was recognised.
    pub languages: IndexMap<String, (f64, f64)>,
}

impl ShiftReport {
    /// Whether any of the three is proven to have changed, with an error of at most `level` for all.
    pub fn is_shifted(&self, level: f64) -> bool {
        self.tests.iter().any(|test| test.p_holm <= level)
    }
}

/// Compares today's texts with those of the training set, by three permutation tests:
///
/// * wording: the squared maximum mean discrepancy (Gretton et al. 2012, Journal of Machine Learning
///   Research 13:723) with the linear kernel on normalised counts of letter 3-grams;
/// * language, as whatlang recognises it, and length in letters, in bins of a tenth of the training set
///   each: the population stability index Σ (q - p) ln(q / p), with half a text added to every bin.
///
/// Which texts are of today is permuted, so the p-values need no assumption about texts. They hold for one
/// look: whoever looks every night adds up false alarms, and should ask for a small level.
///
/// # Errors
/// [`StatsError::Empty`] with fewer than two texts on either side, or no permutations.
pub fn input_shift(
    reference: &[&str],
    recent: &[&str],
    options: &ShiftOptions,
) -> Result<ShiftReport, StatsError> {
    if reference.len() < 2 || recent.len() < 2 || options.permutations == 0 {
        return Err(StatsError::Empty);
    }
    let mut rng = Pcg64Mcg::seed_from_u64(options.seed);
    let (reference, recent) = (drawn(reference, &mut rng), drawn(recent, &mut rng));
    let texts: Vec<&str> = reference.iter().chain(&recent).copied().collect();
    let first = reference.len();
    let vectors: Vec<Vec<f32>> = texts.iter().map(|text| vector(text)).collect();
    let (language_names, languages) = languages(&texts);
    let lengths = length_bins(&texts, first);

    let mut order: Vec<usize> = (0..texts.len()).collect();
    let statistics = |order: &[usize]| {
        [
            discrepancy(&vectors, &order[first..]),
            stability(&languages, language_names.len(), order, first),
            stability(&lengths, BINS, order, first),
        ]
    };
    let seen = statistics(&order);
    let mut as_far = [0_usize; 3];
    for _ in 0..options.permutations {
        shuffle(&mut order, &mut rng);
        for (count, (drawn, seen)) in as_far.iter_mut().zip(statistics(&order).iter().zip(&seen)) {
            // Sums in another order differ by rounding; ties must count.
            *count += usize::from(*drawn >= seen - 1e-9 * seen.abs());
        }
    }
    let p_values = as_far.map(|count| (1 + count) as f64 / (1 + options.permutations) as f64);
    let adjusted = holm(&p_values);
    let tests = ["wording", "language", "length"].iter().zip(seen).zip(p_values).zip(adjusted).map(
        |(((name, distance), p_value), p_holm)| ShiftTest {
            name: (*name).to_owned(),
            distance,
            p_value,
            p_holm,
        },
    );
    let tests = tests.collect();
    let share = |language: usize, range: &[usize]| {
        range.iter().filter(|&&l| l == language).count() as f64 / range.len() as f64
    };
    let languages = language_names.iter().enumerate().map(|(i, name)| {
        (name.clone(), (share(i, &languages[..first]), share(i, &languages[first..])))
    });
    Ok(ShiftReport {
        reference: reference.len(),
        recent: recent.len(),
        tests,
        risen: risen(&reference, &recent),
        languages: languages.collect(),
    })
}

/// At most [`MOST`] of the texts, drawn without replacement, in their order.
fn drawn<'a>(texts: &[&'a str], rng: &mut Pcg64Mcg) -> Vec<&'a str> {
    let mut places: Vec<usize> = (0..texts.len()).collect();
    if places.len() > MOST {
        shuffle(&mut places, rng);
        places.truncate(MOST);
        places.sort_unstable();
    }
    places.into_iter().map(|place| texts[place]).collect()
}

fn shuffle(places: &mut [usize], rng: &mut Pcg64Mcg) {
    for i in (1..places.len()).rev() {
        places.swap(i, rng.random_range(0..=i));
    }
}

/// Counts of letter 3-grams by hash (FNV-1a), scaled to length 1. Case and the kind of white space do not
/// matter.
fn vector(text: &str) -> Vec<f32> {
    let letters: Vec<char> = text
        .chars()
        .take(MOST_LETTERS)
        .flat_map(char::to_lowercase)
        .map(|c| if c.is_whitespace() { ' ' } else { c })
        .collect();
    let mut counts = vec![0.0_f32; PLACES];
    for gram in letters.windows(3.min(letters.len()).max(1)) {
        let hash = gram.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &c| {
            (hash ^ u64::from(u32::from(c))).wrapping_mul(0x0100_0000_01b3)
        });
        counts[(hash >> 32) as usize % PLACES] += 1.0;
    }
    let length = counts.iter().map(|c| c * c).sum::<f32>().sqrt();
    if length > 0.0 {
        counts.iter_mut().for_each(|c| *c /= length);
    }
    counts
}

/// Squared distance between the mean vectors of the texts at `recent` and of all others.
fn discrepancy(vectors: &[Vec<f32>], recent: &[usize]) -> f64 {
    let mut all = vec![0.0_f32; PLACES];
    let mut now = vec![0.0_f32; PLACES];
    let mut is_recent = vec![false; vectors.len()];
    recent.iter().for_each(|&place| is_recent[place] = true);
    for (vector, is_recent) in vectors.iter().zip(&is_recent) {
        let sum = if *is_recent { &mut now } else { &mut all };
        sum.iter_mut().zip(vector).for_each(|(sum, v)| *sum += v);
    }
    let (n, m) = ((vectors.len() - recent.len()) as f32, recent.len() as f32);
    let squared = |(a, b): (&f32, &f32)| f64::from(a / n - b / m).powi(2);
    all.iter().zip(&now).map(squared).sum()
}

/// Population stability index of classes, between the first `first` places of the order and the rest.
fn stability(class: &[usize], classes: usize, order: &[usize], first: usize) -> f64 {
    let counts = |places: &[usize]| {
        let mut counts = vec![0.5; classes];
        places.iter().for_each(|&place| counts[class[place]] += 1.0);
        let all: f64 = counts.iter().sum();
        counts.into_iter().map(move |c| c / all).collect::<Vec<f64>>()
    };
    let (then, now) = (counts(&order[..first]), counts(&order[first..]));
    then.iter().zip(&now).map(|(p, q)| (q - p) * (q / p).ln()).sum()
}

/// Names of the languages, and each text's by number.
fn languages(texts: &[&str]) -> (Vec<String>, Vec<usize>) {
    let mut names: IndexMap<String, usize> = IndexMap::new();
    let mut number = |text: &&str| {
        let cut: String = text.chars().take(MOST_LETTERS).collect();
        let found = whatlang::detect(&cut).filter(whatlang::Info::is_reliable);
        let name = found.map_or("und", |info| info.lang().code()).to_owned();
        let next = names.len();
        *names.entry(name).or_insert(next)
    };
    let numbers = texts.iter().map(&mut number).collect();
    (names.into_keys().collect(), numbers)
}

/// Each text's bin by its number of letters; the bins are tenths of the first `first` texts.
fn length_bins(texts: &[&str], first: usize) -> Vec<usize> {
    let lengths: Vec<usize> = texts.iter().map(|text| text.chars().count()).collect();
    let mut sorted = lengths[..first].to_vec();
    sorted.sort_unstable();
    let ends: Vec<usize> = (1..BINS).map(|i| sorted[i * first / BINS]).collect();
    lengths.iter().map(|&length| ends.iter().filter(|&&end| length >= end).count()).collect()
}

/// Words whose share of texts rose most.
fn risen(reference: &[&str], recent: &[&str]) -> Vec<(String, f64, f64)> {
    let shares = |texts: &[&str]| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for text in texts {
            let cut: String = text.chars().take(MOST_LETTERS).collect();
            let mut words: Vec<String> = cut
                .split(|c: char| !c.is_alphanumeric())
                .filter(|word| word.chars().count() > 1 && word.len() <= 64)
                .map(str::to_lowercase)
                .collect();
            words.sort_unstable();
            words.dedup();
            words.into_iter().for_each(|word| *counts.entry(word).or_default() += 1);
        }
        counts
    };
    let (then, now) = (shares(reference), shares(recent));
    let mut found: Vec<(String, f64, f64)> = now
        .into_iter()
        .map(|(word, count)| {
            let then = then.get(&word).map_or(0.0, |&c| c as f64 / reference.len() as f64);
            (word, then, count as f64 / recent.len() as f64)
        })
        .filter(|(_, then, now)| now > then)
        .collect();
    found.sort_by(|a, b| (b.2 - b.1).total_cmp(&(a.2 - a.1)).then_with(|| a.0.cmp(&b.0)));
    found.truncate(10);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPICS: [&str; 6] = [
        "my card was not accepted at the shop, what can I do about it",
        "please tell me why my transfer has not arrived at the bank yet",
        "how do I change the pin of my new card when I am abroad",
        "I would like a refund for the parcel that I never received",
        "the app does not let me log in since the last update of it",
        "where can I see how much I have spent in the last month",
    ];

    fn texts(rng: &mut Pcg64Mcg, n: usize) -> Vec<String> {
        let one = |rng: &mut Pcg64Mcg| {
            let (a, b) = (rng.random_range(0..6), rng.random_range(0..6));
            format!("{} {}", TOPICS[a], if b < 3 { "" } else { TOPICS[b] })
        };
        (0..n).map(|_| one(rng)).collect()
    }

    fn shift(reference: &[String], recent: &[String]) -> ShiftReport {
        let options = ShiftOptions { permutations: 199, ..ShiftOptions::default() };
        let reference: Vec<&str> = reference.iter().map(String::as_str).collect();
        let recent: Vec<&str> = recent.iter().map(String::as_str).collect();
        input_shift(&reference, &recent, &options).unwrap()
    }

    #[test]
    fn the_same_kind_of_text_is_no_shift_and_another_is_named() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let reference = texts(&mut rng, 120);
        let same = shift(&reference, &texts(&mut rng, 60));
        assert!(!same.is_shifted(0.01), "{same:?}");
        let mut french = texts(&mut rng, 60);
        for text in french.iter_mut().take(30) {
            *text = "bonjour, ma carte ne fonctionne plus depuis hier et je voudrais la remplacer"
                .into();
        }
        let found = shift(&reference, &french);
        assert!(found.is_shifted(0.02), "{found:?}");
        assert!(found.languages["fra"].1 > 0.4 && found.languages["fra"].0 == 0.0);
        assert!(found.risen.iter().any(|(word, ..)| word == "carte"), "{:?}", found.risen);
        let mut short = texts(&mut rng, 60);
        short.iter_mut().for_each(|text| text.truncate(12));
        let found = shift(&reference, &short);
        assert!(found.tests[2].p_holm < 0.02 && found.tests[2].distance > 0.25, "{found:?}");
    }

    #[test]
    fn p_values_are_even_where_nothing_changed() {
        let mut rng = Pcg64Mcg::seed_from_u64(2);
        let options = ShiftOptions { permutations: 39, seed: 3 };
        let runs = 80;
        let shifted = (0..runs).filter(|_| {
            let (reference, recent) = (texts(&mut rng, 30), texts(&mut rng, 20));
            let reference: Vec<&str> = reference.iter().map(String::as_str).collect();
            let recent: Vec<&str> = recent.iter().map(String::as_str).collect();
            input_shift(&reference, &recent, &options).unwrap().is_shifted(0.1)
        });
        let shifted = shifted.count();
        assert!(shifted <= 14, "{shifted} of {runs} at a level of 10 %");
    }

    #[test]
    fn odd_texts_are_texts() {
        let options = ShiftOptions { permutations: 9, seed: 0 };
        let odd = ["", " ", "a", "\u{0}\u{301}\u{10FFFF}", "日本語"];
        assert!(input_shift(&odd, &odd, &options).is_ok());
        assert_eq!(input_shift(&odd[..1], &odd, &options), Err(StatsError::Empty));
    }
}
