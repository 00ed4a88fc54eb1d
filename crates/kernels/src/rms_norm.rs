//! RMSNorm (Zhang and Sennrich, arXiv:1910.07467): y = x / sqrt(mean(x²) + eps) · w, per row.

use crate::simd::{Kernel, Level, Simd, dispatch_at};
use crate::vector::{SharedOutput, dot, load_at, rows_per_task, store_at};
use rayon::prelude::*;

/// y[T,H] = x / sqrt(mean(x²) + eps) · w for each row of x[T,H]; `w` has H values.
///
/// # Panics
/// When the lengths do not fit together.
pub fn rms_norm(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    rms_norm_at(Level::detect(), y, x, w, eps);
}

/// Gradients of [`rms_norm`]: dx[T,H] += ..., and dw[H] += ... where wanted.
///
/// With r = 1/sqrt(mean(x²) + eps): dx = r·(dy·w - x·r²·mean(dy·w·x)), dw = Σ_rows dy·x·r.
///
/// # Panics
/// When the lengths do not fit together.
pub fn rms_norm_backward(
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    eps: f32,
) {
    rms_norm_backward_at(Level::detect(), dx, dw, dy, x, w, eps);
}

/// Plain [`rms_norm`].
pub fn reference_rms_norm(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let h = w.len();
    for (y, x) in y.chunks_exact_mut(h).zip(x.chunks_exact(h)) {
        let r = reference_inverse_rms(x, eps);
        for i in 0..h {
            y[i] = (f64::from(x[i]) * r * f64::from(w[i])) as f32;
        }
    }
}

/// Plain [`rms_norm_backward`].
pub fn reference_rms_norm_backward(
    dx: &mut [f32],
    mut dw: Option<&mut [f32]>,
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    eps: f32,
) {
    let h = w.len();
    for ((dx, dy), x) in dx.chunks_exact_mut(h).zip(dy.chunks_exact(h)).zip(x.chunks_exact(h)) {
        let r = reference_inverse_rms(x, eps);
        let mean: f64 =
            (0..h).map(|i| f64::from(dy[i]) * f64::from(w[i]) * f64::from(x[i])).sum::<f64>()
                / h as f64;
        for i in 0..h {
            let through = f64::from(dy[i]) * f64::from(w[i]) - f64::from(x[i]) * r * r * mean;
            dx[i] += (r * through) as f32;
        }
        if let Some(dw) = dw.as_deref_mut() {
            for i in 0..h {
                dw[i] += (f64::from(dy[i]) * f64::from(x[i]) * r) as f32;
            }
        }
    }
}

fn reference_inverse_rms(x: &[f32], eps: f32) -> f64 {
    let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
    1.0 / (mean + f64::from(eps)).sqrt()
}

fn rms_norm_at(level: Level, y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let h = w.len();
    check(h, &[y.len(), x.len()]);
    if x.is_empty() {
        return;
    }
    let stride = rows_per_task(h) * h;
    y.par_chunks_mut(stride)
        .zip(x.par_chunks(stride))
        .for_each(|(y, x)| dispatch_at(level, Forward { y, x, w, eps }));
}

fn rms_norm_backward_at(
    level: Level,
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    eps: f32,
) {
    let h = w.len();
    check(h, &[dx.len(), dy.len(), x.len()]);
    if let Some(dw) = &dw {
        assert_eq!(dw.len(), h, "rms_norm: dw has {} values, expected {h}", dw.len());
    }
    if x.is_empty() {
        return;
    }
    let rows = rows_per_task(h);
    let mut inverse = vec![0.0; x.len() / h];
    dx.par_chunks_mut(rows * h)
        .zip(dy.par_chunks(rows * h))
        .zip(x.par_chunks(rows * h))
        .zip(inverse.par_chunks_mut(rows))
        .for_each(|(((dx, dy), x), inverse)| {
            dispatch_at(level, BackwardInput { dx, dy, x, w, inverse, eps })
        });
    if let Some(dw) = dw {
        // Split over columns: each column is summed over the rows in order, whoever does it.
        let columns = 128;
        let out = SharedOutput::new(dw);
        let inverse = &inverse;
        (0..h.div_ceil(columns)).into_par_iter().for_each(|block| {
            let start = block * columns;
            let width = columns.min(h - start);
            dispatch_at(level, BackwardWeight { dw: out, start, width, h, dy, x, inverse })
        });
    }
}

