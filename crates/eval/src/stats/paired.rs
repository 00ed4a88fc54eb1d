//! The difference of two candidates on the same examples.

use super::clusters::{ClusterError, ClusterSums, cluster_error};
use super::interval::{cluster_interval, t_quantile, thought_deviation, z};
use super::{CONFIDENCE, Interval, StatsError, mean, variance};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, Discrete, DiscreteCDF};

/// How much is resampled, from which start, and how sure the deciding interval must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedOptions {
    /// Sign flips of the permutation test.
    pub resamples: usize,
    /// Start of the random numbers; the same seed gives the same result.
    pub seed: u64,
    /// Confidence of [`PairedDifference::interval`], in (0, 1): [`super::Protection::confidence`] when
    /// many candidates or looks share the test set.
    pub confidence: f64,
}

impl Default for PairedOptions {
    /// 10,000 resamples, seed 12345, 95 %.
    fn default() -> PairedOptions {
        PairedOptions { resamples: 10_000, seed: 12_345, confidence: CONFIDENCE }
    }
}

/// How much better `b` is than `a`.
#[derive(Clone, Debug, PartialEq)]
pub struct PairedDifference {
    /// Examples.
    pub n: usize,
    /// Mean of b minus a, between -1 and 1.
    pub difference: f64,
    /// 95 % interval of the difference, by [`paired_interval`].
    pub ci95: Interval,
    /// The same at the confidence of the options: the one that decides. It is `ci95` where a single
    /// candidate is judged at a single look.
    pub interval: Interval,
    /// Confidence of `interval`.
    pub confidence: f64,
    /// Two-sided p-value of "there is no difference", by `test`.
    pub p_value: f64,
    /// The test behind `p_value`.
    pub test: PairedTest,
    /// McNemar's mid-p value beside the exact one, where `test` is McNemar's.
    pub mid_p: Option<f64>,
    /// Two-sided p-value of approximate randomisation ([`sign_flip`], by cluster where there are any), as a
    /// check on `p_value`; the same where `test` is a sign flip.
    pub randomisation_p: f64,
    /// Sample standard deviation of the differences.
    pub sd: f64,
    /// Share of the examples that only one of the two has right, where all scores are 0 or 1.
    pub discordance: Option<f64>,
    /// What clusters do to the error, when examples share sources.
    pub clusters: Option<ClusterError>,
}

/// The test of "there is no difference".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum PairedTest {
    /// Exact McNemar, for scores of 0 and 1.
    McnemarExact {
        /// Examples that only `b` has right.
        only_b: usize,
        /// Examples that only `a` has right.
        only_a: usize,
    },
    /// Random sign flips of the differences, for graded scores.
    SignFlip {
        /// Flips drawn.
        resamples: usize,
    },
    /// Random sign flips of whole clusters, where examples share sources.
    ClusterSignFlip {
        /// Flips drawn.
        resamples: usize,
        /// Clusters flipped.
        clusters: usize,
    },
}

/// Compares scores in [0, 1] of the same examples in the same order, `b` minus `a`. When all
/// scores are 0 or 1 the p-value is McNemar's, else that of the sign-flip test.
///
/// # Errors
/// [`StatsError::Unpaired`] for different lengths, [`StatsError::Empty`] for none,
/// [`StatsError::Range`] for a score outside [0, 1], no resamples or an impossible confidence.
pub fn paired_difference(
    a: &[f64],
    b: &[f64],
    options: &PairedOptions,
) -> Result<PairedDifference, StatsError> {
    paired_difference_in(a, b, &[], options)
}

/// 95 % interval of the mean of shares, in clusters as [`paired_difference_in`] takes them: that of their
/// difference to nothing at all.
///
/// # Errors
/// As [`paired_difference_in`].
pub(crate) fn shares_interval(shares: &[f64], clusters: &[usize]) -> Result<Interval, StatsError> {
    let nothing = vec![0.0; shares.len()];
    let found = paired_difference_in(&nothing, shares, clusters, &PairedOptions::default())?;
    Ok(found.ci95.clipped(0.0, 1.0))
}

