//! Chat JSONL: `{"messages": [{"role": ..., "content": ...}, ...]}` per line, with optional `id`
//! and `group`. Content may be a string or OpenAI's list of text parts.

use serde_json::{Map, Value};
use text::Message;

use super::json_lines::{describe, first_object, optional_text_of, read_objects, text_of};
use super::rows::{Draft, Fields};
use super::{Format, ReadOptions, Source};
use crate::error::{DataError, Problem, excerpt};
use crate::example::Example;

pub(super) const FORMAT: Format = Format {
    name: "chat_jsonl",
    extensions: &["jsonl", "ndjson"],
    holds: r#"{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]} per line"#,
    sample: concat!(
        r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Two and two?"},{"role":"assistant","content":"Four."}],"id":"sum"}"#,
        "\n",
        r#"{"messages":[{"role":"user","content":"Été ?"},{"role":"assistant","content":"Oui."},{"role":"user","content":[{"type":"text","text":"Et "},{"type":"text","text":"après ?"}]},{"role":"assistant","content":"L’automne."}]}"#,
        "\n",
    ),
    accepts: |text| match first_object(text) {
        Some(object) => object.contains_key("messages"),
        // Broken: what it wants to be decides which error helps.
        None => {
            text.lines().find(|l| !l.trim().is_empty()).is_some_and(|l| l.contains("\"messages\""))
        }
    },
    read,
};

fn read(source: &Source<'_>, options: &ReadOptions) -> Result<Vec<Example>, DataError> {
    let group_field = options.group_column.as_deref().unwrap_or("group");
    let id_field = options.id_column.as_deref().unwrap_or("id");
    let mut any_group = false;
    let examples = read_objects(source, options, |line, mut object| {
        let messages = messages(line, &mut object)?;
        let group = optional_text_of(line, group_field, object.remove(group_field))?;
        let id = optional_text_of(line, id_field, object.remove(id_field))?;
        any_group |= group.is_some();
        Ok(Draft { messages, id, group, fields: Fields::Messages })
    })?;
    if options.group_column.is_some() && !any_group {
        return Err(DataError::Columns {
            path: source.path.to_owned(),
            found: "no row has a value in the group field".to_owned(),
            expected: format!("the field {group_field:?}"),
            hint: "without groups, leave the option out".to_owned(),
        });
    }
    Ok(examples)
}

fn messages(line: usize, object: &mut Map<String, Value>) -> Result<Vec<Message>, Problem> {
    let expected = "a list of {\"role\": ..., \"content\": ...}";
    let list = match object.remove("messages") {
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(Problem::new(line, "messages", describe(&other), expected, ""));
        }
        None => {
            let found = describe(&Value::Object(std::mem::take(object)));
            let hint = "one file holds one format; the first row of this one has messages";
            return Err(Problem::new(line, "messages", found, expected, hint));
        }
    };
    list.into_iter().enumerate().map(|(i, value)| message(line, i, value)).collect()
}

fn message(line: usize, index: usize, value: Value) -> Result<Message, Problem> {
    let place = format!("messages[{index}]");
    let Value::Object(mut fields) = value else {
        let expected = "an object with role and content";
        return Err(Problem::new(line, place, describe(&value), expected, ""));
    };
    for name in ["tool_calls", "function_call"] {
        if fields.get(name).is_some_and(|v| !v.is_null()) {
            let hint = "tool calls cannot be learnt yet; leave these rows out";
            return Err(Problem::new(
                line,
                format!("{place}.{name}"),
                "a tool call",
                "an answer in content",
                hint,
            ));
        }
    }
    if let Some(weight) = fields.get("weight").filter(|w| w.as_f64() != Some(1.0) && !w.is_null()) {
        return Err(Problem::new(
            line,
            format!("{place}.weight"),
            describe(weight),
            "1: every assistant turn is learnt",
            "end the conversation with the turn to learn, and drop the weights",
        ));
    }
    let role = text_of(line, &format!("{place}.role"), fields.remove("role"), false)?;
    let field = format!("{place}.content");
    let content = match fields.remove("content") {
        Some(Value::Array(parts)) => {
            parts.into_iter().map(|part| text_part(line, &field, part)).collect::<Result<_, _>>()?
        }
        other => text_of(line, &field, other, false)?,
    };
    Ok(Message::new(role, content))
}

fn text_part(line: usize, field: &str, part: Value) -> Result<String, Problem> {
    let kind = part.get("type").and_then(Value::as_str).map(str::to_owned);
    match (kind.as_deref(), part) {
        (Some("text"), Value::Object(mut part)) => {
            text_of(line, &format!("{field}[].text"), part.remove("text"), false)
        }
        (kind, part) => Err(Problem::new(
            line,
            field,
            match kind {
                Some(kind) => format!("a part of type {:?}", excerpt(kind)),
                None => describe(&part),
            },
            "text, as a string or as parts of type \"text\"",
            "images and sounds cannot be learnt",
        )),
    }
}
