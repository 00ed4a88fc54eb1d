//! PEFT's folder format (facts: peft `utils/save_and_load.py`, `tuners/lora/config.py`).

use super::{LoraAdapter, LoraConfig, MAX_RANK, Targets, layout};
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::files::{read_json_bytes, write_atomic};
use crate::linear::Linear;
use crate::weights;
use indexmap::IndexMap;
use kernels::MappedFile;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// Our own key in the safetensors metadata: which base the adapter was trained on.
const BASE_DIGEST_KEY: &str = "metier_base_digest";

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
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
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
    let config = parse_config(&path, json, base)?;

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
    let adapter = collect(dir, &path, &file, config, base)?;
    Ok(LoraAdapter { base_digest, ..adapter })
}

fn parse_config(
    path: &Path,
    json: &Map<String, Value>,
    base: &Decoder,
) -> Result<LoraConfig, ModelError> {
    let bad = |field: &str, found: &Value, expected: &str| {
        ModelError::adapter(path, format!("{field}: found {found}, expected {expected}"))
    };
    let get = |field: &str| json.get(field).unwrap_or(&Value::Null);
    if get("peft_type").as_str() != Some("LORA") {
        return Err(bad("peft_type", get("peft_type"), "\"LORA\""));
    }
    let is_unset = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::String(s) => s.is_empty(),
        _ => false,
    };
    for field in MUST_BE_UNSET {
        let value = get(field);
        if !is_unset(value) {
            let expected = "unset: this option changes the result and is not supported";
            return Err(bad(field, value, expected));
        }
    }
    if !matches!(get("bias"), Value::Null) && get("bias").as_str() != Some("none") {
        return Err(bad("bias", get("bias"), "\"none\""));
    }
    match get("init_lora_weights") {
        Value::Null | Value::Bool(_) => {}
        Value::String(s) if s == "gaussian" || s == "orthogonal" => {}
        other => {
            return Err(bad(
                "init_lora_weights",
                other,
                "true, false, \"gaussian\" or \"orthogonal\": other initialisations change the base weights too",
            ));
        }
    }
    let switch = |field: &str| match get(field) {
        Value::Null => Ok(false),
        Value::Bool(on) => Ok(*on),
        other => Err(bad(field, other, "true or false")),
    };
    // One or several values of one kind, or null.
    fn several<T: serde::de::DeserializeOwned>(value: &Value) -> Option<Vec<T>> {
        match value {
            Value::Null => Some(Vec::new()),
            Value::Array(_) => serde_json::from_value(value.clone()).ok(),
            one => Some(vec![serde_json::from_value(one.clone()).ok()?]),
        }
    }
    fn table<T: serde::de::DeserializeOwned>(value: &Value) -> Option<IndexMap<String, T>> {
        if value.is_null() {
            Some(IndexMap::new())
        } else {
            serde_json::from_value(value.clone()).ok()
        }
    }
    let targets = |field: &str| match get(field) {
        value if is_unset(value) => Ok(None),
        value => match serde_json::from_value::<Targets>(value.clone()) {
            Ok(targets) => Ok(Some(targets)),
            Err(_) => Err(bad(field, value, "a list of module names, or a pattern")),
        },
    };
    let target_modules = match targets("target_modules")? {
        Some(targets) => targets,
        None if base.config().family.has_default_lora_targets() => {
            ["q_proj", "v_proj"].into_iter().collect()
        }
        None => {
            let expected = "a list of module names (or \"all-linear\")";
            return Err(bad("target_modules", get("target_modules"), expected));
        }
    };
    let whole = |field: &str| bad(field, get(field), "a whole number, or a list of them");
    let layers = several::<usize>(get("layers_to_transform"));
    Ok(LoraConfig {
        r: match get("r") {
            Value::Null => 8,
            v => match v.as_u64() {
                Some(r) if (1..=MAX_RANK as u64).contains(&r) => r as usize,
                _ => return Err(bad("r", v, &format!("1 to {MAX_RANK}"))),
            },
        },
        lora_alpha: match get("lora_alpha") {
            Value::Null => 8.0,
            v => match v.as_f64() {
                Some(a) if (a as f32).is_finite() => a as f32,
                _ => return Err(bad("lora_alpha", v, "a number")),
            },
        },
        target_modules,
        exclude_modules: targets("exclude_modules")?.unwrap_or(Targets::Names(Vec::new())),
        layers_to_transform: layers.ok_or_else(|| whole("layers_to_transform"))?,
        layers_pattern: several(get("layers_pattern")).ok_or_else(|| {
            bad("layers_pattern", get("layers_pattern"), "a name, or a list of them")
        })?,
        rank_pattern: table(get("rank_pattern"))
            .ok_or_else(|| bad("rank_pattern", get("rank_pattern"), "a table of ranks"))?,
        alpha_pattern: table(get("alpha_pattern"))
            .ok_or_else(|| bad("alpha_pattern", get("alpha_pattern"), "a table of numbers"))?,
        use_rslora: switch("use_rslora")?,
        use_dora: switch("use_dora")?,
        // It matters in training only.
        lora_dropout: 0.0,
    })
}

/// How many problems an error lists.
const MAX_PROBLEMS: usize = 20;
/// How the names of a linear layer's tensors end.
const SIDES: [&str; 3] = [".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"];

