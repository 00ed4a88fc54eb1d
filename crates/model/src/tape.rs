//! What the forward keeps for the backward.

use crate::batch::Layout;
use crate::config::{DecoderConfig, FeedForward, NormPlacement, QkNorm};
use crate::experts::ExpertActivations;
use half::bf16;
use kernels::KvStore;

/// How much the tape keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapeMode {
    /// Each layer's input only; the backward computes the rest of a layer again
    /// (arXiv 1604.06174). Memory: L x T x H floats and one layer's activations.
    Recompute,
    /// Every activation of every layer: a quarter less arithmetic, far more memory.
    Keep,
    /// As [`TapeMode::Keep`], but what a matrix or attention yields is kept in bf16, and what takes no
    /// product is computed again: a third of the memory. The forward is not rounded; gradients are
    /// those of activations with seven bits. Layers of experts are computed again.
    KeepBf16,
}

/// Buffers of a training step, reused from step to step.
pub struct Tape {
    pub(crate) mode: TapeMode,
    /// Input of each layer and, last, of the final norm: L + 1 times [T, H].
    pub(crate) inputs: Vec<Vec<f32>>,
    /// L sets of activations when keeping them, otherwise one.
    pub(crate) activations: Vec<Activations>,
    /// Per layer, when keeping in bf16.
    pub(crate) rounded: Vec<Rounded>,
    /// Transient pages of one layer.
    pub(crate) k_pages: KvStore,
    pub(crate) v_pages: KvStore,
    /// Rows of the forward, [logit rows, H], before the final norm.
    pub(crate) gathered: Vec<f32>,
    /// The batch of the last forward; the backward uses it up.
    pub(crate) layout: Option<Layout>,
}

impl Tape {
    /// An empty tape; buffers grow with the first batch.
    pub fn new(config: &DecoderConfig, mode: TapeMode) -> Tape {
        let sets = if mode == TapeMode::Keep { config.num_hidden_layers } else { 1 };
        let rounded = if mode == TapeMode::KeepBf16 { config.num_hidden_layers } else { 0 };
        Tape {
            mode,
            inputs: vec![Vec::new(); config.num_hidden_layers + 1],
            activations: (0..sets).map(|_| Activations::default()).collect(),
            rounded: (0..rounded).map(|_| Rounded::default()).collect(),
            k_pages: KvStore::F32(Vec::new()),
            v_pages: KvStore::F32(Vec::new()),
            gathered: Vec::new(),
            layout: None,
        }
    }

    /// Bytes that a forward and backward of `tokens` tokens in `segments` sequences allocate, beside
    /// logits and the hidden rows they are made of.
    pub fn bytes(config: &DecoderConfig, mode: TapeMode, tokens: usize, segments: usize) -> usize {
        let h = config.hidden_size;
        let layers = 0..config.num_hidden_layers;
        let widths = layers.map(|l| Activations::widths(config, l).iter().sum::<usize>());
        let (largest, all) = (widths.clone().max().unwrap_or(0), widths.sum::<usize>());
        let rounded =
            (0..config.num_hidden_layers).map(|l| Rounded::width(config, l)).sum::<usize>();
        let kept = match mode {
            TapeMode::Recompute => largest,
            TapeMode::Keep => all,
            // Two bytes each.
            TapeMode::KeepBf16 => largest + rounded / 2,
        };
        // The backward has one gradient for each activation of a layer, but of two norms' outputs
        // only one; beside them the gradient of the stream and the layer's output, computed again.
        let inputs = (config.num_hidden_layers + 1) * h;
        let per_token = inputs + kept + largest + 2 * h;
        let pages = tokens.div_ceil(crate::BLOCK_SIZE) + segments;
        let pages = 2 * pages * crate::KvCache::numbers_per_block(config);
        (per_token * tokens + pages) * size_of::<f32>()
    }

    /// Which activations hold layer `layer`.
    pub(crate) fn activation_index(&self, layer: usize) -> usize {
        if self.mode == TapeMode::Keep { layer } else { 0 }
    }
}

