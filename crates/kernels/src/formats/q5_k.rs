//! `q5_k`: as [`super::q4_k`] with a fifth bit each. Block: d, dmin, scales and minima[12], high
//! bits[32], nibbles[128].

use super::lanes::{Lanes, Part};
use super::{Dtype, FormatSpec, Unpack, f16_at, q4_k};

pub(super) const SPEC: FormatSpec = FormatSpec {
    dtype: Dtype::Q5K,
    name: "q5_k",
    block: 256,
    block_bytes: 176,
    unpack: Unpack::Part(|block, part, out| {
        let (scale, min) = q4_k::scale_min(&block[4..16], part);
        let (scale, min) = (f16_at(block, 0) * scale as f32, f16_at(block, 2) * min as f32);
        let low = q4_k::codes(&block[48..], part);
        for (i, out) in out.iter_mut().enumerate() {
            let code = low[i] | (block[16 + i] >> part & 1) << 4;
            *out = scale * code as f32 - min;
        }
    }),
    pack: None,
    finite: |block| f16_at(block, 0).is_finite() && f16_at(block, 2).is_finite(),
};

pub(super) struct Lane;

impl Lanes for Lane {
    const BLOCK: usize = 256;
    const HIGH: usize = 1;
    const FLOATS: usize = 2;
    const SCALES: usize = 1;
    const MINIMA: bool = true;

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[0], block[1], block[2], block[3]]
    }

    fn split(block: &[u8], part: usize) -> Part {
        let (scale, min) = q4_k::scale_min(&block[4..16], part);
        let low = q4_k::codes(&block[48..], part);
        let codes = std::array::from_fn(|i| low[i] | (block[16 + i] >> part & 1) << 4);
        Part { codes, scales: [scale as i8, 0], minima: [min as i8, 0] }
    }
}
