//! Metadata values and how they are asked for: by key and the type that the asker needs.

use super::GgufProblem;

/// A metadata value as the file has it.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // The names are the whole content.
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of values of one type. Each kind is a vector of its own, so that an array takes about
/// the memory that it takes in the file.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // As above.
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// The type in words, and the value where it is short; for messages.
    pub fn describe(&self) -> String {
        match self {
            Value::U8(x) => format!("the u8 {x}"),
            Value::I8(x) => format!("the i8 {x}"),
            Value::U16(x) => format!("the u16 {x}"),
            Value::I16(x) => format!("the i16 {x}"),
            Value::U32(x) => format!("the u32 {x}"),
            Value::I32(x) => format!("the i32 {x}"),
            Value::U64(x) => format!("the u64 {x}"),
            Value::I64(x) => format!("the i64 {x}"),
            Value::F32(x) => format!("the f32 {x}"),
            Value::F64(x) => format!("the f64 {x}"),
            Value::Bool(x) => format!("the boolean {x}"),
            Value::String(x) => format!("the string {:?}", super::excerpt(x)),
            Value::Array(x) => {
                let (kind, len) = x.kind();
                format!("an array of {len} x {kind}")
            }
        }
    }
}

impl Array {
    /// The type of the elements, and how many there are.
    fn kind(&self) -> (&'static str, usize) {
        match self {
            Array::U8(x) => ("u8", x.len()),
            Array::I8(x) => ("i8", x.len()),
            Array::U16(x) => ("u16", x.len()),
            Array::I16(x) => ("i16", x.len()),
            Array::U32(x) => ("u32", x.len()),
            Array::I32(x) => ("i32", x.len()),
            Array::F32(x) => ("f32", x.len()),
            Array::Bool(x) => ("bool", x.len()),
            Array::String(x) => ("string", x.len()),
            Array::U64(x) => ("u64", x.len()),
            Array::I64(x) => ("i64", x.len()),
            Array::F64(x) => ("f64", x.len()),
        }
    }
}

/// The value of `key` as the type needed, `None` when there is none.
///
/// # Errors
/// [`GgufProblem::KeyType`] naming the key, what it is and what was expected.
pub(crate) fn typed<'a, T: FromValue<'a>>(
    key: &str,
    value: Option<&'a Value>,
) -> Result<Option<T>, GgufProblem> {
    let Some(value) = value else { return Ok(None) };
    match T::from_value(value) {
        Some(typed) => Ok(Some(typed)),
        None => Err(GgufProblem::KeyType {
            key: key.to_owned(),
            found: value.describe(),
            expected: T::EXPECTED,
        }),
    }
}

/// A type that a metadata value can be asked for as. Whole numbers are taken from any integer type
/// that holds them, because writers differ in which they use.
pub trait FromValue<'a>: Sized {
    /// The type in words, for messages.
    const EXPECTED: &'static str;
    /// The value, if it is of this type.
    fn from_value(value: &'a Value) -> Option<Self>;
}

fn integer(value: &Value) -> Option<i128> {
    Some(match *value {
        Value::U8(x) => x.into(),
        Value::I8(x) => x.into(),
        Value::U16(x) => x.into(),
        Value::I16(x) => x.into(),
        Value::U32(x) => x.into(),
        Value::I32(x) => x.into(),
        Value::U64(x) => x.into(),
        Value::I64(x) => x.into(),
        _ => return None,
    })
}

impl FromValue<'_> for u32 {
    const EXPECTED: &'static str = "a whole number from 0 to 2^32 - 1";
    fn from_value(value: &Value) -> Option<Self> {
        integer(value)?.try_into().ok()
    }
}

impl FromValue<'_> for usize {
    const EXPECTED: &'static str = "a whole number of at least 0";
    fn from_value(value: &Value) -> Option<Self> {
        integer(value)?.try_into().ok()
    }
}

impl FromValue<'_> for f32 {
    const EXPECTED: &'static str = "a floating point number";
    fn from_value(value: &Value) -> Option<Self> {
        match *value {
            Value::F32(x) => Some(x),
            Value::F64(x) => Some(x as f32),
            _ => None,
        }
    }
}

impl FromValue<'_> for bool {
    const EXPECTED: &'static str = "a boolean";
    fn from_value(value: &Value) -> Option<Self> {
        match *value {
            Value::Bool(x) => Some(x),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "a string";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::String(x) => Some(x),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a [String] {
    const EXPECTED: &'static str = "an array of strings";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(Array::String(x)) => Some(x),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a [f32] {
    const EXPECTED: &'static str = "an array of f32";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(Array::F32(x)) => Some(x),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a [i32] {
    const EXPECTED: &'static str = "an array of i32";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(Array::I32(x)) => Some(x),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a [bool] {
    const EXPECTED: &'static str = "an array of booleans";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(Array::Bool(x)) => Some(x),
            _ => None,
        }
    }
}

/// One number, or one for each layer: some models vary a size from layer to layer.
impl FromValue<'_> for Vec<usize> {
    const EXPECTED: &'static str = "a whole number of at least 0, or an array of them";
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Array(Array::U32(x)) => x.iter().map(|n| (*n).try_into().ok()).collect(),
            Value::Array(Array::I32(x)) => x.iter().map(|n| (*n).try_into().ok()).collect(),
            Value::Array(Array::U64(x)) => x.iter().map(|n| (*n).try_into().ok()).collect(),
            Value::Array(Array::I64(x)) => x.iter().map(|n| (*n).try_into().ok()).collect(),
            single => usize::from_value(single).map(|n| vec![n]),
        }
    }
}
