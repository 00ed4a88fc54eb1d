//! Weight formats: how a row of values is stored as bytes, one file per format or close group.
//!
//! The layouts are those of ggml (`ggml-common.h`), as GGUF files carry them, little-endian; `nf4`
//! is that of bitsandbytes (arXiv 2305.14314). A row is cut into blocks, and a block's values are
//! unpacked in parts of 32, so that a kernel can take a part of a long block.
//!
//! Every format's value is computed in f32 with one rounding at most: the products of scales and
//! codes fit 24 bits, whatever their order. Hence plain code, vector code and the reference
//! (gguf-py) agree to the bit.

mod float;
mod iq4;
pub(crate) mod lanes;
mod nf4;
mod q2_k;
mod q3_k;
mod q4;
mod q4_k;
mod q5;
mod q5_k;
mod q6_k;
mod q8_0;

use half::f16;

/// Values that are unpacked at a time; divides every quantised format's block.
pub(crate) const PART: usize = 32;

/// How a weight's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit IEEE 754.
    F32,
    /// 16-bit IEEE 754.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 8 bits and an f16 scale per 32.
    Q8_0,
    /// 4 bits and an f16 scale per 32.
    Q4_0,
    /// 4 bits, an f16 scale and an f16 minimum per 32.
    Q4_1,
    /// 5 bits and an f16 scale per 32.
    Q5_0,
    /// 5 bits, an f16 scale and an f16 minimum per 32.
    Q5_1,
    /// 2 bits with 4-bit scales and minima per 16, in blocks of 256.
    Q2K,
    /// 3 bits with 6-bit scales per 16, in blocks of 256.
    Q3K,
    /// 4 bits with 6-bit scales and minima per 32, in blocks of 256.
    Q4K,
    /// 5 bits with 6-bit scales and minima per 32, in blocks of 256.
    Q5K,
    /// 6 bits with 8-bit scales per 16, in blocks of 256.
    Q6K,
    /// 4 bits into a fixed table, and an f16 scale per 32.
    Iq4Nl,
    /// 4 bits into a fixed table with 6-bit scales per 32, in blocks of 256.
    Iq4Xs,
    /// 4 bits into quantiles of the normal distribution, and an f32 scale per 64.
    Nf4,
}

/// What a format's file states.
pub(crate) struct FormatSpec {
    pub(crate) dtype: Dtype,
    /// As users and files spell it.
    pub(crate) name: &'static str,
    /// Values per block.
    pub(crate) block: usize,
    /// Bytes per block.
    pub(crate) block_bytes: usize,
    pub(crate) unpack: Unpack,
    /// Makes whole blocks of whole blocks of values; None where Metier never writes the format.
    pub(crate) pack: Option<Pack>,
    /// Whether the scales in a block are finite (then all its values are).
    pub(crate) finite: fn(&[u8]) -> bool,
}

/// Writes the blocks of values.
pub(crate) type Pack = fn(&[f32], &mut [u8]);

/// How values are had from bytes.
pub(crate) enum Unpack {
    /// Any number of values from their bytes.
    Values(fn(&[u8], &mut [f32])),
    /// Part `i` of one block.
    Part(fn(&[u8], usize, &mut [f32; PART])),
}

/// THE table, in the order of [`Dtype`]: a new format is a new file, a variant and a line here.
const FORMATS: [FormatSpec; 16] = [
    float::F32,
    float::F16,
    float::BF16,
    q8_0::SPEC,
    q4::Q4_0,
    q4::Q4_1,
    q5::Q5_0,
    q5::Q5_1,
    q2_k::SPEC,
    q3_k::SPEC,
    q4_k::SPEC,
    q5_k::SPEC,
    q6_k::SPEC,
    iq4::IQ4_NL,
    iq4::IQ4_XS,
    nf4::SPEC,
];

impl Dtype {
    /// Every format.
    pub fn all() -> impl Iterator<Item = Dtype> {
        FORMATS.iter().map(|f| f.dtype)
    }

