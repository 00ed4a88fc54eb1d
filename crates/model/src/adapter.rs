//! LoRA adapters (arXiv 2106.09685): parameters, the set that a batch draws from, and PEFT's
//! folder format in and out.

use crate::batch::Batch;
use crate::config::DecoderConfig;
use crate::decoder::{Decoder, Grads};
use crate::error::ModelError;
use crate::files::{read_json_bytes, write_atomic};
use crate::linear::{Linear, Module};
use crate::weights;
use kernels::{LoraRef, MappedFile, PackedMatrix};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

/// PEFT's word for every linear layer of a model: all of [`DecoderConfig::target_modules`].
pub const ALL_LINEAR: &str = "all-linear";

/// Largest rank accepted from a file.
const MAX_RANK: usize = 4096;
/// Our own key in the safetensors metadata: which base the adapter was trained on.
const BASE_DIGEST_KEY: &str = "metier_base_digest";

/// What makes a LoRA adapter, in PEFT's spelling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank R.
    pub r: usize,
    /// The delta is scaled by lora_alpha / r.
    pub lora_alpha: f32,
    /// Short names from [`DecoderConfig::target_modules`], or [`ALL_LINEAR`].
    pub target_modules: Vec<String>,
}

impl Default for LoraConfig {
    /// r = 32, alpha = 64, all linear layers.
    fn default() -> LoraConfig {
        LoraConfig { r: 32, lora_alpha: 64.0, target_modules: vec![ALL_LINEAR.to_owned()] }
    }
}

/// One matrix's A [R, in] and B [out, R], by place in [`LoraAdapter::params`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    /// Full module name, as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub(crate) layer: usize,
    pub(crate) linear: Linear,
    /// R
    pub r: usize,
    /// Inputs of the matrix.
    pub in_features: usize,
    /// Outputs of the matrix.
    pub out_features: usize,
    /// lora_A, row-major [R, in].
    pub a: Range<usize>,
    /// lora_B, row-major [out, R].
    pub b: Range<usize>,
}

/// An adapter's parameters, f32, flat.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAdapter {
    /// Rank, alpha, targets.
    pub config: LoraConfig,
    /// Every A and B; places are in [`LoraAdapter::modules`].
    pub params: Vec<f32>,
    modules: Vec<LoraModule>,
    base_digest: Option<String>,
}

impl LoraAdapter {
    /// A fresh adapter: A ~ U(-1/sqrt(in), 1/sqrt(in)) (PEFT's kaiming_uniform with a = sqrt(5)),
    /// B = 0, so that it starts as the base. The same seed gives the same values.
    ///
    /// # Errors
    /// [`ModelError::Params`] for rank 0, a non-finite alpha or an unknown target module.
    pub fn init(
        config: &LoraConfig,
        model: &DecoderConfig,
        seed: u64,
    ) -> Result<LoraAdapter, ModelError> {
        let known = model.target_modules();
        let mut chosen: Vec<&str> = Vec::new();
        for target in &config.target_modules {
            if target == ALL_LINEAR {
                chosen.extend(&known);
            } else if let Some(name) = known.iter().find(|name| *name == target) {
                chosen.push(name);
            } else {
                return Err(ModelError::Params(format!(
                    "target_modules: found \"{target}\", expected some of {}",
                    known.join(", ")
                )));
            }
        }
        if config.r == 0
            || config.r > MAX_RANK
            || !config.lora_alpha.is_finite()
            || chosen.is_empty()
        {
            return Err(ModelError::Params(format!(
                "r = {}, lora_alpha = {}, {} target modules; expected r of 1 to {MAX_RANK}, a finite alpha, \
                 at least one target module",
                config.r,
                config.lora_alpha,
                chosen.len()
            )));
        }
        let is_chosen = |linear: &&Linear| chosen.contains(&linear.short_name());
        let wanted = (0..model.num_hidden_layers).flat_map(|l| {
            model.linears(l).iter().filter(is_chosen).map(move |linear| (l, *linear, config.r))
        });
        let modules = layout(wanted, model);
        let target_modules = known.iter().filter(|k| chosen.contains(k));
        let target_modules = target_modules.map(|k| k.to_string()).collect();
        let mut adapter =
            LoraAdapter::zeroed(LoraConfig { target_modules, ..config.clone() }, modules);
        let mut rng = Pcg64::seed_from_u64(seed);
        for module in &adapter.modules {
            let bound = 1.0 / (module.in_features as f32).sqrt();
            for value in &mut adapter.params[module.a.clone()] {
                *value = rng.random_range(-bound..bound);
            }
        }
        Ok(adapter)
    }

