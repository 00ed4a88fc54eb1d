//! Turns as chat data write them: a role, a text, what the assistant calls, and whether it is learnt.

use serde_json::{Map, Value, json};
use text::Message;

use super::ReadOptions;
use super::rows::{Draft, Fields};
use super::values::{describe, optional_text_of, text_of};
use crate::error::{Problem, excerpt};
use crate::example::slices_of;

/// The draft of a row whose turns, those of the list field `field`, are already read: with the tools,
/// the id and the group that the row has besides.
pub(super) fn draft(
    line: usize,
    field: &'static str,
    messages: Vec<Message>,
    mut object: Map<String, Value>,
    options: &ReadOptions,
) -> Result<Draft, Problem> {
    let group_field = options.group_column.as_deref().unwrap_or("group");
    let id_field = options.id_column.as_deref().unwrap_or("id");
    let tools = tools(line, &mut object)?;
    let group = optional_text_of(line, group_field, object.remove(group_field))?;
    let id = optional_text_of(line, id_field, object.remove(id_field))?;
    let slices = slices_of(&object, &[]);
    Ok(Draft { messages, tools, id, group, slices, fields: Fields::List(field) })
}

/// The messages of a list field. Each is `{"role": ..., "content": ...}` (OpenAI) or `{"from": ...,
/// "value": ...}` (ShareGPT). Content may be a string or OpenAI's list of text parts; beside tool
/// calls it may be absent or null.
pub(super) fn messages(line: usize, field: &str, value: Value) -> Result<Vec<Message>, Problem> {
    let expected = "a list of {\"role\": ..., \"content\": ...}";
    match value {
        Value::Array(list) => {
            let numbered = list.into_iter().enumerate();
            numbered.map(|(i, value)| message(line, &format!("{field}[{i}]"), value)).collect()
        }
        other => Err(Problem::new(line, field, describe(&other), expected, "")),
    }
}

fn message(line: usize, place: &str, value: Value) -> Result<Message, Problem> {
    let Value::Object(mut fields) = value else {
        let expected = "an object with role and content";
        return Err(Problem::new(line, place, describe(&value), expected, ""));
    };
    let share_gpt = fields.contains_key("from") && !fields.contains_key("role");
    let [role_field, content_field] =
        if share_gpt { ["from", "value"] } else { ["role", "content"] };
    let role = text_of(line, &format!("{place}.{role_field}"), fields.remove(role_field), false)?;
    let tool_calls = tool_calls(line, place, &mut fields)?;
    let field = format!("{place}.{content_field}");
    let content = match fields.remove(content_field) {
        Some(Value::Array(parts)) => {
            parts.into_iter().map(|part| text_part(line, &field, part)).collect::<Result<_, _>>()?
        }
        None | Some(Value::Null) if !tool_calls.is_empty() => String::new(),
        other => text_of(line, &field, other, false)?,
    };
    let mut optional =
        |name: &str| optional_text_of(line, &format!("{place}.{name}"), fields.remove(name));
    let (tool_call_id, name) = (optional("tool_call_id")?, optional("name")?);
    let train = train(line, place, &fields)?;
    let role = if share_gpt { share_gpt_role(role) } else { role };
    Ok(Message { role, content, tool_calls, tool_call_id, name, train, ..Message::default() })
}

/// ShareGPT's names of those who speak; others stay, to be judged like any role.
fn share_gpt_role(from: String) -> String {
    match from.as_str() {
        "human" => "user".to_owned(),
        "gpt" | "chatgpt" | "bing" | "bard" | "model" => "assistant".to_owned(),
        "observation" | "tool_response" | "function_response" => "tool".to_owned(),
        _ => from,
    }
}

/// Whether the turn is learnt: `weight` 0 or 1 (OpenAI's fine-tuning format), `train` or `training`
/// true or false.
fn train(line: usize, place: &str, fields: &Map<String, Value>) -> Result<Option<bool>, Problem> {
    let mut train = None;
    for (name, expected) in
        [("weight", "0 or 1"), ("train", "true or false"), ("training", "true or false")]
    {
        let value = fields.get(name).unwrap_or(&Value::Null);
        let said = match value {
            Value::Null => continue,
            Value::Bool(learnt) => Some(*learnt),
            Value::Number(weight) if weight.as_f64() == Some(0.0) => Some(false),
            Value::Number(weight) if weight.as_f64() == Some(1.0) => Some(true),
            _ => None,
        };
        let field = format!("{place}.{name}");
        let Some(said) = said else {
            let hint = "a turn is learnt or it is not; there is no half";
            return Err(Problem::new(line, field, describe(value), expected, hint));
        };
        if train.is_some_and(|earlier| earlier != said) {
            let expected = "the same as the turn's other flag";
            return Err(Problem::new(line, field, describe(value), expected, ""));
        }
        train = Some(said);
    }
    Ok(train)
}

