//! GGUF files, versions 2 and 3, little-endian: metadata by key and tensors as stored, over a
//! memory map. What the keys and tensors mean is the business of whoever asks.
//!
//! Written here because the published readers trust the file: they reserve memory for a count or a
//! length before they compare it with the file's size, or do not look for duplicate names and
//! overlapping tensors. Every number is checked before it is used here; what is held in memory
//! beside the map is at most a small constant times the file's size.
//!
//! Layout (the format's specification, ggml/docs/gguf.md): magic, version, number of tensors,
//! number of metadata entries; the entries (key, type, value); the tensors' descriptions (name,
//! dimensions innermost first, type, offset); padding to the alignment; the tensors' data.

mod error;
mod export;
mod ggml_type;
mod load;
mod metadata;
mod write;

pub use error::{GgufError, GgufProblem};
pub use export::GGUF_DTYPES;
pub use ggml_type::GgmlType;
pub(crate) use load::{load, tensor_name, tensor_shape};
pub(crate) use metadata::typed;
pub use metadata::{Array, FromValue, Value};

use indexmap::IndexMap;
use indexmap::map::Entry;
use kernels::MappedFile;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: usize = 32;
/// The specification asks for a multiple of 8; llama.cpp for a power of two.
const LEAST_ALIGNMENT: usize = 8;
/// Far above any page or cache line for which an alignment makes sense.
const MOST_ALIGNMENT: usize = 1 << 20;
/// The specification's limit on keys.
const MOST_KEY: usize = 65_535;
/// The specification's limit on tensor names.
const MOST_TENSOR_NAME: usize = 64;
/// The smallest metadata entry: length and one byte of a key, type, a value of one byte.
const LEAST_ENTRY: usize = 8 + 1 + 4 + 1;
/// The smallest tensor description: length and one byte of a name, number of dimensions, one
/// dimension, type, offset.
const LEAST_TENSOR: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// An open GGUF file whose structure has been checked.
pub struct GgufFile {
    path: PathBuf,
    map: MappedFile,
    header: Header,
}

/// A tensor as stored.
#[derive(Clone, Copy, Debug)]
pub struct GgufTensor<'a> {
    /// Its name in the file, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Its dimensions, the outermost first as in Hugging Face files ([out, in] for a weight); the
    /// file has them the other way round.
    pub shape: &'a [usize],
    /// How its values are stored.
    pub ggml_type: GgmlType,
    /// Its values, row after row: the product of `shape`, divided by the type's block length, times
    /// the type's block bytes.
    pub bytes: &'a [u8],
}

impl GgufFile {
    /// Maps the file and checks its header: counts, lengths, names, types, sizes, and that each
    /// tensor has its own place within the file.
    ///
    /// # Errors
    /// [`GgufError`] with the path and what is wrong.
    pub fn open(path: &Path) -> Result<GgufFile, GgufError> {
        let fail = |problem| GgufError { path: path.to_owned(), problem };
        let size = std::fs::metadata(path).map_err(|error| fail(error.into()))?.len();
        if size < MAGIC.len() as u64 {
            // An empty file cannot be mapped.
            return Err(fail(GgufProblem::Magic { found: format!("{size} bytes in all") }));
        }
        let map = MappedFile::open(path).map_err(|error| fail(error.into()))?;
        let header = Header::parse(&map).map_err(fail)?;
        Ok(GgufFile { path: path.to_owned(), map, header })
    }

    /// Lets the pages of a tensor's bytes leave this process; see [`MappedFile::release`].
    pub(crate) fn release(&self, bytes: &[u8]) {
        self.map.release(bytes);
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// The value of a key as the file has it.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    /// All keys and values in the file's order.
    pub fn all_metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.header.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key as the type needed, `None` when the file has no such key.
    ///
    /// # Errors
    /// [`GgufProblem::KeyType`] naming the key, what it is and what was expected.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, GgufError> {
        metadata::typed(key, self.metadata(key)).map_err(|problem| self.error(problem))
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// As [`GgufFile::get`], and [`GgufProblem::MissingKey`].
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, GgufError> {
        self.get(key)?.ok_or_else(|| {
            self.error(GgufProblem::MissingKey { key: key.to_owned(), expected: T::EXPECTED })
        })
    }

    /// All tensors in the file's order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = GgufTensor<'_>> {
        self.header.tensors.iter().map(|(name, place)| self.view(name, place))
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<GgufTensor<'_>> {
        let (_, name, place) = self.header.tensors.get_full(name)?;
        Some(self.view(name, place))
    }

