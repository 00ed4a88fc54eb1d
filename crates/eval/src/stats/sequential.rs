//! Shares that are watched while they come in: how many answers were bad, how many requests failed.
//! Whoever looks every night and stops at the first alarm may not use a test made for one look.

use super::{Interval, StatsError};
use serde::{Deserialize, Serialize};
use statrs::function::beta::{checked_beta_reg, ln_beta};

/// Both parameters of the mixture's beta distribution (H. Jeffreys' prior): no share is out of reach.
const HALF: f64 = 0.5;

/// The evidence, as an e-value, that the true share of `hits` in `n` lies above `bound`: the likelihood of
/// the data, averaged over all shares above the bound (by Beta(1/2, 1/2) cut off at it), over its likelihood
/// at the bound. While the true share is at most the bound, the chance that the evidence ever exceeds 1/α,
/// however often one looks, is at most α (J. Ville 1939; H. Robbins 1970, doi 10.1214/aoms/1177696786;
/// e-processes: arXiv 2210.01948).
///
/// # Errors
/// [`StatsError::Range`] for a bound outside (0, 1) or more hits than n.
pub fn evidence_above(hits: usize, n: usize, bound: f64) -> Result<f64, StatsError> {
    check(hits, n)?;
    if !(bound > 0.0 && bound < 1.0) {
        let expected = "above 0 and below 1";
        return Err(StatsError::Range { what: "bound", found: bound, expected });
    }
    let (k, misses) = (hits as f64, (n - hits) as f64);
    // Mass of a beta distribution above the bound, from its other tail so that small ones stay exact.
    let above = |a: f64, b: f64| checked_beta_reg(b, a, 1.0 - bound).unwrap_or(0.0);
    let (after, before) = (above(k + HALF, misses + HALF), above(HALF, HALF));
    if after <= 0.0 {
        return Ok(0.0);
    }
    let log = ln_beta(k + HALF, misses + HALF) + after.ln()
        - ln_beta(HALF, HALF)
        - before.ln()
        - k * bound.ln()
        - misses * (1.0 - bound).ln();
    Ok(log.exp())
}

/// All shares that `hits` in `n` have not yet refuted at 95 %, looked at however often: a confidence
/// sequence, the two-sided mixture of [`evidence_above`] turned round. Wider than [`super::wilson`]'s
/// interval, which holds for a single look; for n = 0 it is everything.
///
/// # Errors
/// [`StatsError::Range`] for more hits than n.
pub fn share_sequence(hits: usize, n: usize) -> Result<Interval, StatsError> {
    check(hits, n)?;
    if n == 0 {
        return Ok(Interval { lo: 0.0, hi: 1.0 });
    }
    let (k, misses) = (hits as f64, (n - hits) as f64);
    let mixed = ln_beta(k + HALF, misses + HALF) - ln_beta(HALF, HALF);
    let threshold = (1.0 / (1.0 - super::CONFIDENCE)).ln();
    let refuted = |share: f64| {
        let at = |count: f64, p: f64| if count == 0.0 { 0.0 } else { count * p.ln() };
        mixed - at(k, share) - at(misses, 1.0 - share) >= threshold
    };
    let seen = k / n as f64;
    let end = |mut outside: f64| {
        let mut inside = seen;
        if !refuted(outside) {
            return outside;
        }
        for _ in 0..60 {
            let middle = (inside + outside) / 2.0;
            if refuted(middle) { outside = middle } else { inside = middle }
        }
        inside
    };
    Ok(Interval { lo: end(0.0), hi: end(1.0) })
}

/// A share that must not rise above a bound, watched in the order in which things happened.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShareAlarm {
    /// The bound, in (0, 1).
    pub bound: f64,
    /// Hits so far.
    pub hits: usize,
    /// Things seen so far.
    pub n: usize,
    /// The strongest evidence so far that the share is above the bound ([`evidence_above`]).
    pub evidence: f64,
    /// After how many things the bound was first proven to be crossed.
    pub crossed_at: Option<usize>,
}

