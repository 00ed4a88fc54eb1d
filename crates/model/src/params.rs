//! A decoder's parameters as one flat vector: what full fine-tuning trains.

use crate::adapter::LoraAdapter;
use crate::config::{DecoderConfig, FeedForward, NormPlacement, NormWeightForm, QkNorm};
use crate::decoder::{Decoder, Layer, Mlp, NormWeight, WeightDtype};
use crate::error::ModelError;
use crate::experts::Experts;
use crate::linear::{Linear, Module};
use crate::merged::Merged;
use kernels::PackedMatrix;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
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

/// What a tensor, or some of its rows, is in the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    Embed,
    Norm(usize, NormPlace),
    Matrix(usize, Module),
    Bias(usize, Module),
    Router(usize),
    /// Layer, expert, and one of gate, up, down.
    Expert(usize, usize, Module),
    FinalNorm,
    Head,
}

/// The norms of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum NormPlace {
    /// Of the input of attention.
    AttnIn,
    Q,
    K,
    /// Of the output of attention.
    AttnOut,
    /// Of the input of the feed-forward block.
    MlpIn,
    /// Of the output of the feed-forward block.
    MlpOut,
}

impl NormPlace {
    pub(crate) const COUNT: usize = 6;
}

/// A tensor as published and what it fills: one slot, or one after the other by rows.
pub(crate) struct Tensor {
    pub(crate) spec: ParamSpec,
    pub(crate) parts: Vec<(Slot, Range<usize>)>,
}

impl Tensor {
    /// Each slot with its place in the tensor's own values.
    pub(crate) fn values(&self) -> impl Iterator<Item = (Slot, Range<usize>)> {
        let width = self.spec.shape[1..].iter().product::<usize>();
        self.parts.iter().map(move |(slot, rows)| (*slot, rows.start * width..rows.end * width))
    }
}

/// Tensors in the order of the flat vector: embedding; per layer the norms and matrices (each
/// followed by its bias) in the order of computation; final norm; head unless tied.
pub(crate) fn tensors(config: &DecoderConfig) -> Vec<Tensor> {
    let mut list = List::default();
    let (h, v) = (config.hidden_size, config.vocab_size);
    list.one("model.embed_tokens.weight".into(), vec![v, h], Slot::Embed);
    for l in 0..config.num_hidden_layers {
        attention_tensors(config, l, &mut list);
        mlp_tensors(config, l, &mut list);
    }
    list.one("model.norm.weight".into(), vec![h], Slot::FinalNorm);
    if !config.tie_word_embeddings {
        list.one("lm_head.weight".into(), vec![v, h], Slot::Head);
    }
    list.tensors
}

fn attention_tensors(config: &DecoderConfig, l: usize, list: &mut List) {
    let h = config.hidden_size;
    if config.norms != NormPlacement::Post {
        let name = format!("model.layers.{l}.input_layernorm.weight");
        list.one(name, vec![h], Slot::Norm(l, NormPlace::AttnIn));
    }
    list.linears(config, l, false);
    let widths = match config.qk_norm {
        QkNorm::None => None,
        QkNorm::PerHead => Some((config.head_dim, config.head_dim)),
        QkNorm::Whole => Some((Module::Q.shape(config).0, Module::K.shape(config).0)),
    };
    if let Some((q, k)) = widths {
        for (name, width, place) in [("q_norm", q, NormPlace::Q), ("k_norm", k, NormPlace::K)] {
            let name = format!("model.layers.{l}.self_attn.{name}.weight");
            list.one(name, vec![width], Slot::Norm(l, place));
        }
    }
    if config.norms != NormPlacement::Pre {
        let name = format!("model.layers.{l}.post_attention_layernorm.weight");
        list.one(name, vec![h], Slot::Norm(l, NormPlace::AttnOut));
    }
}

