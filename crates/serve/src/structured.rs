//! What an answer's form must be: `response_format`, `structured_outputs`, and their grammars.

use crate::error::ApiError;
use crate::fields::Fields;
use crate::state::{State, off_reactor};
use engine::{Constraint, Grammar, GrammarRef, TokenSet};
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use text::{
    CompiledGrammar, GrammarCompiler, GrammarSpec, GrammarState, TextError, Thinking, Tokenizer,
    Uncalled,
};

/// A form that was asked for, and by which field.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Structured {
    pub(crate) spec: GrammarSpec,
    pub(crate) field: &'static str,
}

const FORMAT: &str = "response_format";
const STRUCTURED: &str = "structured_outputs";

impl Structured {
    /// Reads OpenAI's `response_format` and vLLM's `structured_outputs`, at most one of them.
    pub(crate) fn read(fields: &mut Fields) -> Result<Option<Structured>, ApiError> {
        let format = fields.take(FORMAT).map(response_format).transpose()?.flatten();
        let structured = fields.take(STRUCTURED).map(structured_outputs).transpose()?;
        match (format, structured) {
            (Some(_), Some(_)) => {
                let message = "response_format and structured_outputs both ask for a form; expected \
                               one of them";
                Err(ApiError::field(STRUCTURED, message))
            }
            (Some(spec), None) => Ok(Some(Structured { spec, field: FORMAT })),
            (None, Some(spec)) => Ok(Some(Structured { spec, field: STRUCTURED })),
            (None, None) => Ok(None),
        }
    }
}

fn response_format(value: Value) -> Result<Option<GrammarSpec>, ApiError> {
    let mut fields = Fields::nested(value, FORMAT)?;
    let expected = "text, json_object or json_schema";
    let kind = fields.required("type", expected)?;
    let spec = match kind.as_str() {
        "text" => None,
        "json_object" => Some(GrammarSpec::JsonObject),
        "json_schema" => {
            let expected = "an object with name and schema";
            let value = fields.take("json_schema");
            let value = value.ok_or_else(|| fields.missing("json_schema", expected))?;
            let mut described = Fields::nested(value, "response_format.json_schema")?;
            let schema = described_schema(&mut described)?;
            described.finish()?;
            Some(GrammarSpec::JsonSchema(schema))
        }
        _ => return Err(fields.wrong("type", &Value::String(kind), expected)),
    };
    fields.finish()?;
    Ok(spec)
}

/// The field `schema` with what is said of it.
fn described_schema(fields: &mut Fields) -> Result<Value, ApiError> {
    // What the schema is called and what it is for is for people. Its answers keep to it whether
    // strict or not.
    fields.string("name")?;
    fields.string("description")?;
    fields.flag("strict")?;
    fields.take("schema").ok_or_else(|| fields.missing("schema", "a JSON schema"))
}

/// The fields `text.format` of responses and `output_config.format` of Anthropic's messages: as
/// `response_format`, with the schema beside its name. `kinds` are the types that the endpoint has.
pub(crate) fn format(
    mut fields: Fields,
    kinds: &str,
    field: &'static str,
) -> Result<Option<Structured>, ApiError> {
    let kind = fields.required("type", kinds)?;
    let spec = match kind.as_str() {
        "text" if kinds.contains("text") => None,
        "json_object" if kinds.contains("json_object") => Some(GrammarSpec::JsonObject),
        "json_schema" => Some(GrammarSpec::JsonSchema(described_schema(&mut fields)?)),
        _ => return Err(fields.wrong("type", &Value::String(kind), kinds)),
    };
    fields.finish()?;
    Ok(spec.map(|spec| Structured { spec, field }))
}

