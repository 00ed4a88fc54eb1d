//! `llama`: RMSNorm before attention and feed-forward, rotary positions, SwiGLU, grouped KV heads
//! (arXiv 2302.13971, 2307.09288; Hugging Face `LlamaForCausalLM`). Also what was published in its
//! form: SmolLM, TinyLlama, Yi.

use super::{Family, FamilySpec};
use crate::config::{Biases, DecoderConfig, Defaults, RawConfig};
use crate::error::ModelError;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    resolve,
    // Old conversions store the rotary frequencies, which follow from config.json.
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: Some(0.781),
};

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    num_key_value_heads: None,
    head_dim: None,
};

fn resolve(raw: &RawConfig<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    raw.silu()?;
    let attention = raw.flag_or("attention_bias", false)?;
    let mlp = raw.flag_or("mlp_bias", false)?;
    Ok(DecoderConfig {
        biases: Biases { qkv: attention, output: attention, mlp },
        ..raw.decoder(family, &DEFAULTS)?
    })
}