fn mlp_tensors(config: &DecoderConfig, l: usize, list: &mut List) {
    let h = config.hidden_size;
    let before = match config.norms {
        // Named after what comes before it.
        NormPlacement::Pre => Some("post_attention_layernorm"),
        NormPlacement::PrePost => Some("pre_feedforward_layernorm"),
        NormPlacement::Post => None,
    };
    if let Some(name) = before {
        let name = format!("model.layers.{l}.{name}.weight");
        list.one(name, vec![h], Slot::Norm(l, NormPlace::MlpIn));
    }
    match (config.layers[l].feed_forward, config.experts) {
        (FeedForward::Experts, Some(experts)) => {
            let [block, gate, up, down] = experts.names;
            let (block, i) = (format!("model.layers.{l}.{block}"), experts.intermediate_size);
            let router = vec![experts.num_experts, h];
            list.one(format!("{block}.gate.weight"), router, Slot::Router(l));
            for e in 0..experts.num_experts {
                for (name, shape, module) in [
                    (gate, vec![i, h], Module::Gate),
                    (up, vec![i, h], Module::Up),
                    (down, vec![h, i], Module::Down),
                ] {
                    let name = format!("{block}.experts.{e}.{name}.weight");
                    list.one(name, shape, Slot::Expert(l, e, module));
                }
            }
        }
        _ => list.linears(config, l, true),
    }
    if config.norms != NormPlacement::Pre {
        let name = format!("model.layers.{l}.post_feedforward_layernorm.weight");
        list.one(name, vec![h], Slot::Norm(l, NormPlace::MlpOut));
    }
}

#[derive(Default)]
struct List {
    tensors: Vec<Tensor>,
}

impl List {
    fn one(&mut self, name: String, shape: Vec<usize>, slot: Slot) {
        let rows = 0..shape[0];
        self.push(name, shape, vec![(slot, rows)]);
    }

    /// The linear layers of attention or of the feed-forward block.
    fn linears(&mut self, config: &DecoderConfig, l: usize, mlp: bool) {
        let own = |linear: &&Linear| Module::MLP.contains(&linear.modules()[0]) == mlp;
        for linear in config.linears(l).iter().filter(own) {
            let (out, input) = linear.shape(config);
            let name = linear.full_name(l);
            let parts = linear.parts(config);
            let matrices = parts.iter().map(|(m, r)| (Slot::Matrix(l, *m), r.clone())).collect();
            self.push(format!("{name}.weight"), vec![out, input], matrices);
            if linear.modules()[0].has_bias(config) {
                let biases = parts.iter().map(|(m, r)| (Slot::Bias(l, *m), r.clone())).collect();
                self.push(format!("{name}.bias"), vec![out], biases);
            }
        }
    }

    fn push(&mut self, name: String, shape: Vec<usize>, parts: Vec<(Slot, Range<usize>)>) {
        let start = self.tensors.last().map_or(0, |t| t.spec.range.end);
        let range = start..start + shape.iter().product::<usize>();
        let spec = ParamSpec { name, decay: shape.len() > 1, shape, range };
        self.tensors.push(Tensor { spec, parts });
    }
}

/// The published form of `config`'s parameters and where each slot lies in the flat vector.
pub(crate) struct ParamLayout {
    pub(crate) specs: Vec<ParamSpec>,
    /// In the order of the flat vector; together they cover it.
    slots: Vec<(Slot, Range<usize>)>,
    by_slot: HashMap<Slot, usize>,
}

impl ParamLayout {
    pub(crate) fn new(config: &DecoderConfig) -> ParamLayout {
        let tensors = tensors(config);
        let mut slots = Vec::new();
        for t in &tensors {
            let start = t.spec.range.start;
            slots.extend(t.values().map(|(slot, v)| (slot, start + v.start..start + v.end)));
        }
        let by_slot = slots.iter().enumerate().map(|(i, (slot, _))| (*slot, i)).collect();
        ParamLayout { specs: tensors.into_iter().map(|t| t.spec).collect(), slots, by_slot }
    }

