//! Four values at once, with what every processor of an architecture has: for putting values into
//! another order, where nothing is gained by asking which level there is.

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use std::arch::aarch64 as arch;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as arch;

/// Four f32 values.
#[cfg(target_arch = "x86_64")]
pub(crate) type Four = arch::__m128;
/// Four f32 values.
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) type Four = arch::float32x4_t;
/// Four f32 values.
#[cfg(not(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little"))))]
pub(crate) type Four = [f32; 4];

/// Reads four values, unaligned.
///
/// # Safety
/// `p` covers four values.
#[inline(always)]
pub(crate) unsafe fn load(p: *const f32) -> Four {
    // SAFETY: the caller's promise; an unaligned read of any type of sixteen bytes.
    unsafe { p.cast::<Four>().read_unaligned() }
}

/// Writes four values, unaligned.
///
/// # Safety
/// `p` covers four values.
#[inline(always)]
pub(crate) unsafe fn store(p: *mut f32, v: Four) {
    // SAFETY: the caller's promise.
    unsafe { p.cast::<Four>().write_unaligned(v) }
}

/// Columns from rows: value j of row i becomes value i of row j.
#[inline(always)]
pub(crate) fn transpose(rows: [Four; 4]) -> [Four; 4] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE, which every x86-64 has; no memory is touched.
    unsafe {
        let [mut a, mut b, mut c, mut d] = rows;
        arch::_MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
        [a, b, c, d]
    }
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    // SAFETY: NEON, which the standard library of AArch64 takes for granted; no memory is touched.
    unsafe {
        use arch::{vreinterpretq_f32_f64 as singles, vreinterpretq_f64_f32 as pairs};
        let [a, b, c, d] = rows;
        let [even, odd] = [arch::vtrn1q_f32(a, b), arch::vtrn2q_f32(a, b)].map(|v| pairs(v));
        let [even2, odd2] = [arch::vtrn1q_f32(c, d), arch::vtrn2q_f32(c, d)].map(|v| pairs(v));
        [
            singles(arch::vtrn1q_f64(even, even2)),
            singles(arch::vtrn1q_f64(odd, odd2)),
            singles(arch::vtrn2q_f64(even, even2)),
            singles(arch::vtrn2q_f64(odd, odd2)),
        ]
    }
    #[cfg(not(any(
        target_arch = "x86_64",
        all(target_arch = "aarch64", target_endian = "little")
    )))]
    std::array::from_fn(|j| std::array::from_fn(|i| rows[i][j]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let from: [f32; 16] = std::array::from_fn(|i| i as f32);
        let mut to = [0.0; 16];
        // SAFETY: four rows of four values.
        unsafe {
            let rows = std::array::from_fn(|r| load(from.as_ptr().add(4 * r)));
            for (r, row) in transpose(rows).into_iter().enumerate() {
                store(to.as_mut_ptr().add(4 * r), row);
            }
        }
        for (i, value) in to.into_iter().enumerate() {
            assert_eq!(value, (i % 4 * 4 + i / 4) as f32);
        }
    }
}
