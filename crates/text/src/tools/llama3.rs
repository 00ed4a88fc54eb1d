//! Llama 3.1 to 3.3: the answer is the call, `{"name": ..., "parameters": {...}}`, sometimes behind
//! `<|python_tag|>`, and several are parted by semicolons.

use super::{Begin, Layout, ToolCall, ToolFormat, Written};

pub(super) const FORMAT: ToolFormat = ToolFormat {
    name: "llama3",
    recognises: |source| {
        source.contains("<|start_header_id|>") && source.contains("\"parameters\"")
    },
    begins: &[Begin::before("<|python_tag|>")],
    end: None,
    inner: &[],
    bare: true,
    parse: objects,
    id_len: None,
    // Meta's templates refuse a turn with more than one call.
    layout: Layout {
        open: "",
        call: [r#"{"name": ""#, r#"", "parameters": "#, "}"],
        between: None,
        close: "",
    },
};

fn objects(text: &str) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Written<'_>>();
        let written = values.next()?.ok()?;
        // An object with a name alone may be anything: a person, say.
        written.arguments?;
        calls.push(written.call()?);
        rest = rest[values.byte_offset()..].trim_start();
        rest = rest.strip_prefix(';').unwrap_or(rest).trim_start();
    }
    (!calls.is_empty()).then_some(calls)
}
