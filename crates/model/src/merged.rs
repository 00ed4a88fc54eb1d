//! A model as it is written to files: a base with an adapter in its matrices, made row by row, so that
//! no copy of the model is ever in memory for it.

use crate::adapter::LoraAdapter;
use crate::decoder::{Decoder, WeightDtype};
use crate::error::ModelError;
use crate::files::{write_atomic, write_atomic_with};
use crate::params::{self, Loaded, Slot, Tensor};
use crate::weights::{INDEX, SINGLE};
use half::bf16;
use kernels::PackedMatrix;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, Error, Write};
use std::ops::Range;
use std::path::Path;

/// A base, and an adapter on it where there is one: W + scale B A in every matrix that it has, each row
/// brought to its magnitude for DoRA.
pub struct Merged<'a> {
    pub(crate) base: &'a Decoder,
    adapter: Option<&'a LoraAdapter>,
    /// For each matrix under the adapter: which of its modules, and the matrix's first row there.
    modules: HashMap<Slot, (usize, usize)>,
}

impl<'a> Merged<'a> {
    /// The base as it is.
    pub(crate) fn plain(base: &'a Decoder) -> Merged<'a> {
        Merged { base, adapter: None, modules: HashMap::new() }
    }

    /// The base with an adapter, or as it is.
    ///
    /// # Errors
    /// [`ModelError::Params`] when the adapter was made for another shape.
    pub fn new(
        base: &'a Decoder,
        adapter: Option<&'a LoraAdapter>,
    ) -> Result<Merged<'a>, ModelError> {
        let config = base.config();
        let mut modules = HashMap::new();
        for (i, m) in adapter.iter().flat_map(|a| a.modules()).enumerate() {
            if !m.fits(config) {
                let problem = format!("{}.weight: this base has no such matrix", m.name);
                return Err(ModelError::Params(problem));
            }
            for (module, rows) in m.linear.parts(config) {
                modules.insert(Slot::Matrix(m.layer, module), (i, rows.start));
            }
        }
        Ok(Merged { base, adapter, modules })
    }

    /// Row `i` of the matrix in `slot`, [in].
    pub(crate) fn row(&self, slot: Slot, i: usize, values: &mut [f32]) {
        self.base.matrix_of(slot).row(i, values);
        let (Some(adapter), Some((module, first))) = (self.adapter, self.modules.get(&slot)) else {
            return;
        };
        let m = &adapter.modules()[*module];
        let row = first + i;
        let a = &adapter.params[m.a.clone()];
        let b = &adapter.params[m.b.clone()][row * m.r..(row + 1) * m.r];
        for (a, b) in a.chunks_exact(m.in_features).zip(b) {
            values.iter_mut().zip(a).for_each(|(w, a)| *w += m.scale * b * a);
        }
        if let Some(magnitude) = adapter.params[m.magnitude.clone()].get(row) {
            let length = values.iter().map(|&w| w as f64 * w as f64).sum::<f64>().sqrt();
            let gain = magnitude / length as f32;
            values.iter_mut().for_each(|w| *w *= gain);
        }
    }

    /// The model in memory, every matrix in f32.
    pub fn decoder(&self) -> Decoder {
        let mut loaded = HashMap::new();
        for tensor in params::tensors(self.base.config()) {
            for (slot, rows) in &tensor.parts {
                let value = match tensor.spec.shape[..] {
                    [_, k] => Loaded::Matrix(PackedMatrix::from_rows(
                        kernels::Dtype::F32,
                        rows.len(),
                        k,
                        |i, values| self.row(*slot, i, values),
                    )),
                    _ => Loaded::Vector(self.base.vector_of(*slot).to_vec()),
                };
                loaded.insert(*slot, value);
            }
        }
        params::assemble(self.base.config(), loaded)
    }

    /// Writes config.json and the weights in `dir`, in Hugging Face form, as f32 or (any other
    /// `dtype`) bf16 rounded to nearest even. Where they take more than `shard_bytes`, they are dealt
    /// out to files of at most that (or of one tensor) with an index, as Hugging Face does. Each file
    /// is replaced whole or not at all, config.json last. Beside the base, one tensor is in memory.
    ///
    /// # Errors
    /// [`ModelError::Io`] with the file; [`ModelError::Params`] when a value is not finite.
    pub fn save(&self, dir: &Path, dtype: WeightDtype, shard_bytes: u64) -> Result<(), ModelError> {
        let (dtype, name) = match dtype {
            WeightDtype::F32 => (Dtype::F32, "float32"),
            _ => (Dtype::BF16, "bfloat16"),
        };
        let mut tensors = params::tensors(self.base.config());
        // As the crate orders them; files without an index are then the same to the byte.
        tensors.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        let shards = shards(&tensors, dtype, shard_bytes);
        if let [all] = &shards[..] {
            self.save_shard(&dir.join(SINGLE), &tensors[all.clone()], dtype)?;
        } else {
            let mut map = BTreeMap::new();
            for (i, shard) in shards.iter().enumerate() {
                let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
                self.save_shard(&dir.join(&file), &tensors[shard.clone()], dtype)?;
                let names = tensors[shard.clone()].iter().map(|t| t.spec.name.clone());
                map.extend(names.map(|name| (name, file.clone())));
            }
            let total: u64 = tensors.iter().map(|t| size(t, dtype)).sum();
            let index = json!({"metadata": {"total_size": total}, "weight_map": map});
            let index = serde_json::to_vec_pretty(&index).expect("plain JSON");
            write_atomic(&dir.join(INDEX), &index)?;
        }
        let config = self.base.config().to_json(name);
        let config = serde_json::to_vec_pretty(&config).expect("plain JSON");
        write_atomic(&dir.join("config.json"), &config)
    }