impl ShareAlarm {
    /// Looks at every thing in turn. The bound counts as crossed once the evidence reaches 20, so that a
    /// false alarm, ever, has a chance of at most 5 %.
    ///
    /// # Errors
    /// [`StatsError::Range`] for a bound outside (0, 1).
    pub fn watch(
        events: impl IntoIterator<Item = bool>,
        bound: f64,
    ) -> Result<ShareAlarm, StatsError> {
        let mut alarm = ShareAlarm { bound, hits: 0, n: 0, evidence: 0.0, crossed_at: None };
        evidence_above(0, 0, bound)?;
        for hit in events {
            alarm.n += 1;
            alarm.hits += usize::from(hit);
            // Only a hit can raise the evidence above what it was.
            if hit {
                alarm.evidence = alarm.evidence.max(evidence_above(alarm.hits, alarm.n, bound)?);
            }
            if alarm.crossed_at.is_none() && alarm.evidence >= 1.0 / (1.0 - super::CONFIDENCE) {
                alarm.crossed_at = Some(alarm.n);
            }
        }
        Ok(alarm)
    }

    /// The share with the interval that holds at every look.
    ///
    /// # Errors
    /// None in fact: the counts are those of [`ShareAlarm::watch`].
    pub fn interval(&self) -> Result<Interval, StatsError> {
        share_sequence(self.hits, self.n)
    }
}

fn check(hits: usize, n: usize) -> Result<(), StatsError> {
    if hits <= n {
        return Ok(());
    }
    Err(StatsError::Range { what: "hits", found: hits as f64, expected: "at most n" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    #[test]
    fn evidence_is_an_average_of_likelihood_ratios() {
        // By the trapezoid rule over the shares above the bound, with the density cut off there.
        for (hits, n, bound) in [(3, 10, 0.1), (0, 5, 0.2), (9, 60, 0.05), (7, 7, 0.5)] {
            let steps = 400_000;
            let density = |p: f64| (p * (1.0 - p)).powf(-0.5);
            let (mut top, mut mass) = (0.0, 0.0);
            for i in 0..steps {
                let p: f64 = bound + (1.0 - bound) * (f64::from(i) + 0.5) / f64::from(steps);
                let ratio = (p / bound).powi(hits) * ((1.0 - p) / (1.0 - bound)).powi(n - hits);
                top += ratio * density(p);
                mass += density(p);
            }
            let found = evidence_above(hits as usize, n as usize, bound).unwrap();
            assert!(
                (found / (top / mass) - 1.0).abs() < 5e-3,
                "{hits}/{n}: {found} {}",
                top / mass
            );
        }
        assert!(evidence_above(2, 1, 0.5).is_err() && evidence_above(0, 1, 0.0).is_err());
        assert!(evidence_above(0, 10_000, 0.5).unwrap() < 1e-6);
    }

    /// 2,000 streams of 300 things whose share is exactly the bound, looked at after every one.
    #[test]
    fn false_alarms_stay_rare_and_true_ones_come_soon() {
        let mut rng = Pcg64Mcg::seed_from_u64(31);
        let mut stream = |share: f64, n: usize| -> Vec<bool> {
            (0..n).map(|_| rng.random_bool(share)).collect()
        };
        let runs = 2000;
        let alarms = (0..runs)
            .filter(|_| ShareAlarm::watch(stream(0.1, 300), 0.1).unwrap().crossed_at.is_some());
        let rate = alarms.count() as f64 / f64::from(runs);
        println!("false alarms in {runs} streams of 300: {rate}");
        assert!(rate <= 0.05, "{rate}");
        let soon = (0..200).filter(|_| {
            let alarm = ShareAlarm::watch(stream(0.3, 300), 0.1).unwrap();
            alarm.crossed_at.is_some_and(|at| at < 150)
        });
        let soon = soon.count();
        assert!(soon > 190, "{soon} of 200");
    }

    #[test]
    fn the_sequence_holds_the_share_at_every_look() {
        let mut rng = Pcg64Mcg::seed_from_u64(32);
        let runs = 500;
        let lost = (0..runs).filter(|_| {
            let mut hits = 0;
            (1..=200).any(|n| {
                hits += usize::from(rng.random_bool(0.15));
                !share_sequence(hits, n).unwrap().contains(0.15)
            })
        });
        let lost = lost.count() as f64 / f64::from(runs);
        assert!(lost <= 0.06, "{lost}");
        let nothing = share_sequence(0, 0).unwrap();
        assert_eq!((nothing.lo, nothing.hi), (0.0, 1.0));
        let none = share_sequence(0, 200).unwrap();
        assert!(none.lo == 0.0 && none.hi > 0.015 && none.hi < 0.06, "{none:?}");
    }
}
