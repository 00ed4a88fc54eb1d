//! Phi 4: `<|tool_call|>[{"name": ..., "arguments": {...}}]<|/tool_call|>`, or the same list behind
//! the word `functools`.

use super::{Begin, ToolFormat, list, object};

pub(super) const FORMAT: ToolFormat = ToolFormat {
    name: "phi",
    recognises: |source| {
        ["<|tool_call|>", "<|tool|>", "functools"].iter().any(|word| source.contains(word))
    },
    // The word alone may well stand in prose about Python.
    begins: &[Begin::before("<|tool_call|>"), Begin { marker: "functools[", keep_from: 9 }],
    end: Some("<|/tool_call|>"),
    inner: &[],
    bare: false,
    parse: |text| list(text).or_else(|| object(text)),
    id_len: None,
};
