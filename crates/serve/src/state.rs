//! What every request can see: the engine, the tokenizer, and who answers to which name.

use crate::error::ApiError;
use crate::fields::shortened;
use crate::server::ServePlan;
use crate::structured::Grammars;
use axum::http::StatusCode;
use engine::EngineHandle;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};
use text::{ChatTemplate, Tokenizer};

/// A name that requests can put into `model`: the base, or an adapter on it.
pub struct ServedModel {
    /// The name.
    pub name: String,
    /// Slot in the engine's adapter set; None is the base alone.
    pub adapter: Option<usize>,
    /// How its conversations become tokens: an adapter answers in the template it was trained in.
    pub template: ChatTemplate,
    /// Tokens that end its answers.
    pub stop_ids: Vec<u32>,
}

/// Why a server cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Nothing to serve.
    #[error("no model to serve; expected at least the base")]
    NoModel,
    /// Two models under one name.
    #[error("two models are named \"{0}\". hint: give the adapter another name")]
    DuplicateName(String),
    /// A name that a request could not use.
    #[error(
        "\"{0}\" cannot be a model's name; expected a name that is not empty and has no control characters"
    )]
    BadName(String),
}

/// Shared by all handlers.
pub(crate) struct State {
    pub(crate) plan: ServePlan,
    pub(crate) engine: EngineHandle,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) grammars: Grammars,
    /// What each token reads as; made when the first request asks for log probabilities.
    token_bytes: OnceLock<Vec<Vec<u8>>>,
    /// In the order of `/v1/models`.
    pub(crate) models: Vec<Arc<ServedModel>>,
    /// When the server was built, Unix seconds.
    pub(crate) created: u64,
}

impl State {
    pub(crate) fn new(
        plan: ServePlan,
        engine: EngineHandle,
        tokenizer: Arc<Tokenizer>,
        models: Vec<ServedModel>,
    ) -> Result<State, ServeError> {
        for (i, model) in models.iter().enumerate() {
            if model.name.is_empty() || model.name.chars().any(char::is_control) {
                return Err(ServeError::BadName(model.name.clone()));
            }
            if models[..i].iter().any(|m| m.name == model.name) {
                return Err(ServeError::DuplicateName(model.name.clone()));
            }
        }
        if models.is_empty() {
            return Err(ServeError::NoModel);
        }
        let models = models.into_iter().map(Arc::new).collect();
        Ok(State {
            plan,
            engine,
            tokenizer,
            grammars: Grammars::default(),
            token_bytes: OnceLock::new(),
            models,
            created: unix_seconds(),
        })
    }

    /// The bytes that a token stands for.
    pub(crate) fn token_bytes(&self, token: u32) -> Vec<u8> {
        let all = self.token_bytes.get_or_init(|| {
            // A vocabulary of an unknown kind: the names that it gives its tokens.
            self.tokenizer.token_bytes().unwrap_or_else(|_| {
                let name = |id| self.tokenizer.token(id).unwrap_or_default().into_bytes();
                (0..=self.tokenizer.max_id()).map(name).collect()
            })
        });
        all.get(token as usize).cloned().unwrap_or_default()
    }

    /// The model of that name, or a 404 that lists the known ones.
    pub(crate) fn model(&self, name: &str) -> Result<&Arc<ServedModel>, ApiError> {
        self.models.iter().find(|m| m.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.models.iter().map(|m| m.name.as_str()).collect();
            let message = format!(
                "the model \"{}\" does not exist; known: {}",
                shortened(name),
                known.join(", ")
            );
            ApiError::client(StatusCode::NOT_FOUND, "model_not_found", message).with_param("model")
        })
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