    fn view<'a>(&'a self, name: &'a str, place: &'a TensorPlace) -> GgufTensor<'a> {
        GgufTensor {
            name,
            shape: &place.shape,
            ggml_type: place.ggml_type,
            bytes: &self.map[place.range.clone()],
        }
    }

    pub(crate) fn error(&self, problem: GgufProblem) -> GgufError {
        GgufError { path: self.path.clone(), problem }
    }
}

/// What stands before the data.
struct Header {
    version: u32,
    metadata: IndexMap<String, Value>,
    tensors: IndexMap<String, TensorPlace>,
}

struct TensorPlace {
    /// Outermost first.
    shape: Vec<usize>,
    ggml_type: GgmlType,
    /// Bytes from the beginning of the file.
    range: Range<usize>,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Header, GgufProblem> {
        let mut reader = Reader { bytes, at: 0 };
        let magic = &bytes[..bytes.len().min(MAGIC.len())];
        if magic != MAGIC {
            return Err(GgufProblem::Magic { found: magic.escape_ascii().to_string() });
        }
        reader.at = MAGIC.len();
        let version = u32::from_le_bytes(reader.array("the version")?);
        match version {
            2 | 3 => {}
            // No version will ever be that high, but every big-endian one looks so.
            _ if version != 0 && version & 0xffff == 0 => {
                return Err(GgufProblem::BigEndian { version: version.swap_bytes() });
            }
            found => return Err(GgufProblem::Version { found }),
        }
        let tensor_count = u64::from_le_bytes(reader.array("the number of tensors")?);
        let entry_count = u64::from_le_bytes(reader.array("the number of metadata entries")?);
        // Both lists come after this place, so both have to fit into what is left.
        let tensor_count = reader.count("the number of tensors", tensor_count, LEAST_TENSOR)?;
        let entry_count =
            reader.count("the number of metadata entries", entry_count, LEAST_ENTRY)?;

        let mut metadata = IndexMap::new();
        for _ in 0..entry_count {
            let key = reader.name("a metadata key", MOST_KEY)?;
            let value = reader.value(&key)?;
            match metadata.entry(key) {
                Entry::Vacant(place) => place.insert(value),
                Entry::Occupied(place) => {
                    return Err(GgufProblem::Duplicate {
                        what: "the metadata key",
                        name: excerpt(place.key()),
                    });
                }
            };
        }
        let alignment = alignment(&metadata)?;

        let mut described = IndexMap::new();
        for _ in 0..tensor_count {
            let name = reader.name("a tensor name", MOST_TENSOR_NAME)?;
            let description = reader.tensor(&name)?;
            match described.entry(name) {
                Entry::Vacant(place) => place.insert(description),
                Entry::Occupied(place) => {
                    return Err(GgufProblem::Duplicate {
                        what: "the tensor",
                        name: place.key().clone(),
                    });
                }
            };
        }
        // Not beyond the end of a file without tensors, whose padding is often left out.
        let data = reader.at.next_multiple_of(alignment).min(bytes.len());
        let section = bytes.len() - data;
        let mut tensors = IndexMap::with_capacity(described.len());
        for (name, description) in described {
            let place = description.place(&name, data, section, alignment)?;
            tensors.insert(name, place);
        }
        refuse_overlap(&tensors)?;
        Ok(Header { version, metadata, tensors })
    }
}

