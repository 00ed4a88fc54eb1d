//! `q6_k`: 6-bit codes with 8-bit scales per 16. Block: low nibbles[128], high two bits[64],
//! scales[16], d. Value: d·scale·(code - 32).

use super::lanes::{Lanes, Part};
use super::{Dtype, FormatSpec, PART, Unpack, f16_at, inverse, max_abs, set_f16, signed_max};

pub(super) const SPEC: FormatSpec = FormatSpec {
    dtype: Dtype::Q6K,
    name: "q6_k",
    block: 256,
    block_bytes: 210,
    unpack: Unpack::Part(|block, part, out| {
        let d = f16_at(block, 208);
        let codes = codes(block, part);
        for (i, out) in out.iter_mut().enumerate() {
            let scale = block[192 + part * 2 + i / 16] as i8;
            *out = d * scale as f32 * (codes[i] as i32 - 32) as f32;
        }
    }),
    pack: Some(pack),
    finite: |block| f16_at(block, 208).is_finite(),
};

/// Where part `part` lies: its nibbles' first byte and shift, its high bits' first byte and shift.
/// Each half of the block has 64 bytes of nibbles (parts 0 and 1 low, 2 and 3 high) and 32 bytes
/// of high bits (two bits per part).
fn places(part: usize) -> (usize, usize, usize, usize) {
    let (half, quarter) = (part / 4, part % 4);
    (half * 64 + quarter % 2 * 32, quarter / 2 * 4, 128 + half * 32, quarter * 2)
}

/// The codes of a part, 0 to 63.
pub(super) fn codes(block: &[u8], part: usize) -> [u8; PART] {
    let (low, low_shift, high, high_shift) = places(part);
    std::array::from_fn(|i| {
        block[low + i] >> low_shift & 15 | (block[high + i] >> high_shift & 3) << 4
    })
}

fn pack(values: &[f32], bytes: &mut [u8]) {
    for (values, block) in values.as_chunks::<256>().0.iter().zip(bytes.as_chunks_mut::<210>().0) {
        let groups = values.as_chunks::<16>().0;
        let steps: [f32; 16] = std::array::from_fn(|i| fit(&groups[i]));
        block.fill(0);
        set_f16(block, 208, max_abs(&steps) / 127.0);
        // From here on with the numbers as they are stored.
        let d = f16_at(block, 208);
        for (i, (group, step)) in groups.iter().zip(steps).enumerate() {
            let scale = (step * inverse(d)).round() as i8;
            block[192 + i] = scale as u8;
            let inverse = inverse(d * scale as f32);
            let (low, low_shift, high, high_shift) = places(i / 2);
            for (j, value) in group.iter().enumerate() {
                let code = ((value * inverse).round().clamp(-32.0, 31.0) + 32.0) as u8;
                let at = i % 2 * 16 + j;
                block[low + at] |= (code & 15) << low_shift;
                block[high + at] |= code >> 4 << high_shift;
            }
        }
    }
}

/// A step s, so that s·code with codes -32 to 31 is near the values: about the step that gives the
/// largest value the code -32, the least squares fit to the codes of each try, and of these the one
/// that takes most off the error.
fn fit(values: &[f32; 16]) -> f32 {
    let largest = signed_max(values);
    if largest == 0.0 {
        return 0.0;
    }
    let (mut best, mut most) = (largest / -32.0, f32::NEG_INFINITY);
    for i in -9..=9 {
        let inverse = -(32.0 + 0.1 * i as f32) / largest;
        let (mut cc, mut cx) = (0.0, 0.0);
        for value in values {
            let code = (value * inverse).round().clamp(-32.0, 31.0);
            cc += code * code;
            cx += code * value;
        }
        // |x|² - |x - s·code|² at the best s.
        if cc > 0.0 && cx * cx / cc > most {
            (best, most) = (cx / cc, cx * cx / cc);
        }
    }
    best
}

pub(super) struct Lane;

impl Lanes for Lane {
    const BLOCK: usize = 256;
    const HIGH: usize = 2;
    const SCALES: usize = 2;
    const OFFSET: f32 = 32.0;

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[208], block[209], 0, 0]
    }

    fn split(block: &[u8], part: usize) -> Part {
        let scales = [0, 1].map(|half| block[192 + part * 2 + half] as i8);
        Part { codes: codes(block, part), scales, minima: [0; 2] }
    }
}
