//! `POST /v1/completions`: text or token ids go on.

use crate::caller::Caller;
use crate::error::ApiError;
use crate::fields::{Fields, Neutral};
use crate::generation::{Finished, Generation, Piece, Usage};
use crate::logprobs::CompletionLogprobs;
use crate::sampling::{self, Sampling, is_empty};
use crate::server::Body;
use crate::sse::{self, Chunks};
use crate::state::{State as Shared, off_reactor, unix_seconds};
use crate::structured;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use engine::SamplingParams;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use text::{StreamDecoder, TextError, Thinking, Tokenizer};

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    post(completions)
}

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: usize = 16;

async fn completions(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Response, ApiError> {
    let request = CompletionRequest::read(fields, state.plan().max_choices)?;
    let model = state.model(&caller, &request.model).await?;
    let sampling = request.sampling;
    caller
        .asked(|| json!({"prompt": request.prompts.iter().map(Prompt::json).collect::<Vec<_>>()}));
    let tokenizer = Arc::clone(&state.tokenizer);
    // Encoding a long text takes a while: not on the reactor.
    let encoded = off_reactor("encoding the prompt", move || {
        let prompts = request.prompts.into_iter();
        prompts.map(|p| p.encode(&tokenizer, request.echo)).collect::<Result<Vec<_>, _>>()
    });
    let prompts = encoded.await?.map_err(|e| ApiError::text(&e, "prompt"))?;
    let form = structured::compile(&state, sampling.structured.clone(), Thinking::None).await?;
    // One beginning for each choice: choice i * n + j belongs to prompt i.
    let echoes: Vec<Echo> = prompts
        .iter()
        .flat_map(|p| std::iter::repeat_n(p.echo(request.echo), sampling.n))
        .collect();
    let prompts = prompts.into_iter().map(|p| (p.ids, p.decoder)).collect();
    let max_tokens = DEFAULT_MAX_TOKENS;
    let generation =
        Generation::start(&state, &caller, &model, prompts, &sampling, form, max_tokens, "prompt")?;
    let logprobs = request.logprobs.then(|| Arc::clone(&state));
    let head = Head::new(&caller, request.model);
    if sampling.stream {
        let ends = echoes.iter().map(|echo| echo.text.chars().count()).collect();
        let include_usage = sampling.include_usage;
        let chunks = CompletionChunks { head, echoes, ends, include_usage, logprobs };
        let usage = generation.usage();
        return Ok(sse::respond(chunks, generation.pieces(), usage));
    }
    let (finished, usage) = generation.finish().await?;
    let choices = finished.into_iter().zip(echoes).enumerate();
    let choices = choices
        .map(|(index, (finished, echo))| {
            let logprobs = logprobs.as_ref().map(|state| echo.logprobs(state, &finished));
            let text = echo.text + &finished.text;
            let choice = CompletionChoice::new(index, text, Some(finished.finish_reason));
            CompletionChoice { logprobs, ..choice }
        })
        .collect();
    Ok(Json(Completion { head, choices, usage: Some(Some(usage)) }).into_response())
}

/// The request, read and checked.
struct CompletionRequest {
    model: String,
    prompts: Vec<Prompt>,
    echo: bool,
    logprobs: bool,
    sampling: Sampling,
}

/// Fields of OpenAI's that have no effect here.
const NEUTRAL: &[Neutral] =
    &[Neutral { field: "suffix", accepts: is_empty, accepted: "an empty string" }];

impl CompletionRequest {
    fn read(mut fields: Fields, max_choices: usize) -> Result<CompletionRequest, ApiError> {
        let model = fields.required("model", "the name of a model")?;
        let prompts = prompts(&mut fields, "prompt")?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        let mut sampling = Sampling::read(&mut fields, max_choices)?;
        let logprobs = logprobs(&mut fields, &mut sampling, echo)?;
        let choices = prompts.len().saturating_mul(sampling.n);
        if choices > max_choices {
            let message = format!(
                "{} prompts with n = {} make {choices} choices; expected at most {max_choices}. \
                 hint: send several requests",
                prompts.len(),
                sampling.n
            );
            return Err(ApiError::field("prompt", message));
        }
        best_of(&mut fields, sampling.n)?;
        fields.neutral(sampling::COMMON)?;
        fields.neutral(NEUTRAL)?;
        fields.finish()?;
        Ok(CompletionRequest { model, prompts, echo, logprobs, sampling })
    }
}

/// Whether log probabilities are told, and how. A prompt that is only scored has no `max_tokens`.
fn logprobs(fields: &mut Fields, sampling: &mut Sampling, echo: bool) -> Result<bool, ApiError> {
    let top = fields.integer("logprobs", 0..=SamplingParams::MAX_LOGPROBS as u64)?;
    if top.is_some() && echo && sampling.stream {
        let message = "logprobs of an echoed prompt are not streamed. hint: leave out stream";
        return Err(ApiError::field("logprobs", message));
    }
    if sampling.max_tokens == Some(0) && (sampling.stream || !echo) {
        let message = "max_tokens is 0; expected at least 1, or echo without stream";
        return Err(ApiError::field("max_tokens", message));
    }
    if let Some(top) = top {
        sampling.tell_logprobs(top as usize, echo);
    } else if sampling.max_tokens == Some(0) {
        sampling.tell_logprobs(0, true);
    }
    Ok(top.is_some())
}

/// Generating more choices than are returned is not supported; as many is what happens anyway.
fn best_of(fields: &mut Fields, n: usize) -> Result<(), ApiError> {
    match fields.take("best_of") {
        Some(value) if value.as_u64() != Some(n as u64) => {
            Err(fields.wrong("best_of", &value, &format!("the same as n, {n}")))
        }
        _ => Ok(()),
    }
}

/// A prompt as it came.
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A prompt for the engine, what decodes its continuation, and its text when that is to be echoed.
struct Encoded {
    ids: Vec<u32>,
    decoder: StreamDecoder,
    text: String,
}

impl Encoded {
    fn echo(&self, wanted: bool) -> Echo {
        match wanted {
            true => Echo { text: self.text.clone(), first: self.ids.first().copied() },
            false => Echo { text: String::new(), first: None },
        }
    }
}

/// What stands before a choice's answer.
#[derive(Clone)]
struct Echo {
    text: String,
    /// The prompt's first token, where the prompt is told.
    first: Option<u32>,
}

impl Echo {
    fn logprobs(&self, state: &Shared, finished: &Finished) -> CompletionLogprobs {
        let mut all = CompletionLogprobs::new(0);
        self.first.iter().for_each(|&token| all.push_first(state, token));
        let told = finished.prompt_logprobs.iter().chain(&finished.logprobs);
        told.for_each(|told| all.push(state, told));
        all
    }
}

impl Prompt {
    /// As it came.
    fn json(&self) -> Value {
        match self {
            Prompt::Text(text) => json!(text),
            Prompt::Tokens(ids) => json!(ids),
        }
    }

    fn encode(self, tokenizer: &Arc<Tokenizer>, echo: bool) -> Result<Encoded, TextError> {
        let (ids, text) = match self {
            Prompt::Text(text) => {
                let ids = tokenizer.encode_prompt(&text)?;
                (ids, text)
            }
            Prompt::Tokens(ids) if echo => {
                let text = tokenizer.decode(&ids)?;
                (ids, text)
            }
            Prompt::Tokens(ids) => (ids, String::new()),
        };
        let decoder = StreamDecoder::after(Arc::clone(tokenizer), &ids)?;
        Ok(Encoded { ids, decoder, text })
    }
}

/// What `field` holds: a string, a list of strings, a list of token ids, or a list of such lists.
pub(super) fn prompts(fields: &mut Fields, field: &'static str) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, a list of strings, a list of token ids, or a list of such lists";
    let Some(value) = fields.take(field) else {
        return Err(fields.missing(field, expected));
    };
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let prompts = match &value {
        Value::String(text) => Some(vec![Prompt::Text(text.clone())]),
        Value::Array(list) => match list.first() {
            Some(Value::String(_)) => {
                list.iter().map(|v| v.as_str().map(|t| Prompt::Text(t.to_owned()))).collect()
            }
            Some(Value::Number(_)) => {
                let ids: Option<Vec<u32>> = list.iter().map(id).collect();
                ids.map(|ids| vec![Prompt::Tokens(ids)])
            }
            Some(Value::Array(_)) => list
                .iter()
                .map(|v| v.as_array()?.iter().map(id).collect::<Option<_>>().map(Prompt::Tokens))
                .collect(),
            _ => None,
        },
        _ => None,
    };
    prompts.ok_or_else(|| fields.wrong(field, &value, expected))
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
    fn new(caller: &Caller, model: String) -> Head {
        let id = caller.answer_id("cmpl-");
        Head { id, object: "text_completion", created: unix_seconds(), model }
    }
}

/// The answer, and also a chunk of a stream: this endpoint has one wire type for both.
#[derive(Serialize)]
struct Completion {
    #[serde(flatten)]
    head: Head,
    choices: Vec<CompletionChoice>,
    /// Absent from chunks unless asked for; then null on all but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

impl CompletionChoice {
    fn new(index: usize, text: String, finish_reason: Option<&'static str>) -> CompletionChoice {
        CompletionChoice { index, text, logprobs: None, finish_reason }
    }
}

struct CompletionChunks {
    head: Head,
    /// The beginning of each choice; empty without echo.
    echoes: Vec<Echo>,
    /// Characters told of each choice's tokens.
    ends: Vec<usize>,
    include_usage: bool,
    /// What tokens read as, where log probabilities are wanted.
    logprobs: Option<Arc<Shared>>,
}

impl CompletionChunks {
    fn chunk(&self, choice: CompletionChoice) -> Completion {
        let usage = self.include_usage.then_some(None);
        Completion { head: self.head.clone(), choices: vec![choice], usage }
    }
}

impl Chunks for CompletionChunks {
    type Chunk = Completion;

    fn head(&mut self) -> Vec<Completion> {
        let echoes = std::mem::take(&mut self.echoes).into_iter().enumerate();
        echoes
            .filter(|(_, echo)| !echo.text.is_empty())
            .map(|(index, echo)| self.chunk(CompletionChoice::new(index, echo.text, None)))
            .collect()
    }

    fn piece(&mut self, piece: Piece) -> Vec<Completion> {
        let finish_reason = piece.end.as_ref().map(|end| end.finish_reason);
        let mut choice = CompletionChoice::new(piece.index, piece.text, finish_reason);
        if let Some(state) = &self.logprobs {
            let mut told = CompletionLogprobs::new(self.ends[piece.index]);
            piece.logprobs.iter().for_each(|token| told.push(state, token));
            self.ends[piece.index] = told.end();
            choice.logprobs = Some(told);
        }
        vec![self.chunk(choice)]
    }

    fn end(&mut self, usage: Usage) -> Vec<Completion> {
        let head = self.head.clone();
        let chunk = Completion { head, choices: Vec::new(), usage: Some(Some(usage)) };
        self.include_usage.then_some(chunk).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<CompletionRequest, ApiError> {
        CompletionRequest::read(Fields::parse(json.as_bytes())?, 8)
    }

    #[test]
    fn prompts_come_in_four_shapes() {
        let shapes = |prompt: &str| -> Vec<String> {
            let request = read(&format!(r#"{{"model": "m", "prompt": {prompt}}}"#)).unwrap();
            let shown = request.prompts.into_iter().map(|p| match p {
                Prompt::Text(text) => text,
                Prompt::Tokens(ids) => format!("{ids:?}"),
            });
            shown.collect()
        };
        assert_eq!(shapes(r#""a b""#), ["a b"]);
        assert_eq!(shapes(r#"["a", "b"]"#), ["a", "b"]);
        assert_eq!(shapes("[1, 2]"), ["[1, 2]"]);
        assert_eq!(shapes("[[1, 2], [3]]"), ["[1, 2]", "[3]"]);
    }

    #[test]
    fn what_cannot_be_honoured_names_its_field() {
        for (json, param) in [
            (r#""prompt": null"#, "prompt"),
            (r#""prompt": []"#, "prompt"),
            (r#""prompt": {}"#, "prompt"),
            (r#""prompt": ["a", 1]"#, "prompt"),
            (r#""prompt": [1, "a"]"#, "prompt"),
            (r#""prompt": [1, -1]"#, "prompt"),
            (r#""prompt": [4294967296]"#, "prompt"),
            (r#""prompt": [[1], 2]"#, "prompt"),
            (r#""prompt": ["a", "b", "c"], "n": 3"#, "prompt"),
            (r#""prompt": "a", "suffix": "b""#, "suffix"),
            (r#""prompt": "a", "logprobs": 21"#, "logprobs"),
            (r#""prompt": "a", "logprobs": true"#, "logprobs"),
            (r#""prompt": "a", "logprobs": 1, "echo": true, "stream": true"#, "logprobs"),
            (r#""prompt": "a", "max_tokens": 0"#, "max_tokens"),
            (r#""prompt": "a", "best_of": 2"#, "best_of"),
            (r#""prompt": "a", "echo": "yes""#, "echo"),
            (r#""prompt": "a", "messages": []"#, "messages"),
        ] {
            let json = format!(r#"{{"model": "m", {json}}}"#);
            let error = read(&json).err().expect(&json).json();
            assert!(error.contains(&format!(r#""param":"{param}""#)), "{json}: {error}");
        }
        assert!(
            read(r#"{"model": "m", "prompt": "a", "best_of": 2, "n": 2, "suffix": ""}"#).is_ok()
        );
    }
}
