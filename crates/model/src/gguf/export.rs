//! A decoder, or an adapter, as a GGUF file for llama.cpp and what is built on it.

use super::load::{module_name, tensor_name, tensor_shape};
use super::write::{TensorOut, write};
use super::{GgmlType, GgufFile, Value};
use crate::adapter::LoraAdapter;
use crate::config::DecoderConfig;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::families::gguf::{self, Architecture, Described};
use crate::linear::Module;
use crate::merged::{Merged, part_of};
use crate::params::{self, Slot, Tensor};
use kernels::Dtype;
use rayon::prelude::*;
use std::path::Path;

/// The formats that a model can be written in, with llama.cpp's number of the kind of file (`enum
/// llama_ftype`).
pub const GGUF_DTYPES: [(Dtype, u32); 6] = [
    (Dtype::F32, 0),
    (Dtype::F16, 1),
    (Dtype::Q8_0, 7),
    (Dtype::Q4_0, 2),
    (Dtype::Q4K, 14),
    (Dtype::Q6K, 18),
];

impl Decoder {
    /// Writes the model as a GGUF file: matrices in `dtype` (one of [`GGUF_DTYPES`]), vectors in
    /// f32. `general` are further entries, such as the name and the tokenizer. In 4 bits the
    /// embedding table and the output head take q6_k; rows that are no whole blocks take the next
    /// larger format that fits, q8_0 or f16.
    ///
    /// # Errors
    /// [`ModelError::Params`] naming the family and what llama.cpp's files of it cannot say, or a
    /// tensor with a value that is not finite; [`ModelError::Io`] with the file.
    pub fn save_gguf(
        &self,
        path: &Path,
        dtype: Dtype,
        general: Vec<(String, Value)>,
    ) -> Result<(), ModelError> {
        Merged::plain(self).save_gguf(path, dtype, general)
    }
}

impl Merged<'_> {
    /// Writes the model as a GGUF file, as [`Decoder::save_gguf`] does, the adapter in its matrices.
    /// Beside the base, one tensor is in memory.
    ///
    /// # Errors
    /// Those of [`Decoder::save_gguf`].
    pub fn save_gguf(
        &self,
        path: &Path,
        dtype: Dtype,
        general: Vec<(String, Value)>,
    ) -> Result<(), ModelError> {
        let config = self.base.config();
        let Described { architecture, metadata: keys, vectors } = gguf::describe(config)?;
        let kind = GGUF_DTYPES.iter().find(|(known, _)| *known == dtype).ok_or_else(|| {
            ModelError::Params(format!("GGUF files are not written in {}", dtype.name()))
        })?;
        let mut metadata = vec![
            ("general.architecture".to_owned(), Value::String(architecture.name.into())),
            ("general.type".to_owned(), Value::String("model".into())),
            ("general.file_type".to_owned(), Value::U32(kind.1)),
            ("general.quantization_version".to_owned(), Value::U32(2)),
        ];
        metadata.extend(general);
        metadata.extend(keys);
        let list = params::tensors(config);
        // All experts of a layer are one tensor, of which the first one's name and type hold.
        let first = |tensor: &&Tensor| !matches!(tensor.parts[0].0, Slot::Expert(_, 1.., _));
        let mut tensors: Vec<TensorOut<'_>> = list
            .iter()
            .filter(first)
            .map(|tensor| {
                let stored = written(dtype, tensor);
                let all = alike(&list, tensor);
                TensorOut {
                    name: tensor_name(tensor),
                    shape: tensor_shape(config, tensor),
                    ggml_type: GgmlType::of(stored).expect("GGUF has what is written"),
                    bytes: Box::new(move || {
                        let packed = |t: &Tensor| self.packed(architecture, t, stored);
                        match all[..] {
                            [one] => packed(one),
                            _ => all.iter().map(|t| packed(t)).collect::<Vec<_>>().concat(),
                        }
                    }),
                }
            })
            .collect();
        for (name, values) in vectors {
            tensors.push(TensorOut {
                name: name.into(),
                shape: vec![values.len()],
                ggml_type: GgmlType::F32,
                bytes: Box::new(move || bytemuck::cast_slice(&values).to_vec()),
            });
        }
        if let Some(tensor) = list.iter().find(|t| !self.is_finite(t)) {
            let problem = format!("{} holds values that are not finite", tensor.spec.name);
            return Err(ModelError::Params(problem));
        }
        write(path, &metadata, &tensors)
    }

    /// The tensor's rows as the file has them.
    fn packed(&self, architecture: &Architecture, tensor: &Tensor, dtype: Dtype) -> Vec<u8> {
        let [rows, k] = tensor.spec.shape[..] else {
            let values = self.vector(architecture, tensor);
            let mut bytes = vec![0; dtype.row_bytes(values.len()).expect("f32 always fits")];
            dtype.pack(&values, &mut bytes);
            return bytes;
        };
        let row_bytes = dtype.row_bytes(k).expect("a format was chosen that fits");
        let mut bytes = vec![0; rows * row_bytes];
        bytes.par_chunks_mut(row_bytes).enumerate().for_each_init(
            || vec![0.0; k],
            |values, (row, bytes)| {
                let (slot, within) = part_of(tensor, row);
                let own = own_row(architecture, self.base.config(), slot, within);
                self.row(slot, own, values);
                dtype.pack(values, bytes);
            },
        );
        bytes
    }

    fn vector(&self, architecture: &Architecture, tensor: &Tensor) -> Vec<f32> {
        let value = |row: usize| {
            let (slot, within) = part_of(tensor, row);
            let own = own_row(architecture, self.base.config(), slot, within);
            let value = self.base.vector_of(slot)[own];
            match slot {
                Slot::Norm(..) | Slot::FinalNorm if architecture.norms_plus_one => value + 1.0,
                _ => value,
            }
        };
        (0..tensor.spec.shape[0]).map(value).collect()
    }

    fn is_finite(&self, tensor: &Tensor) -> bool {
        tensor.parts.iter().all(|(slot, rows)| match tensor.spec.shape[..] {
            [_, k] => (0..rows.len()).into_par_iter().all(|i| {
                let mut values = vec![0.0; k];
                self.row(*slot, i, &mut values);
                values.iter().all(|x| x.is_finite())
            }),
            _ => self.base.vector_of(*slot).iter().all(|x| x.is_finite()),
        })
    }
}