fn structured_outputs(value: Value) -> Result<GrammarSpec, ApiError> {
    let mut fields = Fields::nested(value, STRUCTURED)?;
    let mut specs = Vec::new();
    match fields.take("json") {
        None => {}
        // vLLM takes a schema as text, too.
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(schema) => specs.push(GrammarSpec::JsonSchema(schema)),
            Err(e) => {
                return Err(fields.wrong("json", &Value::String(e.to_string()), "a JSON schema"));
            }
        },
        Some(schema) => specs.push(GrammarSpec::JsonSchema(schema)),
    }
    if fields.flag("json_object")? == Some(true) {
        specs.push(GrammarSpec::JsonObject);
    }
    specs.extend(fields.string("regex")?.map(GrammarSpec::Regex));
    specs.extend(fields.string("grammar")?.map(GrammarSpec::Lark));
    if let Some(value) = fields.take("choice") {
        let choices = value.as_array().and_then(|list| {
            list.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
        });
        let choices = choices.filter(|c| !c.is_empty());
        specs.push(GrammarSpec::Choice(
            choices
                .ok_or_else(|| fields.wrong("choice", &value, "a list of at least one string"))?,
        ));
    }
    let count = specs.len();
    fields.finish()?;
    match (specs.pop(), count) {
        (Some(spec), 1) => Ok(spec),
        _ => {
            let message = format!(
                "structured_outputs has {count} forms; expected one of json, json_object, regex, \
                 choice, grammar"
            );
            Err(ApiError::field(STRUCTURED, message))
        }
    }
}

/// The grammars of one tokenizer. What was asked for lately is kept: clients ask for the same form
/// again and again.
#[derive(Default)]
pub(crate) struct Grammars {
    compiler: Mutex<Option<Arc<GrammarCompiler>>>,
    /// The latest last.
    kept: Mutex<Vec<(GrammarSpec, GrammarRef)>>,
}

/// Most grammars kept.
const KEPT: usize = 32;

impl Grammars {
    /// The grammar of `structured`. Takes a while: not for the reactor.
    fn get(
        &self,
        structured: &Structured,
        tokenizer: &Tokenizer,
        vocab_size: usize,
    ) -> Result<GrammarRef, TextError> {
        let spec = &structured.spec;
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(index) = kept.iter().position(|(s, _)| s == spec) {
                let entry = kept.remove(index);
                let grammar = entry.1.clone();
                kept.push(entry);
                return Ok(grammar);
            }
        }
        let compiled = self.compiler(tokenizer, vocab_size)?.compile(spec)?;
        let grammar = GrammarRef(Arc::new(TextGrammar(compiled)));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((spec.clone(), grammar.clone()));
        Ok(grammar)
    }

    /// Made when the first grammar is asked for: it looks at the whole vocabulary.
    fn compiler(
        &self,
        tokenizer: &Tokenizer,
        vocab_size: usize,
    ) -> Result<Arc<GrammarCompiler>, TextError> {
        let mut compiler = self.compiler.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiler) = &*compiler {
            return Ok(Arc::clone(compiler));
        }
        let made = Arc::new(GrammarCompiler::new(tokenizer, vocab_size)?);
        *compiler = Some(Arc::clone(&made));
        Ok(made)
    }
}

/// A form, compiled.
#[derive(Clone)]
pub(crate) struct Form {
    pub(crate) grammar: GrammarRef,
    /// The field that asked for it.
    pub(crate) field: &'static str,
}

/// The grammar of `structured`, compiled off the reactor. Where the answer begins with thoughts, they
/// come before the form; where it may, only if plain text is allowed too: otherwise a model that likes to
/// think would never need to come to the form.
pub(crate) async fn compile(
    state: &Arc<State>,
    structured: Option<Structured>,
    thinking: Thinking,
) -> Result<Option<Form>, ApiError> {
    let Some(mut structured) = structured else { return Ok(None) };
    let free =
        matches!(&structured.spec, GrammarSpec::Calls(calls) if calls.or == Some(Uncalled::Text));
    if thinking == Thinking::Begun || (thinking == Thinking::Marked && free) {
        structured.spec = GrammarSpec::Behind(thinking, Box::new(structured.spec));
    }
    let (state, field) = (Arc::clone(state), structured.field);
    let compiled = off_reactor("the grammar", move || {
        state.grammars.get(&structured, &state.tokenizer, state.engine.limits().vocab_size)
    });
    let grammar = compiled.await?.map_err(|e| ApiError::text(&e, field))?;
    Ok(Some(Form { grammar, field }))
}

