//! Encoders: one forward in which every token sees all of its text (arXiv 1810.04805). They make
//! embeddings and nothing else; there is no backward, no adapter and no cache.
//!
//! ```text
//! x   = norm(word + position + type)
//! mid = norm(x   + o(attention(q(x), k(x), v(x))))
//! out = norm(mid + down(gelu(up(mid))))
//! ```
//!
//! Every matrix has a bias, norms are LayerNorms, texts are of one piece (token type 0).

use crate::batch::Batch;
use crate::config::{MAX_LAYERS, RawConfig, parse_config, read_config};
use crate::decoder::{LoadOptions, WeightDtype};
use crate::error::ModelError;
use crate::families;
use crate::linear::Module;
use crate::params::Slot;
use crate::weights::{self, FileTensor};
use kernels::{AttnRule, AttnSegment, BLOCK_SIZE, Gelu, KvDtype, KvPages, KvStore, PackedMatrix};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The shape of an encoder, validated: no size is zero or absurd, heads divide.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// `model_type` in config.json.
    pub family: &'static str,
    /// H
    pub hidden_size: usize,
    /// I
    pub intermediate_size: usize,
    /// L
    pub num_hidden_layers: usize,
    /// Heads; divides H.
    pub num_attention_heads: usize,
    /// V
    pub vocab_size: usize,
    /// Rows of the table of positions.
    pub max_position_embeddings: usize,
    /// Rows of the table of token types, of which only the first is used.
    pub type_vocab_size: usize,
    /// Added to the variance before the root.
    pub layer_norm_eps: f32,
    /// The padding token, where positions are counted from behind its id; tokens of this id all stand
    /// at it. None counts from 0.
    pub padding: Option<u32>,
    pub(crate) gelu: Gelu,
    /// What stands before the names of tensors where the model was saved with a head on it.
    prefix: &'static str,
}

