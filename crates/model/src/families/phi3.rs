//! `phi3` (Phi-3, Phi-3.5, Phi-4): as Llama, with q, k, v stored as one matrix and gate, up as
//! another, the rotation of a part of each head, and a factor for each frequency in long contexts
//! (arXiv 2404.14219, 2402.13753; Hugging Face `Phi3ForCausalLM`).

use super::rope::{Rope, RopeBase};
use super::{Family, FamilySpec};
use crate::config::{DecoderConfig, Defaults, RawConfig};
use crate::error::ModelError;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    resolve,
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: None,
};

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    num_key_value_heads: None,
    head_dim: None,
};

/// What the reference takes for `original_max_position_embeddings` where it is not stated.
const ORIGINAL_CONTEXT: usize = 4096;

fn resolve(raw: &RawConfig<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    raw.silu()?;
    // Fields of the authors' own code, at the value that means nothing.
    for field in ["full_attn_mod", "interpolate_factor"] {
        if raw.size_or(field, 1)? != 1 {
            return Err(raw.bad(field, &raw.size(field)?.to_string(), "1"));
        }
    }
    let window = raw.nullable_size("sliding_window", None)?;
    let mut config = raw.decoder_with(family, &DEFAULTS, |raw, base| {
        Ok(vec![Rope::of(raw, &RopeBase { original: ORIGINAL_CONTEXT, ..*base })?])
    })?;
    config.fused_projections = true;
    config.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(config)
}
