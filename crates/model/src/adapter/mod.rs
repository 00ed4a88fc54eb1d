//! LoRA adapters (arXiv 2106.09685): parameters, the set that a batch draws from, and PEFT's
//! folder format in and out.
//!
//! Variants are fields of the [`LoraConfig`]: rank and alpha by module, rsLoRA's scale (arXiv
//! 2312.03732), dropout in training, and DoRA (arXiv 2402.09353), where W + s·B·A is brought to a
//! learnt length row by row.

mod peft;
mod set;
mod targets;

use crate::config::DecoderConfig;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::files::hex;
use crate::linear::Linear;
use indexmap::IndexMap;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::Path;

pub(crate) use set::Dora;
pub use set::{AdapterSet, PackedAdapter};
use targets::Chosen;
pub use targets::{LoraConfigError, Targets};

/// PEFT's word for every linear layer of a model: all of [`DecoderConfig::target_modules`].
pub const ALL_LINEAR: &str = "all-linear";

/// Largest rank accepted from a file.
const MAX_RANK: usize = 4096;
/// Ranks that every engine with a fixed list of them serves (vLLM's `max_lora_rank`).
pub const PORTABLE_RANKS: [usize; 8] = [8, 16, 32, 64, 128, 256, 320, 512];

/// What makes a LoRA adapter, in PEFT's spelling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank R.
    pub r: usize,
    /// The delta is scaled by lora_alpha / r.
    pub lora_alpha: f32,
    /// Which linear layers: short names from [`DecoderConfig::target_modules`], full names, a
    /// pattern, or [`ALL_LINEAR`].
    pub target_modules: Targets,
    /// Linear layers that are left out all the same.
    pub exclude_modules: Targets,
    /// Only these layers, counted from 0; all when empty.
    pub layers_to_transform: Vec<usize>,
    /// What stands before the layer's number in a module's name; any name when empty.
    pub layers_pattern: Vec<String>,
    /// Another rank for modules whose name, or its end after a dot, matches the key: the first one
    /// that does.
    pub rank_pattern: IndexMap<String, usize>,
    /// Another alpha, in the same way.
    pub alpha_pattern: IndexMap<String, f32>,
    /// Scale by lora_alpha / sqrt(r) instead (rsLoRA): larger ranks then learn as fast.
    pub use_rslora: bool,
    /// Learn the length of each row of W + delta apart from its direction (DoRA).
    pub use_dora: bool,
    /// In training, each input of A is zero with this probability and scaled up otherwise.
    pub lora_dropout: f32,
}

impl Default for LoraConfig {
    /// r = 32, alpha = 64, all linear layers, nothing else.
    fn default() -> LoraConfig {
        LoraConfig {
            r: 32,
            lora_alpha: 64.0,
            target_modules: Targets::all_linear(),
            exclude_modules: Targets::Names(Vec::new()),
            layers_to_transform: Vec::new(),
            layers_pattern: Vec::new(),
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            use_rslora: false,
            use_dora: false,
            lora_dropout: 0.0,
        }
    }
}

impl LoraConfig {
    /// Refuses a configuration that a model of this shape cannot have.
    ///
    /// # Errors
    /// [`LoraConfigError`] naming the field, what it holds and what it may hold.
    pub fn validate(&self, model: &DecoderConfig) -> Result<(), LoraConfigError> {
        self.check_names(model)?;
        self.choose(model)?;
        if self.use_dora && self.lora_dropout > 0.0 {
            return Err(LoraConfigError {
                field: "lora_dropout",
                found: self.lora_dropout.to_string(),
                expected: "0 together with use_dora".into(),
            });
        }
        Ok(())
    }
}

impl From<LoraConfigError> for ModelError {
    fn from(error: LoraConfigError) -> ModelError {
        ModelError::Params(error.to_string())
    }
}

/// The size of an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoraCount {
    /// Parameters.
    pub params: usize,
    /// Bytes of the copy that an [`AdapterSet`] holds for the kernels.
    pub packed_bytes: usize,
}

/// One matrix's A [R, in], B [out, R] and, for DoRA, magnitude [out], by place in
/// [`LoraAdapter::params`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    /// Full module name, as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub(crate) layer: usize,
    pub(crate) linear: Linear,
    /// R
    pub r: usize,
    /// Factor of B A: alpha / R, or alpha / sqrt(R).
    pub scale: f32,
    /// Inputs of the matrix.
    pub in_features: usize,
    /// Outputs of the matrix.
    pub out_features: usize,
    /// lora_A, row-major [R, in].
    pub a: Range<usize>,
    /// lora_B, row-major [out, R].
    pub b: Range<usize>,
    /// lora_magnitude_vector, [out]; empty unless DoRA.
    pub magnitude: Range<usize>,
}

