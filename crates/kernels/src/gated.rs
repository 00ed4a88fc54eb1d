//! Gated linear units (Shazeer, arXiv:2002.05202): y = f(gate) · up, with f(g) = g·σ(z(g)) for both
//! activations: SiLU has z = g; the tanh form of GELU (Hendrycks and Gimpel, arXiv:1606.08415),
//! g·(1 + tanh u)/2 with u = √(2/π)·(g + 0.044715·g³), has z = 2u.

use crate::simd::{Kernel, Level, Simd, dispatch_at};
use crate::vector::{load_at, store_at};
use rayon::prelude::*;

/// What the gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// g / (1 + e^-g)
    SiLu,
    /// GELU in its tanh form.
    GeluTanh,
}

/// √(2/π)·2 and the factor of the cube, of [`Activation::GeluTanh`].
pub(crate) const GELU_SLOPE: f32 = 1.595_769_2;
pub(crate) const GELU_CUBE: f32 = 0.044_715;

/// Values per parallel task.
const CHUNK: usize = 16_384;

/// y = f(gate) · up, element by element; all of one length.
///
/// # Panics
/// When the lengths differ.
pub fn gated(activation: Activation, y: &mut [f32], gate: &[f32], up: &[f32]) {
    gated_at(Level::detect(), activation, y, gate, up);
}

/// Gradients of [`gated`]; `dgate` and `dup` are overwritten.
///
/// With s = σ(z(g)): dgate = dy·up·s·(1 + g·z'(g)·(1 - s)), dup = dy·g·s.
///
/// # Panics
/// When the lengths differ.
pub fn gated_backward(
    activation: Activation,
    dgate: &mut [f32],
    dup: &mut [f32],
    dy: &[f32],
    gate: &[f32],
    up: &[f32],
) {
    gated_backward_at(Level::detect(), activation, dgate, dup, dy, gate, up);
}

/// Plain [`gated`].
pub fn reference_gated(activation: Activation, y: &mut [f32], gate: &[f32], up: &[f32]) {
    for i in 0..y.len() {
        y[i] = gate[i] * reference_sigmoid(reference_z(activation, gate[i]).0) * up[i];
    }
}

/// Plain [`gated_backward`].
pub fn reference_gated_backward(
    activation: Activation,
    dgate: &mut [f32],
    dup: &mut [f32],
    dy: &[f32],
    gate: &[f32],
    up: &[f32],
) {
    for i in 0..dy.len() {
        let (z, slope) = reference_z(activation, gate[i]);
        let s = reference_sigmoid(z);
        dgate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * slope * (1.0 - s));
        dup[i] = dy[i] * gate[i] * s;
    }
}

/// z and z' at g.
fn reference_z(activation: Activation, g: f32) -> (f32, f32) {
    match activation {
        Activation::SiLu => (g, 1.0),
        Activation::GeluTanh => (
            GELU_SLOPE * (g + GELU_CUBE * g.powi(3)),
            GELU_SLOPE * (1.0 + 3.0 * GELU_CUBE * g.powi(2)),
        ),
    }
}

fn reference_sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn gated_at(level: Level, activation: Activation, y: &mut [f32], gate: &[f32], up: &[f32]) {
    check(&[y.len(), gate.len(), up.len()]);
    y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(
        |((y, gate), up)| match activation {
            Activation::SiLu => dispatch_at(level, Forward { y, gate, up, f: SiLu }),
            Activation::GeluTanh => dispatch_at(level, Forward { y, gate, up, f: GeluTanh }),
        },
    );
}

