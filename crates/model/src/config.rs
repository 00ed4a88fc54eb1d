//! `config.json` with Hugging Face names, read once and validated. A family turns it into plain
//! fields: what differs between families is data here, not code in the decoder.

use crate::error::ModelError;
use crate::families::rope::{Rope, RopeBase};
use crate::families::{self, Family};
use crate::files::read_json_bytes;
use kernels::{Activation, AttnRule};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The shape and rules of a decoder, validated: no size is zero or absurd, heads divide.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Which family's file resolved this.
    pub family: Family,
    /// H
    pub hidden_size: usize,
    /// I: width of a dense feed-forward block.
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
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// First token of a sequence, when the model names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,

    /// What the gate of the feed-forward block goes through.
    pub activation: Activation,
    /// Where a layer's norms stand.
    pub norms: NormPlacement,
    /// What the stored weight w of a norm stands for.
    pub norm_weight: NormWeightForm,
    /// Norms of queries and keys before the rotation.
    pub qk_norm: QkNorm,
    /// Which projections carry a bias.
    pub biases: Biases,
    /// Whether q, k, v are stored as one `qkv_proj` and gate, up as one `gate_up_proj`.
    pub fused_projections: bool,
    /// The scale of attention scores; most families take 1/sqrt(D).
    pub attention_scale: f32,
    /// Soft cap of attention scores.
    pub attention_softcap: Option<f32>,
    /// Soft cap of logits.
    pub final_softcap: Option<f32>,
    /// Embeddings are multiplied by this.
    pub embedding_scale: f32,
    /// What a block adds to the residual stream is multiplied by this.
    pub residual_scale: f32,
    /// Logits are multiplied by this.
    pub logits_scale: f32,
    /// The rotations that layers choose from.
    pub(crate) ropes: Vec<Rope>,
    /// What differs by layer, [L].
    pub layers: Vec<LayerConfig>,
    /// The mixture of experts that some layers have for a feed-forward block.
    pub experts: Option<ExpertsConfig>,
    /// The file as it was read, which is also how it is saved.
    pub(crate) raw: Map<String, Value>,
}

/// What differs by layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// A token sees the last so many positions, its own included; None is all.
    pub window: Option<usize>,
    /// Index of the rotation; None leaves queries and keys as they are (arXiv 2305.19466).
    pub rope: Option<usize>,
    /// The kind of feed-forward block.
    pub feed_forward: FeedForward,
}

/// The kind of feed-forward block of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// down(f(gate(x)) · up(x))
    Dense,
    /// A weighted sum of the few such blocks that a router chooses for a token.
    Experts,
}

/// A mixture of experts (arXiv 1701.06538, 2401.04088).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// E
    pub num_experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width of one expert.
    pub intermediate_size: usize,
    /// Whether the chosen experts' probabilities are made to sum to one.
    pub normalized: bool,
    /// Names of the block, and of an expert's gate, up and down matrices, in the files.
    pub(crate) names: [&'static str; 4],
}

/// Where a layer's norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// x + block(norm(x))
    Pre,
    /// x + norm(block(norm(x)))
    PrePost,
    /// x + norm(block(x))
    Post,
}

/// What the stored weight w of a norm stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormWeightForm {
    /// Rows are multiplied by w.
    Plain,
    /// Rows are multiplied by 1 + w.
    OnePlus,
}

/// Norms of queries and keys before the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself, with one weight [D] for all.
    PerHead,
    /// All heads together, with a weight of the whole width.
    Whole,
}

/// Which projections carry a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// q, k and v.
    pub qkv: bool,
    /// The output projection of attention.
    pub output: bool,
    /// gate, up and down.
    pub mlp: bool,
}

/// What a family takes where config.json is silent (the defaults of its Transformers class).
pub(crate) struct Defaults {
    pub(crate) max_position_embeddings: usize,
    pub(crate) rms_norm_eps: f64,
    pub(crate) rope_theta: f64,
    pub(crate) tie_word_embeddings: bool,
    /// None is as many as query heads.
    pub(crate) num_key_value_heads: Option<usize>,
    /// None is H / heads.
    pub(crate) head_dim: Option<usize>,
}

