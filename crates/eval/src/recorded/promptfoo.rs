//! What promptfoo writes with `--output results.json`: `results.results`, a list of `testIdx`, `vars`,
//! `provider` and `response`.

use super::{Form, Recorded, Wrong, count_of, text_of, whole};
use serde_json::Value;

pub(super) const FORM: Form = Form { is: |first| first["results"]["results"].is_array(), read };

fn read(bytes: &[u8]) -> Result<Vec<(usize, Recorded)>, Wrong> {
    let file = whole(bytes)?;
    let mut arm: Option<(String, u64)> = None;
    let mut all = Vec::new();
    for (index, row) in file["results"]["results"].as_array().into_iter().flatten().enumerate() {
        let line = index + 1;
        let wrong = |reason: String| Wrong { line, reason: format!("result {line}: {reason}") };
        let provider = &row["provider"];
        let name = provider["label"].as_str().filter(|label| !label.is_empty());
        let name = name.or(provider["id"].as_str()).or(provider.as_str()).unwrap_or_default();
        let this = (name.to_owned(), row["promptIdx"].as_u64().unwrap_or(0));
        let first = arm.get_or_insert_with(|| this.clone());
        if *first != this {
            return Err(wrong(format!(
                "found answers of {:?} (prompt {}) and {:?} (prompt {}); expected one provider and prompt. hint: run promptfoo with --filter-providers",
                first.0, first.1, this.0, this.1
            )));
        }
        all.push((line, row_of(row, index).map_err(wrong)?));
    }
    Ok(all)
}

fn row_of(row: &Value, index: usize) -> Result<Recorded, String> {
    let (response, vars) = (&row["response"], &row["vars"]);
    // A failed assertion is written into the row's error too; only an answer that never came failed.
    let error = response["error"].as_str().or_else(|| {
        response["output"].is_null().then(|| row["error"].as_str().unwrap_or("there is no output"))
    });
    let answer = match &response["output"] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let place = match &row["testIdx"] {
        Value::Null => index,
        found => count_of(found).ok_or("testIdx: expected a whole number")?,
    };
    // It writes zeros where a provider counts nothing.
    let usage = &response["tokenUsage"];
    let counts = usage["total"].as_u64() != Some(0);
    let counted = |name: &str| count_of(&usage[name]).filter(|_| counts);
    let reference = ["reference", "expected", "answer", "target", "label"];
    Ok(Recorded {
        id: vars.get("id").and_then(text_of),
        place: Some(place),
        answer: answer.filter(|_| error.is_none()),
        reference: reference.iter().find_map(|name| vars.get(*name).and_then(text_of)),
        error: error.map(str::to_owned),
        prompt_tokens: counted("prompt"),
        answer_tokens: counted("completion"),
        seconds: row["latencyMs"].as_f64().map(|ms| ms / 1000.0),
        ..Recorded::default()
    })
}
