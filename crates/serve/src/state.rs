//! What every request can see: the engine, the tokenizer, and who answers to which name.

use crate::adapters::{Registry, Resident};
use crate::error::ApiError;
use crate::server::ServePlan;
use crate::structured::Grammars;
use engine::EngineHandle;
use std::path::PathBuf;
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
    #[error("\"{0}\" cannot be a model's name; expected 1 to 200 bytes without control characters")]
    BadName(String),
    /// A folder for adapters that is none.
    #[error("{}: expected a folder that holds adapters", .0.display())]
    AdapterDir(PathBuf),
    /// An adapter that cannot be served.
    #[error("the adapter \"{name}\": {reason}")]
    Adapter {
        /// Its name.
        name: String,
        /// Why not.
        reason: String,
    },
}

/// Shared by all handlers.
pub(crate) struct State {
    pub(crate) plan: ServePlan,
    pub(crate) engine: EngineHandle,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) grammars: Grammars,
    /// What each token reads as; made when the first request asks for log probabilities.
    token_bytes: OnceLock<Vec<Vec<u8>>>,
    pub(crate) models: Arc<Registry>,
}

impl State {
    pub(crate) fn new(
        plan: ServePlan,
        engine: EngineHandle,
        tokenizer: Arc<Tokenizer>,
        models: Vec<ServedModel>,
    ) -> Result<State, ServeError> {
        let models = Arc::new(Registry::new(&plan, engine.clone(), models)?);
        let (grammars, token_bytes) = (Grammars::default(), OnceLock::new());
        Ok(State { plan, engine, tokenizer, grammars, token_bytes, models })
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

    /// The model of that name, loaded from disk if need be; it stays in memory while the caller
    /// holds it.
    pub(crate) async fn model(&self, name: &str) -> Result<Arc<Resident>, ApiError> {
        self.models.acquire(name).await
    }

    /// [`State::model`]; without a name the base, for endpoints where `model` may be left out.
    pub(crate) async fn model_or_base(
        &self,
        name: Option<&str>,
    ) -> Result<Arc<Resident>, ApiError> {
        match name {
            Some(name) => self.model(name).await,
            None => self.models.base(),
        }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
