//! `llama`: RMSNorm before attention and feed-forward, rotary positions, SwiGLU, grouped KV heads
//! (arXiv 2302.13971, 2307.09288; Hugging Face `LlamaForCausalLM`).

use super::FamilySpec;
use crate::config::{DecoderConfig, RawConfig};
use crate::error::ModelError;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    resolve,
    // Old conversions store the rotary frequencies, which follow from config.json.
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: Some(0.781),
};

fn resolve(raw: &RawConfig<'_>) -> Result<DecoderConfig, ModelError> {
    if let Some(act) = raw.get("hidden_act")
        && act.as_str() != Some("silu")
    {
        return Err(raw.bad("hidden_act", &act.to_string(), "\"silu\""));
    }
    for flag in ["attention_bias", "mlp_bias"] {
        if raw.flag_or(flag, false)? {
            return Err(raw.bad(flag, "true", "false: this family's biases are not supported yet"));
        }
    }
    let hidden_size = raw.size("hidden_size")?;
    let num_attention_heads = raw.size("num_attention_heads")?;
    let head_dim = match raw.get("head_dim") {
        Some(_) => raw.size("head_dim")?,
        None if num_attention_heads > 0 && hidden_size.is_multiple_of(num_attention_heads) => {
            hidden_size / num_attention_heads
        }
        None => {
            return Err(raw.bad(
                "num_attention_heads",
                &num_attention_heads.to_string(),
                &format!("a divisor of hidden_size = {hidden_size} (or a head_dim field)"),
            ));
        }
    };
    Ok(DecoderConfig {
        family: super::by_model_type(SPEC.model_type).expect("the table holds this family"),
        hidden_size,
        intermediate_size: raw.size("intermediate_size")?,
        num_hidden_layers: raw.size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: raw.size_or("num_key_value_heads", num_attention_heads)?,
        head_dim,
        vocab_size: raw.size("vocab_size")?,
        max_position_embeddings: raw.size_or("max_position_embeddings", 2048)?,
        rms_norm_eps: raw.float_or("rms_norm_eps", 1e-6)? as f32,
        rope_theta: rope_theta(raw)?,
        tie_word_embeddings: raw.flag_or("tie_word_embeddings", false)?,
        bos_token_id: raw.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: raw.token_ids("eos_token_id")?,
    })
}

/// Plain rotary positions: `rope_theta` at the top (older files) or inside `rope_parameters`
/// (Transformers 5). Scaled variants change every logit, so they are refused by name.
fn rope_theta(raw: &RawConfig<'_>) -> Result<f32, ModelError> {
    let mut theta = raw.float_or("rope_theta", 10_000.0)?;
    for field in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = raw.get(field) else { continue };
        let Some(map) = rope.as_object() else {
            return Err(raw.bad(field, &rope.to_string(), "an object"));
        };
        for (key, value) in map {
            match (key.as_str(), value.as_str(), value.as_f64()) {
                ("rope_type" | "type", Some("default"), _) => {}
                ("rope_theta", _, Some(t)) => theta = t,
                _ => {
                    return Err(raw.bad(
                        &format!("{field}.{key}"),
                        &value.to_string(),
                        "unscaled rotary positions (rope_type \"default\"): this scaling is not supported yet",
                    ));
                }
            }
        }
    }
    Ok(theta as f32)
}
