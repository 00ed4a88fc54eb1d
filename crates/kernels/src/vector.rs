//! Small pieces shared by the row-wise kernels: partial loads, reductions, work split.

use crate::simd::Simd;

/// The widest vector of any [`Simd`] level, in f32 values.
pub(crate) const MAX_LANES: usize = 16;

/// Rows per parallel task for rows of `width` values: large enough that a task is worth waking a
/// thread for (some 16k values). Row results do not depend on it.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}

/// Loads `n <= LANES` values; the other lanes are `fill`.
///
/// # Safety
/// The level of `S` must be supported and `p` must cover `n` values.
#[inline(always)]
pub(crate) unsafe fn load_partial<S: Simd>(p: *const f32, n: usize, fill: f32) -> S::F {
    let mut lanes = [fill; MAX_LANES];
    // SAFETY: `p` covers n values and n <= LANES <= MAX_LANES.
    unsafe {
        std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
        S::load(lanes.as_ptr())
    }
}

/// Stores the first `n <= LANES` lanes of `v`.
///
/// # Safety
/// The level of `S` must be supported and `p` must cover `n` values.
#[inline(always)]
pub(crate) unsafe fn store_partial<S: Simd>(p: *mut f32, n: usize, v: S::F) {
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: `lanes` covers LANES values, `p` covers n <= LANES values.
    unsafe {
        S::store(lanes.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
    }
}

/// Loads the vector at `i` of an array of `len` values, partially (filled with `fill`) at the end.
/// Lane by lane this is what a full load would give, so that an element's result does not depend
/// on where in the array it lies.
///
/// # Safety
/// The level of `S` must be supported, `p` must cover `len` values and `i < len`.
#[inline(always)]
pub(crate) unsafe fn load_at<S: Simd>(p: *const f32, i: usize, len: usize, fill: f32) -> S::F {
    // SAFETY: i + LANES <= len in the first case; len - i < LANES values are left in the second.
    unsafe {
        if i + S::LANES <= len {
            S::load(p.add(i))
        } else {
            load_partial::<S>(p.add(i), len - i, fill)
        }
    }
}

/// Counterpart of [`load_at`].
///
/// # Safety
/// The level of `S` must be supported, `p` must cover `len` values and `i < len`.
#[inline(always)]
pub(crate) unsafe fn store_at<S: Simd>(p: *mut f32, i: usize, len: usize, v: S::F) {
    // SAFETY: i + LANES <= len in the first case; len - i < LANES values are left in the second.
    unsafe {
        if i + S::LANES <= len {
            S::store(p.add(i), v)
        } else {
            store_partial::<S>(p.add(i), len - i, v)
        }
    }
}

/// Σ a·b. Four running vectors hide the latency of the fused multiply-add.
///
/// # Safety
/// The level of `S` must be supported; both pointers must cover `len` values.
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, len: usize) -> f32 {
    let l = S::LANES;
    // SAFETY: every access stays below `len`.
    unsafe {
        let (mut s0, mut s1, mut s2, mut s3) = (S::zero(), S::zero(), S::zero(), S::zero());
        let mut i = 0;
        while i + 4 * l <= len {
            s0 = S::fma(S::load(a.add(i)), S::load(b.add(i)), s0);
            s1 = S::fma(S::load(a.add(i + l)), S::load(b.add(i + l)), s1);
            s2 = S::fma(S::load(a.add(i + 2 * l)), S::load(b.add(i + 2 * l)), s2);
            s3 = S::fma(S::load(a.add(i + 3 * l)), S::load(b.add(i + 3 * l)), s3);
            i += 4 * l;
        }
        while i < len {
            s0 = S::fma(load_at::<S>(a, i, len, 0.0), load_at::<S>(b, i, len, 0.0), s0);
            i += l;
        }
        S::sum(S::add(S::add(s0, s1), S::add(s2, s3)))
    }
}

/// The largest of `len` values; -inf for none. A NaN may be passed over: callers see it in the sum
/// of exponentials that follows.
///
/// # Safety
/// The level of `S` must be supported; `x` must cover `len` values.
#[inline(always)]
pub(crate) unsafe fn max<S: Simd>(x: *const f32, len: usize) -> f32 {
    let l = S::LANES;
    // SAFETY: every access stays below `len`.
    unsafe {
        let mut m0 = S::splat(f32::NEG_INFINITY);
        let mut m1 = m0;
        let mut i = 0;
        while i + 2 * l <= len {
            m0 = S::max(m0, S::load(x.add(i)));
            m1 = S::max(m1, S::load(x.add(i + l)));
            i += 2 * l;
        }
        while i < len {
            m0 = S::max(m0, load_at::<S>(x, i, len, f32::NEG_INFINITY));
            i += l;
        }
        S::reduce_max(S::max(m0, m1))
    }
}