fn gated_backward_at(
    level: Level,
    activation: Activation,
    dgate: &mut [f32],
    dup: &mut [f32],
    dy: &[f32],
    gate: &[f32],
    up: &[f32],
) {
    check(&[dgate.len(), dup.len(), dy.len(), gate.len(), up.len()]);
    dgate
        .par_chunks_mut(CHUNK)
        .zip(dup.par_chunks_mut(CHUNK))
        .zip(dy.par_chunks(CHUNK))
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(|((((dgate, dup), dy), gate), up)| match activation {
            Activation::SiLu => dispatch_at(level, Backward { dgate, dup, dy, gate, up, f: SiLu }),
            Activation::GeluTanh => {
                dispatch_at(level, Backward { dgate, dup, dy, gate, up, f: GeluTanh })
            }
        });
}

fn check(lengths: &[usize]) {
    assert!(lengths.iter().all(|l| *l == lengths[0]), "gated: lengths differ: {lengths:?}");
}

/// z(g) and z'(g) of an activation, in vectors.
trait Gate: Copy {
    /// # Safety
    /// The level of `S` must be supported.
    unsafe fn z<S: Simd>(self, g: S::F) -> (S::F, S::F);
}

#[derive(Clone, Copy)]
struct SiLu;

#[derive(Clone, Copy)]
struct GeluTanh;

impl Gate for SiLu {
    #[inline(always)]
    unsafe fn z<S: Simd>(self, g: S::F) -> (S::F, S::F) {
        // SAFETY: no memory is touched.
        unsafe { (g, S::splat(1.0)) }
    }
}

impl Gate for GeluTanh {
    #[inline(always)]
    unsafe fn z<S: Simd>(self, g: S::F) -> (S::F, S::F) {
        // SAFETY: no memory is touched.
        unsafe {
            let (one, slope) = (S::splat(1.0), S::splat(GELU_SLOPE));
            let square = S::mul(g, g);
            let cube = S::fma(S::splat(GELU_CUBE), square, one);
            let z = S::mul(S::mul(slope, g), cube);
            (z, S::mul(slope, S::fma(S::splat(3.0 * GELU_CUBE), square, one)))
        }
    }
}

struct Forward<'a, G> {
    y: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
    f: G,
}

impl<G: Gate> Kernel for Forward<'_, G> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.y.len();
        let (y, gate, up) = (self.y.as_mut_ptr(), self.gate.as_ptr(), self.up.as_ptr());
        let mut i = 0;
        while i < n {
            // SAFETY: i < n, and all three cover n values.
            unsafe {
                let g = load_at::<S>(gate, i, n, 0.0);
                let f = S::mul(g, sigmoid::<S>(self.f.z::<S>(g).0));
                store_at::<S>(y, i, n, S::mul(f, load_at::<S>(up, i, n, 0.0)));
            }
            i += S::LANES;
        }
    }
}

struct Backward<'a, G> {
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
    dy: &'a [f32],
    gate: &'a [f32],
    up: &'a [f32],
    f: G,
}

impl<G: Gate> Kernel for Backward<'_, G> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.dy.len();
        let (dgate, dup) = (self.dgate.as_mut_ptr(), self.dup.as_mut_ptr());
        let (dy, gate, up) = (self.dy.as_ptr(), self.gate.as_ptr(), self.up.as_ptr());
        let mut i = 0;
        while i < n {
            // SAFETY: i < n, and all five cover n values.
            unsafe {
                let d = load_at::<S>(dy, i, n, 0.0);
                let g = load_at::<S>(gate, i, n, 0.0);
                let u = load_at::<S>(up, i, n, 0.0);
                let one = S::splat(1.0);
                let (z, dz) = self.f.z::<S>(g);
                let s = sigmoid::<S>(z);
                let slope = S::mul(s, S::fma(S::mul(g, dz), S::sub(one, s), one));
                store_at::<S>(dgate, i, n, S::mul(S::mul(d, u), slope));
                store_at::<S>(dup, i, n, S::mul(d, S::mul(g, s)));
            }
            i += S::LANES;
        }
    }
}

