//! `q4_0` and `q4_1`: 32 nibbles. Block of q4_0: d, nibbles[16], value d·(code - 8); of q4_1: d, m,
//! nibbles[16], value d·code + m. Value i is the low nibble of byte i, value 16 + i the high one.

use super::lanes::{Lanes, Part};
use super::{Dtype, FormatSpec, PART, Unpack, f16_at, inverse, set_f16, signed_max};

pub(super) const Q4_0: FormatSpec = FormatSpec {
    dtype: Dtype::Q4_0,
    name: "q4_0",
    block: 32,
    block_bytes: 18,
    unpack: Unpack::Part(|block, _, out| {
        let d = f16_at(block, 0);
        *out = codes(&block[2..]).map(|code| d * (code as i32 - 8) as f32);
    }),
    pack: Some(pack),
    finite: |block| f16_at(block, 0).is_finite(),
};

pub(super) const Q4_1: FormatSpec = FormatSpec {
    dtype: Dtype::Q4_1,
    name: "q4_1",
    block: 32,
    block_bytes: 20,
    unpack: Unpack::Part(|block, _, out| {
        let (d, m) = (f16_at(block, 0), f16_at(block, 2));
        *out = codes(&block[4..]).map(|code| d * code as f32 + m);
    }),
    pack: None,
    finite: |block| f16_at(block, 0).is_finite() && f16_at(block, 2).is_finite(),
};

/// The codes of sixteen bytes, low nibbles first.
pub(super) fn codes(nibbles: &[u8]) -> [u8; PART] {
    std::array::from_fn(|i| if i < 16 { nibbles[i] & 15 } else { nibbles[i - 16] >> 4 })
}

fn pack(values: &[f32], bytes: &mut [u8]) {
    for (values, block) in values.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<18>().0) {
        // The value of largest magnitude gets the code 0, which reaches one step further than 15.
        let d = signed_max(values) / -8.0;
        set_f16(block, 0, d);
        let scale = inverse(d);
        let code = |value: f32| ((value * scale + 8.5) as u8).min(15);
        for i in 0..16 {
            block[2 + i] = code(values[i]) | code(values[16 + i]) << 4;
        }
    }
}

pub(super) struct Lane0;

impl Lanes for Lane0 {
    const BLOCK: usize = 32;
    const OFFSET: f32 = 8.0;

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
    const FLOATS: usize = 2;

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[0], block[1], block[2], block[3]]
    }

    fn split(block: &[u8], _: usize) -> Part {
        Part::plain(codes(&block[4..]))
    }
}
