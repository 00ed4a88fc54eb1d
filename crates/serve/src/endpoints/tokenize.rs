//! `POST /tokenize` and `POST /detokenize`: what a text or a conversation is to the model, in
//! vLLM's shapes.

use crate::caller::Caller;
use crate::conversation;
use crate::error::ApiError;
use crate::fields::{Fields, Neutral};
use crate::sampling::{is_empty, is_false, never};
use crate::server::Body;
use crate::state::{State as Shared, off_reactor};
use axum::Json;
use axum::extract::State;
use axum::routing::{MethodRouter, post};
use serde::Serialize;
use std::sync::Arc;
use text::{Conversation, TextError};

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    post(tokenize)
}

pub(crate) fn route_back() -> MethodRouter<Arc<Shared>> {
    post(detokenize)
}

/// The answer of `/tokenize`.
#[derive(Serialize)]
struct Tokenized {
    count: usize,
    /// Longest sequence, prompt and answer together, that this server takes.
    max_model_len: usize,
    tokens: Vec<u32>,
    /// The tokens as the vocabulary spells them; null unless asked for.
    token_strs: Option<Vec<String>>,
}

async fn tokenize(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Tokenized>, ApiError> {
    let request = TokenizeRequest::read(fields)?;
    let model = state.model_or_base(&caller, request.model.as_deref()).await?;
    let tokens = match request.input {
        Input::Prompt { text, add_special_tokens } => {
            let host = Arc::clone(model.host());
            off_reactor("encoding the prompt", move || match add_special_tokens {
                true if host.generates => host.tokenizer.encode_prompt(&text),
                true => host.tokenizer.encode_whole(&text),
                false => host.tokenizer.encode_with_specials(&text),
            })
            .await?
            .map_err(|e| ApiError::text(&e, "prompt"))?
        }
        Input::Messages { conversation, add_generation_prompt } => {
            model.must_generate()?;
            conversation::render(&state, &model, conversation, add_generation_prompt).await?.ids
        }
    };
    let spelling = |id: &u32| model.host().tokenizer.token(*id).unwrap_or_default();
    Ok(Json(Tokenized {
        count: tokens.len(),
        max_model_len: model.host().engine.limits().max_len(),
        token_strs: request.return_token_strs.then(|| tokens.iter().map(spelling).collect()),
        tokens,
    }))
}

/// A request to `/tokenize`, read and checked.
#[derive(Debug)]
struct TokenizeRequest {
    /// The base when absent.
    model: Option<String>,
    input: Input,
    return_token_strs: bool,
}

#[derive(Debug)]
enum Input {
    Prompt { text: String, add_special_tokens: bool },
    Messages { conversation: Conversation, add_generation_prompt: bool },
}

/// Fields of vLLM's for conversations that have no effect here.
const NEUTRAL_MESSAGES: &[Neutral] = &[
    // A template writes the control tokens itself; one more would be one too many.
    Neutral { field: "add_special_tokens", accepts: is_false, accepted: "false beside messages" },
    Neutral { field: "continue_final_message", accepts: is_false, accepted: "false" },
    Neutral { field: "chat_template", accepts: never, accepted: "nothing" },
    Neutral { field: "chat_template_kwargs", accepts: is_empty, accepted: "an empty object" },
    Neutral { field: "mm_processor_kwargs", accepts: is_empty, accepted: "an empty object" },
];

impl TokenizeRequest {
    fn read(mut fields: Fields) -> Result<TokenizeRequest, ApiError> {
        let model = fields.string("model")?;
        let return_token_strs = fields.flag("return_token_strs")?.unwrap_or(false);
        let input = match fields.string("prompt")? {
            Some(text) => {
                let add_special_tokens = fields.flag("add_special_tokens")?.unwrap_or(true);
                Input::Prompt { text, add_special_tokens }
            }
            None if fields.has("messages") => {
                let mut conversation = conversation::read(&mut fields)?;
                // Nothing is learnt here, so no turn needs to be found again in the text.
                conversation.messages.iter_mut().for_each(|m| m.train = Some(false));
                let add_generation_prompt = fields.flag("add_generation_prompt")?.unwrap_or(true);
                fields.neutral(NEUTRAL_MESSAGES)?;
                Input::Messages { conversation, add_generation_prompt }
            }
            None => return Err(fields.missing("prompt", "a string, or messages in its place")),
        };
        fields.finish()?;
        Ok(TokenizeRequest { model, input, return_token_strs })
    }
}

/// The answer of `/detokenize`.
#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

async fn detokenize(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Detokenized>, ApiError> {
    let request = DetokenizeRequest::read(fields)?;
    let model = state.model_or_base(&caller, request.model.as_deref()).await?;
    let vocab = model.host().engine.limits().vocab_size;
    if let Some(place) = request.tokens.iter().position(|&id| id as usize >= vocab) {
        let message = format!(
            "tokens[{place}] is {}; expected below the vocabulary of {vocab}",
            request.tokens[place]
        );
        return Err(ApiError::field(format!("tokens[{place}]"), message));
    }
    let tokenizer = Arc::clone(&model.host().tokenizer);
    let decode = move || -> Result<String, TextError> { tokenizer.decode(&request.tokens) };
    let prompt = off_reactor("decoding the tokens", decode)
        .await?
        .map_err(|e| ApiError::text(&e, "tokens"))?;
    Ok(Json(Detokenized { prompt }))
}

/// A request to `/detokenize`, read and checked.
#[derive(Debug)]
struct DetokenizeRequest {
    /// The base when absent.
    model: Option<String>,
    tokens: Vec<u32>,
}

impl DetokenizeRequest {
    fn read(mut fields: Fields) -> Result<DetokenizeRequest, ApiError> {
        let model = fields.string("model")?;
        let expected = "a list of token ids";
        let value = fields.take("tokens").ok_or_else(|| fields.missing("tokens", expected))?;
        let id = |v: &serde_json::Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let tokens = value.as_array().and_then(|list| list.iter().map(id).collect());
        let tokens = tokens.ok_or_else(|| fields.wrong("tokens", &value, expected))?;
        fields.finish()?;
        Ok(DetokenizeRequest { model, tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn what_cannot_be_honoured_names_its_field() {
        let messages = r#""messages": [{"role": "user", "content": "x"}]"#;
        for (json, param) in [
            (r#"{}"#.to_owned(), "prompt"),
            (r#"{"prompt": ["a"]}"#.into(), "prompt"),
            (r#"{"prompt": "a", "add_generation_prompt": true}"#.into(), "add_generation_prompt"),
            (format!(r#"{{"prompt": "a", {messages}}}"#), "messages"),
            (r#"{"messages": []}"#.into(), "messages"),
            (format!(r#"{{{messages}, "add_special_tokens": true}}"#), "add_special_tokens"),
            (
                format!(r#"{{{messages}, "continue_final_message": true}}"#),
                "continue_final_message",
            ),
            (format!(r#"{{{messages}, "chat_template": "x"}}"#), "chat_template"),
            (r#"{"prompt": "a", "return_token_strs": 1}"#.into(), "return_token_strs"),
            (r#"{"prompt": "a", "model": 1}"#.into(), "model"),
        ] {
            let error = TokenizeRequest::read(fields(&json)).expect_err(&json).json();
            assert!(error.contains(&format!(r#""param":"{param}""#)), "{json}: {error}");
        }
        for (json, param) in [
            (r#"{}"#, "tokens"),
            (r#"{"tokens": "a"}"#, "tokens"),
            (r#"{"tokens": [1, "a"]}"#, "tokens"),
            (r#"{"tokens": [-1]}"#, "tokens"),
            (r#"{"tokens": [4294967296]}"#, "tokens"),
            (r#"{"tokens": [], "prompt": "a"}"#, "prompt"),
        ] {
            let error = DetokenizeRequest::read(fields(json)).expect_err(json).json();
            assert!(error.contains(&format!(r#""param":"{param}""#)), "{json}: {error}");
        }
    }
}
