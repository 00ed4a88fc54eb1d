//! The matrices of a layer: as the decoder multiplies by them, as Hugging Face names and fuses
//! them, and with the adapters on top.

use crate::adapter::AdapterSet;
use crate::config::{DecoderConfig, FeedForward};
use kernels::{LoraRef, PackedMatrix};
use std::ops::Range;

/// The seven matrices of a layer, in the order used everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Module {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Module {
    pub(crate) const ATTENTION: [Module; 4] = [Module::Q, Module::K, Module::V, Module::O];
    pub(crate) const MLP: [Module; 3] = [Module::Gate, Module::Up, Module::Down];

    /// (out, in) of this matrix in a dense layer.
    pub(crate) fn shape(self, config: &DecoderConfig) -> (usize, usize) {
        let (h, i) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        match self {
            Module::Q => (q, h),
            Module::K | Module::V => (kv, h),
            Module::O => (h, q),
            Module::Gate | Module::Up => (i, h),
            Module::Down => (h, i),
        }
    }

    /// Whether the matrix carries a bias.
    pub(crate) fn has_bias(self, config: &DecoderConfig) -> bool {
        match self {
            Module::Q | Module::K | Module::V => config.biases.qkv,
            Module::O => config.biases.output,
            Module::Gate | Module::Up | Module::Down => config.biases.mlp,
        }
    }
}

/// A linear layer as Hugging Face names it: one module, or several stored one above the other.
/// This is what adapters target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Linear {
    Q,
    K,
    V,
    Qkv,
    O,
    Gate,
    Up,
    GateUp,
    Down,
}

impl Linear {
    /// Hugging Face's short name.
    pub(crate) fn short_name(self) -> &'static str {
        match self {
            Linear::Q => "q_proj",
            Linear::K => "k_proj",
            Linear::V => "v_proj",
            Linear::Qkv => "qkv_proj",
            Linear::O => "o_proj",
            Linear::Gate => "gate_proj",
            Linear::Up => "up_proj",
            Linear::GateUp => "gate_up_proj",
            Linear::Down => "down_proj",
        }
    }

    /// The modules whose rows it holds, from the top.
    pub(crate) fn modules(self) -> &'static [Module] {
        match self {
            Linear::Q => &[Module::Q],
            Linear::K => &[Module::K],
            Linear::V => &[Module::V],
            Linear::Qkv => &[Module::Q, Module::K, Module::V],
            Linear::O => &[Module::O],
            Linear::Gate => &[Module::Gate],
            Linear::Up => &[Module::Up],
            Linear::GateUp => &[Module::Gate, Module::Up],
            Linear::Down => &[Module::Down],
        }
    }

    /// Hugging Face's full module name in layer `layer`.
    pub(crate) fn full_name(self, layer: usize) -> String {
        let block = if Module::MLP.contains(&self.modules()[0]) { "mlp" } else { "self_attn" };
        format!("model.layers.{layer}.{block}.{}", self.short_name())
    }

    /// (out, in) of the whole matrix.
    pub(crate) fn shape(self, config: &DecoderConfig) -> (usize, usize) {
        let out = self.modules().iter().map(|m| m.shape(config).0).sum();
        (out, self.modules()[0].shape(config).1)
    }

    /// Each module with the rows that it has in the matrix.
    pub(crate) fn parts(self, config: &DecoderConfig) -> Vec<(Module, Range<usize>)> {
        let mut start = 0;
        let part = |module: &Module| {
            let rows = start..start + module.shape(config).0;
            start = rows.end;
            (*module, rows)
        };
        self.modules().iter().map(part).collect()
    }
}

impl DecoderConfig {
    /// The linear layers of layer `layer`, in the order of computation. Experts are not among
    /// them: their matrices are no linear layers of the reference.
    pub(crate) fn linears(&self, layer: usize) -> &'static [Linear] {
        const SEPARATE: [Linear; 7] =
            [Linear::Q, Linear::K, Linear::V, Linear::O, Linear::Gate, Linear::Up, Linear::Down];
        const FUSED: [Linear; 4] = [Linear::Qkv, Linear::O, Linear::GateUp, Linear::Down];
        match (self.fused_projections, self.layers[layer].feed_forward) {
            (false, FeedForward::Dense) => &SEPARATE,
            (false, FeedForward::Experts) => &SEPARATE[..4],
            (true, FeedForward::Dense) => &FUSED,
            (true, FeedForward::Experts) => &FUSED[..2],
        }
    }
}

/// y[T, out] = x[T, in] W^T + bias, or y += when `accumulate`, plus each row group's adapter.
pub(crate) fn forward(
    y: &mut [f32],
    x: &[f32],
    weight: &PackedMatrix,
    bias: Option<&[f32]>,
    t: usize,
    accumulate: bool,
    groups: &[(Range<usize>, LoraRef<'_>)],
) {
    kernels::matmul(y, x, weight, t, accumulate);
    if let Some(bias) = bias {
        kernels::add_row(y, bias);
    }
    if !groups.is_empty() {
        kernels::lora(y, x, groups, weight.n(), weight.k());
    }
}

/// The row groups that have an adapter on this matrix.
pub(crate) fn lora_groups<'a>(
    adapters: &'a AdapterSet,
    rows: &[(Range<usize>, usize)],
    layer: usize,
    module: Module,
) -> Vec<(Range<usize>, LoraRef<'a>)> {
    rows.iter()
        .filter_map(|(range, slot)| Some((range.clone(), adapters.lora(*slot, layer, module)?)))
        .collect()
}
