//! Weights kept on disk as the kernels want them: a later load maps them instead of converting, its
//! pages are read when they are first used, and processes of one machine share them.
//!
//! A folder holds `layout.json` and `weights.bin`, for one model in one type. It is made and read on
//! the same machine and is worth nothing elsewhere.

use crate::config::DecoderConfig;
use crate::decoder::{Decoder, LoadOptions};
use crate::error::ModelError;
use crate::files::{read_json_bytes, write_atomic, write_atomic_with};
use crate::gguf::GgufFile;
use crate::params::{self, Loaded, Slot, Tensor};
use kernels::{Dtype, LAYOUT, MappedFile, PackedMatrix};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

const INDEX: &str = "layout.json";
const WEIGHTS: &str = "weights.bin";
/// Each part begins at a page, so that no two share one.
const ALIGN: usize = 4096;

/// `layout.json`.
#[derive(Serialize, Deserialize)]
struct Index {
    /// [`LAYOUT`] when it was written.
    layout: u32,
    /// What the user asked for.
    dtype: String,
    /// The model's folder.
    dir: PathBuf,
    /// Its files, config.json first where it has one.
    sources: Vec<Source>,
    /// In the order of the decoder's slots.
    parts: Vec<Part>,
}

/// A file of the model, as it was when it was converted.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Source {
    name: String,
    bytes: u64,
    /// Since 1970.
    modified_ns: u128,
}

/// The values of one slot.
#[derive(Serialize, Deserialize)]
struct Part {
    /// Name of a [`Dtype`]; vectors are f32.
    dtype: String,
    start: usize,
    bytes: usize,
}

impl Decoder {
    /// Keeps the weights of this decoder, which was loaded with `options`, in `dir`. Whatever was
    /// there for another state of the model is replaced.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Params`] for a decoder that is not as loaded from files.
    pub fn keep_laid_out(&self, options: &LoadOptions, dir: &Path) -> Result<(), ModelError> {
        let Some((model, names)) = &self.source else {
            return Err(ModelError::Params("only weights that come from files are kept".into()));
        };
        let sources = sources(model, names.iter().map(String::as_str))?;
        let index = dir.join(INDEX);
        // First, so that a write that is cut short leaves nothing that could be taken for whole.
        match fs::remove_file(&index) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(ModelError::io(&index, e));
            }
            _ => {}
        }
        let tensors = params::tensors(&self.config);
        let mut parts = Vec::new();
        write_atomic_with(&dir.join(WEIGHTS), |file| {
            let mut file = std::io::BufWriter::new(file);
            let mut at = 0usize;
            for (slot, tensor, _) in slots(&tensors) {
                let (dtype, values) = self.values(slot, tensor);
                let start = at.next_multiple_of(ALIGN);
                file.write_all(&[0; ALIGN][..start - at])?;
                file.write_all(values)?;
                at = start + values.len();
                parts.push(Part { dtype: dtype.name().to_owned(), start, bytes: values.len() });
            }
            file.flush()
        })?;
        let (layout, dtype) = (LAYOUT, options.dtype.name().to_owned());
        let kept = Index { layout, dtype, dir: model.clone(), sources, parts };
        let json = serde_json::to_vec_pretty(&kept).expect("plain data is JSON");
        write_atomic(&index, &json)
    }

    /// The model at `path` (as [`Decoder::load`] takes it) from what [`Decoder::keep_laid_out`] put
    /// in `dir`. None when nothing is there, or what is there is of another state of the model, of
    /// another type, or of another version of the layout.
    ///
    /// # Errors
    /// As [`Decoder::load`] for the model's configuration; [`ModelError::Weights`] when what was
    /// kept is damaged.
    pub fn load_laid_out(
        path: &Path,
        options: &LoadOptions,
        dir: &Path,
    ) -> Result<Option<Decoder>, ModelError> {
        let index = dir.join(INDEX);
        if !index.is_file() {
            return Ok(None);
        }
        let kept: Index = serde_json::from_slice(&read_json_bytes(&index)?)
            .map_err(|e| damaged(&index, e.to_string()))?;
        let model = if path.is_file() { path.parent().unwrap_or(path) } else { path };
        let now = sources(model, kept.sources.iter().map(|s| s.name.as_str()));
        let same = now.is_ok_and(|now| now == kept.sources)
            && kept.dir == model
            && kept.layout == LAYOUT
            && kept.dtype == options.dtype.name();
        if !same {
            return Ok(None);
        }
        let config = match path.is_file() {
            true => crate::families::gguf::config(&GgufFile::open(path)?)?.0,
            false => DecoderConfig::load(path)?,
        };
        let weights = dir.join(WEIGHTS);
        let file = MappedFile::open(&weights).map_err(|e| ModelError::io(&weights, e))?;
        file.will_need();
        let loaded =
            loaded(&config, &kept.parts, &Arc::new(file)).map_err(|e| damaged(&weights, e))?;
        let mut decoder = params::assemble(&config, loaded);
        let names = kept.sources.into_iter().map(|s| s.name).collect();
        decoder.source = Some((model.to_owned(), names));
        Ok(Some(decoder))
    }

    /// What a slot holds, as it lies in memory.
    fn values(&self, slot: Slot, tensor: &Tensor) -> (Dtype, &[u8]) {
        match tensor.spec.shape.len() {
            2 => (self.matrix_of(slot).dtype(), self.matrix_of(slot).laid_out()),
            _ => (Dtype::F32, bytemuck::cast_slice(self.vector_of(slot))),
        }
    }
}

