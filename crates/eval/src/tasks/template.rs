//! Jinja as lm-evaluation-harness sets it up, with values written as Python writes them.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use regex::Regex;
use std::fmt::Write;

/// Work that one rendering may do, in the engine's instructions.
const FUEL: u64 = 200_000;

/// The environment that all templates of a task are rendered in.
pub(super) struct Templates {
    environment: Environment<'static>,
}

impl Templates {
    pub(super) fn new() -> Templates {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.expect("the usual marks are valid"));
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, _, value| {
            if value.is_undefined() {
                return Err(Error::from(ErrorKind::UndefinedError));
            }
            out.write_str(&text(value)).map_err(Error::from)
        });
        environment.add_filter("regex_replace", regex_replace);
        Templates { environment }
    }

    /// The text that `template` makes of `doc`.
    pub(super) fn render(&self, template: &str, doc: &serde_json::Value) -> Result<String, String> {
        self.environment
            .render_str(template, Value::from(Serde(doc)))
            .map_err(|error| explain(&error))
    }

    /// The value of a template that is a single `{{ expression }}`; None when it is more than that.
    pub(super) fn value(
        &self,
        template: &str,
        doc: &serde_json::Value,
    ) -> Option<Result<serde_json::Value, String>> {
        let inner = template.trim().strip_prefix("{{")?.strip_suffix("}}")?;
        let inner = inner.strip_prefix('-').unwrap_or(inner);
        let inner = inner.strip_suffix('-').unwrap_or(inner);
        if inner.contains("{{") || inner.contains("}}") || inner.contains("{%") {
            return None;
        }
        let value = self
            .environment
            .compile_expression(inner)
            .and_then(|e| e.eval(Value::from(Serde(doc))));
        Some(value.map_err(|error| explain(&error)).and_then(|value| {
            if value.is_undefined() {
                return Err(format!("{} is undefined", inner.trim()));
            }
            serde_json::to_value(&value).map_err(|error| error.to_string())
        }))
    }
}

fn explain(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// `re.sub(pattern, repl, string, count=count)`, for patterns without look-around.
fn regex_replace(
    string: &str,
    pattern: &str,
    repl: &str,
    count: Option<usize>,
) -> Result<String, Error> {
    let regex = Regex::new(pattern)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
    if repl.contains('\\') {
        let said = "regex_replace: found a backslash in the replacement; expected plain text";
        return Err(Error::new(ErrorKind::InvalidOperation, said));
    }
    let plain = regex::NoExpand(repl);
    Ok(regex.replacen(string, count.unwrap_or(0), plain).into_owned())
}

/// `str(value)`.
fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => repr(value),
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Number => number(value),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter().map(|items| items.map(|item| repr(&item)).collect());
            format!("[{}]", items.unwrap_or_else(|_| Vec::new()).join(", "))
        }
        ValueKind::Map => {
            let pair = |key: Value| {
                let item = value.get_item(&key).unwrap_or(Value::UNDEFINED);
                format!("{}: {}", repr(&key), repr(&item))
            };
            let pairs: Vec<String> =
                value.try_iter().map(|keys| keys.map(pair).collect()).unwrap_or_default();
            format!("{{{}}}", pairs.join(", "))
        }
        _ => value.to_string(),
    }
}

/// Floats are written with the fewest digits that tell them apart, in exponents from 1e16 on and below
/// 1e-4.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    if float != 0.0 && float.is_finite() && !(1e-4..1e16).contains(&float.abs()) {
        let shown = format!("{float:e}");
        let (digits, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
        let exponent: i32 = exponent.parse().unwrap_or_default();
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    format!("{float:?}").replace("NaN", "nan")
}

/// A string as a Python literal: single quotes, unless it holds some and no double ones.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                // A String never refuses.
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_written_as_python_writes_them() {
        let doc = json!({
            "s": "it's", "i": 3, "f": 1.0, "big": 1e20, "small": 0.00001, "yes": true, "none": null,
            "list": ["a", "it's", "say \"hi\" it's", 2, 0.5], "map": {"k": [1]},
        });
        let templates = Templates::new();
        for (template, expected) in [
            ("{{s}} {{i}} {{f}}\n", "it's 3 1.0\n"),
            ("{{big}} {{small}} {{yes}} {{none}}", "1e+20 1e-05 True None"),
            ("{{list}}", r#"['a', "it's", 'say "hi" it\'s', 2, 0.5]"#),
            ("{{map}}", "{'k': [1]}"),
            ("{% for x in list[:2] %}{{loop.index}}.{{x}} {% endfor %}", "1.a 2.it's "),
            ("{{s.upper().strip()}}", "IT'S"),
            ("{{s | regex_replace('[aeiou]', '_')}}", "_t's"),
            ("{{'%s=%d' | format('a', 2)}}", "a=2"),
        ] {
            assert_eq!(templates.render(template, &doc).as_deref(), Ok(expected), "{template}");
        }
        let error = templates.render("{{nothing}}", &doc).unwrap_err();
        assert!(error.contains("undefined"), "{error}");
        assert!(templates.render("{{", &doc).is_err());
        assert!(templates.render("{% for i in range(10000000) %}x{% endfor %}", &doc).is_err());
    }

    #[test]
    fn an_expression_has_a_value() {
        let doc = json!({"a": ["x", "y"], "b": 1});
        let templates = Templates::new();
        assert_eq!(templates.value("{{ a }}", &doc), Some(Ok(json!(["x", "y"]))));
        assert_eq!(templates.value("{{a[b]}}", &doc), Some(Ok(json!("y"))));
        assert_eq!(templates.value("{{['p', a[0]]}}", &doc), Some(Ok(json!(["p", "x"]))));
        assert_eq!(templates.value("{{a}} {{b}}", &doc), None);
        assert_eq!(templates.value("plain", &doc), None);
        assert!(templates.value("{{nothing}}", &doc).unwrap().is_err());
    }
}
