//! Many questions to one test set: what each may still claim.

use super::{
    CONFIDENCE, PairedDifference, PairedOptions, StatsError, interval::z, paired_difference_in,
    paired_interval,
};
use serde::{Deserialize, Serialize};

/// p-values adjusted for the number of questions asked together (S. Holm 1979, Scandinavian Journal of
/// Statistics 6:65): with them, the chance of any false claim in the family is at most the level that each
/// is held against, whatever depends on what. In the order given; NaN counts as 1.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let plain = |p: f64| if p.is_nan() { 1.0 } else { p };
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| plain(p_values[a]).total_cmp(&plain(p_values[b])));
    let mut adjusted = vec![1.0; p_values.len()];
    let mut least: f64 = 0.0;
    for (rank, &place) in order.iter().enumerate() {
        let questions_left = (p_values.len() - rank) as f64;
        least = least.max((questions_left * plain(p_values[place])).min(1.0));
        adjusted[place] = least;
    }
    adjusted
}

/// What a test set is asked in all: how many candidates are judged on it, and how often it is looked at
/// while it grows.
///
/// Looks are protected by alpha spending (K. Lan and D. DeMets 1983, doi 10.1093/biomet/70.3.659) with the
/// function of O'Brien and Fleming's kind, α(t) = 2 - 2Φ(z₁₋α⁄₂ / √t) at the share t of the examples
/// planned: early looks may claim only what is overwhelming, and the last one keeps most of the level.
/// Each look gets the increment α(t_k) - α(t_k-1); that the increments sum to α bounds the chance of any
/// false claim without an assumption on how looks depend on each other, so it holds for exact and resampled
/// tests too. Spending was chosen over a confidence sequence because test examples are paid for and
/// planned: the end is known, and knowing it makes the last interval a third narrower. Where nobody knows
/// the end, in `metier watch`, the sequential tests of [`super::ShareAlarm`] are used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Protection {
    /// Candidates judged on the same test set, at least 1.
    pub candidates: usize,
    /// Share of the planned examples at each look so far, rising, each in (0, 1]; the last is the one at
    /// hand. `[1.0]` is a single look at the whole.
    pub looks: Vec<f64>,
}

impl Default for Protection {
    /// One candidate, one look.
    fn default() -> Protection {
        Protection { candidates: 1, looks: vec![1.0] }
    }
}

impl Protection {
    /// The confidence that the interval at this look must have, so that all claims together, over looks
    /// and candidates, are false with at most 5 %.
    ///
    /// # Errors
    /// [`StatsError::Range`] for no candidate, no look, or shares that are not rising in (0, 1].
    pub fn confidence(&self) -> Result<f64, StatsError> {
        if self.candidates == 0 {
            let expected = "at least 1";
            return Err(StatsError::Range { what: "candidates", found: 0.0, expected });
        }
        let level = spent(&self.looks, 1.0 - CONFIDENCE)?.last().copied();
        Ok(1.0 - level.ok_or(StatsError::Empty)? / self.candidates as f64)
    }
}

/// One of several candidates that are compared with the same other one.
#[derive(Clone, Debug, PartialEq)]
pub struct FamilyMember {
    /// Its comparison; `interval` and `confidence` are those of the step at which it was decided.
    pub paired: PairedDifference,
    /// p-value of "no difference", adjusted for the family by [`holm`].
    pub p_holm: f64,
}

/// Compares each of several candidates with `a` on the same examples and decides, Holm's way, which of them
/// are better by more than `gain` ([`PairedDifference::exceeds`]). While `r` candidates are undecided, each
/// has an interval of the confidence of [`Protection`] for `r` candidates; those that exceed the gain are
/// decided, and the others are looked at again with what is left. That any of the claims is false has a
/// chance of at most 5 % over all looks (S. Holm 1979), so that the best one may be picked afterwards.
///
/// `clusters` as in [`paired_difference_in`], `looks` as in [`Protection::looks`]; the confidence in
/// `options` is not used. In the order given.
///
/// # Errors
/// As [`paired_difference_in`] and [`Protection::confidence`].
pub fn paired_family(
    a: &[f64],
    candidates: &[&[f64]],
    clusters: &[usize],
    gain: f64,
    looks: &[f64],
    options: &PairedOptions,
) -> Result<Vec<FamilyMember>, StatsError> {
    let one = |b: &&[f64]| paired_difference_in(a, b, clusters, options);
    let mut compared = candidates.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    let mut undecided: Vec<usize> = (0..compared.len()).collect();
    while !undecided.is_empty() {
        let protection = Protection { candidates: undecided.len(), looks: looks.to_vec() };
        let confidence = protection.confidence()?;
        for &place in &undecided {
            let interval = paired_interval(a, candidates[place], clusters, confidence)?;
            (compared[place].interval, compared[place].confidence) = (interval, confidence);
        }
        let before = undecided.len();
        undecided.retain(|&place| !compared[place].exceeds(gain));
        if undecided.len() == before {
            break;
        }
    }
    let p_values: Vec<f64> = compared.iter().map(|paired| paired.p_value).collect();
    let members = compared.into_iter().zip(holm(&p_values));
    Ok(members.map(|(paired, p_holm)| FamilyMember { paired, p_holm }).collect())
}