    pub(crate) fn spec(self) -> &'static FormatSpec {
        &FORMATS[self as usize]
    }

    /// The format as users and files spell it: "f32", "q4_k", ...
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// Values per block; a row is whole blocks. 1 for the float types.
    pub fn block(self) -> usize {
        self.spec().block
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.spec().block_bytes
    }

    /// Bytes of a row of `k` values; None when that is not whole blocks.
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        k.is_multiple_of(self.block()).then(|| k / self.block() * self.block_bytes())
    }

    /// Whether values are stored in blocks with scales.
    pub fn is_quantised(self) -> bool {
        self.block() > 1
    }

    /// Whether [`Dtype::pack`] can make this format.
    pub fn can_pack(self) -> bool {
        self.spec().pack.is_some()
    }

    /// Unpacks whole blocks.
    ///
    /// # Panics
    /// When `bytes` are not the blocks of `out.len()` values.
    pub fn unpack(self, bytes: &[u8], out: &mut [f32]) {
        self.check(bytes.len(), out.len());
        let spec = self.spec();
        match spec.unpack {
            Unpack::Values(unpack) => unpack(bytes, out),
            Unpack::Part(unpack) => {
                let blocks = bytes.chunks_exact(spec.block_bytes);
                for (block, out) in blocks.zip(out.chunks_exact_mut(spec.block)) {
                    for (part, out) in out.as_chunks_mut::<PART>().0.iter_mut().enumerate() {
                        unpack(block, part, out);
                    }
                }
            }
        }
    }

    /// Packs whole blocks of finite values, each block by itself.
    ///
    /// # Panics
    /// When `bytes` are not the blocks of `values.len()` values, or the format cannot be made (see
    /// [`Dtype::can_pack`]).
    pub fn pack(self, values: &[f32], bytes: &mut [u8]) {
        self.check(bytes.len(), values.len());
        let pack = self.spec().pack.unwrap_or_else(|| panic!("{} is only read", self.name()));
        pack(values, bytes);
    }

    /// The first block (value, for the float types) of a row that holds infinity or NaN.
    pub fn first_not_finite(self, bytes: &[u8]) -> Option<usize> {
        let spec = self.spec();
        // Many at a time first: a file has billions of blocks, and hardly one of them is bad.
        let many = 64 * spec.block_bytes;
        let group = bytes.chunks(many).position(|group| match self {
            Dtype::Bf16 => !float::all_finite(group, 0x7f80),
            Dtype::F16 => !float::all_finite(group, 0x7c00),
            _ => group.chunks_exact(spec.block_bytes).any(|block| !(spec.finite)(block)),
        })?;
        let rest = bytes[group * many..].chunks_exact(spec.block_bytes);
        rest.enumerate().find(|(_, b)| !(spec.finite)(b)).map(|(i, _)| group * 64 + i)
    }

    fn check(self, bytes: usize, values: usize) {
        assert_eq!(
            Some(bytes),
            self.row_bytes(values),
            "{values} values of {} in {bytes} bytes",
            self.name()
        );
    }
}

