//! `gemma2`: norms before and after each block with weights stored as w - 1, GELU in place of SiLU,
//! embeddings times sqrt(H), soft caps on attention scores and logits, and a sliding window in
//! every other layer (arXiv 2408.00118; Hugging Face `Gemma2ForCausalLM`).

use super::{Family, FamilySpec};
use crate::config::{Biases, DecoderConfig, Defaults, NormPlacement, NormWeightForm, RawConfig};
use crate::error::ModelError;
use kernels::Activation;

pub(crate) const SPEC: FamilySpec = FamilySpec {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    resolve,
    ignored_tensors: &["rotary_emb.inv_freq"],
    lora_lr_exponent: None,
};

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 8192,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: true,
    num_key_value_heads: Some(4),
    head_dim: Some(256),
};

fn resolve(raw: &RawConfig<'_>, family: Family) -> Result<DecoderConfig, ModelError> {
    let config = raw.decoder(family, &DEFAULTS)?;
    let mut config = common(raw, config)?;
    config.attention_softcap = raw.nullable_float("attn_logit_softcapping", Some(50.0))?;
    config.final_softcap = raw.nullable_float("final_logit_softcapping", Some(30.0))?;
    let window = raw.nullable_size("sliding_window", Some(4096))?;
    let listed = raw.sliding_layers(config.num_hidden_layers)?;
    for (l, layer) in config.layers.iter_mut().enumerate() {
        let sliding = listed.as_ref().map_or(l % 2 == 0, |listed| listed[l]);
        layer.window = window.filter(|_| sliding);
    }
    Ok(config)
}

/// What the second and third generation share.
pub(super) fn common(
    raw: &RawConfig<'_>,
    config: DecoderConfig,
) -> Result<DecoderConfig, ModelError> {
    // Published files also carry `hidden_act`, which the reference does not look at.
    raw.ignore(&["hidden_act"]);
    if let Some(act) = raw.get("hidden_activation")
        && act.as_str() != Some("gelu_pytorch_tanh")
    {
        return Err(raw.bad("hidden_activation", &act.to_string(), "\"gelu_pytorch_tanh\""));
    }
    let bias = raw.flag_or("attention_bias", false)?;
    Ok(DecoderConfig {
        activation: Activation::GeluTanh,
        norms: NormPlacement::PrePost,
        norm_weight: NormWeightForm::OnePlus,
        biases: Biases { qkv: bias, output: bias, mlp: false },
        attention_scale: (1.0 / raw.float_or("query_pre_attn_scalar", 256.0)?.sqrt()) as f32,
        embedding_scale: (config.hidden_size as f32).sqrt(),
        ..config
    })
}
