//! A frozen or trained matrix and, per row group, the adapter on top of it.

use crate::adapter::AdapterSet;
use kernels::{LoraRef, PackedMatrix};
use std::ops::Range;

/// The seven matrices of a layer, in the order used everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub(crate) const ALL: [Module; 7] =
        [Module::Q, Module::K, Module::V, Module::O, Module::Gate, Module::Up, Module::Down];

    /// Hugging Face's short name.
    pub(crate) fn short_name(self) -> &'static str {
        match self {
            Module::Q => "q_proj",
            Module::K => "k_proj",
            Module::V => "v_proj",
            Module::O => "o_proj",
            Module::Gate => "gate_proj",
            Module::Up => "up_proj",
            Module::Down => "down_proj",
        }
    }

    /// Hugging Face's full module name in layer `layer`.
    pub(crate) fn full_name(self, layer: usize) -> String {
        let block = match self {
            Module::Q | Module::K | Module::V | Module::O => "self_attn",
            _ => "mlp",
        };
        format!("model.layers.{layer}.{block}.{}", self.short_name())
    }

    /// (out, in) of this matrix.
    pub(crate) fn shape(self, config: &crate::DecoderConfig) -> (usize, usize) {
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
}

/// y[T, out] = x[T, in] W^T, or y += when `accumulate`, plus each row group's adapter.
pub(crate) fn forward(
    y: &mut [f32],
    x: &[f32],
    weight: &PackedMatrix,
    t: usize,
    accumulate: bool,
    groups: &[(Range<usize>, LoraRef<'_>)],
) {
    kernels::matmul(y, x, weight, t, accumulate);
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
