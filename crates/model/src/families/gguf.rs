//! How GGUF names the families and their fields, in both directions. An architecture's metadata is
//! turned into the fields of a config.json, so that one resolution, that of the family's own file,
//! serves both; what is written is read back that way before anything is, so that no file says
//! something else than its model.
//!
//! Names of keys and what llama.cpp derives from them: ggml/docs/gguf.md, `llama-arch.cpp` and
//! `src/models/` of llama.cpp, `convert_hf_to_gguf.py` for what a conversion does to tensors. The
//! files that the converter makes of each family are in testdata/gguf_families.

use crate::config::DecoderConfig;
use crate::error::ModelError;
use crate::families::rope::{Frequencies, Rope};
use crate::gguf::{self, FromValue, GgufError, GgufFile, GgufProblem};
use crate::params;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// An architecture of llama.cpp.
pub(crate) struct Architecture {
    /// `general.architecture`.
    pub(crate) name: &'static str,
    /// Hugging Face's `model_type`: of a file that says nothing else, then of others that are
    /// written in the same way.
    model_types: &'static [&'static str],
    /// Whether the conversion puts the two halves of each query and key head side by side, pair by
    /// pair, because llama.cpp rotates neighbours there.
    pub(crate) pairs_interleaved: bool,
    /// Whether norms are stored as what rows are multiplied by although the family's own files
    /// store one less.
    pub(crate) norms_plus_one: bool,
    /// Whether llama.cpp looks for rope_freqs.weight.
    factors: bool,
    /// Whether llama.cpp looks for biases on every projection.
    biases: bool,
    /// Whether the head is the embedding table, where llama.cpp knows only one of both.
    tied: Option<bool>,
    /// Fields beyond the common ones.
    read: fn(&Keys<'_>, &mut Map<String, Value>) -> Result<(), ModelError>,
    /// The same fields as keys.
    write: fn(&DecoderConfig, &mut Entries),
}

/// Keys below the architecture's name, with their values.
type Entries = Vec<(&'static str, gguf::Value)>;

const PLAIN: Architecture = Architecture {
    name: "",
    model_types: &[],
    pairs_interleaved: false,
    norms_plus_one: false,
    factors: false,
    biases: false,
    tied: None,
    read: |_, _| Ok(()),
    write: |_, _| {},
};

/// THE table.
const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "llama",
        model_types: &["llama", "mistral", "mixtral"],
        pairs_interleaved: true,
        factors: true,
        biases: true,
        read: llama,
        write: experts_out,
        ..PLAIN
    },
    Architecture { name: "qwen2", model_types: &["qwen2"], ..PLAIN },
    Architecture { name: "qwen3", model_types: &["qwen3"], ..PLAIN },
    Architecture {
        name: "qwen3moe",
        model_types: &["qwen3_moe"],
        read: qwen3moe,
        write: qwen3moe_out,
        ..PLAIN
    },
    Architecture {
        name: "gemma2",
        model_types: &["gemma2"],
        norms_plus_one: true,
        tied: Some(true),
        read: gemma2,
        write: gemma2_out,
        ..PLAIN
    },
    Architecture {
        name: "gemma3",
        model_types: &["gemma3_text"],
        norms_plus_one: true,
        read: gemma3,
        write: gemma3_out,
        ..PLAIN
    },
    Architecture { name: "phi3", model_types: &["phi3"], read: phi3, write: phi3_out, ..PLAIN },
    Architecture {
        name: "granite",
        model_types: &["granite"],
        pairs_interleaved: true,
        factors: true,
        biases: true,
        read: granite,
        write: granite_out,
        ..PLAIN
    },
    Architecture { name: "olmo2", model_types: &["olmo2"], tied: Some(false), ..PLAIN },
    Architecture { name: "smollm3", model_types: &["smollm3"], pairs_interleaved: true, ..PLAIN },
];

/// Keys that change nothing for any of these architectures: sizes that tensors show, and what
/// llama.cpp reads for other kinds of rotary positions only.
const HARMLESS: &[&str] = &[
    "vocab_size",
    "tensor_data_layout",
    "expert_feed_forward_length",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
];