impl EncoderConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// As [`crate::DecoderConfig::load`].
    pub fn load(dir: &Path) -> Result<EncoderConfig, ModelError> {
        let (path, bytes) = read_config(dir)?;
        Self::from_json(&bytes, &path)
    }

    /// Parses the bytes of a `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// As [`crate::DecoderConfig::load`].
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<EncoderConfig, ModelError> {
        parse_config(bytes, path, |raw, model_type| {
            let spec = families::encoder(model_type).ok_or_else(|| {
                let names: Vec<&str> = families::ENCODERS.iter().map(|f| f.model_type).collect();
                let expected = format!("an encoder: {}", names.join(", "));
                raw.bad("model_type", &format!("\"{model_type}\""), &expected)
            })?;
            let (family, prefix) = (spec.model_type, spec.prefix);
            let config = EncoderConfig { family, prefix, ..(spec.resolve)(raw)? };
            raw.nothing_unread()?;
            config.validate(raw)?;
            Ok(config)
        })
    }

    /// What all families share, with positions from 0.
    pub(crate) fn read(raw: &RawConfig<'_>) -> Result<EncoderConfig, ModelError> {
        // Of other tasks, of generation, and of training.
        raw.ignore(&[
            "attention_probs_dropout_prob",
            "bos_token_id",
            "directionality",
            "eos_token_id",
            "gradient_checkpointing",
            "hidden_dropout_prob",
            "output_past",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
            "tie_word_embeddings",
        ]);
        if raw.flag_or("is_decoder", false)? {
            return Err(raw.bad("is_decoder", "true", "false: every token sees all of its text"));
        }
        match raw.get("position_embedding_type").map(|v| v.as_str()) {
            None | Some(Some("absolute")) => {}
            Some(other) => {
                let found = format!("{other:?}");
                return Err(raw.bad("position_embedding_type", &found, "\"absolute\""));
            }
        }
        let gelu = match raw.get("hidden_act").map(|v| v.as_str()) {
            None | Some(Some("gelu")) => Gelu::Exact,
            Some(Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast")) => Gelu::Tanh,
            Some(other) => {
                let expected = "\"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\" or \"gelu_fast\"";
                return Err(raw.bad("hidden_act", &format!("{other:?}"), expected));
            }
        };
        Ok(EncoderConfig {
            family: "",
            hidden_size: raw.size("hidden_size")?,
            intermediate_size: raw.size("intermediate_size")?,
            num_hidden_layers: raw.size("num_hidden_layers")?,
            num_attention_heads: raw.size("num_attention_heads")?,
            vocab_size: raw.size("vocab_size")?,
            max_position_embeddings: raw.size_or("max_position_embeddings", 512)?,
            type_vocab_size: raw.size_or("type_vocab_size", 2)?,
            layer_norm_eps: raw.float_or("layer_norm_eps", 1e-12)? as f32,
            padding: None,
            gelu,
            prefix: "",
        })
    }

    /// With positions counted from behind the id `padding`.
    pub(crate) fn with_padding(
        self,
        padding: u32,
        raw: &RawConfig<'_>,
    ) -> Result<EncoderConfig, ModelError> {
        if self.max_position_embeddings <= padding as usize + 1 {
            return Err(raw.bad(
                "max_position_embeddings",
                &self.max_position_embeddings.to_string(),
                &format!("more than pad_token_id + 1 = {}", u64::from(padding) + 1),
            ));
        }
        Ok(EncoderConfig { padding: Some(padding), ..self })
    }

    /// Longest text, tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_position_embeddings - self.padding.map_or(0, |padding| padding as usize + 1)
    }

    fn validate(&self, raw: &RawConfig<'_>) -> Result<(), ModelError> {
        // Bounds far above any published model, low enough that no product overflows.
        for (field, value, most) in [
            ("hidden_size", self.hidden_size, 1 << 17),
            ("intermediate_size", self.intermediate_size, 1 << 19),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("vocab_size", self.vocab_size, 1 << 22),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 20),
            ("type_vocab_size", self.type_vocab_size, 1 << 10),
        ] {
            if value == 0 || value > most {
                return Err(raw.bad(field, &value.to_string(), &format!("1 to {most}")));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(raw.bad(
                "num_attention_heads",
                &self.num_attention_heads.to_string(),
                &format!("a divisor of hidden_size = {}", self.hidden_size),
            ));
        }
        let eps = self.layer_norm_eps;
        if !(eps.is_finite() && eps > 0.0 && eps < 1.0) {
            return Err(raw.bad("layer_norm_eps", &eps.to_string(), "between 0 and 1"));
        }
        Ok(())
    }

    /// Every tensor, by its name in Hugging Face's files without the prefix.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, i) = (self.hidden_size, self.intermediate_size);
        let mut list = Vec::new();
        let mut one = |name: String, shape: Vec<usize>| list.push((name, shape));
        for (name, rows) in [
            ("word", self.vocab_size),
            ("position", self.max_position_embeddings),
            ("token_type", self.type_vocab_size),
        ] {
            one(format!("embeddings.{name}_embeddings.weight"), vec![rows, h]);
        }
        let mut norm = |name: &str| {
            one(format!("{name}.weight"), vec![h]);
            one(format!("{name}.bias"), vec![h]);
        };
        norm("embeddings.LayerNorm");
        for l in 0..self.num_hidden_layers {
            for block in ["attention.output", "output"] {
                norm(&format!("encoder.layer.{l}.{block}.LayerNorm"));
            }
        }
        for l in 0..self.num_hidden_layers {
            for (name, n, k) in
                [(Q, h, h), (K, h, h), (V, h, h), (O, h, h), (UP, i, h), (DOWN, h, i)]
            {
                one(format!("encoder.layer.{l}.{name}.weight"), vec![n, k]);
                one(format!("encoder.layer.{l}.{name}.bias"), vec![n]);
            }
        }
        list
    }
}

const Q: &str = "attention.self.query";
const K: &str = "attention.self.key";
const V: &str = "attention.self.value";
const O: &str = "attention.output.dense";
const UP: &str = "intermediate.dense";
const DOWN: &str = "output.dense";

/// Tensors that published files carry and that the forward does not need: what stands on top of the
/// hidden states, and ids that follow from the configuration.
const IGNORED: &[&str] =
    &["pooler.", "cls.", "lm_head.", "embeddings.position_ids", "embeddings.token_type_ids"];

/// Whether the model folder `dir` holds an encoder.
///
/// # Errors
/// [`ModelError`] when its config.json cannot be read.
pub fn is_encoder(dir: &Path) -> Result<bool, ModelError> {
    let (path, bytes) = read_config(dir)?;
    parse_config(&bytes, &path, |_, model_type| Ok(families::encoder(model_type).is_some()))
}

