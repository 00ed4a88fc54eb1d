//! `POST /v1/chat/completions`: the next turn of a conversation.

use crate::caller::Caller;
use crate::error::ApiError;
use crate::fields::{Fields, Neutral};
use crate::generation::{Finished, Generation, Piece, Usage};
use crate::sampling::{self, Sampling, is_empty, is_false, is_zero, never};
use crate::server::Body;
use crate::sse::{self, Chunks};
use crate::state::{State as Shared, unix_seconds};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use text::{Conversation, Message, StreamDecoder};

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    post(chat_completions)
}

async fn chat_completions(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Response, ApiError> {
    let request = ChatRequest::read(fields, state.plan().max_choices)?;
    let model = Arc::clone(state.model(&caller, &request.model)?);
    // Rendering and encoding a long conversation takes a while: not on the reactor.
    let (template_of, tokenizer) = (Arc::clone(&model), Arc::clone(&state.tokenizer));
    let conversation = request.conversation;
    caller.asked(|| json!(conversation));
    let rendered = tokio::task::spawn_blocking(move || {
        template_of.template.render(&tokenizer, &conversation, true)
    })
    .await
    .map_err(|e| ApiError::internal(format!("rendering the conversation: {e}")))?
    .map_err(|e| ApiError::text(&e, "messages"))?;

    let sampling = request.sampling;
    // An answer is a text of its own, whatever stands before it.
    let prompts = vec![(rendered.ids, StreamDecoder::new(Arc::clone(&state.tokenizer)))];
    // OpenAI's default: no bound but the context.
    let generation =
        Generation::start(&state, &caller, &model, prompts, &sampling, usize::MAX, "messages")?;
    let head = Head::new("chat.completion", &caller, request.model);
    if sampling.stream {
        let head = Head { object: "chat.completion.chunk", ..head };
        let chunks =
            ChatChunks { head, choices: generation.len(), include_usage: sampling.include_usage };
        let usage = generation.usage();
        return Ok(sse::respond(chunks, generation.pieces(), usage));
    }
    let (finished, usage) = generation.finish().await?;
    let choices = finished.into_iter().enumerate().map(ChatChoice::new).collect();
    Ok(Json(ChatCompletion { head, choices, usage }).into_response())
}

/// The request, read and checked.
struct ChatRequest {
    model: String,
    conversation: Conversation,
    sampling: Sampling,
}

/// Fields of OpenAI's that have no effect here.
const NEUTRAL: &[Neutral] = &[
    Neutral { field: "logprobs", accepts: is_false, accepted: "false" },
    Neutral { field: "top_logprobs", accepts: is_zero, accepted: "0" },
    Neutral { field: "tools", accepts: is_empty, accepted: "an empty list" },
    Neutral { field: "tool_choice", accepts: |v| v == "none", accepted: "\"none\"" },
    Neutral { field: "parallel_tool_calls", accepts: is_false, accepted: "false" },
    Neutral { field: "functions", accepts: is_empty, accepted: "an empty list" },
    Neutral { field: "function_call", accepts: |v| v == "none", accepted: "\"none\"" },
    Neutral {
        field: "response_format",
        accepts: |v| *v == json!({"type": "text"}),
        accepted: "{\"type\": \"text\"}",
    },
    Neutral { field: "modalities", accepts: |v| *v == json!(["text"]), accepted: "[\"text\"]" },
    Neutral { field: "audio", accepts: never, accepted: "nothing" },
    Neutral { field: "prediction", accepts: never, accepted: "nothing" },
    Neutral { field: "web_search_options", accepts: never, accepted: "nothing" },
    Neutral { field: "reasoning_effort", accepts: |v| v == "none", accepted: "\"none\"" },
    Neutral { field: "verbosity", accepts: never, accepted: "nothing" },
    Neutral { field: "store", accepts: is_false, accepted: "false" },
    Neutral { field: "metadata", accepts: Value::is_object, accepted: "an object" },
    Neutral {
        field: "service_tier",
        accepts: |v| v == "auto" || v == "default",
        accepted: "\"auto\" or \"default\"",
    },
    Neutral { field: "safety_identifier", accepts: Value::is_string, accepted: "a string" },
    Neutral { field: "prompt_cache_key", accepts: Value::is_string, accepted: "a string" },
];

impl ChatRequest {
    fn read(mut fields: Fields, max_choices: usize) -> Result<ChatRequest, ApiError> {
        let model = fields.string("model")?;
        let model = model.ok_or_else(|| fields.missing("model", "the name of a model"))?;
        let conversation = conversation(&mut fields)?;
        let sampling = Sampling::read(&mut fields, max_choices)?;
        fields.neutral(sampling::COMMON)?;
        fields.neutral(NEUTRAL)?;
        fields.finish()?;
        Ok(ChatRequest { model, conversation, sampling })
    }
}

fn conversation(fields: &mut Fields) -> Result<Conversation, ApiError> {
    let expected = "a list of at least one message";
    let list = match fields.take("messages") {
        None => return Err(fields.missing("messages", expected)),
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(other) => return Err(fields.wrong("messages", &other, expected)),
    };
    let messages: Result<Vec<Message>, ApiError> =
        list.into_iter().enumerate().map(|(i, value)| message(value, i)).collect();
    Ok(Conversation::new(messages?))
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
];

fn message(value: Value, index: usize) -> Result<Message, ApiError> {
    let mut fields = Fields::nested(value, &format!("messages[{index}]"))?;
    let expected = "one of system, developer, user, assistant";
    let role = match fields.string("role")? {
        None => return Err(fields.missing("role", expected)),
        // OpenAI's newer name for the same; the templates of open models know `system`.
        Some(role) if role == "developer" => "system".into(),
        Some(role) if ["system", "user", "assistant"].contains(&role.as_str()) => role,
        Some(role) => return Err(fields.wrong("role", &Value::String(role), expected)),
    };
    fields.neutral(NEUTRAL_MESSAGE)?;
    let content = content(&mut fields)?;
    fields.finish()?;
    Ok(Message::new(role, content))
}

/// A string, or text parts that are put together as they stand.
fn content(fields: &mut Fields) -> Result<String, ApiError> {
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
        match part.string("type")?.as_deref() {
            Some("text") => {}
            Some(other) => {
                let found = Value::String(other.to_owned());
                return Err(part.wrong("type", &found, "\"text\": this server reads text only"));
            }
            None => return Err(part.missing("type", "\"text\"")),
        }
        let text = part.string("text")?;
        content += &text.ok_or_else(|| part.missing("text", "a string"))?;
        part.finish()?;
    }
    Ok(content)
}

