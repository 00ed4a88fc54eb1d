//! Work whose speed shows what this machine can do at best: reading memory, and fused
//! multiply-adds that wait for nothing. Timed from outside, they are the two lines of the roofline
//! (Williams, Waterman and Patterson, CACM 52(4), 2009) that kernels are held against.

use crate::simd::{Kernel, Level, Simd, dispatch_at};
use rayon::prelude::*;

/// Reads every value once, on all threads. Returns their sum, so that no read can be left out.
pub fn read_all(values: &[f32]) -> f32 {
    let level = Level::detect();
    values.par_chunks(READ_CHUNK).map(|chunk| dispatch_at(level, Read(chunk))).sum()
}

/// Runs `rounds` rounds of independent fused multiply-adds on every thread. Returns the floating
/// point operations done (two for each multiply-add) and a value that depends on all of them.
pub fn multiply_adds(rounds: usize) -> (f64, f32) {
    let level = Level::detect();
    let threads = rayon::current_num_threads();
    let results: Vec<(f64, f32)> = (0..threads)
        .into_par_iter()
        .with_max_len(1)
        .map(|_| dispatch_at(level, MultiplyAdds { rounds }))
        .collect();
    results.into_iter().fold((0.0, 0.0), |(ops, sum), (o, s)| (ops + o, sum + s))
}

/// Values that one task reads: 4 MiB, so that the pool's bookkeeping is of no account.
const READ_CHUNK: usize = 1 << 20;
/// Sums under way while reading, so that additions hide behind loads.
const SUMS: usize = 8;
/// Chains of multiply-adds under way: enough for two units with a latency of four to six cycles.
const CHAINS: usize = 12;

struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let step = SUMS * S::LANES;
        let whole = self.0.len() / step * step;
        // SAFETY: the processor supports S (the caller's promise); every load is inside `whole`.
        let sum = unsafe {
            let mut sums = [S::zero(); SUMS];
            for start in (0..whole).step_by(step) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(self.0.as_ptr().add(start + i * S::LANES)));
                }
            }
            S::sum(sums.into_iter().reduce(|a, b| S::add(a, b)).unwrap_or(S::zero()))
        };
        sum + self.0[whole..].iter().sum::<f32>()
    }
}

struct MultiplyAdds {
    rounds: usize,
}

impl Kernel for MultiplyAdds {
    type Output = (f64, f32);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (f64, f32) {
        // SAFETY: the processor supports S (the caller's promise); no memory is touched.
        let sum = unsafe {
            let (x, y) = (S::splat(0.999), S::splat(1e-3));
            let mut chains = [S::splat(0.5); CHAINS];
            for _ in 0..self.rounds {
                for chain in &mut chains {
                    *chain = S::fma(*chain, x, y);
                }
            }
            S::sum(chains.into_iter().reduce(|a, b| S::add(a, b)).unwrap_or(S::zero()))
        };
        (self.rounds as f64 * (CHAINS * S::LANES * 2) as f64, sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_read_at_every_level() {
        for len in [0, 1, 127, 128, 1000, READ_CHUNK + 77] {
            let values: Vec<f32> = (0..len).map(|i| (i % 7) as f32).collect();
            let expected: f64 = values.iter().map(|&v| f64::from(v)).sum();
            let close = |found: f32| (f64::from(found) - expected).abs() <= 1e-3 * expected;
            assert!(close(read_all(&values)), "{len}");
            for level in Level::available() {
                assert!(close(dispatch_at(level, Read(&values))), "{level:?}, {len}");
            }
        }
    }

    #[test]
    fn every_multiply_add_counts() {
        // x <- 0.999 x + 0.001 goes from 0.5 to 1.
        for level in Level::available() {
            let (ops, sum) = dispatch_at(level, MultiplyAdds { rounds: 20_000 });
            let lanes = ops / (20_000.0 * (CHAINS * 2) as f64);
            assert!(lanes == 8.0 || lanes == 16.0, "{level:?}: {lanes}");
            assert!((f64::from(sum) / (lanes * CHAINS as f64) - 1.0).abs() < 1e-3, "{level:?}");
        }
        assert_eq!(multiply_adds(3).0, multiply_adds(1).0 * 3.0);
    }
}