/// A loaded encoder. Immutable, so that one is shared by every request.
pub struct Encoder {
    config: EncoderConfig,
    /// [V, H]
    words: PackedMatrix,
    /// [P, H]
    positions: PackedMatrix,
    /// Of token type 0, [H].
    token_type: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    /// Folder and files that the weights came from.
    source: (PathBuf, Vec<String>),
    digest: OnceLock<String>,
}

struct Layer {
    q: Dense,
    k: Dense,
    v: Dense,
    o: Dense,
    attention_norm: Norm,
    up: Dense,
    down: Dense,
    output_norm: Norm,
}

/// y = x·Wᵀ + b
struct Dense {
    weight: PackedMatrix,
    bias: Vec<f32>,
}

impl Dense {
    /// y [T, N] = x [T, K] · Wᵀ + b, on top of what is in y where `add` says so.
    fn forward(&self, y: &mut [f32], x: &[f32], add: bool) {
        kernels::matmul(y, x, &self.weight, x.len() / self.weight.k(), add);
        kernels::add_row(y, &self.bias);
    }
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Encoder {
    /// Loads a folder with config.json and safetensors, single or sharded.
    ///
    /// # Errors
    /// [`ModelError`] naming file and problem; wrong or missing tensors are all listed at once.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Encoder, ModelError> {
        let config = EncoderConfig::load(dir)?;
        let wanted = config.tensors();
        let (encoder, files) = weights::with_tensors(
            dir,
            |_| false,
            |tensors, mut problems| {
                let tensors = plain_names(tensors, config.prefix, &mut problems);
                let tensors =
                    tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect();
                let specs = wanted.iter().map(|(name, shape)| (name.as_str(), &shape[..]));
                let ignored = |name: &str| IGNORED.iter().any(|i| name.starts_with(i));
                problems.extend(weights::mismatches(specs, &tensors, ignored));
                weights::no_problems(dir, problems)?;
                let source = Tensors { tensors: &tensors, dtype: options.dtype };
                source.encoder(&config).map_err(|problem| ModelError::weights(dir, problem))
            },
        )?;
        Ok(Encoder { source: (dir.to_owned(), files), ..encoder })
    }

    /// The model's shape.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// SHA-256 over config.json and the weight files; computed at the first call.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the files are gone.
    pub fn digest(&self) -> Result<&str, ModelError> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest);
        }
        let computed = crate::files::digest_files(&self.source.0, &self.source.1)?;
        Ok(self.digest.get_or_init(|| computed))
    }

    /// Runs `batch`, whole texts without a past or an adapter, and returns the last hidden states at
    /// `batch.logit_rows`, [rows, H]. Each row's bits depend on its own text only.
    ///
    /// # Errors
    /// [`ModelError::Batch`] when the batch breaks a rule; nothing was computed then.
    pub fn forward(&self, batch: &Batch) -> Result<Vec<f32>, ModelError> {
        let texts = self.check(batch)?;
        Ok(kernels::in_pool(|| self.forward_in_pool(batch, &texts)))
    }

    /// The rows of each text.
    fn check(&self, batch: &Batch) -> Result<Vec<Range<usize>>, ModelError> {
        let bad = |problem: String| Err(ModelError::Batch(problem));
        let (mut texts, mut start) = (Vec::new(), 0);
        for (i, segment) in batch.segments.iter().enumerate() {
            if segment.past != 0 || segment.adapter.is_some() {
                return bad(format!(
                    "segment {i} has a past or an adapter; an encoder knows neither"
                ));
            }
            if segment.len == 0 || segment.len > self.config.max_tokens() {
                let most = self.config.max_tokens();
                return bad(format!(
                    "segment {i} has {} tokens, expected 1 to {most}",
                    segment.len
                ));
            }
            texts.push(start..start + segment.len);
            start += segment.len;
        }
        if start != batch.tokens.len() || start == 0 {
            let tokens = batch.tokens.len();
            return bad(format!("segments hold {start} tokens, the batch {tokens}"));
        }
        let vocab = self.config.vocab_size;
        if let Some(token) = batch.tokens.iter().find(|&&t| t as usize >= vocab) {
            return bad(format!("token id {token}, expected below the vocabulary of {vocab}"));
        }
        match batch.logit_rows.iter().find(|&&row| row >= start) {
            Some(row) => bad(format!("row {row} of {start} is wanted")),
            None => Ok(texts),
        }
    }

    fn forward_in_pool(&self, batch: &Batch, texts: &[Range<usize>]) -> Vec<f32> {
        let (t, h) = (batch.tokens.len(), self.config.hidden_size);
        let mut x = self.embed(&batch.tokens, texts);
        let mut pages = Pages::new(&self.config, texts);
        let [mut q, mut k, mut v, mut mixed, mut sum] = [(); 5].map(|()| vec![0.0; t * h]);
        let mut wide = vec![0.0; t * self.config.intermediate_size];
        for layer in &self.layers {
            layer.q.forward(&mut q, &x, false);
            layer.k.forward(&mut k, &x, false);
            layer.v.forward(&mut v, &x, false);
            pages.attend(&mut mixed, &q, &k, &v);
            sum.copy_from_slice(&x);
            layer.o.forward(&mut sum, &mixed, true);
            self.norm(&layer.attention_norm, &mut x, &sum);
            layer.up.forward(&mut wide, &x, false);
            kernels::gelu(self.config.gelu, &mut wide);
            sum.copy_from_slice(&x);
            layer.down.forward(&mut sum, &wide, true);
            self.norm(&layer.output_norm, &mut x, &sum);
        }
        batch.logit_rows.iter().flat_map(|row| &x[row * h..(row + 1) * h]).copied().collect()
    }

    /// norm(word + position + type), [T, H].
    fn embed(&self, tokens: &[u32], texts: &[Range<usize>]) -> Vec<f32> {
        let h = self.config.hidden_size;
        let mut positions = Vec::with_capacity(tokens.len());
        for text in texts {
            let mut next = self.config.padding.map_or(0, |padding| padding + 1);
            positions.extend(tokens[text.clone()].iter().map(|token| {
                // A padding token that stands in a text is at no place of it.
                if Some(*token) == self.config.padding {
                    return *token;
                }
                next += 1;
                next - 1
            }));
        }
        let (mut sum, mut places) = (vec![0.0; tokens.len() * h], vec![0.0; tokens.len() * h]);
        kernels::embedding(&mut sum, tokens, &self.words);
        kernels::embedding(&mut places, &positions, &self.positions);
        kernels::add_scaled(&mut sum, &places, 1.0);
        kernels::add_row(&mut sum, &self.token_type);
        self.norm(&self.norm, &mut places, &sum);
        places
    }

    fn norm(&self, norm: &Norm, y: &mut [f32], x: &[f32]) {
        kernels::layer_norm(y, x, &norm.weight, &norm.bias, self.config.layer_norm_eps);
    }
}

