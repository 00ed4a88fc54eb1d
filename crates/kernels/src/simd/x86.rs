//! AVX2 and AVX-512.

use super::{Dots, DotsKernel, Integers, Kernel, Simd, Steps};
use crate::formats::lanes::UnpackPanel;
use half::bf16;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function carries the features that Avx2 stands for.
    unsafe { kernel.run::<Avx2>() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function carries the features that Avx512 stands for.
    unsafe { kernel.run::<Avx512>() }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn dots_avx2<K: DotsKernel>(kernel: K) {
    // SAFETY: this function carries the features that Avx2 stands for.
    unsafe { kernel.run::<Avx2>() }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn steps_avx2<K: DotsKernel>(kernel: K) {
    // SAFETY: this function carries the features that Avx2 stands for.
    unsafe { kernel.steps::<Avx2>() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn dots_avx512<K: DotsKernel>(kernel: K) {
    // SAFETY: this function carries the features that Avx512 stands for, and VNNI.
    unsafe { kernel.run::<Avx512>() }
}

/// AVX2 with FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;
/// AVX-512.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

// SAFETY of every block below: the trait's contract (instruction set present, pointers cover
// LANES elements) is the contract of the intrinsic called.
impl Simd for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: bool = true;
    type F = __m256;
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: see the impl; no memory is touched.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the caller's promise.
        unsafe { run_avx2(kernel) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m256 {
        // SAFETY: see the impl; a bf16 is the upper half of an f32.
        unsafe {
            let raw = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(raw))
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let half = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps::<1>(half, half)))
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(v: __m256) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let half = _mm_max_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps::<1>(half, half)))
        }
    }
    #[inline(always)]
    unsafe fn round(v: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    unsafe fn pow2(n: __m256) -> __m256 {
        // SAFETY: see the impl; n is integral and in range, so the exponent field is valid.
        unsafe {
            let e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(e))
        }
    }
    #[inline(always)]
    unsafe fn unpack(stretch: UnpackPanel) {
        // SAFETY: see the impl.
        unsafe { stretch.by_vectors::<Avx2>() }
    }
}

impl Integers for Avx2 {
    type I = __m256i;
    #[inline(always)]
    unsafe fn load_dwords(p: *const u8) -> __m256i {
        // SAFETY: see the impl.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_signed_bytes(p: *const u8) -> __m256i {
        // SAFETY: see the impl.
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) }
    }
    #[inline(always)]
    unsafe fn bits(v: __m256i, shift: u32, mask: i32) -> __m256i {
        // SAFETY: see the impl.
        unsafe {
            let moved = _mm256_srl_epi32(v, _mm_cvtsi32_si128(shift as i32));
            _mm256_and_si256(moved, _mm256_set1_epi32(mask))
        }
    }
    #[inline(always)]
    unsafe fn signed_byte(v: __m256i, i: u32) -> __m256i {
        // SAFETY: see the impl.
        unsafe {
            let top = _mm256_sll_epi32(v, _mm_cvtsi32_si128(24 - 8 * i as i32));
            _mm256_srai_epi32::<24>(top)
        }
    }
    #[inline(always)]
    unsafe fn or_left(a: __m256i, b: __m256i, left: u32) -> __m256i {
        // SAFETY: see the impl.
        unsafe { _mm256_or_si256(a, _mm256_sll_epi32(b, _mm_cvtsi32_si128(left as i32))) }
    }
    #[inline(always)]
    unsafe fn float(v: __m256i) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn lookup(table: *const f32, v: __m256i) -> __m256 {
        // SAFETY: see the impl; the permutation looks at the low three bits of a lane only.
        unsafe {
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), v);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.add(8)), v);
            let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(v));
            _mm256_blendv_ps(low, high, upper)
        }
    }
}

impl Dots for Avx2 {
    const SIGNED_OFFSET: i32 = 0;
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> __m256i {
        // SAFETY: see the impl.
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn lookup_bytes(table: *const i8, codes: __m256i) -> __m256i {
        // SAFETY: see the impl.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.cast()));
            _mm256_shuffle_epi8(table, codes)
        }
    }
    #[inline(always)]
    unsafe fn signed_codes(codes: __m256i) -> __m256i {
        codes
    }
    #[inline(always)]
    unsafe fn dot(start: __m256i, codes: &[__m256i], q: *const i8, bits: usize) -> __m256i {
        // As many sums of two products as surely fit 16 bits: 2·15·127·8, 2·31·127·4 and
        // 2·63·127·2 are below 2^15.
        let most = match bits {
            ..=4 => 8,
            5 => 4,
            _ => 2,
        };
        let mut total = start;
        let chunks = codes.len().div_ceil(most);
        for chunk in 0..chunks {
            // SAFETY: see the impl; q has four values for each of `codes`.
            unsafe {
                let mut sum = _mm256_setzero_si256();
                for i in chunk * most..codes.len().min((chunk + 1) * most) {
                    let q = _mm256_set1_epi32(q.add(i * 4).cast::<i32>().read_unaligned());
                    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes[i], q));
                }
                let sum = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
                total = _mm256_add_epi32(total, sum);
            }
        }
        total
    }
    #[inline(always)]
    unsafe fn dot_signed(start: __m256i, codes: &[__m256i], q: *const i8) -> __m256i {
        let mut total = start;
        for (i, &codes) in codes.iter().enumerate() {
            // SAFETY: see the impl; q has four values for each of `codes`.
            unsafe {
                let q = _mm256_set1_epi32(q.add(i * 4).cast::<i32>().read_unaligned());
                // The sign goes from the code to q; 2·128·127 is below 2^15.
                let q = _mm256_sign_epi8(q, codes);
                let sum = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), q);
                let sum = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
                total = _mm256_add_epi32(total, sum);
            }
        }
        total
    }
}

