//! `nf4`: nibbles into quantiles of the normal distribution (arXiv 2305.14314). Block: absmax f32,
//! nibbles[32], value absmax·table[code]. Value 2i is the high nibble of byte i, as in
//! bitsandbytes, which keeps the absolute maxima in a tensor of their own.

use super::lanes::{Lanes, Part};
use super::{Dtype, FormatSpec, PART, Unpack, max_abs};

/// bitsandbytes' table, as printed there (f32).
#[allow(clippy::excessive_precision)]
pub(super) const TABLE: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

pub(super) const SPEC: FormatSpec = FormatSpec {
    dtype: Dtype::Nf4,
    name: "nf4",
    block: 64,
    block_bytes: 36,
    unpack: Unpack::Part(|block, part, out| {
        let absmax = absmax(block);
        *out = codes(block, part).map(|code| absmax * TABLE[code as usize]);
    }),
    pack: Some(pack),
    finite: |block| absmax(block).is_finite(),
};

pub(super) fn absmax(block: &[u8]) -> f32 {
    f32::from_le_bytes([block[0], block[1], block[2], block[3]])
}

/// The codes of a part.
pub(super) fn codes(block: &[u8], part: usize) -> [u8; PART] {
    let bytes = &block[4 + part * 16..];
    std::array::from_fn(|i| bytes[i / 2] >> (4 - i % 2 * 4) & 15)
}

fn pack(values: &[f32], bytes: &mut [u8]) {
    // A value takes the nearest code, the lower one when it lies exactly between two.
    let bounds: [f32; 15] = std::array::from_fn(|i| (TABLE[i] + TABLE[i + 1]) / 2.0);
    for (values, block) in values.as_chunks::<64>().0.iter().zip(bytes.as_chunks_mut::<36>().0) {
        let absmax = max_abs(values);
        block[..4].copy_from_slice(&absmax.to_le_bytes());
        let scale = 1.0 / absmax.max(1e-38);
        let code = |value: f32| {
            let scaled = (value * scale).clamp(-1.0, 1.0);
            bounds.iter().filter(|&&bound| bound < scaled).count() as u8
        };
        for (byte, pair) in block[4..].iter_mut().zip(values.as_chunks::<2>().0) {
            *byte = code(pair[0]) << 4 | code(pair[1]);
        }
    }
}

pub(super) struct Lane;

impl Lanes for Lane {
    const BLOCK: usize = 64;
    const FLOAT_BYTES: usize = 4;
    const TABLE: Option<&'static [f32; 16]> = Some(&TABLE);

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[0], block[1], block[2], block[3]]
    }

    fn split(block: &[u8], part: usize) -> Part {
        Part::plain(codes(block, part))
    }
}