    /// Place of a slot in the flat vector. A tied head lies where the embedding does.
    pub(crate) fn place(&self, slot: Slot) -> Range<usize> {
        let tied = slot == Slot::Head && !self.by_slot.contains_key(&slot);
        let slot = if tied { Slot::Embed } else { slot };
        self.slots[self.by_slot[&slot]].1.clone()
    }
}

impl Decoder {
    /// Names, shapes and places of the flat parameter vector.
    pub fn param_layout(&self) -> &[ParamSpec] {
        &self.layout.specs
    }

    /// Number of parameters.
    pub fn param_count(&self) -> usize {
        self.layout.specs.last().map_or(0, |s| s.range.end)
    }

    /// Bytes of the weights in memory that one token of a decode reads: the layers' matrices and the
    /// head. (Of an embedding that is no head, it reads one row; of a layer's experts, those that
    /// the router picks.)
    pub fn streamed_bytes(&self) -> usize {
        let head = self.lm_head.as_ref().unwrap_or(&self.embed).bytes();
        head + self.per_token(PackedMatrix::bytes)
    }

    /// Floating point operations of the layers' matrices for one token: two for each weight.
    pub fn flops_per_token(&self) -> f64 {
        2.0 * self.per_token(|m| m.n() * m.k()) as f64
    }

    /// The sum of `of` over the layers' matrices that one token meets.
    fn per_token(&self, of: impl Fn(&PackedMatrix) -> usize) -> usize {
        let sum = |matrices: &[PackedMatrix]| matrices.iter().map(&of).sum::<usize>();
        let layer = |layer: &Layer| {
            let mlp = match &layer.mlp {
                Mlp::Dense(matrices) => sum(matrices),
                // Experts are all of one shape.
                Mlp::Experts(experts) => {
                    let picked = experts.config.top_k;
                    of(&experts.router) + experts.experts.first().map_or(0, |e| picked * sum(e))
                }
            };
            sum(&layer.attention) + mlp
        };
        self.layers.iter().map(layer).sum()
    }

    pub(crate) fn matrices(&self) -> Vec<&PackedMatrix> {
        let matrix = |(slot, _): &(Slot, Range<usize>)| match self.tensor(*slot) {
            TensorRef::Matrix(m) => Some(m),
            _ => None,
        };
        self.layout.slots.iter().filter_map(matrix).collect()
    }

    /// The matrix in a slot that holds one.
    pub(crate) fn matrix_of(&self, slot: Slot) -> &PackedMatrix {
        match self.tensor(slot) {
            TensorRef::Matrix(m) => m,
            _ => unreachable!("{slot:?} is a vector"),
        }
    }

    /// The vector in a slot that holds one, in Hugging Face's form.
    pub(crate) fn vector_of(&self, slot: Slot) -> &[f32] {
        match self.tensor(slot) {
            TensorRef::Norm(n) => n.stored(),
            TensorRef::Vector(v) => v,
            TensorRef::Matrix(_) => unreachable!("{slot:?} is a matrix"),
        }
    }

