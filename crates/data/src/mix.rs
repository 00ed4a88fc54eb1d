//! How often each source's rows are seen: the training set of one epoch from several sources.

use std::cmp::Ordering;

use sha2::{Digest, Sha256};

use crate::error::DataError;

/// A weight above this is a mistake: the same rows a hundred times in an epoch are learnt by heart.
const MOST: f64 = 100.0;

/// A row of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Drawn {
    /// Number of the source, from 0.
    pub source: usize,
    /// Number of the row in it, from 0.
    pub row: usize,
}

/// The rows of an epoch: each source's `rows[i]` rows `weights[i]` times.
///
/// With weight 1 a source's rows are all seen once, with 3 three times. Of the fraction of a weight
/// (0.25, or that of 1.25) a seeded sample without replacement is seen once more: its size is that
/// share of the source, rounded to the nearest (halves up), and one row at least where the weight
/// is below 1. So no row is seen more often than another by more than one. The same numbers and seed
/// give the same list, in the order of the sources and rows; what is drawn from one source depends
/// on its own rows, weight and number alone, and a larger fraction only adds rows.
///
/// # Errors
/// [`DataError::Option`] for a weight that is not above 0 and at most 100, or when there is not one
/// weight for each source.
pub fn mix(rows: &[usize], weights: &[f64], seed: u64) -> Result<Vec<Drawn>, DataError> {
    if rows.len() != weights.len() {
        return Err(DataError::Option {
            option: "weights",
            found: format!("{} for {} sources", weights.len(), rows.len()),
            expected: "one for each source",
        });
    }
    let mut drawn = Vec::new();
    for (source, (&rows, &weight)) in rows.iter().zip(weights).enumerate() {
        // Not `weight <= 0.0`, which a NaN would pass.
        if weight.partial_cmp(&0.0) != Some(Ordering::Greater) || weight > MOST {
            return Err(DataError::Option {
                option: "weight",
                found: weight.to_string(),
                expected: "a number above 0 and at most 100: how often the rows are seen per epoch",
            });
        }
        let whole = weight.trunc() as usize;
        let share = (weight.fract() * rows as f64).round() as usize;
        let more = share.max(usize::from(whole == 0 && rows > 0)).min(rows);
        for _ in 0..whole {
            drawn.extend((0..rows).map(|row| Drawn { source, row }));
        }
        drawn.extend(sample(source, rows, more, seed).map(|row| Drawn { source, row }));
    }
    Ok(drawn)
}

/// `count` of the rows, those whose hashes are lowest, in ascending order.
fn sample(source: usize, rows: usize, count: usize, seed: u64) -> impl Iterator<Item = usize> {
    let key = |row: usize| {
        let mut hasher = Sha256::new();
        for number in [seed, source as u64, row as u64] {
            hasher.update(number.to_le_bytes());
        }
        let digest = hasher.finalize();
        u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
    };
    let mut chosen: Vec<(u64, usize)> = match count {
        0 => Vec::new(),
        _ => (0..rows).map(|row| (key(row), row)).collect(),
    };
    chosen.sort_unstable();
    chosen.truncate(count);
    let mut chosen: Vec<usize> = chosen.into_iter().map(|(_, row)| row).collect();
    chosen.sort_unstable();
    chosen.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn times(drawn: &[Drawn], source: usize, rows: usize) -> Vec<usize> {
        let mut times = vec![0; rows];
        drawn.iter().filter(|d| d.source == source).for_each(|d| times[d.row] += 1);
        times
    }

    #[test]
    fn weights_say_how_often() {
        let drawn = mix(&[4, 3, 8, 1000], &[1.0, 2.0, 0.25, 1.5], 7).unwrap();
        assert_eq!(times(&drawn, 0, 4), [1; 4]);
        assert_eq!(times(&drawn, 1, 3), [2; 3]);
        let quarter = times(&drawn, 2, 8);
        assert_eq!(quarter.iter().sum::<usize>(), 2);
        assert_eq!(quarter.iter().max(), Some(&1));
        let half_more = times(&drawn, 3, 1000);
        assert_eq!(half_more.iter().sum::<usize>(), 1500);
        // A sample, and not the first half.
        let early: usize = half_more[..500].iter().map(|n| n - 1).sum();
        assert!((200..300).contains(&early), "{early}");

        assert_eq!(drawn, mix(&[4, 3, 8, 1000], &[1.0, 2.0, 0.25, 1.5], 7).unwrap());
        assert_ne!(drawn, mix(&[4, 3, 8, 1000], &[1.0, 2.0, 0.25, 1.5], 8).unwrap());
        assert_eq!(mix(&[5], &[0.01], 0).unwrap().len(), 1);
        assert_eq!(mix(&[0], &[0.5], 0).unwrap(), []);
    }

    #[test]
    fn weights_out_of_range_are_refused() {
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 100.5] {
            let error = mix(&[3], &[weight], 0).unwrap_err().to_string();
            assert!(error.contains("weight: found") && error.contains("above 0"), "{error}");
        }
        assert!(mix(&[3], &[], 0).is_err());
    }

    proptest! {
        #[test]
        fn no_row_is_seen_oftener_than_another(rows in 1usize..60, weight in 0.01f64..4.0, seed: u64) {
            let times = times(&mix(&[rows], &[weight], seed).unwrap(), 0, rows);
            let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
            prop_assert!(most - least <= 1);
            let total = times.iter().sum::<usize>() as f64;
            prop_assert!((total - weight * rows as f64).abs() <= 0.5 || total == 1.0);
        }

        #[test]
        fn a_larger_share_only_adds(rows in 1usize..60, less in 0.01f64..1.0, more in 0.01f64..1.0, seed: u64) {
            let (less, more) = (less.min(more), less.max(more));
            let few = mix(&[rows], &[less], seed).unwrap();
            let many = mix(&[rows], &[more], seed).unwrap();
            prop_assert!(few.iter().all(|drawn| many.contains(drawn)));
        }
    }
}
