//! Dropout (JMLR 15, 2014) whose draws are a function of a key and of the place alone: the backward,
//! a forward computed again, a resumed run and any other packing of the batch drop the same values,
//! and nothing is stored.

use rayon::prelude::*;

/// Each value of `x` `[T, K]` becomes zero with probability `p` (in steps of 1/65536), and is divided
/// by the probability of staying otherwise. Which, is decided by `key`, `stream`, the row's number,
/// counted from `first`, and the column.
///
/// # Panics
/// When `x` is not whole rows of `k` values, or `p` is not from 0 to below 1.
pub fn dropout(x: &mut [f32], k: usize, p: f32, key: u64, stream: u64, first: u64) {
    assert!((0.0..1.0).contains(&p), "a dropout of {p}");
    if x.is_empty() {
        return;
    }
    assert!(x.len().is_multiple_of(k), "{} values in rows of {k}", x.len());
    let limit = (p * 65536.0) as u64;
    let scale = 65536.0 / (65536 - limit) as f32;
    let key = mix(key ^ mix(stream));
    x.par_chunks_mut(k).enumerate().for_each(|(row, x)| {
        let key = mix(key ^ (first + row as u64));
        for (i, four) in x.chunks_mut(4).enumerate() {
            let draws = mix(key.wrapping_add((i as u64).wrapping_mul(GOLDEN)));
            for (j, x) in four.iter_mut().enumerate() {
                let draw = (draws >> (16 * j)) & 0xffff;
                *x = if draw < limit { 0.0 } else { *x * scale };
            }
        }
    });
}

/// 2^64 over the golden ratio: multiples of it lie far apart.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(GOLDEN);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(rows: usize, k: usize, p: f32, key: u64, stream: u64, first: u64) -> Vec<f32> {
        let mut x = vec![1.0; rows * k];
        dropout(&mut x, k, p, key, stream, first);
        x
    }

    #[test]
    fn the_share_and_the_mean_are_as_asked() {
        for p in [0.05f32, 0.1, 0.5] {
            let x = drawn(200, 250, p, 7, 3, 0);
            let count = x.len() as f64;
            let zeros = x.iter().filter(|&&x| x == 0.0).count() as f64 / count;
            // Four standard deviations.
            let bound = 4.0 * (p as f64 * (1.0 - p as f64) / count).sqrt();
            assert!((zeros - p as f64).abs() < bound, "{zeros} of {p}");
            let mean = x.iter().map(|&x| x as f64).sum::<f64>() / count;
            assert!((mean - 1.0).abs() < bound / (1.0 - p as f64), "{mean}");
            // No column and no row is special.
            for column in 0..250 {
                let kept = x.iter().skip(column).step_by(250).filter(|&&x| x != 0.0).count();
                assert!((kept as f64 - 200.0 * (1.0 - p as f64)).abs() < 45.0, "{column}: {kept}");
            }
        }
        assert!(drawn(3, 5, 0.0, 1, 1, 0).iter().all(|&x| x == 1.0));
    }

    #[test]
    fn draws_depend_on_key_stream_and_place_only() {
        let all = drawn(40, 33, 0.3, 5, 2, 0);
        assert_eq!(all[17 * 33..], drawn(23, 33, 0.3, 5, 2, 17));
        assert_ne!(all, drawn(40, 33, 0.3, 6, 2, 0));
        assert_ne!(all, drawn(40, 33, 0.3, 5, 3, 0));
        assert_ne!(all[..33], all[33..66]);
    }
}