fn check(h: usize, lengths: &[usize]) {
    assert!(h > 0 || lengths.iter().all(|l| *l == 0), "rms_norm: the weight is empty");
    for length in lengths {
        assert!(
            *length == lengths[0] && length.is_multiple_of(h.max(1)),
            "rms_norm: {lengths:?} values do not form equal [rows, {h}] matrices"
        );
    }
}

struct Forward<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let h = self.w.len();
        for (y, x) in self.y.chunks_exact_mut(h).zip(self.x.chunks_exact(h)) {
            let (y, x, w) = (y.as_mut_ptr(), x.as_ptr(), self.w.as_ptr());
            // SAFETY: all three cover h values.
            unsafe {
                let r = S::splat(inverse_rms::<S>(x, h, self.eps));
                let mut i = 0;
                while i < h {
                    let scaled = S::mul(load_at::<S>(x, i, h, 0.0), r);
                    store_at::<S>(y, i, h, S::mul(scaled, load_at::<S>(w, i, h, 0.0)));
                    i += S::LANES;
                }
            }
        }
    }
}

struct BackwardInput<'a> {
    dx: &'a mut [f32],
    dy: &'a [f32],
    x: &'a [f32],
    w: &'a [f32],
    inverse: &'a mut [f32],
    eps: f32,
}

impl Kernel for BackwardInput<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let h = self.w.len();
        let rows = self.dx.chunks_exact_mut(h).zip(self.dy.chunks_exact(h));
        for (((dx, dy), x), inverse) in rows.zip(self.x.chunks_exact(h)).zip(self.inverse) {
            let (dx, dy, x, w) = (dx.as_mut_ptr(), dy.as_ptr(), x.as_ptr(), self.w.as_ptr());
            // SAFETY: all four cover h values.
            unsafe {
                let r = inverse_rms::<S>(x, h, self.eps);
                *inverse = r;
                let mut sum = S::zero();
                let mut i = 0;
                while i < h {
                    let dyw = S::mul(load_at::<S>(dy, i, h, 0.0), load_at::<S>(w, i, h, 0.0));
                    sum = S::fma(dyw, load_at::<S>(x, i, h, 0.0), sum);
                    i += S::LANES;
                }
                let pull = S::splat(-r * r * r * (S::sum(sum) / h as f32));
                let r = S::splat(r);
                i = 0;
                while i < h {
                    let dyw = S::mul(load_at::<S>(dy, i, h, 0.0), load_at::<S>(w, i, h, 0.0));
                    let mut d = S::fma(dyw, r, load_at::<S>(dx, i, h, 0.0));
                    d = S::fma(load_at::<S>(x, i, h, 0.0), pull, d);
                    store_at::<S>(dx, i, h, d);
                    i += S::LANES;
                }
            }
        }
    }
}

struct BackwardWeight<'a> {
    dw: SharedOutput,
    start: usize,
    width: usize,
    h: usize,
    dy: &'a [f32],
    x: &'a [f32],
    inverse: &'a [f32],
}

impl Kernel for BackwardWeight<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (h, n) = (self.h, self.width);
        // SAFETY: columns start..start + width of h are this task's own; rows cover h values.
        unsafe {
            let dw = self.dw.at(self.start);
            for (row, r) in self.inverse.iter().enumerate() {
                let dy = self.dy.as_ptr().add(row * h + self.start);
                let x = self.x.as_ptr().add(row * h + self.start);
                let r = S::splat(*r);
                let mut i = 0;
                while i < n {
                    let scaled = S::mul(load_at::<S>(x, i, n, 0.0), r);
                    let sum =
                        S::fma(load_at::<S>(dy, i, n, 0.0), scaled, load_at::<S>(dw, i, n, 0.0));
                    store_at::<S>(dw, i, n, sum);
                    i += S::LANES;
                }
            }
        }
    }
}

