//! `gemma3_text` (Gemma 3 without the vision part): as Gemma 2 without soft caps on scores, with norms
//! on each query and key head, and two rotations: one for the layers with a sliding window, one for
//! every sixth, which sees everything (arXiv 2503.19786; Hugging Face `Gemma3ForCausalLM`).

use super::rope::{Rope, RopeBase};
use super::{Family, FamilySpec};
use crate::config::{DecoderConfig, Defaults, QkNorm, RawConfig};
use crate::error::ModelError;
use serde_json::{Map, Value};

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    resolve,
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: None,
};

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 131_072,
    rms_norm_eps: 1e-6,
    rope_theta: 1_000_000.0,
    tie_word_embeddings: true,
    num_key_value_heads: Some(4),
    head_dim: Some(256),
};

/// Indices in `ropes`.
const GLOBAL: usize = 0;
const LOCAL: usize = 1;

fn resolve(raw: &RawConfig<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    let config = raw.decoder_with(family, &DEFAULTS, ropes)?;
    let mut config = super::gemma2::common(raw, config)?;
    config.qk_norm = QkNorm::PerHead;
    config.final_softcap = raw.nullable_float("final_logit_softcapping", None)?;
    let window = raw.nullable_size("sliding_window", Some(4096))?;
    let pattern = raw.size_or("_sliding_window_pattern", 6)?;
    let pattern = raw.size_or("sliding_window_pattern", pattern)?;
    if pattern == 0 {
        return Err(raw.bad("sliding_window_pattern", "0", "at least 1"));
    }
    let listed = raw.sliding_layers(config.num_hidden_layers)?;
    for (l, layer) in config.layers.iter_mut().enumerate() {
        let every = !(l + 1).is_multiple_of(pattern);
        let sliding = listed.as_ref().map_or(every, |listed| listed[l]);
        layer.rope = Some(if sliding { LOCAL } else { GLOBAL });
        layer.window = window.filter(|_| sliding);
    }
    Ok(config)
}

/// By kind of layer inside `rope_parameters` (Transformers 5), or `rope_theta`, `rope_scaling` (both
/// of the global layers) and `rope_local_base_freq` at the top.
fn ropes(raw: &RawConfig<'_>, base: &RopeBase) -> Result<Vec<Rope>, ModelError> {
    let global = RopeBase { theta: raw.float_or("rope_theta", base.theta)?, ..*base };
    let local = RopeBase { theta: raw.float_or("rope_local_base_freq", 10_000.0)?, ..*base };
    let empty = Map::new();
    let by_kind = raw.object("rope_parameters")?.unwrap_or(&empty);
    let kinds = ["full_attention", "sliding_attention"];
    if let Some((key, value)) = by_kind.iter().find(|(k, _)| !kinds.contains(&k.as_str())) {
        let expected = "only \"full_attention\" and \"sliding_attention\"";
        return Err(raw.bad(&format!("rope_parameters.{key}"), &value.to_string(), expected));
    }
    let of = |kind: &str| match by_kind.get(kind) {
        None | Some(Value::Null) => Ok(&empty),
        Some(Value::Object(map)) => Ok(map),
        Some(other) => {
            Err(raw.bad(&format!("rope_parameters.{kind}"), &other.to_string(), "an object"))
        }
    };
    let (full, sliding) = (of("full_attention")?, of("sliding_attention")?);
    let global = match raw.object("rope_scaling")? {
        Some(map) => Rope::parse(raw, "rope_scaling", map, &global, 1.0)?,
        None => Rope::parse(raw, "rope_parameters.full_attention", full, &global, 1.0)?,
    };
    let local = Rope::parse(raw, "rope_parameters.sliding_attention", sliding, &local, 1.0)?;
    Ok(vec![global, local])
}
