//! Safetensors in, single or sharded; every mismatch with config.json is reported at once.

use crate::config::DecoderConfig;
use crate::decoder::{Decoder, LoadOptions};
use crate::error::ModelError;
use crate::files::read_json_bytes;
use crate::held::Published;
use crate::params::{self, Tensor};
use kernels::MappedFile;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

pub(crate) fn load(dir: &Path, options: &LoadOptions) -> Result<Decoder, ModelError> {
    let config = DecoderConfig::load(dir)?;
    let tied_head = |name: &str| config.tie_word_embeddings && name == "lm_head.weight";
    let ignored = |name: &str| {
        let ignored = config.family.spec().ignored_tensors;
        tied_head(name) || ignored.iter().any(|i| name.ends_with(i))
    };
    let wanted = params::tensors(&config);
    let (loaded, sources) = with_tensors(dir, tied_head, |tensors, mut problems| {
        // Saved without its head, as embedding models are, a model has no name of its own in its tensors'.
        let bare = tensors.contains_key("embed_tokens.weight");
        let specs = wanted.iter().map(|t| (file_name(&t.spec.name, bare), &t.spec.shape[..]));
        problems.extend(mismatches(specs, tensors, ignored));
        no_problems(dir, problems)?;
        let fill = |tensor: &Tensor| {
            let name = file_name(&tensor.spec.name, bare);
            let view = &tensors[name];
            let filled = published(name, &view.view).fill(tensor, options.dtype, |_, row| row);
            view.release();
            filled
        };
        let loaded: Result<Vec<_>, String> = wanted.par_iter().map(fill).collect();
        loaded.map_err(|problem| ModelError::weights(dir, problem))
    })?;
    let mut decoder = params::assemble(&config, loaded.into_iter().flatten().collect());
    decoder.source = Some((dir.to_owned(), sources));
    Ok(decoder)
}

/// The name that a file has for a tensor.
fn file_name(name: &str, bare: bool) -> &str {
    let short = name.strip_prefix("model.").filter(|_| bare);
    short.unwrap_or(name)
}

/// A tensor of a file.
pub(crate) struct FileTensor<'a> {
    pub(crate) view: TensorView<'a>,
    map: &'a MappedFile,
}

impl FileTensor<'_> {
    /// It has been read: its part of the file need not stay in memory, where it would count twice.
    pub(crate) fn release(&self) {
        self.map.release(self.view.data());
    }
}