fn alignment(metadata: &IndexMap<String, Value>) -> Result<usize, GgufProblem> {
    const KEY: &str = "general.alignment";
    let found = match metadata.get(KEY) {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(found)) => u64::from(*found),
        Some(other) => {
            return Err(GgufProblem::KeyType {
                key: KEY.into(),
                found: other.describe(),
                expected: "a u32",
            });
        }
    };
    let usable = |n: &usize| n.is_power_of_two() && (LEAST_ALIGNMENT..=MOST_ALIGNMENT).contains(n);
    usize::try_from(found).ok().filter(usable).ok_or(GgufProblem::Alignment {
        found,
        least: LEAST_ALIGNMENT,
        most: MOST_ALIGNMENT,
    })
}

fn refuse_overlap(tensors: &IndexMap<String, TensorPlace>) -> Result<(), GgufProblem> {
    let mut order: Vec<(&String, &Range<usize>)> =
        tensors.iter().map(|(name, place)| (name, &place.range)).collect();
    order.sort_by_key(|(_, range)| range.start);
    for pair in order.windows(2) {
        let [(first, earlier), (second, later)] = pair else { continue };
        if later.start < earlier.end {
            return Err(GgufProblem::Overlap {
                first: first.to_string(),
                second: second.to_string(),
            });
        }
    }
    Ok(())
}

/// A tensor as the header describes it, before its place is known to exist.
struct Description {
    /// Innermost first, as in the file.
    dimensions: Vec<u64>,
    ggml_type: GgmlType,
    /// Bytes from the beginning of the data section.
    offset: u64,
}

impl Description {
    /// Checks that the data lie in a section of `section` bytes that begins at byte `data`.
    fn place(
        self,
        name: &str,
        data: usize,
        section: usize,
        alignment: usize,
    ) -> Result<TensorPlace, GgufProblem> {
        let wrong = |reason: String| GgufProblem::Shape {
            name: name.to_owned(),
            shape: self.dimensions.clone(),
            reason,
        };
        let (block_len, block_bytes) = (self.ggml_type.block_len(), self.ggml_type.block_bytes());
        if self.dimensions.contains(&0) {
            return Err(wrong("a dimension is 0".into()));
        }
        let too_large = || wrong("more values than can be counted".into());
        let mut shape = self
            .dimensions
            .iter()
            .map(|n| usize::try_from(*n).map_err(|_| too_large()))
            .collect::<Result<Vec<_>, _>>()?;
        if !shape[0].is_multiple_of(block_len) {
            return Err(wrong(format!(
                "a row must be a multiple of {block_len} values for the type {}",
                self.ggml_type.name()
            )));
        }
        let values = shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
        let bytes = values
            .and_then(|values| (values / block_len).checked_mul(block_bytes))
            .ok_or_else(too_large)?;
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(GgufProblem::Unaligned {
                name: name.to_owned(),
                offset: self.offset,
                alignment,
            });
        }
        let end = usize::try_from(self.offset).ok().and_then(|start| start.checked_add(bytes));
        let Some(end) = end.filter(|end| *end <= section) else {
            return Err(GgufProblem::OutOfFile {
                name: name.to_owned(),
                offset: self.offset,
                bytes,
                section,
            });
        };
        shape.reverse();
        let range = data + end - bytes..data + end;
        Ok(TensorPlace { shape, ggml_type: self.ggml_type, range })
    }
}