    /// Reads a PEFT folder: adapter_config.json and adapter_model.safetensors.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] naming the field or tensor: another peft_type, an option that
    /// cannot be honoured, tensors that the base lacks or of the wrong shape (all listed),
    /// values that are not finite, a lora_B that is zero everywhere, or another base.
    pub fn load(dir: &Path, base: &Decoder) -> Result<LoraAdapter, ModelError> {
        peft::load(dir, base)
    }

    /// Writes a PEFT folder that every consumer of plain LoRA reads: one rank, one alpha, no
    /// patterns, explicit sorted target modules, f32. `metadata` goes into the safetensors header
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

    fn zeroed(config: LoraConfig, modules: Vec<LoraModule>) -> LoraAdapter {
        let count = modules.last().map_or(0, |m| m.b.end);
        LoraAdapter { config, params: vec![0.0; count], modules, base_digest: None }
    }

    fn scale(&self) -> f32 {
        self.config.lora_alpha / self.config.r as f32
    }
}

fn layout(
    wanted: impl Iterator<Item = (usize, Linear, usize)>,
    model: &DecoderConfig,
) -> Vec<LoraModule> {
    let mut at = 0;
    wanted
        .map(|(layer, linear, r)| {
            let (out, input) = linear.shape(model);
            let a = at..at + r * input;
            let b = a.end..a.end + out * r;
            at = b.end;
            LoraModule {
                name: linear.full_name(layer),
                layer,
                linear,
                r,
                in_features: input,
                out_features: out,
                a,
                b,
            }
        })
        .collect()
}

/// The adapters that a batch can name, packed for the kernels, by slot.
#[derive(Default)]
pub struct AdapterSet {
    slots: Vec<Option<Slot>>,
}

struct Slot {
    name: String,
    scale: f32,
    modules: Vec<LoraModule>,
    /// A of each of `modules`.
    a: Vec<PackedMatrix>,
    parts: Vec<Part>,
    /// [layer][module] to index in `parts`.
    index: Vec<[Option<usize>; 7]>,
}

/// One matrix's share of a LoRA module: of a fused one the A is shared, and B falls into rows.
struct Part {
    /// Index in the slot's `modules` and `a`.
    module: usize,
    /// Place in [`LoraAdapter::params`] of its rows of B.
    place: Range<usize>,
    b: PackedMatrix,
}

impl AdapterSet {
    /// No adapters.
    pub fn new() -> AdapterSet {
        AdapterSet::default()
    }

    /// Adds an adapter under `name` and returns its slot.
    ///
    /// # Errors
    /// [`ModelError::Params`] when the name is taken or the adapter was made for another shape.
    pub fn insert(
        &mut self,
        name: &str,
        adapter: &LoraAdapter,
        model: &DecoderConfig,
    ) -> Result<usize, ModelError> {
        if self.slot(name).is_some() {
            return Err(ModelError::Params(format!(
                "an adapter named \"{name}\" is already there"
            )));
        }
        let mut index = vec![[None; 7]; model.num_hidden_layers];
        let mut parts = Vec::new();
        for (i, m) in adapter.modules.iter().enumerate() {
            let fits = m.layer < model.num_hidden_layers
                && model.linears(m.layer).contains(&m.linear)
                && m.linear.shape(model) == (m.out_features, m.in_features);
            if !fits {
                return Err(ModelError::Params(format!(
                    "adapter \"{name}\": {} is {} x {}, which this base does not have",
                    m.name, m.out_features, m.in_features
                )));
            }
            for (module, rows) in m.linear.parts(model) {
                index[m.layer][module as usize] = Some(parts.len());
                let place = m.b.start + rows.start * m.r..m.b.start + rows.end * m.r;
                let b = PackedMatrix::from_f32(&adapter.params[place.clone()], rows.len(), m.r);
                parts.push(Part { module: i, place, b });
            }
        }
        let pack_a = |m: &LoraModule| {
            PackedMatrix::from_f32(&adapter.params[m.a.clone()], m.r, m.in_features)
        };
        let slot = Slot {
            name: name.to_owned(),
            scale: adapter.scale(),
            modules: adapter.modules.clone(),
            a: adapter.modules.iter().map(pack_a).collect(),
            parts,
            index,
        };
        let free = self.slots.iter().position(Option::is_none);
        match free {
            Some(i) => self.slots[i] = Some(slot),
            None => self.slots.push(Some(slot)),
        }
        Ok(free.unwrap_or(self.slots.len() - 1))
    }

