//! A decoder's parameters as one flat vector: what full fine-tuning trains, and how a model is
//! saved.

use crate::adapter::LoraAdapter;
use crate::config::DecoderConfig;
use crate::decoder::{Decoder, Layer, WeightDtype};
use crate::error::ModelError;
use crate::files::write_atomic;
use crate::linear::Module;
use half::bf16;
use kernels::{PackedMatrix, RopeTable};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

/// One parameter tensor and its place in the flat vector.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Hugging Face's tensor name.
    pub name: String,
    /// Row-major shape; two dimensions for matrices, one for norms.
    pub shape: Vec<usize>,
    /// Place in the flat vector.
    pub range: Range<usize>,
    /// Whether weight decay applies: matrices yes, norms no.
    pub decay: bool,
}

/// Tensors in the order of the flat vector: embedding; per layer attention norm, q, k, v, o,
/// feed-forward norm, gate, up, down; final norm; head unless tied.
pub(crate) fn specs(config: &DecoderConfig) -> Vec<ParamSpec> {
    let mut specs: Vec<ParamSpec> = Vec::new();
    let mut push = |name: String, shape: Vec<usize>| {
        let start = specs.last().map_or(0, |s: &ParamSpec| s.range.end);
        let range = start..start + shape.iter().product::<usize>();
        specs.push(ParamSpec { name, decay: shape.len() > 1, shape, range });
    };
    let (h, v) = (config.hidden_size, config.vocab_size);
    push("model.embed_tokens.weight".into(), vec![v, h]);
    for l in 0..config.num_hidden_layers {
        for module in Module::ALL {
            match module {
                Module::Q => push(format!("model.layers.{l}.input_layernorm.weight"), vec![h]),
                Module::Gate => {
                    push(format!("model.layers.{l}.post_attention_layernorm.weight"), vec![h]);
                }
                _ => {}
            }
            let (out, input) = module.shape(config);
            push(format!("{}.weight", module.full_name(l)), vec![out, input]);
        }
    }
    push("model.norm.weight".into(), vec![h]);
    if !config.tie_word_embeddings {
        push("lm_head.weight".into(), vec![v, h]);
    }
    specs
}

/// Tensors of one layer in [`specs`].
const PER_LAYER: usize = 9;

