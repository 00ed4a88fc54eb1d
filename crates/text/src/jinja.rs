//! The Jinja engine, set up as Hugging Face sets up its own, and bounded: a template comes from a
//! stranger together with the weights.

use std::collections::BTreeMap;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use crate::conversation::Message;
use crate::error::TextError;
use crate::python::{JsonLayout, json_dumps, strftime};

/// Work that one rendering may do: one unit is an instruction or 64 bytes of text made. A
/// conversation of a thousand turns takes about a fifth of it.
const FUEL: u64 = 500_000;
/// Stack for the engine. It walks nested lists by recursion, and `FUEL` buys lists within lists some
/// 250,000 deep, at well under a kilobyte each. Only what is used is ever taken from the system.
const STACK_BYTES: usize = 256 << 20;
/// Longest source of a template; real ones are below 50 kB.
const SOURCE_BYTES: usize = 256 << 10;
/// Bytes that one rendering may write beyond eight times its input.
const OUTPUT_BYTES: usize = 4 << 20;
/// How deep lists in lists may go in `tojson`.
const JSON_DEPTH: usize = 64;

const NAME: &str = "chat template";
/// The variable in which the time of the rendering travels to `strftime_now`.
const NOW: &str = "metier_now";

/// Runs `work` where the engine has room. A panic in there becomes an error.
pub(crate) fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, TextError> {
    let failed = |reason: String| TextError::TemplateFailed { reason };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("chat template".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|error| failed(format!("no thread for it ({error})")))?
            .join()
            .map_err(|_| failed("the engine panicked".into()))
    })
}

/// A compiled template.
#[derive(Clone)]
pub(crate) struct Jinja {
    environment: Environment<'static>,
}

impl Jinja {
    pub(crate) fn compile(source: &str) -> Result<Self, TextError> {
        if source.len() > SOURCE_BYTES {
            return Err(TextError::TemplateSyntax {
                reason: format!("it is {} bytes long, more than {SOURCE_BYTES}", source.len()),
            });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| TextError::TemplateSyntax { reason: error.to_string() })?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| TextError::TemplateSyntax { reason: error.to_string() })?;
        Ok(Self { environment })
    }

    /// Renders `messages`. `variables` holds `bos_token` and the like, and `tools` if there are any; `now` is what
    /// `strftime_now` tells, in seconds since 1970.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: impl IntoIterator<Item = (String, Value)>,
        now: u64,
    ) -> Result<String, TextError> {
        let input: usize = messages.iter().map(bytes_of).sum();
        let mut context: BTreeMap<String, Value> = variables.into_iter().collect();
        context.insert("messages".into(), messages.iter().map(as_value).collect());
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        // Hugging Face passes these two always, so that templates test them with `is none`.
        context.entry("tools".into()).or_insert(Value::from(()));
        context.insert("documents".into(), Value::from(()));
        context.insert(NOW.into(), now.into());

        let limit = OUTPUT_BYTES + 8 * input;
        let mut output = Bounded { bytes: Vec::new(), limit, overrun: false };
        let done = self.environment.get_template(NAME).and_then(|template| {
            template.render_captured_to(Value::from_pairs(context), &mut output)
        });
        if output.overrun {
            return Err(TextError::TemplateBudget { limit: format!("{limit} bytes of output") });
        }
        if let Err(error) = done {
            return Err(explain(&error));
        }
        String::from_utf8(output.bytes)
            .map_err(|error| TextError::TemplateFailed { reason: error.to_string() })
    }
}

/// A message as Hugging Face hands it to templates: fields that it does not have are not there, so
/// that `'tool_calls' in message` and `message.name is defined` mean what they say. Whether it is
/// learnt is not the template's business.
fn as_value(message: &Message) -> Value {
    let calls = (!message.tool_calls.is_empty()).then(|| Value::from(Serde(&message.tool_calls)));
    let fields = [
        ("role", Some(Value::from(message.role.as_str()))),
        ("content", Some(Value::from(message.content.as_str()))),
        ("tool_calls", calls),
        ("tool_call_id", message.tool_call_id.as_deref().map(Value::from)),
        ("name", message.name.as_deref().map(Value::from)),
        ("reasoning_content", message.reasoning_content.as_deref().map(Value::from)),
    ];
    Value::from_pairs(fields.into_iter().filter_map(|(name, value)| Some((name, value?))))
}