/// [`paired_difference`] of examples that belong to the clusters of these numbers
/// ([`super::clusters_of`]); no numbers: all are independent. In clusters the p-value is that of flipping
/// whole clusters, since McNemar's test takes each example for a witness of its own.
///
/// # Errors
/// As [`paired_difference`], and [`StatsError::Clusters`] for a single cluster.
pub fn paired_difference_in(
    a: &[f64],
    b: &[f64],
    clusters: &[usize],
    options: &PairedOptions,
) -> Result<PairedDifference, StatsError> {
    check(a, b, options)?;
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let resamples = options.resamples;
    let sums = match clusters {
        [] => None,
        _ => Some(ClusterSums::new(&differences, clusters)?.0),
    };
    let randomisation_p = match &sums {
        None => sign_flip(&differences, options),
        Some(sums) => sign_flip(&sums.iter().map(|s| s.1).collect::<Vec<_>>(), options),
    };
    let (p_value, test, mid_p) = match &sums {
        Some(sums) => {
            let clusters = sums.len();
            (randomisation_p, PairedTest::ClusterSignFlip { resamples, clusters }, None)
        }
        None if is_binary(a, b) => {
            let only_b = differences.iter().filter(|&&d| d > 0.0).count();
            let only_a = differences.iter().filter(|&&d| d < 0.0).count();
            let exact = mcnemar_exact(only_b, only_a);
            let test = PairedTest::McnemarExact { only_b, only_a };
            (exact, test, Some(mcnemar_mid_p(only_b, only_a)))
        }
        None => (randomisation_p, PairedTest::SignFlip { resamples }, None),
    };
    let interval = |confidence| paired_interval(a, b, clusters, confidence);
    Ok(PairedDifference {
        n: differences.len(),
        difference: mean(&differences),
        ci95: interval(CONFIDENCE)?,
        interval: interval(options.confidence)?,
        confidence: options.confidence,
        p_value,
        test,
        mid_p,
        randomisation_p,
        sd: variance(&differences).sqrt(),
        discordance: is_binary(a, b).then(|| {
            differences.iter().filter(|&&d| d != 0.0).count() as f64 / differences.len() as f64
        }),
        clusters: sums.map(|_| cluster_error(&differences, clusters)).transpose()?,
    })
}

/// The two-sided interval of the mean of b minus a. Which one it is follows from the scores alone, and
/// each was chosen because it holds its confidence in `tests/simulated_worlds.rs`:
///
/// * zeros and ones: [`tango`]'s score interval. The percentile bootstrap and the textbook interval are
///   too narrow exactly where firms measure: shares near 1 and some hundred examples.
/// * graded scores: Student's t of the differences; with fewer than ten differences other than 0, widened
///   by two thought ones.
/// * zeros and ones in clusters: Tango's at the number of independent examples that would say as much.
/// * graded scores in clusters: [`cluster_interval`].
///
/// # Errors
/// [`StatsError::Unpaired`], [`StatsError::Empty`], [`StatsError::Range`], [`StatsError::Clusters`].
pub fn paired_interval(
    a: &[f64],
    b: &[f64],
    clusters: &[usize],
    confidence: f64,
) -> Result<Interval, StatsError> {
    check(a, b, &PairedOptions { confidence, ..PairedOptions::default() })?;
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let n = differences.len() as f64;
    let tail = 0.5 + confidence / 2.0;
    let only_b = differences.iter().filter(|&&d| d > 0.0).count() as f64;
    let only_a = differences.iter().filter(|&&d| d < 0.0).count() as f64;
    let interval = match (is_binary(a, b), clusters) {
        (true, []) => tango_at(only_b, only_a, n, z(tail)),
        (true, _) => {
            let error = cluster_error(&differences, clusters)?;
            let quantile = t_quantile(tail, error.effective_clusters - 1.0);
            let effect = error.design_effect;
            tango_at(only_b / effect, only_a / effect, n / effect, quantile)
        }
        (false, []) => {
            let thought = thought_deviation(&differences, 1.0) / n;
            let half = (variance(&differences) / n + 2.0 * thought * thought).sqrt()
                * t_quantile(tail, n - 1.0);
            let mean = mean(&differences);
            Interval { lo: mean - half, hi: mean + half }
        }
        (false, _) => cluster_interval(&differences, clusters, confidence)?,
    };
    Ok(interval.clipped(-1.0, 1.0))
}

