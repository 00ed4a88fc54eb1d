//! Tool calls in the answers of models: one file for each way of writing them, one table.
//!
//! A model calls tools as its chat template taught it, so the template says which format to read:
//! [`ToolFormat::of`].

mod hermes;
mod llama3;
mod mistral;
mod phi;

use regex::Regex;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::LazyLock;

/// THE table: a new format is a new file and one line here. The first that recognises a template
/// counts.
pub const TOOL_FORMATS: &[&ToolFormat] = &[
    &hermes::FORMAT,
    &mistral::NAMED,
    &mistral::FORMAT,
    &phi::FUNCTOOLS,
    &phi::FORMAT,
    &llama3::FORMAT,
];

/// A way of writing tool calls.
pub struct ToolFormat {
    /// The name by which the field knows it.
    pub name: &'static str,
    /// Whether a chat template of this source writes calls so.
    pub(crate) recognises: fn(source: &str) -> bool,
    /// What begins a call, and what of it belongs to the call itself already.
    pub(crate) begins: &'static [Begin],
    /// What ends a call; without it the call reaches to the end of the answer.
    pub(crate) end: Option<&'static str>,
    /// Control tokens that have a meaning inside a call.
    pub(crate) inner: &'static [&'static str],
    /// Whether an answer that is nothing but a call needs no beginning: it is one when it opens with a
    /// JSON object whose first field is a call's.
    pub(crate) bare: bool,
    /// The calls between beginning and end; None when it is none.
    pub(crate) parse: fn(&str) -> Option<Vec<ToolCall>>,
    /// Letters and digits of an id that the template takes back; None for any id.
    pub(crate) id_len: Option<usize>,
    /// How a call is written where one is forced.
    pub(crate) layout: Layout,
}

/// How an answer of nothing but calls is written: `open`, a call, `between` and further calls,
/// `close`. White space in these may be left out.
pub(crate) struct Layout {
    pub(crate) open: &'static str,
    /// What stands before a call's name, between its name and its arguments, and behind these.
    pub(crate) call: [&'static str; 3],
    /// None where one answer holds one call.
    pub(crate) between: Option<&'static str>,
    pub(crate) close: &'static str,
}

/// See [`ToolFormat::begins`].
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) marker: &'static str,
    /// Where in the marker the call itself begins.
    pub(crate) keep_from: usize,
}

impl Begin {
    /// A marker that is not part of the call.
    pub(crate) const fn before(marker: &'static str) -> Begin {
        Begin { marker, keep_from: marker.len() }
    }
}

/// A call as the model wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// The function's name.
    pub name: String,
    /// A JSON object, as it was written.
    pub arguments: String,
    /// The call's own name, where the model gave one.
    pub id: Option<String>,
}

impl ToolFormat {
    /// The format that a chat template of this source writes; None when it writes none that is
    /// known.
    pub fn of(source: &str) -> Option<&'static ToolFormat> {
        TOOL_FORMATS.iter().copied().find(|format| (format.recognises)(source))
    }

    /// What is control tokens in some vocabularies and must be seen all the same.
    pub fn markers(&self) -> impl Iterator<Item = &'static str> {
        let begins = self.begins.iter().map(|begin| begin.marker);
        begins.chain(self.end).chain(self.inner.iter().copied())
    }

    /// An id for a call without one, made of `random`, in a form that the template takes back.
    pub fn call_id(&self, random: u128) -> String {
        const LETTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let Some(len) = self.id_len else { return format!("call_{random:032x}") };
        let mut rest = random;
        let mut letter = || {
            let letter = char::from(LETTERS[(rest % 36) as usize]);
            rest /= 36;
            letter
        };
        (0..len).map(|_| letter()).collect()
    }
}

impl PartialEq for ToolFormat {
    fn eq(&self, other: &ToolFormat) -> bool {
        // Names are unique in the table.
        self.name == other.name
    }
}

impl Eq for ToolFormat {}

impl std::fmt::Debug for ToolFormat {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ToolFormat").field("name", &self.name).finish()
    }
}

/// A call up to its arguments, which are to follow as a JSON object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    /// Where the arguments begin, in bytes.
    pub(crate) arguments_at: usize,
    /// Whether the call is an object that ends behind its arguments.
    pub(crate) object: bool,
    /// Whether it stands in a list.
    pub(crate) listed: bool,
}

