//! Chat: `{"messages": [{"role": ..., "content": ...}, ...]}`, OpenAI's fine-tuning format, with
//! optional `tools`, `id` and `group`.

use super::turns::{draft, messages};
use super::{Form, Opening, RowReader};
use crate::error::DataError;

pub(super) const FORM: Form = Form {
    name: "chat",
    holds: r#"{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}"#,
    sample: concat!(
        r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Two and two?"},{"role":"assistant","content":"Four."}],"id":"sum"}"#,
        "\n",
        r#"{"messages":[{"role":"user","content":"Été ?"},{"role":"assistant","content":"Oui."},{"role":"user","content":[{"type":"text","text":"Et "},{"type":"text","text":"après ?"}]},{"role":"assistant","content":"L’automne."}]}"#,
        "\n",
        r#"{"messages":[{"role":"user","content":"Rain?"},{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"rain","arguments":"{\"days\":1}"}}]},{"role":"tool","tool_call_id":"c1","content":"no"},{"role":"assistant","content":"None."},{"role":"user","content":"Sure?"},{"role":"assistant","content":"No.","weight":0},{"role":"user","content":"So?"},{"role":"assistant","content":"Dry."}],"tools":[{"type":"function","function":{"name":"rain","parameters":{"type":"object","properties":{"days":{"type":"integer"}}}}}]}"#,
        "\n",
    ),
    accepts: |names, _| names.contains(&"messages"),
    open,
};

fn open<'a>(opening: &Opening<'a, '_>) -> Result<RowReader<'a>, DataError> {
    let options = opening.options;
    Ok(Box::new(move |line, mut object| {
        let list = object.remove("messages").unwrap_or_default();
        let messages = messages(line, "messages", list)?;
        draft(line, "messages", messages, object, options)
    }))
}
