//! Softmax over rows, in place.

use crate::simd::{Kernel, Level, Simd, dispatch_at};
use crate::vector::{dot, exp_in_place, load_at, max, rows_per_task, scale, store_at};
use rayon::prelude::*;

/// x[T,n] becomes e^x / Σ e^x, row by row. A row with a NaN becomes NaN.
///
/// # Panics
/// When `x` is not a whole number of rows of `n`.
pub fn softmax(x: &mut [f32], n: usize) {
    softmax_at(Level::detect(), x, n);
}

/// Gradient of [`softmax`]: dx = y·(dy - Σ dy·y) per row, with y = softmax(x). `dx` is overwritten.
///
/// # Panics
/// When the lengths differ or are not whole numbers of rows of `n`.
pub fn softmax_backward(dx: &mut [f32], dy: &[f32], y: &[f32], n: usize) {
    softmax_backward_at(Level::detect(), dx, dy, y, n);
}

/// Plain [`softmax`].
pub fn reference_softmax(x: &mut [f32], n: usize) {
    for row in x.chunks_exact_mut(n.max(1)) {
        let largest = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
        let sum: f64 = row.iter().map(|v| f64::from(v - largest).exp()).sum();
        for v in row {
            *v = (f64::from(*v - largest).exp() / sum) as f32;
        }
    }
}

/// Plain [`softmax_backward`].
pub fn reference_softmax_backward(dx: &mut [f32], dy: &[f32], y: &[f32], n: usize) {
    let rows = dy.chunks_exact(n.max(1)).zip(y.chunks_exact(n.max(1)));
    for (dx, (dy, y)) in dx.chunks_exact_mut(n.max(1)).zip(rows) {
        let sum: f64 = dy.iter().zip(y).map(|(d, y)| f64::from(*d) * f64::from(*y)).sum();
        for i in 0..n {
            dx[i] = (f64::from(y[i]) * (f64::from(dy[i]) - sum)) as f32;
        }
    }
}

fn softmax_at(level: Level, x: &mut [f32], n: usize) {
    check(n, &[x.len()]);
    if !x.is_empty() {
        x.par_chunks_mut(rows_per_task(n) * n).for_each(|x| dispatch_at(level, Forward { x, n }));
    }
}

fn softmax_backward_at(level: Level, dx: &mut [f32], dy: &[f32], y: &[f32], n: usize) {
    check(n, &[dx.len(), dy.len(), y.len()]);
    if dx.is_empty() {
        return;
    }
    let stride = rows_per_task(n) * n;
    dx.par_chunks_mut(stride)
        .zip(dy.par_chunks(stride))
        .zip(y.par_chunks(stride))
        .for_each(|((dx, dy), y)| dispatch_at(level, Backward { dx, dy, y, n }));
}

fn check(n: usize, lengths: &[usize]) {
    for length in lengths {
        assert!(
            *length == lengths[0] && if n == 0 { *length == 0 } else { length.is_multiple_of(n) },
            "softmax: {lengths:?} values do not form equal [rows, {n}] matrices"
        );
    }
}

struct Forward<'a> {
    x: &'a mut [f32],
    n: usize,
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for row in self.x.chunks_exact_mut(self.n) {
            // SAFETY: the row covers n values.
            unsafe {
                let largest = max::<S>(row.as_ptr(), self.n);
                let sum = exp_in_place::<S>(row.as_mut_ptr(), self.n, largest);
                scale::<S>(row.as_mut_ptr(), self.n, (1.0 / sum) as f32);
            }
        }
    }
}

struct Backward<'a> {
    dx: &'a mut [f32],
    dy: &'a [f32],
    y: &'a [f32],
    n: usize,
}

impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.n;
        let rows = self.dy.chunks_exact(n).zip(self.y.chunks_exact(n));
        for (dx, (dy, y)) in self.dx.chunks_exact_mut(n).zip(rows) {
            let (dx, dy, y) = (dx.as_mut_ptr(), dy.as_ptr(), y.as_ptr());
            // SAFETY: the rows cover n values.
            unsafe {
                let sum = S::splat(dot::<S>(dy, y, n));
                let mut i = 0;
                while i < n {
                    let d = S::sub(load_at::<S>(dy, i, n, 0.0), sum);
                    store_at::<S>(dx, i, n, S::mul(load_at::<S>(y, i, n, 0.0), d));
                    i += S::LANES;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::testing::*;

    #[test]
    fn every_level_equals_the_reference() {
        for level in Level::available() {
            for (t, n) in [(1, 1), (3, 7), (2, 16), (5, 33), (300, 100), (2, 4099)] {
                let x: Vec<f32> = random(t * n, 1).iter().map(|v| v * 30.0).collect();
                let (mut y, mut expected) = (x.clone(), x);
                softmax_at(level, &mut y, n);
                reference_softmax(&mut expected, n);
                assert_close(&y, &expected, 2e-6, "y");
                for row in y.chunks(n) {
                    assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                }
                let dy = random(t * n, 2);
                let (mut dx, mut dx_ref) = (vec![9.0; t * n], vec![0.0; t * n]);
                softmax_backward_at(level, &mut dx, &dy, &y, n);
                reference_softmax_backward(&mut dx_ref, &dy, &y, n);
                assert_close(&dx, &dx_ref, 2e-6, "dx");
            }
        }
    }

    #[test]
    fn gradient_is_the_slope() {
        let (t, n) = (2, 5);
        let (x, dy) = (random(t * n, 1), random(t * n, 2));
        let mut y = x.clone();
        reference_softmax(&mut y, n);
        let mut dx = vec![0.0; t * n];
        reference_softmax_backward(&mut dx, &dy, &y, n);
        assert_gradient(&x, &dx, 1e-3, "dx", |x| {
            let mut y = x.to_vec();
            reference_softmax(&mut y, n);
            inner(&y, &dy)
        });
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_batch() {
        let (t, n) = (200, 309);
        let (x, dy) = (random(t * n, 1), random(t * n, 2));
        let all = |threads| {
            with_threads(threads, || {
                let (mut y, mut dx) = (x.clone(), vec![0.0; t * n]);
                softmax(&mut y, n);
                softmax_backward(&mut dx, &dy, &y, n);
                (y, dx)
            })
        };
        let (one, three) = (all(1), all(3));
        assert_same_bits(&one.0, &three.0, "y");
        assert_same_bits(&one.1, &three.1, "dx");
        let own = 150 * n..151 * n;
        let mut alone = x[own.clone()].to_vec();
        softmax(&mut alone, n);
        assert_same_bits(&alone, &one.0[own], "row alone");
    }

    #[test]
    fn large_values_do_not_overflow_and_nan_is_not_hidden() {
        let mut x = [1e30, 1e30, -1e30];
        softmax(&mut x, 3);
        assert_close(&x, &[0.5, 0.5, 0.0], 1e-6, "large");
        let mut x = [0.0, f32::NAN, 1.0];
        softmax(&mut x, 3);
        assert!(x.iter().all(|v| v.is_nan()));
    }
}