/// Everything one layer computes on the way, T rows each. What a family does not have stays empty.
#[derive(Default)]
pub(crate) struct Activations {
    /// Normed input of attention, [T, H].
    pub(crate) attn_in: Vec<f32>,
    /// Queries and keys before their norm, [T, heads, D] and [T, KV heads, D].
    pub(crate) q_raw: Vec<f32>,
    pub(crate) k_raw: Vec<f32>,
    /// Rotated queries, [T, heads, D].
    pub(crate) q: Vec<f32>,
    /// Rotated keys, [T, KV heads, D].
    pub(crate) k: Vec<f32>,
    /// Values, [T, KV heads, D].
    pub(crate) v: Vec<f32>,
    /// Attention output, [T, heads, D].
    pub(crate) attn_out: Vec<f32>,
    /// What the attention block yields before it is normed or scaled, [T, H].
    pub(crate) attn_y: Vec<f32>,
    /// Residual stream after attention, [T, H].
    pub(crate) mid: Vec<f32>,
    /// Normed input of the feed-forward block, [T, H].
    pub(crate) mlp_in: Vec<f32>,
    /// [T, I]
    pub(crate) gate: Vec<f32>,
    /// [T, I]
    pub(crate) up: Vec<f32>,
    /// f(gate) * up, [T, I]
    pub(crate) act: Vec<f32>,
    /// What the experts compute, in place of gate, up and act.
    pub(crate) experts: ExpertActivations,
    /// What the feed-forward block yields before it is normed or scaled, [T, H].
    pub(crate) mlp_y: Vec<f32>,
}

impl Activations {
    /// Values per token of each of [`Activations::buffers`].
    fn widths(config: &DecoderConfig, layer: usize) -> [usize; 14] {
        let h = config.hidden_size;
        let i = match config.layers[layer].feed_forward {
            FeedForward::Dense => config.intermediate_size,
            FeedForward::Experts => 0,
        };
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let only = |wanted: bool, width: usize| if wanted { width } else { 0 };
        let pre = config.norms != NormPlacement::Post;
        let qk_norm = config.qk_norm != QkNorm::None;
        let apart = !config.adds_directly();
        [
            only(qk_norm, q),
            only(qk_norm, kv),
            q,
            kv,
            kv,
            q,
            only(apart, h),
            h,
            i,
            i,
            only(apart, h),
            only(pre, h),
            only(pre, h),
            i,
        ]
    }

    /// Of [`Activations::buffers`], those that cost a product.
    const PRODUCTS: usize = 11;

    /// The buffers but for the experts': first what a matrix or attention yields or its norm, then the
    /// normed inputs and f(gate)·up.
    fn buffers(&mut self) -> [&mut Vec<f32>; 14] {
        [
            &mut self.q_raw,
            &mut self.k_raw,
            &mut self.q,
            &mut self.k,
            &mut self.v,
            &mut self.attn_out,
            &mut self.attn_y,
            &mut self.mid,
            &mut self.gate,
            &mut self.up,
            &mut self.mlp_y,
            &mut self.attn_in,
            &mut self.mlp_in,
            &mut self.act,
        ]
    }

    /// Makes room for `t` rows of layer `layer`.
    pub(crate) fn resize(&mut self, config: &DecoderConfig, layer: usize, t: usize) {
        for (buffer, width) in self.buffers().into_iter().zip(Activations::widths(config, layer)) {
            buffer.resize(t * width, 0.0);
        }
    }
}

/// What [`TapeMode::KeepBf16`] keeps of one layer: its products.
#[derive(Default)]
pub(crate) struct Rounded {
    buffers: [Vec<bf16>; Activations::PRODUCTS],
}

impl Rounded {
    /// Values per token.
    fn width(config: &DecoderConfig, layer: usize) -> usize {
        match config.layers[layer].feed_forward {
            FeedForward::Dense => {
                Activations::widths(config, layer)[..Activations::PRODUCTS].iter().sum()
            }
            FeedForward::Experts => 0,
        }
    }

    /// Takes over what `acts` hold.
    pub(crate) fn keep(&mut self, acts: &mut Activations) {
        for (to, from) in self.buffers.iter_mut().zip(acts.buffers()) {
            to.resize(from.len(), bf16::ZERO);
            kernels::to_bf16(to, from);
        }
    }

    /// Gives it back; the rest of `acts` is only made room for.
    pub(crate) fn restore(
        &self,
        acts: &mut Activations,
        config: &DecoderConfig,
        layer: usize,
        t: usize,
    ) {
        acts.resize(config, layer, t);
        for (from, to) in self.buffers.iter().zip(acts.buffers()) {
            kernels::from_bf16(to, from);
        }
    }
}
