//! `qwen2` (Qwen2 and Qwen2.5): as Llama, with biases on q, k and v, and a sliding window in the
//! upper layers where config.json turns it on (arXiv 2407.10671; Hugging Face `Qwen2ForCausalLM`).

use super::{Family, FamilySpec};
use crate::config::{DecoderConfig, Defaults, RawConfig};
use crate::error::ModelError;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
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
    head_dim: None,
};

fn resolve(raw: &RawConfig<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    raw.silu()?;
    let mut config = raw.decoder(family, &DEFAULTS)?;
    config.biases.qkv = true;
    windows(raw, &mut config)?;
    Ok(config)
}

/// The window is off unless `use_sliding_window`; which layers have it is listed in `layer_types`,
/// or it is those from `max_window_layers` on.
pub(super) fn windows(raw: &RawConfig<'_>, config: &mut DecoderConfig) -> Result<(), ModelError> {
    let on = raw.flag_or("use_sliding_window", false)?;
    let width = raw.nullable_size("sliding_window", Some(4096))?.filter(|_| on);
    let from = raw.size_or("max_window_layers", 28)?;
    let listed = raw.sliding_layers(config.num_hidden_layers)?;
    for (l, layer) in config.layers.iter_mut().enumerate() {
        let sliding = listed.as_ref().map_or(l >= from, |listed| listed[l]);
        layer.window = width.filter(|_| sliding);
    }
    Ok(())
}
