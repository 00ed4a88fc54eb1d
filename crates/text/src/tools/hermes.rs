//! Hermes 2 and 3, Qwen 2.5 and 3 and others: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`,
//! one object in each.

use super::{Begin, Layout, ToolFormat, object};

pub(super) const FORMAT: ToolFormat = ToolFormat {
    name: "hermes",
    // Qwen3-Coder puts XML between the same markers.
    recognises: |source| source.contains("<tool_call>") && !source.contains("<function="),
    begins: &[Begin::before("<tool_call>")],
    end: Some("</tool_call>"),
    inner: &[],
    bare: false,
    parse: object,
    id_len: None,
    layout: Layout {
        open: "<tool_call>\n",
        call: [r#"{"name": ""#, r#"", "arguments": "#, "}"],
        between: Some("\n</tool_call>\n<tool_call>\n"),
        close: "\n</tool_call>",
    },
};
