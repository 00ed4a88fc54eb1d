//! Near-duplicates: texts whose sets of word 3-grams overlap by a threshold or more (Jaccard).
//!
//! Candidates come from MinHash signatures (Broder, "On the resemblance and containment of
//! documents", 1997) put into bands (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets",
//! section 3.4); each candidate is then checked exactly, so there are no false alarms, and the
//! bands are chosen so that less than one pair in a thousand at the threshold is missed.

use std::collections::{HashMap, HashSet};

use crate::normalise::normalise;

/// Length of a signature.
const PERMUTATIONS: usize = 128;
/// Words in a shingle.
const WORDS: usize = 3;
/// Chance that a pair exactly at the threshold becomes a candidate.
const RECALL: f64 = 0.999;
/// Shingles in more than half of all texts are boilerplate (a prompt template) and would make all
/// of them look alike; with fewer texts than this nobody can tell.
const BOILERPLATE_FROM: usize = 20;
/// A text is compared with at most this many others per band. Real duplicates are found long
/// before; the bound keeps a set of half-alike texts from taking quadratic time.
const MOST_PER_BAND: usize = 256;

/// The shingles of many texts, each a sorted set of hashes.
pub(crate) struct Shingles(Vec<Vec<u64>>);

impl Shingles {
    /// Cuts the normalised form of each text into word 3-grams; a shorter text is one shingle.
    pub(crate) fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut sets: Vec<Vec<u64>> = texts.into_iter().map(shingles).collect();
        if sets.len() >= BOILERPLATE_FROM {
            let mut frequency: HashMap<u64, usize> = HashMap::new();
            for &shingle in sets.iter().flatten() {
                *frequency.entry(shingle).or_default() += 1;
            }
            let half = sets.len() / 2;
            for set in &mut sets {
                set.retain(|shingle| frequency[shingle] <= half);
            }
        }
        Self(sets)
    }

    /// Shared shingles over all shingles of two texts, by index; 0 when one has none.
    pub(crate) fn jaccard(&self, a: usize, b: usize) -> f64 {
        let (a, b) = (&self.0[a], &self.0[b]);
        let (mut i, mut j, mut shared) = (0, 0, 0usize);
        while i < a.len() && j < b.len() {
            match a[i].cmp(&b[j]) {
                std::cmp::Ordering::Less => i += 1,
                std::cmp::Ordering::Greater => j += 1,
                std::cmp::Ordering::Equal => (shared, i, j) = (shared + 1, i + 1, j + 1),
            }
        }
        let all = a.len() + b.len() - shared;
        if all == 0 { 0.0 } else { shared as f64 / all as f64 }
    }
}

/// Texts by the bands of their signatures.
pub(crate) struct Index<'a> {
    shingles: &'a Shingles,
    /// Signature entries per band.
    rows: usize,
    buckets: HashMap<(usize, u64), Vec<usize>>,
}

impl<'a> Index<'a> {
    /// An empty index for pairs at `threshold` (0 < threshold <= 1) or above.
    pub(crate) fn new(shingles: &'a Shingles, threshold: f64) -> Self {
        Self { shingles, rows: rows_per_band(threshold), buckets: HashMap::new() }
    }

    /// Candidates for text `i` among those added, in the order of their addition, then adds `i`
    /// when `add`.
    pub(crate) fn candidates(&mut self, i: usize, add: bool) -> Vec<usize> {
        let set = &self.shingles.0[i];
        if set.is_empty() {
            return Vec::new();
        }
        let signature = signature(set);
        let mut found = HashSet::new();
        for (band, part) in signature.chunks_exact(self.rows).enumerate() {
            let key = (band, part.iter().fold(0, |hash, &v| mix(hash ^ v)));
            if add {
                let bucket = self.buckets.entry(key).or_default();
                found.extend(bucket.iter().rev().take(MOST_PER_BAND));
                bucket.push(i);
            } else if let Some(bucket) = self.buckets.get(&key) {
                found.extend(bucket.iter().rev().take(MOST_PER_BAND));
            }
        }
        let mut found: Vec<usize> = found.into_iter().collect();
        found.sort_unstable();
        found
    }
}

