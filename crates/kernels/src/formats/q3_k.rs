//! `q3_k`: 3-bit codes with 6-bit scales per 16. Block: high bits[32], low two bits[64],
//! scales[12], d. Value: d·(scale - 32)·(code - 4).

use super::lanes::{Lanes, Part};
use super::{Dtype, FormatSpec, PART, Unpack, f16_at};

pub(super) const SPEC: FormatSpec = FormatSpec {
    dtype: Dtype::Q3K,
    name: "q3_k",
    block: 256,
    block_bytes: 110,
    unpack: Unpack::Part(unpack),
    pack: None,
    finite: |block| f16_at(block, 108).is_finite(),
};

fn unpack(block: &[u8], part: usize, out: &mut [f32; PART]) {
    let d = f16_at(block, 108);
    let high = &block[..32];
    let low = &block[32 + part / 4 * 32..][..32];
    let shift = part % 4 * 2;
    for (half, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * (scale(&block[96..108], part * 2 + half) - 32) as f32;
        for (i, out) in out.iter_mut().enumerate() {
            let at = half * 16 + i;
            let code = low[at] >> shift & 3 | (high[at] >> part & 1) << 2;
            *out = scale * (code as i32 - 4) as f32;
        }
    }
}

/// Scale `i` of sixteen: its low four bits in bytes 0 to 7, first all low nibbles, then all high
/// ones; its high two bits in bytes 8 to 11, four scales apart.
fn scale(bytes: &[u8], i: usize) -> i32 {
    let low = bytes[i % 8] >> (i / 8 * 4) & 15;
    let high = bytes[8 + i % 4] >> (i / 4 * 2) & 3;
    (low | high << 4) as i32
}

pub(super) struct Lane;

impl Lanes for Lane {
    const BLOCK: usize = 256;
    const LOW: usize = 2;
    const HIGH: usize = 1;
    const SCALES: usize = 2;
    const OFFSET: f32 = 4.0;

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[108], block[109], 0, 0]
    }

    fn split(block: &[u8], part: usize) -> Part {
        Part {
            codes: std::array::from_fn(|i| {
                let low = block[32 + part / 4 * 32 + i] >> (part % 4 * 2) & 3;
                low | (block[i] >> part & 1) << 2
            }),
            scales: [0, 1].map(|half| (scale(&block[96..108], part * 2 + half) - 32) as i8),
            minima: [0; 2],
        }
    }
}
