//! `mistral`: as Llama, with a sliding window in every layer of the first release and a head size of
//! its own in Nemo (arXiv 2310.06825; Hugging Face `MistralForCausalLM`).

use super::{Family, FamilySpec};
use crate::config::{DecoderConfig, Defaults, RawConfig};
use crate::error::ModelError;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    resolve,
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: None,
};

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 131_072,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    num_key_value_heads: Some(8),
    head_dim: None,
};

fn resolve(raw: &RawConfig<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    raw.silu()?;
    // Files without the field are of the first release; later ones say null.
    let window = raw.nullable_size("sliding_window", Some(4096))?;
    let mut config = raw.decoder(family, &DEFAULTS)?;
    config.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(config)
}
