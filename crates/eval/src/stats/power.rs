//! How many examples a question needs, to be said before anything is run.
//!
//! All formulas are the normal approximations of the paired comparison with a two-sided error of
//! 5 % (one-sided for non-inferiority) and a power of 80 %: if the difference is real, four of five
//! such test sets show it.

use super::{CONFIDENCE, StatsError, interval::z};

const POWER: f64 = 0.8;

/// Examples needed to see a difference of two shares, when the candidates disagree on a share
/// `discordance` of the examples (R. J. Connor 1987, doi 10.2307/2531961):
/// (z₁₋α⁄₂ √ψ + z_power √(ψ - δ²))² / δ².
///
/// # Errors
/// [`StatsError::Range`] unless 0 < |difference| ≤ discordance ≤ 1.
pub fn paired_sample_size(difference: f64, discordance: f64) -> Result<usize, StatsError> {
    check_difference(difference)?;
    if !(difference.abs()..=1.0).contains(&discordance) {
        let expected = "at least the difference and at most 1";
        return Err(StatsError::Range { what: "discordance", found: discordance, expected });
    }
    Ok(whole(connor(difference, discordance)))
}

/// Examples needed to show that a candidate is worse by less than `margin`, when the true
/// difference is `difference` (0: they are equal): (z₁₋α + z_power)² (ψ - δ²) / (m + δ)².
///
/// # Errors
/// [`StatsError::Range`] unless margin + difference > 0 and difference² ≤ discordance ≤ 1.
pub fn non_inferiority_sample_size(
    margin: f64,
    difference: f64,
    discordance: f64,
) -> Result<usize, StatsError> {
    let room = margin + difference;
    if !(room > 0.0 && room <= 2.0) {
        let expected = "above 0 and at most 2";
        return Err(StatsError::Range { what: "margin plus difference", found: room, expected });
    }
    if !(difference.powi(2)..=1.0).contains(&discordance) {
        let expected = "at least the difference squared and at most 1";
        return Err(StatsError::Range { what: "discordance", found: discordance, expected });
    }
    Ok(whole(non_inferiority(margin, difference, discordance)))
}

/// Examples needed to see a difference of graded scores whose differences per example have the
/// standard deviation `sd`: (z₁₋α⁄₂ + z_power)² sd² / δ².
///
/// # Errors
/// [`StatsError::Range`] unless 0 < |difference| ≤ 1 and sd ≥ 0.
pub fn graded_sample_size(difference: f64, sd: f64) -> Result<usize, StatsError> {
    check_difference(difference)?;
    if !(sd >= 0.0 && sd.is_finite()) {
        return Err(StatsError::Range { what: "sd", found: sd, expected: "at least 0" });
    }
    Ok(whole((two_sided() + z(POWER)).powi(2) * sd * sd / (difference * difference)))
}

/// The smallest difference of two shares that `n` examples show with a power of 80 %, when the
/// candidates disagree on a share `discordance` of them; None when even the largest possible,
/// `discordance` itself, is out of reach.
///
/// # Errors
/// [`StatsError::Range`] unless n > 0 and 0 < discordance ≤ 1.
pub fn detectable_difference(n: usize, discordance: f64) -> Result<Option<f64>, StatsError> {
    if n == 0 {
        return Err(StatsError::Empty);
    }
    if !(discordance > 0.0 && discordance <= 1.0) {
        let expected = "above 0 and at most 1";
        return Err(StatsError::Range { what: "discordance", found: discordance, expected });
    }
    let n = n as f64;
    if connor(discordance, discordance) > n {
        return Ok(None);
    }
    // The needed number falls as the difference grows, so bisection finds the crossing.
    let (mut lo, mut hi) = (0.0, discordance);
    for _ in 0..60 {
        let middle = (lo + hi) / 2.0;
        if connor(middle, discordance) > n { lo = middle } else { hi = middle }
    }
    Ok(Some(hi))
}

fn connor(difference: f64, discordance: f64) -> f64 {
    let spread = (discordance - difference * difference).max(0.0).sqrt();
    ((two_sided() * discordance.sqrt() + z(POWER) * spread) / difference).powi(2)
}

