//! `q4_k`: nibbles with 6-bit scales and minima per 32. Block: d, dmin, scales and minima[12],
//! nibbles[128]. Value: d·scale·code - dmin·minimum.

use super::lanes::{Lanes, Part};
use super::{Dtype, FormatSpec, PART, Unpack, f16_at, inverse, set_f16};

pub(super) const SPEC: FormatSpec = FormatSpec {
    dtype: Dtype::Q4K,
    name: "q4_k",
    block: 256,
    block_bytes: 144,
    unpack: Unpack::Part(|block, part, out| {
        let (scale, min) = scale_min(&block[4..16], part);
        let (scale, min) = (f16_at(block, 0) * scale as f32, f16_at(block, 2) * min as f32);
        *out = codes(&block[16..], part).map(|code| scale * code as f32 - min);
    }),
    pack: Some(pack),
    finite: |block| f16_at(block, 0).is_finite() && f16_at(block, 2).is_finite(),
};

/// Scale and minimum of part `i` of eight. Parts 0 to 3: the low six bits of bytes i and 4 + i.
/// Parts 4 to 7: low nibbles (scale) and high nibbles (minimum) of bytes 4 + i, and above them the
/// two high bits of bytes i - 4 and i.
pub(super) fn scale_min(bytes: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (bytes[i] & 63, bytes[4 + i] & 63)
    } else {
        let both = bytes[4 + i];
        (both & 15 | bytes[i - 4] >> 6 << 4, both >> 4 | bytes[i] >> 6 << 4)
    }
}

/// The inverse of [`scale_min`], into twelve zero bytes.
fn set_scale_min(bytes: &mut [u8], i: usize, scale: u8, min: u8) {
    if i < 4 {
        bytes[i] |= scale;
        bytes[4 + i] |= min;
    } else {
        bytes[4 + i] |= scale & 15 | min << 4;
        bytes[i - 4] |= scale >> 4 << 6;
        bytes[i] |= min >> 4 << 6;
    }
}

/// The nibbles of a part: two parts share 32 bytes, low nibbles first.
pub(super) fn codes(nibbles: &[u8], part: usize) -> [u8; PART] {
    let bytes = &nibbles[part / 2 * 32..];
    let shift = part % 2 * 4;
    std::array::from_fn(|i| bytes[i] >> shift & 15)
}

fn pack(values: &[f32], bytes: &mut [u8]) {
    for (values, block) in values.as_chunks::<256>().0.iter().zip(bytes.as_chunks_mut::<144>().0) {
        let parts = values.as_chunks::<PART>().0;
        let fits: [(f32, f32); 8] = std::array::from_fn(|i| fit(&parts[i]));
        let most = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0.0, f32::max);
        block.fill(0);
        set_f16(block, 0, most(|f| f.0) / 63.0);
        set_f16(block, 2, most(|f| f.1) / 63.0);
        // From here on with the numbers as they are stored.
        let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
        for (i, (part, fit)) in parts.iter().zip(fits).enumerate() {
            let scale = (fit.0 * inverse(d)).round().min(63.0);
            let min = (fit.1 * inverse(dmin)).round().min(63.0);
            set_scale_min(&mut block[4..16], i, scale as u8, min as u8);
            let (step, min) = (inverse(d * scale), dmin * min);
            for (j, value) in part.iter().enumerate() {
                // `as` saturates at zero.
                let code = (((value + min) * step).round() as u8).min(15);
                block[16 + i / 2 * 32 + j] |= code << (i % 2 * 4);
            }
        }
    }
}

/// Step s and minimum m >= 0, so that s·code - m with codes 0 to 15 is near the values: from a few
/// steps about the one that spans the range, the least squares fit to the codes that it gives, and
/// of these the one with the least error.
fn fit(values: &[f32; PART]) -> (f32, f32) {
    let low = values.iter().fold(0.0f32, |m, &x| m.min(x));
    let high = values.iter().fold(low, |m, &x| m.max(x));
    if high == low {
        // All values are one value <= 0.
        return (0.0, -low);
    }
    let error = |s: f32, m: f32| -> f32 {
        let step = inverse(s);
        let square = |&x: &f32| {
            let code = ((x + m) * step).round().clamp(0.0, 15.0);
            (s * code - m - x).powi(2)
        };
        values.iter().map(square).sum()
    };
    let mut best = ((high - low) / 15.0, -low);
    let mut least = error(best.0, best.1);
    for i in 0..21 {
        let step = (14.0 + 0.1 * i as f32) / (high - low);
        let n = PART as f32;
        let (mut c, mut cc, mut x, mut cx) = (0.0, 0.0, 0.0, 0.0);
        for &value in values {
            let code = ((value - low) * step).round().clamp(0.0, 15.0);
            c += code;
            cc += code * code;
            x += value;
            cx += code * value;
        }
        let determinant = n * cc - c * c;
        if determinant <= 0.0 {
            continue;
        }
        let mut s = (n * cx - c * x) / determinant;
        let mut m = (c * cx - cc * x) / determinant;
        if m < 0.0 {
            // The format subtracts; a floor above zero cannot be said.
            (s, m) = (cx / cc, 0.0);
        }
        if s > 0.0 {
            let found = error(s, m);
            if found < least {
                (least, best) = (found, (s, m));
            }
        }
    }
    best
}

pub(super) struct Lane;

impl Lanes for Lane {
    const BLOCK: usize = 256;
    const FLOATS: usize = 2;
    const SCALES: usize = 1;
    const MINIMA: bool = true;

    fn floats(block: &[u8]) -> [u8; 4] {
        [block[0], block[1], block[2], block[3]]
    }

    fn split(block: &[u8], part: usize) -> Part {
        let (scale, min) = scale_min(&block[4..16], part);
        let codes = codes(&block[16..], part);
        Part { codes, scales: [scale as i8, 0], minima: [min as i8, 0] }
    }
}