    /// Takes over changed parameters of the adapter in `slot` (after an optimizer step).
    ///
    /// # Panics
    /// When the slot is empty or the adapter has another layout: an error of the caller.
    pub fn refresh(&mut self, slot: usize, adapter: &LoraAdapter) {
        let slot = self.slots[slot].as_mut().expect("the slot holds an adapter");
        assert!(slot.modules == adapter.modules, "refresh with an adapter of another layout");
        for (m, a) in slot.modules.iter().zip(&mut slot.a) {
            a.repack_f32(&adapter.params[m.a.clone()]);
        }
        for part in &mut slot.parts {
            part.b.repack_f32(&adapter.params[part.place.clone()]);
        }
    }

    /// Frees `slot`; sequences must not name it any more.
    pub fn remove(&mut self, slot: usize) {
        if let Some(entry) = self.slots.get_mut(slot) {
            *entry = None;
        }
    }

    /// The slot of the adapter named `name`.
    pub fn slot(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|s| s.as_ref().is_some_and(|s| s.name == name))
    }

    /// The adapter's two matrices for one base matrix.
    pub(crate) fn lora(&self, slot: usize, layer: usize, module: Module) -> Option<LoraRef<'_>> {
        let slot = self.slots.get(slot)?.as_ref()?;
        let part = &slot.parts[slot.index[layer][module as usize]?];
        Some(LoraRef { a: &slot.a[part.module], b: &part.b, scale: slot.scale })
    }

    /// Every slot that the batch names must hold an adapter.
    pub(crate) fn check(&self, batch: &Batch) -> Result<(), ModelError> {
        for slot in batch.segments.iter().filter_map(|s| s.adapter) {
            if !self.slots.get(slot).is_some_and(Option::is_some) {
                return Err(ModelError::Batch(format!("adapter slot {slot} is empty")));
            }
        }
        Ok(())
    }

    /// Adds each row group's part to `dx`, and to the gradients of the adapters that are trained.
    pub(crate) fn backward(
        &self,
        rows: &[(Range<usize>, usize)],
        layer: usize,
        module: Module,
        dx: &mut [f32],
        dy: &[f32],
        x: &[f32],
        grads: &mut Grads,
    ) {
        for (range, index) in rows {
            let Some(lora) = self.lora(*index, layer, module) else { continue };
            let (n, k) = (lora.b.n(), lora.a.k());
            let slot = self.slots[*index].as_ref().expect("lora() found it");
            let part = &slot.parts[slot.index[layer][module as usize].expect("lora() found it")];
            let (a, b) = (&slot.modules[part.module].a, &part.place);
            let ins = range.start * k..range.end * k;
            let outs = range.start * n..range.end * n;
            // An adapter that is not trained still passes the gradient on to `dx`.
            let mut unused = (Vec::new(), Vec::new());
            let (da, db) = match grads.adapters.get_mut(*index).and_then(Option::as_mut) {
                // A comes before B in the flat vector.
                Some(g) => {
                    let (da, db) = g[a.start..b.end].split_at_mut(b.start - a.start);
                    (&mut da[..a.len()], db)
                }
                None => {
                    unused.0.resize(a.len(), 0.0);
                    unused.1.resize(b.len(), 0.0);
                    (&mut unused.0[..], &mut unused.1[..])
                }
            };
            kernels::lora_backward(
                &mut dx[ins.clone()],
                da,
                db,
                &dy[outs],
                &x[ins],
                range.len(),
                lora,
            );
        }
    }
}

