//! `POST /v1/completions`: text or token ids go on.

use crate::caller::Caller;
use crate::error::ApiError;
use crate::fields::{Fields, Neutral};
use crate::generation::{Generation, Piece, Usage};
use crate::sampling::{self, Sampling, is_empty, never};
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
use text::{StreamDecoder, TextError, Tokenizer};

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
    let prompts: Vec<Encoded> = tokio::task::spawn_blocking(move || {
        request.prompts.into_iter().map(|p| p.encode(&tokenizer, request.echo)).collect()
    })
    .await
    .map_err(|e| ApiError::internal(format!("encoding the prompt: {e}")))
    .and_then(|encoded: Result<Vec<Encoded>, TextError>| {
        encoded.map_err(|e| ApiError::text(&e, "prompt"))
    })?;
    let (prompts, echoes): (Vec<_>, Vec<String>) =
        prompts.into_iter().map(|p| ((p.ids, p.decoder), p.echo)).unzip();
    // One beginning for each choice: choice i * n + j belongs to prompt i.
    let echoes: Vec<String> =
        echoes.into_iter().flat_map(|e| std::iter::repeat_n(e, sampling.n)).collect();

    let max_tokens = DEFAULT_MAX_TOKENS;
    let generation =
        Generation::start(&state, &caller, &model, prompts, &sampling, max_tokens, "prompt")?;
    let head = Head::new(&caller, request.model);
    if sampling.stream {
        let chunks = CompletionChunks { head, echoes, include_usage: sampling.include_usage };
        let usage = generation.usage();
        return Ok(sse::respond(chunks, generation.pieces(), usage));
    }
    let (finished, usage) = generation.finish().await?;
    let choices = finished.into_iter().zip(echoes).enumerate();
    let choices = choices
        .map(|(index, (f, echo))| {
            CompletionChoice::new(index, echo + &f.text, Some(f.finish_reason))
        })
        .collect();
    Ok(Json(Completion { head, choices, usage: Some(Some(usage)) }).into_response())
}

/// The request, read and checked.
struct CompletionRequest {
    model: String,
    prompts: Vec<Prompt>,
    echo: bool,
    sampling: Sampling,
}

/// Fields of OpenAI's that have no effect here.
const NEUTRAL: &[Neutral] = &[
    Neutral { field: "suffix", accepts: is_empty, accepted: "an empty string" },
    Neutral { field: "logprobs", accepts: never, accepted: "null" },
];

impl CompletionRequest {
    fn read(mut fields: Fields, max_choices: usize) -> Result<CompletionRequest, ApiError> {
        let model = fields.string("model")?;
        let model = model.ok_or_else(|| fields.missing("model", "the name of a model"))?;
        let prompts = prompts(&mut fields)?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        let sampling = Sampling::read(&mut fields, max_choices)?;
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
        Ok(CompletionRequest { model, prompts, echo, sampling })
    }
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
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A prompt for the engine, what decodes its continuation, and its text when that is to be echoed.
struct Encoded {
    ids: Vec<u32>,
    decoder: StreamDecoder,
    echo: String,
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
        Ok(Encoded { ids, decoder, echo: if echo { text } else { String::new() } })
    }
}

/// A string, a list of strings, a list of token ids, or a list of such lists.
fn prompts(fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, a list of strings, a list of token ids, or a list of such lists";
    let Some(value) = fields.take("prompt") else {
        return Err(fields.missing("prompt", expected));
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
    prompts.ok_or_else(|| fields.wrong("prompt", &value, expected))
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
    logprobs: Option<()>,
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
    echoes: Vec<String>,
    include_usage: bool,
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
            .filter(|(_, echo)| !echo.is_empty())
            .map(|(index, echo)| self.chunk(CompletionChoice::new(index, echo, None)))
            .collect()
    }

    fn piece(&mut self, piece: Piece) -> Vec<Completion> {
        let finish_reason = piece.end.as_ref().map(|end| end.finish_reason);
        vec![self.chunk(CompletionChoice::new(piece.index, piece.text, finish_reason))]
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
            (r#""prompt": "a", "logprobs": 0"#, "logprobs"),
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
