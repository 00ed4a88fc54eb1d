//! How GGUF names the families and their fields. An architecture's metadata is turned into the
//! fields of a config.json, so that one resolution, that of the family's own file, serves both.
//!
//! Names of keys and what llama.cpp derives from them: ggml/docs/gguf.md, `llama-arch.cpp` and
//! `llama-model.cpp` of llama.cpp, `convert_hf_to_gguf.py` for what a conversion does to tensors.

use crate::config::DecoderConfig;
use crate::error::ModelError;
use crate::gguf::{self, FromValue, GgufFile, GgufTensor};
use serde_json::{Map, Value, json};

/// An architecture of llama.cpp.
pub(crate) struct Architecture {
    /// `general.architecture`.
    pub(crate) name: &'static str,
    /// Hugging Face's `model_type`.
    model_type: &'static str,
    /// Whether the conversion puts the two halves of each query and key head side by side, pair by
    /// pair, because llama.cpp rotates neighbours there.
    pub(crate) pairs_interleaved: bool,
    /// Whether norms are stored as what rows are multiplied by although the family's own files
    /// store one less.
    pub(crate) norms_plus_one: bool,
    /// Whether llama.cpp looks for rope_freqs.weight.
    reads_factors: bool,
    /// Whether [`metadata`] can state it.
    written: bool,
    /// Fields beyond the common ones.
    fields: fn(&Keys<'_>, &mut Map<String, Value>) -> Result<(), ModelError>,
}

const PLAIN: Architecture = Architecture {
    name: "",
    model_type: "",
    pairs_interleaved: false,
    norms_plus_one: false,
    reads_factors: false,
    written: false,
    fields: |_, _| Ok(()),
};

/// THE table. A mistral model is a `llama` there.
const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "llama",
        model_type: "llama",
        pairs_interleaved: true,
        reads_factors: true,
        written: true,
        fields: llama,
        ..PLAIN
    },
    Architecture { name: "qwen2", model_type: "qwen2", written: true, ..PLAIN },
    Architecture { name: "qwen3", model_type: "qwen3", written: true, ..PLAIN },
    Architecture { name: "qwen3moe", model_type: "qwen3_moe", fields: qwen3moe, ..PLAIN },
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        norms_plus_one: true,
        fields: gemma2,
        ..PLAIN
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        norms_plus_one: true,
        fields: gemma3,
        ..PLAIN
    },
    Architecture { name: "phi3", model_type: "phi3", fields: phi3, ..PLAIN },
    Architecture {
        name: "granite",
        model_type: "granite",
        pairs_interleaved: true,
        fields: granite,
        ..PLAIN
    },
    Architecture { name: "olmo2", model_type: "olmo2", ..PLAIN },
    Architecture { name: "smollm3", model_type: "smollm3", pairs_interleaved: true, ..PLAIN },
];

/// The configuration that a file's metadata and tensors state, and its architecture.
pub(crate) fn config(
    file: &GgufFile,
) -> Result<(DecoderConfig, &'static Architecture), ModelError> {
    let name: &str = file.require("general.architecture")?;
    let architecture = ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
        ModelError::config(
            file.path(),
            format!(
                "general.architecture: found {name:?}, expected one of the supported ones: {}",
                known.join(", ")
            ),
        )
    })?;
    let keys = Keys { file, name };
    let mut map = common(&keys, architecture)?;
    (architecture.fields)(&keys, &mut map)?;
    map.retain(|_, value| !value.is_null());
    let bytes = serde_json::to_vec(&map).expect("plain JSON");
    let mut config = DecoderConfig::from_json(&bytes, file.path())?;
    divide_frequencies(file, &mut config)?;
    Ok((config, architecture))
}

/// The architecture that a model of this `model_type` is written as.
fn of_model_type(model_type: &str) -> Option<&'static Architecture> {
    // llama.cpp has no architecture of its own for it.
    let model_type = if model_type == "mistral" { "llama" } else { model_type };
    ARCHITECTURES.iter().find(|a| a.model_type == model_type)
}