impl DecoderConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// [`ModelError::MissingFile`], or [`ModelError::Config`] naming the field, what was found and
    /// what was expected; fields that would change the result and are not understood are refused.
    pub fn load(dir: &Path) -> Result<DecoderConfig, ModelError> {
        let (path, bytes) = read_config(dir)?;
        Self::from_json(&bytes, &path)
    }

    /// Parses the bytes of a `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// As [`DecoderConfig::load`].
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<DecoderConfig, ModelError> {
        parse_config(bytes, path, |raw, model_type| {
            let family = families::by_model_type(model_type).ok_or_else(|| {
                let names = families::names().join(", ");
                let expected = match families::encoder(model_type) {
                    Some(_) => format!("a decoder; this is an encoder, which only makes embeddings (`metier embed`, `metier serve`). The decoders: {names}"),
                    None => format!("one of the supported families: {names}"),
                };
                raw.bad("model_type", &format!("\"{model_type}\""), &expected)
            })?;
            let config = (family.spec().resolve)(raw, family)?;
            raw.nothing_unread()?;
            config.validate(raw)?;
            Ok(config)
        })
    }

    /// Every linear layer that can carry LoRA, by Hugging Face's short name, in the order of a
    /// layer's computation.
    pub fn target_modules(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for layer in 0..self.num_hidden_layers {
            for linear in self.linears(layer) {
                if !names.contains(&linear.short_name()) {
                    names.push(linear.short_name());
                }
            }
        }
        names
    }

    /// The length that a sequence must not pass with keys rotated for a shorter one: where a
    /// sequence grows beyond this many tokens, all of it is to be computed again (`longrope`).
    pub fn rope_switch(&self) -> Option<usize> {
        self.ropes.iter().find_map(|r| r.long.as_ref().map(|l| l.0))
    }

    pub(crate) fn attn_rule(&self, layer: usize) -> AttnRule {
        AttnRule {
            scale: self.attention_scale,
            window: self.layers[layer].window,
            softcap: self.attention_softcap,
        }
    }

    /// Whether a block's output goes into the residual stream as it is.
    pub(crate) fn adds_directly(&self) -> bool {
        self.norms == NormPlacement::Pre && self.residual_scale == 1.0
    }

    fn validate(&self, raw: &RawConfig<'_>) -> Result<(), ModelError> {
        let experts = self.experts.unwrap_or(ExpertsConfig {
            num_experts: 1,
            top_k: 1,
            intermediate_size: 1,
            normalized: false,
            names: [""; 4],
        });
        // Bounds far above any published model, low enough that no product overflows.
        for (field, value, most) in [
            ("hidden_size", self.hidden_size, 1 << 17),
            ("intermediate_size", self.intermediate_size, 1 << 19),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 12),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("vocab_size", self.vocab_size, 1 << 22),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 26),
            ("num_experts", experts.num_experts, 1 << 12),
            ("num_experts_per_tok", experts.top_k, experts.num_experts),
            ("moe_intermediate_size", experts.intermediate_size, 1 << 19),
        ] {
            if value == 0 || value > most {
                return Err(raw.bad(field, &value.to_string(), &format!("1 to {most}")));
            }
        }
        if experts.num_experts * self.num_hidden_layers > 1 << 16 {
            return Err(raw.bad(
                "num_experts",
                &format!("{} in {} layers", experts.num_experts, self.num_hidden_layers),
                "at most 65536 experts in all layers together",
            ));
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
        for (field, value) in [
            ("the scale of attention scores", self.attention_scale),
            ("embedding_multiplier", self.embedding_scale),
            ("residual_multiplier", self.residual_scale),
            ("logits_scaling", self.logits_scale),
            ("attn_logit_softcapping", self.attention_softcap.unwrap_or(1.0)),
            ("final_logit_softcapping", self.final_softcap.unwrap_or(1.0)),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(raw.bad(field, &value.to_string(), "a positive number"));
            }
        }
        Ok(())
    }

    /// The same configuration as it was read, but for the type of the weights; `dtype` is Hugging
    /// Face's name for it ("float32", "bfloat16").
    pub(crate) fn to_json(&self, dtype: &str) -> Value {
        let mut map = self.raw.clone();
        map.entry("architectures").or_insert_with(|| json!([self.family.spec().architecture]));
        // Transformers 5 writes `dtype`, older files have `torch_dtype`, which both read.
        let old = map.contains_key("torch_dtype") || !map.contains_key("dtype");
        map.insert(if old { "torch_dtype" } else { "dtype" }.to_owned(), json!(dtype));
        Value::Object(map)
    }
}

/// The config.json of the model folder `dir`: its path and its bytes.
///
/// # Errors
/// [`ModelError::MissingFile`], [`ModelError::Io`].
pub(crate) fn read_config(dir: &Path) -> Result<(PathBuf, Vec<u8>), ModelError> {
    let path = dir.join("config.json");
    if !path.is_file() {
        return Err(ModelError::MissingFile {
            dir: dir.to_owned(),
            missing: "config.json".into(),
            hint:
                "hint: a model is a folder with config.json, *.safetensors and tokenizer.json, as \
                   published on the Hugging Face Hub"
                    .into(),
        });
    }
    let bytes = read_json_bytes(&path)?;
    Ok((path, bytes))
}

