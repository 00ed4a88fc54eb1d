//! `mixtral`: as Mistral, with experts for the feed-forward block of every layer (arXiv 2401.04088;
//! Hugging Face `MixtralForCausalLM`).

use super::{Family, FamilySpec};
use crate::config::{DecoderConfig, Defaults, ExpertsConfig, FeedForward, RawConfig};
use crate::error::ModelError;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "mixtral",
    architecture: "MixtralForCausalLM",
    resolve,
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: None,
};

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 131_072,
    rms_norm_eps: 1e-5,
    rope_theta: 1_000_000.0,
    tie_word_embeddings: false,
    num_key_value_heads: Some(8),
    head_dim: None,
};

fn resolve(raw: &RawConfig<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    raw.silu()?;
    let noise = raw.float_or("router_jitter_noise", 0.0)?;
    if noise != 0.0 {
        let expected = "0: noise in training is not supported";
        return Err(raw.bad("router_jitter_noise", &noise.to_string(), expected));
    }
    let window = raw.nullable_size("sliding_window", None)?;
    let mut config = raw.decoder(family, &DEFAULTS)?;
    config.experts = Some(ExpertsConfig {
        num_experts: raw.size_or("num_local_experts", 8)?,
        top_k: raw.size_or("num_experts_per_tok", 2)?,
        intermediate_size: config.intermediate_size,
        normalized: true,
        names: ["block_sparse_moe", "w1", "w3", "w2"],
    });
    for layer in &mut config.layers {
        layer.window = window;
        layer.feed_forward = FeedForward::Experts;
    }
    Ok(config)
}
