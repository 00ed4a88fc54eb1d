//! Alpaca: `{"instruction": ..., "input": ..., "output": ...}`, with optional `system` and `history`
//! (pairs of what was said before). Dolly's names `context` and `response` are read too.

use serde_json::Value;
use text::Message;

use super::rows::{Draft, Fields};
use super::values::{describe, optional_text_of, text_of};
use super::{Form, Opening, ReadOptions, RowReader};
use crate::error::{DataError, Problem};
use crate::example::slices_of;

pub(super) const FORM: Form = Form {
    name: "alpaca",
    holds: r#"{"instruction": "...", "input": "...", "output": "..."}"#,
    sample: concat!(
        r#"{"instruction":"Add.","input":"2 2","output":"Four."}"#,
        "\n",
        r#"{"instruction":"Été ?","input":"","output":"Oui.","system":"Sois bref.","history":[["Hiver ?","Non."]]}"#,
        "\n",
        r#"{"instruction":"Name it.","context":"a rose","response":"Rose"}"#,
        "\n",
    ),
    accepts,
    open,
};

const INPUTS: [&str; 2] = ["input", "context"];
const OUTPUTS: [&str; 2] = ["output", "response"];

/// Whoever names the columns or builds the prompt from them wants it otherwise.
fn accepts(names: &[&str], options: &ReadOptions) -> bool {
    let free = options.prompt_column.is_none()
        && options.prompt_template.is_none()
        && options.completion_column.is_none();
    free && names.contains(&"instruction") && OUTPUTS.iter().any(|name| names.contains(name))
}

fn open<'a>(opening: &Opening<'a, '_>) -> Result<RowReader<'a>, DataError> {
    let options = opening.options;
    Ok(Box::new(move |line, mut object| {
        let group_field = options.group_column.as_deref().unwrap_or("group");
        let id_field = options.id_column.as_deref().unwrap_or("id");
        let group = optional_text_of(line, group_field, object.remove(group_field))?;
        let id = optional_text_of(line, id_field, object.remove(id_field))?;
        let mut messages: Vec<Message> =
            match optional_text_of(line, "system", object.remove("system"))? {
                Some(own) => vec![Message::new("system", own)],
                None => options.system_turn().into_iter().collect(),
            };
        for (said, answered) in history(line, object.remove("history"))? {
            messages.push(Message::new("user", said));
            messages.push(Message::new("assistant", answered));
        }
        let instruction = text_of(line, "instruction", object.remove("instruction"), false)?;
        let input = INPUTS.into_iter().find(|name| object.contains_key(*name)).unwrap_or("input");
        let prompt = match optional_text_of(line, input, object.remove(input))? {
            // One empty line between what to do and what to do it with, as in Alpaca's own prompt.
            Some(input) => format!("{instruction}\n\n{input}"),
            None => instruction,
        };
        let output = OUTPUTS.into_iter().find(|name| object.contains_key(*name));
        let output = output.unwrap_or("output");
        messages.push(Message::new("user", prompt));
        messages
            .push(Message::new("assistant", text_of(line, output, object.remove(output), false)?));
        let fields = Fields::Pair("instruction".to_owned(), output.to_owned());
        let slices = slices_of(&object, &[]);
        Ok(Draft { messages, tools: Vec::new(), id, group, slices, fields })
    }))
}

fn history(line: usize, value: Option<Value>) -> Result<Vec<(String, String)>, Problem> {
    let wrong = |found: String| {
        Problem::new(line, "history", found, "a list of pairs, each said and answered", "")
    };
    let rounds = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(rounds)) => rounds,
        Some(other) => return Err(wrong(describe(&other))),
    };
    let pair = |round: Value| match round.as_array().map(Vec::as_slice) {
        Some([Value::String(said), Value::String(answered)]) => {
            Ok((said.clone(), answered.clone()))
        }
        _ => Err(wrong(describe(&round))),
    };
    rounds.into_iter().map(pair).collect()
}
