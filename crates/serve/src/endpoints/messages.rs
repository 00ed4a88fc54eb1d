//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: the next turn of a conversation, in
//! Anthropic's shapes (docs.anthropic.com/en/api/messages, version 2023-06-01).
//!
//! Text blocks that stand side by side are parted by an empty line; a tool's result that is an error
//! begins with `Error: `, for no template has another way to say so.

use crate::answers::{Answer, Call, Said, Whole};
use crate::caller::Caller;
use crate::conversation::{self, Tools};
use crate::error::ApiError;
use crate::fields::{Fields, Neutral};
use crate::generation::{End, Generation, Piece, Usage};
use crate::sampling::{Sampling, is_empty, never, positive, saturating};
use crate::server::Body;
use crate::sse::{self, Chunks};
use crate::state::State as Shared;
use crate::structured::{self, Structured};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use engine::SamplingParams;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use text::{Conversation, Message};

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    post(create)
}

pub(crate) fn route_count() -> MethodRouter<Arc<Shared>> {
    post(count_tokens)
}

async fn create(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Response, ApiError> {
    let request = MessagesRequest::read(fields)?;
    let Talk { model: name, conversation, tools, form } = request.talk;
    let model = state.model(&caller, &name).await?;
    let prompt = conversation::prompt(&state, &caller, &model, conversation, "tools").await?;
    let form = tools.form(&prompt.format, form)?;
    let form = structured::compile(&state, form, prompt.format.thinking).await?;
    let answer = Answer::new(prompt.format, &tools);
    let prompts = vec![(prompt.ids, prompt.decoder)];
    let sampling = request.sampling;
    // `max_tokens` is always there.
    let generation =
        Generation::start(&state, &caller, &model, prompts, &sampling, form, 1, "messages")?;
    let head = Head { id: caller.answer_id("msg_"), model: name };
    let usage = generation.usage();
    if sampling.stream {
        let chunks = MessageChunks {
            head,
            answer,
            input_tokens: usage.prompt_tokens,
            block: None,
            blocks: 0,
            stop: StopReason::default(),
        };
        return Ok(sse::respond(chunks, generation.pieces(), usage));
    }
    let (finished, usage) = generation.finish().await?;
    let Some(finished) = finished.into_iter().next() else {
        return Err(ApiError::internal("no answer came"));
    };
    let (whole, reason) = answer.whole(&finished.text, finished.finish_reason);
    let stop = StopReason::new(reason, finished.stop);
    Ok(Json(head.message(blocks(whole), &stop, wire_usage(usage))).into_response())
}

/// How many tokens a request would begin with.
async fn count_tokens(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let talk = read_count(fields)?;
    let model = state.model(&caller, &talk.model).await?;
    let prompt = conversation::prompt(&state, &caller, &model, talk.conversation, "tools").await?;
    Ok(Json(json!({"input_tokens": prompt.ids.len()})))
}

/// What both endpoints read.
#[derive(Debug)]
struct Talk {
    model: String,
    /// With the tools that may be called.
    conversation: Conversation,
    tools: Tools,
    /// What form the answer must have.
    form: Option<Structured>,
}

#[derive(Debug)]
struct MessagesRequest {
    talk: Talk,
    sampling: Sampling,
}

/// Most strings in `stop_sequences`.
const MAX_STOPS: usize = 16;

/// Fields of Anthropic's that have no effect here, on both endpoints. Whatever is cached, answers
/// are the same.
const NEUTRAL: &[Neutral] = &[
    Neutral { field: "cache_control", accepts: Value::is_object, accepted: "an object" },
    Neutral { field: "thinking", accepts: never, accepted: "nothing" },
    Neutral { field: "context_management", accepts: never, accepted: "nothing" },
    Neutral { field: "mcp_servers", accepts: is_empty, accepted: "an empty list" },
];

/// As [`NEUTRAL`], where an answer is made.
const NEUTRAL_CREATE: &[Neutral] = &[
    Neutral { field: "metadata", accepts: Value::is_object, accepted: "an object" },
    Neutral {
        field: "service_tier",
        accepts: |v| v == "auto" || v == "standard_only",
        accepted: "\"auto\" or \"standard_only\"",
    },
    Neutral { field: "speed", accepts: |v| v == "standard", accepted: "\"standard\"" },
    Neutral { field: "container", accepts: never, accepted: "nothing" },
    Neutral { field: "inference_geo", accepts: never, accepted: "nothing" },
];

impl MessagesRequest {
    fn read(mut fields: Fields) -> Result<MessagesRequest, ApiError> {
        let talk = Talk::read(&mut fields)?;
        let max_tokens = fields.integer("max_tokens", 1..=u64::MAX)?;
        let max_tokens =
            max_tokens.ok_or_else(|| fields.missing("max_tokens", "a whole number"))?;
        let params = SamplingParams {
            temperature: fields.float("temperature", 0.0..=1.0)?.unwrap_or(1.0) as f32,
            top_p: positive(fields.float("top_p", 0.0..=1.0)?.unwrap_or(1.0)),
            top_k: saturating(fields.integer("top_k", 0..=u64::MAX)?.unwrap_or(0)),
            seed: rand::random(),
            ..SamplingParams::default()
        };
        let stop = stops(&mut fields)?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        let sampling = Sampling::one(params, Some(saturating(max_tokens)), stop, stream);
        fields.neutral(NEUTRAL)?;
        fields.neutral(NEUTRAL_CREATE)?;
        fields.finish()?;
        Ok(MessagesRequest { talk, sampling })
    }
}

fn read_count(mut fields: Fields) -> Result<Talk, ApiError> {
    let talk = Talk::read(&mut fields)?;
    fields.neutral(NEUTRAL)?;
    fields.finish()?;
    Ok(talk)
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let Some(value) = fields.take("stop_sequences") else { return Ok(Vec::new()) };
    let list: Option<Vec<String>> = value
        .as_array()
        .and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect());
    list.filter(|list| list.len() <= MAX_STOPS && list.iter().all(|s| !s.trim().is_empty()))
        .ok_or_else(|| {
            let expected = format!("at most {MAX_STOPS} strings, none of them blank");
            fields.wrong("stop_sequences", &value, &expected)
        })
}

