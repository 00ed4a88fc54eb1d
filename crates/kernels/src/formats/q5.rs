//! `q5_0` and `q5_1`: as [`super::q4`] with a fifth bit each. Block of q5_0: d, high bits u32,
//! nibbles[16], value d·(code - 16); of q5_1: d, m, high bits, nibbles, value d·code + m.

use super::lanes::{Lanes, Part};
use super::{Dtype, FormatSpec, PART, Unpack, f16_at, q4};

pub(super) const Q5_0: FormatSpec = FormatSpec {
    dtype: Dtype::Q5_0,
    name: "q5_0",
    block: 32,
    block_bytes: 22,
    unpack: Unpack::Part(|block, _, out| {
        let d = f16_at(block, 0);
        *out = codes(&block[2..]).map(|code| d * (code as i32 - 16) as f32);
    }),
    pack: None,
    finite: |block| f16_at(block, 0).is_finite(),
};

pub(super) const Q5_1: FormatSpec = FormatSpec {
    dtype: Dtype::Q5_1,
    name: "q5_1",
    block: 32,
    block_bytes: 24,
    unpack: Unpack::Part(|block, _, out| {
        let (d, m) = (f16_at(block, 0), f16_at(block, 2));
        *out = codes(&block[4..]).map(|code| d * code as f32 + m);
    }),
    pack: None,
    finite: |block| f16_at(block, 0).is_finite() && f16_at(block, 2).is_finite(),
};

/// The codes of four bytes of high bits and sixteen of nibbles.
fn codes(bytes: &[u8]) -> [u8; PART] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let low = q4::codes(&bytes[4..]);
    std::array::from_fn(|i| low[i] | ((high >> i & 1) as u8) << 4)
}

pub(super) struct Lane0;

impl Lanes for Lane0 {
    const BLOCK: usize = 32;
    const HIGH: usize = 1;
    const OFFSET: f32 = 16.0;

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[0], block[1], 0, 0]
    }

    fn split(block: &[u8], _: usize) -> Part {
        Part::plain(codes(&block[2..]))
    }
}

pub(super) struct Lane1;

impl Lanes for Lane1 {
    const BLOCK: usize = 32;
    const HIGH: usize = 1;
    const FLOATS: usize = 2;

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[0], block[1], block[2], block[3]]
    }

    fn split(block: &[u8], _: usize) -> Part {
        Part::plain(codes(&block[4..]))
    }
}