impl LoraAdapter {
    /// Writes the adapter as a GGUF file for llama.cpp's `--lora`: for each matrix A [r, in] and B
    /// [out, r] in f32, in the form of [`LoraAdapter::portable`].
    ///
    /// # Errors
    /// [`ModelError::Params`] naming the family and what llama.cpp's files of it cannot say (DoRA is
    /// among it),
    /// [`ModelError::Io`] with the file.
    pub fn save_gguf(
        &self,
        path: &Path,
        base: &DecoderConfig,
        general: Vec<(String, Value)>,
    ) -> Result<(), ModelError> {
        let architecture = gguf::describe(base)?.architecture;
        if self.config.use_dora {
            return Err(ModelError::Params(
                "use_dora: llama.cpp's adapters know no magnitudes\n\
                 hint: merge the adapter into the model instead"
                    .into(),
            ));
        }
        let adapter = self.portable(&[]);
        let mut metadata = vec![
            ("general.architecture".to_owned(), Value::String(architecture.name.into())),
            ("general.type".to_owned(), Value::String("adapter".into())),
            ("adapter.type".to_owned(), Value::String("lora".into())),
            // The reader divides by the rank.
            ("adapter.lora.alpha".to_owned(), Value::F32(adapter.config.lora_alpha)),
        ];
        metadata.extend(general);
        let mut tensors = Vec::new();
        for m in adapter.modules() {
            let modules = m.linear.modules();
            let name = module_name(modules[0], modules.len() > 1);
            let mut push = |end: &str, shape: [usize; 2], values: Vec<f32>| {
                tensors.push(TensorOut {
                    name: format!("blk.{}.{name}.weight.{end}", m.layer),
                    shape: shape.to_vec(),
                    ggml_type: GgmlType::F32,
                    bytes: Box::new(move || bytemuck::cast_slice(&values).to_vec()),
                });
            };
            push("lora_a", [m.r, m.in_features], adapter.params[m.a.clone()].to_vec());
            let b = &adapter.params[m.b.clone()];
            let slot = Slot::Matrix(m.layer, modules[0]);
            let row = |i: usize| {
                let own = own_row(architecture, base, slot, i);
                &b[own * m.r..(own + 1) * m.r]
            };
            let b = (0..m.out_features).flat_map(|i| row(i).to_vec()).collect();
            push("lora_b", [m.out_features, m.r], b);
        }
        write(path, &metadata, &tensors)
    }
}