/// The head of the call that `text` begins with. None while it is not whole, and where the call is
/// written in another order, so that it can be read only as a whole.
pub(crate) fn head(text: &str) -> Option<Head> {
    static OBJECT: LazyLock<Regex> = LazyLock::new(|| {
        let name = r#""name"\s*:\s*"([A-Za-z0-9_.-]+)"\s*,\s*"#;
        let kind = r#"(?:"type"\s*:\s*"function"\s*,\s*)?"#;
        let id = r#"(?:"id"\s*:\s*"([A-Za-z0-9_-]+)"\s*,\s*)?"#;
        let arguments = r#""(?:arguments|parameters)"\s*:\s*\{"#;
        compiled(&format!(r"^\s*(\[?)\s*\{{\s*{kind}{name}{id}{arguments}"))
    });
    static NAMED: LazyLock<Regex> = LazyLock::new(|| {
        compiled(r"^\s*()([A-Za-z0-9_.-]+)\s*(?:\[CALL_ID\]\s*([A-Za-z0-9]+)\s*)?\[ARGS\]\s*\{")
    });
    let named = || NAMED.captures(text).map(|captures| (captures, false));
    let (captures, object) = OBJECT.captures(text).map(|c| (c, true)).or_else(named)?;
    let group = |i: usize| captures.get(i).map(|found| found.as_str().to_owned());
    Some(Head {
        name: group(2)?,
        id: group(3),
        arguments_at: captures.get(0)?.end() - 1,
        object,
        listed: group(1).is_some_and(|bracket| !bracket.is_empty()),
    })
}

fn compiled(regex: &str) -> Regex {
    Regex::new(regex).expect("the expressions in this file compile")
}

/// The fields of a call as most formats write it; some call the arguments parameters.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
    id: Option<String>,
}

impl Written<'_> {
    /// None when the arguments are no object.
    fn call(self) -> Option<ToolCall> {
        let arguments = match self.arguments.map(RawValue::get) {
            None | Some("null") => "{}".to_owned(),
            Some(object) if object.starts_with('{') => object.to_owned(),
            // Some models write the object once more as a string.
            Some(text) => {
                let inner: String = serde_json::from_str(text).ok()?;
                let object = serde_json::from_str::<&RawValue>(&inner).ok()?.get();
                object.starts_with('{').then(|| object.to_owned())?
            }
        };
        let name = Some(self.name).filter(|name| !name.is_empty())?;
        Some(ToolCall { name, arguments, id: self.id })
    }
}

/// One call, written as a JSON object.
fn object(text: &str) -> Option<Vec<ToolCall>> {
    let written: Written<'_> = serde_json::from_str(text).ok()?;
    Some(vec![written.call()?])
}