/// The level of each look: see [`Protection`].
///
/// # Errors
/// [`StatsError::Range`] for shares that are not rising in (0, 1].
pub fn spent(looks: &[f64], alpha: f64) -> Result<Vec<f64>, StatsError> {
    let mut before = (0.0, 0.0);
    let mut levels = Vec::with_capacity(looks.len());
    for &share in looks {
        if !(share > before.0 && share <= 1.0) {
            let expected = "rising, above 0 and at most 1";
            return Err(StatsError::Range { what: "share of a look", found: share, expected });
        }
        let so_far = match share {
            // Without the rounding errors of going there and back.
            1.0 => alpha,
            _ => 2.0 - 2.0 * super::interval::normal_cdf(z(1.0 - alpha / 2.0) / share.sqrt()),
        };
        levels.push(so_far - before.1);
        before = (share, so_far);
    }
    Ok(levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holm_steps_down_and_never_turns() {
        let found = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in found.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - expected).abs() < 1e-12, "{found}");
        }
        assert_eq!(holm(&[0.6, f64::NAN]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn all_looks_together_spend_the_level() {
        let levels = spent(&[0.2, 0.4, 0.6, 0.8, 1.0], 0.05).unwrap();
        assert!((levels.iter().sum::<f64>() - 0.05).abs() < 1e-12);
        assert!(levels[0] < 1e-4 && levels[4] > 0.02, "{levels:?}");
        // O'Brien-Fleming's spending at half the information: 2 - 2Φ(1.959964 √2) = 0.005575.
        assert!((spent(&[0.5], 0.05).unwrap()[0] - 0.005_575).abs() < 1e-5);
        for wrong in [&[0.0][..], &[0.5, 0.5], &[1.1], &[f64::NAN]] {
            assert!(spent(wrong, 0.05).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn candidates_and_looks_share_one_level() {
        let confidence = |candidates, looks: &[f64]| {
            Protection { candidates, looks: looks.to_vec() }.confidence()
        };
        assert!((confidence(1, &[1.0]).unwrap() - 0.95).abs() < 1e-12);
        assert!((confidence(10, &[1.0]).unwrap() - 0.995).abs() < 1e-12);
        assert!(confidence(1, &[0.5, 1.0]).unwrap() > 0.95);
        assert!(confidence(0, &[1.0]).is_err() && confidence(1, &[]).is_err());
    }

    /// `only_b` examples of 200 that b alone has right, the first of them.
    fn right(only_b: usize) -> Vec<f64> {
        (0..200).map(|i| f64::from(i < only_b)).collect()
    }

    #[test]
    fn a_family_is_decided_step_by_step() {
        let (a, options) = (right(0), PairedOptions { resamples: 10, ..PairedOptions::default() });
        let family = |wins: &[usize], gain: f64| {
            let all: Vec<Vec<f64>> = wins.iter().map(|&n| right(n)).collect();
            let all: Vec<&[f64]> = all.iter().map(Vec::as_slice).collect();
            paired_family(&a, &all, &[], gain, &[1.0], &options).unwrap()
        };
        // Alone it is the plain comparison.
        let alone = family(&[6], 0.0);
        assert_eq!(
            alone[0].paired,
            super::super::paired_difference(&a, &right(6), &options).unwrap()
        );
        assert!((alone[0].p_holm - 0.03125).abs() < 1e-12 && alone[0].paired.exceeds(0.0));
        // Six of six: p = 0.03125 is enough for the last of a family, not for one of two.
        let two = family(&[6, 6], 0.0);
        assert!(two.iter().all(|m| !m.paired.exceeds(0.0) && m.p_holm > 0.06), "{two:?}");
        assert!((two[0].paired.confidence - 0.975).abs() < 1e-12);
        let beside_a_clear_one = family(&[6, 40], 0.0);
        assert!(beside_a_clear_one.iter().all(|m| m.paired.exceeds(0.0)));
        let confidences: Vec<f64> =
            beside_a_clear_one.iter().map(|m| m.paired.confidence).collect();
        assert!((confidences[0] - 0.95).abs() < 1e-12 && (confidences[1] - 0.975).abs() < 1e-12);
        assert!(family(&[], 0.0).is_empty());
        // More looks, wider intervals.
        let look = |looks: &[f64]| {
            let found = paired_family(&a, &[&right(40)], &[], 0.0, looks, &options).unwrap();
            found[0].paired.interval
        };
        assert!(look(&[0.5]).lo < look(&[1.0]).lo && look(&[0.5, 1.0]).lo < look(&[1.0]).lo);
    }
}
