//! Messages and tools in OpenAI's shape: from JSON to a [`Conversation`], and from there to a
//! prompt.

use crate::adapters::Resident;
use crate::caller::Caller;
use crate::error::ApiError;
use crate::fields::{Fields, Neutral};
use crate::sampling::{is_empty, never};
use crate::state::{State, off_reactor};
use crate::structured::Structured;
use serde_json::{Value, json};
use std::sync::Arc;
use text::{
    AnswerFormat, CallSpec, Conversation, GrammarSpec, Message, Rendered, StreamDecoder,
    ToolFormat, Uncalled,
};

/// Most tools of one request, as in OpenAI's API.
const MAX_TOOLS: usize = 128;

/// A conversation that the engine can go on with.
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    /// Decodes what comes after it.
    pub(crate) decoder: StreamDecoder,
    /// How the answer is to be read.
    pub(crate) format: AnswerFormat,
}

/// The prompt for the next turn of `conversation`, in the model's own template. `tools_field` is
/// named when the model cannot have tools.
pub(crate) async fn prompt(
    state: &State,
    caller: &Caller,
    model: &Arc<Resident>,
    conversation: Conversation,
    tools_field: &'static str,
) -> Result<Prompt, ApiError> {
    caller.asked(|| json!(conversation));
    let tools = !conversation.tools.is_empty();
    if tools {
        check_tools(state, model, tools_field)?;
    }
    let rendered = render(state, model, conversation, true).await?;
    let format = model.template.answer_format(&rendered.text, tools);
    // An answer is a text of its own, whatever stands before it.
    let decoder = StreamDecoder::new(Arc::clone(&state.tokenizer)).keeping(format.markers());
    Ok(Prompt { ids: rendered.ids, decoder, format })
}

/// `conversation` in the model's template, with or without the beginning of a next turn. Rendering
/// and encoding a long one takes a while, so it does not happen on the reactor.
pub(crate) async fn render(
    state: &State,
    model: &Arc<Resident>,
    conversation: Conversation,
    add_generation_prompt: bool,
) -> Result<Rendered, ApiError> {
    let (model, tokenizer) = (Arc::clone(model), Arc::clone(&state.tokenizer));
    off_reactor("rendering the conversation", move || {
        model.template.render(&tokenizer, &conversation, add_generation_prompt)
    })
    .await?
    .map_err(|e| ApiError::text(&e, "messages"))
}

/// Tools are of use only where the template tells the model of them and its calls can be read.
fn check_tools(state: &State, model: &Resident, field: &'static str) -> Result<(), ApiError> {
    let known = ToolFormat::of(model.template.source()).is_some();
    if known && model.template.writes_tools(&state.tokenizer) {
        return Ok(());
    }
    let message = format!(
        "{field} cannot be given to {}: its chat template {}. hint: leave them out, or describe the \
         wanted form in a message",
        model.name,
        match known {
            true => "writes nothing of tools",
            false => "does not say how tools are called",
        }
    );
    Err(ApiError::field(field, message))
}

/// The field `messages`: at least one, each read whole.
pub(crate) fn read(fields: &mut Fields) -> Result<Conversation, ApiError> {
    let list = list(fields)?.into_iter().enumerate();
    let messages: Result<Vec<Message>, ApiError> =
        list.map(|(i, value)| message(value, i)).collect();
    Ok(Conversation::new(messages?))
}

/// The field `messages`, whatever shape its messages have.
pub(crate) fn list(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let expected = "a list of at least one message";
    match fields.take("messages") {
        None => Err(fields.missing("messages", expected)),
        Some(Value::Array(list)) if !list.is_empty() => Ok(list),
        Some(other) => Err(fields.wrong("messages", &other, expected)),
    }
}