    fn save_shard(&self, path: &Path, tensors: &[Tensor], dtype: Dtype) -> Result<(), ModelError> {
        let mut offset = 0;
        let place = |tensor: &Tensor| {
            let start = offset;
            offset += size(tensor, dtype) as usize;
            let shape = tensor.spec.shape.clone();
            (tensor.spec.name.clone(), TensorInfo { dtype, shape, data_offsets: (start, offset) })
        };
        let places = tensors.iter().map(place).collect();
        let written_by = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(written_by), places)
            .map_err(|e| ModelError::weights(path, e.to_string()))?;
        let mut head = serde_json::to_vec(&metadata).expect("plain JSON");
        // The data must start at a multiple of eight; spaces pad the header (format specification).
        head.resize(head.len().next_multiple_of(8), b' ');
        let mut not_finite = None;
        let written = write_atomic_with(path, |file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            out.write_all(&(head.len() as u64).to_le_bytes())?;
            out.write_all(&head)?;
            for tensor in tensors {
                let Some(bytes) = self.bytes(tensor, dtype) else {
                    not_finite = Some(tensor.spec.name.clone());
                    return Err(Error::other("a value is not finite"));
                };
                out.write_all(&bytes)?;
            }
            out.flush()
        });
        match not_finite {
            Some(name) => {
                Err(ModelError::Params(format!("{name} holds values that are not finite")))
            }
            None => written,
        }
    }

    /// The tensor as the file has it; None when a value is not finite.
    fn bytes(&self, tensor: &Tensor, dtype: Dtype) -> Option<Vec<u8>> {
        let put = |values: &[f32], bytes: &mut [u8]| {
            match dtype {
                Dtype::F32 => bytes.copy_from_slice(bytemuck::cast_slice(values)),
                _ => values.iter().zip(bytes.chunks_exact_mut(2)).for_each(|(x, bytes)| {
                    bytes.copy_from_slice(&bf16::from_f32(*x).to_le_bytes());
                }),
            }
            values.iter().all(|x| x.is_finite())
        };
        let mut bytes = vec![0; size(tensor, dtype) as usize];
        let [n, k] = tensor.spec.shape[..] else {
            let parts = tensor.parts.iter().map(|(slot, _)| self.base.vector_of(*slot));
            return put(&parts.collect::<Vec<_>>().concat(), &mut bytes).then_some(bytes);
        };
        let row_bytes = bytes.len() / n;
        let finite = bytes.par_chunks_mut(row_bytes).enumerate().map_init(
            || vec![0.0; k],
            |values, (row, bytes)| {
                let (slot, within) = part_of(tensor, row);
                self.row(slot, within, values);
                put(values, bytes)
            },
        );
        finite.reduce(|| true, |a, b| a && b).then_some(bytes)
    }
}

/// The slot that row `row` of a tensor belongs to, and which row it is there.
pub(crate) fn part_of(tensor: &Tensor, row: usize) -> (Slot, usize) {
    let holds = |(_, rows): &&(Slot, Range<usize>)| rows.contains(&row);
    let (slot, rows) = tensor.parts.iter().find(holds).expect("parts cover the tensor");
    (*slot, row - rows.start)
}

/// Bytes of a tensor in a file.
fn size(tensor: &Tensor, dtype: Dtype) -> u64 {
    tensor.spec.range.len() as u64 * if dtype == Dtype::F32 { 4 } else { 2 }
}

/// Neighbours that go into a file of at most `most` bytes together; a larger tensor goes alone.
fn shards(tensors: &[Tensor], dtype: Dtype, most: u64) -> Vec<Range<usize>> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0u64);
    for (i, tensor) in tensors.iter().enumerate() {
        let size = size(tensor, dtype);
        if i > start && bytes + size > most {
            shards.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    shards.push(start..tensors.len());
    shards
}
