//! SwiGLU (Shazeer, arXiv:2002.05202): y = silu(gate) · up, with silu(g) = g / (1 + e^-g).

use crate::simd::{Kernel, Level, Simd, dispatch_at};
use crate::vector::{load_at, store_at};
use rayon::prelude::*;

/// Values per parallel task.
const CHUNK: usize = 16_384;

/// y = silu(gate) · up, element by element; all of one length.
///
/// # Panics
/// When the lengths differ.
pub fn swiglu(y: &mut [f32], gate: &[f32], up: &[f32]) {
    swiglu_at(Level::detect(), y, gate, up);
}

/// Gradients of [`swiglu`]; `dgate` and `dup` are overwritten.
///
/// With s = 1/(1 + e^-g): dgate = dy·up·s·(1 + g·(1 - s)), dup = dy·g·s.
///
/// # Panics
/// When the lengths differ.
pub fn swiglu_backward(dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
    swiglu_backward_at(Level::detect(), dgate, dup, dy, gate, up);
}

/// Plain [`swiglu`].
pub fn reference_swiglu(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for i in 0..y.len() {
        y[i] = gate[i] * reference_sigmoid(gate[i]) * up[i];
    }
}

/// Plain [`swiglu_backward`].
pub fn reference_swiglu_backward(
    dgate: &mut [f32],
    dup: &mut [f32],
    dy: &[f32],
    gate: &[f32],
    up: &[f32],
) {
    for i in 0..dy.len() {
        let s = reference_sigmoid(gate[i]);
        dgate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
        dup[i] = dy[i] * gate[i] * s;
    }
}

fn reference_sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn swiglu_at(level: Level, y: &mut [f32], gate: &[f32], up: &[f32]) {
    check(&[y.len(), gate.len(), up.len()]);
    y.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(|((y, gate), up)| dispatch_at(level, Forward { y, gate, up }));
}

fn swiglu_backward_at(
    level: Level,
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
        .for_each(|((((dgate, dup), dy), gate), up)| {
            dispatch_at(level, Backward { dgate, dup, dy, gate, up })
        });
}

fn check(lengths: &[usize]) {
    assert!(lengths.iter().all(|l| *l == lengths[0]), "swiglu: lengths differ: {lengths:?}");
}

struct Forward<'a> {
    y: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
}

impl Kernel for Forward<'_> {
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
                let silu = S::mul(g, sigmoid::<S>(g));
                store_at::<S>(y, i, n, S::mul(silu, load_at::<S>(up, i, n, 0.0)));
            }
            i += S::LANES;
        }
    }
}

struct Backward<'a> {
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
    dy: &'a [f32],
    gate: &'a [f32],
    up: &'a [f32],
}

impl Kernel for Backward<'_> {
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
                let s = sigmoid::<S>(g);
                let slope = S::mul(s, S::fma(g, S::sub(one, s), one));
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

    fn values(n: usize, seed: u64, spread: f32) -> Vec<f32> {
        random(n, seed).iter().map(|v| v * spread).collect()
    }

    #[test]
    fn every_level_equals_the_reference() {
        for level in Level::available() {
            for n in [0, 1, 7, 8, 17, 100, 2 * CHUNK + 3] {
                // Gates up to ±60 reach both flat ends of the sigmoid.
                let (gate, up, dy) = (values(n, 1, 60.0), random(n, 2), random(n, 3));
                let (mut y, mut expected) = (vec![9.0; n], vec![0.0; n]);
                swiglu_at(level, &mut y, &gate, &up);
                reference_swiglu(&mut expected, &gate, &up);
                assert_close(&y, &expected, 1e-6, "y");
                let (mut dg, mut du) = (vec![9.0; n], vec![9.0; n]);
                let (mut dg_ref, mut du_ref) = (vec![0.0; n], vec![0.0; n]);
                swiglu_backward_at(level, &mut dg, &mut du, &dy, &gate, &up);
                reference_swiglu_backward(&mut dg_ref, &mut du_ref, &dy, &gate, &up);
                assert_close(&dg, &dg_ref, 1e-5, "dgate");
                assert_close(&du, &du_ref, 1e-6, "dup");
            }
        }
    }

    #[test]
    fn gradient_is_the_slope() {
        let (gate, up, dy) = (values(11, 1, 4.0), random(11, 2), random(11, 3));
        let (mut dgate, mut dup) = (vec![0.0; 11], vec![0.0; 11]);
        reference_swiglu_backward(&mut dgate, &mut dup, &dy, &gate, &up);
        let loss = |gate: &[f32], up: &[f32]| {
            let mut y = vec![0.0; 11];
            reference_swiglu(&mut y, gate, up);
            inner(&y, &dy)
        };
        assert_gradient(&gate, &dgate, 1e-3, "dgate", |g| loss(g, &up));
        assert_gradient(&up, &dup, 1e-3, "dup", |u| loss(&gate, u));
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_place() {
        let n = 3 * CHUNK + 5;
        let (gate, up, dy) = (values(n, 1, 9.0), random(n, 2), random(n, 3));
        let all = |threads| {
            with_threads(threads, || {
                let (mut y, mut dg, mut du) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
                swiglu(&mut y, &gate, &up);
                swiglu_backward(&mut dg, &mut du, &dy, &gate, &up);
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
        swiglu(&mut y, &gate[own.clone()], &up[own.clone()]);
        assert_same_bits(&y, &one.0[own], "stretch alone");
    }

    #[test]
    fn nan_is_not_hidden() {
        let mut y = [0.0];
        swiglu(&mut y, &[f32::NAN], &[1.0]);
        assert!(y[0].is_nan());
    }
}