/// Where metadata and tensors are stated: a file, or what is about to be written as one.
pub(crate) trait Source {
    /// Named in errors.
    fn path(&self) -> &Path;
    fn keys(&self) -> Vec<&str>;
    fn value(&self, key: &str) -> Option<&gguf::Value>;
    /// Outermost first.
    fn shape(&self, tensor: &str) -> Option<&[usize]>;
    /// The values of a tensor whose shape was found to be one short row.
    fn floats(&self, tensor: &str) -> Vec<f32>;
}

impl Source for GgufFile {
    fn path(&self) -> &Path {
        self.path()
    }

    fn keys(&self) -> Vec<&str> {
        self.all_metadata().map(|(key, _)| key).collect()
    }

    fn value(&self, key: &str) -> Option<&gguf::Value> {
        self.metadata(key)
    }

    fn shape(&self, tensor: &str) -> Option<&[usize]> {
        self.tensor(tensor).map(|tensor| tensor.shape)
    }

    fn floats(&self, tensor: &str) -> Vec<f32> {
        let Some(tensor) = self.tensor(tensor) else { return Vec::new() };
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.ggml_type.dtype().unpack(tensor.bytes, &mut values);
        values
    }
}

/// The configuration that metadata and tensors state, and its architecture.
pub(crate) fn config(
    source: &dyn Source,
) -> Result<(DecoderConfig, &'static Architecture), ModelError> {
    let key = "general.architecture";
    let name: &str = match of_source(source, key)? {
        Some(name) => name,
        None => return Err(missing::<&str>(source, key)),
    };
    let architecture = ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
        ModelError::config(
            source.path(),
            format!(
                "{key}: found {name:?}, expected one of the supported ones: {}",
                known.join(", ")
            ),
        )
    })?;
    let keys = Keys { source, name, read: RefCell::default() };
    let mut map = common(&keys, architecture)?;
    if architecture.biases {
        map.insert("attention_bias".into(), json!(keys.has("blk.0.attn_q.bias")));
        map.insert("mlp_bias".into(), json!(keys.has("blk.0.ffn_down.bias")));
    }
    (architecture.read)(&keys, &mut map)?;
    keys.nothing_unread()?;
    map.retain(|_, value| !value.is_null());
    let bytes = serde_json::to_vec(&map).expect("plain JSON");
    let mut config = DecoderConfig::from_json(&bytes, source.path())?;
    divide_frequencies(source, &mut config)?;
    Ok((config, architecture))
}