/// Every slot with the tensor that it is of and its place in that tensor's values.
fn slots(tensors: &[Tensor]) -> impl Iterator<Item = (Slot, &Tensor, Range<usize>)> {
    tensors
        .iter()
        .flat_map(|tensor| tensor.values().map(move |(slot, place)| (slot, tensor, place)))
}

fn loaded(
    config: &DecoderConfig,
    parts: &[Part],
    file: &Arc<MappedFile>,
) -> Result<HashMap<Slot, Loaded>, String> {
    let tensors = params::tensors(config);
    let expected = slots(&tensors).count();
    if parts.len() != expected {
        return Err(format!("found {} parts, expected {expected}", parts.len()));
    }
    let one = |((slot, tensor, place), part): ((Slot, &Tensor, Range<usize>), &Part)| {
        let value = match tensor.spec.shape[..] {
            [_, k] => matrix(place.len() / k, k, part, file).map(Loaded::Matrix),
            _ => vector(place.len(), part, file).map(Loaded::Vector),
        };
        value.map(|value| (slot, value)).map_err(|e| format!("{}: {e}", tensor.spec.name))
    };
    slots(&tensors).zip(parts).map(one).collect()
}

fn matrix(n: usize, k: usize, part: &Part, file: &Arc<MappedFile>) -> Result<PackedMatrix, String> {
    let known = Dtype::all().find(|dtype| dtype.name() == part.dtype && *dtype != Dtype::F16);
    let dtype = known
        .filter(|dtype| dtype.row_bytes(k).is_some())
        .ok_or_else(|| format!("found rows of {k} values in {:?}", part.dtype))?;
    let matrix = PackedMatrix::mapped(dtype, n, k, file, part.start)?;
    match matrix.bytes() == part.bytes {
        true => Ok(matrix),
        false => Err(format!("found {} bytes, expected {}", part.bytes, matrix.bytes())),
    }
}

fn vector(len: usize, part: &Part, file: &MappedFile) -> Result<Vec<f32>, String> {
    let bytes = file.get(part.start..part.start.saturating_add(part.bytes));
    let bytes = bytes.filter(|bytes| bytes.len() == len * size_of::<f32>());
    let bytes = bytes.ok_or_else(|| {
        format!("found {} bytes at {}, expected {len} values in f32", part.bytes, part.start)
    })?;
    Ok(bytemuck::pod_collect_to_vec(bytes))
}

fn damaged(path: &Path, problem: String) -> ModelError {
    ModelError::weights(
        path,
        format!(
            "{problem}\nhint: delete this folder, or have it made again by `metier models prepare`"
        ),
    )
}

