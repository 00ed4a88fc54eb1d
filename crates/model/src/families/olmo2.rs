//! `olmo2` (OLMo 2): as Llama, with norms after each block and none before, and RMSNorm over all
//! query heads and all key heads together (arXiv 2501.00656; Hugging Face `Olmo2ForCausalLM`).

use super::{Family, FamilySpec};
use crate::config::{Biases, DecoderConfig, Defaults, NormPlacement, QkNorm, RawConfig};
use crate::error::ModelError;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    resolve,
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: None,
};

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    num_key_value_heads: None,
    head_dim: None,
};

fn resolve(raw: &RawConfig<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    raw.silu()?;
    let bias = raw.flag_or("attention_bias", false)?;
    Ok(DecoderConfig {
        norms: NormPlacement::Post,
        qk_norm: QkNorm::Whole,
        biases: Biases { qkv: bias, output: bias, mlp: false },
        ..raw.decoder(family, &DEFAULTS)?
    })
}