/// What a file of a model holds beside its matrices.
pub(crate) struct Described {
    pub(crate) architecture: &'static Architecture,
    /// The architecture's keys with their values.
    pub(crate) metadata: Vec<(String, gguf::Value)>,
    /// Tensors of one row that state rotary frequencies.
    pub(crate) vectors: Vec<(&'static str, Vec<f32>)>,
}

/// Metadata of a model as [`config`] and llama.cpp read it.
///
/// # Errors
/// [`ModelError::Params`] naming the family and what a file of its architecture has no word for.
pub(crate) fn describe(config: &DecoderConfig) -> Result<Described, ModelError> {
    let family = config.family.name();
    let architecture = ARCHITECTURES
        .iter()
        .find(|a| a.model_types.contains(&family))
        .ok_or_else(|| refuse(family, "llama.cpp has no such architecture"))?;
    let mut entries: Entries = vec![
        ("context_length", number(config.max_position_embeddings)),
        ("embedding_length", number(config.hidden_size)),
        ("block_count", number(config.num_hidden_layers)),
        ("feed_forward_length", number(config.intermediate_size)),
        ("attention.head_count", number(config.num_attention_heads)),
        ("attention.head_count_kv", number(config.num_key_value_heads)),
        ("attention.key_length", number(config.head_dim)),
        ("attention.value_length", number(config.head_dim)),
        ("attention.layer_norm_rms_epsilon", gguf::Value::F32(config.rms_norm_eps)),
        ("vocab_size", number(config.vocab_size)),
    ];
    let vectors = rotation_out(architecture, &config.ropes[0], &mut entries);
    (architecture.write)(config, &mut entries);
    let keyed = |(key, value)| (format!("{}.{key}", architecture.name), value);
    let metadata = entries.into_iter().map(keyed).collect();
    let described = Described { architecture, metadata, vectors };
    let problems = unsaid(config, &described);
    if problems.is_empty() {
        return Ok(described);
    }
    let problems = problems.join(", ");
    Err(refuse(family, &format!("a {} file cannot say {problems}", architecture.name)))
}

fn refuse(family: &str, why: &str) -> ModelError {
    ModelError::Params(format!("GGUF export of the family {family} is not possible: {why}"))
}

/// The rotation of the layers that have the first, or only, one.
fn rotation_out(
    architecture: &Architecture,
    rope: &Rope,
    entries: &mut Entries,
) -> Vec<(&'static str, Vec<f32>)> {
    // What each frequency of the plain rotation is divided by.
    let factors = |of: &Frequencies| -> Vec<f32> {
        let rotated = 2 * of.inv_freq.len();
        let plain = |i: usize| rope.theta.powf(-2.0 * i as f64 / rotated as f64);
        let divided = of.inv_freq.iter().enumerate();
        divided.map(|(i, f)| (plain(i) / f64::from(*f)) as f32).collect()
    };
    entries.push(("rope.dimension_count", number(2 * rope.short.inv_freq.len())));
    entries.push(("rope.freq_base", gguf::Value::F32(rope.theta as f32)));
    let short = factors(&rope.short);
    if let Some((original, long)) = &rope.long {
        entries.push(("rope.scaling.original_context_length", number(*original)));
        entries.push(("rope.scaling.attn_factor", gguf::Value::F32(rope.short.factor)));
        return vec![
            ("rope_factors_long.weight", factors(long)),
            ("rope_factors_short.weight", short),
        ];
    }
    let all = |factor: f32| short.iter().all(|f| near(*f, factor));
    if all(1.0) {
        return Vec::new();
    }
    if architecture.factors && !all(short[0]) {
        return vec![("rope_freqs.weight", short)];
    }
    entries.push(("rope.scaling.type", gguf::Value::String("linear".into())));
    entries.push(("rope.scaling.factor", gguf::Value::F32(short[0])));
    Vec::new()
}

/// What is about to be written.
struct Written<'a> {
    metadata: HashMap<&'a str, &'a gguf::Value>,
    vectors: HashMap<&'a str, &'a [f32]>,
    shapes: HashMap<String, Vec<usize>>,
}

impl Source for Written<'_> {
    fn path(&self) -> &Path {
        Path::new("the metadata")
    }

    fn keys(&self) -> Vec<&str> {
        self.metadata.keys().copied().collect()
    }

    fn value(&self, key: &str) -> Option<&gguf::Value> {
        self.metadata.get(key).copied()
    }

    fn shape(&self, tensor: &str) -> Option<&[usize]> {
        self.shapes.get(tensor).map(Vec::as_slice)
    }

    fn floats(&self, tensor: &str) -> Vec<f32> {
        self.vectors.get(tensor).map(|values| values.to_vec()).unwrap_or_default()
    }
}