fn non_inferiority(margin: f64, difference: f64, discordance: f64) -> f64 {
    let z = z(CONFIDENCE) + z(POWER);
    z * z * (discordance - difference * difference) / (margin + difference).powi(2)
}

fn two_sided() -> f64 {
    z(0.5 + CONFIDENCE / 2.0)
}

fn check_difference(difference: f64) -> Result<(), StatsError> {
    if difference != 0.0 && difference.abs() <= 1.0 {
        return Ok(());
    }
    let expected = "between -1 and 1, and not 0";
    Err(StatsError::Range { what: "difference", found: difference, expected })
}

/// Rounded up; at least one example.
fn whole(n: f64) -> usize {
    (n.ceil() as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published table rounds to the nearest number; a size to plan with is rounded up.
    #[test]
    fn connor_matches_the_table() {
        let table: [(f64, [usize; 4]); 5] = [
            (0.01, [3922, 7847, 15_695, 23_544]),
            (0.02, [979, 1960, 3922, 5884]),
            (0.03, [434, 870, 1742, 2614]),
            (0.05, [0, 312, 626, 940]),
            (0.10, [0, 0, 155, 233]),
        ];
        for (difference, row) in table {
            for (discordance, expected) in [0.05, 0.1, 0.2, 0.3].into_iter().zip(row) {
                if expected == 0 {
                    continue;
                }
                let found = connor(difference, discordance);
                let what = format!("{difference} at {discordance}: {found}");
                assert_eq!(found.round() as usize, expected, "{what}");
                let planned = paired_sample_size(difference, discordance).unwrap();
                assert_eq!(planned, found.ceil() as usize);
                assert_eq!(planned, paired_sample_size(-difference, discordance).unwrap());
            }
        }
    }

    #[test]
    fn non_inferiority_matches_the_table() {
        for (margin, row) in
            [(0.02, [773, 1546, 3091]), (0.03, [343, 687, 1374]), (0.05, [124, 247, 495])]
        {
            for (discordance, expected) in [0.05, 0.1, 0.2].into_iter().zip(row) {
                let found = non_inferiority(margin, 0.0, discordance);
                assert_eq!(found.round() as usize, expected, "{margin} at {discordance}: {found}");
                let planned = non_inferiority_sample_size(margin, 0.0, discordance).unwrap();
                assert_eq!(planned, found.ceil() as usize);
            }
        }
    }

    #[test]
    fn detectable_matches_the_table_and_inverts_the_size() {
        for (n, expected) in [(50, 17.7), (100, 12.5), (200, 8.9), (500, 5.6), (1000, 4.0)] {
            let found = detectable_difference(n, 0.2).unwrap().unwrap();
            // The published values leave out δ² under the root, which makes them a little larger.
            let above = expected / 100.0 - found;
            assert!((-0.0005..0.005).contains(&above), "{n}: {found}");
            let back = paired_sample_size(found, 0.2).unwrap();
            assert!(back.abs_diff(n) <= 1, "{n}: {back}");
        }
        assert_eq!(detectable_difference(5, 0.05), Ok(None));
    }

    #[test]
    fn graded_follows_its_formula() {
        // (1.959964 + 0.841621)² · 0.3² / 0.05² = 282.56
        assert_eq!(graded_sample_size(0.05, 0.3), Ok(283));
        assert_eq!(graded_sample_size(0.5, 0.0), Ok(1));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        assert!(paired_sample_size(0.0, 0.2).is_err());
        assert!(paired_sample_size(0.3, 0.2).is_err());
        assert!(paired_sample_size(f64::NAN, 0.2).is_err());
        assert!(paired_sample_size(0.1, 1.1).is_err());
        assert!(non_inferiority_sample_size(0.0, 0.0, 0.2).is_err());
        assert!(non_inferiority_sample_size(0.02, 0.0, f64::NAN).is_err());
        assert!(graded_sample_size(0.1, f64::INFINITY).is_err());
        assert!(detectable_difference(0, 0.2).is_err());
        assert!(detectable_difference(9, 0.0).is_err());
    }
}
