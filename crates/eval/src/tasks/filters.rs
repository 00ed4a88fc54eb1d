//! What is done to an answer before it is scored: filters, one function each.

use super::TaskError;
use super::task_file::TaskFile;
use crate::metrics::python_strip;
use regex::Regex;
use serde_json::{Map, Value};

/// Bytes of an expression that is compiled.
const REGEX_BYTES: usize = 1 << 20;

/// A filter ready to be applied.
type Step = Box<dyn Fn(&str) -> String>;

/// Name in `function`, the keys beside it, and how it is built.
struct Filter {
    name: &'static str,
    keys: &'static [&'static str],
    build: fn(&Map<String, Value>) -> Result<Step, String>,
}

const FILTERS: &[Filter] = &[
    // One answer is asked for, so that the first is all there is, and the most frequent one too.
    Filter { name: "take_first", keys: &[], build: |_| Ok(Box::new(str::to_owned)) },
    Filter { name: "majority_vote", keys: &[], build: |_| Ok(Box::new(str::to_owned)) },
    Filter {
        name: "remove_whitespace",
        keys: &[],
        build: |_| Ok(Box::new(|text| python_strip(text).to_owned())),
    },
    Filter { name: "lowercase", keys: &[], build: |_| Ok(Box::new(|text| text.to_lowercase())) },
    Filter { name: "uppercase", keys: &[], build: |_| Ok(Box::new(|text| text.to_uppercase())) },
    Filter {
        name: "regex",
        keys: &["regex_pattern", "group_select", "fallback"],
        build: regex_filter,
    },
    Filter { name: "map", keys: &["mapping_dict", "default_value"], build: map_filter },
];

/// Filters one after the other.
pub(super) struct Pipeline {
    pub(super) name: String,
    steps: Vec<Step>,
}

impl Pipeline {
    pub(super) fn apply(&self, text: &str) -> String {
        self.steps.iter().fold(text.to_owned(), |text, step| step(&text))
    }
}

/// The pipelines of a task.
pub(super) fn pipelines(file: &TaskFile) -> Result<Vec<Pipeline>, TaskError> {
    let pipeline = |(name, steps): &(String, Vec<Map<String, Value>>)| {
        let steps = steps.iter().map(|step| {
            build(step).map_err(|reason| {
                TaskError::at(&file.path, "filter_list", format!("{name}: {reason}"))
            })
        });
        Ok(Pipeline { name: name.clone(), steps: steps.collect::<Result<_, TaskError>>()? })
    };
    file.filters.iter().map(pipeline).collect()
}

fn build(step: &Map<String, Value>) -> Result<Step, String> {
    let name = step.get("function").and_then(Value::as_str).unwrap_or_default();
    let Some(filter) = FILTERS.iter().find(|f| f.name == name) else {
        let known: Vec<_> = FILTERS.iter().map(|f| f.name).collect();
        return Err(format!("found the function {name:?}; expected one of {}", known.join(", ")));
    };
    let stray = step.keys().find(|k| *k != "function" && !filter.keys.contains(&k.as_str()));
    match stray {
        Some(key) => {
            Err(format!("{name}: the key {key} is not supported, and it may change the result"))
        }
        None => (filter.build)(step).map_err(|reason| format!("{name}: {reason}")),
    }
}

/// The `group_select`-th match (from the end where negative); of several groups the first that is not
/// empty. Space around it is taken off; `fallback` where there is none.
fn regex_filter(step: &Map<String, Value>) -> Result<Step, String> {
    let text = |key: &str, default: &str| match step.get(key) {
        None => Ok(default.to_owned()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("{key}: found {other}; expected a text")),
    };
    let pattern = text("regex_pattern", r"#### (\-?[0-9\.\,]+)")?;
    let fallback = text("fallback", "[invalid]")?;
    let select = step.get("group_select").and_then(Value::as_i64).unwrap_or(0);
    let regex = regex::RegexBuilder::new(&pattern)
        .size_limit(REGEX_BYTES)
        .build()
        .map_err(|error| format!("regex_pattern: {error}"))?;
    Ok(Box::new(move |answer| {
        let found = find_all(&regex, answer);
        let place = if select < 0 { found.len() as i64 + select } else { select };
        let chosen = usize::try_from(place).ok().and_then(|place| found.get(place));
        match chosen {
            Some(Some(text)) => python_strip(text).to_owned(),
            _ => python_strip(&fallback).to_owned(),
        }
    }))
}

/// `re.findall`, of each match what the filter takes: the whole of it without groups, the group's text
/// with one, the first group's that is not empty with several.
fn find_all<'a>(regex: &Regex, text: &'a str) -> Vec<Option<&'a str>> {
    let groups = regex.captures_len() - 1;
    let of = |found: regex::Captures<'a>| match groups {
        0 => found.get(0).map(|m| m.as_str()),
        1 => Some(found.get(1).map_or("", |m| m.as_str())),
        _ => found.iter().skip(1).flatten().map(|m| m.as_str()).find(|text| !text.is_empty()),
    };
    regex.captures_iter(text).map(of).collect()
}

fn map_filter(step: &Map<String, Value>) -> Result<Step, String> {
    let texts = |value: &Value| value.as_str().map(str::to_owned);
    let table = match step.get("mapping_dict") {
        Some(Value::Object(table)) => table.clone(),
        found => return Err(format!("mapping_dict: found {found:?}; expected texts for texts")),
    };
    let Some(default) = step.get("default_value").and_then(texts) else {
        return Err("default_value is missing; expected a text".to_owned());
    };
    if let Some((key, value)) = table.iter().find(|(_, value)| !value.is_string()) {
        return Err(format!("mapping_dict: {key}: found {value}; expected a text"));
    }
    Ok(Box::new(move |answer| table.get(answer).and_then(texts).unwrap_or_else(|| default.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn apply(step: Value, text: &str) -> Result<String, String> {
        build(step.as_object().unwrap()).map(|step| step(text))
    }

    #[test]
    fn filters_do_what_the_harness_does() {
        let regex = |pattern: &str| json!({"function": "regex", "regex_pattern": pattern});
        let last = json!({"function": "regex", "regex_pattern": r"(-?\d+)", "group_select": -1});
        let map = json!({"function": "map", "mapping_dict": {"A": "yes"}, "default_value": "no"});
        for (step, text, expected) in [
            (json!({"function": "take_first"}), " a ", " a "),
            (json!({"function": "remove_whitespace"}), " a b\n", "a b"),
            (json!({"function": "lowercase"}), "ÉA", "éa"),
            (json!({"function": "regex"}), "so #### 1,200 eggs", "1,200"),
            (json!({"function": "regex"}), "none", "[invalid]"),
            (regex(r"\d+"), "a 12 b 3", "12"),
            (regex(r"(a)|( b )"), "x b y", "b"),
            (regex(r"x(y)?"), "x", ""),
            (last.clone(), "1 then -2", "-2"),
            (last, "none", "[invalid]"),
            (map.clone(), "A", "yes"),
            (map, "B", "no"),
        ] {
            assert_eq!(apply(step.clone(), text).as_deref(), Ok(expected), "{step} {text:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (step, said) in [
            (json!({"function": "regex_pos"}), "regex_pos"),
            (json!({"function": "regex", "colour": 1}), "the key colour"),
            (json!({"function": "regex", "regex_pattern": "("}), "regex_pattern"),
            (json!({"function": "regex", "regex_pattern": "(?=a)"}), "look"),
            (json!({"function": "map"}), "mapping_dict"),
        ] {
            let error = apply(step, "").unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