    /// All parameters as f32 in the order of [`Decoder::param_layout`].
    pub fn params(&self) -> Vec<f32> {
        let mut flat = Vec::with_capacity(self.param_count());
        for (slot, _) in &self.layout.slots {
            match self.tensor(*slot) {
                TensorRef::Matrix(m) => flat.extend(m.to_f32()),
                TensorRef::Norm(n) => flat.extend_from_slice(n.stored()),
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
        let form = self.config.norm_weight;
        for index in 0..self.layout.slots.len() {
            let (slot, range) = self.layout.slots[index].clone();
            let values = &flat[range];
            match self.tensor_mut(slot) {
                TensorMut::Vector(v) => v.copy_from_slice(values),
                TensorMut::Norm(n) => *n = NormWeight::new(values.to_vec(), form),
                TensorMut::Matrix(m) => match m.dtype() {
                    kernels::Dtype::F32 => m.repack_f32(values),
                    _ => *m = PackedMatrix::from_f32(values, m.n(), m.k()),
                },
            }
        }
        Ok(())
    }

    /// A copy of this model with `adapter` added into its matrices (f32): see [`Merged`], which
    /// writes such a model to files without this copy.
    ///
    /// # Errors
    /// [`ModelError::Params`] when the adapter was made for another shape.
    pub fn merge(&self, adapter: &LoraAdapter) -> Result<Decoder, ModelError> {
        Ok(Merged::new(self, Some(adapter))?.decoder())
    }

    /// Writes config.json and model.safetensors in `dir`: [`Merged::save`] without an adapter, in
    /// one file.
    ///
    /// # Errors
    /// Those of [`Merged::save`].
    pub fn save(&self, dir: &Path, dtype: WeightDtype) -> Result<(), ModelError> {
        Merged::plain(self).save(dir, dtype, u64::MAX)
    }

    fn tensor(&self, slot: Slot) -> TensorRef<'_> {
        let missing = "the layout lists what the layers hold";
        match slot {
            Slot::Embed => TensorRef::Matrix(&self.embed),
            Slot::Head => TensorRef::Matrix(self.head()),
            Slot::FinalNorm => TensorRef::Norm(&self.norm),
            Slot::Norm(l, place) => {
                TensorRef::Norm(self.layers[l].norms[place as usize].as_ref().expect(missing))
            }
            Slot::Bias(l, m) => {
                TensorRef::Vector(self.layers[l].biases[m as usize].as_deref().expect(missing))
            }
            Slot::Matrix(l, m) => TensorRef::Matrix(self.layers[l].matrix(m)),
            Slot::Router(l) => TensorRef::Matrix(&self.layers[l].experts().expect(missing).router),
            Slot::Expert(l, e, m) => {
                let experts = self.layers[l].experts().expect(missing);
                TensorRef::Matrix(&experts.experts[e][m as usize - Module::Gate as usize])
            }
        }
    }

    fn tensor_mut(&mut self, slot: Slot) -> TensorMut<'_> {
        let missing = "the layout lists what the layers hold";
        match slot {
            Slot::Embed => TensorMut::Matrix(&mut self.embed),
            Slot::Head => TensorMut::Matrix(self.lm_head.as_mut().unwrap_or(&mut self.embed)),
            Slot::FinalNorm => TensorMut::Norm(&mut self.norm),
            Slot::Norm(l, place) => {
                TensorMut::Norm(self.layers[l].norms[place as usize].as_mut().expect(missing))
            }
            Slot::Bias(l, m) => {
                TensorMut::Vector(self.layers[l].biases[m as usize].as_deref_mut().expect(missing))
            }
            Slot::Matrix(l, m) => TensorMut::Matrix(self.layers[l].matrix_mut(m)),
            Slot::Router(l) => match &mut self.layers[l].mlp {
                Mlp::Experts(experts) => TensorMut::Matrix(&mut experts.router),
                Mlp::Dense(_) => unreachable!("{missing}"),
            },
            Slot::Expert(l, e, m) => match &mut self.layers[l].mlp {
                Mlp::Experts(experts) => {
                    TensorMut::Matrix(&mut experts.experts[e][m as usize - Module::Gate as usize])
                }
                Mlp::Dense(_) => unreachable!("{missing}"),
            },
        }
    }
}