/// Fields of a message that have no effect here. An assistant's message that a client sends back
/// as it got it has some of them.
const NEUTRAL_MESSAGE: &[Neutral] = &[
    Neutral { field: "name", accepts: never, accepted: "nothing" },
    Neutral { field: "refusal", accepts: never, accepted: "nothing" },
    Neutral { field: "annotations", accepts: is_empty, accepted: "an empty list" },
    Neutral { field: "audio", accepts: never, accepted: "nothing" },
    Neutral { field: "tool_calls", accepts: is_empty, accepted: "an empty list" },
    Neutral { field: "tool_call_id", accepts: never, accepted: "nothing" },
    Neutral { field: "function_call", accepts: never, accepted: "nothing" },
    Neutral { field: "reasoning_content", accepts: never, accepted: "nothing" },
];

fn message(value: Value, index: usize) -> Result<Message, ApiError> {
    let mut fields = Fields::nested(value, &format!("messages[{index}]"))?;
    let expected = "one of system, developer, user, assistant, tool";
    let role = match fields.string("role")? {
        None => return Err(fields.missing("role", expected)),
        // OpenAI's newer name for the same; the templates of open models know `system`.
        Some(role) if role == "developer" => "system".into(),
        Some(role) if ["system", "user", "assistant", "tool"].contains(&role.as_str()) => role,
        Some(role) => return Err(fields.wrong("role", &Value::String(role), expected)),
    };
    let mut message = Message::new(role, "");
    match message.role.as_str() {
        "assistant" => {
            message.tool_calls = tool_calls(&mut fields)?;
            message.reasoning_content = fields.string("reasoning_content")?;
        }
        "tool" => {
            message.tool_call_id = Some(fields.required("tool_call_id", "the id of a call")?);
            message.name = fields.string("name")?;
        }
        _ => {}
    }
    fields.neutral(NEUTRAL_MESSAGE)?;
    if message.tool_calls.is_empty() || fields.has("content") {
        message.content = content(&mut fields, &["text"])?;
    }
    fields.finish()?;
    Ok(message)
}

/// What an assistant's message called.
fn tool_calls(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let list = match fields.take("tool_calls") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(fields.wrong("tool_calls", &other, "a list of calls")),
    };
    let read = |(i, value)| {
        let mut call = Fields::nested(value, &fields.param(&format!("tool_calls[{i}]")))?;
        let id = call.required("id", "the id of the call")?;
        is_function(&mut call)?;
        // Some clients send the index of a stream's chunk back.
        call.integer("index", 0..=u64::MAX)?;
        let mut function = called(&mut call)?;
        call.finish()?;
        let name = function.required("name", "the name of a function")?;
        let arguments = function.string("arguments")?.unwrap_or_default();
        let object = arguments_of(&arguments).ok_or_else(|| {
            let expected = "a string that holds a JSON object";
            function.wrong("arguments", &Value::String(arguments), expected)
        })?;
        function.finish()?;
        Ok(tool_call(&id, &name, object))
    };
    list.into_iter().enumerate().map(read).collect()
}

/// A call as [`Message::tool_calls`] has it.
pub(crate) fn tool_call(id: &str, name: &str, arguments: Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// The object in a call's arguments; some clients send nothing where there are none.
pub(crate) fn arguments_of(text: &str) -> Option<Value> {
    match text.trim().is_empty() {
        true => Some(json!({})),
        false => serde_json::from_str(text).ok().filter(Value::is_object),
    }
}

fn is_function(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.string("type")?.as_deref() {
        Some("function") | None => Ok(()),
        Some(other) => Err(fields.wrong("type", &Value::String(other.into()), "\"function\"")),
    }
}

fn called(fields: &mut Fields) -> Result<Fields, ApiError> {
    match fields.take("function") {
        Some(value) => Fields::nested(value, &fields.param("function")),
        None => Err(fields.missing("function", "an object with the function's name")),
    }
}

/// A string, or text parts of one of `kinds` that are put together as they stand.
pub(crate) fn content(fields: &mut Fields, kinds: &[&str]) -> Result<String, ApiError> {
    let expected = "a string or a list of text parts";
    let parts = match fields.take("content") {
        None => return Err(fields.missing("content", expected)),
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) if !parts.is_empty() => parts,
        Some(other) => return Err(fields.wrong("content", &other, expected)),
    };
    let mut content = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = Fields::nested(part, &fields.param(&format!("content[{i}]")))?;
        let known = kinds.iter().map(|kind| format!("\"{kind}\"")).collect::<Vec<_>>().join(" or ");
        match part.string("type")? {
            Some(kind) if kinds.contains(&kind.as_str()) => {}
            Some(other) => {
                let expected = format!("{known}: this server reads text only");
                return Err(part.wrong("type", &Value::String(other), &expected));
            }
            None => return Err(part.missing("type", &known)),
        }
        content += &part.required("text", "a string")?;
        part.neutral(NEUTRAL_PART)?;
        part.finish()?;
    }
    Ok(content)
}