/// One layer's keys and values, in the pages that the attention kernel reads.
struct Pages<'a> {
    texts: &'a [Range<usize>],
    /// The pages of each text.
    tables: Vec<Vec<u32>>,
    k: KvStore,
    v: KvStore,
    heads: usize,
    head_dim: usize,
}

impl Pages<'_> {
    fn new<'a>(config: &EncoderConfig, texts: &'a [Range<usize>]) -> Pages<'a> {
        let mut count = 0;
        let tables = texts.iter().map(|text| {
            let first = count;
            count += text.len().div_ceil(BLOCK_SIZE) as u32;
            (first..count).collect()
        });
        let tables = tables.collect();
        let heads = config.num_attention_heads;
        let size = count as usize * config.hidden_size * BLOCK_SIZE;
        let head_dim = config.hidden_size / heads;
        let store = || KvStore::new(KvDtype::F32, size, head_dim);
        Pages { texts, tables, k: store(), v: store(), heads, head_dim }
    }

    /// out [T, H] = softmax(q·kᵀ/√D) · v over all tokens of each text.
    ///
    /// The kernel is causal: a row sees the keys up to its own. Here a text is handed to it as one
    /// position, the last, with all of the text's queries as the query heads of that position; so each of
    /// them sees every key, and they are still worked on in tiles.
    fn attend(&mut self, out: &mut [f32], q: &[f32], k: &[f32], v: &[f32]) {
        let (heads, d) = (self.heads, self.head_dim);
        let texts = self.texts.iter().zip(&self.tables);
        let segments: Vec<AttnSegment<'_>> = texts
            .clone()
            .map(|(rows, pages)| AttnSegment { rows: rows.clone(), past: 0, pages })
            .collect();
        kernels::write_kv(&mut self.k, &mut self.v, k, v, &segments, heads, d);
        let pages = KvPages { k: &self.k, v: &self.v, kv_heads: heads, head_dim: d };
        let rule = AttnRule::full(1.0 / (d as f32).sqrt());
        for (text, table) in texts {
            let (n, own) = (text.len(), text.start * heads * d..text.end * heads * d);
            let mut queries = vec![0.0; own.len()];
            swap_axes(&mut queries, &q[own.clone()], n, heads, d);
            let mut mixed = vec![0.0; own.len()];
            let whole = [AttnSegment { rows: 0..1, past: n - 1, pages: table }];
            kernels::attention(&mut mixed, &queries, pages, &whole, heads * n, rule);
            swap_axes(&mut out[own], &mixed, heads, n, d);
        }
    }
}