enum TensorRef<'a> {
    Matrix(&'a PackedMatrix),
    Norm(&'a NormWeight),
    Vector(&'a [f32]),
}

enum TensorMut<'a> {
    Matrix(&'a mut PackedMatrix),
    Norm(&'a mut NormWeight),
    Vector(&'a mut [f32]),
}

/// Puts a decoder together from what fills its slots.
pub(crate) fn assemble(config: &DecoderConfig, mut loaded: HashMap<Slot, Loaded>) -> Decoder {
    let layout = ParamLayout::new(config);
    let mut matrix = |slot| match loaded.remove(&slot) {
        Some(Loaded::Matrix(m)) => m,
        _ => unreachable!("every slot of the layout was filled with what its shape says"),
    };
    let embed = matrix(Slot::Embed);
    let lm_head = (!config.tie_word_embeddings).then(|| matrix(Slot::Head));
    let mut attention = Vec::new();
    let mut mlps = Vec::new();
    for l in 0..config.num_hidden_layers {
        attention.push(Module::ATTENTION.map(|m| matrix(Slot::Matrix(l, m))));
        mlps.push(match (config.layers[l].feed_forward, config.experts) {
            (FeedForward::Experts, Some(experts)) => Mlp::Experts(Experts {
                config: experts,
                activation: config.activation,
                router: matrix(Slot::Router(l)),
                experts: (0..experts.num_experts)
                    .map(|e| Module::MLP.map(|m| matrix(Slot::Expert(l, e, m))))
                    .collect(),
            }),
            _ => Mlp::Dense(Module::MLP.map(|m| matrix(Slot::Matrix(l, m)))),
        });
    }
    // What is left are vectors; which of them there are differs by family.
    let mut layers: Vec<Layer> = attention
        .into_iter()
        .zip(mlps)
        .map(|(attention, mlp)| Layer {
            norms: std::array::from_fn(|_| None),
            biases: std::array::from_fn(|_| None),
            attention,
            mlp,
        })
        .collect();
    let mut norm = NormWeight::new(Vec::new(), config.norm_weight);
    for (slot, value) in loaded {
        let Loaded::Vector(values) = value else {
            unreachable!("the matrices were taken out above")
        };
        match slot {
            Slot::FinalNorm => norm = NormWeight::new(values, config.norm_weight),
            Slot::Norm(l, place) => {
                layers[l].norms[place as usize] = Some(NormWeight::new(values, config.norm_weight));
            }
            Slot::Bias(l, m) => layers[l].biases[m as usize] = Some(values),
            _ => unreachable!("{slot:?} is a matrix"),
        }
    }
    Decoder {
        config: config.clone(),
        embed,
        layers,
        norm,
        lm_head,
        layout,
        source: None,
        digest: OnceLock::new(),
    }
}

/// A tensor, or a part of one, ready for use.
pub(crate) enum Loaded {
    Matrix(PackedMatrix),
    Vector(Vec<f32>),
}

impl Loaded {
    /// Whole rows of the tensor `spec`.
    pub(crate) fn from_f32(values: &[f32], spec: &ParamSpec) -> Loaded {
        match spec.shape[..] {
            [_, k] => Loaded::Matrix(PackedMatrix::from_f32(values, values.len() / k, k)),
            _ => Loaded::Vector(values.to_vec()),
        }
    }
}

pub(crate) fn init(config: &DecoderConfig, seed: u64) -> Decoder {
    let mut rng = Pcg64::seed_from_u64(seed);
    let out_scale = 1.0 / (2.0 * config.num_hidden_layers as f64).sqrt();
    let one = match config.norm_weight {
        NormWeightForm::Plain => 1.0,
        NormWeightForm::OnePlus => 0.0,
    };
    let mut loaded = HashMap::new();
    for tensor in tensors(config) {
        for (slot, range) in tensor.values() {
            let std = match slot {
                Slot::Matrix(_, Module::O | Module::Down) | Slot::Expert(_, _, Module::Down) => {
                    0.02 * out_scale
                }
                _ => 0.02,
            };
            let values: Vec<f32> = match slot {
                Slot::Norm(..) | Slot::FinalNorm => vec![one; range.len()],
                Slot::Bias(..) => vec![0.0; range.len()],
                _ => range.map(|_| (std * normal(&mut rng)) as f32).collect(),
            };
            loaded.insert(slot, Loaded::from_f32(&values, &tensor.spec));
        }
    }
    assemble(config, loaded)
}

/// One standard normal draw (Box and Muller, 1958).
fn normal(rng: &mut Pcg64) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