impl LoraAdapter {
    /// Reads back what [`LoraAdapter::save_gguf`] wrote of `like`.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] naming a tensor that is missing, has another shape or another type.
    pub fn load_gguf(
        path: &Path,
        like: &LoraAdapter,
        base: &DecoderConfig,
    ) -> Result<LoraAdapter, ModelError> {
        let architecture = gguf::describe(base)?.architecture;
        let file = GgufFile::open(path)?;
        let like = like.portable(&[]);
        let mut adapter = like.clone();
        adapter.set_alpha(file.require("adapter.lora.alpha")?);
        let tensor = |name: String, shape: [usize; 2]| match file.tensor(&name) {
            Some(t) if t.shape == shape && t.ggml_type == GgmlType::F32 => {
                let mut values = vec![0.0; shape[0] * shape[1]];
                Dtype::F32.unpack(t.bytes, &mut values);
                Ok(values)
            }
            found => {
                let found = found.map_or("nothing".to_owned(), |t| {
                    format!("{} of shape {:?}", t.ggml_type.name(), t.shape)
                });
                let problem = format!("{name}: found {found}, expected F32 of shape {shape:?}");
                Err(ModelError::adapter(path, problem))
            }
        };
        for m in like.modules() {
            let modules = m.linear.modules();
            let name = module_name(modules[0], modules.len() > 1);
            let name = |end: &str| format!("blk.{}.{name}.weight.{end}", m.layer);
            let a = tensor(name("lora_a"), [m.r, m.in_features])?;
            let b = tensor(name("lora_b"), [m.out_features, m.r])?;
            adapter.params[m.a.clone()].copy_from_slice(&a);
            let place = &mut adapter.params[m.b.clone()];
            for (i, row) in b.chunks_exact(m.r).enumerate() {
                let own = own_row(architecture, base, Slot::Matrix(m.layer, modules[0]), i);
                place[own * m.r..(own + 1) * m.r].copy_from_slice(row);
            }
        }
        Ok(adapter)
    }
}

/// The tensors that are written as one with `tensor`: the same matrix of every expert of its layer,
/// or itself.
fn alike<'a>(list: &'a [Tensor], tensor: &'a Tensor) -> Vec<&'a Tensor> {
    let Slot::Expert(layer, _, module) = tensor.parts[0].0 else { return vec![tensor] };
    let same =
        |t: &&Tensor| matches!(t.parts[0].0, Slot::Expert(l, _, m) if (l, m) == (layer, module));
    list.iter().filter(same).collect()
}

/// The format that a tensor is written in when matrices are to be in `dtype`.
fn written(dtype: Dtype, tensor: &Tensor) -> Dtype {
    let [_, k] = tensor.spec.shape[..] else { return Dtype::F32 };
    let fits = |dtype: &Dtype| dtype.row_bytes(k).is_some();
    let first = match (dtype, tensor.parts[0].0) {
        (_, Slot::Router(_)) => return Dtype::F32,
        (Dtype::Q4_0 | Dtype::Q4K, Slot::Embed | Slot::Head) => Dtype::Q6K,
        (dtype, _) => dtype,
    };
    // The float types always fit.
    let mut choices = [first, Dtype::Q8_0].into_iter().filter(fits);
    choices.next().unwrap_or(Dtype::F16)
}

/// Which of the decoder's rows of a slot is the file's row `row`: the inverse of
/// [`super::load::paired_row`].
fn own_row(architecture: &Architecture, config: &DecoderConfig, slot: Slot, row: usize) -> usize {
    match slot {
        Slot::Matrix(_, Module::Q | Module::K) | Slot::Bias(_, Module::Q | Module::K)
            if architecture.pairs_interleaved =>
        {
            let (head, within) = (row / config.head_dim, row % config.head_dim);
            head * config.head_dim + within % 2 * (config.head_dim / 2) + within / 2
        }
        _ => row,
    }
}
