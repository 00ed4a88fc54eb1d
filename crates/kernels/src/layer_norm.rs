//! LayerNorm (Ba, Kiros and Hinton, arXiv:1607.06450): y = (x - mean(x)) / sqrt(var(x) + eps) · w + b,
//! per row, with the variance over H, not H - 1. Only forward: encoders are not trained here.

use crate::simd::{Kernel, Level, Simd, dispatch_at};
use crate::vector::{load_at, rows_per_task, store_at};
use rayon::prelude::*;

/// y[T,H] = (x - mean) / sqrt(var + eps) · w + b for each row of x[T,H]; `w` and `b` have H values.
///
/// # Panics
/// When the lengths do not fit together.
pub fn layer_norm(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], eps: f32) {
    layer_norm_at(Level::detect(), y, x, w, b, eps);
}

/// Plain [`layer_norm`].
pub fn reference_layer_norm(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], eps: f32) {
    let h = w.len();
    for (y, x) in y.chunks_exact_mut(h).zip(x.chunks_exact(h)) {
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / h as f64;
        let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / h as f64;
        let r = 1.0 / (variance + f64::from(eps)).sqrt();
        for i in 0..h {
            y[i] = ((f64::from(x[i]) - mean) * r * f64::from(w[i]) + f64::from(b[i])) as f32;
        }
    }
}

fn layer_norm_at(level: Level, y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], eps: f32) {
    let h = w.len();
    assert!(
        b.len() == h && y.len() == x.len() && x.len().checked_rem(h).unwrap_or(x.len()) == 0,
        "layer_norm: y, x, w and b of {}, {}, {h} and {} values are not [T, H], [T, H], [H] and [H]",
        y.len(),
        x.len(),
        b.len()
    );
    if x.is_empty() {
        return;
    }
    let stride = rows_per_task(h) * h;
    y.par_chunks_mut(stride)
        .zip(x.par_chunks(stride))
        .for_each(|(y, x)| dispatch_at(level, Forward { y, x, w, b, eps }));
}

struct Forward<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    w: &'a [f32],
    b: &'a [f32],
    eps: f32,
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let h = self.w.len();
        for (y, x) in self.y.chunks_exact_mut(h).zip(self.x.chunks_exact(h)) {
            let (y, x) = (y.as_mut_ptr(), x.as_ptr());
            let (w, b) = (self.w.as_ptr(), self.b.as_ptr());
            // SAFETY: all four cover h values.
            unsafe {
                let mut sum = S::zero();
                let mut i = 0;
                while i < h {
                    sum = S::add(sum, load_at::<S>(x, i, h, 0.0));
                    i += S::LANES;
                }
                let mean = S::sum(sum) / h as f32;
                let shift = S::splat(mean);
                let mut squares = S::zero();
                i = 0;
                while i < h {
                    // Lanes past the end hold the mean and add nothing.
                    let d = S::sub(load_at::<S>(x, i, h, mean), shift);
                    squares = S::fma(d, d, squares);
                    i += S::LANES;
                }
                let r = S::splat(1.0 / (S::sum(squares) / h as f32 + self.eps).sqrt());
                i = 0;
                while i < h {
                    let d = S::mul(S::sub(load_at::<S>(x, i, h, mean), shift), r);
                    let v = S::fma(d, load_at::<S>(w, i, h, 0.0), load_at::<S>(b, i, h, 0.0));
                    store_at::<S>(y, i, h, v);
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
            for (t, h) in [(1, 1), (3, 7), (5, 16), (2, 33), (300, 130), (4, 576)] {
                // Far from zero, so that the mean matters.
                let x: Vec<f32> = random(t * h, 1).iter().map(|v| v * 3.0 + 5.0).collect();
                let (w, b) = (random(h, 2), random(h, 3));
                let (mut y, mut expected) = (vec![9.0; t * h], vec![0.0; t * h]);
                layer_norm_at(level, &mut y, &x, &w, &b, 1e-5);
                reference_layer_norm(&mut expected, &x, &w, &b, 1e-5);
                assert_close(&y, &expected, 1e-5, "y");
            }
        }
    }

    #[test]
    fn known_values() {
        // PyTorch's layer_norm([1, 2, 4], weight [1, 2, 1], bias [0, 0, 1], eps 1e-5).
        let mut y = [0.0; 3];
        layer_norm(&mut y, &[1.0, 2.0, 4.0], &[1.0, 2.0, 1.0], &[0.0, 0.0, 1.0], 1e-5);
        assert_close(&y, &[-1.069_041_5, -0.534_520_8, 2.336_301_9], 1e-6, "y");
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_batch() {
        let (t, h) = (70, 515);
        let (x, w, b) = (random(t * h, 1), random(h, 2), random(h, 3));
        let all = |threads| {
            with_threads(threads, || {
                let mut y = vec![0.0; t * h];
                layer_norm(&mut y, &x, &w, &b, 1e-12);
                y
            })
        };
        let one = all(1);
        assert_same_bits(&one, &all(3), "threads");
        for row in [0, 31, 69] {
            let own = row * h..(row + 1) * h;
            let mut y = vec![0.0; h];
            layer_norm(&mut y, &x[own.clone()], &w, &b, 1e-12);
            assert_same_bits(&y, &one[own], "row alone");
        }
    }

    #[test]
    fn nothing_and_nan() {
        layer_norm(&mut [], &[], &[1.0], &[0.0], 1e-5);
        let mut y = [0.0; 2];
        layer_norm(&mut y, &[f32::NAN, 1.0], &[1.0; 2], &[0.0; 2], 1e-5);
        assert!(y.iter().all(|v| v.is_nan()), "NaN is not hidden");
    }
}