fn collect(
    dir: &Path,
    path: &Path,
    file: &safetensors::SafeTensors<'_>,
    config: LoraConfig,
    base: &Decoder,
) -> Result<LoraAdapter, ModelError> {
    let model = base.config();
    let chosen =
        config.choose(model).map_err(|e| ModelError::adapter(&dir.join(CONFIG), e.to_string()))?;
    let modules = layout(&chosen, config.use_dora, model);
    let by_name: HashMap<&str, usize> =
        modules.iter().enumerate().map(|(i, m)| (m.name.as_str(), i)).collect();
    let linears: HashSet<String> = (0..model.num_hidden_layers)
        .flat_map(|l| model.linears(l).iter().map(move |m: &Linear| m.full_name(l)))
        .collect();
    let sides = if config.use_dora { 3 } else { 2 };
    let mut found: Vec<[Option<TensorView<'_>>; 3]> =
        modules.iter().map(|_| [const { None }; 3]).collect();
    let mut problems = Vec::new();
    for (name, view) in file.iter() {
        let inner = name.strip_prefix(PREFIX).unwrap_or(name);
        let ends = SIDES[..sides].iter().enumerate();
        let Some((side, module)) =
            ends.filter_map(|(i, end)| Some((i, inner.strip_suffix(end)?))).next()
        else {
            let expected = if config.use_dora {
                "lora_A, lora_B or lora_magnitude_vector"
            } else {
                "lora_A or lora_B"
            };
            problems.push(format!("{name}: not a {expected} tensor"));
            continue;
        };
        let Some(&index) = by_name.get(module) else {
            problems.push(match model.experts {
                _ if linears.contains(module) => {
                    format!("{name}: not among the target_modules of {CONFIG}")
                }
                Some(_) if module.contains("expert") || module.ends_with(".gate") => {
                    format!("{name}: adapters of experts and routers are not supported")
                }
                _ => format!("{name}: this base has no such matrix"),
            });
            continue;
        };
        let m = &modules[index];
        let expected = [vec![m.r, m.in_features], vec![m.out_features, m.r], vec![m.out_features]];
        let expected = &expected[side];
        if view.shape() != expected {
            problems.push(format!("{name}: found shape {:?}, expected {expected:?}", view.shape()));
        } else if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            problems
                .push(format!("{name}: found dtype {:?}, expected F32, F16 or BF16", view.dtype()));
        } else {
            found[index][side] = Some(view);
        }
    }
    for (m, views) in modules.iter().zip(&found) {
        for (side, view) in SIDES[..sides].iter().zip(views) {
            if view.is_none() && problems.iter().all(|p| !p.contains(&format!("{}{side}", m.name)))
            {
                problems.push(format!("{}{side} is missing", m.name));
            }
        }
    }
    if !problems.is_empty() {
        let count = problems.len();
        // A wrong base has hundreds of them, all alike.
        if count > MAX_PROBLEMS {
            problems.truncate(MAX_PROBLEMS);
            problems.push(format!("and {} more", count - MAX_PROBLEMS));
        }
        return Err(ModelError::adapter(
            path,
            format!(
                "{count} problem(s) with this base:\n  {}\nhint: an adapter fits only the base it was trained on",
                problems.join("\n  ")
            ),
        ));
    }
    let mut adapter = LoraAdapter::zeroed(config, modules, model.num_hidden_layers);
    for (place, views) in adapter.modules.clone().iter().zip(&found) {
        for (range, view) in [&place.a, &place.b, &place.magnitude].into_iter().zip(&views[..sides])
        {
            let values = weights::to_f32(view.as_ref().expect("missing tensors were reported"));
            if values.iter().any(|x| !x.is_finite()) {
                return Err(ModelError::adapter(
                    dir,
                    format!("{}: values that are not finite", place.name),
                ));
            }
            adapter.params[range.clone()].copy_from_slice(&values);
        }
    }
    if !adapter.config.use_dora
        && adapter.modules.iter().all(|m| adapter.params[m.b.clone()].iter().all(|&x| x == 0.0))
    {
        return Err(ModelError::adapter(
            dir,
            "every lora_B is zero, so it does nothing\nhint: it was saved before its first training step",
        ));
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
    let adapter = adapter.portable(&[]);
    let mut tensors = Vec::new();
    for m in &adapter.modules {
        for (side, range, shape) in [
            (SIDES[0], &m.a, vec![m.r, m.in_features]),
            (SIDES[1], &m.b, vec![m.out_features, m.r]),
            (SIDES[2], &m.magnitude, vec![m.out_features]),
        ] {
            if range.is_empty() {
                continue;
            }
            let bytes: &[u8] = bytemuck::cast_slice(&adapter.params[range.clone()]);
            let view = TensorView::new(Dtype::F32, shape, bytes).expect("sizes follow the shape");
            tensors.push((format!("{PREFIX}{}{side}", m.name), view));
        }
    }
    let mut header: HashMap<String, String> = metadata.iter().cloned().collect();
    header.insert("format".into(), "pt".into());
    header.insert(BASE_DIGEST_KEY.into(), base_digest.into());
    let path = dir.join(WEIGHTS);
    let file = serialize_sorted(tensors, header).map_err(|e| ModelError::adapter(&path, e))?;
    write_atomic(&path, &file)?;
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": null,
        "inference_mode": true,
        "r": adapter.config.r,
        "lora_alpha": adapter.config.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": adapter.config.target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "use_rslora": false,
        "use_dora": adapter.config.use_dora,
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