/// Replaces x by e^(x - shift) and returns the sum, in f64 over stretches of 1024 values: a
/// vocabulary of 10^5 small terms must not drown in rounding.
///
/// # Safety
/// The level of `S` must be supported; `x` must cover `len` values.
#[inline(always)]
pub(crate) unsafe fn exp_in_place<S: Simd>(x: *mut f32, len: usize, shift: f32) -> f64 {
    const STRETCH: usize = 1024;
    let l = S::LANES;
    let mut total = 0.0_f64;
    // SAFETY: every access stays below `len`.
    unsafe {
        let shift = S::splat(shift);
        let mut start = 0;
        while start < len {
            let end = (start + STRETCH).min(len);
            let mut sum = S::zero();
            let mut i = start;
            while i + l <= end {
                let e = S::exp(S::sub(S::load(x.add(i)), shift));
                S::store(x.add(i), e);
                sum = S::add(sum, e);
                i += l;
            }
            if i < end {
                let e = S::exp(S::sub(load_partial::<S>(x.add(i), end - i, 0.0), shift));
                let mut lanes = [0.0; MAX_LANES];
                S::store(lanes.as_mut_ptr(), e);
                // Lanes past the end must not be counted.
                lanes[end - i..].fill(0.0);
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), x.add(i), end - i);
                sum = S::add(sum, S::load(lanes.as_ptr()));
            }
            total += f64::from(S::sum(sum));
            start = end;
        }
    }
    total
}

/// x *= factor
///
/// # Safety
/// The level of `S` must be supported; `x` must cover `len` values.
#[inline(always)]
pub(crate) unsafe fn scale<S: Simd>(x: *mut f32, len: usize, factor: f32) {
    // SAFETY: every access stays below `len`.
    unsafe {
        let factor = S::splat(factor);
        let mut i = 0;
        while i < len {
            store_at::<S>(x, i, len, S::mul(load_at::<S>(x, i, len, 0.0), factor));
            i += S::LANES;
        }
    }
}

/// A pointer into an output that several threads write, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedOutput<T = f32>(*mut T);

// SAFETY: the pointer is only handed out by `at`, whose caller promises that no two threads touch
// the same element.
unsafe impl<T: Send> Send for SharedOutput<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedOutput<T> {}

impl<T: Copy> SharedOutput<T> {
    /// Shares `out` for as long as the caller keeps it borrowed.
    pub(crate) fn new(out: &mut [T]) -> Self {
        SharedOutput(out.as_mut_ptr())
    }

    /// The element at `offset`.
    ///
    /// # Safety
    /// `offset` must lie inside the slice, the slice must still be borrowed by the caller of
    /// `new`, and no other thread may touch the elements that are reached through the result.
    #[inline(always)]
    pub(crate) unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! What the tests of every kernel need.

    /// Deterministic values in [-1, 1).
    pub(crate) fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
        (0..n)
            .map(|_| {
                // splitmix64 (Steele, Lea, Flood 2014).
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^= z >> 31;
                (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Asserts |a - b| <= tol·(1 + |b|) for every element.
    #[track_caller]
    pub(crate) fn assert_close(a: &[f32], b: &[f32], tol: f32, what: &str) {
        assert_eq!(a.len(), b.len(), "{what}: lengths");
        for (i, (x, y)) in a.iter().zip(b).enumerate() {
            assert!((x - y).abs() <= tol * (1.0 + y.abs()), "{what}[{i}]: {x} against {y}");
        }
    }

    /// Asserts equal bits for every element.
    #[track_caller]
    pub(crate) fn assert_same_bits(a: &[f32], b: &[f32], what: &str) {
        assert_eq!(a.len(), b.len(), "{what}: lengths");
        for (i, (x, y)) in a.iter().zip(b).enumerate() {
            assert_eq!(x.to_bits(), y.to_bits(), "{what}[{i}]: {x} against {y}");
        }
    }

    /// Central difference of `loss` along each of `at` elements of `x`, against `gradient`.
    #[track_caller]
    pub(crate) fn assert_gradient(
        x: &[f32],
        gradient: &[f32],
        tol: f64,
        what: &str,
        mut loss: impl FnMut(&[f32]) -> f64,
    ) {
        assert_eq!(x.len(), gradient.len(), "{what}: lengths");
        let step = 1e-2_f32;
        for i in 0..x.len() {
            let mut moved = x.to_vec();
            moved[i] = x[i] + step;
            let up = moved[i];
            let above = loss(&moved);
            moved[i] = x[i] - step;
            let below = loss(&moved);
            let slope = (above - below) / f64::from(up - moved[i]);
            let found = f64::from(gradient[i]);
            assert!(
                (slope - found).abs() <= tol * (1.0 + slope.abs()),
                "{what}[{i}]: gradient {found}, finite difference {slope}"
            );
        }
    }

    /// Σ a·b in f64: the scalar loss whose gradient with respect to a is b.
    pub(crate) fn inner(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    }

    /// Runs `f` in a pool of `threads` threads.
    pub(crate) fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool").install(f)
    }
}