impl Decoder {
    /// Names, shapes and places of the flat parameter vector.
    pub fn param_layout(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// Number of parameters.
    pub fn param_count(&self) -> usize {
        self.specs.last().map_or(0, |s| s.range.end)
    }

    /// Bytes of the weights in memory that one token of a decode reads: the layers' matrices and the
    /// head. (Of an embedding that is no head, it reads one row.)
    pub fn streamed_bytes(&self) -> usize {
        self.matrices_of_a_token().map(PackedMatrix::bytes).sum()
    }

    /// Floating point operations of the layers' matrices for one token: two for each weight.
    pub fn flops_per_token(&self) -> f64 {
        let layers = self.layers.iter().flat_map(|l| &l.matrices);
        layers.map(|m| 2.0 * m.n() as f64 * m.k() as f64).sum()
    }

    fn matrices_of_a_token(&self) -> impl Iterator<Item = &PackedMatrix> {
        let layers = self.layers.iter().flat_map(|l| &l.matrices);
        layers.chain(std::iter::once(self.lm_head.as_ref().unwrap_or(&self.embed)))
    }

    /// All parameters as f32 in the order of [`Decoder::param_layout`].
    pub fn params(&self) -> Vec<f32> {
        let mut flat = Vec::with_capacity(self.param_count());
        for index in 0..self.specs.len() {
            match self.tensor(index) {
                TensorRef::Matrix(m) => flat.extend(m.to_f32()),
                TensorRef::Vector(v) => flat.extend_from_slice(v),
            }
        }
        flat
    }

    /// Replaces all parameters; matrices are held as f32 from then on.
    ///
    /// # Errors
    /// [`ModelError::Params`] when the length differs.
    pub fn set_params(&mut self, flat: &[f32]) -> Result<(), ModelError> {
        if flat.len() != self.param_count() {
            return Err(ModelError::Params(format!(
                "found {} values, expected {}",
                flat.len(),
                self.param_count()
            )));
        }
        self.source = None;
        self.digest = OnceLock::new();
        let specs = std::mem::take(&mut self.specs);
        for (index, spec) in specs.iter().enumerate() {
            let values = &flat[spec.range.clone()];
            match self.tensor_mut(index) {
                TensorMut::Vector(v) => v.copy_from_slice(values),
                TensorMut::Matrix(m) => match m.dtype() {
                    kernels::Dtype::F32 => m.repack_f32(values),
                    _ => *m = PackedMatrix::from_f32(values, spec.shape[0], spec.shape[1]),
                },
            }
        }
        self.specs = specs;
        Ok(())
    }

    /// A copy of this model with `adapter` added into its matrices (f32): W + scale B A.
    ///
    /// # Errors
    /// [`ModelError::Params`] when the adapter was made for another shape.
    pub fn merge(&self, adapter: &LoraAdapter) -> Result<Decoder, ModelError> {
        let mut flat = self.params();
        let scale = adapter.config.lora_alpha / adapter.config.r as f32;
        for m in adapter.modules() {
            let name = format!("{}.weight", m.name);
            let spec = self
                .specs
                .iter()
                .find(|s| s.name == name && s.shape == [m.out_features, m.in_features])
                .ok_or_else(|| {
                    ModelError::Params(format!("{name}: this base has no such matrix"))
                })?;
            let (a, b) = (&adapter.params[m.a.clone()], &adapter.params[m.b.clone()]);
            let weight = &mut flat[spec.range.clone()];
            for (row, b_row) in weight.chunks_exact_mut(m.in_features).zip(b.chunks_exact(m.r)) {
                for (a_row, b) in a.chunks_exact(m.in_features).zip(b_row) {
                    row.iter_mut().zip(a_row).for_each(|(w, a)| *w += scale * b * a);
                }
            }
        }
        let tensors = self
            .specs
            .iter()
            .map(|s| match s.shape[..] {
                [n, k] => Loaded::Matrix(PackedMatrix::from_f32(&flat[s.range.clone()], n, k)),
                _ => Loaded::Vector(flat[s.range.clone()].to_vec()),
            })
            .collect();
        Ok(assemble(&self.config, tensors))
    }

    /// Writes config.json and model.safetensors in `dir`, in Hugging Face form, as f32 or (any
    /// other `dtype`) bf16 rounded to nearest even. Each file is replaced whole or not at all.
    ///
    /// # Errors
    /// [`ModelError::Io`] with the file; [`ModelError::Params`] when a value is not finite.
    pub fn save(&self, dir: &Path, dtype: WeightDtype) -> Result<(), ModelError> {
        let flat = self.params();
        if let Some(spec) =
            self.specs.iter().find(|s| flat[s.range.clone()].iter().any(|x| !x.is_finite()))
        {
            return Err(ModelError::Params(format!(
                "{} holds values that are not finite",
                spec.name
            )));
        }
        let (dtype, name) = match dtype {
            WeightDtype::F32 => (Dtype::F32, "float32"),
            _ => (Dtype::BF16, "bfloat16"),
        };
        let bytes: Vec<Vec<u8>> = self
            .specs
            .iter()
            .map(|s| {
                let values = &flat[s.range.clone()];
                match dtype {
                    Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                    _ => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
                }
            })
            .collect();
        let path = dir.join("model.safetensors");
        let views = self.specs.iter().zip(&bytes).map(|(s, b)| {
            (
                s.name.clone(),
                TensorView::new(dtype, s.shape.clone(), b).expect("sizes follow the shape"),
            )
        });
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let file = serialize(views.collect::<Vec<_>>(), Some(metadata))
            .map_err(|e| ModelError::weights(&path, e.to_string()))?;
        write_atomic(&path, &file)?;
        let config = serde_json::to_vec_pretty(&self.config.to_json(name)).expect("plain JSON");
        write_atomic(&dir.join("config.json"), &config)
    }

    pub(crate) fn head_spec(&self) -> usize {
        if self.config.tie_word_embeddings { 0 } else { self.specs.len() - 1 }
    }

    pub(crate) fn norm_spec(&self) -> usize {
        1 + PER_LAYER * self.config.num_hidden_layers
    }

    pub(crate) fn attn_norm_spec(&self, layer: usize) -> usize {
        1 + PER_LAYER * layer
    }

    pub(crate) fn mlp_norm_spec(&self, layer: usize) -> usize {
        self.attn_norm_spec(layer) + 5
    }

    pub(crate) fn matrix_spec(&self, layer: usize, module: Module) -> usize {
        let after_norm = if (module as usize) < Module::Gate as usize { 1 } else { 2 };
        self.attn_norm_spec(layer) + after_norm + module as usize
    }

    fn tensor(&self, index: usize) -> TensorRef<'_> {
        match place(index, self.config.num_hidden_layers) {
            Place::Embed => TensorRef::Matrix(&self.embed),
            Place::AttnNorm(l) => TensorRef::Vector(&self.layers[l].attn_norm),
            Place::MlpNorm(l) => TensorRef::Vector(&self.layers[l].mlp_norm),
            Place::Matrix(l, m) => TensorRef::Matrix(&self.layers[l].matrices[m]),
            Place::Norm => TensorRef::Vector(&self.norm),
            Place::Head => TensorRef::Matrix(self.lm_head.as_ref().unwrap_or(&self.embed)),
        }
    }

