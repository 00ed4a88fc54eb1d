//! `smollm3` (SmolLM3): as Llama, with queries and keys left unrotated in every fourth layer
//! (arXiv 2501.18795; Hugging Face `SmolLM3ForCausalLM`).

use super::{Family, FamilySpec};
use crate::config::{Biases, DecoderConfig, Defaults, RawConfig};
use crate::error::ModelError;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    resolve,
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: None,
};

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 32_768,
    rms_norm_eps: 1e-6,
    rope_theta: 2_000_000.0,
    tie_word_embeddings: true,
    num_key_value_heads: Some(4),
    head_dim: None,
};

fn resolve(raw: &RawConfig<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    raw.silu()?;
    let attention = raw.flag_or("attention_bias", false)?;
    let mlp = raw.flag_or("mlp_bias", false)?;
    let mut config = raw.decoder(family, &DEFAULTS)?;
    config.biases = Biases { qkv: attention, output: attention, mlp };
    let layers = config.num_hidden_layers;
    let interval = raw.size_or("no_rope_layer_interval", 4)?;
    if interval == 0 {
        return Err(raw.bad("no_rope_layer_interval", "0", "at least 1"));
    }
    // Despite its name the list holds 1 for the layers that are rotated.
    let rotated = raw.sizes("no_rope_layers")?.unwrap_or_else(|| {
        (0..layers).map(|l| usize::from(!(l + 1).is_multiple_of(interval))).collect()
    });
    if rotated.len() != layers || rotated.iter().any(|&r| r > 1) {
        let found = format!("{} entries", rotated.len());
        return Err(raw.bad("no_rope_layers", &found, &format!("{layers} times 0 or 1")));
    }
    let on = raw.flag_or("use_sliding_window", false)?;
    let window = raw.nullable_size("sliding_window", None)?.filter(|_| on);
    raw.ignore(&["max_window_layers"]);
    let listed = raw.sliding_layers(layers)?;
    for (l, layer) in config.layers.iter_mut().enumerate() {
        layer.rope = (rotated[l] == 1).then_some(0);
        let sliding = listed.as_ref().map_or(rotated[l] == 0, |listed| listed[l]);
        layer.window = window.filter(|_| sliding);
    }
    Ok(config)
}