/// What a reader would take otherwise than `own` has it.
fn unsaid(own: &DecoderConfig, described: &Described) -> Vec<String> {
    let architecture = described.architecture;
    let name = gguf::Value::String(architecture.name.into());
    let listed = described.metadata.iter().map(|(key, value)| (key.as_str(), value));
    let matrices = params::tensors(own);
    let matrices = matrices.iter().map(|t| (gguf::tensor_name(t), gguf::tensor_shape(own, t)));
    let vectors = described.vectors.iter();
    let source = Written {
        metadata: listed.chain([("general.architecture", &name)]).collect(),
        vectors: vectors.clone().map(|(name, values)| (*name, values.as_slice())).collect(),
        shapes: matrices
            .chain(vectors.map(|(name, values)| (name.to_string(), vec![values.len()])))
            .collect(),
    };
    let read = match config(&source) {
        Ok((read, _)) => read,
        Err(error) => return vec![format!("this ({error})")],
    };
    let mut list = Vec::new();
    let mut check = |same: bool, what: &str| {
        if !same {
            list.push(what.to_owned());
        }
    };
    let tied = architecture.tied.is_none_or(|tied| tied == own.tie_word_embeddings);
    check(tied, "whether the head is the embedding table");
    check(read.biases == own.biases, "which projections have a bias");
    check(read.activation == own.activation, "the activation");
    check(
        (read.norms, read.norm_weight, read.qk_norm) == (own.norms, own.norm_weight, own.qk_norm),
        "where the norms stand",
    );
    check(near(read.rms_norm_eps, own.rms_norm_eps), "what is added in a norm");
    let sizes = |c: &DecoderConfig| {
        let heads = [c.num_attention_heads, c.num_key_value_heads, c.head_dim];
        (heads, c.hidden_size, c.intermediate_size, c.vocab_size, c.num_hidden_layers)
    };
    check(sizes(&read) == sizes(own), "the sizes");
    check(read.max_position_embeddings == own.max_position_embeddings, "the context");
    let experts = |c: &DecoderConfig| {
        c.experts.map(|e| (e.num_experts, e.top_k, e.intermediate_size, e.normalized))
    };
    check(experts(&read) == experts(own), "how the experts are weighted");
    check(near(read.attention_scale, own.attention_scale), "the scale of attention scores");
    let caps = |c: &DecoderConfig| [c.attention_softcap, c.final_softcap];
    check(caps(&read) == caps(own), "the soft caps");
    for (read, own, what) in [
        (read.embedding_scale, own.embedding_scale, "the scale of embeddings"),
        (read.residual_scale, own.residual_scale, "the scale of what a block adds"),
        (read.logits_scale, own.logits_scale, "the scale of logits"),
    ] {
        check(near(read, own), what);
    }
    for (l, (ours, theirs)) in own.layers.iter().zip(&read.layers).enumerate() {
        // A window as wide as the context is none.
        let window = |w: Option<usize>| w.filter(|w| *w < own.max_position_embeddings);
        check(
            window(ours.window) == window(theirs.window),
            &format!("the sliding window of layer {l}"),
        );
        check(
            ours.feed_forward == theirs.feed_forward,
            &format!("the kind of feed-forward block of layer {l}"),
        );
        let rotations = (ours.rope.map(|r| &own.ropes[r]), theirs.rope.map(|r| &read.ropes[r]));
        check(
            match rotations {
                (None, None) => true,
                (Some(a), Some(b)) => same_rotation(a, b),
                _ => false,
            },
            &format!("the rotary positions of layer {l}"),
        );
    }
    list
}

fn same_rotation(a: &Rope, b: &Rope) -> bool {
    let same = |a: &Frequencies, b: &Frequencies| {
        let pairs = a.inv_freq.iter().zip(&b.inv_freq);
        near(a.factor, b.factor)
            && a.inv_freq.len() == b.inv_freq.len()
            && pairs.into_iter().all(|(a, b)| near(*a, *b))
    };
    let long = match (&a.long, &b.long) {
        (None, None) => true,
        (Some((from, a)), Some((to, b))) => from == to && same(a, b),
        _ => false,
    };
    same(&a.short, &b.short) && long
}

/// Equal but for what rounding does.
fn near(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-5 * b.abs()
}

fn number(n: usize) -> gguf::Value {
    // Sizes are far below 2^32 by `DecoderConfig`'s validation.
    gguf::Value::U32(n as u32)
}

fn of_source<'a, T: FromValue<'a>>(
    source: &'a dyn Source,
    key: &str,
) -> Result<Option<T>, ModelError> {
    let typed = gguf::typed(key, source.value(key));
    Ok(typed.map_err(|problem| GgufError { path: source.path().to_owned(), problem })?)
}

fn missing<'a, T: FromValue<'a>>(source: &dyn Source, key: &str) -> ModelError {
    let problem = GgufProblem::MissingKey { key: key.to_owned(), expected: T::EXPECTED };
    GgufError { path: source.path().to_owned(), problem }.into()
}