/// PEFT's folder format (facts: peft `utils/save_and_load.py`, `tuners/lora/config.py`).
mod peft {
    use super::*;

    const CONFIG: &str = "adapter_config.json";
    const WEIGHTS: &str = "adapter_model.safetensors";
    const PREFIX: &str = "base_model.model.";

    /// Fields that change the result and that plain LoRA cannot honour, with the values that mean
    /// "not used".
    const MUST_BE_UNSET: &[&str] = &[
        "layer_replication",
        "alora_invocation_tokens",
        "use_qalora",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "ensure_weight_tying",
        "use_dora",
        "lora_bias",
        "fan_in_fan_out",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layers_pattern",
        "exclude_modules",
    ];

    pub(super) fn load(dir: &Path, base: &Decoder) -> Result<LoraAdapter, ModelError> {
        for name in [CONFIG, WEIGHTS] {
            if !dir.join(name).is_file() {
                let pickled = dir.join("adapter_model.bin").exists();
                return Err(ModelError::MissingFile {
                    dir: dir.to_owned(),
                    missing: name.to_owned(),
                    hint: if pickled {
                        "hint: adapter_model.bin is a pickle, which can run code when opened, so it is \
                         never loaded; save the adapter as safetensors"
                            .into()
                    } else {
                        format!(
                            "hint: an adapter is a folder with {CONFIG} and {WEIGHTS}, as PEFT writes it"
                        )
                    },
                });
            }
        }
        let path = dir.join(CONFIG);
        let json: Value = serde_json::from_slice(&read_json_bytes(&path)?)
            .map_err(|e| ModelError::adapter(&path, format!("not valid JSON: {e}")))?;
        let json =
            json.as_object().ok_or_else(|| ModelError::adapter(&path, "expected a JSON object"))?;
        let (config, scale_by_root) = parse_config(&path, json)?;

        let path = dir.join(WEIGHTS);
        let map = MappedFile::open(&path).map_err(|e| ModelError::io(&path, e))?;
        let file = weights::parse(&path, &map)?;
        let base_digest = metadata_digest(&map);
        if let Some(digest) = &base_digest {
            let ours = base.digest()?;
            if digest != ours {
                return Err(ModelError::adapter(
                    dir,
                    format!(
                        "was trained on another base: it names base digest {}, this base has {}\n\
                         hint: load it with the base it was trained on (see base_model_name_or_path in {CONFIG})",
                        short(digest),
                        short(ours)
                    ),
                ));
            }
        }
        let adapter = collect(dir, &path, &file, config, scale_by_root, base)?;
        Ok(LoraAdapter { base_digest, ..adapter })
    }