impl Talk {
    fn read(fields: &mut Fields) -> Result<Talk, ApiError> {
        let model = fields.required("model", "the name of a model")?;
        let mut conversation = Conversation::default();
        if fields.has("system") {
            let system = text_blocks(fields, "system")?;
            conversation.messages.push(Message::new("system", system));
        }
        for (i, value) in conversation::list(fields)?.into_iter().enumerate() {
            turn(value, i, &mut conversation.messages)?;
        }
        if conversation.messages.last().is_some_and(|m| m.role == "assistant") {
            let message = "the last of messages is the assistant's; expected the user's. hint: this \
                           server does not continue an answer that is given";
            return Err(ApiError::field("messages", message));
        }
        let tools = tools(fields)?;
        let conversation = conversation.with_tools(tools.list.clone());
        let form = output_form(fields)?;
        Ok(Talk { model, conversation, tools, form })
    }
}

/// `output_config.format`, or `output_format`, its name while it was tried out.
fn output_form(fields: &mut Fields) -> Result<Option<Structured>, ApiError> {
    const FORMAT: &str = "output_config.format";
    const EARLIER: &str = "output_format";
    let mut form = None;
    if let Some(value) = fields.take("output_config") {
        let mut config = Fields::nested(value, "output_config")?;
        if let Some(value) = config.take("format") {
            form = structured::format(Fields::nested(value, FORMAT)?, "\"json_schema\"", FORMAT)?;
        }
        config.neutral(&[Neutral { field: "effort", accepts: never, accepted: "nothing" }])?;
        config.finish()?;
    }
    match fields.take(EARLIER) {
        None => Ok(form),
        Some(_) if form.is_some() => {
            let message = "output_format and output_config.format both ask for a form; expected one \
                           of them";
            Err(ApiError::field(EARLIER, message))
        }
        Some(value) => {
            structured::format(Fields::nested(value, EARLIER)?, "\"json_schema\"", EARLIER)
        }
    }
}

