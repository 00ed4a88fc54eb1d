//! `POST /v1/responses`: the next turn of a conversation in the shapes of OpenAI's newer API,
//! without its memory: nothing is stored, so each request brings the whole conversation.
//!
//! What the model thought before earlier answers (items of type `reasoning`) goes to the template with
//! the answer it belongs to; most templates leave out all but the latest thoughts.

use crate::answers::{Answer, Call, Said};
use crate::caller::Caller;
use crate::conversation::{self, Choice, Tools};
use crate::error::ApiError;
use crate::fields::{Fields, Neutral};
use crate::generation::{Generation, Piece, Usage};
use crate::sampling::{Sampling, is_empty, is_false, never, positive, saturating};
use crate::server::Body;
use crate::sse::{self, Chunks};
use crate::state::{State as Shared, unix_seconds};
use crate::structured::{self, Structured};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use engine::SamplingParams;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use text::{Conversation, Message, Tokenizer};

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    post(create)
}

async fn create(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Response, ApiError> {
    let mut request = ResponsesRequest::read(fields)?;
    request.head.insert("id".into(), caller.answer_id("resp_").into());
    let model = state.model(&caller, &request.model).await?;
    let conversation = request.conversation.with_tools(request.tools.list.clone());
    let prompt = conversation::prompt(&state, &caller, &model, conversation, "tools").await?;
    let sampling = request.sampling;
    let form = request.tools.form(&prompt.format, request.form)?;
    let form = structured::compile(&state, form, prompt.format.thinking).await?;
    let mut events = ResponseEvents {
        head: request.head,
        answer: Answer::new(prompt.format, &request.tools),
        tokenizer: Arc::clone(&state.tokenizer),
        output: Vec::new(),
        open: None,
        incomplete: false,
        sequence: 0,
    };
    let prompts = vec![(prompt.ids, prompt.decoder)];
    // No bound but the context, as in OpenAI's API.
    let generation =
        Generation::start(&state, &caller, &model, prompts, &sampling, form, usize::MAX, "input")?;
    let usage = generation.usage();
    if sampling.stream {
        return Ok(sse::respond(events, generation.pieces(), usage));
    }
    let (finished, usage) = generation.finish().await?;
    for (index, finished) in finished.into_iter().enumerate() {
        let end = crate::generation::End {
            finish_reason: finished.finish_reason,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage.prompt_tokens_details.cached_tokens,
            stop: finished.stop,
        };
        // The events are for nobody; the answer at the end is the same in both ways.
        let (text, logprobs) = (finished.text, Vec::new());
        events.piece(Piece { index, text, logprobs, end: Some(end) });
    }
    Ok(Json(events.response(events.status(), Some(usage))).into_response())
}

#[derive(Debug)]
struct ResponsesRequest {
    model: String,
    conversation: Conversation,
    tools: Tools,
    sampling: Sampling,
    /// What form the answer must have.
    form: Option<Structured>,
    /// What the response repeats of the request; its `id` is still to be put in.
    head: Map<String, Value>,
}

/// Fields of OpenAI's that have no effect here.
const NEUTRAL: &[Neutral] = &[
    Neutral { field: "store", accepts: is_false, accepted: "false: nothing is stored here" },
    Neutral { field: "previous_response_id", accepts: never, accepted: "nothing: none is stored" },
    Neutral { field: "conversation", accepts: never, accepted: "nothing: none is stored" },
    Neutral { field: "background", accepts: is_false, accepted: "false" },
    Neutral { field: "include", accepts: is_empty, accepted: "an empty list" },
    Neutral { field: "max_tool_calls", accepts: never, accepted: "nothing" },
    Neutral { field: "prompt", accepts: never, accepted: "nothing" },
    Neutral { field: "reasoning", accepts: is_empty, accepted: "an empty object" },
    Neutral { field: "top_logprobs", accepts: |v| *v == 0, accepted: "0" },
    Neutral { field: "truncation", accepts: |v| v == "disabled", accepted: "\"disabled\"" },
    Neutral { field: "context_management", accepts: is_empty, accepted: "an empty list" },
    Neutral {
        field: "service_tier",
        accepts: |v| v == "auto" || v == "default",
        accepted: "\"auto\" or \"default\"",
    },
    Neutral { field: "user", accepts: Value::is_string, accepted: "a string" },
    Neutral { field: "safety_identifier", accepts: Value::is_string, accepted: "a string" },
    Neutral { field: "prompt_cache_key", accepts: Value::is_string, accepted: "a string" },
    Neutral { field: "prompt_cache_retention", accepts: Value::is_string, accepted: "a string" },
];

/// The field `text`: the form that the answer must have, and the field as responses repeat it.
fn text(fields: &mut Fields) -> Result<(Option<Structured>, Value), ApiError> {
    const FORMAT: &str = "text.format";
    let plain = json!({"format": {"type": "text"}});
    let Some(value) = fields.take("text") else { return Ok((None, plain)) };
    let mut text = Fields::nested(value, "text")?;
    let neutral =
        Neutral { field: "verbosity", accepts: |v| v == "medium", accepted: "\"medium\"" };
    text.neutral(&[neutral])?;
    let Some(format) = text.take("format") else { return text.finish().map(|()| (None, plain)) };
    text.finish()?;
    let mut asked = format.clone();
    if asked["type"] == "json_schema" && asked.get("strict").is_none_or(Value::is_null) {
        asked["strict"] = true.into();
    }
    let kinds = "\"text\", \"json_object\" or \"json_schema\"";
    let form = structured::format(Fields::nested(format, FORMAT)?, kinds, FORMAT)?;
    Ok((form, json!({"format": asked})))
}

impl ResponsesRequest {
    fn read(mut fields: Fields) -> Result<ResponsesRequest, ApiError> {
        let model = fields.required("model", "the name of a model")?;
        let instructions = fields.string("instructions")?;
        let mut messages = Vec::new();
        messages.extend(instructions.as_ref().map(|text| Message::new("system", text.clone())));
        input(&mut fields, &mut messages)?;
        let tools = Tools::read(&mut fields, |mut tool| {
            let kind = tool.string("type")?;
            match kind.as_deref() {
                Some("function") => {}
                Some(other) => {
                    let expected = "\"function\": this server runs no tools of its own";
                    return Err(tool.wrong("type", &Value::String(other.into()), expected));
                }
                None => return Err(tool.missing("type", "\"function\"")),
            }
            let function = conversation::function(&mut tool, "parameters")?;
            tool.finish()?;
            Ok(function)
        })?;
        let temperature = fields.float("temperature", 0.0..=2.0)?.unwrap_or(1.0);
        let top_p = fields.float("top_p", 0.0..=1.0)?.unwrap_or(1.0);
        let max_output_tokens = fields.integer("max_output_tokens", 1..=u64::MAX)?;
        let params = SamplingParams {
            temperature: temperature as f32,
            top_p: positive(top_p),
            seed: rand::random(),
            ..SamplingParams::default()
        };
        let stream = fields.flag("stream")?.unwrap_or(false);
        stream_options(&mut fields, stream)?;
        let metadata = match fields.take("metadata") {
            None => json!({}),
            Some(metadata) if metadata.is_object() => metadata,
            Some(other) => return Err(fields.wrong("metadata", &other, "an object")),
        };
        let (form, text) = text(&mut fields)?;
        fields.neutral(NEUTRAL)?;
        fields.finish()?;
        let max_tokens = max_output_tokens.map(saturating);
        let sampling = Sampling::one(params, max_tokens, Vec::new(), stream);
        let asked = tools.asked.iter().map(wire_tool).collect::<Vec<Value>>();
        let choice = match &tools.choice {
            Choice::None if asked.is_empty() => json!("auto"),
            Choice::None => json!("none"),
            Choice::Auto => json!("auto"),
            Choice::Required => json!("required"),
            Choice::Named(name) => json!({"type": "function", "name": name}),
        };
        let head = json!({
            "id": null, "object": "response", "created_at": unix_seconds(),
            "model": model, "instructions": instructions, "temperature": temperature,
            "top_p": top_p, "max_output_tokens": max_output_tokens, "metadata": metadata,
            "tools": asked, "tool_choice": choice,
            "parallel_tool_calls": tools.parallel, "store": false, "previous_response_id": null,
            "background": false, "truncation": "disabled", "text": text,
            "reasoning": {"effort": null, "summary": null}, "service_tier": "default",
        });
        let head = match head {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        Ok(ResponsesRequest {
            model,
            conversation: Conversation::new(messages),
            tools,
            sampling,
            form,
            head,
        })
    }
}

/// A tool as responses repeat it: with all of its fields.
fn wire_tool(asked: &Value) -> Value {
    let mut tool = json!({"type": "function", "name": null, "description": null,
                          "parameters": null, "strict": false});
    for (field, value) in asked.as_object().into_iter().flatten() {
        tool[field] = value.clone();
    }
    tool
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<(), ApiError> {
    let Some(value) = fields.take("stream_options") else { return Ok(()) };
    if !stream {
        let message = "stream_options is only for streams. hint: leave it out";
        return Err(ApiError::field("stream_options", message));
    }
    let mut options = Fields::nested(value, "stream_options")?;
    let neutral = Neutral { field: "include_obfuscation", accepts: is_false, accepted: "false" };
    options.neutral(&[neutral])?;
    options.finish()
}

/// A string, or a list of items; each becomes a turn, or part of the assistant's.
fn input(fields: &mut Fields, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    let expected = "a string or a list of at least one item";
    let items = match fields.take("input") {
        None => return Err(fields.missing("input", expected)),
        Some(Value::String(text)) => {
            messages.push(Message::new("user", text));
            return Ok(());
        }
        Some(Value::Array(items)) if !items.is_empty() => items,
        Some(other) => return Err(fields.wrong("input", &other, expected)),
    };
    // The assistant's turn that is being put together of several items.
    let mut turn: Option<Message> = None;
    for (i, value) in items.into_iter().enumerate() {
        let mut item = Fields::nested(value, &format!("input[{i}]"))?;
        let kind = item.string("type")?;
        // An answer that is sent back has them.
        item.string("id")?;
        item.string("status")?;
        let new_turn = || Message::new("assistant", "");
        match kind.as_deref() {
            None | Some("message") => {
                let message = message(&mut item)?;
                if message.role != "assistant" {
                    messages.extend(turn.take());
                    messages.push(message);
                } else if turn
                    .as_ref()
                    .is_some_and(|t| t.content.is_empty() && t.tool_calls.is_empty())
                {
                    turn.get_or_insert_with(new_turn).content = message.content;
                } else {
                    messages.extend(turn.replace(message));
                }
            }
            Some("function_call") => {
                let call = function_call(&mut item)?;
                turn.get_or_insert_with(new_turn).tool_calls.push(call);
            }
            Some("reasoning") => {
                messages.extend(turn.take());
                let thoughts = thoughts(&mut item)?;
                turn.get_or_insert_with(new_turn).reasoning_content = thoughts;
            }
            Some("function_call_output") => {
                messages.extend(turn.take());
                messages.push(function_output(&mut item)?);
            }
            Some(other) => {
                let expected = "\"message\", \"function_call\", \"function_call_output\" or \
                                \"reasoning\"";
                return Err(item.wrong("type", &Value::String(other.into()), expected));
            }
        }
        item.finish()?;
    }
    messages.extend(turn);
    Ok(())
}

fn message(item: &mut Fields) -> Result<Message, ApiError> {
    let expected = "one of system, developer, user, assistant";
    let role = match item.string("role")? {
        None => return Err(item.missing("role", expected)),
        Some(role) if role == "developer" => "system".to_owned(),
        Some(role) if ["system", "user", "assistant"].contains(&role.as_str()) => role,
        Some(role) => return Err(item.wrong("role", &Value::String(role), expected)),
    };
    item.neutral(&[Neutral { field: "phase", accepts: never, accepted: "nothing" }])?;
    let kind = if role == "assistant" { "output_text" } else { "input_text" };
    let content = conversation::content(item, &[kind])?;
    Ok(Message::new(role, content))
}

fn function_call(item: &mut Fields) -> Result<Value, ApiError> {
    let id = item.required("call_id", "the id of the call")?;
    let name = item.required("name", "the name of a function")?;
    let text = item.string("arguments")?.unwrap_or_default();
    let Some(arguments) = conversation::arguments_of(&text) else {
        let expected = "a string that holds a JSON object";
        return Err(item.wrong("arguments", &Value::String(text), expected));
    };
    Ok(conversation::tool_call(&id, &name, arguments))
}

fn function_output(item: &mut Fields) -> Result<Message, ApiError> {
    let id = item.required("call_id", "the id of the call that it answers")?;
    let Some(output) = item.take("output") else {
        return Err(item.missing("output", "a string or a list of text parts"));
    };
    item.put("content", output);
    let content = conversation::content(item, &["input_text"])?;
    Ok(Message { tool_call_id: Some(id), ..Message::new("tool", content) })
}

/// The text of a reasoning item; None where it has none.
fn thoughts(item: &mut Fields) -> Result<Option<String>, ApiError> {
    item.neutral(&[
        Neutral { field: "summary", accepts: is_empty, accepted: "an empty list" },
        Neutral { field: "encrypted_content", accepts: never, accepted: "nothing" },
    ])?;
    match item.has("content") {
        true => conversation::content(item, &["reasoning_text"]).map(Some),
        false => Ok(None),
    }
}

/// A name that does not come twice.
fn id(kind: &str) -> String {
    format!("{kind}_{:032x}", rand::random::<u128>())
}

/// An event of a stream; its name is also in its data.
#[derive(Serialize)]
#[serde(transparent)]
struct Event {
    #[serde(skip)]
    name: &'static str,
    data: Value,
}

/// The response as it grows, and the events that tell of it.
struct ResponseEvents {
    /// What is known from the start.
    head: Map<String, Value>,
    answer: Answer,
    tokenizer: Arc<Tokenizer>,
    /// The items that are whole.
    output: Vec<Value>,
    open: Option<Item>,
    /// Whether it ended at a bound on its length.
    incomplete: bool,
    /// Events so far.
    sequence: u64,
}

/// An item that grows.
enum Item {
    Text {
        kind: Kind,
        id: String,
        text: String,
    },
    Call {
        /// The item's own.
        id: String,
        call: Call,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    Reasoning,
}

impl Kind {
    fn part(self, text: &str) -> Value {
        match self {
            Kind::Message => {
                json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
            }
            Kind::Reasoning => json!({"type": "reasoning_text", "text": text}),
        }
    }

    fn item(self, id: &str, content: Vec<Value>, status: &str) -> Value {
        match self {
            Kind::Message => json!({"id": id, "type": "message", "role": "assistant",
                                    "status": status, "content": content}),
            Kind::Reasoning => json!({"id": id, "type": "reasoning", "summary": [],
                                      "status": status, "content": content}),
        }
    }
}

fn call_item(id: &str, call: &Call, arguments: &str, status: &str) -> Value {
    json!({"id": id, "type": "function_call", "call_id": call.id, "name": call.name,
           "arguments": arguments, "status": status})
}

impl ResponseEvents {
    fn event(&mut self, name: &'static str, mut data: Value) -> Event {
        data["type"] = name.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        Event { name, data }
    }

    /// The whole response in this state.
    fn response(&self, status: &str, usage: Option<Usage>) -> Value {
        let mut response = self.head.clone();
        let details = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let rest = json!({
            "status": status, "error": null, "incomplete_details": details, "output": self.output,
            "completed_at": (status == "completed").then(unix_seconds),
        });
        if let Value::Object(rest) = rest {
            response.extend(rest);
        }
        if let Some(usage) = usage {
            response.insert("usage".into(), self.usage(usage));
        }
        Value::Object(response)
    }

    fn status(&self) -> &'static str {
        if self.incomplete { "incomplete" } else { "completed" }
    }

    fn usage(&self, usage: Usage) -> Value {
        let thoughts = self.output.iter().filter(|item| item["type"] == "reasoning");
        let texts = thoughts.filter_map(|item| item["content"][0]["text"].as_str());
        // The tokens that the thoughts' text has; what marks their ends is not counted.
        let reasoning: usize =
            texts.map(|text| self.tokenizer.encode(text).map_or(0, |ids| ids.len())).sum();
        json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": usage.total_tokens,
        })
    }

    fn said(&mut self, said: Said, events: &mut Vec<Event>) {
        let (kind, text) = match said {
            Said::Content(text) => (Kind::Message, text),
            Said::Reasoning(text) => (Kind::Reasoning, text),
            Said::Call(call) => return self.call(call, events),
            Said::Arguments { text, .. } => return self.arguments(&text, events),
        };
        let place = self.open(kind, events);
        if let Some(Item::Text { text: all, .. }) = &mut self.open {
            all.push_str(&text);
        }
        let (name, data) = match kind {
            Kind::Message => ("response.output_text.delta", json!({"delta": text, "logprobs": []})),
            Kind::Reasoning => ("response.reasoning_text.delta", json!({"delta": text})),
        };
        let data = with(data, place);
        events.push(self.event(name, data));
    }

    /// Opens an item of this kind unless one is open; the fields that say where it is.
    fn open(&mut self, kind: Kind, events: &mut Vec<Event>) -> Value {
        if !matches!(&self.open, Some(Item::Text { kind: open, .. }) if *open == kind) {
            self.close("completed", events);
            let id = id(if kind == Kind::Message { "msg" } else { "rs" });
            let item = kind.item(&id, Vec::new(), "in_progress");
            let index = self.output.len();
            let added = json!({"output_index": index, "item": item});
            events.push(self.event("response.output_item.added", added));
            let place = json!({"item_id": id, "output_index": index, "content_index": 0});
            let part = with(json!({"part": kind.part("")}), place);
            events.push(self.event("response.content_part.added", part));
            self.open = Some(Item::Text { kind, id, text: String::new() });
        }
        let id = match &self.open {
            Some(Item::Text { id, .. } | Item::Call { id, .. }) => Some(id.as_str()),
            None => None,
        };
        json!({"item_id": id, "output_index": self.output.len(), "content_index": 0})
    }

    fn close(&mut self, status: &str, events: &mut Vec<Event>) {
        let (kind, id, text) = match self.open.take() {
            None => return,
            Some(Item::Text { kind, id, text }) => (kind, id, text),
            Some(Item::Call { id, call }) => return self.close_call(&id, &call, status, events),
        };
        let index = self.output.len();
        let place = json!({"item_id": id, "output_index": index, "content_index": 0});
        let (name, data) = match kind {
            Kind::Message => ("response.output_text.done", json!({"text": text, "logprobs": []})),
            Kind::Reasoning => ("response.reasoning_text.done", json!({"text": text})),
        };
        events.push(self.event(name, with(data, place.clone())));
        let part = kind.part(&text);
        events.push(self.event("response.content_part.done", with(json!({"part": part}), place)));
        let item = kind.item(&id, vec![part], status);
        let done = json!({"output_index": index, "item": item});
        events.push(self.event("response.output_item.done", done));
        self.output.push(item);
    }

    /// Opens an item for a call.
    fn call(&mut self, call: Call, events: &mut Vec<Event>) {
        self.close("completed", events);
        let id = id("fc");
        let item = call_item(&id, &call, "", "in_progress");
        let added = json!({"output_index": self.output.len(), "item": item});
        events.push(self.event("response.output_item.added", added));
        let arguments = call.arguments.clone();
        self.open = Some(Item::Call { id, call: Call { arguments: String::new(), ..call } });
        if !arguments.is_empty() {
            self.arguments(&arguments, events);
        }
    }

    fn arguments(&mut self, text: &str, events: &mut Vec<Event>) {
        let Some(Item::Call { id, call }) = &mut self.open else { return };
        call.arguments.push_str(text);
        let data = json!({"item_id": id, "output_index": self.output.len(), "delta": text});
        events.push(self.event("response.function_call_arguments.delta", data));
    }

    fn close_call(&mut self, id: &str, call: &Call, status: &str, events: &mut Vec<Event>) {
        let index = self.output.len();
        let done = json!({"item_id": id, "output_index": index, "arguments": call.arguments,
                          "name": call.name});
        events.push(self.event("response.function_call_arguments.done", done));
        let item = call_item(id, call, &call.arguments, status);
        let done = json!({"output_index": index, "item": item});
        events.push(self.event("response.output_item.done", done));
        self.output.push(item);
    }
}

/// One object with the fields of both.
fn with(mut data: Value, more: Value) -> Value {
    if let (Value::Object(data), Value::Object(more)) = (&mut data, more) {
        data.extend(more);
    }
    data
}

impl Chunks for ResponseEvents {
    type Chunk = Event;
    const DONE: Option<&'static str> = None;

    fn head(&mut self) -> Vec<Event> {
        let response = json!({"response": self.response("in_progress", None)});
        let created = self.event("response.created", response.clone());
        vec![created, self.event("response.in_progress", response)]
    }

    fn piece(&mut self, piece: Piece) -> Vec<Event> {
        let mut events = Vec::new();
        for said in self.answer.push(&piece.text, piece.end.is_some()) {
            self.said(said, &mut events);
        }
        if let Some(end) = piece.end {
            self.incomplete = end.finish_reason == "length";
            if self.output.is_empty() && self.open.is_none() {
                // An answer of nothing is a message without text.
                self.open(Kind::Message, &mut events);
            }
            self.close(self.status(), &mut events);
        }
        events
    }

    fn end(&mut self, usage: Usage) -> Vec<Event> {
        let response = json!({"response": self.response(self.status(), Some(usage))});
        let name = if self.incomplete { "response.incomplete" } else { "response.completed" };
        vec![self.event(name, response)]
    }

    fn name(event: &Event) -> Option<&'static str> {
        Some(event.name)
    }

    fn error(&mut self, error: &ApiError) -> (Option<&'static str>, String) {
        let data =
            json!({"code": error.code(), "message": error.message(), "param": error.param()});
        let event = self.event("error", data);
        (Some(event.name), event.data.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<ResponsesRequest, ApiError> {
        ResponsesRequest::read(Fields::parse(json.as_bytes())?)
    }

    #[test]
    fn items_become_turns() {
        let request = read(
            r#"{"model": "m", "instructions": "Be brief.", "input": [
                {"role": "developer", "content": "A"},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
                {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}], "status": "completed"},
                {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                    "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
                {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{\"a\": 1}", "status": "completed"},
                {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""},
                {"type": "function_call_output", "call_id": "c1", "output": "42"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "43"}]},
                {"role": "assistant", "content": "So."},
                {"role": "user", "content": "And?"}]}"#,
        )
        .unwrap();
        let messages = &request.conversation.messages;
        let shown: Vec<(&str, &str)> =
            messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        let expected = [
            ("system", "Be brief."),
            ("system", "A"),
            ("user", "Hello"),
            ("assistant", "I look."),
            ("tool", "42"),
            ("tool", "43"),
            ("assistant", "So."),
            ("user", "And?"),
        ];
        assert_eq!(shown, expected);
        assert_eq!(messages[3].reasoning_content.as_deref(), Some("Hm"));
        let names: Vec<&Value> =
            messages[3].tool_calls.iter().map(|call| &call["function"]["name"]).collect();
        assert_eq!(names, ["f", "g"]);
        assert_eq!(messages[3].tool_calls[0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(messages[4].tool_call_id.as_deref(), Some("c1"));
    }

    #[test]
    fn what_cannot_be_honoured_names_its_field() {
        for (json, param) in [
            (r#""store": true"#, "store"),
            (r#""previous_response_id": "resp_1""#, "previous_response_id"),
            (r#""conversation": "conv_1""#, "conversation"),
            (r#""background": true"#, "background"),
            (r#""include": ["reasoning.encrypted_content"]"#, "include"),
            (r#""reasoning": {"effort": "high"}"#, "reasoning"),
            (r#""text": {"format": {"type": "xml"}}"#, "text.format.type"),
            (r#""text": {"format": {"type": "json_schema", "name": "n"}}"#, "text.format.schema"),
            (r#""text": {"format": {"type": "text", "x": 1}}"#, "text.format.x"),
            (r#""text": {"verbosity": "low"}"#, "text.verbosity"),
            (r#""truncation": "auto""#, "truncation"),
            (r#""temperature": 3"#, "temperature"),
            (r#""max_output_tokens": 0"#, "max_output_tokens"),
            (r#""stream_options": {}"#, "stream_options"),
            (r#""messages": []"#, "messages"),
            (r#""tools": [{"type": "web_search"}]"#, "tools[0].type"),
            (r#""tools": [{"type": "function", "name": "f", "strict": 1}]"#, "tools[0].strict"),
            (r#""tool_choice": "required""#, "tool_choice"),
            (
                r#""tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "g"}"#,
                "tool_choice.name",
            ),
            (
                r#""tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "mcp"}"#,
                "tool_choice.type",
            ),
            (r#""input": null"#, "input"),
            (r#""input": []"#, "input"),
            (r#""input": [{"type": "item_reference", "id": "x"}]"#, "input[0].type"),
            (r#""input": [{"role": "tool", "content": "x"}]"#, "input[0].role"),
            (
                r#""input": [{"role": "user", "content": [{"type": "input_image"}]}]"#,
                "input[0].content[0].type",
            ),
            (
                r#""input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "[]"}]"#,
                "input[0].arguments",
            ),
            (r#""input": [{"type": "function_call_output", "output": "x"}]"#, "input[0].call_id"),
            (
                r#""input": [{"type": "reasoning", "encrypted_content": "x"}]"#,
                "input[0].encrypted_content",
            ),
        ] {
            let mut body = json!({"model": "m", "input": "x"});
            let change: Value = serde_json::from_str(&format!("{{{json}}}")).unwrap();
            for (field, value) in change.as_object().unwrap() {
                body[field] = value.clone();
            }
            let error = read(&body.to_string()).expect_err(json);
            assert_eq!(error.param(), Some(param), "{json}: {}", error.message());
        }
    }
}
