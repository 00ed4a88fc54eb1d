//! The interval of one candidate's score.

use super::clusters::{ClusterError, ClusterSums, cluster_error};
use super::{CONFIDENCE, StatsError, mean, variance};
use serde::{Deserialize, Serialize};
use statrs::distribution::{Beta, ContinuousCDF, Normal, StudentsT};

/// From `lo` to `hi`, both included. In JSON: `[lo, hi]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(from = "[f64; 2]", into = "[f64; 2]")]
pub struct Interval {
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

impl From<[f64; 2]> for Interval {
    fn from([lo, hi]: [f64; 2]) -> Interval {
        Interval { lo, hi }
    }
}

impl From<Interval> for [f64; 2] {
    fn from(interval: Interval) -> [f64; 2] {
        [interval.lo, interval.hi]
    }
}

impl Interval {
    /// Whether the value lies inside.
    pub fn contains(&self, value: f64) -> bool {
        (self.lo..=self.hi).contains(&value)
    }

    /// The part of it within `lo..=hi`.
    pub(crate) fn clipped(self, lo: f64, hi: f64) -> Interval {
        Interval { lo: self.lo.clamp(lo, hi), hi: self.hi.clamp(lo, hi) }
    }
}

/// The interval of a mean of scores in [0, 1]: Wilson's when all of them are 0 or 1 by nature
/// (`binary`), else Student's within [0, 1].
///
/// Equal graded scores have no spread to estimate an error from, and Student's interval would be a
/// point. Then Wilson's is taken at their mean m: scores in [0, 1] vary at most like ones and zeros
/// of the same mean, m(1-m), so that it errs to the safe side.
///
/// # Errors
/// [`StatsError::Empty`]; [`StatsError::Range`] for a score outside [0, 1].
pub fn mean_interval(scores: &[f64], binary: bool) -> Result<Interval, StatsError> {
    mean_interval_in(scores, binary, &[])
}

/// [`mean_interval`] of scores that belong to the clusters of these numbers ([`super::clusters_of`]); no
/// numbers: all are independent.
///
/// In clusters, ones and zeros get Wilson's interval at the number of independent examples that would say
/// as much (n over the design effect) with Student's quantile for as many clusters as weigh the same
/// (the way of E. L. Korn and B. I. Graubard 1998, Survey Methodology 24:193). Graded scores get the same at
/// the number of ones and zeros of their mean that would have their error, m(1-m)/e²: near an end of the
/// scale it holds the truth more often than a symmetrical interval.
///
/// # Errors
/// As [`mean_interval`], and [`StatsError::Clusters`] for a single cluster.
pub fn mean_interval_in(
    scores: &[f64],
    binary: bool,
    clusters: &[usize],
) -> Result<Interval, StatsError> {
    if scores.is_empty() {
        return Err(StatsError::Empty);
    }
    if let Some(&found) = scores.iter().find(|s| !(0.0..=1.0).contains(*s)) {
        return Err(StatsError::Range { what: "a score", found, expected: "between 0 and 1" });
    }
    let (share, n, tail) = (mean(scores), scores.len() as f64, 0.5 + CONFIDENCE / 2.0);
    let all_alike = variance(scores) == 0.0;
    if clusters.is_empty() {
        return match binary || all_alike {
            true => Ok(wilson_at(share, n, z(tail))),
            false => Ok(student_t(scores)?.clipped(0.0, 1.0)),
        };
    }
    if binary || all_alike {
        let error = cluster_error(scores, clusters)?;
        return Ok(wilson_at(share, n / error.design_effect, quantile_of(&error, CONFIDENCE)));
    }
    let error = cluster_error(scores, clusters)?;
    let squared = squared_error(scores, clusters, &error)?;
    Ok(wilson_at(share, share * (1.0 - share) / squared, quantile_of(&error, CONFIDENCE)))
}

/// Interval of the mean of values in clusters: mean ± t · jackknife error, with Student's t for as many
/// clusters as weigh the same, less one ([`super::ClusterError`]).
///
/// When fewer than ten clusters have a sum other than 0, their spread is no estimate: two thought ones of
/// the size of the others, one up and one down, are added, which errs to the safe side.
///
/// # Errors
/// As [`cluster_error`].
pub fn cluster_interval(
    values: &[f64],
    clusters: &[usize],
    confidence: f64,
) -> Result<Interval, StatsError> {
    let error = cluster_error(values, clusters)?;
    let half = squared_error(values, clusters, &error)?.sqrt() * quantile_of(&error, confidence);
    let mean = mean(values);
    Ok(Interval { lo: mean - half, hi: mean + half })
}

/// The squared error of the mean, with the thought clusters of [`cluster_interval`].
fn squared_error(
    values: &[f64],
    clusters: &[usize],
    error: &ClusterError,
) -> Result<f64, StatsError> {
    let n = values.len() as f64;
    let sums: Vec<f64> = ClusterSums::new(values, clusters)?.0.iter().map(|c| c.1).collect();
    let thought = thought_deviation(&sums, n / error.clusters as f64) / n;
    Ok(error.jackknife_error.powi(2) + 2.0 * thought * thought)
}

/// Student's quantile for as many clusters as weigh the same.
fn quantile_of(error: &ClusterError, confidence: f64) -> f64 {
    t_quantile(0.5 + confidence / 2.0, error.effective_clusters - 1.0)
}

/// Root mean square of the values other than 0 when they are fewer than ten, `largest` when there are
/// none, and 0 when there are enough to be judged by their own spread.
pub(super) fn thought_deviation(values: &[f64], largest: f64) -> f64 {
    let moved: Vec<f64> = values.iter().copied().filter(|&v| v != 0.0).collect();
    match moved.len() {
        0 => largest,
        1..10 => (moved.iter().map(|v| v * v).sum::<f64>() / moved.len() as f64).sqrt(),
        _ => 0.0,
    }
}

/// Wilson's score interval for a share of `successes` in `n` (E. B. Wilson 1927,
/// doi 10.1080/01621459.1927.10502953).
///
/// Its coverage is close to 95 % on average and swings around it with n and the true share; near
/// shares of 0 and 1 single values can be off by some points, where the textbook interval of
/// p ± 1.96 standard errors fails outright.
///
/// # Errors
/// [`StatsError::Empty`] for n = 0; [`StatsError::Range`] for more successes than n.
pub fn wilson(successes: usize, n: usize) -> Result<Interval, StatsError> {
    if n == 0 {
        return Err(StatsError::Empty);
    }
    if successes > n {
        let found = successes as f64;
        return Err(StatsError::Range { what: "successes", found, expected: "at most n" });
    }
    Ok(wilson_at(successes as f64 / n as f64, n as f64, z(0.5 + CONFIDENCE / 2.0)))
}

/// Clopper and Pearson's exact interval for a share of `successes` in `n` (1934, doi
/// 10.1093/biomet/26.4.404): covers with at least `confidence` whatever the true share, hence wider than
/// Wilson's. For bounds that must hold, such as "no failure in 200 requests".
///
/// # Errors
/// As [`wilson`]; [`StatsError::Range`] for a confidence outside (0, 1).
pub fn clopper_pearson(
    successes: usize,
    n: usize,
    confidence: f64,
) -> Result<Interval, StatsError> {
    wilson(successes, n)?;
    if !(confidence > 0.0 && confidence < 1.0) {
        let expected = "between 0 and 1";
        return Err(StatsError::Range { what: "confidence", found: confidence, expected });
    }
    let (k, n, tail) = (successes as f64, n as f64, (1.0 - confidence) / 2.0);
    let quantile = |a: f64, b: f64, p: f64| Beta::new(a, b).map(|beta| beta.inverse_cdf(p));
    // The shapes are at least 1, so the distribution exists; its ends are exact.
    Ok(Interval {
        lo: if successes == 0 { 0.0 } else { quantile(k, n - k + 1.0, tail).unwrap_or(0.0) },
        hi: if k == n { 1.0 } else { quantile(k + 1.0, n - k, 1.0 - tail).unwrap_or(1.0) },
    })
}

/// Student's t interval of the mean: mean ± t · sd/√n with n-1 degrees of freedom, not clipped.
///
/// # Errors
/// [`StatsError::Empty`] for fewer than two values, which have no spread.
pub fn student_t(values: &[f64]) -> Result<Interval, StatsError> {
    let n = values.len() as f64;
    if n < 2.0 {
        return Err(StatsError::Empty);
    }
    let half = t_quantile(0.5 + CONFIDENCE / 2.0, n - 1.0) * (variance(values) / n).sqrt();
    let mean = mean(values);
    Ok(Interval { lo: mean - half, hi: mean + half })
}

/// The standard normal quantile: `z(0.975)` is 1.96.
pub(super) fn z(probability: f64) -> f64 {
    Normal::standard().inverse_cdf(probability)
}

/// The standard normal distribution function.
pub(super) fn normal_cdf(x: f64) -> f64 {
    Normal::standard().cdf(x)
}

/// Student's quantile; fewer degrees of freedom than 1 count as 1.
pub(super) fn t_quantile(probability: f64, freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom.max(1.0)).map_or(f64::INFINITY, |t| t.inverse_cdf(probability))
}

