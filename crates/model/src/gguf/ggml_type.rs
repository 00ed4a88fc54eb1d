//! The tensor types that a GGUF file may hold: how many values a block has and how many bytes.

/// How the values of a tensor are stored. Discriminants are the numbers in the file (`enum
/// ggml_type` in ggml.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // The field's own names.
#[allow(missing_docs)] // The table below says what there is to say.
#[repr(u32)]
pub enum GgmlType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
    IQ4_XS = 23,
    BF16 = 30,
}

/// Every type that is read: its name, values per block and bytes per block. A block lies within a
/// row, so the length of a row is a multiple of the block's.
const TYPES: &[(GgmlType, &str, usize, usize)] = &[
    (GgmlType::F32, "F32", 1, 4),
    (GgmlType::F16, "F16", 1, 2),
    (GgmlType::BF16, "BF16", 1, 2),
    (GgmlType::Q4_0, "Q4_0", 32, 18),
    (GgmlType::Q4_1, "Q4_1", 32, 20),
    (GgmlType::Q5_0, "Q5_0", 32, 22),
    (GgmlType::Q5_1, "Q5_1", 32, 24),
    (GgmlType::Q8_0, "Q8_0", 32, 34),
    (GgmlType::Q2_K, "Q2_K", 256, 84),
    (GgmlType::Q3_K, "Q3_K", 256, 110),
    (GgmlType::Q4_K, "Q4_K", 256, 144),
    (GgmlType::Q5_K, "Q5_K", 256, 176),
    (GgmlType::Q6_K, "Q6_K", 256, 210),
    (GgmlType::IQ4_NL, "IQ4_NL", 32, 18),
    (GgmlType::IQ4_XS, "IQ4_XS", 256, 136),
];

/// Types that exist but are not read; their names make the refusal clear.
const NOT_READ: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl GgmlType {
    /// The type with this number in the file, if it is read.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        TYPES.iter().map(|row| row.0).find(|known| *known as u32 == id)
    }

    /// Every type that is read.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        TYPES.iter().map(|row| row.0)
    }

    /// The field's name, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Values in a block; 1 for types that are not quantised.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// The same format as kernels know it.
    pub fn dtype(self) -> kernels::Dtype {
        let same = |dtype: &kernels::Dtype| dtype.name().eq_ignore_ascii_case(self.name());
        kernels::Dtype::all().find(same).expect("every type that is read has its kernels")
    }

    /// The type of this format, if GGUF has it.
    pub fn of(dtype: kernels::Dtype) -> Option<GgmlType> {
        GgmlType::all().find(|kind| dtype.name().eq_ignore_ascii_case(kind.name()))
    }

    fn row(self) -> &'static (GgmlType, &'static str, usize, usize) {
        TYPES.iter().find(|row| row.0 == self).expect("every variant has its line in TYPES")
    }
}

/// The name of the type with this number, also of one that is not read.
pub(super) fn name_of(id: u32) -> &'static str {
    NOT_READ.iter().find(|(known, _)| *known == id).map_or("a type unknown here", |row| row.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_read_or_not_but_never_both() {
        for kind in GgmlType::all() {
            assert_eq!(GgmlType::from_id(kind as u32), Some(kind));
            assert!(NOT_READ.iter().all(|(id, _)| *id != kind as u32), "{kind:?}");
            assert_eq!(kind.name(), format!("{kind:?}"));
            assert_eq!(kind.block_bytes(), kind.dtype().block_bytes());
            assert_eq!(kind.block_len(), kind.dtype().block());
            assert_eq!(GgmlType::of(kind.dtype()), Some(kind));
        }
        assert_eq!(GgmlType::from_id(16), None);
        assert_eq!(name_of(16), "IQ2_XXS");
    }
}
