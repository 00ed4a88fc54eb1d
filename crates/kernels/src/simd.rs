//! One vector vocabulary for every instruction set, and the dispatch at run time.
//!
//! A kernel is written once against [`Simd`] and run through [`dispatch_at`] at the widest
//! instruction set of this processor: AVX-512, AVX2+FMA, NEON, or the portable fallback. The
//! fallback is compiled everywhere and tested everywhere, so that a new machine runs known code.

pub(crate) mod four;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::formats::lanes::UnpackPanel;
use half::bf16;
use std::sync::OnceLock;

/// Instruction sets a kernel can be run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Plain Rust on arrays of eight lanes; needs nothing.
    Portable,
    /// 8 lanes; AVX2, FMA and F16C.
    Avx2,
    /// 16 lanes; AVX-512 F, BW, DQ and VL.
    Avx512,
    /// 8 lanes in two registers; NEON.
    Neon,
}

impl Level {
    /// The widest level that this processor runs, unless `METIER_SIMD` (`portable`, `avx2`,
    /// `avx512`, `neon`) asks for a narrower one. Asked once per process.
    pub fn detect() -> Level {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            let best = *Level::available().last().unwrap_or(&Level::Portable);
            let asked = match std::env::var("METIER_SIMD").as_deref() {
                Ok("portable") => Level::Portable,
                Ok("avx2") => Level::Avx2,
                _ => best,
            };
            if Level::available().contains(&asked) { asked } else { best }
        })
    }

    /// Every level that this processor runs, narrowest first. Tests walk this list.
    pub fn available() -> Vec<Level> {
        #[allow(unused_mut)]
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx2() {
                levels.push(Level::Avx2);
                if has_avx512() {
                    levels.push(Level::Avx512);
                }
            }
        }
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        if std::arch::is_aarch64_feature_detected!("neon") {
            levels.push(Level::Neon);
        }
        levels
    }

    /// The name that `METIER_SIMD` and the machine description use.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2+fma",
            Level::Avx512 => "avx512",
            Level::Neon => "neon",
        }
    }
}