/// An architecture's metadata; notes which keys were asked for.
struct Keys<'a> {
    source: &'a dyn Source,
    name: &'a str,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn get<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, ModelError> {
        let key = self.key(key);
        let value = of_source(self.source, &key);
        self.read.borrow_mut().insert(key);
        value
    }

    fn require<T: FromValue<'a>>(&self, key: &str) -> Result<T, ModelError> {
        match self.get(key)? {
            Some(value) => Ok(value),
            None => Err(missing::<T>(self.source, &self.key(key))),
        }
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
            None => self.require(key),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        Ok(self.get::<f32>(key)?.map(f64::from))
    }

    fn has(&self, tensor: &str) -> bool {
        self.source.shape(tensor).is_some()
    }

    fn bad(&self, key: &str, found: &str, expected: &str) -> ModelError {
        let key = self.key(key);
        ModelError::config(self.source.path(), format!("{key}: found {found}, expected {expected}"))
    }

    /// Every key of the architecture must have been asked for, be zero or off, or be known to change
    /// nothing.
    fn nothing_unread(&self) -> Result<(), ModelError> {
        use gguf::Value::{Bool, F32, F64, I32, I64, U8, U16, U32, U64};
        let read = self.read.borrow();
        let prefix = self.key("");
        let nothing = |value: &gguf::Value| match *value {
            Bool(on) => !on,
            U8(0) | U16(0) | U32(0) | I32(0) | U64(0) | I64(0) => true,
            F32(x) => x == 0.0,
            F64(x) => x == 0.0,
            _ => false,
        };
        let unread = self.source.keys().into_iter().filter_map(|key| {
            let short = key.strip_prefix(&prefix)?;
            let value = self.source.value(key).filter(|value| !nothing(value))?;
            let known = read.contains(key) || HARMLESS.contains(&short);
            (!known).then(|| format!("{key} ({})", value.describe()))
        });
        let unread: Vec<String> = unread.collect();
        if unread.is_empty() {
            return Ok(());
        }
        Err(ModelError::config(
            self.source.path(),
            format!(
                "found {}, expected no such key in this architecture: what it changes is not known \
                 here",
                unread.join(", ")
            ),
        ))
    }
}

