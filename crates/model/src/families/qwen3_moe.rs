//! `qwen3_moe` (Qwen3 with experts): as Qwen3, with experts for the feed-forward block of all layers
//! but those that config.json lists as dense (arXiv 2505.09388; Hugging Face `Qwen3MoeForCausalLM`).

use super::{Family, FamilySpec};
use crate::config::{
    Biases, DecoderConfig, Defaults, ExpertsConfig, FeedForward, QkNorm, RawConfig,
};
use crate::error::ModelError;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    resolve,
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: Some(0.0775),
};

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 32_768,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    num_key_value_heads: Some(4),
    head_dim: None,
};

fn resolve(raw: &RawConfig<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    raw.silu()?;
    let mut config = raw.decoder(family, &DEFAULTS)?;
    let bias = raw.flag_or("attention_bias", false)?;
    config.biases = Biases { qkv: bias, output: bias, mlp: false };
    config.qk_norm = QkNorm::PerHead;
    // In the reference the window, where it is on, is in every layer.
    raw.ignore(&["max_window_layers"]);
    let on = raw.flag_or("use_sliding_window", false)?;
    let window = raw.nullable_size("sliding_window", Some(4096))?.filter(|_| on);
    let num_experts = raw.size_or("num_local_experts", 128)?;
    config.experts = Some(ExpertsConfig {
        num_experts: raw.size_or("num_experts", num_experts)?,
        top_k: raw.size_or("num_experts_per_tok", 8)?,
        intermediate_size: raw.size_or("moe_intermediate_size", 768)?,
        normalized: raw.flag_or("norm_topk_prob", false)?,
        names: ["mlp", "gate_proj", "up_proj", "down_proj"],
    });
    let step = raw.size_or("decoder_sparse_step", 1)?;
    if step == 0 {
        return Err(raw.bad("decoder_sparse_step", "0", "at least 1"));
    }
    let dense = raw.sizes("mlp_only_layers")?.unwrap_or_default();
    for (l, layer) in config.layers.iter_mut().enumerate() {
        layer.window = window;
        if !dense.contains(&l) && (l + 1).is_multiple_of(step) {
            layer.feed_forward = FeedForward::Experts;
        }
    }
    Ok(config)
}
