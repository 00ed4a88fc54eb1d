//! Phi 4: `<|tool_call|>[{"name": ..., "arguments": {...}}]<|/tool_call|>`, or the same list behind
//! the word `functools`.

use super::{Begin, Layout, ToolFormat, list, object};

/// Between markers.
pub(super) const FORMAT: ToolFormat = ToolFormat {
    name: "phi",
    recognises: |source| ["<|tool_call|>", "<|tool|>"].iter().any(|word| source.contains(word)),
    // The word alone may well stand in prose about Python.
    begins: &[Begin::before("<|tool_call|>"), Begin { marker: "functools[", keep_from: 9 }],
    end: Some("<|/tool_call|>"),
    inner: &[],
    bare: false,
    parse: |text| list(text).or_else(|| object(text)),
    id_len: None,
    layout: Layout {
        open: "<|tool_call|>[",
        call: [r#"{"name": ""#, r#"", "arguments": "#, "}"],
        between: Some(", "),
        close: "]<|/tool_call|>",
    },
};

/// Behind the word. Both ways are read wherever one of them is expected.
pub(super) const FUNCTOOLS: ToolFormat = ToolFormat {
    name: "functools",
    recognises: |source| source.contains("functools"),
    layout: Layout { open: "functools[", close: "]", ..FORMAT.layout },
    ..FORMAT
};