/// A computation that can be run at any [`Level`].
///
/// `run` must be marked `#[inline(always)]`, and so must every generic function that it calls:
/// only then do the intrinsics end up inside the function that carries the target feature.
pub(crate) trait Kernel {
    /// What the computation returns.
    type Output;
    /// Runs at the level of `S`.
    ///
    /// # Safety
    /// The processor must support `S`; [`dispatch_at`] sees to it.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs `kernel` at `level`. Panics when the processor lacks it, so that a test cannot run
/// unsupported instructions.
#[inline]
pub(crate) fn dispatch_at<K: Kernel>(level: Level, kernel: K) -> K::Output {
    match level {
        // SAFETY: the portable level needs no processor feature.
        Level::Portable => unsafe { run_portable(kernel) },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            assert!(has_avx2());
            // SAFETY: the features were just checked.
            unsafe { x86::run_avx2(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => {
            assert!(has_avx2() && has_avx512());
            // SAFETY: the features were just checked.
            unsafe { x86::run_avx512(kernel) }
        }
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => {
            assert!(std::arch::is_aarch64_feature_detected!("neon"));
            // SAFETY: the feature was just checked.
            unsafe { neon::run_neon(kernel) }
        }
        level => panic!("this processor has no {}", level.name()),
    }
}

/// A computation in [`Dots`], with a plain version for where there are none.
///
/// `run` is inlined as [`Kernel::run`] is.
pub(crate) trait DotsKernel {
    /// Runs with the dot products of `S`.
    ///
    /// # Safety
    /// The processor must support `S`; [`dispatch_dots`] sees to it.
    unsafe fn run<S: Dots>(self);
    /// The same, in steps.
    ///
    /// # Safety
    /// As [`DotsKernel::run`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn steps<S: Steps>(self);
    /// The same in plain Rust.
    fn plain(self);
}

/// Runs `kernel` with the dot products of `level`: on a processor with AVX-512 but without VNNI,
/// those of AVX2; with NEON but without its dot products, plain ones. `steps`: in steps, which
/// [`has_steps`] must allow. Panics when the processor lacks the level.
#[inline]
pub(crate) fn dispatch_dots<K: DotsKernel>(level: Level, kernel: K, steps: bool) {
    assert!(!steps || has_steps(level), "{level:?} has no dot products in steps");
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if has_vnni() => {
            assert!(has_avx2() && has_avx512());
            // SAFETY: the features were just checked.
            unsafe { x86::dots_avx512(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 if steps => {
            assert!(has_avx2());
            // SAFETY: the features were just checked.
            unsafe { x86::steps_avx2(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => {
            assert!(has_avx2());
            // SAFETY: the features were just checked.
            unsafe { x86::dots_avx2(kernel) }
        }
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon if std::arch::is_aarch64_feature_detected!("dotprod") => {
            assert!(std::arch::is_aarch64_feature_detected!("neon"));
            // SAFETY: the features were just checked.
            unsafe { neon::dots_neon(kernel) }
        }
        _ => kernel.plain(),
    }
}

/// Whether [`dispatch_dots`] takes dot products that have [`Steps`].
pub(crate) fn has_steps(level: Level) -> bool {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => true,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => !has_vnni(),
        _ => false,
    }
}

/// [`Dots::SIGNED_OFFSET`] of the dot products that [`dispatch_dots`] takes.
pub(crate) fn signed_offset(level: Level) -> i32 {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if has_vnni() => x86::Avx512::SIGNED_OFFSET,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => x86::Avx2::SIGNED_OFFSET,
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => neon::Neon::SIGNED_OFFSET,
        _ => 0,
    }
}

/// AVX2 and what every processor with it has, too.
#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// The parts of AVX-512 that every server processor with it has had since Skylake.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(target_arch = "x86_64")]
fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

/// A vector of `LANES` f32 values and what kernels do with it.
///
/// Every method is unsafe for the same reason: it may only run where the instruction set is
/// present, and the loads and stores take raw pointers that must cover `LANES` elements.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Simd: Copy {
    /// Values per vector: 8 or 16.
    const LANES: usize;
    /// Whether [`Simd::F`] is a register. Where it is an array, tiles of many sums are kept to one
    /// row: the compiler takes minutes to find vectors in a hundred scalar sums.
    const REGISTERS: bool;
    /// The vector.
    type F: Copy;
    /// Runs `kernel` at this level in a function of its own: one copy of its code per level,
    /// however many places call it. For what is called from many places and is long once unrolled.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output;
    /// Asks for the cache line at `p`, which may lie anywhere.
    unsafe fn prefetch(p: *const u8);
    /// All lanes zero.
    unsafe fn zero() -> Self::F;
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::F;
    /// Reads `LANES` values, unaligned.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Writes `LANES` values, unaligned.
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Reads `LANES` bf16 values, unaligned, and widens them (exactly) to f32.
    unsafe fn load_bf16(p: *const bf16) -> Self::F;
    /// a + b
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// a - b
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// a * b
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// a / b
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// The larger of each lane.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each lane.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c; fused where the instruction set fuses.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Sum of all lanes, in a fixed order.
    unsafe fn sum(v: Self::F) -> f32;
    /// Largest lane.
    unsafe fn reduce_max(v: Self::F) -> f32;
    /// Rounds each lane to the nearest integer, kept as f32.
    unsafe fn round(v: Self::F) -> Self::F;
    /// 2^n for integral lanes n in [-126, 127].
    unsafe fn pow2(n: Self::F) -> Self::F;

    /// Unpacks a stretch of a quantised panel: [`crate::formats::lanes`] with this level's integer
    /// registers, or by plain loops where there are none.
    unsafe fn unpack(stretch: UnpackPanel);

    /// e^x, relative error below 3e-7 for x in [-87, 88]; below -87 the result is 0 to 1e-38,
    /// above 88 it saturates near the largest f32.
    #[inline(always)]
    unsafe fn exp(x: Self::F) -> Self::F {
        // SAFETY: same contract as the method itself; no memory is touched.
        unsafe {
            let (y, power) = Self::exp_parts(x);
            Self::mul(Self::add(y, Self::splat(1.0)), power)
        }
    }

    /// e^x - 1, with the relative error of [`Simd::exp`] also where x is near 0.
    #[inline(always)]
    unsafe fn exp_m1(x: Self::F) -> Self::F {
        // SAFETY: same contract as the method itself; no memory is touched.
        unsafe {
            let (y, power) = Self::exp_parts(x);
            Self::fma(y, power, Self::sub(power, Self::splat(1.0)))
        }
    }

    /// y and 2^n with e^x = (1 + y)·2^n: Cephes' range reduction and degree-5 polynomial (Moshier,
    /// "Methods and Programs for Mathematical Functions", 1989).
    #[inline(always)]
    unsafe fn exp_parts(x: Self::F) -> (Self::F, Self::F) {
        // SAFETY: same contract as the method itself; no memory is touched.
        unsafe {
            // The constant comes first: max and min return the second operand when one is NaN, so
            // that a NaN stays a NaN.
            let x = Self::min(Self::splat(88.0), Self::max(Self::splat(-87.3), x));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            // ln 2 in two parts, so that x - n ln 2 keeps its low bits.
            let r = Self::fma(n, Self::splat(-0.693_359_4), x);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            p = Self::fma(p, r, Self::splat(1.398_2e-3));
            p = Self::fma(p, r, Self::splat(8.333_452e-3));
            p = Self::fma(p, r, Self::splat(4.166_579_6e-2));
            p = Self::fma(p, r, Self::splat(1.666_666_5e-1));
            p = Self::fma(p, r, Self::splat(0.5));
            let r2 = Self::mul(r, r);
            (Self::fma(p, r2, r), Self::pow2(n))
        }
    }
}

/// Registers of `LANES` 32-bit integers and what unpacking quantised weights does with them. Not
/// for arrays: unrolled, they would take the compiler minutes.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Integers: Simd {
    /// The register.
    type I: Copy;
    /// Reads `LANES` little-endian 32-bit words, unaligned.
    unsafe fn load_dwords(p: *const u8) -> Self::I;
    /// Reads `LANES` f16 values, unaligned, and widens them.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// Reads `LANES` signed bytes, unaligned, and extends their sign.
    unsafe fn load_signed_bytes(p: *const u8) -> Self::I;
    /// (v >> shift) & mask, for shift < 32.
    unsafe fn bits(v: Self::I, shift: u32, mask: i32) -> Self::I;
    /// Byte `i` of each lane, its sign extended.
    unsafe fn signed_byte(v: Self::I, i: u32) -> Self::I;
    /// a | (b << left), for left < 32.
    unsafe fn or_left(a: Self::I, b: Self::I, left: u32) -> Self::I;
    /// Integers to f32 (exact below 2^24).
    unsafe fn float(v: Self::I) -> Self::F;
    /// `table[v]` of sixteen values, for lanes from 0 to 15.
    unsafe fn lookup(table: *const f32, v: Self::I) -> Self::F;
}

/// Dot products of bytes: each 32-bit lane holds four codes of one output, which meet the same four
/// values of x.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Dots: Integers {
    /// What [`Dots::signed_codes`] adds to a code.
    const SIGNED_OFFSET: i32;
    /// All lanes `x`.
    unsafe fn splat_int(x: i32) -> Self::I;
    /// `table[code]` of sixteen bytes, for bytes from 0 to 15.
    unsafe fn lookup_bytes(table: *const i8, codes: Self::I) -> Self::I;
    /// Signed codes as [`Dots::dot_signed`] takes them.
    unsafe fn signed_codes(codes: Self::I) -> Self::I;
    /// start + Σ code·q for unsigned codes of `bits` bits, six at most. `q`: four values from -127
    /// to 127 for each of `codes`.
    unsafe fn dot(start: Self::I, codes: &[Self::I], q: *const i8, bits: usize) -> Self::I;
    /// start + Σ (code + SIGNED_OFFSET)·q for codes from [`Dots::signed_codes`].
    unsafe fn dot_signed(start: Self::I, codes: &[Self::I], q: *const i8) -> Self::I;
}

/// Dot products of signed codes in 16 bits, for many rows, where no instruction sums four products of
/// bytes in 32 bits: a step at a time, so that rows share what they read.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Steps: Dots {
    /// Signed codes in 16 bits: the first and the last two of each lane.
    unsafe fn widen(codes: Self::I) -> [Self::I; 2];
    /// sum + Σ code·q, for two codes of 16 bits per lane. `q`: two values.
    unsafe fn dot_wide(sum: Self::I, codes: Self::I, q: *const i16) -> Self::I;
}

/// Plain Rust on `[f32; 8]`; the compiler vectorises it for the baseline of the target.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map2(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(never)]
unsafe fn run_portable<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the portable level needs no processor feature.
    unsafe { kernel.run::<Portable>() }
}

impl Simd for Portable {
    const LANES: usize = 8;
    const REGISTERS: bool = false;
    type F = [f32; 8];
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the caller's promise.
        unsafe { run_portable(kernel) }
    }
    #[inline(always)]
    unsafe fn zero() -> [f32; 8] {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller's pointer covers eight values; read_unaligned needs no alignment.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller's pointer covers eight values; write_unaligned needs no alignment.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> [f32; 8] {
        // SAFETY: the caller's pointer covers eight bf16 values.
        let raw = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        std::array::from_fn(|i| f32::from_bits((raw[i] as u32) << 16))
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |x, y| x / y)
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        // Not `mul_add`: without hardware FMA that is a library call per lane.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; 8]) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    unsafe fn reduce_max(v: [f32; 8]) -> f32 {
        v.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
    }
    #[inline(always)]
    unsafe fn round(v: [f32; 8]) -> [f32; 8] {
        // Adding and taking away 1.5 * 2^23 leaves the nearest integer for |x| < 2^22.
        v.map(|x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    unsafe fn pow2(n: [f32; 8]) -> [f32; 8] {
        n.map(|x| f32::from_bits((((x as i32) + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn unpack(stretch: UnpackPanel) {
        // SAFETY: the caller's promise.
        unsafe { stretch.plain() }
    }
}