fn common(keys: &Keys<'_>, architecture: &Architecture) -> Result<Map<String, Value>, ModelError> {
    let hidden = keys.required_size("embedding_length")?;
    let heads = keys.required_size("attention.head_count")?;
    let vocab = match keys.source.shape("token_embd.weight") {
        Some([vocab, _]) => *vocab,
        Some(other) => {
            return Err(ModelError::config(
                keys.source.path(),
                format!("token_embd.weight: found shape {other:?}, expected two dimensions"),
            ));
        }
        None => {
            return Err(ModelError::config(
                keys.source.path(),
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
    if keys.get::<bool>("attention.causal")? == Some(false) {
        return Err(keys.bad("attention.causal", "false", "true: a decoder sees only the past"));
    }
    let token =
        |name: &str| of_source::<u32>(keys.source, &format!("tokenizer.ggml.{name}_token_id"));
    let mut ends: Vec<u32> = Vec::new();
    for name in ["eos", "eot", "eom"] {
        if let Some(id) = token(name)?
            && !ends.contains(&id)
        {
            ends.push(id);
        }
    }
    let fields = json!({
        "model_type": architecture.model_types[0],
        "hidden_size": hidden,
        "intermediate_size": keys.required_size("feed_forward_length")?,
        "num_hidden_layers": keys.required_size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": keys.required_size("context_length")?,
        "rms_norm_eps":
            keys.require::<f32>("attention.layer_norm_rms_epsilon").map(f64::from)?,
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
    let old = keys.float("rope.scale_linear")?;
    let factor = keys.float("rope.scaling.factor")?.or(old);
    match (kind, factor) {
        (Some("none"), _) | (None | Some("linear"), None) => {}
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
        // That family's files have no such field; where one is true, its name is the message.
        ["attention_bias", "mlp_bias"].iter().for_each(|field| {
            if map.get(*field) == Some(&Value::Bool(false)) {
                map.remove(*field);
            }
        });
    }
    Ok(())
}

fn experts_out(config: &DecoderConfig, entries: &mut Entries) {
    if let Some(experts) = config.experts {
        entries.push(("expert_count", number(experts.num_experts)));
        entries.push(("expert_used_count", number(experts.top_k)));
    }
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

fn qwen3moe_out(config: &DecoderConfig, entries: &mut Entries) {
    experts_out(config, entries);
    if let Some(experts) = config.experts {
        entries.push(("expert_feed_forward_length", number(experts.intermediate_size)));
    }
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

/// Which layers attend through the window: every layer but each `n`th unless the file says
/// otherwise, by another number or a list.
fn sliding_layers(
    keys: &Keys<'_>,
    map: &mut Map<String, Value>,
    n: usize,
) -> Result<(), ModelError> {
    let key = "attention.sliding_window_pattern";
    let layers = map["num_hidden_layers"].as_u64().unwrap_or_default();
    let list: Vec<bool> = match keys.source.value(&keys.key(key)) {
        Some(gguf::Value::Array(gguf::Array::Bool(_))) => keys.require::<&[bool]>(key)?.to_vec(),
        _ => {
            let n = keys.size(key)?.unwrap_or(n) as u64;
            // Checked where the configuration is resolved; nothing is made of a lie before.
            let layers = layers.min(1 << 16);
            (0..layers).map(|l| n == 0 || l % n + 1 < n).collect()
        }
    };
    let name = |sliding: bool| if sliding { "sliding_attention" } else { "full_attention" };
    map.insert("layer_types".into(), list.into_iter().map(name).collect());
    Ok(())
}

/// Layers with a window, as [`sliding_layers`] reads them.
fn windows_out(config: &DecoderConfig, n: usize, sliding: Vec<bool>, entries: &mut Entries) {
    let Some(width) = config.layers.iter().find_map(|layer| layer.window) else { return };
    entries.push(("attention.sliding_window", number(width)));
    if sliding.iter().enumerate().any(|(l, sliding)| (l % n + 1 < n) != *sliding) {
        let list = gguf::Value::Array(gguf::Array::Bool(sliding));
        entries.push(("attention.sliding_window_pattern", list));
    }
}

fn gemma2(keys: &Keys<'_>, map: &mut Map<String, Value>) -> Result<(), ModelError> {
    map.insert("query_pre_attn_scalar".into(), query_scalar(map, 46));
    map.insert("sliding_window".into(), json!(keys.size("attention.sliding_window")?));
    sliding_layers(keys, map, 2)?;
    let attention = keys.float("attn_logit_softcapping")?;
    map.insert("attn_logit_softcapping".into(), json!(attention));
    map.insert("final_logit_softcapping".into(), json!(keys.float("final_logit_softcapping")?));
    Ok(())
}

fn gemma2_out(config: &DecoderConfig, entries: &mut Entries) {
    let sliding = config.layers.iter().map(|layer| layer.window.is_some()).collect();
    windows_out(config, 2, sliding, entries);
    soft_caps_out(config, entries);
}

fn soft_caps_out(config: &DecoderConfig, entries: &mut Entries) {
    for (key, cap) in [
        ("attn_logit_softcapping", config.attention_softcap),
        ("final_logit_softcapping", config.final_softcap),
    ] {
        entries.extend(cap.map(|cap| (key, gguf::Value::F32(cap))));
    }
}

fn gemma3(keys: &Keys<'_>, map: &mut Map<String, Value>) -> Result<(), ModelError> {
    map.insert("query_pre_attn_scalar".into(), query_scalar(map, 62));
    let window = keys.size("attention.sliding_window")?.filter(|width| *width > 0);
    let local = keys.float("rope.freq_base_swa")?;
    map.insert("rope_local_base_freq".into(), json!(local.unwrap_or(10_000.0)));
    map.insert("final_logit_softcapping".into(), json!(keys.float("final_logit_softcapping")?));
    match window {
        Some(width) => {
            map.insert("sliding_window".into(), json!(width));
            sliding_layers(keys, map, 6)?;
        }
        // Every layer sees everything and is rotated as such a layer is.
        None => {
            map.insert("sliding_window_pattern".into(), json!(1));
        }
    }
    Ok(())
}

fn gemma3_out(config: &DecoderConfig, entries: &mut Entries) {
    // The second rotation is that of the layers with a window.
    let sliding = config.layers.iter().map(|layer| layer.rope == Some(1)).collect();
    windows_out(config, 6, sliding, entries);
    soft_caps_out(config, entries);
    if let Some(local) = config.ropes.get(1) {
        entries.push(("rope.freq_base_swa", gguf::Value::F32(local.theta as f32)));
    }
}

fn phi3(keys: &Keys<'_>, map: &mut Map<String, Value>) -> Result<(), ModelError> {
    // Zero is how a conversion says that there is none.
    let window = keys.size("attention.sliding_window")?.filter(|width| *width > 0);
    map.insert("sliding_window".into(), json!(window));
    let attention = keys.float("rope.scaling.attn_factor")?;
    let tensors = ["rope_factors_short.weight", "rope_factors_long.weight"];
    if !tensors.iter().all(|tensor| keys.has(tensor)) {
        return Ok(());
    }
    let original = keys.required_size("rope.scaling.original_context_length")?;
    map.insert("original_max_position_embeddings".into(), json!(original));
    let scaling = json!({
        "rope_type": "longrope",
        "short_factor": floats(keys.source, tensors[0])?,
        "long_factor": floats(keys.source, tensors[1])?,
        "attention_factor": attention,
    });
    map.insert("rope_scaling".into(), scaling);
    Ok(())
}

fn phi3_out(config: &DecoderConfig, entries: &mut Entries) {
    let window = config.layers.iter().find_map(|layer| layer.window);
    entries.push(("attention.sliding_window", number(window.unwrap_or(0))));
}

/// Each key and the value that leaves things as they are, where llama.cpp takes one.
fn granite(keys: &Keys<'_>, map: &mut Map<String, Value>) -> Result<(), ModelError> {
    if keys.get::<bool>("rope.scaling.finetuned")? == Some(false) {
        let expected = "true: a model without rotary positions is not supported";
        return Err(keys.bad("rope.scaling.finetuned", "false", expected));
    }
    let width = map["head_dim"].as_u64().unwrap_or(1) as f64;
    let attention = keys.float("attention.scale")?.filter(|x| *x != 0.0);
    map.insert("attention_multiplier".into(), json!(attention.unwrap_or(width.powf(-0.5))));
    map.insert("logits_scaling".into(), json!(keys.require::<f32>("logit_scale")?));
    for (field, key) in
        [("embedding_multiplier", "embedding_scale"), ("residual_multiplier", "residual_scale")]
    {
        map.insert(field.into(), json!(keys.float(key)?.filter(|x| *x != 0.0)));
    }
    Ok(())
}

fn granite_out(config: &DecoderConfig, entries: &mut Entries) {
    for (key, value) in [
        ("attention.scale", config.attention_scale),
        ("embedding_scale", config.embedding_scale),
        ("residual_scale", config.residual_scale),
        ("logit_scale", 1.0 / config.logits_scale),
    ] {
        entries.push((key, gguf::Value::F32(value)));
    }
}

/// `rope_freqs.weight` [D/2]: each frequency is divided by its factor (the scaling of Llama 3.1 and
/// later, computed at conversion).
fn divide_frequencies(source: &dyn Source, config: &mut DecoderConfig) -> Result<(), ModelError> {
    const NAME: &str = "rope_freqs.weight";
    if source.shape(NAME).is_none() {
        return Ok(());
    }
    let factors = floats(source, NAME)?;
    for rope in &mut config.ropes {
        let frequencies = &mut rope.short.inv_freq;
        let good = |factor: &&f32| factor.is_finite() && **factor > 0.0;
        let count = factors.iter().filter(good).count();
        if factors.len() != frequencies.len() || count != factors.len() {
            return Err(ModelError::config(
                source.path(),
                format!(
                    "{NAME}: found {} values of which {count} are positive numbers, expected {} \
                     positive numbers",
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
fn floats(source: &dyn Source, tensor: &str) -> Result<Vec<f32>, ModelError> {
    let shape = source.shape(tensor).unwrap_or_default();
    match shape {
        [len] if *len <= 1 << 16 => Ok(source.floats(tensor)),
        _ => Err(ModelError::config(
            source.path(),
            format!("{tensor}: found shape {shape:?}, expected one short row"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::Family;

    #[test]
    fn every_family_has_its_architecture() {
        for family in Family::all().map(Family::name) {
            let of = ARCHITECTURES.iter().filter(|a| a.model_types.contains(&family));
            assert_eq!(of.count(), 1, "{family}");
        }
    }
}
