//! `q2_k`: 2-bit codes with 4-bit scales and minima per 16. Block: scale and minimum nibbles[16],
//! codes[64], d, dmin. Value: d·scale·code - dmin·minimum.

use super::lanes::{Lanes, Part};
use super::{Dtype, FormatSpec, PART, Unpack, f16_at};

pub(super) const SPEC: FormatSpec = FormatSpec {
    dtype: Dtype::Q2K,
    name: "q2_k",
    block: 256,
    block_bytes: 84,
    unpack: Unpack::Part(unpack),
    pack: None,
    finite: |block| f16_at(block, 80).is_finite() && f16_at(block, 82).is_finite(),
};

fn unpack(block: &[u8], part: usize, out: &mut [f32; PART]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    // Four parts share 32 bytes of codes, two bits of each.
    let codes = &block[16 + part / 4 * 32..][..32];
    let shift = part % 4 * 2;
    for (half, out) in out.chunks_exact_mut(16).enumerate() {
        let nibbles = block[part * 2 + half];
        let (scale, min) = (d * (nibbles & 15) as f32, dmin * (nibbles >> 4) as f32);
        for (out, code) in out.iter_mut().zip(&codes[half * 16..]) {
            *out = scale * (code >> shift & 3) as f32 - min;
        }
    }
}

pub(super) struct Lane;

impl Lanes for Lane {
    const BLOCK: usize = 256;
    const LOW: usize = 2;
    const FLOATS: usize = 2;
    const SCALES: usize = 2;
    const MINIMA: bool = true;

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[80], block[81], block[82], block[83]]
    }

    fn split(block: &[u8], part: usize) -> Part {
        let nibbles = [block[part * 2], block[part * 2 + 1]];
        Part {
            codes: std::array::from_fn(|i| block[16 + part / 4 * 32 + i] >> (part % 4 * 2) & 3),
            scales: nibbles.map(|n| (n & 15) as i8),
            minima: nibbles.map(|n| (n >> 4) as i8),
        }
    }
}