/// Architecture, metadata, and factors of the rotary frequencies.
type Described = (&'static Architecture, Vec<(String, gguf::Value)>, Option<Vec<f32>>);

/// Metadata of a model as [`config`] reads it, and the factors that its frequencies are divided by,
/// where they are no plain ones.
pub(crate) fn metadata(config: &DecoderConfig) -> Result<Described, ModelError> {
    let family = config.family.name();
    let refuse = |what: &str| {
        ModelError::Params(format!("GGUF export of the family {family} {what} is not supported"))
    };
    let architecture = of_model_type(family)
        .filter(|a| a.written)
        .ok_or_else(|| refuse("(so far: llama, mistral, qwen2, qwen3)"))?;
    if config.layers.iter().any(|l| l.window.is_some_and(|w| w < config.max_position_embeddings)) {
        return Err(refuse("with a sliding window"));
    }
    let [rope] = &config.ropes[..] else { return Err(refuse("with several rotations")) };
    if rope.long.is_some() || rope.short.factor != 1.0 {
        return Err(refuse("with rotary positions of kind longrope"));
    }
    let frequencies = &rope.short.inv_freq;
    let theta = theta(config);
    let rotated = 2 * frequencies.len();
    let factors: Vec<f32> = frequencies
        .iter()
        .enumerate()
        .map(|(i, f)| (theta.powf(-2.0 * i as f64 / rotated as f64) / f64::from(*f)) as f32)
        .collect();
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-5 * b;
    let same = |factor: f32| factors.iter().all(|&f| near(f, factor));
    let number = |n: usize| gguf::Value::U32(n as u32);
    let float = gguf::Value::F32;
    let mut keys = vec![
        ("context_length", number(config.max_position_embeddings)),
        ("embedding_length", number(config.hidden_size)),
        ("block_count", number(config.num_hidden_layers)),
        ("feed_forward_length", number(config.intermediate_size)),
        ("attention.head_count", number(config.num_attention_heads)),
        ("attention.head_count_kv", number(config.num_key_value_heads)),
        ("attention.key_length", number(config.head_dim)),
        ("attention.value_length", number(config.head_dim)),
        ("attention.layer_norm_rms_epsilon", float(config.rms_norm_eps)),
        ("rope.dimension_count", number(rotated)),
        ("rope.freq_base", float(theta as f32)),
        ("vocab_size", number(config.vocab_size)),
    ];
    let mut divided = None;
    if !same(1.0) {
        if same(factors[0]) {
            keys.push(("rope.scaling.type", gguf::Value::String("linear".into())));
            keys.push(("rope.scaling.factor", float(factors[0])));
        } else if architecture.reads_factors {
            divided = Some(factors);
        } else {
            return Err(refuse("with this kind of rotary positions"));
        }
    }
    let keyed = |(key, value)| (format!("{}.{key}", architecture.name), value);
    Ok((architecture, keys.into_iter().map(keyed).collect(), divided))
}

/// The base of the frequencies: as config.json has it, or, where it is silent, as the frequencies
/// have it (the second one is scaled by no published kind but `linear`, which needs the field).
fn theta(config: &DecoderConfig) -> f64 {
    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
    let within = |field: &str| number(config.raw.get(field)?.get("rope_theta"));
    number(config.raw.get("rope_theta"))
        .or_else(|| within("rope_parameters"))
        .or_else(|| within("rope_scaling"))
        .unwrap_or_else(|| {
            let frequencies = &config.ropes[0].short.inv_freq;
            let second = frequencies.get(1).copied().unwrap_or(1.0);
            // Published bases are whole numbers.
            (1.0 / f64::from(second)).powf(frequencies.len() as f64).round()
        })
}

/// An architecture's metadata.
struct Keys<'a> {
    file: &'a GgufFile,
    name: &'a str,
}

impl<'a> Keys<'a> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn get<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, ModelError> {
        Ok(self.file.get(&self.key(key))?)
    }

    /// A size that must be the same in all layers.
    fn size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(list) = self.get::<Vec<usize>>(key)? else { return Ok(None) };
        match list[..] {
            [first, ..] if list.iter().all(|n| *n == first) => Ok(Some(first)),
            _ => Err(self.bad(key, &format!("{list:?}"), "one number, the same for all layers")),
        }
    }

    fn required_size(&self, key: &str) -> Result<usize, ModelError> {
        match self.size(key)? {
            Some(size) => Ok(size),
            // For its message.
            None => Ok(self.file.require(&self.key(key))?),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        Ok(self.get::<f32>(key)?.map(f64::from))
    }

    fn has(&self, tensor: &str) -> bool {
        self.file.tensor(tensor).is_some()
    }

    fn bad(&self, key: &str, found: &str, expected: &str) -> ModelError {
        let key = self.key(key);
        ModelError::config(self.file.path(), format!("{key}: found {found}, expected {expected}"))
    }
}

