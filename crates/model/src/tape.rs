//! What the forward keeps for the backward.

use crate::batch::Layout;
use crate::config::{DecoderConfig, FeedForward, NormPlacement, QkNorm};
use crate::experts::ExpertActivations;

/// How much the tape keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapeMode {
    /// Each layer's input only; the backward computes the rest of a layer again
    /// (arXiv 1604.06174). Memory: L x T x H floats and one layer's activations.
    Recompute,
    /// Every activation of every layer: a quarter less arithmetic, far more memory.
    Keep,
}

/// Buffers of a training step, reused from step to step.
pub struct Tape {
    pub(crate) mode: TapeMode,
    /// Input of each layer and, last, of the final norm: L + 1 times [T, H].
    pub(crate) inputs: Vec<Vec<f32>>,
    /// One set of activations when recomputing, L when keeping.
    pub(crate) activations: Vec<Activations>,
    /// Transient pages of one layer.
    pub(crate) k_pages: Vec<f32>,
    pub(crate) v_pages: Vec<f32>,
    /// Rows of the forward, [logit rows, H], before the final norm.
    pub(crate) gathered: Vec<f32>,
    /// The batch of the last forward; the backward uses it up.
    pub(crate) layout: Option<Layout>,
}

impl Tape {
    /// An empty tape; buffers grow with the first batch.
    pub fn new(config: &DecoderConfig, mode: TapeMode) -> Tape {
        let sets = match mode {
            TapeMode::Recompute => 1,
            TapeMode::Keep => config.num_hidden_layers,
        };
        Tape {
            mode,
            inputs: vec![Vec::new(); config.num_hidden_layers + 1],
            activations: (0..sets).map(|_| Activations::default()).collect(),
            k_pages: Vec::new(),
            v_pages: Vec::new(),
            gathered: Vec::new(),
            layout: None,
        }
    }

    /// Which activations hold layer `layer`.
    pub(crate) fn activation_index(&self, layer: usize) -> usize {
        match self.mode {
            TapeMode::Recompute => 0,
            TapeMode::Keep => layer,
        }
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
    /// Makes room for `t` rows of layer `layer`.
    pub(crate) fn resize(&mut self, config: &DecoderConfig, layer: usize, t: usize) {
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
        for (buffer, width) in [
            (&mut self.attn_in, only(pre, h)),
            (&mut self.q_raw, only(qk_norm, q)),
            (&mut self.k_raw, only(qk_norm, kv)),
            (&mut self.q, q),
            (&mut self.k, kv),
            (&mut self.v, kv),
            (&mut self.attn_out, q),
            (&mut self.attn_y, only(apart, h)),
            (&mut self.mid, h),
            (&mut self.mlp_in, only(pre, h)),
            (&mut self.gate, i),
            (&mut self.up, i),
            (&mut self.act, i),
            (&mut self.mlp_y, only(apart, h)),
        ] {
            buffer.resize(t * width, 0.0);
        }
    }
}
