//! What some families put between the large operations, value by value: factors, biases, and the
//! soft cap y = cap·tanh(x/cap) (Bello et al., arXiv:1611.09940; Gemma 2, arXiv:2408.00118).

use crate::simd::{Kernel, Level, Simd, dispatch_at};
use crate::vector::{load_at, store_at};
use half::bf16;
use rayon::prelude::*;

/// Values per parallel task.
const CHUNK: usize = 16_384;

/// y += factor · x; of one length.
///
/// # Panics
/// When the lengths differ.
pub fn add_scaled(y: &mut [f32], x: &[f32], factor: f32) {
    assert_eq!(y.len(), x.len(), "add_scaled: lengths differ");
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
    });
}

/// x · factor, in place.
pub fn scale_inplace(x: &mut [f32], factor: f32) {
    x.par_chunks_mut(CHUNK).for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
}

/// to = from, rounded to nearest even; of one length.
///
/// # Panics
/// When the lengths differ.
pub fn to_bf16(to: &mut [bf16], from: &[f32]) {
    assert_eq!(to.len(), from.len(), "to_bf16: lengths differ");
    let level = Level::detect();
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        dispatch_at(level, Round { to, from });
    });
}

/// to = from, exactly; of one length.
///
/// # Panics
/// When the lengths differ.
pub fn from_bf16(to: &mut [f32], from: &[bf16]) {
    assert_eq!(to.len(), from.len(), "from_bf16: lengths differ");
    let level = Level::detect();
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        dispatch_at(level, Widen { to, from });
    });
}

/// Adds `row` [N] to every row of y [T, N].
///
/// # Panics
/// When `y` is not whole rows.
pub fn add_row(y: &mut [f32], row: &[f32]) {
    let n = row.len();
    assert!(n > 0 && y.len().is_multiple_of(n), "add_row: {} values, rows of {n}", y.len());
    let rows = (CHUNK / n).max(1);
    y.par_chunks_mut(rows * n).for_each(|y| {
        for y in y.chunks_exact_mut(n) {
            y.iter_mut().zip(row).for_each(|(y, b)| *y += b);
        }
    });
}

/// row [N] += Σ_rows of y [T, N]: the gradient of [`add_row`]'s row. Split over columns: each is
/// summed in the order of the rows, whatever the threads.
///
/// # Panics
/// When `y` is not whole rows.
pub fn sum_rows(row: &mut [f32], y: &[f32]) {
    let n = row.len();
    assert!(n > 0 && y.len().is_multiple_of(n), "sum_rows: {} values, rows of {n}", y.len());
    let columns = 128;
    row.par_chunks_mut(columns).enumerate().for_each(|(task, sums)| {
        let start = task * columns;
        for y in y.chunks_exact(n) {
            sums.iter_mut().zip(&y[start..]).for_each(|(s, y)| *s += y);
        }
    });
}

/// x becomes cap·tanh(x/cap), in place.
pub fn soft_cap(x: &mut [f32], cap: f32) {
    soft_cap_at(Level::detect(), x, cap);
}

/// Gradient of [`soft_cap`] in place on dy, from its result y: dx = dy·(1 - (y/cap)²).
///
/// # Panics
/// When the lengths differ.
pub fn soft_cap_backward(dy: &mut [f32], y: &[f32], cap: f32) {
    assert_eq!(dy.len(), y.len(), "soft_cap: lengths differ");
    dy.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(dy, y)| {
        reference_soft_cap_backward(dy, y, cap);
    });
}

/// Plain [`soft_cap`].
pub fn reference_soft_cap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = (f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh()) as f32;
    }
}

/// Plain [`soft_cap_backward`].
pub fn reference_soft_cap_backward(dy: &mut [f32], y: &[f32], cap: f32) {
    for (dy, y) in dy.iter_mut().zip(y) {
        let t = y / cap;
        *dy *= 1.0 - t * t;
    }
}

fn soft_cap_at(level: Level, x: &mut [f32], cap: f32) {
    x.par_chunks_mut(CHUNK).for_each(|x| dispatch_at(level, Cap { x, cap }));
}

struct Round<'a> {
    to: &'a mut [bf16],
    from: &'a [f32],
}

// Plain loops: the compiler makes vectors of them at each level.
impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        self.to.iter_mut().zip(self.from).for_each(|(to, from)| *to = bf16::from_f32(*from));
    }
}