/// The longest bands that still find a pair at the threshold with probability [`RECALL`]:
/// 1 - (1 - t^r)^(128/r).
fn rows_per_band(threshold: f64) -> usize {
    let recall = |rows: usize| {
        let bands = (PERMUTATIONS / rows) as i32;
        1.0 - (1.0 - threshold.powi(rows as i32)).powi(bands)
    };
    (1..=PERMUTATIONS).rev().find(|&rows| recall(rows) >= RECALL).unwrap_or(1)
}

fn shingles(text: &str) -> Vec<u64> {
    let normal = normalise(text);
    let words: Vec<&str> = normal.split(' ').filter(|w| !w.is_empty()).collect();
    let mut set: Vec<u64> = if words.is_empty() {
        Vec::new()
    } else {
        words.windows(WORDS.min(words.len())).map(hash_words).collect()
    };
    set.sort_unstable();
    set.dedup();
    set
}

/// FNV-1a over the words with a separator, then mixed: stable across platforms and versions.
fn hash_words(words: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for word in words {
        for byte in word.bytes().chain([b' ']) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    mix(hash)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The smallest value of the set under each of 128 fixed hash functions.
fn signature(set: &[u64]) -> [u64; PERMUTATIONS] {
    let mut smallest = [u64::MAX; PERMUTATIONS];
    for &shingle in set {
        let mut seed = 0u64;
        for slot in &mut smallest {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *slot = (*slot).min(mix(shingle ^ mix(seed)));
        }
    }
    smallest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bands_keep_their_promise() {
        assert_eq!(rows_per_band(0.8), 5);
        assert_eq!(rows_per_band(1.0), PERMUTATIONS);
        assert_eq!(rows_per_band(0.01), 1);
    }

    #[test]
    fn signatures_agree_as_often_as_sets_overlap() {
        let a: Vec<u64> = (0..300).map(mix).collect();
        let b: Vec<u64> = (100..400).map(mix).collect();
        let agree = signature(&a).iter().zip(signature(&b)).filter(|(x, y)| **x == *y).count();
        // Jaccard 0.5; three standard deviations of a share over 128 draws are 0.133.
        let share = agree as f64 / PERMUTATIONS as f64;
        assert!((share - 0.5).abs() < 0.133, "{share}");
    }

    #[test]
    fn jaccard_of_known_sets() {
        let s = Shingles::new(["a b c d", "x a b c", "a b", "a b", "", "A, b... C d!"]);
        assert_eq!(s.jaccard(0, 1), 1.0 / 3.0);
        assert_eq!(s.jaccard(2, 3), 1.0);
        assert_eq!(s.jaccard(4, 4), 0.0);
        assert_eq!(s.jaccard(0, 5), 1.0);
    }

    #[test]
    fn boilerplate_does_not_count() {
        let text = |i: u64| {
            let own: Vec<String> = (0..4).map(|k| format!("w{}", mix(i * 10 + k))).collect();
            format!("please sort the following message into one of the classes {}", own.join(" "))
        };
        let texts: Vec<String> = (0..20).map(text).collect();
        let s = Shingles::new(texts.iter().map(String::as_str));
        assert!(s.jaccard(0, 1) == 0.0, "{}", s.jaccard(0, 1));
        assert_eq!(s.jaccard(0, 0), 1.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Every pair at or above the threshold is found: compared with trying all pairs.
        #[test]
        fn finds_what_brute_force_finds(
            texts in prop::collection::vec("([ab] ){3,12}", 2..18), threshold in 0.5f64..=1.0
        ) {
            let shingles = Shingles::new(texts.iter().map(String::as_str));
            let mut index = Index::new(&shingles, threshold);
            let mut found = Vec::new();
            for i in 0..texts.len() {
                let candidates = index.candidates(i, true);
                found.extend(candidates.into_iter().filter(|&j| shingles.jaccard(i, j) >= threshold).map(|j| (j, i)));
            }
            let mut wanted = Vec::new();
            for i in 0..texts.len() {
                wanted.extend((0..i).filter(|&j| shingles.jaccard(i, j) >= threshold).map(|j| (j, i)));
            }
            prop_assert_eq!(found, wanted);
        }
    }
}