/// Tango's score interval for the difference of two shares measured on the same n examples (T. Tango 1998,
/// Statistics in Medicine 17:891): all differences that the score test does not refuse. `only_b` examples
/// are right for b alone, `only_a` for a alone. It has an answer for every outcome, no discordant example
/// included, and at a difference of 0 it is McNemar's test.
///
/// # Errors
/// [`StatsError::Empty`] for n = 0; [`StatsError::Range`] for more discordant examples than n or an
/// impossible confidence.
pub fn tango(
    only_b: usize,
    only_a: usize,
    n: usize,
    confidence: f64,
) -> Result<Interval, StatsError> {
    if n == 0 {
        return Err(StatsError::Empty);
    }
    if only_a + only_b > n {
        let found = (only_a + only_b) as f64;
        return Err(StatsError::Range {
            what: "discordant examples",
            found,
            expected: "at most n",
        });
    }
    check_confidence(confidence)?;
    Ok(tango_at(only_b as f64, only_a as f64, n as f64, z(0.5 + confidence / 2.0)))
}

/// [`tango`] with counts that need not be whole and any quantile.
fn tango_at(only_b: f64, only_a: f64, n: f64, quantile: f64) -> Interval {
    // How far the outcome lies above a true difference d, in standard errors under d.
    let score = |d: f64| {
        let variance = n * variance_under(d, only_b, only_a, n);
        let above = only_b - only_a - n * d;
        match variance > 0.0 {
            true => above / variance.sqrt(),
            false if above.abs() < 1e-12 * n => 0.0,
            false => above.signum() * f64::INFINITY,
        }
    };
    let seen = (only_b - only_a) / n;
    // The score falls as d rises, so each end is found by halving.
    let end = |mut outside: f64| {
        let mut inside = seen;
        for _ in 0..60 {
            let middle = (inside + outside) / 2.0;
            if score(middle).abs() > quantile { outside = middle } else { inside = middle }
        }
        // The outer of the two, unless nothing was refused.
        if score(outside).abs() > quantile { inside } else { outside }
    };
    Interval { lo: end(-1.0), hi: end(1.0) }
}

/// Exact two-sided McNemar test (doi 10.1007/BF02295996): under "no difference" each of the
/// examples that only one candidate has right falls to either side with probability 1/2. 1 when
/// there are none.
pub fn mcnemar_exact(only_b: usize, only_a: usize) -> f64 {
    let Some((binomial, smaller)) = discordant(only_b, only_a) else { return 1.0 };
    (2.0 * binomial.cdf(smaller)).min(1.0)
}

/// McNemar with the mid-p correction: half the probability of the outcome itself is left out,
/// which makes the exact test less timid (doi 10.1186/1471-2288-13-91).
pub fn mcnemar_mid_p(only_b: usize, only_a: usize) -> f64 {
    let Some((binomial, smaller)) = discordant(only_b, only_a) else { return 1.0 };
    (2.0 * binomial.cdf(smaller) - binomial.pmf(smaller)).min(1.0)
}

/// Two-sided permutation test of paired differences: under "no difference" each has either sign
/// with probability 1/2. (1 + flips with a sum at least as far from 0) / (1 + flips): a random
/// permutation test must count the outcome itself (doi 10.2202/1544-6115.1585).
///
/// 1 when no difference is other than 0, or there are no resamples.
pub fn sign_flip(differences: &[f64], options: &PairedOptions) -> f64 {
    let moved: Vec<f64> = differences.iter().copied().filter(|&d| d != 0.0).collect();
    // Sums in another order differ by rounding; outcomes that tie with the one seen must count.
    let tolerance = 1e-9 * moved.iter().map(|d| d.abs()).sum::<f64>();
    let seen = moved.iter().sum::<f64>().abs() - tolerance;
    let mut rng = Pcg64Mcg::seed_from_u64(options.seed);
    let mut as_far = 0_usize;
    for _ in 0..options.resamples {
        let mut sum = 0.0;
        for chunk in moved.chunks(64) {
            let mut signs = rng.next_u64();
            for &d in chunk {
                sum += if signs & 1 == 1 { d } else { -d };
                signs >>= 1;
            }
        }
        as_far += usize::from(sum.abs() >= seen);
    }
    (1 + as_far) as f64 / (1 + options.resamples) as f64
}

