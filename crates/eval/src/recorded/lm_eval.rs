//! What lm-evaluation-harness writes with `--log_samples`: one JSON object per line, with `doc_id`, `doc`,
//! `target`, `resps` and `filtered_resps`. `metier eval --tasks --answers` writes the same.

use super::{Form, Recorded, Wrong, lines_of, text_of};
use crate::candidate::Likelihood;
use serde_json::Value;

pub(super) const FORM: Form = Form {
    is: |first| first.get("doc_id").is_some() && first.get("filtered_resps").is_some(),
    read,
};

fn read(bytes: &[u8]) -> Result<Vec<(usize, Recorded)>, Wrong> {
    let mut filter: Option<String> = None;
    let mut all = Vec::new();
    for (line, bytes) in lines_of(bytes) {
        let wrong = |reason: String| Wrong { line, reason };
        let sample: Value =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        let name = sample["filter"].as_str().unwrap_or("none").to_owned();
        let first = filter.get_or_insert_with(|| name.clone());
        if *first != name {
            return Err(wrong(format!(
                "found answers of the filters {first:?} and {name:?}; expected those of one. hint: keep the lines of the filter that counts"
            )));
        }
        all.push((line, sample_of(&sample).map_err(wrong)?));
    }
    Ok(all)
}

fn sample_of(sample: &Value) -> Result<Recorded, String> {
    let place = sample["doc_id"].as_u64().ok_or("doc_id: expected a whole number")? as usize;
    let doc_id = sample["doc"].get("id").and_then(text_of);
    let filtered = sample["filtered_resps"].as_array().ok_or("filtered_resps: expected a list")?;
    let likelihoods: Vec<Likelihood> = filtered.iter().filter_map(likelihood).collect();
    let (answer, reference) = if likelihoods.len() == filtered.len() && !likelihoods.is_empty() {
        choice(sample, &likelihoods)?
    } else {
        let answer = filtered.first().and_then(text_of).ok_or("filtered_resps: found no text")?;
        (answer, text_of(&sample["target"]))
    };
    Ok(Recorded {
        id: doc_id,
        place: Some(place),
        answer: Some(answer),
        reference,
        likelihoods,
        ..Recorded::default()
    })
}

/// (log-likelihood, whether greedy), as numbers or as Python writes them.
fn likelihood(response: &Value) -> Option<Likelihood> {
    let pair = response.as_array().filter(|pair| pair.len() == 2)?;
    let sum = match &pair[0] {
        Value::String(text) => text.parse().ok()?,
        other => other.as_f64()?,
    };
    let greedy = match &pair[1] {
        Value::String(text) if text == "True" => true,
        Value::String(text) if text == "False" => false,
        other => other.as_bool()?,
    };
    Some(Likelihood { sum, greedy, tokens: 0 })
}

/// The continuation that was the likeliest, and the right one.
fn choice(sample: &Value, likelihoods: &[Likelihood]) -> Result<(String, Option<String>), String> {
    let arguments: Vec<Vec<&str>> = match &sample["arguments"] {
        Value::Object(requests) => requests.values().map(texts).collect(),
        Value::Array(requests) => requests.iter().map(texts).collect(),
        _ => return Err("arguments: expected the requests".to_owned()),
    };
    let continuation = |place: usize| {
        let request = arguments.get(place).and_then(|request| request.get(1));
        request.map(|text| text.trim().to_owned())
    };
    let mut best = 0;
    for (place, likelihood) in likelihoods.iter().enumerate() {
        if likelihood.sum > likelihoods[best].sum {
            best = place;
        }
    }
    let answer = continuation(best).ok_or("arguments: found fewer requests than answers")?;
    let gold = match &sample["target"] {
        Value::String(text) => match text.parse::<usize>() {
            Ok(place) if likelihoods.len() > 1 => continuation(place),
            _ => Some(text.trim().to_owned()),
        },
        other => other.as_u64().and_then(|place| continuation(place as usize)),
    };
    Ok((answer, gold))
}

fn texts(request: &Value) -> Vec<&str> {
    match request {
        Value::Object(parts) => parts.values().filter_map(Value::as_str).collect(),
        Value::Array(parts) => parts.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}
