//! Plain floats: f32, f16 and bf16.

use super::{Dtype, FormatSpec, Unpack};
use half::{bf16, f16};

pub(super) const F32: FormatSpec = FormatSpec {
    dtype: Dtype::F32,
    name: "f32",
    block: 1,
    block_bytes: 4,
    unpack: Unpack::Values(|bytes, out| read(bytes, out, f32::from_le_bytes)),
    pack: Some(|values, bytes| write(values, bytes, f32::to_le_bytes)),
    finite: |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite(),
};

pub(super) const F16: FormatSpec = FormatSpec {
    dtype: Dtype::F16,
    name: "f16",
    block: 1,
    block_bytes: 2,
    unpack: Unpack::Values(|bytes, out| read(bytes, out, |b| f16::from_le_bytes(b).to_f32())),
    pack: Some(|values, bytes| write(values, bytes, |v| f16::from_f32(v).to_le_bytes())),
    finite: |b| f16::from_le_bytes([b[0], b[1]]).is_finite(),
};

pub(super) const BF16: FormatSpec = FormatSpec {
    dtype: Dtype::Bf16,
    name: "bf16",
    block: 1,
    block_bytes: 2,
    unpack: Unpack::Values(|bytes, out| read(bytes, out, |b| bf16::from_le_bytes(b).to_f32())),
    pack: Some(|values, bytes| write(values, bytes, |v| bf16::from_f32(v).to_le_bytes())),
    finite: |b| bf16::from_le_bytes([b[0], b[1]]).is_finite(),
};

fn read<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = value(*bytes);
    }
}

fn write<const N: usize>(values: &[f32], bytes: &mut [u8], of: impl Fn(f32) -> [u8; N]) {
    for (bytes, &value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *bytes = of(value);
    }
}

/// Whether no 16-bit float has all bits of its exponent set.
pub(super) fn all_finite(bytes: &[u8], exponent: u16) -> bool {
    // No early end, so that the compiler finds vectors.
    bytes
        .as_chunks::<2>()
        .0
        .iter()
        .fold(true, |all, bytes| all & (u16::from_le_bytes(*bytes) & exponent != exponent))
}