/// One of Anthropic's messages becomes one turn, or several: results of tools are turns of their
/// own in the templates of open models.
fn turn(value: Value, index: usize, turns: &mut Vec<Message>) -> Result<(), ApiError> {
    let mut fields = Fields::nested(value, &format!("messages[{index}]"))?;
    let role = fields.string("role")?;
    let role = match role.as_deref() {
        Some("user") => "user",
        Some("assistant") => "assistant",
        found => {
            let expected = "\"user\" or \"assistant\"; a system text goes into the field system";
            return Err(match found {
                Some(found) => fields.wrong("role", &Value::String(found.into()), expected),
                None => fields.missing("role", expected),
            });
        }
    };
    let expected = "a string or a list of content blocks";
    let blocks = match fields.take("content") {
        None => return Err(fields.missing("content", expected)),
        Some(Value::String(text)) => {
            fields.finish()?;
            turns.push(Message::new(role, text));
            return Ok(());
        }
        Some(Value::Array(blocks)) if !blocks.is_empty() => blocks,
        Some(other) => return Err(fields.wrong("content", &other, expected)),
    };
    let mut message = Message::new(role, "");
    let mut any = false;
    for (i, block) in blocks.into_iter().enumerate() {
        let mut block = Fields::nested(block, &fields.param(&format!("content[{i}]")))?;
        let kind = block.string("type")?;
        match (role, kind.as_deref()) {
            (_, Some("text")) => {
                add(&mut message.content, &block.required("text", "a string")?);
                any = true;
            }
            ("user", Some("tool_result")) => {
                if any {
                    turns.push(std::mem::replace(&mut message, Message::new(role, "")));
                    any = false;
                }
                turns.push(tool_result(&mut block)?);
            }
            ("assistant", Some("tool_use")) => {
                message.tool_calls.push(tool_use(&mut block)?);
                any = true;
            }
            ("assistant", Some("thinking")) => {
                let thoughts = message.reasoning_content.get_or_insert_default();
                add(thoughts, &block.required("thinking", "a string")?);
                // This server signs nothing.
                block.string("signature")?;
                any = true;
            }
            (_, found) => {
                let expected = match role {
                    "user" => "\"text\" or \"tool_result\": this server reads text only",
                    _ => "\"text\", \"tool_use\" or \"thinking\"",
                };
                return Err(match found {
                    Some(found) => block.wrong("type", &Value::String(found.into()), expected),
                    None => block.missing("type", expected),
                });
            }
        }
        block.neutral(NEUTRAL_BLOCK)?;
        block.finish()?;
    }
    fields.finish()?;
    if any {
        turns.push(message);
    }
    Ok(())
}

/// Fields of a content block that have no effect here.
const NEUTRAL_BLOCK: &[Neutral] = &[
    Neutral { field: "cache_control", accepts: Value::is_object, accepted: "an object" },
    Neutral { field: "citations", accepts: is_empty, accepted: "an empty list" },
];

/// Puts text behind other text, parted by an empty line.
fn add(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(more);
}

/// A string, or a list of text blocks.
fn text_blocks(fields: &mut Fields, field: &str) -> Result<String, ApiError> {
    let blocks = match fields.take(field) {
        None => return Ok(String::new()),
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(blocks)) => blocks,
        Some(other) => {
            return Err(fields.wrong(field, &other, "a string or a list of text blocks"));
        }
    };
    let mut all = String::new();
    for (i, block) in blocks.into_iter().enumerate() {
        let mut block = Fields::nested(block, &fields.param(&format!("{field}[{i}]")))?;
        match block.string("type")?.as_deref() {
            Some("text") => {}
            Some(other) => {
                let found = Value::String(other.into());
                return Err(block.wrong("type", &found, "\"text\": this server reads text only"));
            }
            None => return Err(block.missing("type", "\"text\"")),
        }
        add(&mut all, &block.required("text", "a string")?);
        block.neutral(NEUTRAL_BLOCK)?;
        block.finish()?;
    }
    Ok(all)
}

fn tool_result(block: &mut Fields) -> Result<Message, ApiError> {
    let id = block.required("tool_use_id", "the id of a tool_use block")?;
    let is_error = block.flag("is_error")?.unwrap_or(false);
    let content = text_blocks(block, "content")?;
    let content = if is_error { format!("Error: {content}") } else { content };
    Ok(Message { tool_call_id: Some(id), ..Message::new("tool", content) })
}

fn tool_use(block: &mut Fields) -> Result<Value, ApiError> {
    let id = block.required("id", "the id of the call")?;
    let name = block.required("name", "a tool's name")?;
    let input = match block.take("input") {
        Some(input) if input.is_object() => input,
        Some(other) => return Err(block.wrong("input", &other, "an object")),
        None => return Err(block.missing("input", "an object")),
    };
    Ok(conversation::tool_call(&id, &name, input))
}

/// Fields of a tool that have no effect here.
const NEUTRAL_TOOL: &[Neutral] = &[
    Neutral { field: "cache_control", accepts: Value::is_object, accepted: "an object" },
    // Input is streamed as it is written, for every tool.
    Neutral {
        field: "eager_input_streaming",
        accepts: Value::is_boolean,
        accepted: "true or false",
    },
];

