//! Rotary frequencies of every published kind, as numbers: inverse frequencies and a factor on
//! cosine and sine (arXiv 2104.09864 and the extensions named at [`Rope::parse`]).

use crate::config::RawConfig;
use crate::error::ModelError;
use serde_json::{Map, Value};

/// How a layer's queries and keys are rotated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    /// Base of the frequencies before any scaling.
    pub(crate) theta: f64,
    /// Frequencies within the context that the model was first trained on, or everywhere.
    pub(crate) short: Frequencies,
    /// Frequencies of a sequence that reaches beyond `.0` tokens, all of it.
    pub(crate) long: Option<(usize, Frequencies)>,
}

/// One set of frequencies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frequencies {
    /// Radians per position of each pair, [rotated part of D / 2].
    pub(crate) inv_freq: Vec<f32>,
    /// cos and sin are multiplied by this.
    pub(crate) factor: f32,
}

/// What the rotation of a family starts from, where config.json is silent.
pub(crate) struct RopeBase {
    /// Base of the frequencies.
    pub(crate) theta: f64,
    /// D
    pub(crate) head_dim: usize,
    /// Longest context, tokens.
    pub(crate) context: usize,
    /// Context of the first training, tokens.
    pub(crate) original: usize,
}

impl Rope {
    /// Frequencies for a sequence that reaches `tokens` in the end.
    pub(crate) fn at(&self, tokens: usize) -> &Frequencies {
        match &self.long {
            Some((most, long)) if tokens > *most => long,
            _ => &self.short,
        }
    }

    /// The rotation that config.json states for all layers: `rope_theta`, `partial_rotary_factor`
    /// and `rope_scaling` at the top (as most published files have it), or all of it in
    /// `rope_parameters` (Transformers 5).
    pub(crate) fn of(raw: &RawConfig<'_>, base: &RopeBase) -> Result<Rope, ModelError> {
        let theta = raw.float_or("rope_theta", base.theta)?;
        let partial = raw.float_or("partial_rotary_factor", 1.0)?;
        let old = raw.object("rope_scaling")?.map(|map| ("rope_scaling", map));
        let new = raw.object("rope_parameters")?.map(|map| ("rope_parameters", map));
        // Transformers takes the older field where both are there.
        let (field, map) = old.or(new).unwrap_or(("rope_scaling", &EMPTY));
        Rope::parse(raw, field, map, &RopeBase { theta, ..*base }, partial)
    }

