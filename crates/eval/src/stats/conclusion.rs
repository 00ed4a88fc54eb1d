//! What an interval of the difference says, in one of four words, and what it would take to say more.

use super::interval::{t_quantile, z};
use super::{ClusterError, Interval, PairedDifference, StatsError, paired::variance_under};
use serde::{Deserialize, Serialize};

/// The power that sample sizes are planned for: four of five such test sets settle the question.
const POWER: f64 = 0.8;

/// What is proven about b against a, given a margin: the loss, as a share, that would not matter. "Not
/// significant" is none of them: what is not proven either way is inconclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// b is better: the whole interval lies above 0, and the exact or permutation test agrees.
    Better,
    /// b is not worse by more than the margin: the whole interval lies above minus the margin.
    NonInferior,
    /// The interval holds minus the margin: nothing is proven.
    Inconclusive,
    /// b is worse by more than the margin: the whole interval lies below minus the margin.
    Worse,
}

impl PairedDifference {
    /// The conclusion at the confidence of the comparison. Where the p-value does not agree with an
    /// interval that leaves out 0, b is not called better: a score interval of few discordant examples can
    /// leave out 0 a little too often, an exact test cannot.
    pub fn conclusion(&self, margin: f64) -> Conclusion {
        let Interval { lo, hi } = self.interval;
        if lo > 0.0 && self.p_value <= 1.0 - self.confidence + 1e-12 {
            Conclusion::Better
        } else if margin > 0.0 && lo > -margin {
            Conclusion::NonInferior
        } else if hi < -margin {
            Conclusion::Worse
        } else {
            Conclusion::Inconclusive
        }
    }

    /// Whether b is proven to be better than a by more than `gain` (below 0: to lose less than that): the
    /// interval lies above it, and for no gain and no allowance the exact or permutation test agrees.
    pub fn exceeds(&self, gain: f64) -> bool {
        match gain < 0.0 {
            true => self.interval.lo > gain,
            false => {
                let real = self.p_value <= 1.0 - self.confidence + 1e-12;
                self.interval.lo > gain && real
            }
        }
    }

    /// Examples in all, at least one more than there are, with which the question "is the difference above
    /// `line`, or below it?" is decided with a chance of 80 %, if the true difference is the one seen. None
    /// when the difference seen is the line itself, so that no number decides.
    pub fn examples_to_decide(&self, line: f64) -> Option<usize> {
        let needed = Pilot::of(self).needed(line, self.difference, self.confidence).ok()?;
        Some(needed.max(self.n + 1))
    }
}

/// What is known before money is spent: how differences are spread in a small run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pilot {
    /// Examples of the pilot.
    pub n: usize,
    /// Standard deviation of the differences per example.
    pub sd: f64,
    /// Share of examples that only one of the two has right, where scores are 0 or 1.
    pub discordance: Option<f64>,
    /// What its clusters do to the error; None: its examples are independent.
    pub clusters: Option<ClusterError>,
}

impl Pilot {
    /// The pilot of a comparison. What it has seen too little of is taken with caution, so that a quiet
    /// pilot does not promise that a handful of examples will do: at least two discordant examples in n + 2,
    /// and half a point of spread where no difference differs from another.
    pub fn of(paired: &PairedDifference) -> Pilot {
        let n = paired.n as f64;
        let least = 2.0 / (n + 2.0);
        Pilot {
            n: paired.n,
            sd: if paired.sd > 0.0 { paired.sd } else { 0.5 },
            discordance: paired.discordance.map(|share| share.max(least)),
            clusters: paired.clusters,
        }
    }

    /// Examples with which the interval of the given confidence leaves out `line` with a chance of 80 %,
    /// when the true difference is `truth`, on either side of the line:
    /// ((z₁₋α⁄₂ √v₀ + z_power √v₁) / (truth - line))² · design effect.
    ///
    /// In clusters the quantiles are Student's, for as many clusters as will weigh the same: they grow with the
    /// examples.
    ///
    /// For graded scores both variances are sd². For zeros and ones v₁ = ψ - truth², and v₀ is the
    /// variance that the score interval assumes when it asks whether the line is the truth; for a line of
    /// 0 that is ψ and the formula is Connor's ([`super::paired_sample_size`]).
    ///
    /// # Errors
    /// [`StatsError::Range`] unless truth and line differ, by at most 2, and the confidence is in (0, 1).
    pub fn needed(&self, line: f64, truth: f64, confidence: f64) -> Result<usize, StatsError> {
        let distance = (truth - line).abs();
        if !(distance > 0.0 && distance <= 2.0) {
            let expected = "other than 0 and at most 2";
            return Err(StatsError::Range { what: "truth minus line", found: distance, expected });
        }
        if !(confidence > 0.0 && confidence < 1.0) {
            let expected = "between 0 and 1";
            return Err(StatsError::Range { what: "confidence", found: confidence, expected });
        }
        let (under_line, under_truth) = match self.discordance {
            None => (self.sd * self.sd, self.sd * self.sd),
            Some(share) => {
                let share = share.max(truth.abs()).min(1.0);
                let (only_b, only_a) = ((share + truth) / 2.0, (share - truth) / 2.0);
                (variance_under(line, only_b, only_a, 1.0), share - truth * truth)
            }
        };
        let needed = |quantile: &dyn Fn(f64) -> f64| {
            let tails = quantile(0.5 + confidence / 2.0) * under_line.max(0.0).sqrt()
                + quantile(POWER) * under_truth.max(0.0).sqrt();
            (tails / distance).powi(2) * self.clusters.map_or(1.0, |c| c.design_effect)
        };
        let known = needed(&z);
        let needed = match self.clusters {
            None => known,
            // The fewer clusters, the wider their quantiles, and the more are needed: it settles at once.
            Some(clusters) => (0..8).fold(known, |n, _| {
                let weigh = clusters.effective_clusters * n / self.n as f64;
                needed(&|p| t_quantile(p, weigh - 1.0))
            }),
        };
        if needed > 1e9 {
            let expected = "far enough apart that a thousand million examples decide";
            return Err(StatsError::Range { what: "truth minus line", found: distance, expected });
        }
        Ok((needed.ceil() as usize).max(2))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PairedOptions, paired_difference, paired_sample_size};
    use super::*;

