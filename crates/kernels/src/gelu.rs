//! GELU without a gate (Hendrycks and Gimpel, arXiv:1606.08415): x·Φ(x), exact or in its tanh form. Only
//! forward: encoders are not trained here.

use crate::gated::{GELU_CUBE, GELU_SLOPE};
use crate::simd::{Kernel, Level, Simd, dispatch_at};
use crate::vector::{load_at, store_at};
use rayon::prelude::*;

/// How Φ, the distribution function of the standard normal distribution, is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// (1 + erf(x/√2))/2, with an erf that is at most 1.5e-7 off.
    Exact,
    /// (1 + tanh(√(2/π)·(x + 0.044715·x³)))/2.
    Tanh,
}

/// Values per parallel task.
const CHUNK: usize = 16_384;

/// x becomes x·Φ(x), in place.
pub fn gelu(form: Gelu, x: &mut [f32]) {
    gelu_at(Level::detect(), form, x);
}

/// Plain [`gelu`].
pub fn reference_gelu(form: Gelu, x: &mut [f32]) {
    for x in x {
        let v = f64::from(*x);
        *x = match form {
            Gelu::Exact => (0.5 * v * (1.0 + reference_erf(v / 2f64.sqrt()))) as f32,
            Gelu::Tanh => {
                let z = f64::from(GELU_SLOPE) / 2.0 * (v + f64::from(GELU_CUBE) * v.powi(3));
                (0.5 * v * (1.0 + z.tanh())) as f32
            }
        };
    }
}

/// erf by its power series, 2/√π·Σ (-1)ⁿ·x²ⁿ⁺¹/(n!·(2n + 1)); one beyond 5, where it is one to 1e-11.
fn reference_erf(x: f64) -> f64 {
    if x.abs() > 5.0 || x.is_nan() {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut power, mut sum) = (x, x);
    for n in 1..120 {
        power *= -x * x / f64::from(n);
        sum += power / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn gelu_at(level: Level, form: Gelu, x: &mut [f32]) {
    x.par_chunks_mut(CHUNK).for_each(|x| dispatch_at(level, Forward { form, x }));
}

struct Forward<'a> {
    form: Gelu,
    x: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (x, n) = (self.x.as_mut_ptr(), self.x.len());
        let mut i = 0;
        while i < n {
            // SAFETY: i < n, and x covers n values.
            unsafe {
                let v = load_at::<S>(x, i, n, 0.0);
                let y = match self.form {
                    Gelu::Exact => {
                        let half = S::mul(v, S::splat(0.5));
                        S::fma(half, erf_root2::<S>(v), half)
                    }
                    Gelu::Tanh => {
                        let one = S::splat(1.0);
                        let cube = S::fma(S::splat(GELU_CUBE), S::mul(v, v), one);
                        let z = S::mul(S::mul(S::splat(-GELU_SLOPE), v), cube);
                        // (1 + tanh u)/2 is the sigmoid of 2u.
                        S::div(v, S::add(one, S::exp(z)))
                    }
                };
                store_at::<S>(x, i, n, y);
            }
            i += S::LANES;
        }
    }
}

/// erf(x/√2) by the rational approximation 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical
/// Functions (1964): for z ≥ 0, 1 - (a1·t + … + a5·t⁵)·e^(-z²) with t = 1/(1 + p·z).
///
/// # Safety
/// The level of `S` must be supported.
#[inline(always)]
unsafe fn erf_root2<S: Simd>(x: S::F) -> S::F {
    const A: [f32; 5] = [0.254_829_6, -0.284_496_72, 1.421_413_8, -1.453_152_1, 1.061_405_4];
    const P: f32 = 0.327_591_1;
    // SAFETY: no memory is touched.
    unsafe {
        let (one, zero) = (S::splat(1.0), S::zero());
        let positive = S::max(x, zero);
        let negative = S::min(x, zero);
        // |x|/√2; a NaN stays one because it is added, not compared, here.
        let z = S::mul(S::sub(positive, negative), S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(one, S::fma(S::splat(P), z, one));
        let mut sum = S::splat(A[4]);
        for a in A[..4].iter().rev() {
            sum = S::fma(sum, t, S::splat(*a));
        }
        let falling = S::exp(S::sub(zero, S::mul(z, z)));
        let magnitude = S::sub(one, S::mul(S::mul(sum, t), falling));
        // The sign of x, or 0 where it is 0: x is divided by its magnitude, kept off zero.
        let tiny = S::splat(f32::MIN_POSITIVE);
        let sign = S::div(x, S::max(S::sub(positive, negative), tiny));
        S::mul(magnitude, sign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::testing::*;

    const BOTH: [Gelu; 2] = [Gelu::Exact, Gelu::Tanh];

    fn values(n: usize, spread: f32) -> Vec<f32> {
        random(n, 1).iter().map(|v| v * spread).collect()
    }

    #[test]
    fn every_level_equals_the_reference() {
        for level in Level::available() {
            for (form, n) in
                BOTH.iter().flat_map(|f| [0, 1, 7, 8, 17, 100, 30_000].map(|n| (*f, n)))
            {
                for spread in [1.0, 9.0, 200.0] {
                    let x = values(n, spread);
                    let (mut y, mut expected) = (x.clone(), x);
                    gelu_at(level, form, &mut y);
                    reference_gelu(form, &mut expected);
                    assert_close(&y, &expected, 2e-6, &format!("{form:?} {spread}"));
                }
            }
        }
    }

    #[test]
    fn known_values() {
        // PyTorch's gelu at these places, exact and with approximate="tanh".
        for (form, expected) in [
            (Gelu::Exact, [1.399_789_2, -0.158_655_29, 0.0, -0.004_049_867]),
            (Gelu::Tanh, [1.399_571_5, -0.158_808, 0.0, -0.003_637_433]),
        ] {
            let mut y = [1.5, -1.0, 0.0, -3.0];
            gelu(form, &mut y);
            assert_close(&y, &expected, 1e-6, &format!("{form:?}"));
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_place() {
        for form in BOTH {
            let x = values(3 * CHUNK + 5, 9.0);
            let all = |threads| {
                with_threads(threads, || {
                    let mut y = x.clone();
                    gelu(form, &mut y);
                    y
                })
            };
            let one = all(1);
            assert_same_bits(&one, &all(3), "threads");
            let own = 1003..1022;
            let mut y = x[own.clone()].to_vec();
            gelu(form, &mut y);
            assert_same_bits(&y, &one[own], "stretch alone");
        }
    }

    #[test]
    fn ends_are_flat_and_nan_is_not_hidden() {
        for form in BOTH {
            let mut y = [-1e4, 1e4, f32::NAN];
            gelu(form, &mut y);
            assert!(y[0].abs() < 1e-6 && y[1] == 1e4 && y[2].is_nan(), "{form:?}: {y:?}");
        }
    }
}
