//! Which linear layers of a model an adapter has, and with which rank and scale: PEFT's rules
//! (facts: peft `tuners/tuners_utils.py`, `utils/other.py`, `tuners/lora/layer.py`).
//!
//! A module's name is Hugging Face's, as `model.layers.0.self_attn.q_proj`.

use super::{ALL_LINEAR, LoraConfig, MAX_RANK};
use crate::config::DecoderConfig;
use crate::linear::Linear;
use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

/// Names of modules, or a pattern that their full names match.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// Each is a full name, or the end of one after a dot.
    Names(Vec<String>),
    /// A regular expression for the whole full name, or [`ALL_LINEAR`].
    Pattern(String),
}

impl Targets {
    /// Every linear layer.
    pub fn all_linear() -> Targets {
        Targets::Pattern(ALL_LINEAR.to_owned())
    }
}

impl<S: Into<String>> FromIterator<S> for Targets {
    fn from_iter<T: IntoIterator<Item = S>>(names: T) -> Targets {
        Targets::Names(names.into_iter().map(Into::into).collect())
    }
}

/// A linear layer that gets an adapter.
pub(super) struct Chosen {
    pub(super) layer: usize,
    pub(super) linear: Linear,
    pub(super) r: usize,
    pub(super) scale: f32,
}

/// A field of a [`LoraConfig`] that a model cannot honour.
#[derive(Debug, thiserror::Error)]
#[error("{field}: found {found}, expected {expected}")]
pub struct LoraConfigError {
    /// Its name.
    pub field: &'static str,
    /// What it holds.
    pub found: String,
    /// What it may hold.
    pub expected: String,
}

fn refuse<T>(
    field: &'static str,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> Result<T, LoraConfigError> {
    Err(LoraConfigError { field, found: found.into(), expected: expected.into() })
}

impl LoraConfig {
    /// The linear layers that get an adapter, in the order of computation.
    pub(super) fn choose(&self, model: &DecoderConfig) -> Result<Vec<Chosen>, LoraConfigError> {
        self.check_numbers()?;
        let all: Vec<(usize, Linear, String)> = (0..model.num_hidden_layers)
            .flat_map(|l| model.linears(l).iter().map(move |&m| (l, m, m.full_name(l))))
            .collect();
        let wanted = Matcher::new("target_modules", &self.target_modules)?;
        let unwanted = Matcher::new("exclude_modules", &self.exclude_modules)?;
        let layers = Layers::new(self)?;
        let ranks = patterns("rank_pattern", &self.rank_pattern)?;
        let alphas = patterns("alpha_pattern", &self.alpha_pattern)?;
        let (mut used_ranks, mut used_alphas) =
            (vec![false; ranks.len()], vec![false; alphas.len()]);
        let mut chosen = Vec::new();
        for (layer, linear, name) in all {
            let skipped = unwanted.matches(&name)? || !wanted.matches(&name)?;
            if skipped || !layers.includes(&self.target_modules, &name)? {
                continue;
            }
            let r = first("rank_pattern", &ranks, &mut used_ranks, &name)?.unwrap_or(self.r);
            let alpha = first("alpha_pattern", &alphas, &mut used_alphas, &name)?
                .unwrap_or(self.lora_alpha);
            let by = if self.use_rslora { (r as f32).sqrt() } else { r as f32 };
            chosen.push(Chosen { layer, linear, r, scale: alpha / by });
        }
        if chosen.is_empty() {
            let known =
                format!("some of {}, or \"{ALL_LINEAR}\"", model.target_modules().join(", "));
            return refuse("target_modules", self.target_modules.shown(), known);
        }
        // A key that matches nothing is a mistake that PEFT passes over (peft#3582).
        let keys = [
            ("rank_pattern", self.rank_pattern.keys().collect::<Vec<_>>(), used_ranks),
            ("alpha_pattern", self.alpha_pattern.keys().collect(), used_alphas),
        ];
        for (field, keys, used) in keys {
            if let Some((key, _)) = keys.iter().zip(used).find(|(_, used)| !used) {
                return refuse(field, format!("\"{key}\""), "a key that a target module matches");
            }
        }
        Ok(chosen)
    }

    /// Refuses names that name no linear layer of the model; PEFT passes over them as long as one
    /// is known.
    pub(super) fn check_names(&self, model: &DecoderConfig) -> Result<(), LoraConfigError> {
        let Targets::Names(names) = &self.target_modules else { return Ok(()) };
        let known = |name: &&String| {
            *name == ALL_LINEAR
                || (0..model.num_hidden_layers)
                    .any(|l| model.linears(l).iter().any(|m| is_or_ends(&m.full_name(l), name)))
        };
        match names.iter().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => refuse(
                "target_modules",
                format!("\"{name}\""),
                format!("some of {}", model.target_modules().join(", ")),
            ),
        }
    }

    fn check_numbers(&self) -> Result<(), LoraConfigError> {
        let ranks = std::iter::once(("r", self.r))
            .chain(self.rank_pattern.values().map(|&r| ("rank_pattern", r)));
        for (field, r) in ranks {
            if !(1..=MAX_RANK).contains(&r) {
                return refuse(field, r.to_string(), format!("1 to {MAX_RANK}"));
            }
        }
        let alphas = std::iter::once(("lora_alpha", self.lora_alpha))
            .chain(self.alpha_pattern.values().map(|&a| ("alpha_pattern", a)));
        for (field, alpha) in alphas {
            if !alpha.is_finite() {
                return refuse(field, alpha.to_string(), "a finite number");
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return refuse("lora_dropout", self.lora_dropout.to_string(), "from 0 to below 1");
        }
        Ok(())
    }
}