/// Percentile bootstrap (Efron 1979, doi 10.1214/aos/1176344552) of the mean difference: examples, or
/// whole clusters where there are any, are drawn with replacement, both candidates' answers together.
///
/// It is the interval that other tools print, given for comparison. It is too narrow for few examples and
/// shares near 1, and a point where all differences are equal; what decides is [`paired_interval`].
///
/// # Errors
/// [`StatsError::Empty`], [`StatsError::Range`] for no resamples, [`StatsError::Clusters`].
pub fn bootstrap(
    differences: &[f64],
    clusters: &[usize],
    options: &PairedOptions,
) -> Result<Interval, StatsError> {
    check(differences, differences, options).or_else(|error| match error {
        // Differences may be negative.
        StatsError::Range { what: "a score", .. } => Ok(()),
        other => Err(other),
    })?;
    let units: Vec<(f64, f64)> = match clusters {
        [] => differences.iter().map(|&d| (1.0, d)).collect(),
        _ => ClusterSums::new(differences, clusters)?.0,
    };
    let mut rng = Pcg64Mcg::seed_from_u64(options.seed);
    let mut means: Vec<f64> =
        (0..options.resamples).map(|_| resampled_mean(&units, &mut rng)).collect();
    // Nearest ranks, rounded outwards.
    let tail = (1.0 - options.confidence) / 2.0;
    let lo = (tail * options.resamples as f64).floor() as usize;
    let hi = options.resamples - 1 - lo;
    means.sort_unstable_by(f64::total_cmp);
    Ok(Interval { lo: means[lo.min(hi)], hi: means[hi.max(lo)] })
}

/// Mean of as many units as there are, drawn with replacement. Each 64-bit number gives two places by
/// multiplication and shift; their probabilities differ by at most units/2^32, relatively.
fn resampled_mean(units: &[(f64, f64)], rng: &mut Pcg64Mcg) -> f64 {
    let count = units.len() as u64;
    let (mut size, mut sum) = (0.0, 0.0);
    let mut take = |bits: u64| {
        let unit = units[(((bits & 0xFFFF_FFFF) * count) >> 32) as usize];
        size += unit.0;
        sum += unit.1;
    };
    for _ in 0..count / 2 {
        let bits = rng.next_u64();
        take(bits);
        take(bits >> 32);
    }
    if count % 2 == 1 {
        take(rng.next_u64());
    }
    sum / size
}

/// Variance of one example's difference when the true mean is d and the share that only a has right is the
/// most likely one under d, given the outcome (Tango 1998).
pub(super) fn variance_under(d: f64, only_b: f64, only_a: f64, n: f64) -> f64 {
    let linear = -only_b - only_a + (2.0 * n - only_b + only_a) * d;
    let constant = -only_a * d * (1.0 - d);
    let root = (linear * linear - 8.0 * n * constant).max(0.0).sqrt();
    2.0 * (root - linear) / (4.0 * n) + d * (1.0 - d)
}

fn is_binary(a: &[f64], b: &[f64]) -> bool {
    a.iter().chain(b).all(|&s| s == 0.0 || s == 1.0)
}

fn check(a: &[f64], b: &[f64], options: &PairedOptions) -> Result<(), StatsError> {
    if a.len() != b.len() {
        return Err(StatsError::Unpaired { a: a.len(), b: b.len() });
    }
    if a.is_empty() {
        return Err(StatsError::Empty);
    }
    if options.resamples == 0 {
        return Err(StatsError::Range { what: "resamples", found: 0.0, expected: "at least 1" });
    }
    check_confidence(options.confidence)?;
    if let Some(&found) = a.iter().chain(b).find(|s| !(0.0..=1.0).contains(*s)) {
        return Err(StatsError::Range { what: "a score", found, expected: "between 0 and 1" });
    }
    Ok(())
}