/// The header from front to back; never reads past the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, what: &str, len: u64) -> Result<&'a [u8], GgufProblem> {
        match usize::try_from(len).ok().filter(|len| *len <= self.left()) {
            Some(len) => {
                let taken = &self.bytes[self.at..self.at + len];
                self.at += len;
                Ok(taken)
            }
            None => Err(GgufProblem::Truncated {
                what: what.to_owned(),
                at: self.at,
                needed: len,
                size: self.bytes.len(),
            }),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufProblem> {
        Ok(self.take(what, N as u64)?.try_into().expect("as many bytes as were taken"))
    }

    /// A number of things of which each takes at least `least` bytes of what is left.
    fn count(&self, what: &str, count: u64, least: usize) -> Result<usize, GgufProblem> {
        let most = self.left() / least;
        usize::try_from(count).ok().filter(|count| *count <= most).ok_or_else(|| {
            GgufProblem::Count { what: what.to_owned(), count, left: self.left(), most }
        })
    }

    fn text(&mut self, what: &str) -> Result<&'a str, GgufProblem> {
        let at = self.at;
        let len = u64::from_le_bytes(self.array(what)?);
        let bytes = self.take(what, len)?;
        std::str::from_utf8(bytes).map_err(|_| GgufProblem::NotUtf8 { what: what.to_owned(), at })
    }

    fn name(&mut self, what: &'static str, most: usize) -> Result<String, GgufProblem> {
        let at = self.at;
        let name = self.text(what)?;
        if name.is_empty() || name.len() > most {
            return Err(GgufProblem::NameLength { what, at, found: name.len(), most });
        }
        Ok(name.to_owned())
    }

    fn tensor(&mut self, name: &str) -> Result<Description, GgufProblem> {
        let what = format!("the description of tensor {name:?}");
        let found = u32::from_le_bytes(self.array(&what)?);
        if !(1..=4).contains(&found) {
            return Err(GgufProblem::Dimensions { name: name.to_owned(), found });
        }
        let mut dimensions = Vec::with_capacity(found as usize);
        for _ in 0..found {
            dimensions.push(u64::from_le_bytes(self.array(&what)?));
        }
        let id = u32::from_le_bytes(self.array(&what)?);
        let ggml_type = GgmlType::from_id(id)
            .ok_or_else(|| GgufProblem::TensorType { name: name.to_owned(), id })?;
        let offset = u64::from_le_bytes(self.array(&what)?);
        Ok(Description { dimensions, ggml_type, offset })
    }

    fn value(&mut self, key: &str) -> Result<Value, GgufProblem> {
        let what = format!("the value of {:?}", excerpt(key));
        let what = what.as_str();
        let kind = u32::from_le_bytes(self.array(what)?);
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(what)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            7 => Value::Bool(boolean(key, self.array::<1>(what)?[0])?),
            8 => Value::String(self.text(what)?.to_owned()),
            9 => Value::Array(self.values(key, what)?),
            10 => Value::U64(u64::from_le_bytes(self.array(what)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            found => return Err(GgufProblem::ValueType { key: excerpt(key), found }),
        })
    }

    fn values(&mut self, key: &str, what: &str) -> Result<Array, GgufProblem> {
        let kind = u32::from_le_bytes(self.array(what)?);
        let count = u64::from_le_bytes(self.array(what)?);
        Ok(match kind {
            0 => Array::U8(self.numbers(what, count, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(what, count, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(what, count, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(what, count, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(what, count, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(what, count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(what, count, f32::from_le_bytes)?),
            7 => {
                let count = self.count(&format!("the length of {what}"), count, 1)?;
                let bytes = self.take(what, count as u64)?;
                Array::Bool(bytes.iter().map(|b| boolean(key, *b)).collect::<Result<_, _>>()?)
            }
            8 => {
                let count = self.count(&format!("the length of {what}"), count, 8)?;
                let mut texts = Vec::with_capacity(count);
                for _ in 0..count {
                    texts.push(self.text(what)?.to_owned());
                }
                Array::String(texts)
            }
            9 => return Err(GgufProblem::NestedArray { key: excerpt(key) }),
            10 => Array::U64(self.numbers(what, count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(what, count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(what, count, f64::from_le_bytes)?),
            found => return Err(GgufProblem::ValueType { key: excerpt(key), found }),
        })
    }

    fn numbers<const N: usize, V>(
        &mut self,
        what: &str,
        count: u64,
        read: impl Fn([u8; N]) -> V,
    ) -> Result<Vec<V>, GgufProblem> {
        let count = self.count(&format!("the length of {what}"), count, N)?;
        let bytes = self.take(what, (count * N) as u64)?;
        let values = bytes.chunks_exact(N);
        Ok(values.map(|b| read(b.try_into().expect("chunks of N bytes"))).collect())
    }
}

fn boolean(key: &str, found: u8) -> Result<bool, GgufProblem> {
    match found {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(GgufProblem::Bool { key: excerpt(key), found }),
    }
}

/// The beginning of `text`, short enough for a message.
fn excerpt(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