impl Targets {
    fn shown(&self) -> String {
        serde_json::to_string(self).expect("strings always serialise")
    }
}

/// Whether `name` is `end`, or ends with it after a dot.
fn is_or_ends(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

enum Matcher<'a> {
    All,
    Names(&'a [String]),
    Pattern(&'static str, Regex),
}

impl<'a> Matcher<'a> {
    fn new(field: &'static str, targets: &'a Targets) -> Result<Matcher<'a>, LoraConfigError> {
        Ok(match targets {
            Targets::Pattern(p) if p == ALL_LINEAR => Matcher::All,
            Targets::Names(names) if names.iter().any(|name| name == ALL_LINEAR) => Matcher::All,
            Targets::Names(names) => Matcher::Names(names),
            Targets::Pattern(pattern) => {
                Matcher::Pattern(field, compile(field, &format!("^(?:{pattern})$"))?)
            }
        })
    }

    fn matches(&self, name: &str) -> Result<bool, LoraConfigError> {
        match self {
            Matcher::All => Ok(true),
            Matcher::Names(names) => Ok(names.iter().any(|end| is_or_ends(name, end))),
            Matcher::Pattern(field, regex) => is_match(field, regex, name),
        }
    }
}

/// The layers of `layers_to_transform`; a module's layer is the first number after a dotted name, or
/// after one of `layers_pattern`.
struct Layers<'a> {
    numbers: &'a [usize],
    patterns: Vec<Regex>,
}

impl<'a> Layers<'a> {
    fn new(config: &'a LoraConfig) -> Result<Layers<'a>, LoraConfigError> {
        let numbers = &config.layers_to_transform[..];
        let pattern = matches!(&config.target_modules, Targets::Pattern(p) if p != ALL_LINEAR);
        if !numbers.is_empty() && pattern {
            return refuse(
                "layers_to_transform",
                format!("{numbers:?}"),
                "unset where target_modules is a pattern",
            );
        }
        let any = [r"[^.]*".to_owned()];
        let named =
            if config.layers_pattern.is_empty() { &any[..] } else { &config.layers_pattern };
        let compiled = named
            .iter()
            .map(|p| compile("layers_pattern", &format!(r"^.*?\.(?:{p})\.(\d+)\.")))
            .collect::<Result<_, _>>()?;
        Ok(Layers { numbers, patterns: compiled })
    }

    fn includes(&self, targets: &Targets, name: &str) -> Result<bool, LoraConfigError> {
        // A module named in full is meant, whatever its layer.
        if let Targets::Names(names) = targets
            && names.iter().any(|full| full == name)
        {
            return Ok(true);
        }
        if self.numbers.is_empty() {
            return Ok(true);
        }
        for pattern in &self.patterns {
            let found = pattern.captures(name).map_err(|e| too_much("layers_pattern", &e))?;
            if let Some(number) = found.and_then(|c| c.get(1)?.as_str().parse::<usize>().ok()) {
                return Ok(self.numbers.contains(&number));
            }
        }
        Ok(false)
    }
}

/// The keys of a pattern table as expressions, in their order.
fn patterns<V: Copy>(
    field: &'static str,
    table: &indexmap::IndexMap<String, V>,
) -> Result<Vec<(Regex, V)>, LoraConfigError> {
    let each = table.iter();
    each.map(|(key, &value)| Ok((compile(field, &format!(r"^(?:.*\.)?(?:{key})$"))?, value)))
        .collect()
}

/// The value of the first key that matches; marks it as used.
fn first<V: Copy>(
    field: &'static str,
    table: &[(Regex, V)],
    used: &mut [bool],
    name: &str,
) -> Result<Option<V>, LoraConfigError> {
    for (i, (regex, value)) in table.iter().enumerate() {
        if is_match(field, regex, name)? {
            used[i] = true;
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn compile(field: &'static str, pattern: &str) -> Result<Regex, LoraConfigError> {
    Regex::new(pattern)
        .or_else(|e| refuse(field, format!("\"{pattern}\" ({e})"), "a regular expression"))
}

fn is_match(field: &'static str, regex: &Regex, name: &str) -> Result<bool, LoraConfigError> {
    regex.is_match(name).map_err(|e| too_much(field, &e))
}

fn too_much(field: &'static str, error: &fancy_regex::Error) -> LoraConfigError {
    LoraConfigError {
        field,
        found: error.to_string(),
        expected: "an expression that can be matched".into(),
    }
}
