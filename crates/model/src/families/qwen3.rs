//! `qwen3`: as Llama, with RMSNorm on each query and key head and a head size of its own; the window
//! is stated as in Qwen2 (arXiv 2505.09388; Hugging Face `Qwen3ForCausalLM`).

use super::{Family, FamilySpec};
use crate::config::{Biases, DecoderConfig, Defaults, QkNorm, RawConfig};
use crate::error::ModelError;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    resolve,
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: Some(0.0775),
};

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 32_768,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    num_key_value_heads: Some(32),
    head_dim: Some(128),
};

fn resolve(raw: &RawConfig<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    raw.silu()?;
    let mut config = raw.decoder(family, &DEFAULTS)?;
    let bias = raw.flag_or("attention_bias", false)?;
    config.biases = Biases { qkv: bias, output: bias, mlp: false };
    config.qk_norm = QkNorm::PerHead;
    super::qwen2::windows(raw, &mut config)?;
    Ok(config)
}
