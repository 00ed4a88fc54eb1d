//! Logs of inspect_ai in JSON (`--log-format json`, `inspect log dump`): `eval`, and `samples` with
//! `id`, `target` and `output`.

use super::{Form, Recorded, Wrong, count_of, text_of, whole};
use serde_json::Value;

pub(super) const FORM: Form =
    Form { is: |first| first.get("samples").is_some() && first.get("eval").is_some(), read };

fn read(bytes: &[u8]) -> Result<Vec<(usize, Recorded)>, Wrong> {
    let log = whole(bytes)?;
    let samples = log["samples"].as_array().ok_or_else(|| Wrong {
        line: 1,
        reason: "samples: found no list; expected the samples of the log".to_owned(),
    })?;
    let numbered = samples.iter().enumerate();
    numbered
        .map(|(index, sample)| {
            let line = index + 1;
            match sample_of(sample) {
                Ok(recorded) => Ok((line, Recorded { place: Some(index), ..recorded })),
                Err(reason) => Err(Wrong { line, reason: format!("sample {line}: {reason}") }),
            }
        })
        .collect()
}

pub(super) fn sample_of(sample: &Value) -> Result<Recorded, String> {
    if sample["epoch"].as_u64().is_some_and(|epoch| epoch != 1) {
        return Err("found a second epoch; expected one answer to each example".to_owned());
    }
    let output = &sample["output"];
    let choice = &output["choices"][0];
    let error = match (&sample["error"], &output["error"]) {
        (Value::Null, Value::Null) => None,
        (Value::Null, other) | (other, _) => {
            Some(other["message"].as_str().or(other.as_str()).unwrap_or("it failed").to_owned())
        }
    };
    let answer = output["completion"].as_str().map(str::to_owned).or_else(|| {
        let content = &choice["message"]["content"];
        let parts = content
            .as_array()
            .map(|parts| parts.iter().filter_map(|part| part["text"].as_str()).collect::<String>());
        content.as_str().map(str::to_owned).or(parts)
    });
    if answer.is_none() && error.is_none() {
        return Err("found neither output.completion nor an error".to_owned());
    }
    Ok(Recorded {
        id: text_of(&sample["id"]),
        answer: answer.filter(|_| error.is_none()),
        reference: text_of(&sample["target"]),
        error,
        stopped: choice["stop_reason"].as_str().map(|reason| reason == "stop"),
        prompt_tokens: count_of(&output["usage"]["input_tokens"]),
        answer_tokens: count_of(&output["usage"]["output_tokens"]),
        seconds: output["time"].as_f64(),
        ..Recorded::default()
    })
}
