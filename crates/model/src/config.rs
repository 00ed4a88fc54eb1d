//! `config.json` with Hugging Face names, read once and validated.

use crate::error::ModelError;
use crate::families::{self, Family};
use crate::files::read_json_bytes;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The shape of a decoder, validated: no size is zero or absurd, heads divide.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Which family's rules apply.
    pub family: Family,
    /// H
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// L
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// D
    pub head_dim: usize,
    /// V
    pub vocab_size: usize,
    /// Longest context in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies (arXiv 2104.09864).
    pub rope_theta: f32,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// First token of a sequence, when the model names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
}

impl DecoderConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// [`ModelError::MissingFile`], or [`ModelError::Config`] naming the field, what was found and
    /// what was expected; fields that would change the result and are not understood are refused.
    pub fn load(dir: &Path) -> Result<DecoderConfig, ModelError> {
        let path = dir.join("config.json");
        if !path.is_file() {
            return Err(ModelError::MissingFile {
                dir: dir.to_owned(),
                missing: "config.json".into(),
                hint:
                    "hint: a model is a folder with config.json, *.safetensors and tokenizer.json, \
                       as published on the Hugging Face Hub"
                        .into(),
            });
        }
        Self::from_json(&read_json_bytes(&path)?, &path)
    }

    /// Parses the bytes of a `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// As [`DecoderConfig::load`].
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<DecoderConfig, ModelError> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|e| ModelError::config(path, format!("not valid JSON: {e}")))?;
        let Value::Object(map) = value else {
            return Err(ModelError::config(path, "expected a JSON object at the top"));
        };
        let raw = RawConfig { map: &map, path };
        let model_type: String = raw.string("model_type")?;
        let family = families::by_model_type(&model_type).ok_or_else(|| {
            raw.bad(
                "model_type",
                &format!("\"{model_type}\""),
                &format!("one of the supported families: {}", families::names().join(", ")),
            )
        })?;
        let config = (family.spec().resolve)(&raw)?;
        config.validate(&raw)?;
        Ok(config)
    }

    fn validate(&self, raw: &RawConfig<'_>) -> Result<(), ModelError> {
        // Bounds far above any published model, low enough that no product overflows.
        for (field, value, most) in [
            ("hidden_size", self.hidden_size, 1 << 17),
            ("intermediate_size", self.intermediate_size, 1 << 19),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("vocab_size", self.vocab_size, 1 << 22),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 26),
        ] {
            if value == 0 || value > most {
                return Err(raw.bad(field, &value.to_string(), &format!("1 to {most}")));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(raw.bad(
                "num_key_value_heads",
                &self.num_key_value_heads.to_string(),
                &format!("a divisor of num_attention_heads = {}", self.num_attention_heads),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(raw.bad(
                "head_dim",
                &self.head_dim.to_string(),
                "an even number (rotary pairs)",
            ));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(raw.bad("rms_norm_eps", &self.rms_norm_eps.to_string(), "between 0 and 1"));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(raw.bad("rope_theta", &self.rope_theta.to_string(), "a positive number"));
        }
        Ok(())
    }

    /// Inverse rotary frequencies, [D/2]: theta^(-2i/D).
    pub(crate) fn inv_freq(&self) -> Vec<f32> {
        (0..self.head_dim / 2)
            .map(|i| (self.rope_theta as f64).powf(-2.0 * i as f64 / self.head_dim as f64) as f32)
            .collect()
    }

    /// The same configuration as a Hugging Face `config.json`; `dtype` is its name for the
    /// weights' type ("float32", "bfloat16").
    pub(crate) fn to_json(&self, dtype: &str) -> Value {
        json!({
            "architectures": [self.family.spec().architecture],
            "model_type": self.family.spec().model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps as f64,
            "rope_theta": self.rope_theta as f64,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": false,
            "mlp_bias": false,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_ids,
            "torch_dtype": dtype,
        })
    }
}

/// The JSON as typed, with accessors that name the field when it is wrong.
pub(crate) struct RawConfig<'a> {
    pub(crate) map: &'a Map<String, Value>,
    path: &'a Path,
}

impl RawConfig<'_> {
    pub(crate) fn bad(&self, field: &str, found: &str, expected: &str) -> ModelError {
        ModelError::config(self.path, format!("{field}: found {found}, expected {expected}"))
    }

    /// The field, with JSON null counted as absent.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    fn required(&self, field: &str, expected: &str) -> Result<&Value, ModelError> {
        self.get(field).ok_or_else(|| self.bad(field, "nothing", expected))
    }

    pub(crate) fn string(&self, field: &str) -> Result<String, ModelError> {
        let value = self.required(field, "a string")?;
        value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| self.bad(field, &value.to_string(), "a string"))
    }

    pub(crate) fn size(&self, field: &str) -> Result<usize, ModelError> {
        let value = self.required(field, "a whole number")?;
        value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| self.bad(field, &value.to_string(), "a whole number of at least 1"))
    }

    pub(crate) fn size_or(&self, field: &str, default: usize) -> Result<usize, ModelError> {
        if self.get(field).is_some() { self.size(field) } else { Ok(default) }
    }

    pub(crate) fn float_or(&self, field: &str, default: f64) -> Result<f64, ModelError> {
        match self.get(field) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| self.bad(field, &v.to_string(), "a number")),
        }
    }

    pub(crate) fn flag_or(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(field) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.bad(field, &v.to_string(), "true or false")),
        }
    }

    /// A token id, or a list of them.
    pub(crate) fn token_ids(&self, field: &str) -> Result<Vec<u32>, ModelError> {
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let ids = match value {
            Value::Array(list) => list.iter().map(one).collect::<Option<Vec<u32>>>(),
            v => one(v).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.bad(field, &value.to_string(), "a token id or a list of them"))
    }
}