/// About how much text a message is.
fn bytes_of(message: &Message) -> usize {
    let calls: usize = message.tool_calls.iter().map(|call| call.to_string().len()).sum();
    let thoughts = message.reasoning_content.as_ref().map_or(0, String::len);
    message.content.len() + thoughts + calls
}

/// A buffer that refuses to grow beyond its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    overrun: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.overrun = true;
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The template's own refusal, told apart from the engine's errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn explain(error: &Error) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Refusal(reason)) = current.downcast_ref() {
            return TextError::TemplateRefused { reason: reason.clone() };
        }
        if let Some(engine) = current.downcast_ref::<Error>()
            && engine.kind() == ErrorKind::OutOfFuel
        {
            return TextError::TemplateBudget { limit: format!("{FUEL} steps") };
        }
        cause = current.source();
    }
    TextError::TemplateFailed { reason: error.to_string() }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(message)))
}

fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    let now = state.lookup(NOW).and_then(|now| u64::try_from(now).ok()).unwrap_or(0);
    strftime(now, format).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now does not know all of the format {format:?}"),
        )
    })
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, which unlike
/// Jinja's own filter escapes nothing for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(text) if text.kind() == ValueKind::String => Some(text.to_string()),
        Some(width) => Some(" ".repeat(usize::try_from(width)?.min(16))),
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let [item, key] = match separators.as_deref() {
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair"));
        }
        None if indent.is_some() => [",".into(), ": ".into()],
        None => [", ".into(), ": ".into()],
    };
    let layout = JsonLayout {
        indent,
        item,
        key,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    Ok(Value::from(json_dumps(&plain_json(value, JSON_DEPTH)?, &layout)))
}

/// `value` as JSON, by hand because the depth must be bounded before it is walked.
fn plain_json(value: &Value, depth: usize) -> Result<serde_json::Value, Error> {
    let deeper = || {
        depth.checked_sub(1).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson goes no deeper than {JSON_DEPTH} levels"),
            )
        })
    };
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let depth = deeper()?;
            value.try_iter()?.map(|item| plain_json(&item, depth)).collect()
        }
        ValueKind::Map => {
            let depth = deeper()?;
            let entry = |key: Value| {
                let item = value.get_item(&key)?;
                Ok((key.to_string(), plain_json(&item, depth)?))
            };
            value.try_iter()?.map(entry).collect()
        }
        _ => serde_json::to_value(value)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}"))),
    }
}

