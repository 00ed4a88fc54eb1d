//! Prompt/completion JSONL: one object per line with an input field and an answer field.

use super::columns::Columns;
use super::json_lines::{first_object, optional_text_of, read_objects, text_of};
use super::rows::Draft;
use super::{Format, ReadOptions, Source};
use crate::error::DataError;
use crate::example::Example;

pub(super) const FORMAT: Format = Format {
    name: "prompt_completion_jsonl",
    extensions: &["jsonl", "ndjson"],
    holds: r#"{"prompt": "...", "completion": "..."} per line"#,
    sample: concat!(
        r#"{"prompt":"Two and two?","completion":"Four.","id":7}"#,
        "\n",
        r#"{"prompt":"Été ?","completion":"Oui.","group":"saisons"}"#,
        "\n",
    ),
    accepts: |_| true,
    read,
};

fn read(source: &Source<'_>, options: &ReadOptions) -> Result<Vec<Example>, DataError> {
    // Without a first object the rows below say what is wrong with it, so any names will do.
    let first = first_object(source.text);
    let names: Option<Vec<&str>> =
        first.as_ref().map(|object| object.keys().map(String::as_str).collect());
    let columns = match &names {
        Some(names) => Columns::resolve(source.path, names, "fields of the first row", options)?,
        None => Columns::usual(),
    };
    let id_field = columns.id.as_deref().unwrap_or("id");
    let group_field = columns.group.as_deref().unwrap_or("group");
    read_objects(source, options, |line, mut object| {
        let id = optional_text_of(line, id_field, object.get(id_field).cloned())?;
        let group = optional_text_of(line, group_field, object.get(group_field).cloned())?;
        let completion =
            text_of(line, &columns.completion, object.remove(&columns.completion), false)?;
        let prompt =
            columns.prompt(|name| text_of(line, name, object.get(name).cloned(), false))?;
        let messages = columns.messages(prompt, completion, options);
        Ok(Draft { messages, id, group, fields: columns.fields() })
    })
}
