//! ShareGPT: `{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}`, with
//! optional `system` and `tools`. Who speaks may also be given as in chat data. A `function_call`
//! turn is the assistant's, its value the call as JSON; an `observation` is what a tool answered.

use serde_json::{Value, json};
use text::Message;

use super::turns::{draft, messages};
use super::values::optional_text_of;
use super::{Form, Opening, RowReader};
use crate::error::{DataError, Problem, excerpt};

pub(super) const FORM: Form = Form {
    name: "sharegpt",
    holds: r#"{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}"#,
    sample: concat!(
        r#"{"conversations":[{"from":"system","value":"Be brief."},{"from":"human","value":"Two and two?"},{"from":"gpt","value":"Four."}],"id":"a_0"}"#,
        "\n",
        r#"{"conversations":[{"role":"user","content":"Été ?"},{"role":"assistant","content":"Oui."}],"system":"Sois bref."}"#,
        "\n",
        r#"{"conversations":[{"from":"human","value":"Rain?"},{"from":"function_call","value":"{\"name\":\"rain\",\"arguments\":{\"days\":1}}"},{"from":"observation","value":"no"},{"from":"gpt","value":"None."}],"tools":"[{\"name\":\"rain\",\"parameters\":{}}]"}"#,
        "\n",
    ),
    accepts: |names, _| names.contains(&"conversations"),
    open,
};

fn open<'a>(opening: &Opening<'a, '_>) -> Result<RowReader<'a>, DataError> {
    let options = opening.options;
    Ok(Box::new(move |line, mut object| {
        let list = object.remove("conversations").unwrap_or_default();
        let mut messages = messages(line, "conversations", list)?;
        for (index, message) in messages.iter_mut().enumerate() {
            if message.role == "function_call" || message.role == "tool_call" {
                read_call(line, index, message)?;
            }
        }
        if let Some(system) = optional_text_of(line, "system", object.remove("system"))?
            && messages.first().is_none_or(|first| first.role != "system")
        {
            messages.insert(0, Message::new("system", system));
        }
        draft(line, "conversations", messages, object, options)
    }))
}

/// Turns a call that was written as a text of its own into an assistant's turn with that call.
fn read_call(line: usize, index: usize, message: &mut Message) -> Result<(), Problem> {
    let called = serde_json::from_str::<Value>(&message.content).ok();
    let calls = match called {
        Some(Value::Array(calls)) => calls,
        Some(call) => vec![call],
        None => Vec::new(),
    };
    let named = |call: &Value| {
        call.get("name").is_some_and(Value::is_string)
            && call.get("arguments").is_none_or(Value::is_object)
    };
    if calls.is_empty() || !calls.iter().all(named) {
        return Err(Problem::new(
            line,
            format!("conversations[{index}].value"),
            format!("the string {:?}", excerpt(&message.content)),
            r#"{"name": ..., "arguments": {...}} as JSON"#,
            "",
        ));
    }
    message.role = "assistant".to_owned();
    message.content = String::new();
    let calls = calls.into_iter();
    message.tool_calls =
        calls.map(|call| json!({ "type": "function", "function": call })).collect();
    Ok(())
}
