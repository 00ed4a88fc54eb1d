//! `granite` (Granite 3): as Llama, with factors on embeddings, attention scores, what blocks add to
//! the residual stream, and logits (Hugging Face `GraniteForCausalLM`; after arXiv 2203.03466).

use super::{Family, FamilySpec};
use crate::config::{Biases, DecoderConfig, Defaults, RawConfig};
use crate::error::ModelError;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "granite",
    architecture: "GraniteForCausalLM",
    resolve,
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: None,
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
    let factor = |field| raw.float_or(field, 1.0).map(|x| x as f32);
    Ok(DecoderConfig {
        biases: Biases { qkv: attention, output: attention, mlp },
        attention_scale: factor("attention_multiplier")?,
        embedding_scale: factor("embedding_multiplier")?,
        residual_scale: factor("residual_multiplier")?,
        logits_scale: 1.0 / factor("logits_scaling")?,
        ..raw.decoder(family, &DEFAULTS)?
    })
}
