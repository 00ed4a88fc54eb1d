//! Parquet, as the Hub has most data sets. Rows are numbered from 1 where other files have lines.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::basic::Compression;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::rows::check_length;
use super::{Container, ReadOptions, RowSink};
use crate::error::{DataError, excerpt};

pub(super) const CONTAINER: Container = Container {
    name: "parquet",
    extensions: &["parquet"],
    holds: "a table with named columns",
    read,
};

/// Dictionaries and run lengths can make a few bytes into very many rows. Rows may come to this many
/// bytes, or to [`MOST_TIMES`] the file, whichever is more.
const MOST_BYTES: u64 = 256 << 20;
/// See [`MOST_BYTES`]. Chat data of the Hub expands about fivefold.
const MOST_TIMES: u64 = 100;
/// What a row counts at least, so that empty ones have an end too.
const ROW_BYTES: u64 = 64;
/// The last eight bytes: the length of the footer, and the mark `PAR1`.
const TAIL: u64 = 8;
/// Longest footer. Those of the Hub's files are below one MiB.
const FOOTER_BYTES: u32 = 4 << 20;
/// Stack for reading the footer: the reader walks a schema by recursion, and the longest footer
/// allowed holds groups within groups some 500,000 deep. Only what is used is taken from the system.
const STACK_BYTES: usize = 1 << 30;
/// How deep columns may be nested. Tool calls within messages need six levels.
const SCHEMA_DEPTH: usize = 64;

fn read(path: &Path, options: &ReadOptions, sink: &mut dyn RowSink) -> Result<(), DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), action: "read", source };
    let mut file = File::open(path).map_err(io)?;
    let about = file.metadata().map_err(io)?;
    if !about.is_file() {
        return Err(io(std::io::Error::other("it is not a file")));
    }
    if about.len() < TAIL {
        let expected = "a Parquet table".to_owned();
        return Err(DataError::Empty { path: path.to_owned(), expected });
    }
    let mut tail = [0; TAIL as usize];
    file.seek(SeekFrom::End(-(TAIL as i64))).map_err(io)?;
    file.read_exact(&mut tail).map_err(io)?;
    let footer = u32::from_le_bytes(tail[..4].try_into().expect("four bytes"));
    if &tail[4..] == b"PAR1" && (footer > FOOTER_BYTES || u64::from(footer) > about.len() - TAIL) {
        let bytes = about.len();
        let found = format!("a footer of {footer} bytes in a file of {bytes}");
        return Err(broken(path, &found));
    }
    let reader = open(path, file)?;
    // The reader checks what it reads, but a file made to deceive may still find a place where it
    // relies on a number: that must not end the program.
    let read =
        catch_unwind(AssertUnwindSafe(|| read_rows(path, &reader, about.len(), options, sink)));
    read.unwrap_or_else(|_| Err(broken(path, "a table that contradicts itself")))
}

/// Reads the footer, where there is room for whatever schema is in it.
fn open(path: &Path, file: File) -> Result<SerializedFileReader<File>, DataError> {
    let open = move || {
        let reader = SerializedFileReader::new(file).map_err(|error| error.to_string())?;
        let schema = reader.metadata().file_metadata().schema();
        let mut level: Vec<&Type> = vec![schema];
        for _ in 0..SCHEMA_DEPTH {
            let groups = level.into_iter().filter(|column| column.is_group());
            level = groups.flat_map(|group| group.get_fields()).map(AsRef::as_ref).collect();
        }
        match level.is_empty() {
            true => Ok(reader),
            false => Err(format!("columns nested more than {SCHEMA_DEPTH} deep")),
        }
    };
    let deep = std::thread::Builder::new().name("parquet".into()).stack_size(STACK_BYTES);
    let opened = deep.spawn(open).map_err(|error| broken(path, &error.to_string()))?;
    match opened.join() {
        Ok(opened) => opened.map_err(|found| broken(path, &found)),
        Err(_) => Err(broken(path, "a footer that contradicts itself")),
    }
}