/// # Safety
/// The level of `S` must be supported; `x` must cover `h` values.
#[inline(always)]
unsafe fn inverse_rms<S: Simd>(x: *const f32, h: usize, eps: f32) -> f32 {
    // SAFETY: the caller's promise.
    1.0 / (unsafe { dot::<S>(x, x, h) } / h as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::testing::*;

    const SIZES: [(usize, usize); 6] = [(1, 1), (3, 7), (5, 16), (2, 33), (300, 130), (4, 576)];

    #[test]
    fn every_level_equals_the_reference() {
        for level in Level::available() {
            for (t, h) in SIZES {
                let (x, w, dy) = (random(t * h, 1), random(h, 2), random(t * h, 3));
                let (mut y, mut expected) = (vec![0.0; t * h], vec![0.0; t * h]);
                rms_norm_at(level, &mut y, &x, &w, 1e-5);
                reference_rms_norm(&mut expected, &x, &w, 1e-5);
                assert_close(&y, &expected, 1e-5, "y");
                // Gradients are added to what is there.
                let (mut dx, mut dw) = (random(t * h, 4), random(h, 5));
                let (mut dx_ref, mut dw_ref) = (dx.clone(), dw.clone());
                rms_norm_backward_at(level, &mut dx, Some(&mut dw), &dy, &x, &w, 1e-5);
                reference_rms_norm_backward(&mut dx_ref, Some(&mut dw_ref), &dy, &x, &w, 1e-5);
                assert_close(&dx, &dx_ref, 2e-4, "dx");
                assert_close(&dw, &dw_ref, 2e-4, "dw");
            }
        }
    }

    #[test]
    fn gradient_is_the_slope() {
        let (t, h) = (2, 5);
        let (x, w, dy) = (random(t * h, 1), random(h, 2), random(t * h, 3));
        let (mut dx, mut dw) = (vec![0.0; t * h], vec![0.0; h]);
        reference_rms_norm_backward(&mut dx, Some(&mut dw), &dy, &x, &w, 1e-5);
        let loss = |x: &[f32], w: &[f32]| {
            let mut y = vec![0.0; t * h];
            reference_rms_norm(&mut y, x, w, 1e-5);
            inner(&y, &dy)
        };
        assert_gradient(&x, &dx, 3e-3, "dx", |x| loss(x, &w));
        assert_gradient(&w, &dw, 3e-3, "dw", |w| loss(&x, w));
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_batch() {
        let (t, h) = (70, 515);
        let (x, w, dy) = (random(t * h, 1), random(h, 2), random(t * h, 3));
        let all = |threads| {
            with_threads(threads, || {
                let (mut y, mut dx, mut dw) = (vec![0.0; t * h], vec![0.0; t * h], vec![0.0; h]);
                rms_norm(&mut y, &x, &w, 1e-6);
                rms_norm_backward(&mut dx, Some(&mut dw), &dy, &x, &w, 1e-6);
                (y, dx, dw)
            })
        };
        let (one, three) = (all(1), all(3));
        assert_same_bits(&one.0, &three.0, "y");
        assert_same_bits(&one.1, &three.1, "dx");
        assert_same_bits(&one.2, &three.2, "dw");
        for row in [0, 31, 69] {
            let own = row * h..(row + 1) * h;
            let (mut y, mut dx) = (vec![0.0; h], vec![0.0; h]);
            rms_norm(&mut y, &x[own.clone()], &w, 1e-6);
            rms_norm_backward(&mut dx, None, &dy[own.clone()], &x[own.clone()], &w, 1e-6);
            assert_same_bits(&y, &one.0[own.clone()], "row alone");
            assert_same_bits(&dx, &one.1[own], "gradient of a row alone");
        }
    }

    #[test]
    fn no_rows_is_no_work() {
        rms_norm(&mut [], &[], &[1.0], 1e-5);
        rms_norm_backward(&mut [], Some(&mut [0.0]), &[], &[], &[1.0], 1e-5);
    }
}