/// Parses the bytes of a `config.json` and has `resolve` read it, given its `model_type`.
///
/// # Errors
/// [`ModelError::Config`], and what `resolve` says.
pub(crate) fn parse_config<T>(
    bytes: &[u8],
    path: &Path,
    resolve: impl FnOnce(&RawConfig<'_>, &str) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| ModelError::config(path, format!("not valid JSON: {e}")))?;
    let Value::Object(map) = value else {
        return Err(ModelError::config(path, "expected a JSON object at the top"));
    };
    let raw = RawConfig { map: &map, path, read: RefCell::default() };
    if let Some(value) = raw.get("quantization_config") {
        return Err(raw.bad(
            "quantization_config",
            &value.to_string(),
            "none: weights in this form are not supported; use the model as published in bf16",
        ));
    }
    let model_type = raw.string("model_type")?;
    resolve(&raw, &model_type)
}

/// Most layers; bounds what is allocated before the weights are looked at.
pub(crate) const MAX_LAYERS: usize = 1 << 10;
const MAX_HEAD_DIM: usize = 1 << 12;

/// The JSON as typed, with accessors that name the field when it is wrong and note which fields
/// were asked for: what nobody asked for is not understood.
pub(crate) struct RawConfig<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> RawConfig<'a> {
    /// What all families share: the sizes, and everything else as Llama has it, with plain rotary
    /// positions in every layer.
    pub(crate) fn decoder(
        &self,
        family: Family,
        defaults: &Defaults,
    ) -> Result<DecoderConfig, ModelError> {
        self.decoder_with(family, defaults, |raw, base| Ok(vec![Rope::of(raw, base)?]))
    }

    /// As [`RawConfig::decoder`], with the rotations that `ropes` makes; layers take the first.
    pub(crate) fn decoder_with(
        &self,
        family: Family,
        defaults: &Defaults,
        ropes: impl FnOnce(&Self, &RopeBase) -> Result<Vec<Rope>, ModelError>,
    ) -> Result<DecoderConfig, ModelError> {
        let hidden_size = self.size("hidden_size")?;
        let num_attention_heads = self.size("num_attention_heads")?;
        let head_dim = match (self.get("head_dim"), defaults.head_dim) {
            (Some(_), _) => self.size("head_dim")?,
            (None, Some(default)) => default,
            (None, None)
                if num_attention_heads > 0 && hidden_size.is_multiple_of(num_attention_heads) =>
            {
                hidden_size / num_attention_heads
            }
            (None, None) => {
                return Err(self.bad(
                    "num_attention_heads",
                    &num_attention_heads.to_string(),
                    &format!("a divisor of hidden_size = {hidden_size} (or a head_dim field)"),
                ));
            }
        };
        // Before anything is made of these sizes.
        let num_hidden_layers = self.size("num_hidden_layers")?;
        for (field, value, most) in [
            ("num_hidden_layers", num_hidden_layers, MAX_LAYERS),
            ("head_dim", head_dim, MAX_HEAD_DIM),
        ] {
            if value == 0 || value > most {
                return Err(self.bad(field, &value.to_string(), &format!("1 to {most}")));
            }
        }
        let max_position_embeddings =
            self.size_or("max_position_embeddings", defaults.max_position_embeddings)?;
        let rope = RopeBase {
            theta: defaults.rope_theta,
            head_dim,
            context: max_position_embeddings,
            original: max_position_embeddings,
        };
        let layer = LayerConfig { window: None, rope: Some(0), feed_forward: FeedForward::Dense };
        Ok(DecoderConfig {
            family,
            hidden_size,
            intermediate_size: self.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: self.size_or(
                "num_key_value_heads",
                defaults.num_key_value_heads.unwrap_or(num_attention_heads),
            )?,
            head_dim,
            vocab_size: self.size("vocab_size")?,
            max_position_embeddings,
            rms_norm_eps: self.float_or("rms_norm_eps", defaults.rms_norm_eps)? as f32,
            tie_word_embeddings: self
                .flag_or("tie_word_embeddings", defaults.tie_word_embeddings)?,
            bos_token_id: self.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: self.token_ids("eos_token_id")?,
            activation: Activation::SiLu,
            norms: NormPlacement::Pre,
            norm_weight: NormWeightForm::Plain,
            qk_norm: QkNorm::None,
            biases: Biases::default(),
            fused_projections: false,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            attention_softcap: None,
            final_softcap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logits_scale: 1.0,
            ropes: ropes(self, &rope)?,
            layers: vec![layer; num_hidden_layers],
            experts: None,
            raw: self.map.clone(),
        })
    }

    /// Refuses an activation other than SiLU.
    pub(crate) fn silu(&self) -> Result<(), ModelError> {
        match self.get("hidden_act") {
            Some(act) if act.as_str() != Some("silu") => {
                Err(self.bad("hidden_act", &act.to_string(), "\"silu\""))
            }
            _ => Ok(()),
        }
    }

    /// For each of L layers whether it attends through the sliding window, as `layer_types` lists
    /// it; None when there is no such list.
    pub(crate) fn sliding_layers(&self, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        let Some(value) = self.get("layer_types") else { return Ok(None) };
        let expected =
            || format!("a list of {layers} times \"full_attention\" or \"sliding_attention\"");
        let list = value.as_array().filter(|list| list.len() == layers);
        let list = list.ok_or_else(|| {
            let found =
                value.as_array().map_or(value.to_string(), |l| format!("{} entries", l.len()));
            self.bad("layer_types", &found, &expected())
        })?;
        let one = |v: &Value| match v.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(self.bad("layer_types", &v.to_string(), &expected())),
        };
        list.iter().map(one).collect::<Result<_, _>>().map(Some)
    }

    /// A size where null means "none", and absence means `default`.
    pub(crate) fn nullable_size(
        &self,
        field: &str,
        default: Option<usize>,
    ) -> Result<Option<usize>, ModelError> {
        self.note(field);
        match self.map.get(field) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(v) if v.as_u64() == Some(0) => Err(self.bad(field, "0", "at least 1, or null")),
            Some(_) => self.size(field).map(Some),
        }
    }

    /// A number where null means "none", and absence means `default`.
    pub(crate) fn nullable_float(
        &self,
        field: &str,
        default: Option<f64>,
    ) -> Result<Option<f32>, ModelError> {
        self.note(field);
        match self.map.get(field) {
            None => Ok(default.map(|x| x as f32)),
            Some(Value::Null) => Ok(None),
            Some(_) => self.float_or(field, 0.0).map(|x| Some(x as f32)),
        }
    }

    /// Notes fields that the reference ignores for this family.
    pub(crate) fn ignore(&self, fields: &[&str]) {
        fields.iter().for_each(|f| self.note(f));
    }

    /// Every field must have been asked for, be null, be a flag that is off, or be known to change
    /// nothing.
    pub(crate) fn nothing_unread(&self) -> Result<(), ModelError> {
        let read = self.read.borrow();
        let unread: Vec<String> = self
            .map
            .iter()
            .filter(|(k, v)| {
                !v.is_null()
                    && **v != Value::Bool(false)
                    && !read.contains(*k)
                    && !families::HARMLESS.contains(&k.as_str())
            })
            .map(|(k, v)| format!("{k} = {v}"))
            .collect();
        if unread.is_empty() {
            return Ok(());
        }
        Err(ModelError::config(
            self.path,
            format!(
                "found {}, expected no such field in this family: what it changes is not known here",
                unread.join(", ")
            ),
        ))
    }

    fn note(&self, field: &str) {
        self.read.borrow_mut().insert(field.to_owned());
    }

    pub(crate) fn bad(&self, field: &str, found: &str, expected: &str) -> ModelError {
        ModelError::config(self.path, format!("{field}: found {found}, expected {expected}"))
    }

    /// The field, with JSON null counted as absent.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.note(field);
        self.map.get(field).filter(|v| !v.is_null())
    }

    fn required(&self, field: &str, expected: &str) -> Result<&'a Value, ModelError> {
        self.get(field).ok_or_else(|| self.bad(field, "nothing", expected))
    }

    pub(crate) fn string(&self, field: &str) -> Result<String, ModelError> {
        let value = self.required(field, "a string")?;
        value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| self.bad(field, &value.to_string(), "a string"))
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<&'a Map<String, Value>>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_object() {
            Some(map) => Ok(Some(map)),
            None => Err(self.bad(field, &value.to_string(), "an object")),
        }
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

    /// A list of whole numbers.
    pub(crate) fn sizes(&self, field: &str) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let one = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        let list = value.as_array().and_then(|list| list.iter().map(one).collect());
        list.map(Some).ok_or_else(|| self.bad(field, &value.to_string(), "a list of whole numbers"))
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