fn check_confidence(confidence: f64) -> Result<(), StatsError> {
    if confidence > 0.0 && confidence < 1.0 {
        return Ok(());
    }
    let expected = "between 0 and 1";
    Err(StatsError::Range { what: "confidence", found: confidence, expected })
}

/// The distribution of one side's share of the discordant examples, and the smaller side; None
/// when there are none.
fn discordant(only_b: usize, only_a: usize) -> Option<(Binomial, u64)> {
    let n = (only_a + only_b) as u64;
    let binomial = Binomial::new(0.5, n).ok().filter(|_| n > 0)?;
    Some((binomial, only_a.min(only_b) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;
    use serde_json::Value;
    use std::path::PathBuf;

    #[test]
    fn mcnemar_matches_published_values() {
        for (only_b, only_a, expected) in [
            (209, 152, 3.15e-3),
            (64, 293, 3.93e-36),
            (88, 260, 7.47e-21),
            (43, 499, 1.66e-99),
            (79, 306, 1.24e-32),
            (76, 360, 2.89e-45),
            (4, 14, 0.030884),
            (0, 6, 0.03125),
            (0, 5, 0.0625),
            (3, 3, 1.0),
            (0, 0, 1.0),
        ] {
            let found = mcnemar_exact(only_b, only_a);
            assert!((found / expected - 1.0).abs() < 3e-3, "({only_b}, {only_a}): {found}");
            assert_eq!(found, mcnemar_exact(only_a, only_b));
        }
        assert!((mcnemar_mid_p(4, 14) - 0.019211).abs() < 1e-6);
        assert_eq!(mcnemar_mid_p(0, 0), 1.0);
    }

    /// Real answers of four models to 1,319 questions, with published correctness.
    #[test]
    fn six_pairs_of_real_models() {
        let Some(scores) = gsm8k_scores() else { return };
        for (a, b, only_a, only_b, z, p) in [
            (0, 1, 64, 293, -12.85, 3.93e-36),
            (0, 2, 88, 260, -9.53, 7.47e-21),
            (0, 3, 43, 499, -23.25, 1.66e-99),
            (1, 2, 209, 152, 3.01, 3.15e-3),
            (1, 3, 79, 306, -12.20, 1.24e-32),
            (2, 3, 76, 360, -14.66, 2.89e-45),
        ] {
            let found =
                paired_difference(&scores[a], &scores[b], &PairedOptions::default()).unwrap();
            assert_eq!(found.test, PairedTest::McnemarExact { only_b, only_a });
            assert!((found.p_value / p - 1.0).abs() < 3e-3, "{found:?}");
            let paired_z = -found.difference / (found.sd / (found.n as f64).sqrt());
            assert!((paired_z - z).abs() < 0.01, "{paired_z}, published {z}");
            // The bootstrap agrees with the normal interval at this size.
            let half = 1.96 * found.sd / (found.n as f64).sqrt();
            assert!((found.ci95.lo - (found.difference - half)).abs() < 0.05 * half, "{found:?}");
            assert!((found.ci95.hi - (found.difference + half)).abs() < 0.05 * half, "{found:?}");
        }
    }

    fn gsm8k_scores() -> Option<[Vec<f64>; 4]> {
        let shared = std::env::var_os("METIER_SHARED").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
            PathBuf::from,
        );
        let path = shared.join("data/gsm8k/example_model_solutions.jsonl");
        let Ok(text) = std::fs::read_to_string(&path) else {
            eprintln!("SKIPPED: {} is not there", path.display());
            return None;
        };
        let models = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"];
        let rows: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(rows.len(), 1319);
        let right = |row: &Value, model| f64::from(row[model]["is_correct"].as_bool().unwrap());
        let scores = models.map(|m| rows.iter().map(|r| right(r, m)).collect::<Vec<f64>>());
        for (scores, accuracy) in scores.iter().zip([0.2168, 0.3904, 0.3472, 0.5625]) {
            assert!((mean(scores) - accuracy).abs() < 5e-5);
        }
        Some(scores)
    }

    #[test]
    fn sign_flip_matches_enumeration() {
        // All 2^6 signs of 1..6: sums as far out as ±21 are 2 of 64, as ±19 (flip the 1) 4 of 64.
        let options = PairedOptions { resamples: 200_000, seed: 3, ..PairedOptions::default() };
        let all: Vec<f64> = (1..=6).map(|d| f64::from(d) / 10.0).collect();
        assert!((sign_flip(&all, &options) - 2.0 / 64.0).abs() < 2e-3);
        let mut one_back = all.clone();
        one_back[0] = -0.1;
        assert!((sign_flip(&one_back, &options) - 4.0 / 64.0).abs() < 2e-3);
        assert_eq!(sign_flip(&[0.0; 9], &options), 1.0);
        // On ones and zeros it is McNemar's test.
        let binary: Vec<f64> = (0..18).map(|i| if i < 4 { 1.0 } else { -1.0 }).collect();
        assert!((sign_flip(&binary, &options) - 0.030884).abs() < 2e-3);
    }

    #[test]
    fn the_same_seed_gives_the_same_result_and_order_of_sides_only_the_sign() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let (a, b) = graded_pair(&mut rng, 120);
        let options = PairedOptions::default();
        let once = paired_difference(&a, &b, &options).unwrap();
        assert_eq!(once, paired_difference(&a, &b, &options).unwrap());
        let back = paired_difference(&b, &a, &options).unwrap();
        assert_eq!(once.difference, -back.difference);
        assert!((once.ci95.lo + back.ci95.hi).abs() < 1e-12);
        // Another seed changes what is drawn, and hardly what comes of it.
        let other = PairedOptions { seed: 7, resamples: 100, ..options };
        let other = paired_difference(&a, &b, &other).unwrap();
        assert_eq!(other.ci95, once.ci95);
        assert!((other.p_value - once.p_value).abs() < 0.05);
    }

    #[test]
    fn equal_differences_still_leave_doubt() {
        let options = PairedOptions::default();
        // 100 alike: Tango's interval for none discordant is z²/(n + z²) = 3.70 %.
        let same = paired_difference(&[1.0; 100], &[1.0; 100], &options).unwrap();
        assert!(
            (same.ci95.hi - 0.036_995).abs() < 1e-5 && (same.ci95.lo + same.ci95.hi).abs() < 1e-9
        );
        assert_eq!(same.p_value, 1.0);
        let better = paired_difference(&[0.0; 100], &[1.0; 100], &options).unwrap();
        assert_eq!(better.ci95.hi, 1.0);
        assert!((0.9..0.97).contains(&better.ci95.lo), "{:?}", better.ci95);
        let single = paired_difference(&[0.0], &[1.0], &options).unwrap();
        assert!(single.ci95.lo < 0.0 && single.p_value > 0.999_999, "{single:?}");
        let graded = paired_difference(&[0.5; 20], &[0.5; 20], &options).unwrap();
        assert!(graded.ci95.hi > 0.1 && graded.ci95.lo < -0.1, "{graded:?}");
        let graded = paired_difference(&[0.5], &[0.7], &options).unwrap();
        assert!(graded.ci95.hi > 0.9 && graded.ci95.lo < -0.9, "{graded:?}");
    }

    /// The example of the paper's table: 50 patients, 43 agreeing, 7 against 0 or 6 against 1 and so on are
    /// within what is known of the interval: it inverts McNemar's statistic at 0.
    #[test]
    fn tango_inverts_the_score_test() {
        for (b, c, n) in [(9, 3, 44), (12, 2, 50), (1, 0, 20), (0, 0, 30), (20, 20, 40), (7, 0, 7)]
        {
            let found = tango(b, c, n, 0.95).unwrap();
            let seen = (b as f64 - c as f64) / n as f64;
            assert!(found.contains(seen) && found.lo >= -1.0 && found.hi <= 1.0, "{found:?}");
            let back = tango(c, b, n, 0.95).unwrap();
            assert!((found.lo + back.hi).abs() < 1e-9 && (found.hi + back.lo).abs() < 1e-9);
            // 0 is refused exactly when (b - c)² / (b + c) is above z².
            let refused = b != c && (seen * n as f64).powi(2) / (b + c) as f64 > 1.96_f64.powi(2);
            assert_eq!(refused, !found.contains(0.0), "{b} {c} {n}: {found:?}");
            let wider = tango(b, c, n, 0.99).unwrap();
            assert!(wider.lo <= found.lo && wider.hi >= found.hi);
        }
        assert!(tango(3, 3, 5, 0.95).is_err() && tango(0, 0, 0, 0.95).is_err());
        assert!(tango(0, 0, 5, 1.0).is_err());
    }

    #[test]
    fn clusters_widen_and_flip_together() {
        // Every answer four times, as if four customers' mails were sent in four times each.
        let mut rng = Pcg64Mcg::seed_from_u64(5);
        let once: Vec<(f64, f64)> = (0..60)
            .map(|_| (f64::from(rng.random_bool(0.5)), f64::from(rng.random_bool(0.75))))
            .collect();
        let (a, b): (Vec<f64>, Vec<f64>) = once.iter().flat_map(|&p| [p; 4]).unzip();
        let clusters: Vec<usize> = (0..240).map(|i| i / 4).collect();
        let options = PairedOptions::default();
        let (a1, b1): (Vec<f64>, Vec<f64>) = once.iter().copied().unzip();
        let single = paired_difference(&a1, &b1, &options).unwrap();
        let naive = paired_difference(&a, &b, &options).unwrap();
        let robust = paired_difference_in(&a, &b, &clusters, &options).unwrap();
        let width = |d: &PairedDifference| d.ci95.hi - d.ci95.lo;
        assert!(width(&naive) < 0.6 * width(&robust), "{naive:?} {robust:?}");
        assert!((width(&single) / width(&robust) - 1.0).abs() < 0.05);
        assert!(matches!(robust.test, PairedTest::ClusterSignFlip { clusters: 60, .. }));
        assert!((robust.p_value - single.randomisation_p).abs() < 0.01);
        assert!(robust.mid_p.is_none() && single.mid_p.is_some());
        let resampled = bootstrap(
            &a.iter().zip(&b).map(|(a, b)| b - a).collect::<Vec<_>>(),
            &clusters,
            &options,
        );
        let resampled = resampled.unwrap();
        assert!((resampled.lo - robust.ci95.lo).abs() < 0.02, "{resampled:?} {:?}", robust.ci95);
        assert!(matches!(
            paired_difference_in(&a, &b, &[0; 240], &options),
            Err(StatsError::Clusters { found: 1 })
        ));
    }

    #[test]
    fn refuses_what_cannot_be_compared() {
        let options = PairedOptions::default();
        let error = |a: &[f64], b: &[f64]| paired_difference(a, b, &options).unwrap_err();
        assert_eq!(error(&[1.0], &[1.0, 0.0]), StatsError::Unpaired { a: 1, b: 2 });
        assert_eq!(error(&[], &[]), StatsError::Empty);
        assert!(matches!(error(&[f64::NAN], &[0.0]), StatsError::Range { .. }));
        assert!(matches!(error(&[0.0], &[-0.1]), StatsError::Range { .. }));
        let none = PairedOptions { resamples: 0, ..options };
        assert!(paired_difference(&[0.0], &[1.0], &none).is_err());
        let one = PairedOptions { resamples: 1, ..options };
        assert!(paired_difference(&[0.0, 1.0], &[1.0, 1.0], &one).is_ok());
    }

    /// Shares of six fields, right with 0.5 and 0.7, from examples of differing difficulty.
    fn graded_pair(rng: &mut Pcg64Mcg, n: usize) -> (Vec<f64>, Vec<f64>) {
        let draw =
            |rng: &mut Pcg64Mcg, p| (0..6).filter(|_| rng.random_bool(p)).count() as f64 / 6.0;
        (0..n)
            .map(|_| {
                let shift = rng.random_range(-0.3..0.3);
                (draw(rng, 0.5 + shift), draw(rng, 0.7 + shift))
            })
            .unzip()
    }
}