/// Replaces the tags `{% generation %}` and `{% endgeneration %}`, with which some templates mark
/// the answers for Hugging Face's trainer, by tags without effect. The mask here comes from the
/// rendered text and needs no marks.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let body = &tag[2..end];
        let word = body.trim_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        };
        if replacement == word {
            out.push_str(&tag[..end + 2]);
        } else {
            // Only the word changes: the signs around it trim space.
            out.push_str("{%");
            out.push_str(&body.replacen(word, &format!(" {replacement} "), 1));
            out.push_str("%}");
        }
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, TextError> {
        let messages = [Message::new("user", "hé <b>"), Message::new("assistant", "yo")];
        let variables = [("bos_token".to_owned(), Value::from("<s>"))];
        Jinja::compile(source)?.render(&messages, true, variables, 1_709_210_096)
    }

    #[test]
    fn what_hugging_face_templates_use() {
        let check = |source: &str, expected: &str| match render(source) {
            Ok(text) => assert_eq!(text, expected, "{source}"),
            Err(error) => panic!("{source}: {error}"),
        };
        check("{{ bos_token }}{{ eos_token }}", "<s>");
        check(
            "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n",
            "user\nassistant\n",
        );
        check("{{ messages[0]['content'].strip() }}", "hé <b>");
        check("{{ messages[1:] | length }}{{ messages[::-1][0].role }}", "1assistant");
        check(
            "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | tojson }}",
            "[\"hé <b>\"]",
        );
        check("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "hé <b>"}"#);
        check(
            "{{ {'a': [1, true, none]} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    true,\n    null\n  ]\n}",
        );
        check("{{ 'é' | tojson(ensure_ascii=true) }}", "\"\\u00e9\"");
        check("{{ {'a': 1} | tojson(separators=(',', ':')) }}", r#"{"a":1}"#);
        check(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        );
        check(
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
            "assistant",
        );
        check(
            "{{ tools is none }} {{ x is defined }} {{ strftime_now('%d %b %Y') }}",
            "True False 29 Feb 2024",
        );
        check("{{ 'a</think>b'.split('</think>')[-1] }}", "b");
        check("a\n{%- generation -%}\n b {% endgeneration %}\nc", "ab c");
        check("{%generation%}x{%endgeneration%}", "x");
        check("{% if add_generation_prompt %}yes{% endif %}", "yes");
        check("{%- macro f(x) %}{{ x | upper }}{% endmacro -%}{{ f('a') }}", "A");
    }

    #[test]
    fn refusals_and_errors_are_told_apart() {
        let error = |source: &str| match render(source) {
            Ok(text) => panic!("{source}: wrote {text:?}"),
            Err(error) => error,
        };
        let refused = error("{% if true %}{{ raise_exception('no system role') }}{% endif %}");
        assert!(
            matches!(&refused, TextError::TemplateRefused { reason } if reason == "no system role")
        );
        assert!(matches!(error("{% if %}"), TextError::TemplateSyntax { .. }));
        assert!(matches!(error("{{ nothing() }}"), TextError::TemplateFailed { .. }));
        assert!(matches!(error("{% include '/etc/passwd' %}"), TextError::TemplateFailed { .. }));
        assert!(matches!(error("{% import 'x' as y %}"), TextError::TemplateFailed { .. }));
        assert!(matches!(error("{{ strftime_now('%Q') }}"), TextError::TemplateFailed { .. }));
    }

    #[test]
    fn deep_nesting_ends_without_a_crash() {
        let rendered = |source: &str| on_deep_stack(|| render(source)).unwrap();
        // Lists in lists, as deep as the fuel allows; then everything that walks them.
        let nested = |rounds: usize, end: &str| {
            format!(
                "{{% set ns = namespace(x=[]) %}}{{% for i in range({rounds}) %}}\
                 {{% set ns.x = [[[[[[[[[ns.x]]]]]]]]] %}}{{% endfor %}}{end}"
            )
        };
        assert_eq!(rendered(&nested(20_000, "{{ ns.x == [ns.x] }}")).unwrap(), "False");
        assert_eq!(rendered(&nested(5_000, "{{ ns.x }}")).unwrap().len(), 2 * (9 * 5_000 + 1));
        for (rounds, end) in [(20_000, "{{ ns.x | tojson }}"), (20_000, "{{ ns.x }}"), (60_000, "")]
        {
            let error = rendered(&nested(rounds, end)).unwrap_err();
            assert!(
                matches!(
                    error,
                    TextError::TemplateBudget { .. } | TextError::TemplateFailed { .. }
                ),
                "{rounds} {end}: {error}"
            );
        }

        // Deep sources: either refused or computed, but alive.
        let repeated = |start: &str, unit: &str, end: &str| {
            format!("{start}{}{end}", unit.repeat(150_000 / unit.len()))
        };
        let refused = |source: String| {
            let error = rendered(&source).unwrap_err();
            assert!(
                matches!(error, TextError::TemplateSyntax { .. }),
                "{}: {error}",
                &source[..20]
            );
        };
        refused(repeated("{{ ", "(", "1 }}"));
        refused(repeated("{{ ", "[", "1 }}"));
        refused(repeated("", "{% if 1 %}", "1"));
        refused("x".repeat(SOURCE_BYTES + 1));
        let computed = |source: String, expected: &str| {
            assert_eq!(rendered(&source).unwrap(), expected, "{}", &source[..20]);
        };
        computed(repeated("{{ ", "1+", "1 }}"), "75001");
        computed(repeated("{{ ", "not ", "1 }}"), "True");
        computed(repeated("{{ 'a'", "|upper", " }}"), "A");
        computed(repeated("{{ ", "1 if 1 else ", "2 }}"), "1");
        computed(repeated("{% if 1 %}", "{% elif 1 %}", "{% endif %}"), "");
    }

    #[test]
    fn endless_templates_end() {
        let check = |source: &str| match render(source) {
            Ok(text) => panic!("{source}: wrote {} bytes", text.len()),
            Err(error) => assert!(
                matches!(
                    error,
                    TextError::TemplateBudget { .. } | TextError::TemplateFailed { .. }
                ),
                "{source}: {error}"
            ),
        };
        check("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}");
        check("{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}");
        check(
            "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        );
        check("{{ 'aaaaaaaa' * 100000000 }}");
        check("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
        check("{% include 'chat template' %}");
        check(
            "{% set ns = namespace(x=[]) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        );
    }
}