/// A grammar of text as the engine sees it.
struct TextGrammar(CompiledGrammar);

struct TextConstraint(GrammarState);

impl Grammar for TextGrammar {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(TextConstraint(self.0.start()))
    }
}

impl Constraint for TextConstraint {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        self.0.allowed(allowed.words_mut()).map_err(|e| e.to_string())
    }
    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.0.accept(token).map_err(|e| e.to_string())
    }
    fn may_end(&mut self) -> bool {
        self.0.may_end()
    }
    fn must_end(&mut self) -> bool {
        self.0.must_end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(json: Value) -> Result<Option<Structured>, ApiError> {
        let mut fields = Fields::parse(json.to_string().as_bytes())?;
        let structured = Structured::read(&mut fields)?;
        fields.finish()?;
        Ok(structured)
    }

    #[test]
    fn forms_are_read() {
        let schema = json!({"type": "object"});
        for (json, expected) in [
            (json!({}), None),
            (json!({FORMAT: {"type": "text"}}), None),
            (json!({FORMAT: {"type": "json_object"}}), Some(GrammarSpec::JsonObject)),
            (
                json!({FORMAT: {"type": "json_schema", "json_schema":
                    {"name": "n", "description": "d", "strict": true, "schema": schema}}}),
                Some(GrammarSpec::JsonSchema(schema.clone())),
            ),
            (
                json!({STRUCTURED: {"json": schema.to_string()}}),
                Some(GrammarSpec::JsonSchema(schema.clone())),
            ),
            (json!({STRUCTURED: {"json": schema}}), Some(GrammarSpec::JsonSchema(schema.clone()))),
            (json!({STRUCTURED: {"json_object": true}}), Some(GrammarSpec::JsonObject)),
            (json!({STRUCTURED: {"regex": "a+"}}), Some(GrammarSpec::Regex("a+".into()))),
            (
                json!({STRUCTURED: {"grammar": "start: x"}}),
                Some(GrammarSpec::Lark("start: x".into())),
            ),
            (
                json!({STRUCTURED: {"choice": ["a", "b"]}}),
                Some(GrammarSpec::Choice(vec!["a".into(), "b".into()])),
            ),
        ] {
            let found = read(json.clone()).unwrap_or_else(|e| panic!("{json}: {}", e.json()));
            assert_eq!(found.map(|s| s.spec), expected, "{json}");
        }
    }

    #[test]
    fn what_cannot_be_honoured_names_its_field() {
        for (json, param) in [
            (json!({FORMAT: "json"}), "response_format"),
            (json!({FORMAT: {}}), "response_format.type"),
            (json!({FORMAT: {"type": "xml"}}), "response_format.type"),
            (json!({FORMAT: {"type": "json_schema"}}), "response_format.json_schema"),
            (
                json!({FORMAT: {"type": "json_schema", "json_schema": {"name": "n"}}}),
                "response_format.json_schema.schema",
            ),
            (
                json!({FORMAT: {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}}),
                "response_format.json_schema.x",
            ),
            (json!({FORMAT: {"type": "json_object", "schema": {}}}), "response_format.schema"),
            (json!({STRUCTURED: {}}), "structured_outputs"),
            (json!({STRUCTURED: {"regex": "a", "choice": ["a"]}}), "structured_outputs"),
            (json!({STRUCTURED: {"choice": []}}), "structured_outputs.choice"),
            (json!({STRUCTURED: {"choice": [1]}}), "structured_outputs.choice"),
            (json!({STRUCTURED: {"json": "{"}}), "structured_outputs.json"),
            (json!({STRUCTURED: {"structural_tag": "x"}}), "structured_outputs.structural_tag"),
            (
                json!({FORMAT: {"type": "json_object"}, STRUCTURED: {"regex": "a"}}),
                "structured_outputs",
            ),
        ] {
            let error = read(json.clone()).unwrap_err().json();
            assert!(error.contains(&format!(r#""param":"{param}""#)), "{json}: {error}");
        }
    }
}
