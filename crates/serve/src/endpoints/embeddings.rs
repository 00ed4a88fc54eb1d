//! `POST /v1/embeddings`: texts to vectors, in the engine's batch beside whatever else runs.

use super::completions::{Prompt, prompts};
use crate::adapters::Resident;
use crate::caller::{Caller, deadline};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::Usage;
use crate::sampling;
use crate::server::Body;
use crate::state::{Host, State as Shared, off_reactor};
use axum::Json;
use axum::extract::State;
use axum::routing::{MethodRouter, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use engine::{EngineError, Event, SequenceRequest};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    post(embeddings)
}

/// Most inputs of one request, as in OpenAI's API.
const MAX_INPUTS: usize = 2048;

/// Inputs of one request in the engine at a time: enough to fill a step with short texts, and few
/// enough that those of others do not wait behind all of them.
const AT_ONCE: usize = 16;

async fn embeddings(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Embeddings>, ApiError> {
    let request = EmbeddingRequest::read(fields)?;
    let model = state.any_model(&caller, &request.model).await?;
    let host = Arc::clone(model.host());
    if let Some(wanted) = request.dimensions {
        let checked = host.embedding.check_dimensions(wanted, host.embedding_len);
        checked.map_err(|expected| {
            let message = format!("dimensions is {wanted}; expected {expected}");
            ApiError::field("dimensions", message)
        })?;
    }
    let encoding = Arc::clone(&host);
    let inputs = off_reactor("encoding the input", move || {
        let inputs = request.inputs.into_iter().enumerate();
        inputs.map(|(index, input)| encode(&encoding, index, input)).collect::<Result<Vec<_>, _>>()
    });
    let inputs = inputs.await??;
    let prompt_tokens = inputs.iter().map(Vec::len).sum();
    caller.begin(&model, prompt_tokens)?;

    let seconds = state.plan().request_timeout_seconds;
    let end = deadline(seconds);
    let one = |ids| embed(Arc::clone(&model), caller.clone(), ids, end);
    let all = stream::iter(inputs).map(one).buffered(AT_ONCE).try_collect::<Vec<_>>();
    let pooled = tokio::time::timeout_at(end.into(), all);
    let pooled = pooled.await.map_err(|_| ApiError::timed_out(seconds))??;
    let usage = Usage::new(prompt_tokens);
    caller.complete(usage);
    caller.finish("ok").await;
    let data = pooled.into_iter().enumerate().map(|(index, pooled)| {
        let embedding = host.embedding.finish(pooled, request.dimensions);
        Embedding { object: "embedding", index, embedding: Numbers::new(embedding, request.base64) }
    });
    let usage = EmbeddingUsage { prompt_tokens, total_tokens: usage.total_tokens };
    Ok(Json(Embeddings { object: "list", data: data.collect(), model: request.model, usage }))
}

/// The tokens of an input, which the model can take.
fn encode(host: &Host, index: usize, input: Prompt) -> Result<Vec<u32>, ApiError> {
    let field = format!("input[{index}]");
    let prompt = match input {
        Prompt::Text(text) if text.is_empty() => {
            return Err(ApiError::field(&field, format!("{field} is empty; expected a text")));
        }
        Prompt::Text(text) => {
            host.tokenizer.encode_whole(&text).map_err(|e| ApiError::text(&e, "input"))?
        }
        Prompt::Tokens(ids) => ids,
    };
    let pooling = Some(host.embedding.pooling);
    let request = SequenceRequest { prompt, pooling, ..SequenceRequest::default() };
    let tokens = request.prompt.len();
    let checked = match host.embedding.max_tokens {
        Some(most) if tokens > most => Err(EngineError::InputTooLong { tokens, most }),
        _ => host.engine.limits().check(&request),
    };
    checked.map_err(|e| ApiError::engine(&e, "input").with_param(field))?;
    Ok(request.prompt)
}

/// The pooled hidden states of one input. Dropped (because the client went away, or another input of the
/// request failed), it cancels its sequence.
async fn embed(
    model: Arc<Resident>,
    caller: Caller,
    prompt: Vec<u32>,
    end: Instant,
) -> Result<Vec<f32>, ApiError> {
    let host = model.host();
    let request = SequenceRequest {
        prompt,
        adapter: model.adapter,
        pooling: Some(host.embedding.pooling),
        tenant: caller.tenant(),
        ..SequenceRequest::default()
    };
    let (sender, result) = oneshot::channel();
    let (books, mut sender) = (caller.clone(), Some(sender));
    let sink = move |event: Event| {
        let goes_on = books.sees(&event, true, end);
        let result = match event {
            Event::Embedding { embedding, .. } => Ok(embedding),
            Event::Failed { error, .. } => Err(error),
            _ => return goes_on,
        };
        sender.take().is_some_and(|sender| sender.send(result).is_ok())
    };
    let ticket = host.engine.submit(request, sink).map_err(|e| ApiError::engine(&e, "input"))?;
    caller.submitted(&ticket);
    match result.await {
        Ok(embedded) => embedded.map_err(|e| ApiError::engine(&e, "input")),
        // Cancelled: by nobody but an engine that ends.
        Err(_) => Err(ApiError::stopped()),
    }
}

/// The request, read and checked.
struct EmbeddingRequest {
    model: String,
    inputs: Vec<Prompt>,
    base64: bool,
    dimensions: Option<usize>,
}

impl EmbeddingRequest {
    fn read(mut fields: Fields) -> Result<EmbeddingRequest, ApiError> {
        let model = fields.required("model", "the name of a model")?;
        let inputs = prompts(&mut fields, "input")?;
        if inputs.len() > MAX_INPUTS {
            let message = format!(
                "input has {} texts; expected at most {MAX_INPUTS}. hint: send several requests",
                inputs.len()
            );
            return Err(ApiError::field("input", message));
        }
        let base64 = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(other) => {
                return Err(fields.wrong("encoding_format", &other.into(), "float or base64"));
            }
        };
        let dimensions = fields.integer("dimensions", 1..=1 << 20)?.map(|n| n as usize);
        fields.neutral(sampling::COMMON)?;
        fields.finish()?;
        Ok(EmbeddingRequest { model, inputs, base64, dimensions })
    }
}

