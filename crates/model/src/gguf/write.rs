//! Writes GGUF files, version 3: the inverse of the reader beside it.

use super::{Array, DEFAULT_ALIGNMENT, GgmlType, MAGIC, Value};
use crate::error::ModelError;
use crate::files::write_atomic_with;
use std::io::{BufWriter, Write};
use std::path::Path;

/// A tensor to be written.
pub(crate) struct TensorOut<'a> {
    pub(crate) name: String,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) ggml_type: GgmlType,
    /// Makes its bytes, when it is its turn: no two tensors are in memory at once.
    pub(crate) bytes: Box<dyn Fn() -> Vec<u8> + 'a>,
}

impl TensorOut<'_> {
    fn size(&self) -> usize {
        let values: usize = self.shape.iter().product();
        values / self.ggml_type.block_len() * self.ggml_type.block_bytes()
    }
}

/// Writes a whole file, or nothing.
///
/// # Errors
/// [`ModelError::Io`] with the path.
pub(crate) fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[TensorOut<'_>],
) -> Result<(), ModelError> {
    let head = head(metadata, tensors);
    write_atomic_with(path, |file| {
        let mut out = BufWriter::new(file);
        out.write_all(&head)?;
        for tensor in tensors {
            let mut bytes = (tensor.bytes)();
            assert_eq!(bytes.len(), tensor.size(), "bytes of {}", tensor.name);
            bytes.resize(bytes.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
            out.write_all(&bytes)?;
        }
        out.flush()
    })
}

/// Everything before the data.
fn head(metadata: &[(String, Value)], tensors: &[TensorOut<'_>]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        entry(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for n in tensor.shape.iter().rev() {
            out.extend((*n as u64).to_le_bytes());
        }
        out.extend((tensor.ggml_type as u32).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.size().next_multiple_of(DEFAULT_ALIGNMENT) as u64;
    }
    out.resize(out.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
    out
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}

/// The number of the type, then the value (`enum gguf_type` in gguf.h).
fn entry(out: &mut Vec<u8>, value: &Value) {
    macro_rules! number {
        ($kind:expr, $x:expr) => {{
            out.extend(($kind as u32).to_le_bytes());
            out.extend($x.to_le_bytes());
        }};
    }
    match value {
        Value::U8(x) => number!(0, x),
        Value::I8(x) => number!(1, x),
        Value::U16(x) => number!(2, x),
        Value::I16(x) => number!(3, x),
        Value::U32(x) => number!(4, x),
        Value::I32(x) => number!(5, x),
        Value::F32(x) => number!(6, x),
        Value::Bool(x) => number!(7, u8::from(*x)),
        Value::String(x) => {
            out.extend(8u32.to_le_bytes());
            text(out, x);
        }
        Value::Array(x) => {
            out.extend(9u32.to_le_bytes());
            array(out, x);
        }
        Value::U64(x) => number!(10, x),
        Value::I64(x) => number!(11, x),
        Value::F64(x) => number!(12, x),
    }
}

fn array(out: &mut Vec<u8>, values: &Array) {
    macro_rules! numbers {
        ($kind:expr, $list:expr) => {{
            out.extend(($kind as u32).to_le_bytes());
            out.extend(($list.len() as u64).to_le_bytes());
            $list.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }};
    }
    match values {
        Array::U8(x) => numbers!(0, x),
        Array::I8(x) => numbers!(1, x),
        Array::U16(x) => numbers!(2, x),
        Array::I16(x) => numbers!(3, x),
        Array::U32(x) => numbers!(4, x),
        Array::I32(x) => numbers!(5, x),
        Array::F32(x) => numbers!(6, x),
        Array::Bool(x) => {
            let bytes: Vec<u8> = x.iter().map(|b| u8::from(*b)).collect();
            numbers!(7, bytes)
        }
        Array::String(x) => {
            out.extend(8u32.to_le_bytes());
            out.extend((x.len() as u64).to_le_bytes());
            x.iter().for_each(|s| text(out, s));
        }
        Array::U64(x) => numbers!(10, x),
        Array::I64(x) => numbers!(11, x),
        Array::F64(x) => numbers!(12, x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufFile;

    #[test]
    fn what_is_written_is_read() {
        let strings = |list: &[&str]| Array::String(list.iter().map(|s| s.to_string()).collect());
        let values = [
            Value::U8(1),
            Value::I8(-1),
            Value::U16(2),
            Value::I16(-2),
            Value::U32(3),
            Value::I32(-3),
            Value::F32(0.5),
            Value::Bool(true),
            Value::String("été".into()),
            Value::U64(4),
            Value::I64(-4),
            Value::F64(0.25),
            Value::Array(Array::U8(vec![1, 2])),
            Value::Array(Array::I8(vec![-1])),
            Value::Array(Array::U16(vec![1])),
            Value::Array(Array::I16(vec![-1])),
            Value::Array(Array::U32(vec![1])),
            Value::Array(Array::I32(vec![-1])),
            Value::Array(Array::F32(vec![1.5])),
            Value::Array(Array::Bool(vec![true, false])),
            Value::Array(strings(&["a", ""])),
            Value::Array(Array::U64(vec![1])),
            Value::Array(Array::I64(vec![-1])),
            Value::Array(Array::F64(vec![1.5])),
        ];
        let metadata: Vec<(String, Value)> =
            values.into_iter().enumerate().map(|(i, v)| (format!("key.{i}"), v)).collect();
        let tensor = |name: &str, shape: &[usize], ggml_type, byte: u8, size: usize| TensorOut {
            name: name.into(),
            shape: shape.to_vec(),
            ggml_type,
            bytes: Box::new(move || vec![byte; size]),
        };
        let tensors = [
            tensor("a", &[3], GgmlType::F32, 0, 12),
            tensor("b", &[2, 3, 32], GgmlType::Q8_0, 7, 6 * 34),
            tensor("c", &[1, 2], GgmlType::F16, 1, 4),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/a.gguf");
        write(&path, &metadata, &tensors).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let found: Vec<(String, Value)> =
            file.all_metadata().map(|(k, v)| (k.to_owned(), v.clone())).collect();
        assert_eq!(found, metadata);
        for (found, expected) in file.tensors().zip(&tensors) {
            assert_eq!((found.name, found.shape), (&*expected.name, &*expected.shape));
            assert_eq!((found.ggml_type, found.bytes), (expected.ggml_type, &*(expected.bytes)()));
        }
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