/// # Safety
/// The level of `S` must be supported.
#[inline(always)]
unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    // SAFETY: no memory is touched.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, S::exp(S::sub(S::zero(), x))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::testing::*;

    const BOTH: [Activation; 2] = [Activation::SiLu, Activation::GeluTanh];

    fn values(n: usize, seed: u64, spread: f32) -> Vec<f32> {
        random(n, seed).iter().map(|v| v * spread).collect()
    }

    #[test]
    fn every_level_equals_the_reference() {
        for level in Level::available() {
            for (activation, n) in
                BOTH.iter().flat_map(|a| [0, 1, 7, 8, 17, 100, 2 * CHUNK + 3].map(|n| (*a, n)))
            {
                // Gates up to ±60 reach both flat ends of the sigmoid.
                let (gate, up, dy) = (values(n, 1, 60.0), random(n, 2), random(n, 3));
                let (mut y, mut expected) = (vec![9.0; n], vec![0.0; n]);
                gated_at(level, activation, &mut y, &gate, &up);
                reference_gated(activation, &mut expected, &gate, &up);
                assert_close(&y, &expected, 1e-6, "y");
                let (mut dg, mut du) = (vec![9.0; n], vec![9.0; n]);
                let (mut dg_ref, mut du_ref) = (vec![0.0; n], vec![0.0; n]);
                gated_backward_at(level, activation, &mut dg, &mut du, &dy, &gate, &up);
                reference_gated_backward(activation, &mut dg_ref, &mut du_ref, &dy, &gate, &up);
                assert_close(&dg, &dg_ref, 1e-5, "dgate");
                assert_close(&du, &du_ref, 1e-6, "dup");
            }
        }
    }

    #[test]
    fn known_values() {
        // PyTorch's silu(1.5) and gelu(1.5, approximate="tanh").
        for (activation, expected) in
            [(Activation::SiLu, 1.226_361_6), (Activation::GeluTanh, 1.399_571_5)]
        {
            let mut y = [0.0];
            gated(activation, &mut y, &[1.5], &[1.0]);
            assert_close(&y, &[expected], 1e-6, &format!("{activation:?}"));
        }
    }

    #[test]
    fn gradient_is_the_slope() {
        for activation in BOTH {
            let (gate, up, dy) = (values(11, 1, 4.0), random(11, 2), random(11, 3));
            let (mut dgate, mut dup) = (vec![0.0; 11], vec![0.0; 11]);
            reference_gated_backward(activation, &mut dgate, &mut dup, &dy, &gate, &up);
            let loss = |gate: &[f32], up: &[f32]| {
                let mut y = vec![0.0; 11];
                reference_gated(activation, &mut y, gate, up);
                inner(&y, &dy)
            };
            assert_gradient(&gate, &dgate, 1e-3, "dgate", |g| loss(g, &up));
            assert_gradient(&up, &dup, 1e-3, "dup", |u| loss(&gate, u));
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_place() {
        for activation in BOTH {
            let n = 3 * CHUNK + 5;
            let (gate, up, dy) = (values(n, 1, 9.0), random(n, 2), random(n, 3));
            let all = |threads| {
                with_threads(threads, || {
                    let (mut y, mut dg, mut du) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
                    gated(activation, &mut y, &gate, &up);
                    gated_backward(activation, &mut dg, &mut du, &dy, &gate, &up);
                    (y, dg, du)
                })
            };
            let (one, three) = (all(1), all(3));
            assert_same_bits(&one.0, &three.0, "y");
            assert_same_bits(&one.1, &three.1, "dgate");
            assert_same_bits(&one.2, &three.2, "dup");
            // An odd stretch alone: its elements sit in other lanes than in the whole.
            let own = 1003..1022;
            let mut y = vec![0.0; own.len()];
            gated(activation, &mut y, &gate[own.clone()], &up[own.clone()]);
            assert_same_bits(&y, &one.0[own], "stretch alone");
        }
    }

    #[test]
    fn nan_is_not_hidden() {
        for activation in BOTH {
            let mut y = [0.0];
            gated(activation, &mut y, &[f32::NAN], &[1.0]);
            assert!(y[0].is_nan());
        }
    }
}
