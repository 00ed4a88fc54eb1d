//! Prompt/completion: an input field and an answer field.

use super::columns::Columns;
use super::rows::Draft;
use super::values::{optional_text_of, text_of};
use super::{Form, Opening, RowReader};
use crate::error::DataError;
use crate::example::slices_of;

pub(super) const FORM: Form = Form {
    name: "prompt_completion",
    holds: r#"{"prompt": "...", "completion": "..."}"#,
    sample: concat!(
        r#"{"prompt":"Two and two?","completion":"Four.","id":7}"#,
        "\n",
        r#"{"prompt":"Été ?","completion":"Oui.","group":"saisons"}"#,
        "\n",
    ),
    accepts: |_, _| true,
    open,
};

fn open<'a>(opening: &Opening<'a, '_>) -> Result<RowReader<'a>, DataError> {
    let Opening { path, options, .. } = *opening;
    let columns = Columns::resolve(path, opening.names, opening.kind, options)?;
    Ok(Box::new(move |line, mut object| {
        let id_field = columns.id.as_deref().unwrap_or("id");
        let group_field = columns.group.as_deref().unwrap_or("group");
        let id = optional_text_of(line, id_field, object.get(id_field).cloned())?;
        let group = optional_text_of(line, group_field, object.get(group_field).cloned())?;
        let completion =
            text_of(line, &columns.completion, object.remove(&columns.completion), false)?;
        let prompt =
            columns.prompt(|name| text_of(line, name, object.get(name).cloned(), false))?;
        let messages = columns.messages(prompt, completion, options);
        let mut used = columns.prompt_columns();
        used.extend([id_field, group_field]);
        let slices = slices_of(&object, &used);
        Ok(Draft { messages, tools: Vec::new(), id, group, slices, fields: columns.fields() })
    }))
}