/// y [B, A, D] = x [A, B, D].
fn swap_axes(y: &mut [f32], x: &[f32], a: usize, b: usize, d: usize) {
    for i in 0..a {
        for j in 0..b {
            y[(j * a + i) * d..][..d].copy_from_slice(&x[(i * b + j) * d..][..d]);
        }
    }
}

/// Tensors under the names that they have without a head: without the prefix, and with norms named as
/// today ("gamma" and "beta" are older).
fn plain_names<'t, 'a>(
    tensors: &'t BTreeMap<&str, FileTensor<'a>>,
    prefix: &str,
    problems: &mut Vec<String>,
) -> BTreeMap<String, &'t FileTensor<'a>> {
    let mut plain = BTreeMap::new();
    for (name, tensor) in tensors {
        let short = name.strip_prefix(prefix).unwrap_or(name);
        let short = match short.rsplit_once('.') {
            Some((norm, "gamma")) => format!("{norm}.weight"),
            Some((norm, "beta")) => format!("{norm}.bias"),
            _ => short.to_owned(),
        };
        if plain.insert(short, tensor).is_some() {
            problems.push(format!("{name}: stored twice, under another name too"));
        }
    }
    plain
}

/// Tensors of the right shapes, and how they are to be held.
struct Tensors<'t, 'a> {
    tensors: &'t BTreeMap<&'t str, &'t FileTensor<'a>>,
    dtype: WeightDtype,
}

impl Tensors<'_, '_> {
    fn encoder(&self, config: &EncoderConfig) -> Result<Encoder, String> {
        let table = |name: &str| format!("embeddings.{name}_embeddings.weight");
        let types = self.values(&table("token_type"))?;
        let positions = self.values(&table("position"))?;
        let h = config.hidden_size;
        let layer = |l: usize| {
            let name = |part: &str| format!("encoder.layer.{l}.{part}");
            let dense = |part: &str| self.dense(&name(part));
            Ok(Layer {
                q: dense(Q)?,
                k: dense(K)?,
                v: dense(V)?,
                o: dense(O)?,
                attention_norm: self.norm(&name("attention.output.LayerNorm"))?,
                up: dense(UP)?,
                down: dense(DOWN)?,
                output_norm: self.norm(&name("output.LayerNorm"))?,
            })
        };
        Ok(Encoder {
            words: self.matrix(&table("word"), Slot::Embed)?,
            positions: PackedMatrix::from_f32(&positions, config.max_position_embeddings, h),
            token_type: types[..h].to_vec(),
            norm: self.norm("embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, String>>()?,
            config: config.clone(),
            source: (PathBuf::new(), Vec::new()),
            digest: OnceLock::new(),
        })
    }

    fn dense(&self, name: &str) -> Result<Dense, String> {
        Ok(Dense {
            weight: self.matrix(&format!("{name}.weight"), Slot::Matrix(0, Module::Q))?,
            bias: self.values(&format!("{name}.bias"))?,
        })
    }

    fn norm(&self, name: &str) -> Result<Norm, String> {
        Ok(Norm {
            weight: self.values(&format!("{name}.weight"))?,
            bias: self.values(&format!("{name}.bias"))?,
        })
    }

    /// A matrix as the user wants it held; `slot` is what it counts as in a decoder.
    fn matrix(&self, name: &str, slot: Slot) -> Result<PackedMatrix, String> {
        let tensor = self.tensors[name];
        let published = weights::published(name, &tensor.view);
        published.check_finite()?;
        let (n, k) = (tensor.view.shape()[0], tensor.view.shape()[1]);
        let matrix = published.matrix(slot, &(0..n), k, self.dtype, |row| row);
        tensor.release();
        Ok(matrix)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, String> {
        let tensor = self.tensors[name];
        weights::published(name, &tensor.view).check_finite()?;
        let values = weights::to_f32(&tensor.view);
        tensor.release();
        Ok(values)
    }
}
