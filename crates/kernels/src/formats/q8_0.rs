//! `q8_0`: 32 signed bytes and an f16 scale. Block: d, codes[32]. Value: d·code.

use super::lanes::{Lanes, Part};
use super::{Dtype, FormatSpec, PART, Unpack, f16_at, inverse, max_abs, set_f16};

pub(super) const SPEC: FormatSpec = FormatSpec {
    dtype: Dtype::Q8_0,
    name: "q8_0",
    block: 32,
    block_bytes: 34,
    unpack: Unpack::Part(unpack),
    pack: Some(pack),
    finite: |block| f16_at(block, 0).is_finite(),
};

fn unpack(block: &[u8], _: usize, out: &mut [f32; PART]) {
    let d = f16_at(block, 0);
    for (out, &code) in out.iter_mut().zip(&block[2..]) {
        *out = d * (code as i8) as f32;
    }
}

fn pack(values: &[f32], bytes: &mut [u8]) {
    for (values, block) in values.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<34>().0) {
        let d = max_abs(values) / 127.0;
        set_f16(block, 0, d);
        let scale = inverse(d);
        for (code, value) in block[2..].iter_mut().zip(values) {
            *code = (value * scale).round() as i8 as u8;
        }
    }
}

pub(super) struct Lane;

impl Lanes for Lane {
    const BLOCK: usize = 32;
    const LOW: usize = 8;

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[0], block[1], 0, 0]
    }

    fn split(block: &[u8], _: usize) -> Part {
        Part::plain(std::array::from_fn(|i| block[2 + i]))
    }
}