    /// `b` discordant examples for b, `a` for a, of n.
    fn outcome(only_b: usize, only_a: usize, n: usize) -> PairedDifference {
        let a: Vec<f64> = (0..n).map(|i| f64::from(i < only_a)).collect();
        let b: Vec<f64> =
            (0..n).map(|i| f64::from((only_a..only_a + only_b).contains(&i))).collect();
        paired_difference(&a, &b, &PairedOptions { resamples: 10, ..PairedOptions::default() })
            .unwrap()
    }

    #[test]
    fn four_words_and_none_of_them_is_same() {
        for (only_b, only_a, n, margin, expected) in [
            (40, 10, 400, 0.02, Conclusion::Better),
            (10, 12, 400, 0.05, Conclusion::NonInferior),
            (10, 12, 400, 0.0, Conclusion::Inconclusive),
            (10, 12, 400, 0.01, Conclusion::Inconclusive),
            (5, 60, 400, 0.05, Conclusion::Worse),
            (5, 20, 400, 0.0, Conclusion::Worse),
            // Proven to be worse, but not by more than the margin: nothing is decided.
            (5, 20, 400, 0.03, Conclusion::Inconclusive),
            (0, 0, 400, 0.02, Conclusion::NonInferior),
            (0, 0, 20, 0.02, Conclusion::Inconclusive),
            // Tango's interval leaves out 0, the exact test does not: p = 0.0625.
            (5, 0, 50, 0.0, Conclusion::Inconclusive),
            (6, 0, 50, 0.0, Conclusion::Better),
        ] {
            let found = outcome(only_b, only_a, n).conclusion(margin);
            assert_eq!(found, expected, "{only_b} {only_a} {n} {margin}");
        }
    }

    #[test]
    fn more_examples_follow_from_spread_and_distance() {
        let seen = outcome(30, 20, 400);
        // ((1.96 + 0.8416) · 0.3527 / 0.025)²
        let needed = seen.examples_to_decide(0.0).unwrap();
        assert!((1500..1600).contains(&needed), "{needed}");
        assert!(seen.examples_to_decide(-0.05).unwrap() > 400);
        assert_eq!(seen.examples_to_decide(seen.difference), None);
    }

    #[test]
    fn a_pilot_plans_with_its_spread_and_a_quiet_one_with_caution() {
        let graded = Pilot { n: 50, sd: 0.2_f64.sqrt(), discordance: None, clusters: None };
        // (1.96 + 0.8416)² · 0.2 / 0.05²
        assert_eq!(graded.needed(-0.05, 0.0, 0.95), Ok(628));
        assert_eq!(graded.needed(0.05, 0.0, 0.95), Ok(628));
        let error = |effective_clusters| ClusterError {
            clusters: 50,
            effective_clusters,
            standard_error: 0.0,
            jackknife_error: 0.0,
            design_effect: 2.0,
        };
        let clustered = |effective| Pilot { clusters: Some(error(effective)), ..graded };
        // Twice as many, and a few more where they lie in few clusters.
        assert_eq!(clustered(50.0).needed(-0.05, 0.0, 0.95), Ok(1258));
        let few = clustered(2.0).needed(-0.05, 0.0, 0.95).unwrap();
        assert!((1300..1400).contains(&few), "{few}");
        // For zeros and ones and a line of 0 it is Connor's number.
        let binary = Pilot { discordance: Some(0.2), ..graded };
        assert_eq!(binary.needed(0.0, 0.05, 0.95), paired_sample_size(0.05, 0.2));
        assert!(binary.needed(-0.05, 0.0, 0.95).unwrap() > 628);
        let quiet = Pilot::of(&outcome(0, 0, 50));
        assert!(quiet.needed(-0.05, 0.0, 0.95).unwrap() > 100, "{quiet:?}");
        assert!(binary.needed(0.1, 0.1, 0.95).is_err() && binary.needed(0.0, 0.1, 1.0).is_err());
        assert!(binary.needed(0.0, 1e-9, 0.95).is_err());
    }
}