/// An adapter's parameters, f32, flat.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAdapter {
    /// Rank, alpha, targets.
    pub config: LoraConfig,
    /// Every A and B; places are in [`LoraAdapter::modules`].
    pub params: Vec<f32>,
    modules: Vec<LoraModule>,
    /// Layers of the base.
    layers: usize,
    base_digest: Option<String>,
}

impl LoraAdapter {
    /// A fresh adapter: A ~ U(-1/sqrt(in), 1/sqrt(in)) (PEFT's kaiming_uniform with a = sqrt(5)),
    /// B = 0, so that it starts as the base; DoRA's magnitudes are the lengths of the base's rows.
    /// The same seed gives the same values.
    ///
    /// # Errors
    /// [`ModelError::Params`] naming the field that this base cannot honour.
    pub fn init(config: &LoraConfig, base: &Decoder, seed: u64) -> Result<LoraAdapter, ModelError> {
        config.validate(base.config())?;
        let chosen = config.choose(base.config())?;
        let modules = layout(&chosen, config.use_dora, base.config());
        let mut adapter =
            LoraAdapter::zeroed(config.clone(), modules, base.config().num_hidden_layers);
        let mut rng = Pcg64::seed_from_u64(seed);
        for module in &adapter.modules {
            let bound = 1.0 / (module.in_features as f32).sqrt();
            for value in &mut adapter.params[module.a.clone()] {
                *value = rng.random_range(-bound..bound);
            }
        }
        if config.use_dora {
            for i in 0..adapter.modules.len() {
                let lengths = adapter.row_lengths(i, base);
                let place = adapter.modules[i].magnitude.clone();
                adapter.params[place].copy_from_slice(&lengths);
            }
        }
        Ok(adapter)
    }

    /// How large an adapter of this configuration is, without making it.
    ///
    /// # Errors
    /// [`LoraConfigError`] naming the field that a model of this shape cannot honour.
    pub fn count(config: &LoraConfig, model: &DecoderConfig) -> Result<LoraCount, LoraConfigError> {
        let mut count = LoraCount::default();
        for m in layout(&config.choose(model)?, config.use_dora, model) {
            count.params = m.magnitude.end;
            // Panels of sixteen outputs, in f32.
            let panels = |n: usize| n.next_multiple_of(16);
            let b: usize = m.linear.parts(model).iter().map(|(_, r)| panels(r.len()) * m.r).sum();
            count.packed_bytes += (panels(m.r) * m.in_features + b) * size_of::<f32>();
        }
        Ok(count)
    }

    /// Reads a PEFT folder: adapter_config.json and adapter_model.safetensors.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] naming the field or tensor: another peft_type, an option that
    /// cannot be honoured, tensors that the base lacks or of the wrong shape (all listed),
    /// or that are missing (all listed), values that are not finite, a lora_B that is zero everywhere,
    /// or another base.
    pub fn load(dir: &Path, base: &Decoder) -> Result<LoraAdapter, ModelError> {
        peft::load(dir, base)
    }

    /// Writes a PEFT folder in the form of [`LoraAdapter::portable`], which every consumer of plain
    /// LoRA reads: explicit sorted target modules, f32. `metadata` goes into the safetensors header
    /// beside the digest of the base; `base_name` into adapter_config.json.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Adapter`] when a value is not finite (nothing is written
    /// then).
    pub fn save(
        &self,
        dir: &Path,
        base_name: &str,
        base_digest: &str,
        metadata: &[(String, String)],
    ) -> Result<(), ModelError> {
        peft::save(self, dir, base_name, base_digest, metadata)
    }

    /// Every matrix's place in [`LoraAdapter::params`].
    pub fn modules(&self) -> &[LoraModule] {
        &self.modules
    }

    /// Number of parameters.
    pub fn param_count(&self) -> usize {
        self.params.len()
    }

    /// Digest of the base that the file names; None for adapters from elsewhere.
    pub fn base_digest(&self) -> Option<&str> {
        self.base_digest.as_deref()
    }