/// Fields of a text part that have no effect here; answers that are sent back have some of them.
const NEUTRAL_PART: &[Neutral] = &[
    Neutral { field: "annotations", accepts: is_empty, accepted: "an empty list" },
    Neutral { field: "logprobs", accepts: is_empty, accepted: "an empty list" },
];

/// The fields `tools`, `tool_choice` and `parallel_tool_calls`, read and checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    /// As templates get them; empty when none is to be called.
    pub(crate) list: Vec<Value>,
    /// As they came, for answers that repeat them.
    pub(crate) asked: Vec<Value>,
    pub(crate) choice: Choice,
    /// Whether one answer may hold several calls.
    pub(crate) parallel: bool,
    /// For each of `list` whether its calls must keep to its schema.
    pub(crate) strict: Vec<bool>,
}

/// Which tools are to be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Choice {
    #[default]
    None,
    /// What the model likes.
    Auto,
    /// At least one, whichever.
    Required,
    /// The one of this name.
    Named(String),
}

impl Tools {
    /// Reads the fields; `read` reads one tool in the shape of the endpoint.
    pub(crate) fn read(
        fields: &mut Fields,
        read: impl Fn(Fields) -> Result<Tool, ApiError>,
    ) -> Result<Tools, ApiError> {
        let expected = format!("a list of at most {MAX_TOOLS} functions");
        let asked = match fields.take("tools") {
            None => Vec::new(),
            Some(Value::Array(list)) if list.len() <= MAX_TOOLS => list,
            Some(other) => return Err(fields.wrong("tools", &other, &expected)),
        };
        let mut list = Vec::with_capacity(asked.len());
        let mut strict = Vec::with_capacity(asked.len());
        for (i, tool) in asked.iter().enumerate() {
            let tool = Fields::nested(tool.clone(), &fields.param(&format!("tools[{i}]")))?;
            let tool = read(tool)?;
            list.push(tool.described);
            strict.push(tool.strict);
        }
        let parallel = fields.flag("parallel_tool_calls")?.unwrap_or(true);
        let choice = choice(fields, &list)?;
        if choice == Choice::None {
            // A model that does not see a tool does not call it.
            list.clear();
        }
        Ok(Tools { list, asked, choice, parallel, strict })
    }

    /// The form that an answer in `format` must have, given the one that the request names: calls
    /// alone where they are forced; where they are not, what was asked for, or a call of a strict tool.
    pub(crate) fn form(
        &self,
        format: &AnswerFormat,
        form: Option<Structured>,
    ) -> Result<Option<Structured>, ApiError> {
        let forced = matches!(self.choice, Choice::Required | Choice::Named(_));
        let Some(calls) = format.tools.filter(|_| forced || self.strict.contains(&true)) else {
            return Ok(form);
        };
        let or = match form {
            Some(form) if forced => {
                let message = format!(
                    "tool_choice forces a call, and {} asks for another form; expected one of them",
                    form.field
                );
                return Err(ApiError::field("tool_choice", message));
            }
            None if forced => None,
            None => Some(Uncalled::Text),
            Some(form) => Some(Uncalled::Form(Box::new(form.spec))),
        };
        let functions: Result<Vec<(String, Value)>, ApiError> = (self.list.iter().enumerate())
            .filter(|(_, tool)| match &self.choice {
                Choice::Named(name) => tool["function"]["name"] == name.as_str(),
                _ => true,
            })
            .map(|(i, tool)| self.called_function(i, &tool["function"], forced))
            .collect();
        let spec = CallSpec { format: calls, functions: functions?, several: self.parallel, or };
        Ok(Some(Structured { spec: GrammarSpec::Calls(spec), field: "tools" }))
    }