fn common(keys: &Keys<'_>, architecture: &Architecture) -> Result<Map<String, Value>, ModelError> {
    let hidden = keys.required_size("embedding_length")?;
    let heads = keys.required_size("attention.head_count")?;
    let table = keys.file.tensor("token_embd.weight");
    let vocab = match table.map(|t| t.shape) {
        Some([vocab, _]) => *vocab,
        Some(other) => {
            return Err(ModelError::config(
                keys.file.path(),
                format!("token_embd.weight: found shape {other:?}, expected two dimensions"),
            ));
        }
        None => {
            return Err(ModelError::config(
                keys.file.path(),
                "token_embd.weight: found no such tensor, expected the embedding table",
            ));
        }
    };
    let head_dim = match keys.size("attention.key_length")? {
        Some(size) => Some(size),
        None if heads > 0 && hidden.is_multiple_of(heads) => Some(hidden / heads),
        None => None,
    };
    if let Some(values) = keys.size("attention.value_length")?
        && Some(values) != head_dim
    {
        let expected = format!("{} as the keys have", head_dim.unwrap_or_default());
        return Err(keys.bad("attention.value_length", &values.to_string(), &expected));
    }
    let token = |name: &str| keys.file.get::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
    let mut ends: Vec<u32> = Vec::new();
    for name in ["eos", "eot", "eom"] {
        if let Some(id) = token(name)?
            && !ends.contains(&id)
        {
            ends.push(id);
        }
    }
    let fields = json!({
        "model_type": architecture.model_type,
        "hidden_size": hidden,
        "intermediate_size": keys.required_size("feed_forward_length")?,
        "num_hidden_layers": keys.required_size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": keys.required_size("context_length")?,
        "rms_norm_eps": keys
            .file
            .require::<f32>(&keys.key("attention.layer_norm_rms_epsilon"))
            .map(f64::from)?,
        "rope_theta": keys.float("rope.freq_base")?.unwrap_or(10_000.0),
        "tie_word_embeddings": !keys.has("output.weight"),
        "bos_token_id": token("bos")?,
        "eos_token_id": ends,
    });
    let Value::Object(mut map) = fields else { unreachable!("an object was written") };
    if let (Some(rotated), Some(dim)) = (keys.size("rope.dimension_count")?, head_dim)
        && rotated != dim
    {
        map.insert("partial_rotary_factor".into(), json!(rotated as f64 / dim as f64));
    }
    let kind = keys.get::<&str>("rope.scaling.type")?;
    // An older name of the linear factor.
    let factor = match keys.float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.float("rope.scale_linear")?,
    };
    match (kind, factor) {
        (None | Some("none"), None) => {}
        (Some("none"), Some(_)) => {}
        (None | Some("linear"), Some(1.0)) => {}
        (None | Some("linear"), Some(factor)) => {
            map.insert("rope_scaling".into(), json!({"rope_type": "linear", "factor": factor}));
        }
        // Left to the architecture that has it; elsewhere refused by its name.
        (Some(kind), _) => {
            map.insert("rope_scaling".into(), json!({"rope_type": kind}));
        }
    }
    Ok(map)
}

fn llama(keys: &Keys<'_>, map: &mut Map<String, Value>) -> Result<(), ModelError> {
    if let Some(experts) = keys.size("expert_count")?.filter(|n| *n > 0) {
        map.insert("model_type".into(), json!("mixtral"));
        map.insert("num_local_experts".into(), json!(experts));
        map.insert("num_experts_per_tok".into(), json!(keys.required_size("expert_used_count")?));
        return Ok(());
    }
    map.insert("attention_bias".into(), json!(keys.has("blk.0.attn_q.bias")));
    map.insert("mlp_bias".into(), json!(keys.has("blk.0.ffn_down.bias")));
    Ok(())
}

fn qwen3moe(keys: &Keys<'_>, map: &mut Map<String, Value>) -> Result<(), ModelError> {
    map.insert("num_experts".into(), json!(keys.required_size("expert_count")?));
    map.insert("num_experts_per_tok".into(), json!(keys.required_size("expert_used_count")?));
    let width = keys.required_size("expert_feed_forward_length")?;
    map.insert("moe_intermediate_size".into(), json!(width));
    // llama.cpp always does so.
    map.insert("norm_topk_prob".into(), json!(true));
    Ok(())
}

