//! `POST /v1/chat/completions`: the next turn of a conversation.

use crate::answers::{Answer, Call, Said};
use crate::caller::Caller;
use crate::conversation::{self, Tools};
use crate::error::ApiError;
use crate::fields::{Fields, Neutral};
use crate::generation::{Finished, Generation, Piece, Usage};
use crate::logprobs::ChatLogprobs;
use crate::sampling::{self, Sampling, is_empty, is_false, never};
use crate::server::Body;
use crate::sse::{self, Chunks};
use crate::state::{State as Shared, unix_seconds};
use crate::structured;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use engine::SamplingParams;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use text::Conversation;

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    post(chat_completions)
}

async fn chat_completions(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Response, ApiError> {
    let request = ChatRequest::read(fields, state.plan().max_choices)?;
    let model = state.model(&caller, &request.model).await?;
    let (sampling, tools) = (request.sampling, request.tools);
    let conversation = request.conversation.with_tools(tools.list.clone());
    let prompt = conversation::prompt(&state, &caller, &model, conversation, "tools").await?;
    let form = tools.form(&prompt.format, sampling.structured.clone())?;
    let form = structured::compile(&state, form, prompt.format.thinking).await?;
    let answer = Answer::new(prompt.format, &tools);
    let prompts = vec![(prompt.ids, prompt.decoder)];
    // OpenAI's default: no bound but the context.
    let max_tokens = usize::MAX;
    let generation = Generation::start(
        &state, &caller, &model, prompts, &sampling, form, max_tokens, "messages",
    )?;
    let logprobs = sampling.tells_logprobs().then(|| Arc::clone(&state));
    let head = Head::new("chat.completion", &caller, request.model);
    if sampling.stream {
        let head = Head { object: "chat.completion.chunk", ..head };
        let answers = vec![answer; generation.len()];
        let include_usage = sampling.include_usage;
        let chunks = ChatChunks { head, answers, include_usage, logprobs };
        let usage = generation.usage();
        return Ok(sse::respond(chunks, generation.pieces(), usage));
    }
    let (finished, usage) = generation.finish().await?;
    let choice =
        |(index, finished)| ChatChoice::new(index, finished, answer.clone(), logprobs.as_deref());
    let choices = finished.into_iter().enumerate().map(choice).collect();
    Ok(Json(ChatCompletion { head, choices, usage }).into_response())
}

/// The request, read and checked.
struct ChatRequest {
    model: String,
    conversation: Conversation,
    tools: Tools,
    sampling: Sampling,
}

/// Fields of OpenAI's that have no effect here.
const NEUTRAL: &[Neutral] = &[
    Neutral { field: "functions", accepts: is_empty, accepted: "an empty list" },
    Neutral { field: "function_call", accepts: |v| v == "none", accepted: "\"none\"" },
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
        let model = fields.required("model", "the name of a model")?;
        let conversation = conversation::read(&mut fields)?;
        let tools = Tools::read(&mut fields, conversation::chat_tool)?;
        let mut sampling = Sampling::read(&mut fields, max_choices)?;
        if sampling.max_tokens == Some(0) {
            return Err(ApiError::field("max_tokens", "max_tokens is 0; expected at least 1"));
        }
        logprobs(&mut fields, &mut sampling)?;
        fields.neutral(sampling::COMMON)?;
        fields.neutral(NEUTRAL)?;
        fields.finish()?;
        Ok(ChatRequest { model, conversation, tools, sampling })
    }
}