/// The fields that every answer and chunk begins with.
#[derive(Clone, Debug, Serialize)]
struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

impl Head {
    fn new(object: &'static str, caller: &Caller, model: String) -> Head {
        let id = caller.answer_id("chatcmpl-");
        Head { id, object, created: unix_seconds(), model }
    }
}

#[derive(Serialize)]
struct ChatCompletion {
    #[serde(flatten)]
    head: Head,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

#[derive(Serialize)]
struct ChatChoice {
    index: usize,
    message: AssistantMessage,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct AssistantMessage {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

impl ChatChoice {
    fn new((index, finished): (usize, Finished)) -> ChatChoice {
        let message = AssistantMessage { role: "assistant", content: finished.text, refusal: None };
        ChatChoice { index, message, logprobs: None, finish_reason: finished.finish_reason }
    }
}

#[derive(Serialize)]
struct ChatChunk {
    #[serde(flatten)]
    head: Head,
    choices: Vec<ChunkChoice>,
    /// Absent unless asked for; then null on all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

struct ChatChunks {
    head: Head,
    choices: usize,
    include_usage: bool,
}

impl ChatChunks {
    fn chunk(&self, index: usize, delta: Delta, finish_reason: Option<&'static str>) -> ChatChunk {
        let choice = ChunkChoice { index, delta, logprobs: None, finish_reason };
        let usage = self.include_usage.then_some(None);
        ChatChunk { head: self.head.clone(), choices: vec![choice], usage }
    }
}

impl Chunks for ChatChunks {
    type Chunk = ChatChunk;

    fn head(&mut self) -> Vec<ChatChunk> {
        let delta = || Delta { role: Some("assistant"), content: Some(String::new()) };
        (0..self.choices).map(|index| self.chunk(index, delta(), None)).collect()
    }

    fn piece(&mut self, piece: Piece) -> Vec<ChatChunk> {
        let mut chunks = Vec::new();
        if !piece.text.is_empty() {
            let delta = Delta { role: None, content: Some(piece.text) };
            chunks.push(self.chunk(piece.index, delta, None));
        }
        if let Some(end) = piece.end {
            chunks.push(self.chunk(piece.index, Delta::default(), Some(end.finish_reason)));
        }
        chunks
    }

    fn usage(&mut self, usage: Usage) -> Option<ChatChunk> {
        let head = self.head.clone();
        self.include_usage.then(|| ChatChunk {
            head,
            choices: Vec::new(),
            usage: Some(Some(usage)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<ChatRequest, ApiError> {
        ChatRequest::read(Fields::parse(json.as_bytes())?, 8)
    }

    #[test]
    fn messages_are_read() {
        let request = read(
            r#"{"model": "m", "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
                {"role": "assistant", "content": "Hi", "refusal": null, "tool_calls": null, "annotations": []},
                {"role": "user", "content": ""}]}"#,
        )
        .unwrap();
        let shown: Vec<(&str, &str)> = request
            .conversation
            .messages
            .iter()
            .map(|m| (m.role.as_str(), m.content.as_str()))
            .collect();
        let expected =
            [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "")];
        assert_eq!((request.model.as_str(), shown), ("m", expected.to_vec()));
    }

    #[test]
    fn fields_that_ask_for_nothing_are_accepted() {
        let request = r#"{"model": "m", "messages": [{"role": "user", "content": "x"}],
            "user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
            "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": false, "tools": [],
            "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {},
            "modalities": ["text"], "top_logprobs": null, "anything": null}"#;
        assert!(read(request).is_ok());
    }

    #[test]
    fn what_cannot_be_honoured_names_its_field() {
        for (json, param) in [
            (r#""logprobs": true"#, "logprobs"),
            (r#""top_logprobs": 3"#, "top_logprobs"),
            (r#""tools": [{"type": "function"}]"#, "tools"),
            (r#""tool_choice": "auto""#, "tool_choice"),
            (r#""functions": [{}]"#, "functions"),
            (r#""response_format": {"type": "json_object"}"#, "response_format"),
            (r#""response_format": {"type": "json_schema", "json_schema": {}}"#, "response_format"),
            (r#""presence_penalty": 0.5"#, "presence_penalty"),
            (r#""frequency_penalty": -1"#, "frequency_penalty"),
            (r#""logit_bias": {"50256": -100}"#, "logit_bias"),
            (r#""modalities": ["text", "audio"]"#, "modalities"),
            (r#""reasoning_effort": "high""#, "reasoning_effort"),
            (r#""store": true"#, "store"),
            (r#""service_tier": "flex""#, "service_tier"),
            (r#""user": 7"#, "user"),
            (r#""temprature": 0.5"#, "temprature"),
            (r#""prompt": "x""#, "prompt"),
            (r#""n": 9"#, "n"),
        ] {
            let json = format!(
                r#"{{"model": "m", "messages": [{{"role": "user", "content": "x"}}], {json}}}"#
            );
            let error = read(&json).err().expect(&json).json();
            assert!(error.contains(&format!(r#""param":"{param}""#)), "{json}: {error}");
        }
    }

    #[test]
    fn broken_messages_name_their_place() {
        for (messages, param) in [
            ("null", "messages"),
            ("[]", "messages"),
            (r#""hello""#, "messages"),
            (r#"["hello"]"#, "messages[0]"),
            (r#"[{"content": "x"}]"#, "messages[0].role"),
            (r#"[{"role": "user"}]"#, "messages[0].content"),
            (r#"[{"role": "user", "content": null}]"#, "messages[0].content"),
            (r#"[{"role": "user", "content": 5}]"#, "messages[0].content"),
            (r#"[{"role": "user", "content": []}]"#, "messages[0].content"),
            (r#"[{"role": "tool", "content": "x"}]"#, "messages[0].role"),
            (r#"[{"role": "user", "content": "x", "name": "Bob"}]"#, "messages[0].name"),
            (r#"[{"role": "user", "content": "x", "colour": 1}]"#, "messages[0].colour"),
            (
                r#"[{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]"#,
                "messages[1].tool_calls",
            ),
            (
                r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]"#,
                "messages[0].content[0].type",
            ),
            (r#"[{"role": "user", "content": [{"type": "text"}]}]"#, "messages[0].content[0].text"),
            (r#"[{"role": "user", "content": ["x"]}]"#, "messages[0].content[0]"),
        ] {
            let json = format!(r#"{{"model": "m", "messages": {messages}}}"#);
            let error = read(&json).err().expect(&json).json();
            assert!(error.contains(&format!(r#""param":"{param}""#)), "{json}: {error}");
        }
        let error = read(r#"{"messages": [{"role": "user", "content": "x"}]}"#).err().unwrap();
        assert!(error.json().contains("model is missing"), "{}", error.json());
    }
}