/// `tools` and `tool_choice` in Anthropic's shape.
fn tools(fields: &mut Fields) -> Result<Tools, ApiError> {
    let mut parallel = true;
    if let Some(choice) = fields.take("tool_choice") {
        let mut choice = Fields::nested(choice, "tool_choice")?;
        let kind = choice.string("type")?;
        parallel = !choice.flag("disable_parallel_tool_use")?.unwrap_or(false);
        let expected = "\"auto\", \"any\", \"tool\" or \"none\"";
        match kind.as_deref() {
            Some(kind @ ("auto" | "none")) => fields.put("tool_choice", kind.into()),
            Some("any") => fields.put("tool_choice", "required".into()),
            Some("tool") => {
                let name = choice.required("name", "the name of a tool")?;
                fields.put("tool_choice", json!({"type": "function", "name": name}));
            }
            Some(other) => {
                return Err(choice.wrong("type", &Value::String(other.into()), expected));
            }
            None => return Err(choice.missing("type", expected)),
        }
        choice.finish()?;
    }
    let tools = Tools::read(fields, |mut tool| {
        match tool.string("type")?.as_deref() {
            None | Some("custom") => {}
            Some(other) => {
                let expected = "\"custom\": this server runs no tools of its own";
                return Err(tool.wrong("type", &Value::String(other.into()), expected));
            }
        }
        let function = conversation::function(&mut tool, "input_schema")?;
        tool.neutral(NEUTRAL_TOOL)?;
        tool.finish()?;
        Ok(function)
    })?;
    Ok(Tools { parallel, ..tools })
}

/// What names an answer.
struct Head {
    id: String,
    model: String,
}

impl Head {
    fn message(&self, content: Vec<Value>, stop: &StopReason, usage: Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model,
            "content": content, "stop_reason": stop.reason, "stop_sequence": stop.sequence,
            "usage": usage,
        })
    }
}

/// Why an answer ended, in Anthropic's words; nothing while it goes on.
#[derive(Default)]
struct StopReason {
    reason: Option<&'static str>,
    sequence: Option<String>,
}

impl StopReason {
    /// From OpenAI's word and the stop string that was met.
    fn new(finish_reason: &'static str, sequence: Option<String>) -> StopReason {
        let reason = match (finish_reason, &sequence) {
            ("tool_calls", _) => "tool_use",
            ("length", _) => "max_tokens",
            (_, Some(_)) => "stop_sequence",
            (_, None) => "end_turn",
        };
        StopReason { reason: Some(reason), sequence }
    }
}

fn wire_usage(usage: Usage) -> Value {
    json!({"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens})
}

/// The content blocks of a whole answer.
fn blocks(whole: Whole) -> Vec<Value> {
    let mut blocks = Vec::new();
    if !whole.reasoning.is_empty() {
        blocks.push(json!({"type": "thinking", "thinking": whole.reasoning, "signature": ""}));
    }
    if !whole.content.is_empty() {
        blocks.push(json!({"type": "text", "text": whole.content}));
    }
    for call in whole.calls {
        blocks.push(match conversation::arguments_of(&call.arguments) {
            Some(input) => {
                json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input})
            }
            // Cut off, or no JSON: there is no input to tell, but what was written.
            None => json!({"type": "text", "text": format!("{} {}", call.name, call.arguments)}),
        });
    }
    blocks
}

/// An event of a stream; its name is also in its data.
#[derive(Serialize)]
#[serde(transparent)]
struct Event {
    #[serde(skip)]
    name: &'static str,
    data: Value,
}

impl Event {
    fn new(name: &'static str, mut data: Value) -> Event {
        data["type"] = name.into();
        Event { name, data }
    }
}

struct MessageChunks {
    head: Head,
    answer: Answer,
    input_tokens: usize,
    /// The kind of the block that is open.
    block: Option<&'static str>,
    /// Blocks begun so far.
    blocks: usize,
    stop: StopReason,
}

impl MessageChunks {
    fn said(&mut self, said: Said, events: &mut Vec<Event>) {
        match said {
            Said::Content(text) => {
                self.open("text", || json!({"type": "text", "text": ""}), events);
                events.push(self.delta(json!({"type": "text_delta", "text": text})));
            }
            Said::Reasoning(text) => {
                let start = || json!({"type": "thinking", "thinking": "", "signature": ""});
                self.open("thinking", start, events);
                events.push(self.delta(json!({"type": "thinking_delta", "thinking": text})));
            }
            Said::Call(Call { id, name, arguments, .. }) => {
                self.close(events);
                let start = || json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.open("tool_use", start, events);
                if !arguments.is_empty() {
                    self.arguments(arguments, events);
                }
            }
            Said::Arguments { text, .. } => self.arguments(text, events),
        }
    }