/// Wilson's interval at any effective number of examples, with the quantile `z`.
fn wilson_at(share: f64, n: f64, z: f64) -> Interval {
    let scale = 1.0 + z * z / n;
    let centre = share + z * z / (2.0 * n);
    let half = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let interval = Interval { lo: (centre - half) / scale, hi: (centre + half) / scale };
    // Exact at the ends, where the formula leaves rounding errors.
    Interval {
        lo: if share <= 0.0 { 0.0 } else { interval.lo.max(0.0) },
        hi: if share >= 1.0 { 1.0 } else { interval.hi.min(1.0) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;
    use statrs::distribution::{Binomial, Discrete};

    #[test]
    fn wilson_matches_published_values() {
        for (successes, n, lo, hi) in [
            (45, 50, 0.7864, 0.9565),
            (30, 30, 0.8865, 1.0),
            (0, 30, 0.0, 0.1135),
            (1, 1, 0.2065, 1.0),
        ] {
            let found = wilson(successes, n).unwrap();
            assert!((found.lo - lo).abs() < 5e-5 && (found.hi - hi).abs() < 5e-5, "{found:?}");
        }
        assert_eq!(wilson(0, 0), Err(StatsError::Empty));
        assert!(wilson(2, 1).is_err());
    }

    #[test]
    fn student_matches_tables() {
        // t(0.975; 4) = 2.776445; mean 3, sd √2.5.
        let found = student_t(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let half = 2.776_445_105 * (2.5_f64 / 5.0).sqrt();
        assert!((found.lo - (3.0 - half)).abs() < 1e-6, "{found:?}");
        assert!((found.hi - (3.0 + half)).abs() < 1e-6, "{found:?}");
        assert_eq!(student_t(&[1.0]), Err(StatsError::Empty));
    }

    #[test]
    fn equal_scores_still_leave_doubt() {
        for score in [0.0, 0.5, 1.0] {
            let found = mean_interval(&[score; 10], false).unwrap();
            assert!(found.contains(score) && found.hi - found.lo > 0.25, "{score}: {found:?}");
        }
        let one = mean_interval(&[0.5], false).unwrap();
        assert!(one.lo < 0.1 && one.hi > 0.9, "{one:?}");
        assert!(mean_interval(&[], true).is_err());
        assert!(mean_interval(&[f64::NAN], false).is_err());
        assert!(mean_interval(&[0.0, 1.5], false).is_err());
    }

    #[test]
    fn graded_intervals_stay_between_0_and_1() {
        let found = mean_interval(&[1.0, 1.0, 1.0, 0.9], false).unwrap();
        assert!(found.hi <= 1.0 && found.lo > 0.8, "{found:?}");
    }

    /// Exact coverage, summed over the binomial distribution. At single shares it swings: for
    /// shares below 0.9 it stays within 93 to 97 %; from there on, where the distribution has few
    /// steps left, 92 to 98.5 % is the allowance. Averaged over shares it is 95 % throughout.
    #[test]
    fn wilson_covers_the_true_share() {
        let exact = |share: f64, n: usize| -> f64 {
            let binomial = Binomial::new(share, n as u64).unwrap();
            let covered = |k: &usize| wilson(*k, n).unwrap().contains(share);
            (0..=n).filter(covered).map(|k| binomial.pmf(k as u64)).sum()
        };
        for n in [50, 100, 400, 1000] {
            for share in [0.5, 0.6, 0.75, 0.8, 0.87] {
                let coverage = exact(share, n);
                assert!((0.93..=0.97).contains(&coverage), "p {share}, n {n}: {coverage}");
            }
            for share in [0.9, 0.95, 0.97] {
                let coverage = exact(share, n);
                assert!((0.92..=0.985).contains(&coverage), "p {share}, n {n}: {coverage}");
            }
            let shares = (1..200).map(|i| f64::from(i) / 200.0);
            let average = shares.clone().map(|p| exact(p, n)).sum::<f64>() / 199.0;
            assert!((0.945..=0.96).contains(&average), "n {n}: {average}");
        }
    }

    #[test]
    fn wilson_covers_on_drawn_data() {
        let mut rng = Pcg64Mcg::seed_from_u64(20);
        let (share, n, runs) = (0.8, 200, 4000);
        let covered = (0..runs).filter(|_| {
            let successes = (0..n).filter(|_| rng.random_bool(share)).count();
            wilson(successes, n).unwrap().contains(share)
        });
        let coverage = covered.count() as f64 / f64::from(runs);
        assert!((0.93..=0.97).contains(&coverage), "{coverage}");
    }

    #[test]
    fn student_covers_the_true_mean_of_graded_scores() {
        let mut rng = Pcg64Mcg::seed_from_u64(21);
        // Six fields, each right with 0.7: true mean 0.7.
        for n in [30, 200] {
            let runs = 4000;
            let covered = (0..runs).filter(|_| {
                let scores: Vec<f64> = (0..n)
                    .map(|_| (0..6).filter(|_| rng.random_bool(0.7)).count() as f64 / 6.0)
                    .collect();
                mean_interval(&scores, false).unwrap().contains(0.7)
            });
            let coverage = covered.count() as f64 / f64::from(runs);
            assert!((0.93..=0.97).contains(&coverage), "n {n}: {coverage}");
        }
    }
}