    fn parse_config(
        path: &Path,
        json: &Map<String, Value>,
    ) -> Result<(LoraConfig, bool), ModelError> {
        let bad = |field: &str, found: &Value, expected: &str| {
            Err(ModelError::adapter(path, format!("{field}: found {found}, expected {expected}")))
        };
        let get = |field: &str| json.get(field).unwrap_or(&Value::Null);
        if get("peft_type").as_str() != Some("LORA") {
            return bad("peft_type", get("peft_type"), "\"LORA\"");
        }
        for field in MUST_BE_UNSET {
            let value = get(field);
            let unset = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(a) => a.is_empty(),
                Value::Object(o) => o.is_empty(),
                _ => false,
            };
            if !unset {
                return bad(
                    field,
                    value,
                    "unset: this option changes the result and is not supported",
                );
            }
        }
        if !matches!(get("bias"), Value::Null) && get("bias").as_str() != Some("none") {
            return bad("bias", get("bias"), "\"none\"");
        }
        match get("init_lora_weights") {
            Value::Null | Value::Bool(_) => {}
            Value::String(s) if s == "gaussian" || s == "orthogonal" => {}
            other => {
                return bad(
                    "init_lora_weights",
                    other,
                    "true, false, \"gaussian\" or \"orthogonal\": other initialisations change the base weights too",
                );
            }
        }
        let r = match get("r") {
            Value::Null => 8,
            v => match v.as_u64() {
                Some(r) if (1..=MAX_RANK as u64).contains(&r) => r as usize,
                _ => return bad("r", v, &format!("1 to {MAX_RANK}")),
            },
        };
        let lora_alpha = match get("lora_alpha") {
            Value::Null => 8.0,
            v => match v.as_f64() {
                Some(a) if a.is_finite() => a as f32,
                _ => return bad("lora_alpha", v, "a number"),
            },
        };
        let target_modules = match get("target_modules") {
            Value::Array(list) if list.iter().all(Value::is_string) => {
                list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            }
            Value::String(s) if s == ALL_LINEAR => vec![s.clone()],
            v => return bad("target_modules", v, "a list of module names (or \"all-linear\")"),
        };
        let rooted = get("use_rslora").as_bool().unwrap_or(false);
        Ok((LoraConfig { r, lora_alpha, target_modules }, rooted))
    }

    fn collect(
        dir: &Path,
        path: &Path,
        file: &safetensors::SafeTensors<'_>,
        config: LoraConfig,
        scale_by_root: bool,
        base: &Decoder,
    ) -> Result<LoraAdapter, ModelError> {
        let model = base.config();
        let mut config = config;
        if config.target_modules == [ALL_LINEAR] {
            config.target_modules = model.target_modules().into_iter().map(str::to_owned).collect();
        }
        let mut names: HashMap<String, (usize, Linear)> = HashMap::new();
        for layer in 0..model.num_hidden_layers {
            names.extend(model.linears(layer).iter().map(|&m| (m.full_name(layer), (layer, m))));
        }
        // (layer, linear layer) to its A and B.
        let mut found: BTreeMap<(usize, Linear), [Option<TensorView<'_>>; 2]> = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, view) in file.iter() {
            let inner = name.strip_prefix(PREFIX).unwrap_or(name);
            let (module, side) = match (
                inner.strip_suffix(".lora_A.weight"),
                inner.strip_suffix(".lora_B.weight"),
            ) {
                (Some(m), _) => (m, 0),
                (_, Some(m)) => (m, 1),
                _ => {
                    problems.push(format!("{name}: not a lora_A or lora_B tensor"));
                    continue;
                }
            };
            let Some(&(layer, m)) = names.get(module) else {
                problems.push(match model.experts {
                    Some(_) if module.contains("expert") || module.ends_with(".gate") => {
                        format!("{name}: adapters of experts and routers are not supported")
                    }
                    _ => format!("{name}: this base has no such matrix"),
                });
                continue;
            };
            if !config
                .target_modules
                .iter()
                .any(|t| module == t || module.ends_with(&format!(".{t}")))
            {
                problems.push(format!("{name}: not among target_modules of {CONFIG}"));
                continue;
            }
            let (out, input) = m.shape(model);
            let expected = if side == 0 { [config.r, input] } else { [out, config.r] };
            if view.shape() != expected {
                problems
                    .push(format!("{name}: found shape {:?}, expected {expected:?}", view.shape()));
            } else if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                problems.push(format!(
                    "{name}: found dtype {:?}, expected F32, F16 or BF16",
                    view.dtype()
                ));
            } else {
                found.entry((layer, m)).or_default()[side] = Some(view);
            }
        }
        for ((layer, linear), sides) in &found {
            for (side, view) in ["lora_A", "lora_B"].iter().zip(sides) {
                if view.is_none() {
                    problems.push(format!("{}: {side} is missing", linear.full_name(*layer)));
                }
            }
        }
        if found.is_empty() && problems.is_empty() {
            problems.push("holds no tensors".into());
        }
        if !problems.is_empty() {
            return Err(ModelError::adapter(
                path,
                format!(
                    "{} problem(s) with this base:\n  {}\nhint: an adapter fits only the base it was trained on",
                    problems.len(),
                    problems.join("\n  ")
                ),
            ));
        }
        let modules = layout(found.keys().map(|&(l, m)| (l, m, config.r)), model);
        let mut adapter = LoraAdapter::zeroed(config, modules);
        for (place, sides) in adapter.modules.clone().iter().zip(found.values()) {
            for (range, view) in [&place.a, &place.b].into_iter().zip(sides) {
                let values = weights::to_f32(view.as_ref().expect("missing sides were reported"));
                if values.iter().any(|x| !x.is_finite()) {
                    return Err(ModelError::adapter(
                        dir,
                        format!("{}: values that are not finite", place.name),
                    ));
                }
                adapter.params[range.clone()].copy_from_slice(&values);
            }
        }
        if adapter.modules.iter().all(|m| adapter.params[m.b.clone()].iter().all(|&x| x == 0.0)) {
            return Err(ModelError::adapter(
                dir,
                "every lora_B is zero, so it does nothing\nhint: it was saved before its first training step",
            ));
        }
        if scale_by_root {
            // rsLoRA (arXiv 2312.03732): the scale is alpha / sqrt(r); kept as a plain alpha.
            adapter.config.lora_alpha *= (adapter.config.r as f32).sqrt();
        }
        Ok(adapter)
    }

    pub(super) fn save(
        adapter: &LoraAdapter,
        dir: &Path,
        base_name: &str,
        base_digest: &str,
        metadata: &[(String, String)],
    ) -> Result<(), ModelError> {
        if adapter.params.iter().any(|x| !x.is_finite()) {
            return Err(ModelError::adapter(
                dir,
                "holds values that are not finite; nothing was written",
            ));
        }
        let mut tensors = Vec::new();
        for m in &adapter.modules {
            for (side, range, shape) in [
                ("lora_A", &m.a, vec![m.r, m.in_features]),
                ("lora_B", &m.b, vec![m.out_features, m.r]),
            ] {
                let bytes: &[u8] = bytemuck::cast_slice(&adapter.params[range.clone()]);
                let view =
                    TensorView::new(Dtype::F32, shape, bytes).expect("sizes follow the shape");
                tensors.push((format!("{PREFIX}{}.{side}.weight", m.name), view));
            }
        }
        let mut header: HashMap<String, String> = metadata.iter().cloned().collect();
        header.insert("format".into(), "pt".into());
        header.insert(BASE_DIGEST_KEY.into(), base_digest.into());
        let path = dir.join(WEIGHTS);
        let file = serialize_sorted(tensors, header).map_err(|e| ModelError::adapter(&path, e))?;
        write_atomic(&path, &file)?;
        let mut targets: Vec<&str> =
            adapter.modules.iter().map(|m| m.linear.short_name()).collect();
        targets.sort_unstable();
        targets.dedup();
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "revision": null,
            "inference_mode": true,
            "r": adapter.config.r,
            "lora_alpha": adapter.config.lora_alpha,
            "lora_dropout": 0.0,
            "target_modules": targets,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "modules_to_save": null,
            "use_rslora": false,
            "use_dora": false,
            "rank_pattern": {},
            "alpha_pattern": {},
        });
        let config = serde_json::to_vec_pretty(&config).expect("plain JSON");
        write_atomic(&dir.join(CONFIG), &config)
    }

    /// The crate writes metadata from a hash map in random order; ours is written in key order, so
    /// that the same adapter gives the same bytes (a resumed training is compared byte by byte).
    fn serialize_sorted(
        tensors: Vec<(String, TensorView<'_>)>,
        metadata: HashMap<String, String>,
    ) -> Result<Vec<u8>, String> {
        let file = serialize(tensors, Some(metadata)).map_err(|e| e.to_string())?;
        let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
        let header: Map<String, Value> =
            serde_json::from_slice(&file[8..8 + length]).map_err(|e| e.to_string())?;
        let mut sorted: BTreeMap<String, Value> = header.into_iter().collect();
        if let Some(Value::Object(inner)) = sorted.remove("__metadata__") {
            let inner: BTreeMap<String, Value> = inner.into_iter().collect();
            sorted.insert("__metadata__".into(), json!(inner));
        }
        let mut text = serde_json::to_vec(&sorted).map_err(|e| e.to_string())?;
        // The data must start at a multiple of eight; spaces pad the header (format specification).
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut out = (text.len() as u64).to_le_bytes().to_vec();
        out.extend(text);
        out.extend(&file[8 + length..]);
        Ok(out)
    }

    fn metadata_digest(bytes: &[u8]) -> Option<String> {
        let (_, metadata) = safetensors::SafeTensors::read_metadata(bytes).ok()?;
        metadata.metadata().as_ref()?.get(BASE_DIGEST_KEY).cloned()
    }

    fn short(digest: &str) -> String {
        digest.chars().take(12).collect()
    }
}