    /// One object of rotary parameters, named `field` in errors. Kinds: `default`; `linear`
    /// (positions divided by a factor); `llama3` (low frequencies divided, with a smooth passage;
    /// Transformers' `modeling_rope_utils.py` after the release of Llama 3.1); `longrope` (a factor
    /// for each frequency, one set for short and one for long sequences; arXiv 2402.13753).
    pub(crate) fn parse(
        raw: &RawConfig<'_>,
        field: &str,
        map: &Map<String, Value>,
        base: &RopeBase,
        partial: f64,
    ) -> Result<Rope, ModelError> {
        let at = |key: &str| format!("{field}.{key}");
        let get = |key: &str| map.get(key).filter(|v| !v.is_null());
        let number = |key: &str, default: Option<f64>| match (get(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(raw.bad(&at(key), "nothing", "a positive number")),
            (Some(v), _) => match v.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 => Ok(x),
                _ => Err(raw.bad(&at(key), &v.to_string(), "a positive number")),
            },
        };
        let kind = match get("rope_type").or(get("type")) {
            None => "default",
            Some(v) => v.as_str().unwrap_or_default(),
        };
        let own: &[&str] = match kind {
            "default" => &[],
            "linear" => &["factor"],
            "llama3" => &["factor", "low_freq_factor", "high_freq_factor"],
            "longrope" | "su" => &["short_factor", "long_factor", "factor", "attention_factor"],
            _ => {
                return Err(raw.bad(
                    &at("rope_type"),
                    &get("rope_type").or(get("type")).unwrap_or(&Value::Null).to_string(),
                    "\"default\", \"linear\", \"llama3\" or \"longrope\": another kind of rotary \
                     positions is not supported",
                ));
            }
        };
        let common = [
            "rope_type",
            "type",
            "rope_theta",
            "partial_rotary_factor",
            "original_max_position_embeddings",
        ];
        let unknown = |(k, v): &(&String, &Value)| {
            !v.is_null() && !own.iter().chain(&common).any(|o| *o == k.as_str())
        };
        if let Some((key, value)) = map.iter().find(unknown) {
            return Err(raw.bad(
                &at(key),
                &value.to_string(),
                &format!("no such field for rotary positions of kind \"{kind}\""),
            ));
        }
        let theta = number("rope_theta", Some(base.theta))?;
        let partial = number("partial_rotary_factor", Some(partial))?;
        let rotated = (base.head_dim as f64 * partial) as usize;
        if partial > 1.0 || rotated == 0 || !rotated.is_multiple_of(2) {
            return Err(raw.bad(
                "partial_rotary_factor",
                &partial.to_string(),
                &format!("a share of head_dim = {} that is an even number", base.head_dim),
            ));
        }
        if !(theta.is_finite() && theta > 0.0) {
            return Err(raw.bad("rope_theta", &theta.to_string(), "a positive number"));
        }
        // In f32 step by step, as the reference rounds.
        let powers: Vec<f32> = (0..rotated)
            .step_by(2)
            .map(|i| theta.powf(f64::from(i as f32 / rotated as f32)) as f32)
            .collect();
        let plain: Vec<f32> = powers.iter().map(|p| 1.0 / p).collect();
        let original = match raw.get("original_max_position_embeddings") {
            Some(_) => raw.size("original_max_position_embeddings")?,
            None => {
                number("original_max_position_embeddings", Some(base.original as f64))? as usize
            }
        };
        let rope = match kind {
            "linear" => {
                let factor = number("factor", None)? as f32;
                Rope::one(theta, plain.iter().map(|f| f / factor).collect())
            }
            "llama3" => {
                let (low, high) =
                    (number("low_freq_factor", None)?, number("high_freq_factor", None)?);
                if high <= low {
                    return Err(raw.bad(
                        &at("high_freq_factor"),
                        &high.to_string(),
                        &format!("more than low_freq_factor = {low}"),
                    ));
                }
                let factor = number("factor", None)? as f32;
                let scaled = |f: &f32| llama3(*f, factor, low as f32, high as f32, original as f32);
                Rope::one(theta, plain.iter().map(scaled).collect())
            }
            "longrope" | "su" => {
                let growth = number("factor", Some(base.context as f64 / original as f64))?;
                let by_length = if growth <= 1.0 || original < 2 {
                    1.0
                } else {
                    (1.0 + growth.ln() / (original as f64).ln()).sqrt()
                };
                let factor = number("attention_factor", Some(by_length))? as f32;
                let set = |key: &str| {
                    let list = factors(get(key), powers.len()).ok_or_else(|| {
                        let found = get(key).map_or("nothing".into(), |v| match v {
                            Value::Array(list) => format!("a list of {}", list.len()),
                            other => other.to_string(),
                        });
                        let expected = format!("{} positive numbers", powers.len());
                        raw.bad(&at(key), &found, &expected)
                    })?;
                    let inv_freq = list.iter().zip(&powers).map(|(f, p)| 1.0 / (f * p)).collect();
                    Ok::<_, ModelError>(Frequencies { inv_freq, factor })
                };
                let long = Some((original, set("long_factor")?));
                Rope { theta, short: set("short_factor")?, long }
            }
            _ => Rope::one(theta, plain),
        };
        let sets = [Some(&rope.short), rope.long.as_ref().map(|l| &l.1)];
        if sets.iter().flatten().any(|s| s.inv_freq.iter().any(|f| !f.is_finite())) {
            return Err(raw.bad(field, "frequencies that overflow", "ordinary numbers"));
        }
        Ok(rope)
    }

    fn one(theta: f64, inv_freq: Vec<f32>) -> Rope {
        Rope { theta, short: Frequencies { inv_freq, factor: 1.0 }, long: None }
    }
}

static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);

/// Waves longer than original / low are slowed by `factor`, those shorter than original / high kept,
/// and what lies between goes over from one to the other.
fn llama3(f: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wave = 2.0 * std::f32::consts::PI / f;
    if wave < original / high {
        f
    } else if wave > original / low {
        f / factor
    } else {
        let smooth = (original / wave - low) / (high - low);
        (1.0 - smooth) * f / factor + smooth * f
    }
}

fn factors(value: Option<&Value>, count: usize) -> Option<Vec<f32>> {
    let list = value?.as_array().filter(|list| list.len() == count)?;
    list.iter()
        .map(|v| v.as_f64().filter(|x| x.is_finite() && *x > 0.0).map(|x| x as f32))
        .collect()
}