/// Several calls, written as a JSON list of at least one object.
fn list(text: &str) -> Option<Vec<ToolCall>> {
    let written: Vec<Written<'_>> = serde_json::from_str(text).ok()?;
    let calls: Option<Vec<ToolCall>> = written.into_iter().map(Written::call).collect();
    calls.filter(|calls| !calls.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_markers_are_no_beginnings_of_one_another() {
        for (i, format) in TOOL_FORMATS.iter().enumerate() {
            assert!(TOOL_FORMATS[..i].iter().all(|other| other.name != format.name));
            let markers: Vec<&str> = format.begins.iter().map(|b| b.marker).collect();
            assert!(!markers.is_empty() || format.bare, "{}", format.name);
            for (j, marker) in markers.iter().enumerate() {
                assert!(
                    markers[..j].iter().all(|o| !o.starts_with(marker) && !marker.starts_with(o))
                );
            }
        }
    }

    #[test]
    fn heads_are_read_as_soon_as_they_are_whole() {
        fn found(text: &str) -> Option<(String, &str)> {
            let head = head(text)?;
            let shown = format!("{} {:?} {} {}", head.name, head.id, head.object, head.listed);
            Some((shown, &text[head.arguments_at..]))
        }
        for (text, shown, rest) in [
            (r#"{"name": "f", "arguments": {"a"#, "f None true false", "{\"a"),
            (r#"{"type":"function","name":"f","parameters":{"#, "f None true false", "{"),
            (
                r#" [{"name": "f", "id": "a1", "arguments": {}}]"#,
                r#"f Some("a1") true true"#,
                "{}}]",
            ),
            ("f[ARGS]{}", "f None false false", "{}"),
            ("f-1[CALL_ID]abc[ARGS] {", r#"f-1 Some("abc") false false"#, "{"),
        ] {
            assert_eq!(found(text), Some((shown.to_owned(), rest)), "{text}");
        }
        for text in [
            "",
            r#"{"name": "f", "arguments": "#,
            r#"{"name": "f", "arguments": "{}"}"#,
            r#"{"arguments": {}, "name": "f"}"#,
            r#"{"name": "a b", "arguments": {}}"#,
            "f[ARGS]",
            "[ARGS]{}",
        ] {
            assert_eq!(found(text), None, "{text}");
        }
    }

    #[test]
    fn ids_have_the_length_that_the_template_takes() {
        assert_eq!(mistral::FORMAT.call_id(u128::MAX).len(), 9);
        assert_eq!(mistral::FORMAT.call_id(0), "000000000");
        assert!(mistral::FORMAT.call_id(12345).chars().all(|c| c.is_ascii_alphanumeric()));
        assert_eq!(hermes::FORMAT.call_id(10), format!("call_{:032x}", 10));
    }

    #[test]
    fn calls_are_read_as_written() {
        let call = |name: &str, arguments: &str, id: Option<&str>| ToolCall {
            name: name.into(),
            arguments: arguments.into(),
            id: id.map(str::to_owned),
        };
        let f = call("f", r#"{"a":  1, "b": [2]}"#, None);
        let g = call("g", "{}", None);
        let with_id = call("f", r#"{"x": "é\n"}"#, Some("abc123def"));
        for (format, text, expected) in [
            (
                &hermes::FORMAT,
                r#"{"name": "f", "arguments": {"a":  1, "b": [2]}}"#,
                Some(vec![f.clone()]),
            ),
            (&hermes::FORMAT, "\n{\"arguments\": {}, \"name\": \"g\"}\n", Some(vec![g.clone()])),
            (&hermes::FORMAT, r#"{"name": "g"}"#, Some(vec![g.clone()])),
            (&hermes::FORMAT, r#"{"name": "g", "arguments": null}"#, Some(vec![g.clone()])),
            (&hermes::FORMAT, r#"{"name": "g", "arguments": "{}"}"#, Some(vec![g.clone()])),
            (&hermes::FORMAT, r#"{"name": "g", "arguments": "text"}"#, None),
            (&hermes::FORMAT, r#"{"name": "g", "arguments": [1]}"#, None),
            (&hermes::FORMAT, r#"{"name": "", "arguments": {}}"#, None),
            (&hermes::FORMAT, r#"{"name": 3, "arguments": {}}"#, None),
            (&hermes::FORMAT, r#"{"arguments": {}}"#, None),
            (&hermes::FORMAT, r#"{"name": "g", "arguments": {}"#, None),
            (&hermes::FORMAT, "", None),
            (
                &mistral::FORMAT,
                r#" [{"name": "g", "arguments": {}}, {"name": "f", "arguments": {"x": "é\n"}, "id": "abc123def"}]"#,
                Some(vec![g.clone(), with_id.clone()]),
            ),
            (&mistral::FORMAT, "[]", None),
            (&mistral::FORMAT, "g[ARGS]{}", Some(vec![g.clone()])),
            (
                &mistral::FORMAT,
                "g[CALL_ID]abc123def[ARGS]{}",
                Some(vec![call("g", "{}", Some("abc123def"))]),
            ),
            (
                &mistral::FORMAT,
                "g[ARGS]{}[TOOL_CALLS]f[ARGS]{\"a\":  1, \"b\": [2]}",
                Some(vec![g.clone(), f.clone()]),
            ),
            (&mistral::FORMAT, "g[ARGS]{} and so on", None),
            (&mistral::FORMAT, "no call at all", None),
            (&phi::FORMAT, r#"[{"name": "g", "arguments": {}}]"#, Some(vec![g.clone()])),
            (&phi::FORMAT, r#"{"name": "g", "arguments": {}}"#, Some(vec![g.clone()])),
            (
                &llama3::FORMAT,
                r#"{"name": "f", "parameters": {"a":  1, "b": [2]}}"#,
                Some(vec![f.clone()]),
            ),
            (
                &llama3::FORMAT,
                r#"{"type": "function", "name": "g", "parameters": {}}"#,
                Some(vec![g.clone()]),
            ),
            (
                &llama3::FORMAT,
                r#"{"name": "g", "parameters": {}}; {"name": "g", "parameters": {}}"#,
                Some(vec![g.clone(), g.clone()]),
            ),
            (&llama3::FORMAT, r#"{"name": "Bob", "age": 7}"#, None),
            (&llama3::FORMAT, r#"{"name": "g", "parameters": {}} is a call"#, None),
            (&llama3::FORMAT, r#"brave_search.call(query="x")"#, None),
        ] {
            assert_eq!((format.parse)(text), expected, "{} {text}", format.name);
        }
        let deep = format!(
            r#"{{"name": "f", "arguments": {}1{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert_eq!((hermes::FORMAT.parse)(&deep), None);
    }
}