fn logprobs(fields: &mut Fields, sampling: &mut Sampling) -> Result<(), ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=SamplingParams::MAX_LOGPROBS as u64)?;
    match (wanted, top) {
        (true, top) => sampling.tell_logprobs(top.unwrap_or(0) as usize, false),
        (false, None | Some(0)) => {}
        (false, Some(_)) => {
            let message =
                "top_logprobs is only for answers with logprobs. hint: set logprobs to true";
            return Err(ApiError::field("top_logprobs", message));
        }
    }
    Ok(())
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
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct AssistantMessage {
    role: &'static str,
    /// Null beside tool calls when nothing else was said.
    content: Option<String>,
    refusal: Option<()>,
    /// Not one of OpenAI's fields; DeepSeek's, which vLLM and others have taken over.
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// A call, and also what a chunk tells of one.
#[derive(Serialize)]
struct ToolCall {
    /// In chunks only.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// These are missing where a chunk tells only of more arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl ToolCall {
    fn new(call: Call) -> ToolCall {
        let function = Function { name: Some(call.name), arguments: call.arguments };
        ToolCall { index: None, id: Some(call.id), kind: Some("function"), function }
    }
}

impl ChatChoice {
    /// `state` tells what tokens read as where log probabilities are wanted.
    fn new(index: usize, finished: Finished, answer: Answer, state: Option<&Shared>) -> ChatChoice {
        let (whole, finish_reason) = answer.whole(&finished.text, finished.finish_reason);
        let only_calls = whole.content.is_empty() && !whole.calls.is_empty();
        let message = AssistantMessage {
            role: "assistant",
            content: (!only_calls).then_some(whole.content),
            refusal: None,
            reasoning_content: whole.reasoning,
            tool_calls: whole.calls.into_iter().map(ToolCall::new).collect(),
        };
        let logprobs = state.map(|state| ChatLogprobs::new(state, &finished.logprobs));
        ChatChoice { index, message, logprobs, finish_reason }
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
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[ToolCall; 1]>,
}

impl Delta {
    fn new(said: Said) -> Delta {
        match said {
            Said::Content(text) => Delta { content: Some(text), ..Delta::default() },
            Said::Reasoning(text) => Delta { reasoning_content: Some(text), ..Delta::default() },
            Said::Call(call) => {
                let index = Some(call.index);
                let call = ToolCall { index, ..ToolCall::new(call) };
                Delta { tool_calls: Some([call]), ..Delta::default() }
            }
            Said::Arguments { index, text } => {
                let function = Function { name: None, arguments: text };
                let call = ToolCall { index: Some(index), id: None, kind: None, function };
                Delta { tool_calls: Some([call]), ..Delta::default() }
            }
        }
    }
}

struct ChatChunks {
    head: Head,
    /// One for each choice.
    answers: Vec<Answer>,
    include_usage: bool,
    /// What tokens read as, where log probabilities are wanted.
    logprobs: Option<Arc<Shared>>,
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
        let delta =
            || Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        (0..self.answers.len()).map(|index| self.chunk(index, delta(), None)).collect()
    }

    fn piece(&mut self, piece: Piece) -> Vec<ChatChunk> {
        let said = self.answers[piece.index].push(&piece.text, piece.end.is_some());
        let mut deltas: Vec<Delta> = said.into_iter().map(Delta::new).collect();
        if deltas.is_empty() && !piece.logprobs.is_empty() {
            // Their text is held back; they are told all the same.
            deltas.push(Delta { content: Some(String::new()), ..Delta::default() });
        }
        let mut chunks: Vec<ChatChunk> =
            deltas.into_iter().map(|delta| self.chunk(piece.index, delta, None)).collect();
        if let Some(state) = &self.logprobs
            && let Some(choice) = chunks.first_mut().and_then(|chunk| chunk.choices.first_mut())
        {
            choice.logprobs = Some(ChatLogprobs::new(state, &piece.logprobs));
        }
        if let Some(end) = piece.end {
            let reason = self.answers[piece.index].finish_reason(end.finish_reason);
            chunks.push(self.chunk(piece.index, Delta::default(), Some(reason)));
        }
        chunks
    }

    fn end(&mut self, usage: Usage) -> Vec<ChatChunk> {
        let head = self.head.clone();
        let chunk = ChatChunk { head, choices: Vec::new(), usage: Some(Some(usage)) };
        self.include_usage.then_some(chunk).into_iter().collect()
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
            (r#""logprobs": 1"#, "logprobs"),
            (r#""top_logprobs": 3"#, "top_logprobs"),
            (r#""logprobs": true, "top_logprobs": 21"#, "top_logprobs"),
            (r#""max_tokens": 0"#, "max_tokens"),
            (r#""tools": [{"type": "function"}]"#, "tools[0].function"),
            (r#""tool_choice": "required""#, "tool_choice"),
            (r#""tool_choice": {"type": "function", "function": {"name": "f"}}"#, "tool_choice"),
            (r#""tool_choice": "auto""#, "tool_choice"),
            (r#""functions": [{}]"#, "functions"),
            (r#""response_format": {"type": "yaml"}"#, "response_format.type"),
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
            (r#"[{"role": "tool", "content": "x"}]"#, "messages[0].tool_call_id"),
            (r#"[{"role": "function", "content": "x"}]"#, "messages[0].role"),
            (r#"[{"role": "user", "content": "x", "name": "Bob"}]"#, "messages[0].name"),
            (r#"[{"role": "user", "content": "x", "colour": 1}]"#, "messages[0].colour"),
            (
                r#"[{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]"#,
                "messages[1].tool_calls[0].id",
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