fn read_rows(
    path: &Path,
    reader: &SerializedFileReader<File>,
    file_bytes: u64,
    options: &ReadOptions,
    sink: &mut dyn RowSink,
) -> Result<(), DataError> {
    let fail = |error: parquet::errors::ParquetError| broken(path, &error.to_string());
    let metadata = reader.metadata();
    for group in metadata.row_groups() {
        for column in group.columns() {
            let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
            let bytes = column.compressed_size();
            let end = u64::try_from(start).ok().zip(u64::try_from(bytes).ok());
            let end = end.and_then(|(start, bytes)| start.checked_add(bytes));
            if end.is_none_or(|end| end > file_bytes) {
                let found = format!("a column at bytes {start} to {start} + {bytes}");
                return Err(broken(path, &found));
            }
            check_compression(path, column.compression())?;
        }
    }
    let schema = metadata.file_metadata().schema();
    let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
    if names.is_empty() {
        return Err(broken(path, "a table without columns"));
    }
    sink.header(&names)?;
    let most = MOST_BYTES.max(file_bytes.saturating_mul(MOST_TIMES));
    let mut total = 0;
    for (index, row) in reader.get_row_iter(None).map_err(fail)?.enumerate() {
        let number = index + 1;
        let row = row.map_err(|error| broken(path, &format!("in row {number}: {error}")))?;
        let mut bytes = 0;
        let object = object(row.into_columns(), &mut bytes);
        total += ROW_BYTES + bytes as u64;
        if total > most {
            let found = format!("rows that come to more than {most} bytes");
            return Err(broken(path, &found));
        }
        sink.row(number, check_length(number, bytes, options).map(|()| object))?;
    }
    Ok(())
}

fn broken(path: &Path, found: &str) -> DataError {
    DataError::Columns {
        path: path.to_owned(),
        found: excerpt(found),
        expected: "a whole Parquet table".to_owned(),
        hint: "the file may be cut short or damaged: fetch or export it again".to_owned(),
    }
}

fn check_compression(path: &Path, compression: Compression) -> Result<(), DataError> {
    let name = match compression {
        Compression::ZSTD(_) => "zstd",
        Compression::BROTLI(_) => "brotli",
        Compression::LZO => "lzo",
        _ => return Ok(()),
    };
    Err(DataError::Columns {
        path: path.to_owned(),
        found: format!("a table compressed with {name}"),
        expected: "snappy (the usual one), gzip, lz4 or none".to_owned(),
        hint: "write it anew, for example in Python: \
               pyarrow.parquet.write_table(pyarrow.parquet.read_table(A), B)"
            .to_owned(),
    })
}

/// The columns of a row as an object; adds up the bytes of its texts.
fn object(columns: Vec<(String, Field)>, bytes: &mut usize) -> Map<String, Value> {
    let columns = columns.into_iter();
    columns.map(|(name, field)| (name, value(field, bytes))).collect()
}

fn value(field: Field, bytes: &mut usize) -> Value {
    *bytes += size_of::<u64>();
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float(value) => f64::from(value).into(),
        Field::Double(value) => value.into(),
        Field::Str(text) => {
            *bytes += text.len();
            text.into()
        }
        // Some writers do not say that their bytes are text. Bytes that are none (pictures) are
        // nothing that a form could read.
        Field::Bytes(raw) => {
            let text = raw.as_utf8().unwrap_or_default();
            *bytes += text.len();
            Some(text).filter(|_| raw.as_utf8().is_ok()).into()
        }
        Field::Group(group) => Value::Object(object(group.into_columns(), bytes)),
        Field::ListInternal(list) => {
            list.elements().iter().map(|item| value(item.clone(), bytes)).collect()
        }
        Field::MapInternal(map) => {
            let entry = |(key, item): &(Field, Field)| {
                (key.to_string().trim_matches('"').to_owned(), value(item.clone(), bytes))
            };
            Value::Object(map.entries().iter().map(entry).collect())
        }
        // Dates and decimals: no form has a field of such a type, but a table may.
        other => other.to_string().into(),
    }
}
