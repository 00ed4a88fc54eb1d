//! NEON: a vector is a pair of registers of four lanes, so that a panel is two vectors, as with
//! AVX2, and the tiles of six rows fill the thirty-two registers.

use super::{Dots, DotsKernel, Integers, Kernel, Simd};
use crate::formats::lanes::UnpackPanel;
use half::bf16;
use std::arch::aarch64::*;
use std::arch::asm;

#[target_feature(enable = "neon")]
#[inline(never)]
pub(super) unsafe fn run_neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function carries the feature that Neon stands for.
    unsafe { kernel.run::<Neon>() }
}

#[target_feature(enable = "neon,dotprod")]
#[inline(never)]
pub(super) unsafe fn dots_neon<K: DotsKernel>(kernel: K) {
    // SAFETY: this function carries the feature that Neon stands for, and dot products.
    unsafe { kernel.run::<Neon>() }
}

/// NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// Lanes 0 to 3, and 4 to 7.
type Floats = [float32x4_t; 2];
/// Lanes 0 to 3, and 4 to 7.
type Ints = [int32x4_t; 2];

// Arrays of two, written out: a closure that is not inlined has no vector instructions.
//
// SAFETY of every block below: the trait's contract (instruction set present, pointers cover LANES
// elements) is the contract of the intrinsic called.
impl Simd for Neon {
    const LANES: usize = 8;
    const REGISTERS: bool = true;
    type F = Floats;
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch touches no memory, whatever the address.
        unsafe {
            asm!("prfm pldl1keep, [{0}]", in(reg) p, options(nostack, preserves_flags, readonly))
        }
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the caller's promise.
        unsafe { run_neon(kernel) }
    }
    #[inline(always)]
    unsafe fn zero() -> Floats {
        // SAFETY: see the impl.
        unsafe { [vdupq_n_f32(0.0); 2] }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Floats {
        // SAFETY: see the impl.
        unsafe { [vdupq_n_f32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Floats {
        // SAFETY: see the impl.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Floats) {
        // SAFETY: see the impl.
        unsafe {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Floats {
        // SAFETY: see the impl; a bf16 is the upper half of an f32.
        unsafe {
            let raw = vld1q_u16(p.cast());
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(raw))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(raw)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn add(a: Floats, b: Floats) -> Floats {
        // SAFETY: see the impl.
        unsafe { [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: Floats, b: Floats) -> Floats {
        // SAFETY: see the impl.
        unsafe { [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Floats, b: Floats) -> Floats {
        // SAFETY: see the impl.
        unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: Floats, b: Floats) -> Floats {
        // SAFETY: see the impl.
        unsafe { [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Floats, b: Floats) -> Floats {
        // By comparing, so that b comes out where one is NaN, as on x86: `fmax` gives NaN.
        // SAFETY: see the impl.
        unsafe {
            [
                vbslq_f32(vcgtq_f32(a[0], b[0]), a[0], b[0]),
                vbslq_f32(vcgtq_f32(a[1], b[1]), a[1], b[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn min(a: Floats, b: Floats) -> Floats {
        // SAFETY: see the impl.
        unsafe {
            [
                vbslq_f32(vcltq_f32(a[0], b[0]), a[0], b[0]),
                vbslq_f32(vcltq_f32(a[1], b[1]), a[1], b[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Floats, b: Floats, c: Floats) -> Floats {
        // SAFETY: see the impl.
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sum(v: Floats) -> f32 {
        // In the order of the other levels.
        // SAFETY: see the impl.
        unsafe {
            let four = vaddq_f32(v[0], v[1]);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(v: Floats) -> f32 {
        // SAFETY: see the impl.
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(v[0], v[1])) }
    }
    #[inline(always)]
    unsafe fn round(v: Floats) -> Floats {
        // SAFETY: see the impl.
        unsafe { [vrndnq_f32(v[0]), vrndnq_f32(v[1])] }
    }
    #[inline(always)]
    unsafe fn pow2(n: Floats) -> Floats {
        // SAFETY: see the impl; n is integral and in range, so the exponent field is valid.
        unsafe {
            let bias = vdupq_n_s32(127);
            let low = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n[0]), bias));
            let high = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n[1]), bias));
            [vreinterpretq_f32_s32(low), vreinterpretq_f32_s32(high)]
        }
    }
    #[inline(always)]
    unsafe fn unpack(stretch: UnpackPanel) {
        // SAFETY: see the impl.
        unsafe { stretch.by_vectors::<Neon>() }
    }
}

impl Integers for Neon {
    type I = Ints;
    #[inline(always)]
    unsafe fn load_dwords(p: *const u8) -> Ints {
        // Byte loads need no alignment; AArch64 in Rust is little-endian here, as the dispatch asks.
        // SAFETY: see the impl.
        unsafe { [vreinterpretq_s32_u8(vld1q_u8(p)), vreinterpretq_s32_u8(vld1q_u8(p.add(16)))] }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Floats {
        // SAFETY: see the impl.
        unsafe {
            let raw = vreinterpretq_u16_u8(vld1q_u8(p));
            [
                vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(raw))),
                vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(raw))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_signed_bytes(p: *const u8) -> Ints {
        // SAFETY: see the impl.
        unsafe {
            let words = vmovl_s8(vld1_s8(p.cast()));
            [vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)]
        }
    }
    #[inline(always)]
    unsafe fn bits(v: Ints, shift: u32, mask: i32) -> Ints {
        // A negative shift to the left is one to the right; without a sign, so zeros come in.
        // SAFETY: see the impl.
        unsafe {
            let (right, mask) = (vdupq_n_s32(-(shift as i32)), vdupq_n_s32(mask));
            let low = vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v[0]), right));
            let high = vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v[1]), right));
            [vandq_s32(low, mask), vandq_s32(high, mask)]
        }
    }
    #[inline(always)]
    unsafe fn signed_byte(v: Ints, i: u32) -> Ints {
        // SAFETY: see the impl.
        unsafe {
            let left = vdupq_n_s32(24 - 8 * i as i32);
            [vshrq_n_s32::<24>(vshlq_s32(v[0], left)), vshrq_n_s32::<24>(vshlq_s32(v[1], left))]
        }
    }
    #[inline(always)]
    unsafe fn or_left(a: Ints, b: Ints, left: u32) -> Ints {
        // SAFETY: see the impl.
        unsafe {
            let left = vdupq_n_s32(left as i32);
            [vorrq_s32(a[0], vshlq_s32(b[0], left)), vorrq_s32(a[1], vshlq_s32(b[1], left))]
        }
    }
    #[inline(always)]
    unsafe fn float(v: Ints) -> Floats {
        // SAFETY: see the impl.
        unsafe { [vcvtq_f32_s32(v[0]), vcvtq_f32_s32(v[1])] }
    }
    #[inline(always)]
    unsafe fn lookup(table: *const f32, v: Ints) -> Floats {
        // Sixteen values are sixty-four bytes, which one instruction looks up: the four bytes of
        // value i begin at 4·i.
        // SAFETY: see the impl.
        unsafe {
            let table = vld1q_u8_x4(table.cast());
            let byte = vdupq_n_u32(0x0302_0100);
            let one = |v: int32x4_t| {
                let places = vmulq_n_u32(vreinterpretq_u32_s32(v), 0x0404_0404);
                let bytes = vreinterpretq_u8_u32(vaddq_u32(places, byte));
                vreinterpretq_f32_u8(vqtbl4q_u8(table, bytes))
            };
            [one(v[0]), one(v[1])]
        }
    }
}

/// start + the dot products of four signed bytes with four signed bytes in each lane.
///
/// # Safety
/// The processor has dot products.
#[inline(always)]
unsafe fn sdot(start: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
    let mut sum = start;
    // The intrinsic is not stable yet.
    // SAFETY: the caller's promise; registers only.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

// Only within `dots_neon`: dot products are a feature of their own.
impl Dots for Neon {
    const SIGNED_OFFSET: i32 = 0;
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> Ints {
        // SAFETY: see the impl.
        unsafe { [vdupq_n_s32(x); 2] }
    }
    #[inline(always)]
    unsafe fn lookup_bytes(table: *const i8, codes: Ints) -> Ints {
        // SAFETY: see the impl.
        unsafe {
            let table = vld1q_s8(table);
            [
                vreinterpretq_s32_s8(vqtbl1q_s8(table, vreinterpretq_u8_s32(codes[0]))),
                vreinterpretq_s32_s8(vqtbl1q_s8(table, vreinterpretq_u8_s32(codes[1]))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn signed_codes(codes: Ints) -> Ints {
        codes
    }
    #[inline(always)]
    unsafe fn dot(start: Ints, codes: &[Ints], q: *const i8, _: usize) -> Ints {
        // Codes of six bits at most are the same with a sign.
        // SAFETY: the caller's contract.
        unsafe { Self::dot_signed(start, codes, q) }
    }
    #[inline(always)]
    unsafe fn dot_signed(start: Ints, codes: &[Ints], q: *const i8) -> Ints {
        let mut total = start;
        for (i, codes) in codes.iter().enumerate() {
            // SAFETY: see the impl; q has four values for each of `codes`.
            unsafe {
                let q = vdupq_n_s32(q.add(i * 4).cast::<i32>().read_unaligned());
                total = [sdot(total[0], codes[0], q), sdot(total[1], codes[1], q)];
            }
        }
        total
    }
}