    /// Name and schema of tool `index`. Where nothing is forced and the tool is not strict, any object
    /// will do.
    fn called_function(
        &self,
        index: usize,
        function: &Value,
        forced: bool,
    ) -> Result<(String, Value), ApiError> {
        let name = function["name"].as_str().unwrap_or_default().to_owned();
        if !forced && self.strict.get(index) != Some(&true) {
            return Ok((name, json!({"type": "object"})));
        }
        let mut schema = function["parameters"].clone();
        match schema.get("type") {
            // Arguments are an object, whether their schema says so or not.
            None => schema["type"] = "object".into(),
            Some(kind) if kind == "object" => {}
            Some(other) => {
                let message = format!(
                    "the parameters of {name} have type {other}; expected \"object\", for arguments \
                     are one"
                );
                return Err(ApiError::field(format!("tools[{index}]"), message));
            }
        }
        Ok((name, schema))
    }
}

/// The field `tool_choice` in OpenAI's shapes, for chat completions and for responses.
fn choice(fields: &mut Fields, list: &[Value]) -> Result<Choice, ApiError> {
    let expected = match list.is_empty() {
        true => "\"none\" where there are no tools",
        false => "\"none\", \"auto\", \"required\" or a function",
    };
    match fields.take("tool_choice") {
        None if list.is_empty() => Ok(Choice::None),
        None => Ok(Choice::Auto),
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => Ok(Choice::None),
            "auto" if !list.is_empty() => Ok(Choice::Auto),
            "required" if !list.is_empty() => Ok(Choice::Required),
            _ => Err(fields.wrong("tool_choice", &Value::String(choice), expected)),
        },
        Some(value @ Value::Object(_)) if !list.is_empty() => {
            let mut choice = Fields::nested(value, &fields.param("tool_choice"))?;
            if !choice.has("type") {
                return Err(choice.missing("type", "\"function\""));
            }
            is_function(&mut choice)?;
            let mut named = match choice.has("function") {
                true => called(&mut choice)?,
                false => choice,
            };
            let name = named.required("name", "the name of a function")?;
            if !list.iter().any(|tool| tool["function"]["name"] == name.as_str()) {
                let expected = "the name of one of the tools";
                return Err(named.wrong("name", &Value::String(name), expected));
            }
            named.finish()?;
            Ok(Choice::Named(name))
        }
        Some(other) => Err(fields.wrong("tool_choice", &other, expected)),
    }
}

/// A tool that was read.
pub(crate) struct Tool {
    /// As templates get it.
    pub(crate) described: Value,
    /// Whether its calls must keep to its schema.
    pub(crate) strict: bool,
}

/// A tool in the shape of chat completions.
pub(crate) fn chat_tool(mut tool: Fields) -> Result<Tool, ApiError> {
    is_function(&mut tool)?;
    let mut described = called(&mut tool)?;
    tool.finish()?;
    let function = function(&mut described, "parameters")?;
    described.finish()?;
    Ok(function)
}

/// What is said of a function, in the order in which open models saw it in training; the schema of
/// its parameters stands in the field `schema`.
pub(crate) fn function(fields: &mut Fields, schema: &str) -> Result<Tool, ApiError> {
    let name = fields.required("name", "the function's name")?;
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 64 || !name.chars().all(letter) {
        let expected = "1 to 64 letters, digits, dashes and underscores";
        return Err(fields.wrong("name", &Value::String(name), expected));
    }
    let mut function = json!({"name": name});
    if let Some(description) = fields.string("description")? {
        function["description"] = description.into();
    }
    match fields.take(schema) {
        // Many templates take it for granted.
        None => function["parameters"] = json!({"type": "object", "properties": {}}),
        Some(value) if value.is_object() => function["parameters"] = value,
        Some(other) => return Err(fields.wrong(schema, &other, "a JSON schema")),
    }
    let strict = fields.flag("strict")?.unwrap_or(false);
    Ok(Tool { described: json!({"type": "function", "function": function}), strict })
}