/// The largest model of a generation scales scores by the width per head; it is known by its
/// number of layers, as in llama.cpp.
fn query_scalar(map: &Map<String, Value>, largest: u64) -> Value {
    let size = |field: &str| map[field].as_u64().unwrap_or_default();
    match size("num_hidden_layers") == largest {
        true => json!(size("hidden_size") / size("num_attention_heads").max(1)),
        false => map["head_dim"].clone(),
    }
}

fn gemma2(keys: &Keys<'_>, map: &mut Map<String, Value>) -> Result<(), ModelError> {
    map.insert("query_pre_attn_scalar".into(), query_scalar(map, 46));
    map.insert("sliding_window".into(), json!(keys.size("attention.sliding_window")?));
    let attention = keys.float("attn_logit_softcapping")?;
    map.insert("attn_logit_softcapping".into(), json!(attention));
    map.insert("final_logit_softcapping".into(), json!(keys.float("final_logit_softcapping")?));
    Ok(())
}

fn gemma3(keys: &Keys<'_>, map: &mut Map<String, Value>) -> Result<(), ModelError> {
    map.insert("query_pre_attn_scalar".into(), query_scalar(map, 62));
    map.insert("sliding_window".into(), json!(keys.size("attention.sliding_window")?));
    if keys.float("rope.freq_base")?.is_none() {
        map.insert("rope_theta".into(), json!(1_000_000.0));
    }
    let local = keys.float("rope.local.freq_base")?;
    map.insert("rope_local_base_freq".into(), json!(local.unwrap_or(10_000.0)));
    Ok(())
}

fn phi3(keys: &Keys<'_>, map: &mut Map<String, Value>) -> Result<(), ModelError> {
    map.insert("sliding_window".into(), json!(keys.size("attention.sliding_window")?));
    let tensors = ["rope_factors_short.weight", "rope_factors_long.weight"];
    let [Some(short), Some(long)] = tensors.map(|name| keys.file.tensor(name)) else {
        return Ok(());
    };
    let original = keys.required_size("rope.scaling.original_context_length")?;
    map.insert("original_max_position_embeddings".into(), json!(original));
    let scaling = json!({
        "rope_type": "longrope",
        "short_factor": floats(keys.file, &short)?,
        "long_factor": floats(keys.file, &long)?,
        "attention_factor": keys.float("rope.scaling.attn_factor")?,
    });
    map.insert("rope_scaling".into(), scaling);
    Ok(())
}

fn granite(keys: &Keys<'_>, map: &mut Map<String, Value>) -> Result<(), ModelError> {
    for (field, key) in [
        ("attention_multiplier", "attention.scale"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
    ] {
        map.insert(field.into(), json!(keys.float(key)?));
    }
    Ok(())
}

/// `rope_freqs.weight` [D/2]: each frequency is divided by its factor (the scaling of Llama 3.1 and
/// later, computed at conversion).
fn divide_frequencies(file: &GgufFile, config: &mut DecoderConfig) -> Result<(), ModelError> {
    let Some(tensor) = file.tensor("rope_freqs.weight") else { return Ok(()) };
    let factors = floats(file, &tensor)?;
    for rope in &mut config.ropes {
        let frequencies = &mut rope.short.inv_freq;
        let good = |factor: &&f32| factor.is_finite() && **factor > 0.0;
        let count = factors.iter().filter(good).count();
        if factors.len() != frequencies.len() || count != factors.len() {
            return Err(ModelError::config(
                file.path(),
                format!(
                    "rope_freqs.weight: found {} values of which {count} are positive numbers, \
                     expected {} positive numbers",
                    factors.len(),
                    frequencies.len()
                ),
            ));
        }
        frequencies.iter_mut().zip(&factors).for_each(|(f, factor)| *f /= factor);
    }
    Ok(())
}

/// A short tensor's values.
fn floats(file: &GgufFile, tensor: &GgufTensor<'_>) -> Result<Vec<f32>, ModelError> {
    let len = tensor.shape.iter().product::<usize>();
    if tensor.shape.len() != 1 || len > 1 << 16 {
        return Err(ModelError::config(
            file.path(),
            format!("{}: found shape {:?}, expected one short row", tensor.name, tensor.shape),
        ));
    }
    let mut values = vec![0.0; len];
    tensor.ggml_type.dtype().unpack(tensor.bytes, &mut values);
    Ok(values)
}
