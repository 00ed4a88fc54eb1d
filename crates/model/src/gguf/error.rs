//! One named variant per lie that a GGUF file can tell.

use super::ggml_type::{GgmlType, name_of};
use std::path::PathBuf;

/// A GGUF file that cannot be used: which file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct GgufError {
    /// The file.
    pub path: PathBuf,
    /// What was found and what was expected.
    pub problem: GgufProblem,
}

/// What is wrong with a GGUF file. Positions are bytes from its beginning.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufProblem {
    /// The system could not open or map it.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It does not begin as a GGUF file does.
    #[error("not a GGUF file: it begins with {found:?}, expected \"GGUF\"")]
    Magic {
        /// The first bytes.
        found: String,
    },
    /// It was written for another kind of machine.
    #[error(
        "the file is big-endian (version {version}), expected little-endian; \
         hint: convert it with gguf_convert_endian.py of the gguf Python package"
    )]
    BigEndian {
        /// The version, read in the file's own order.
        version: u32,
    },
    /// A version whose layout is another one.
    #[error("GGUF version {found}, expected 2 or 3; hint: convert the model again")]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// It ends within a value.
    #[error(
        "the file ends at byte {size}, but {what} at byte {at} needs {needed} bytes; \
         hint: the download was probably cut short"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it begins.
        at: usize,
        /// Bytes it needs.
        needed: u64,
        /// Bytes the file has.
        size: usize,
    },
    /// A count that this file has no room for.
    #[error("{what} is {count}, but the {left} bytes left in the file hold at most {most}")]
    Count {
        /// What is counted.
        what: String,
        /// The number in the file.
        count: u64,
        /// Bytes left at that place.
        left: usize,
        /// The most that these can hold.
        most: usize,
    },
    /// Text that is not UTF-8.
    #[error("{what} at byte {at} is not UTF-8")]
    NotUtf8 {
        /// What was being read.
        what: String,
        /// Where it begins.
        at: usize,
    },
    /// A key or tensor name that is empty or longer than the specification allows.
    #[error("{what} at byte {at} is {found} bytes long, expected 1 to {most}")]
    NameLength {
        /// Key or tensor name.
        what: &'static str,
        /// Where it begins.
        at: usize,
        /// Its length.
        found: usize,
        /// The most allowed.
        most: usize,
    },
    /// A metadata key or a tensor occurs twice.
    #[error("{what} {name:?} occurs twice")]
    Duplicate {
        /// Key or tensor.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A type of metadata value that the specification does not have.
    #[error("the value of {key:?} has the type {found}, expected 0 to 12")]
    ValueType {
        /// The key.
        key: String,
        /// The number in the file.
        found: u32,
    },
    /// An array within an array; no writer in use makes them and no key needs them.
    #[error("the value of {key:?} is an array of arrays, expected an array of plain values")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A truth value that is neither.
    #[error("the value of {key:?} is the boolean {found}, expected 0 or 1")]
    Bool {
        /// The key.
        key: String,
        /// The byte in the file.
        found: u8,
    },
    /// `general.alignment` is of no use.
    #[error("general.alignment is {found}, expected a power of two from {least} to {most}")]
    Alignment {
        /// The number in the file.
        found: u64,
        /// The least allowed.
        least: usize,
        /// The most allowed.
        most: usize,
    },
    /// A tensor whose values are stored in a way that is not read here.
    #[error(
        "tensor {name:?} has the type {id} ({}), expected one of {}",
        name_of(*id),
        GgmlType::all().map(GgmlType::name).collect::<Vec<_>>().join(", ")
    )]
    TensorType {
        /// The tensor.
        name: String,
        /// The number in the file.
        id: u32,
    },
    /// A tensor of no or too many dimensions.
    #[error("tensor {name:?} has {found} dimensions, expected 1 to 4")]
    Dimensions {
        /// The tensor.
        name: String,
        /// How many it claims.
        found: u32,
    },
    /// A tensor with an impossible size.
    #[error("tensor {name:?} has the size {shape:?} (innermost first): {reason}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its dimensions as in the file, the innermost first.
        shape: Vec<u64>,
        /// Why that cannot be.
        reason: String,
    },
    /// A tensor's data begin where none may begin.
    #[error("tensor {name:?} begins at offset {offset}, expected a multiple of {alignment}")]
    Unaligned {
        /// The tensor.
        name: String,
        /// Its offset within the data section.
        offset: u64,
        /// The file's alignment.
        alignment: usize,
    },
    /// A tensor's data lie outside the file.
    #[error(
        "tensor {name:?} has {bytes} bytes from offset {offset} of the data section, which has \
         {section}; hint: the download was probably cut short"
    )]
    OutOfFile {
        /// The tensor.
        name: String,
        /// Its offset within the data section.
        offset: u64,
        /// Its length.
        bytes: usize,
        /// The length of the data section.
        section: usize,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap in the file")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The other.
        second: String,
    },
    /// A key that this use of the file needs is missing.
    #[error("the metadata has no {key:?}, expected {expected}")]
    MissingKey {
        /// The key.
        key: String,
        /// What its value should be.
        expected: &'static str,
    },
    /// A key has a value of a type that makes no sense for it.
    #[error("{key:?} is {found}, expected {expected}")]
    KeyType {
        /// The key.
        key: String,
        /// The type of its value, with the value where it is short.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
}
