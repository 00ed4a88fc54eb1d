//! `iq4_nl` and `iq4_xs`: nibbles into a fixed table. Block of iq4_nl: d, nibbles[16] as in
//! [`super::q4`], value d·table[code]. Block of iq4_xs: d, high scale bits u16, low scale
//! nibbles[4], nibbles[128] (16 bytes per part), value d·(scale - 32)·table[code].

use super::lanes::{Lanes, Part};
use super::{Dtype, FormatSpec, Unpack, f16_at, q4};

/// ggml's `kvalues_iq4nl`.
const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) const IQ4_NL: FormatSpec = FormatSpec {
    dtype: Dtype::Iq4Nl,
    name: "iq4_nl",
    block: 32,
    block_bytes: 18,
    unpack: Unpack::Part(|block, _, out| {
        let d = f16_at(block, 0);
        *out = q4::codes(&block[2..]).map(|code| d * TABLE[code as usize] as f32);
    }),
    pack: None,
    finite: |block| f16_at(block, 0).is_finite(),
};

pub(super) const IQ4_XS: FormatSpec = FormatSpec {
    dtype: Dtype::Iq4Xs,
    name: "iq4_xs",
    block: 256,
    block_bytes: 136,
    unpack: Unpack::Part(|block, part, out| {
        let scale = f16_at(block, 0) * xs_scale(block, part) as f32;
        let codes = q4::codes(&block[8 + part * 16..]);
        *out = codes.map(|code| scale * TABLE[code as usize] as f32);
    }),
    pack: None,
    finite: |block| f16_at(block, 0).is_finite(),
};

/// Scale of part `part`: low nibble and two high bits, less 32.
fn xs_scale(block: &[u8], part: usize) -> i32 {
    let high = u16::from_le_bytes([block[2], block[3]]) >> (part * 2) & 3;
    let low = block[4 + part / 2] >> (part % 2 * 4) & 15;
    (low as u16 | high << 4) as i32 - 32
}

/// [`TABLE`] as floats.
const FLOAT_TABLE: [f32; 16] = {
    let mut table = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = TABLE[i] as f32;
        i += 1;
    }
    table
};

pub(super) struct LaneNl;

impl Lanes for LaneNl {
    const BLOCK: usize = 32;
    const TABLE: Option<&'static [f32; 16]> = Some(&FLOAT_TABLE);

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[0], block[1], 0, 0]
    }

    fn split(block: &[u8], _: usize) -> Part {
        Part::plain(q4::codes(&block[2..]))
    }
}

pub(super) struct LaneXs;

impl Lanes for LaneXs {
    const BLOCK: usize = 256;
    const SCALES: usize = 1;
    const TABLE: Option<&'static [f32; 16]> = Some(&FLOAT_TABLE);

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[0], block[1], 0, 0]
    }

    fn split(block: &[u8], part: usize) -> Part {
        let codes = q4::codes(&block[8 + part * 16..]);
        Part { codes, scales: [xs_scale(block, part) as i8, 0], minima: [0; 2] }
    }
}