/// Size and time of each file.
fn sources<'a>(
    dir: &Path,
    names: impl Iterator<Item = &'a str>,
) -> Result<Vec<Source>, ModelError> {
    let one = |name: &str| {
        let path = dir.join(name);
        let meta = fs::metadata(&path).map_err(|e| ModelError::io(&path, e))?;
        let modified = meta.modified().map_err(|e| ModelError::io(&path, e))?;
        let modified_ns = modified.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        Ok(Source { name: name.to_owned(), bytes: meta.len(), modified_ns })
    };
    names.map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::WeightDtype;

    fn testdata(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
    }

    /// A copy of a small model whose files may be changed.
    fn model(dir: &Path) -> PathBuf {
        let copy = dir.join("model");
        fs::create_dir(&copy).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(testdata("llama_tiny").join(name), copy.join(name)).unwrap();
        }
        copy
    }

    #[test]
    fn what_is_mapped_is_what_was_converted() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        let families = fs::read_dir(testdata("gguf_families")).unwrap();
        let ggufs = families
            .map(|entry| entry.unwrap().path())
            .filter(|p| p.extension().is_some_and(|end| end == "gguf"));
        let models: Vec<PathBuf> = ggufs.chain([model(dir.path())]).collect();
        assert!(models.len() > 3, "{models:?}");
        for path in models {
            for dtype in [WeightDtype::AsPublished, WeightDtype::F32, WeightDtype::Q8_0] {
                let options = LoadOptions { dtype };
                let read = || Decoder::load_laid_out(&path, &options, &kept).unwrap();
                assert!(read().is_none(), "what is kept is of another model or type");
                let decoder = Decoder::load(&path, &options).unwrap();
                decoder.keep_laid_out(&options, &kept).unwrap();
                let mapped = read().expect("it was just kept");
                assert_eq!(mapped.held(), decoder.held());
                assert!(mapped.params() == decoder.params(), "{path:?} {dtype:?}");
                assert_eq!(mapped.digest().unwrap(), decoder.digest().unwrap());
            }
        }
    }

    #[test]
    fn what_changed_is_converted_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, kept) = (model(dir.path()), dir.path().join("kept"));
        let options = LoadOptions::default();
        let mut decoder = Decoder::load(&path, &options).unwrap();
        decoder.keep_laid_out(&options, &kept).unwrap();
        let weights = path.join("model.safetensors");
        let bytes = fs::read(&weights).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&weights, bytes).unwrap();
        assert!(Decoder::load_laid_out(&path, &options, &kept).unwrap().is_none());
        let flat = decoder.params();
        decoder.set_params(&flat).unwrap();
        let error = decoder.keep_laid_out(&options, &kept).unwrap_err();
        assert!(error.to_string().contains("from files"), "{error}");
    }

    #[test]
    fn mapped_weights_can_be_trained() {
        let dir = tempfile::tempdir().unwrap();
        let (path, kept) = (model(dir.path()), dir.path().join("kept"));
        let options = LoadOptions { dtype: WeightDtype::F32 };
        Decoder::load(&path, &options).unwrap().keep_laid_out(&options, &kept).unwrap();
        let before = fs::read(kept.join(WEIGHTS)).unwrap();
        let mut mapped = Decoder::load_laid_out(&path, &options, &kept).unwrap().unwrap();
        let flat: Vec<f32> = mapped.params().iter().map(|x| x + 1.0).collect();
        mapped.set_params(&flat).unwrap();
        assert!(mapped.params() == flat);
        assert!(fs::read(kept.join(WEIGHTS)).unwrap() == before);
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (path, kept) = (model(dir.path()), dir.path().join("kept"));
        let options = LoadOptions::default();
        Decoder::load(&path, &options).unwrap().keep_laid_out(&options, &kept).unwrap();
        let weights = fs::read(kept.join(WEIGHTS)).unwrap();
        let index = fs::read_to_string(kept.join(INDEX)).unwrap();
        let refused = |what: &str| {
            let loaded = Decoder::load_laid_out(&path, &options, &kept).map(|d| d.is_some());
            let error = loaded.unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("hint"), "{error}");
        };
        fs::write(kept.join(WEIGHTS), &weights[..weights.len() / 2]).unwrap();
        refused(WEIGHTS);
        fs::write(kept.join(WEIGHTS), &weights).unwrap();
        let changed = |from: &str, to: &str| {
            assert!(index.contains(from), "{index}");
            fs::write(kept.join(INDEX), index.replacen(from, to, 1)).unwrap();
        };
        for (from, to, what) in [
            ("\"start\": 0", "\"start\": 1", "embed_tokens"),
            ("\"start\": 0", "\"start\": 18446744073709551615", "embed_tokens"),
            ("\"dtype\": \"f32\"", "\"dtype\": \"f64\"", "f64"),
            (
                "\"parts\": [",
                "\"parts\": [{\"dtype\": \"f32\", \"start\": 0, \"bytes\": 4},",
                "parts",
            ),
            ("{", "", "layout.json"),
        ] {
            changed(from, to);
            refused(what);
        }
    }
}