/// The f16 at `at`.
#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Writes `value` as f16 at `at`.
fn set_f16(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// 1/x, or 0 for 0.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The largest magnitude.
fn max_abs(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// The first value of the largest magnitude, with its sign.
fn signed_max(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m: f32, &x| if x.abs() > m.abs() { x } else { m })
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    fn golden() -> Vec<u8> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/quants/quants.safetensors");
        std::fs::read(path).expect("testdata/quants is part of the repository")
    }

    fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
        let bytes = file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        bytes.into_iter().map(f32::from_le_bytes).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        // 0.0 and -0.0 are the same value; formats with an offset code give either.
        values.iter().map(|&v| if v == 0.0 { 0 } else { v.to_bits() }).collect()
    }

    #[test]
    fn the_table_is_in_the_order_of_the_variants() {
        for (i, spec) in FORMATS.iter().enumerate() {
            assert_eq!(spec.dtype as usize, i, "{}", spec.name);
            assert!(spec.block == 1 || spec.block.is_multiple_of(PART), "{}", spec.name);
        }
    }

    #[test]
    fn blocks_unpack_to_the_bits_of_the_reference() {
        let data = golden();
        let file = SafeTensors::deserialize(&data).unwrap();
        for dtype in Dtype::all().filter(|d| *d != Dtype::F32) {
            let bytes = file.tensor(&format!("{}.bytes", dtype.name())).unwrap();
            let expected = floats(&file, &format!("{}.values", dtype.name()));
            let mut found = vec![f32::NAN; expected.len()];
            dtype.unpack(bytes.data(), &mut found);
            assert_eq!(bits(&found), bits(&expected), "{}", dtype.name());
            assert_eq!(dtype.first_not_finite(bytes.data()), None);
        }
    }

    #[test]
    fn packed_bytes_are_those_of_the_reference() {
        let data = golden();
        let file = SafeTensors::deserialize(&data).unwrap();
        let source = floats(&file, "source");
        for dtype in [Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Nf4] {
            let expected = file.tensor(&format!("{}.packed", dtype.name())).unwrap();
            let mut found = vec![0; dtype.row_bytes(source.len()).unwrap()];
            dtype.pack(&source, &mut found);
            assert_eq!(found, expected.data(), "{}", dtype.name());
        }
    }

    /// Root mean square error of packing, relative to that of the values.
    fn round_trip_error(dtype: Dtype, values: &[f32]) -> f64 {
        let mut bytes = vec![0; dtype.row_bytes(values.len()).unwrap()];
        dtype.pack(values, &mut bytes);
        let mut back = vec![0.0; values.len()];
        dtype.unpack(&bytes, &mut back);
        let square = |x: f32| x as f64 * x as f64;
        let error: f64 = values.iter().zip(&back).map(|(v, b)| square(v - b)).sum();
        (error / values.iter().map(|&v| square(v)).sum::<f64>()).sqrt()
    }

    /// Sums of twelve uniform values: nearly normal, as weights are.
    fn normal(len: usize) -> Vec<f32> {
        let mut state = 12345u32;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        (0..len).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    #[test]
    fn packing_loses_no_more_than_the_format_must() {
        // A uniform step s has an error of s/sqrt(12); the bounds are measured values plus a tenth.
        // For comparison, rounding to nearest with the absolute maximum alone gives 0.106 for 4
        // bits in blocks of 32 (q4_0).
        let values = normal(256 * 64);
        for (dtype, bound) in [
            (Dtype::F32, 0.0),
            (Dtype::F16, 2.4e-4),
            (Dtype::Bf16, 1.9e-3),
            (Dtype::Q8_0, 6e-3),
            (Dtype::Q6K, 0.02),
            (Dtype::Q4K, 0.08),
            (Dtype::Q4_0, 0.1),
            (Dtype::Nf4, 0.1),
        ] {
            assert!(dtype.can_pack());
            let error = round_trip_error(dtype, &values);
            println!("{}: {error:.4e}", dtype.name());
            assert!(error <= bound, "{}: {error:.4e}, bound {bound}", dtype.name());
        }
        for dtype in Dtype::all().filter(|d| d.can_pack()) {
            // Blocks that leave nothing to divide by, and one-sided ones.
            assert!(round_trip_error(dtype, &[0.0; 256]).is_nan(), "0/0: zeros come back as zeros");
            // (Below 1e-3 the f16 scales of q6_k, a 4000th of the values, run out of bits.)
            for value in [3.0, -3.0, 1e-2] {
                let error = round_trip_error(dtype, &[value; 256]);
                assert!(error < 0.02, "{}: {value} all over: {error}", dtype.name());
            }
            let ramp: Vec<f32> = (0..256).map(|i| 1.0 + i as f32 / 256.0).collect();
            let error = round_trip_error(dtype, &ramp);
            assert!(error < 0.1, "{}: one-sided: {error}", dtype.name());
        }
    }

    #[test]
    fn scales_that_are_not_finite_are_found() {
        for dtype in Dtype::all() {
            let k = 256;
            let mut bytes = vec![0u8; dtype.row_bytes(k).unwrap()];
            assert_eq!(dtype.first_not_finite(&bytes), None);
            let last = bytes.len() - dtype.block_bytes();
            // Exponents all ones, wherever the format keeps its floats.
            bytes[last..].fill(0xff);
            let expected = bytes.len() / dtype.block_bytes() - 1;
            assert_eq!(dtype.first_not_finite(&bytes), Some(expected), "{}", dtype.name());
        }
    }
}
