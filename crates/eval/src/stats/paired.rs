//! The difference of two candidates on the same examples.

use super::{CONFIDENCE, Interval, StatsError, mean, variance};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, Discrete, DiscreteCDF};

/// How much is resampled, and from which start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairedOptions {
    /// Bootstrap resamples, and sign flips of the permutation test.
    pub resamples: usize,
    /// Start of the random numbers; the same seed gives the same result.
    pub seed: u64,
}

impl Default for PairedOptions {
    /// 10,000 resamples, seed 12345.
    fn default() -> PairedOptions {
        PairedOptions { resamples: 10_000, seed: 12_345 }
    }
}

/// How much better `b` is than `a`.
#[derive(Clone, Debug, PartialEq)]
pub struct PairedDifference {
    /// Examples.
    pub n: usize,
    /// Mean of b minus a, between -1 and 1.
    pub difference: f64,
    /// 95 % interval of the difference: percentile bootstrap over examples.
    pub ci95: Interval,
    /// Two-sided p-value of "there is no difference", by `test`.
    pub p_value: f64,
    /// The test behind `p_value`.
    pub test: PairedTest,
    /// Sample standard deviation of the differences.
    pub sd: f64,
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
}

/// Compares scores in [0, 1] of the same examples in the same order, `b` minus `a`. When all
/// scores are 0 or 1 the p-value is McNemar's, else that of the sign-flip test.
///
/// # Errors
/// [`StatsError::Unpaired`] for different lengths, [`StatsError::Empty`] for none,
/// [`StatsError::Range`] for a score outside [0, 1] or no resamples.
pub fn paired_difference(
    a: &[f64],
    b: &[f64],
    options: &PairedOptions,
) -> Result<PairedDifference, StatsError> {
    if a.len() != b.len() {
        return Err(StatsError::Unpaired { a: a.len(), b: b.len() });
    }
    if a.is_empty() {
        return Err(StatsError::Empty);
    }
    if let Some(&found) = a.iter().chain(b).find(|s| !(0.0..=1.0).contains(*s)) {
        return Err(StatsError::Range { what: "a score", found, expected: "between 0 and 1" });
    }
    if options.resamples == 0 {
        return Err(StatsError::Range { what: "resamples", found: 0.0, expected: "at least 1" });
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let (p_value, test) = if a.iter().chain(b).all(|&s| s == 0.0 || s == 1.0) {
        let only_b = differences.iter().filter(|&&d| d > 0.0).count();
        let only_a = differences.iter().filter(|&&d| d < 0.0).count();
        (mcnemar_exact(only_b, only_a), PairedTest::McnemarExact { only_b, only_a })
    } else {
        let resamples = options.resamples;
        (sign_flip(&differences, options), PairedTest::SignFlip { resamples })
    };
    Ok(PairedDifference {
        n: differences.len(),
        difference: mean(&differences),
        ci95: bootstrap(&differences, options),
        p_value,
        test,
        sd: variance(&differences).sqrt(),
    })
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

/// Percentile bootstrap (Efron 1979, doi 10.1214/aos/1176344552) of the mean difference: examples
/// are drawn with replacement, both candidates' answers together.
///
/// When every difference is the same value v, each resample repeats it and the interval would be a
/// point, however few the examples. Then another way is taken: with n examples all alike, fewer
/// than a share u = 1 - 0.025^(1/n) of all examples are different with 97.5 % confidence
/// (Clopper-Pearson for none in n), and these may lie anywhere in [-1, 1], so that the mean lies
/// within v ± u(1 ± v).
fn bootstrap(differences: &[f64], options: &PairedOptions) -> Interval {
    let n = differences.len();
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let first = differences[0];
    if differences.iter().all(|&d| d == first) {
        let other = 1.0 - tail.powf(1.0 / n as f64);
        return Interval { lo: first - other * (1.0 + first), hi: first + other * (1.0 - first) };
    }
    let mut rng = Pcg64Mcg::seed_from_u64(options.seed);
    let mut means: Vec<f64> =
        (0..options.resamples).map(|_| resampled_sum(differences, &mut rng) / n as f64).collect();
    // Nearest ranks, rounded outwards.
    let lo = (tail * options.resamples as f64).floor() as usize;
    let hi = options.resamples - 1 - lo;
    means.sort_unstable_by(f64::total_cmp);
    Interval { lo: means[lo.min(hi)], hi: means[hi.max(lo)] }
}

/// Sum of n draws with replacement. Each 64-bit number gives two indices by multiplication and
/// shift; their probabilities differ by at most n/2^32, relatively.
fn resampled_sum(values: &[f64], rng: &mut Pcg64Mcg) -> f64 {
    let n = values.len() as u64;
    let pick = |bits: u64| values[(((bits & 0xFFFF_FFFF) * n) >> 32) as usize];
    let mut sum = 0.0;
    for _ in 0..n / 2 {
        let bits = rng.next_u64();
        sum += pick(bits) + pick(bits >> 32);
    }
    if n % 2 == 1 {
        sum += pick(rng.next_u64());
    }
    sum
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
        let options = PairedOptions { resamples: 200_000, seed: 3 };
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
        let other = PairedOptions { seed: 7, ..options };
        let other = paired_difference(&a, &b, &other).unwrap();
        assert!(other.ci95 != once.ci95);
        assert!((other.ci95.lo - once.ci95.lo).abs() < 0.01);
    }

    #[test]
    fn equal_differences_still_leave_doubt() {
        let options = PairedOptions::default();
        // 100 alike: at most 3.62 % of all examples differ (0.025^(1/100) = 0.96378).
        let same = paired_difference(&[1.0; 100], &[1.0; 100], &options).unwrap();
        assert!((same.ci95.hi - 0.03622).abs() < 1e-5 && same.ci95.lo == -same.ci95.hi);
        assert_eq!(same.p_value, 1.0);
        let better = paired_difference(&[0.0; 100], &[1.0; 100], &options).unwrap();
        assert_eq!(better.ci95.hi, 1.0);
        assert!((better.ci95.lo - (1.0 - 2.0 * 0.03622)).abs() < 1e-4);
        let single = paired_difference(&[0.0], &[1.0], &options).unwrap();
        assert!(single.ci95.lo < -0.9 && single.p_value > 0.999_999, "{single:?}");
    }

    #[test]
    fn refuses_what_cannot_be_compared() {
        let options = PairedOptions::default();
        let error = |a: &[f64], b: &[f64]| paired_difference(a, b, &options).unwrap_err();
        assert_eq!(error(&[1.0], &[1.0, 0.0]), StatsError::Unpaired { a: 1, b: 2 });
        assert_eq!(error(&[], &[]), StatsError::Empty);
        assert!(matches!(error(&[f64::NAN], &[0.0]), StatsError::Range { .. }));
        assert!(matches!(error(&[0.0], &[-0.1]), StatsError::Range { .. }));
        let none = PairedOptions { resamples: 0, seed: 0 };
        assert!(paired_difference(&[0.0], &[1.0], &none).is_err());
        let one = PairedOptions { resamples: 1, seed: 0 };
        assert!(paired_difference(&[0.0, 1.0], &[1.0, 1.0], &one).is_ok());
    }

    #[test]
    fn bootstrap_covers_the_true_difference_of_binary_scores() {
        // Right with 0.6 and 0.75, and more often together than by chance; difference 0.15.
        let pair = |rng: &mut Pcg64Mcg| {
            let ease: f64 = rng.random();
            let a = ease < 0.6;
            let b = if rng.random_bool(0.7) { ease < 0.75 } else { rng.random_bool(0.75) };
            (f64::from(a), f64::from(b))
        };
        let coverage = coverage(0.15, |rng| (0..200).map(|_| pair(rng)).unzip());
        assert!((0.93..=0.97).contains(&coverage), "{coverage}");
    }

    #[test]
    fn bootstrap_covers_the_true_difference_of_graded_scores() {
        let coverage = coverage(0.2, |rng| graded_pair(rng, 200));
        assert!((0.93..=0.97).contains(&coverage), "{coverage}");
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

    fn coverage(truth: f64, mut draw: impl FnMut(&mut Pcg64Mcg) -> (Vec<f64>, Vec<f64>)) -> f64 {
        let mut rng = Pcg64Mcg::seed_from_u64(11);
        let runs = 1000;
        let covered = (0..runs).filter(|&run| {
            let (a, b) = draw(&mut rng);
            let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
            let options = PairedOptions { resamples: 1000, seed: run };
            bootstrap(&differences, &options).contains(truth)
        });
        covered.count() as f64 / runs as f64
    }
}