    /// SHA-256 over everything that makes the adapter act: modules, ranks, scales and values, as 64
    /// lower-case hexadecimal digits. Two folders with the same digest answer alike, whatever type
    /// their files are in.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        for m in &self.modules {
            hasher.update((m.name.len() as u64).to_le_bytes());
            hasher.update(m.name.as_bytes());
            hasher.update((m.r as u64).to_le_bytes());
            hasher.update(m.scale.to_le_bytes());
            hasher.update([u8::from(!m.magnitude.is_empty())]);
        }
        hasher.update(bytemuck::cast_slice::<f32, u8>(&self.params));
        hex(&hasher.finalize())
    }

    /// The same adapter with one rank, one alpha and no patterns, as most engines need it. Modules
    /// of a smaller rank are filled up with zeros; where scales differ, each goes into its B. The
    /// rank becomes the smallest of `ranks` that holds it, if there is one.
    pub fn portable(&self, ranks: &[usize]) -> LoraAdapter {
        let largest = self.modules.iter().map(|m| m.r).max().unwrap_or(self.config.r);
        let r = ranks.iter().copied().filter(|&r| r >= largest).min().unwrap_or(largest);
        let scale = self.modules.first().map_or(1.0, |m| m.scale);
        let one_scale = self.modules.iter().all(|m| m.scale == scale);
        let as_it_is = one_scale && !self.config.use_rslora && r == self.config.r;
        let short = |m: &LoraModule| m.linear.short_name();
        let name = |m: &LoraModule| {
            // A short name stands for that matrix of every layer.
            let everywhere =
                self.modules.iter().filter(|o| short(o) == short(m)).count() == self.layers;
            if everywhere { short(m).to_owned() } else { m.name.clone() }
        };
        let names: std::collections::BTreeSet<String> = self.modules.iter().map(name).collect();
        let config = LoraConfig {
            r,
            lora_alpha: match (as_it_is && self.config.alpha_pattern.is_empty(), one_scale) {
                (true, _) => self.config.lora_alpha,
                (_, true) => scale * r as f32,
                (_, false) => r as f32,
            },
            target_modules: names.into_iter().collect(),
            use_dora: self.config.use_dora,
            ..LoraConfig::default()
        };
        let scale = config.lora_alpha / r as f32;
        let mut at = 0;
        let place = |m: &LoraModule| {
            let module = m.placed(at, r, scale, self.config.use_dora);
            at = module.magnitude.end;
            module
        };
        let modules = self.modules.iter().map(place).collect();
        let mut adapter = LoraAdapter::zeroed(config, modules, self.layers);
        adapter.base_digest = self.base_digest.clone();
        for (from, to) in self.modules.iter().zip(&adapter.modules) {
            let a = &self.params[from.a.clone()];
            adapter.params[to.a.clone()][..a.len()].copy_from_slice(a);
            let b = self.params[from.b.clone()].chunks_exact(from.r);
            for (to, from_row) in adapter.params[to.b.clone()].chunks_exact_mut(r).zip(b) {
                for (to, value) in to.iter_mut().zip(from_row) {
                    *to = if one_scale { *value } else { from.scale * value };
                }
            }
            adapter.params[to.magnitude.clone()]
                .copy_from_slice(&self.params[from.magnitude.clone()]);
        }
        adapter
    }

    /// Sets one alpha for all modules.
    pub(crate) fn set_alpha(&mut self, alpha: f32) {
        self.config.lora_alpha = alpha;
        self.modules.iter_mut().for_each(|m| m.scale = alpha / m.r as f32);
    }

    /// The length of every row of W + s·B·A of module `index`, with the base's W.
    fn row_lengths(&self, index: usize, base: &Decoder) -> Vec<f32> {
        let m = &self.modules[index];
        let a = kernels::PackedMatrix::from_f32(&self.params[m.a.clone()], m.r, m.in_features);
        let b = &self.params[m.b.clone()];
        let parts = m.linear.parts(base.config());
        let rows = parts.into_iter().flat_map(|(module, rows)| {
            let b = &b[rows.start * m.r..rows.end * m.r];
            set::row_lengths(base.layers[m.layer].matrix(module), &a, b, m.scale)
        });
        rows.collect()
    }

    fn zeroed(config: LoraConfig, modules: Vec<LoraModule>, layers: usize) -> LoraAdapter {
        let count = modules.last().map_or(0, |m| m.magnitude.end);
        LoraAdapter { config, params: vec![0.0; count], modules, layers, base_digest: None }
    }
}

impl LoraModule {
    /// Whether a model of this shape has the matrix.
    pub(crate) fn fits(&self, model: &DecoderConfig) -> bool {
        self.layer < model.num_hidden_layers
            && model.linears(self.layer).contains(&self.linear)
            && self.linear.shape(model) == (self.out_features, self.in_features)
    }

    /// This module with another rank and scale, its values from `at` on.
    fn placed(&self, at: usize, r: usize, scale: f32, dora: bool) -> LoraModule {
        let a = at..at + r * self.in_features;
        let b = a.end..a.end + self.out_features * r;
        let magnitude = b.end..b.end + if dora { self.out_features } else { 0 };
        LoraModule { r, scale, a, b, magnitude, ..self.clone() }
    }
}

/// Modules one after the other, each A, B and magnitude.
fn layout(wanted: &[Chosen], dora: bool, model: &DecoderConfig) -> Vec<LoraModule> {
    let mut at = 0;
    let place = |chosen: &Chosen| {
        let (out_features, in_features) = chosen.linear.shape(model);
        let module = LoraModule {
            name: chosen.linear.full_name(chosen.layer),
            layer: chosen.layer,
            linear: chosen.linear,
            r: chosen.r,
            scale: chosen.scale,
            in_features,
            out_features,
            a: 0..0,
            b: 0..0,
            magnitude: 0..0,
        }
        .placed(at, chosen.r, chosen.scale, dora);
        at = module.magnitude.end;
        module
    };
    wanted.iter().map(place).collect()
}