#[derive(Serialize)]
struct Embeddings {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: EmbeddingUsage,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    /// Which input.
    index: usize,
    embedding: Numbers,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Numbers {
    Floats(Vec<f32>),
    /// Of the numbers as f32, little-endian.
    Base64(String),
}

impl Numbers {
    fn new(values: Vec<f32>, base64: bool) -> Numbers {
        match base64 {
            false => Numbers::Floats(values),
            true => {
                let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                Numbers::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

#[derive(Serialize)]
struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_honoured_names_its_field() {
        let many = format!(r#""input": [{}"a"]"#, r#""a","#.repeat(MAX_INPUTS));
        for (json, param) in [
            (r#""user": "x""#, "input"),
            (r#""input": []"#, "input"),
            (r#""input": {}"#, "input"),
            (r#""input": ["a", 1]"#, "input"),
            (r#""input": [1, -1]"#, "input"),
            (r#""input": [[1], "a"]"#, "input"),
            (&many, "input"),
            (r#""input": "a", "encoding_format": "int8""#, "encoding_format"),
            (r#""input": "a", "encoding_format": 1"#, "encoding_format"),
            (r#""input": "a", "dimensions": 0"#, "dimensions"),
            (r#""input": "a", "dimensions": "8""#, "dimensions"),
            (r#""input": "a", "user": 1"#, "user"),
            (r#""input": "a", "truncate": true"#, "truncate"),
            (r#""input": "a", "stream": true"#, "stream"),
        ] {
            let json = format!(r#"{{"model": "m", {json}}}"#);
            let read = Fields::parse(json.as_bytes()).and_then(EmbeddingRequest::read);
            let error = read.err().expect(&json).json();
            assert!(error.contains(&format!(r#""param":"{param}""#)), "{json}: {error}");
        }
    }

    #[test]
    fn base64_is_of_little_endian_floats() {
        let Numbers::Base64(text) = Numbers::new(vec![1.0, -2.5], true) else { panic!() };
        assert_eq!(text, "AACAPwAAIMA=");
    }
}