    fn arguments(&self, text: String, events: &mut Vec<Event>) {
        events.push(self.delta(json!({"type": "input_json_delta", "partial_json": text})));
    }

    fn delta(&self, delta: Value) -> Event {
        Event::new("content_block_delta", json!({"index": self.blocks - 1, "delta": delta}))
    }

    /// Opens a block of this kind unless one is open.
    fn open(&mut self, kind: &'static str, block: impl FnOnce() -> Value, events: &mut Vec<Event>) {
        if self.block == Some(kind) {
            return;
        }
        self.close(events);
        let data = json!({"index": self.blocks, "content_block": block()});
        events.push(Event::new("content_block_start", data));
        self.block = Some(kind);
        self.blocks += 1;
    }

    fn close(&mut self, events: &mut Vec<Event>) {
        if self.block.take().is_some() {
            let data = json!({"index": self.blocks - 1});
            events.push(Event::new("content_block_stop", data));
        }
    }
}

impl Chunks for MessageChunks {
    type Chunk = Event;
    const DONE: Option<&'static str> = None;

    fn head(&mut self) -> Vec<Event> {
        let usage = json!({"input_tokens": self.input_tokens, "output_tokens": 0});
        let message = self.head.message(Vec::new(), &StopReason::default(), usage);
        vec![
            Event::new("message_start", json!({"message": message})),
            Event::new("ping", json!({})),
        ]
    }

    fn piece(&mut self, piece: Piece) -> Vec<Event> {
        let mut events = Vec::new();
        for said in self.answer.push(&piece.text, piece.end.is_some()) {
            self.said(said, &mut events);
        }
        if let Some(End { finish_reason, stop, .. }) = piece.end {
            self.close(&mut events);
            self.stop = StopReason::new(self.answer.finish_reason(finish_reason), stop);
        }
        events
    }

    fn end(&mut self, usage: Usage) -> Vec<Event> {
        let StopReason { reason, sequence } = &self.stop;
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        vec![
            Event::new("message_delta", json!({"delta": delta, "usage": wire_usage(usage)})),
            Event::new("message_stop", json!({})),
        ]
    }

    fn name(event: &Event) -> Option<&'static str> {
        Some(event.name)
    }

    fn error(&mut self, error: &ApiError) -> (Option<&'static str>, String) {
        (Some("error"), error_body(error).to_string())
    }
}

/// Puts every error about these endpoints into Anthropic's shape, whoever made it.
pub(crate) async fn shape_errors(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let ours = path == "/v1/messages" || path.starts_with("/v1/messages/");
    let response = next.run(request).await;
    let Some(error) = response.extensions().get::<ApiError>().filter(|_| ours) else {
        return response;
    };
    let body = error_body(error).to_string();
    let (mut head, _) = response.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, axum::body::Body::from(body))
}