    fn tensor_mut(&mut self, index: usize) -> TensorMut<'_> {
        match place(index, self.config.num_hidden_layers) {
            Place::Embed => TensorMut::Matrix(&mut self.embed),
            Place::AttnNorm(l) => TensorMut::Vector(&mut self.layers[l].attn_norm),
            Place::MlpNorm(l) => TensorMut::Vector(&mut self.layers[l].mlp_norm),
            Place::Matrix(l, m) => TensorMut::Matrix(&mut self.layers[l].matrices[m]),
            Place::Norm => TensorMut::Vector(&mut self.norm),
            Place::Head => TensorMut::Matrix(self.lm_head.as_mut().unwrap_or(&mut self.embed)),
        }
    }
}

enum TensorRef<'a> {
    Matrix(&'a PackedMatrix),
    Vector(&'a [f32]),
}

enum TensorMut<'a> {
    Matrix(&'a mut PackedMatrix),
    Vector(&'a mut [f32]),
}

enum Place {
    Embed,
    AttnNorm(usize),
    MlpNorm(usize),
    Matrix(usize, usize),
    Norm,
    Head,
}

fn place(index: usize, layers: usize) -> Place {
    if index == 0 {
        return Place::Embed;
    }
    let (layer, within) = ((index - 1) / PER_LAYER, (index - 1) % PER_LAYER);
    match (layer < layers, within) {
        (true, 0) => Place::AttnNorm(layer),
        (true, 5) => Place::MlpNorm(layer),
        (true, w) if w < 5 => Place::Matrix(layer, w - 1),
        (true, w) => Place::Matrix(layer, w - 2),
        (false, 0) => Place::Norm,
        (false, _) => Place::Head,
    }
}

/// Puts a decoder together from tensors in the order of [`specs`].
pub(crate) fn assemble(config: &DecoderConfig, tensors: Vec<Loaded>) -> Decoder {
    let specs = specs(config);
    debug_assert_eq!(specs.len(), tensors.len());
    let mut tensors = tensors.into_iter();
    fn matrix(t: Option<Loaded>) -> PackedMatrix {
        match t {
            Some(Loaded::Matrix(m)) => m,
            _ => unreachable!("specs and tensors are made in the same order"),
        }
    }
    fn vector(t: Option<Loaded>) -> Vec<f32> {
        match t {
            Some(Loaded::Vector(v)) => v,
            _ => unreachable!("specs and tensors are made in the same order"),
        }
    }
    let embed = matrix(tensors.next());
    let layers = (0..config.num_hidden_layers)
        .map(|_| {
            let attn_norm = vector(tensors.next());
            let [q, k, v, o] = std::array::from_fn(|_| matrix(tensors.next()));
            let mlp_norm = vector(tensors.next());
            let [gate, up, down] = std::array::from_fn(|_| matrix(tensors.next()));
            Layer { attn_norm, mlp_norm, matrices: [q, k, v, o, gate, up, down] }
        })
        .collect();
    let norm = vector(tensors.next());
    let lm_head = (!config.tie_word_embeddings).then(|| matrix(tensors.next()));
    Decoder {
        rope: RopeTable::new(&config.inv_freq(), config.max_position_embeddings),
        config: config.clone(),
        embed,
        layers,
        norm,
        lm_head,
        specs,
        source: None,
        digest: OnceLock::new(),
    }
}

/// A tensor ready for use.
pub(crate) enum Loaded {
    Matrix(PackedMatrix),
    Vector(Vec<f32>),
}

pub(crate) fn init(config: &DecoderConfig, seed: u64) -> Decoder {
    let mut rng = Pcg64::seed_from_u64(seed);
    let out_scale = 1.0 / (2.0 * config.num_hidden_layers as f64).sqrt();
    let tensors = specs(config)
        .iter()
        .map(|spec| {
            let count = spec.range.len();
            if !spec.decay {
                return Loaded::Vector(vec![1.0; count]);
            }
            let into_residual =
                spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
            let std = 0.02 * if into_residual { out_scale } else { 1.0 };
            let values: Vec<f32> = (0..count).map(|_| (std * normal(&mut rng)) as f32).collect();
            Loaded::Matrix(PackedMatrix::from_f32(&values, spec.shape[0], spec.shape[1]))
        })
        .collect();
    assemble(config, tensors)
}

/// One standard normal draw (Box and Muller, 1958).
fn normal(rng: &mut Pcg64) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