struct Widen<'a> {
    to: &'a mut [f32],
    from: &'a [bf16],
}

impl Kernel for Widen<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        self.to.iter_mut().zip(self.from).for_each(|(to, from)| *to = from.to_f32());
    }
}

struct Cap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for Cap<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the slice covers its length.
        unsafe { soft_cap_row::<S>(self.x.as_mut_ptr(), self.x.len(), self.cap) }
    }
}

/// [`soft_cap`] of `n` values, with tanh z = e/(e + 2) for e = e^2z - 1.
///
/// # Safety
/// The level of `S` must be supported; `x` must cover `n` values.
#[inline(always)]
pub(crate) unsafe fn soft_cap_row<S: Simd>(x: *mut f32, n: usize, cap: f32) {
    // SAFETY: every access stays below n.
    unsafe {
        let (two, cap, double) = (S::splat(2.0), S::splat(cap), S::splat(2.0 / cap));
        let mut i = 0;
        while i < n {
            let e = S::exp_m1(S::mul(load_at::<S>(x, i, n, 0.0), double));
            let tanh = S::div(e, S::add(two, e));
            store_at::<S>(x, i, n, S::mul(cap, tanh));
            i += S::LANES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::testing::*;

    #[test]
    fn capped_at_every_level_as_the_reference() {
        for level in Level::available() {
            for n in [0, 1, 7, 8, 17, 100, CHUNK + 3] {
                let x: Vec<f32> = random(n, 1).iter().map(|v| v * 300.0).collect();
                let (mut y, mut expected) = (x.clone(), x);
                soft_cap_at(level, &mut y, 50.0);
                reference_soft_cap(&mut expected, 50.0);
                assert_close(&y, &expected, 1e-6, level.name());
            }
        }
        let mut nan = [f32::NAN];
        soft_cap(&mut nan, 5.0);
        assert!(nan[0].is_nan(), "NaN is not hidden");
    }

    #[test]
    fn gradient_of_the_cap_is_the_slope() {
        let x: Vec<f32> = random(13, 1).iter().map(|v| v * 9.0).collect();
        let dy = random(13, 2);
        let mut y = x.clone();
        reference_soft_cap(&mut y, 4.0);
        let mut dx = dy.clone();
        soft_cap_backward(&mut dx, &y, 4.0);
        assert_gradient(&x, &dx, 1e-3, "dx", |x| {
            let mut y = x.to_vec();
            reference_soft_cap(&mut y, 4.0);
            inner(&y, &dy)
        });
    }

    #[test]
    fn bf16_is_rounded_to_nearest_even_and_widened_exactly() {
        let mut values = random(CHUNK + 3, 1);
        values.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1.0 + 1.0 / 256.0]);
        values.push(f32::NAN);
        let mut rounded = vec![bf16::ZERO; values.len()];
        to_bf16(&mut rounded, &values);
        let mut back = vec![0.0; values.len()];
        from_bf16(&mut back, &rounded);
        for (i, value) in values.iter().enumerate() {
            assert_eq!(rounded[i].to_bits(), bf16::from_f32(*value).to_bits(), "{value}");
            assert!(back[i].to_bits() == rounded[i].to_f32().to_bits(), "{value}");
        }
        assert!(back.last().is_some_and(|v| v.is_nan()), "NaN is not hidden");
        assert_eq!(back[values.len() - 2], 1.0, "a tie goes to even");
    }

    #[test]
    fn rows_are_added_and_summed() {
        let (t, n) = (300, 130);
        let (y, row) = (random(t * n, 1), random(n, 2));
        let mut added = y.clone();
        add_row(&mut added, &row);
        let mut sums = vec![1.0; n];
        sum_rows(&mut sums, &y);
        for i in 0..n {
            assert_eq!(added[7 * n + i], y[7 * n + i] + row[i]);
            let sum: f32 = (0..t).map(|r| y[r * n + i]).sum::<f32>() + 1.0;
            assert!((sums[i] - sum).abs() < 1e-4, "column {i}: {} and {sum}", sums[i]);
        }
        let mut scaled = y.clone();
        add_scaled(&mut scaled, &y, 2.0);
        scale_inplace(&mut scaled, 0.5);
        let expected: Vec<f32> = y.iter().map(|v| 1.5 * v).collect();
        assert_close(&scaled, &expected, 1e-6, "1.5 y");
    }
}