/// Has `read` look at all tensors of the weight files of `dir` by name, given what is wrong with the
/// files already; `absent` are those that an index may name in vain. Returns the files' names too,
/// config.json first.
///
/// # Errors
/// [`ModelError::MissingFile`], [`ModelError::Weights`], and what `read` says.
pub(crate) fn with_tensors<T>(
    dir: &Path,
    absent: impl Fn(&str) -> bool,
    read: impl FnOnce(&BTreeMap<&str, FileTensor<'_>>, Vec<String>) -> Result<T, ModelError>,
) -> Result<(T, Vec<String>), ModelError> {
    let Shards { names: shards, index } = shards(dir)?;
    let maps = shards
        .iter()
        .map(|name| {
            let path = dir.join(name);
            MappedFile::open(&path).map_err(|e| ModelError::io(&path, e))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut files = Vec::new();
    for (name, map) in shards.iter().zip(&maps) {
        files.push((name, parse(&dir.join(name), map)?));
    }
    let mut tensors: BTreeMap<&str, FileTensor<'_>> = BTreeMap::new();
    let mut problems = Vec::new();
    for ((shard, file), map) in files.iter().zip(&maps) {
        for (name, view) in file.iter() {
            if tensors.insert(name, FileTensor { view, map }).is_some() {
                problems.push(format!("{name}: stored twice, the second time in {shard}"));
            }
        }
    }
    for (tensor, shard) in &index {
        let has = |file: &SafeTensors<'_>| file.tensor(tensor).is_ok();
        let found = files.iter().any(|(name, file)| *name == shard && has(file));
        if !found && !absent(tensor) {
            problems
                .push(format!("{tensor}: {INDEX} places it in {shard}, which does not have it"));
        }
    }
    let read = read(&tensors, problems)?;
    let mut sources = vec!["config.json".to_owned()];
    sources.extend(shards);
    Ok((read, sources))
}

/// Reports all problems at once, where there are any.
pub(crate) fn no_problems(dir: &Path, problems: Vec<String>) -> Result<(), ModelError> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(ModelError::Mismatches {
        dir: dir.to_owned(),
        count: problems.len(),
        list: problems.join("\n  "),
    })
}

/// Opens a safetensors file, saying what the header lies about.
pub(crate) fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, ModelError> {
    if bytes.len() < 8 {
        return Err(ModelError::weights(
            path,
            format!(
                "found {} bytes, expected a safetensors file (8 bytes of header length first)",
                bytes.len()
            ),
        ));
    }
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    if header > bytes.len() as u64 - 8 {
        return Err(ModelError::weights(
            path,
            format!(
                "the header claims {header} bytes, the file has {} after it; the file is cut short or not safetensors\n\
                 hint: download it again and compare its size with the published one",
                bytes.len() - 8
            ),
        ));
    }
    SafeTensors::deserialize(bytes).map_err(|e| {
        ModelError::weights(
            path,
            format!(
                "not a valid safetensors file: {e}\n\
                 hint: download it again and compare its size with the published one"
            ),
        )
    })
}

/// The weight files of a folder.
pub(crate) struct Shards {
    /// Each inside the folder.
    pub(crate) names: Vec<String>,
    /// Tensor and file, as the index of several files lists them.
    index: Vec<(String, String)>,
}

/// The weight files of `dir`.
pub(crate) fn shards(dir: &Path) -> Result<Shards, ModelError> {
    if dir.join(SINGLE).is_file() {
        return Ok(Shards { names: vec![SINGLE.to_owned()], index: Vec::new() });
    }
    let path = dir.join(INDEX);
    if !path.is_file() {
        let pickled = dir.join("pytorch_model.bin").exists();
        return Err(ModelError::MissingFile {
            dir: dir.to_owned(),
            missing: format!("{SINGLE} (or {INDEX})"),
            hint: if pickled {
                "hint: pytorch_model.bin is a pickle, which can run code when opened, so it is never \
                 loaded; use the safetensors form of this model"
                    .into()
            } else {
                "hint: download the model's *.safetensors files into this folder".into()
            },
        });
    }
    let index: serde_json::Value = serde_json::from_slice(&read_json_bytes(&path)?)
        .map_err(|e| ModelError::weights(&path, format!("not valid JSON: {e}")))?;
    let map = index.get("weight_map").and_then(|m| m.as_object()).ok_or_else(|| {
        ModelError::weights(&path, "expected an object weight_map of tensor name to file name")
    })?;
    let mut names = BTreeSet::new();
    let mut places = Vec::with_capacity(map.len());
    for (tensor, file) in map {
        let Some(file) = file.as_str() else {
            return Err(ModelError::weights(
                &path,
                format!("weight_map.{tensor}: found {file}, expected a file name"),
            ));
        };
        let mut parts = Path::new(file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(ModelError::weights(
                &path,
                format!(
                    "weight_map.{tensor}: found \"{file}\", expected a plain file name inside the folder"
                ),
            ));
        }
        names.insert(file.to_owned());
        places.push((tensor.clone(), file.to_owned()));
    }
    if names.is_empty() {
        return Err(ModelError::weights(
            &path,
            "weight_map is empty, expected at least one tensor",
        ));
    }
    for name in &names {
        if !dir.join(name).is_file() {
            return Err(ModelError::MissingFile {
                dir: dir.to_owned(),
                missing: name.clone(),
                hint: format!(
                    "hint: {INDEX} lists {} files; download the missing one",
                    names.len()
                ),
            });
        }
    }
    Ok(Shards { names: names.into_iter().collect(), index: places })
}

/// What is wrong with `tensors`: of the `wanted`, by name and shape, those that are missing or have
/// another shape or type; and those that are neither wanted nor `ignored`.
pub(crate) fn mismatches<'a, 't>(
    wanted: impl Iterator<Item = (&'a str, &'a [usize])>,
    tensors: &BTreeMap<&str, impl Borrow<FileTensor<'t>>>,
    ignored: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut known = BTreeSet::new();
    for (name, shape) in wanted {
        known.insert(name);
        let tensor: Option<&FileTensor<'t>> = tensors.get(name).map(Borrow::borrow);
        match tensor.map(|tensor| &tensor.view) {
            None => problems.push(format!("{name}: missing, expected shape {shape:?}")),
            Some(view) if view.shape() != shape => {
                problems.push(format!("{name}: found shape {:?}, expected {shape:?}", view.shape()))
            }
            Some(view) if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
                problems.push(format!(
                    "{name}: found dtype {:?}, expected F32, F16 or BF16",
                    view.dtype()
                ))
            }
            Some(_) => {}
        }
    }
    for name in tensors.keys() {
        if !known.contains(name) && !ignored(name) {
            problems
                .push(format!("{name}: not part of this architecture; it would change the result"));
        }
    }
    problems
}

/// The tensor as the file has it.
pub(crate) fn published<'a>(name: &'a str, view: &TensorView<'a>) -> Published<'a> {
    let dtype = match view.dtype() {
        Dtype::F32 => kernels::Dtype::F32,
        Dtype::F16 => kernels::Dtype::F16,
        _ => kernels::Dtype::Bf16,
    };
    Published { name, dtype, bytes: view.data() }
}

/// Any of the three float types, exactly, as f32.
pub(crate) fn to_f32(view: &TensorView<'_>) -> Vec<f32> {
    let mut values = vec![0.0; view.shape().iter().product()];
    published("", view).dtype.unpack(view.data(), &mut values);
    values
}