impl Steps for Avx2 {
    #[inline(always)]
    unsafe fn widen(codes: __m256i) -> [__m256i; 2] {
        // SAFETY: see the impl.
        unsafe {
            // Each code goes into the upper byte of its place; the shift back extends its sign.
            let low = _mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13);
            let high = _mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15);
            let low = _mm256_shuffle_epi8(codes, _mm256_broadcastsi128_si256(low));
            let high = _mm256_shuffle_epi8(codes, _mm256_broadcastsi128_si256(high));
            [_mm256_srai_epi16::<8>(low), _mm256_srai_epi16::<8>(high)]
        }
    }
    #[inline(always)]
    unsafe fn dot_wide(sum: __m256i, codes: __m256i, q: *const i16) -> __m256i {
        // SAFETY: see the impl.
        unsafe {
            let q = _mm256_set1_epi32(q.cast::<i32>().read_unaligned());
            _mm256_add_epi32(sum, _mm256_madd_epi16(codes, q))
        }
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: bool = true;
    type F = __m512;
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: see the impl above; no memory is touched.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the caller's promise.
        unsafe { run_avx512(kernel) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: see the impl above.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m512 {
        // SAFETY: see the impl above; a bf16 is the upper half of an f32.
        unsafe {
            let raw = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(raw))
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        // SAFETY: see the impl above.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    unsafe fn reduce_max(v: __m512) -> f32 {
        // SAFETY: see the impl above.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512 {
        // SAFETY: see the impl above; 8 = nearest even, no exceptions.
        unsafe { _mm512_roundscale_ps::<8>(v) }
    }
    #[inline(always)]
    unsafe fn pow2(n: __m512) -> __m512 {
        // SAFETY: see the impl above; n is integral and in range.
        unsafe {
            let e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(e))
        }
    }
    #[inline(always)]
    unsafe fn unpack(stretch: UnpackPanel) {
        // SAFETY: see the impl above.
        unsafe { stretch.by_vectors::<Avx512>() }
    }
}

impl Integers for Avx512 {
    type I = __m512i;
    #[inline(always)]
    unsafe fn load_dwords(p: *const u8) -> __m512i {
        // SAFETY: see the impl above.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_signed_bytes(p: *const u8) -> __m512i {
        // SAFETY: see the impl above.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn bits(v: __m512i, shift: u32, mask: i32) -> __m512i {
        // SAFETY: see the impl above.
        unsafe {
            let moved = _mm512_srl_epi32(v, _mm_cvtsi32_si128(shift as i32));
            _mm512_and_si512(moved, _mm512_set1_epi32(mask))
        }
    }
    #[inline(always)]
    unsafe fn signed_byte(v: __m512i, i: u32) -> __m512i {
        // SAFETY: see the impl above.
        unsafe {
            let top = _mm512_sll_epi32(v, _mm_cvtsi32_si128(24 - 8 * i as i32));
            _mm512_srai_epi32::<24>(top)
        }
    }
    #[inline(always)]
    unsafe fn or_left(a: __m512i, b: __m512i, left: u32) -> __m512i {
        // SAFETY: see the impl above.
        unsafe { _mm512_or_si512(a, _mm512_sll_epi32(b, _mm_cvtsi32_si128(left as i32))) }
    }
    #[inline(always)]
    unsafe fn float(v: __m512i) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn lookup(table: *const f32, v: __m512i) -> __m512 {
        // SAFETY: see the impl above.
        unsafe { _mm512_permutexvar_ps(v, _mm512_loadu_ps(table)) }
    }
}

// Only within `dots_avx512`: VNNI is a feature of its own.
impl Dots for Avx512 {
    const SIGNED_OFFSET: i32 = 128;
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> __m512i {
        // SAFETY: see the impl above.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn lookup_bytes(table: *const i8, codes: __m512i) -> __m512i {
        // SAFETY: see the impl above.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.cast()));
            _mm512_shuffle_epi8(table, codes)
        }
    }
    #[inline(always)]
    unsafe fn signed_codes(codes: __m512i) -> __m512i {
        // Adds 128, without a carry.
        // SAFETY: see the impl above.
        unsafe { _mm512_xor_si512(codes, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn dot(start: __m512i, codes: &[__m512i], q: *const i8, _: usize) -> __m512i {
        let mut total = start;
        for (i, &codes) in codes.iter().enumerate() {
            // SAFETY: see the impl above; q has four values for each of `codes`.
            unsafe {
                let q = _mm512_set1_epi32(q.add(i * 4).cast::<i32>().read_unaligned());
                total = _mm512_dpbusd_epi32(total, codes, q);
            }
        }
        total
    }
    #[inline(always)]
    unsafe fn dot_signed(start: __m512i, codes: &[__m512i], q: *const i8) -> __m512i {
        // SAFETY: the caller's contract: the codes are bytes from 0 to 255 here.
        unsafe { Self::dot(start, codes, q, 8) }
    }
}
