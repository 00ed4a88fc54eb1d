//! How a published tensor is held in memory: as it is, or converted row by row as the user asked.
//! The one place that both safetensors and GGUF go through.

use crate::decoder::WeightDtype;
use crate::params::{Loaded, Slot, Tensor};
use kernels::{Dtype, PackedMatrix};
use std::ops::Range;

/// A tensor's values as a file has them.
#[derive(Clone, Copy)]
pub(crate) struct Published<'a> {
    /// Its name in the file.
    pub(crate) name: &'a str,
    pub(crate) dtype: Dtype,
    /// Row after row.
    pub(crate) bytes: &'a [u8],
}

impl Published<'_> {
    /// The slots that the tensor fills. `row_of` gives, for a row of a slot, where the file has it
    /// within that slot's rows.
    pub(crate) fn fill(
        &self,
        tensor: &Tensor,
        wanted: WeightDtype,
        row_of: impl Fn(Slot, usize) -> usize + Sync,
    ) -> Result<Vec<(Slot, Loaded)>, String> {
        self.check_finite()?;
        let parts = tensor.parts.iter();
        let filled = match tensor.spec.shape[..] {
            [_, k] => parts
                .map(|(slot, rows)| {
                    let matrix = self.matrix(*slot, rows, k, wanted, |i| row_of(*slot, i));
                    (*slot, Loaded::Matrix(matrix))
                })
                .collect(),
            _ => {
                let mut values = vec![0.0; tensor.spec.range.len()];
                self.dtype.unpack(self.bytes, &mut values);
                let one = |(slot, rows): &(Slot, Range<usize>)| {
                    let place = |i| values[rows.start + row_of(*slot, i)];
                    (*slot, Loaded::Vector((0..rows.len()).map(place).collect()))
                };
                parts.map(one).collect()
            }
        };
        Ok(filled)
    }

    /// Refuses infinities and what is no number.
    pub(crate) fn check_finite(&self) -> Result<(), String> {
        let Some(at) = self.dtype.first_not_finite(self.bytes) else { return Ok(()) };
        let what = if self.dtype.is_quantised() { "block" } else { "value" };
        Err(format!("{}: {what} {at} is not finite; expected ordinary numbers", self.name))
    }

    /// Rows `rows` of the tensor, of `k` values each, as the matrix of `slot`.
    pub(crate) fn matrix(
        &self,
        slot: Slot,
        rows: &Range<usize>,
        k: usize,
        wanted: WeightDtype,
        row_of: impl Fn(usize) -> usize + Sync,
    ) -> PackedMatrix {
        let row_bytes = self.dtype.row_bytes(k).expect("a file's rows are whole blocks");
        let row = |i: usize| {
            let at = (rows.start + row_of(i)) * row_bytes;
            &self.bytes[at..at + row_bytes]
        };
        let held = held(self.dtype, slot, k, wanted);
        if held == self.dtype {
            return PackedMatrix::from_bytes(held, rows.len(), k, row);
        }
        PackedMatrix::from_rows(held, rows.len(), k, |i, values| self.dtype.unpack(row(i), values))
    }
}

/// The format in which a matrix with rows of `k` values is held when it was published in
/// `published` and the user wants `wanted`.
///
/// A format with blocks holds rows of whole blocks only: other matrices stay as published. Nothing
/// is squeezed that is as small already: that would lose precision and gain nothing. The embedding
/// table and the output head take 8 bits where the layers take 4, because every error in them
/// reaches a logit directly; a router is small and decides which experts are asked, so it is kept.
fn held(published: Dtype, slot: Slot, k: usize, wanted: WeightDtype) -> Dtype {
    // f16 has no kernel of its own; f32 holds its values exactly.
    let as_published = if published == Dtype::F16 { Dtype::F32 } else { published };
    let ends = matches!(slot, Slot::Embed | Slot::Head);
    let target = match wanted {
        WeightDtype::AsPublished => return as_published,
        WeightDtype::F32 => return Dtype::F32,
        WeightDtype::Bf16 => return Dtype::Bf16,
        _ if matches!(slot, Slot::Router(_)) => return as_published,
        WeightDtype::Q8_0 => Dtype::Q8_0,
        WeightDtype::Q4_0 | WeightDtype::Nf4 if ends => Dtype::Q8_0,
        WeightDtype::Q4_0 => Dtype::Q4_0,
        WeightDtype::Nf4 => Dtype::Nf4,
    };
    let bits = |dtype: Dtype| dtype.block_bytes() as f64 * 8.0 / dtype.block() as f64;
    if target.row_bytes(k).is_some() && bits(target) < bits(published) {
        target
    } else {
        as_published
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::Module;

    #[test]
    fn what_is_held() {
        let matrix = Slot::Matrix(0, Module::Q);
        let check = |published, slot, k, wanted, expected| {
            assert_eq!(held(published, slot, k, wanted), expected, "{published:?} {wanted:?}");
        };
        check(Dtype::Bf16, matrix, 64, WeightDtype::AsPublished, Dtype::Bf16);
        check(Dtype::F16, matrix, 64, WeightDtype::AsPublished, Dtype::F32);
        check(Dtype::Q5K, matrix, 256, WeightDtype::AsPublished, Dtype::Q5K);
        check(Dtype::Q5K, matrix, 256, WeightDtype::F32, Dtype::F32);
        check(Dtype::F32, matrix, 64, WeightDtype::Bf16, Dtype::Bf16);
        check(Dtype::F32, matrix, 64, WeightDtype::Q8_0, Dtype::Q8_0);
        check(Dtype::F16, matrix, 172, WeightDtype::Q8_0, Dtype::F32);
        check(Dtype::Bf16, matrix, 172, WeightDtype::Nf4, Dtype::Bf16);
        check(Dtype::Bf16, matrix, 64, WeightDtype::Nf4, Dtype::Nf4);
        check(Dtype::Bf16, Slot::Embed, 64, WeightDtype::Nf4, Dtype::Q8_0);
        check(Dtype::Bf16, Slot::Router(1), 64, WeightDtype::Q4_0, Dtype::Bf16);
        check(Dtype::Q4K, matrix, 256, WeightDtype::Q4_0, Dtype::Q4K);
        check(Dtype::Q4_1, matrix, 256, WeightDtype::Q4_0, Dtype::Q4_0);
        check(Dtype::Q6K, Slot::Head, 256, WeightDtype::Q4_0, Dtype::Q6K);
    }
}