/// `tool_calls`, or the older `function_call` in the form of the former.
fn tool_calls(
    line: usize,
    place: &str,
    fields: &mut Map<String, Value>,
) -> Result<Vec<Value>, Problem> {
    let mut calls = match fields.remove("tool_calls") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(calls)) => calls,
        Some(other) => {
            let field = format!("{place}.tool_calls");
            return Err(Problem::new(line, field, describe(&other), "a list of calls", ""));
        }
    };
    match fields.remove("function_call") {
        None | Some(Value::Null) => {}
        Some(function) => calls.push(json!({ "type": "function", "function": function })),
    }
    for (i, call) in calls.iter_mut().enumerate() {
        // Tables have every field in every row.
        drop_nulls(call);
        check_call(line, &format!("{place}.tool_calls[{i}]"), call)?;
    }
    Ok(calls)
}

fn check_call(line: usize, place: &str, call: &Value) -> Result<(), Problem> {
    let expected = r#"{"type": "function", "function": {"name": ..., "arguments": ...}}"#;
    let wrong = |field: &str, found: String, expected: &str, hint: &str| {
        Err(Problem::new(line, format!("{place}{field}"), found, expected, hint))
    };
    let Some(function) = call.get("function").filter(|_| call.is_object()) else {
        return wrong("", describe(call), expected, "");
    };
    if function.get("name").and_then(Value::as_str).is_none_or(|name| name.trim().is_empty()) {
        return wrong(".function", describe(function), expected, "a call names its function");
    }
    match function.get("arguments") {
        None | Some(Value::Object(_)) => Ok(()),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(Value::Object(_)) => Ok(()),
            _ => wrong(
                ".function.arguments",
                format!("the string {:?}", excerpt(text)),
                "a string that holds a JSON object",
                "the model would learn to write arguments that nobody can read",
            ),
        },
        Some(other) => wrong(
            ".function.arguments",
            describe(other),
            "an object, or a string that holds one",
            "",
        ),
    }
}

/// The row's `tools`, or the older `functions`, each as `{"type": "function", "function": {...}}`.
/// A string that holds the list as JSON is read too: tables cannot hold schemas of many shapes.
pub(super) fn tools(line: usize, object: &mut Map<String, Value>) -> Result<Vec<Value>, Problem> {
    let mut tools = Vec::new();
    for name in ["tools", "functions"] {
        let expected = r#"a list of {"type": "function", "function": {"name": ...}}"#;
        let mut value = object.remove(name).unwrap_or(Value::Null);
        if let Value::String(text) = &value {
            value = match serde_json::from_str(text) {
                Ok(read) => read,
                Err(_) if text.trim().is_empty() => Value::Null,
                Err(_) => return Err(Problem::new(line, name, describe(&value), expected, "")),
            };
        }
        let list = match value {
            Value::Null => continue,
            Value::Array(list) => list,
            other => return Err(Problem::new(line, name, describe(&other), expected, "")),
        };
        for (i, mut tool) in list.into_iter().enumerate() {
            drop_nulls(&mut tool);
            if tool.get("name").is_some() && tool.get("function").is_none() {
                tool = json!({ "type": "function", "function": tool });
            }
            let function_name = tool.pointer("/function/name").and_then(Value::as_str);
            if function_name.is_none_or(|name| name.trim().is_empty()) {
                let field = format!("{name}[{i}]");
                return Err(Problem::new(line, field, describe(&tool), expected, ""));
            }
            tools.push(tool);
        }
    }
    Ok(tools)
}

/// Takes fields that are null out of an object and the objects directly in it.
fn drop_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, value| !value.is_null());
        for inner in fields.values_mut() {
            if let Value::Object(inner) = inner {
                inner.retain(|_, value| !value.is_null());
            }
        }
    }
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