fn error_body(error: &ApiError) -> Value {
    let kind = match error.status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message()}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<MessagesRequest, ApiError> {
        MessagesRequest::read(Fields::parse(json.as_bytes())?)
    }

    #[test]
    fn blocks_become_turns() {
        let request = read(
            r#"{"model": "m", "max_tokens": 5, "system": [{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "B"}],
                "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]},
                    {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": true},
                    {"type": "text", "text": "And"}, {"type": "text", "text": "now?"}]}]}"#,
        )
        .unwrap();
        let messages = &request.talk.conversation.messages;
        let shown: Vec<(&str, &str)> =
            messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        let expected = [
            ("system", "A\n\nB"),
            ("user", "Hello"),
            ("assistant", "I look."),
            ("tool", "42"),
            ("tool", "Error: no"),
            ("user", "And\n\nnow?"),
        ];
        assert_eq!(shown, expected);
        assert_eq!(messages[2].reasoning_content.as_deref(), Some("Hm"));
        assert_eq!(messages[2].tool_calls[0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(messages[3].tool_call_id.as_deref(), Some("t1"));
    }

    #[test]
    fn what_cannot_be_honoured_names_its_field() {
        for (json, field) in [
            (r#""max_tokens": null"#, "max_tokens is missing"),
            (r#""max_tokens": 0"#, "max_tokens is 0"),
            (r#""temperature": 1.5"#, "temperature"),
            (r#""top_p": 2"#, "top_p"),
            (r#""top_k": -1"#, "top_k"),
            (r#""stop_sequences": "a""#, "stop_sequences"),
            (r#""stop_sequences": [" "]"#, "stop_sequences"),
            (r#""thinking": {"type": "enabled", "budget_tokens": 1024}"#, "thinking"),
            (r#""service_tier": "priority""#, "service_tier"),
            (r#""container": "x""#, "container"),
            (r#""mcp_servers": [{}]"#, "mcp_servers"),
            (r#""system": 5"#, "system"),
            (r#""system": [{"type": "image"}]"#, "system[0].type"),
            (r#""n": 2"#, "unknown field n"),
            (r#""tools": {}"#, "tools"),
            (
                r#""tools": [{"type": "web_search_20250305", "name": "web_search"}]"#,
                "tools[0].type",
            ),
            (r#""tools": [{"name": "a b", "input_schema": {}}]"#, "tools[0].name"),
            (r#""tools": [{"name": "f", "input_schema": []}]"#, "tools[0].input_schema"),
            (r#""tools": [{"name": "f", "input_schema": {}, "strict": 1}]"#, "tools[0].strict"),
            (r#""tools": [{"name": "f"}], "tool_choice": {"type": "some"}"#, "tool_choice.type"),
            (r#""tools": [{"name": "f"}], "tool_choice": {"type": "tool"}"#, "tool_choice.name"),
            (
                r#""tools": [{"name": "f"}], "tool_choice": {"type": "tool", "name": "g"}"#,
                "tool_choice.name",
            ),
            (r#""output_config": {"effort": "high"}"#, "output_config.effort"),
            (r#""output_config": {"format": {"type": "text"}}"#, "output_config.format.type"),
            (
                r#""output_config": {"format": {"type": "json_schema"}}"#,
                "output_config.format.schema",
            ),
            (r#""output_format": {"type": "json_object"}"#, "output_format.type"),
            (
                r#""output_format": {"type": "json_schema", "schema": {}}, "output_config": {"format": {"type": "json_schema", "schema": {}}}"#,
                "output_format",
            ),
            (r#""tool_choice": {"type": "auto"}"#, "tool_choice"),
            (r#""tool_choice": {"type": "any"}"#, "tool_choice"),
            (r#""messages": []"#, "messages"),
            (r#""messages": [{"role": "system", "content": "x"}]"#, "messages[0].role"),
            (r#""messages": [{"role": "user", "content": []}]"#, "messages[0].content"),
            (
                r#""messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]"#,
                "messages[0].content[0].type",
            ),
            (
                r#""messages": [{"role": "user", "content": [{"type": "tool_use"}]}]"#,
                "messages[0].content[0].type",
            ),
            (
                r#""messages": [{"role": "user", "content": [{"type": "text", "text": "x", "x": 1}]}]"#,
                "messages[0].content[0].x",
            ),
            (
                r#""messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]"#,
                "messages",
            ),
        ] {
            let mut body = json!({"model": "m", "max_tokens": 5,
                "messages": [{"role": "user", "content": "x"}]});
            let change: Value = serde_json::from_str(&format!("{{{json}}}")).unwrap();
            for (field, value) in change.as_object().unwrap() {
                body[field] = value.clone();
            }
            let error = read(&body.to_string()).expect_err(json);
            assert!(error.message().contains(field), "{json}: {}", error.message());
        }
        let count =
            r#"{"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}"#;
        let error = read_count(Fields::parse(count.as_bytes()).unwrap()).unwrap_err();
        assert!(error.message().contains("max_tokens"), "it counts no answer");
    }

    #[test]
    fn statuses_have_anthropic_s_words() {
        for (error, kind) in [
            (ApiError::invalid("x"), "invalid_request_error"),
            (ApiError::client(StatusCode::NOT_FOUND, "x", "x"), "not_found_error"),
            (ApiError::client(StatusCode::UNAUTHORIZED, "x", "x"), "authentication_error"),
            (ApiError::client(StatusCode::PAYLOAD_TOO_LARGE, "x", "x"), "request_too_large"),
            (ApiError::busy("x", "x"), "rate_limit_error"),
            (ApiError::stopped(), "overloaded_error"),
            (ApiError::internal("x"), "api_error"),
        ] {
            assert_eq!(error_body(&error)["error"]["type"], kind);
        }
    }
}
