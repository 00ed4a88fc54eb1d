//! Mistral: `[TOOL_CALLS]` and a JSON list of calls with ids of nine letters and digits; from
//! tokenizer version 11 on `[TOOL_CALLS]name[ARGS]{...}`, once for each call, with or without a
//! `[CALL_ID]`.

use super::{Begin, Layout, ToolCall, ToolFormat, list};
use serde_json::value::RawValue;

/// A JSON list behind one marker.
pub(super) const FORMAT: ToolFormat = ToolFormat {
    name: "mistral",
    recognises: |source| source.contains("[TOOL_CALLS]"),
    begins: &[Begin::before(MARKER)],
    end: None,
    inner: &[ARGS, CALL_ID],
    bare: false,
    parse: |text| if text.trim_start().starts_with('[') { list(text) } else { named(text) },
    id_len: Some(9),
    layout: Layout {
        open: "[TOOL_CALLS] [",
        call: [r#"{"name": ""#, r#"", "arguments": "#, "}"],
        between: Some(", "),
        close: "]",
    },
};

/// A marker before each call. Both ways are read wherever one of them is expected.
pub(super) const NAMED: ToolFormat = ToolFormat {
    name: "mistral-v11",
    recognises: |source| source.contains(MARKER) && source.contains(ARGS),
    layout: Layout { open: MARKER, call: ["", ARGS, ""], between: Some(MARKER), close: "" },
    ..FORMAT
};

const MARKER: &str = "[TOOL_CALLS]";
const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";

/// Calls as they have been written since version 11; the first marker is taken off already.
fn named(text: &str) -> Option<Vec<ToolCall>> {
    text.split(MARKER)
        .map(|call| {
            let (head, arguments) = call.split_once(ARGS)?;
            let (name, id) = match head.split_once(CALL_ID) {
                Some((name, id)) => (name, Some(id.trim().to_owned())),
                None => (head, None),
            };
            let arguments = serde_json::from_str::<&RawValue>(arguments.trim()).ok()?.get();
            let name = name.trim();
            (!name.is_empty() && arguments.starts_with('{')).then(|| ToolCall {
                name: name.to_owned(),
                arguments: arguments.to_owned(),
                id,
            })
        })
        .collect()
}
