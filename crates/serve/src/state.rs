//! What every request can see: the engine, the tokenizer, who answers to which name, and the books.

use crate::caller::Caller;
use crate::connections::Tls;
use crate::error::ApiError;
use crate::fields::shortened;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::server::ServePlan;
use crate::store::Store;
use axum::http::StatusCode;
use engine::EngineHandle;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
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
    /// Which weights answer: SHA-256 in hexadecimal. Usage and feedback are kept under it.
    pub digest: String,
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
    /// A certificate or its key cannot be used.
    #[error("{path}: {reason}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting that cannot be.
    #[error("{field}: {reason}")]
    Plan {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Shared by all handlers.
pub(crate) struct State {
    /// Changes when the server is told to read its settings again.
    plan: RwLock<Arc<ServePlan>>,
    /// What new connections are greeted with.
    tls: RwLock<Option<Tls>>,
    pub(crate) store: Store,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    /// Whether running answers are only being finished.
    draining: AtomicBool,
    pub(crate) engine: EngineHandle,
    pub(crate) tokenizer: Arc<Tokenizer>,
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
        store: Store,
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
        let tls = plan.tls()?;
        Ok(State {
            plan: RwLock::new(Arc::new(plan)),
            tls: RwLock::new(tls),
            store,
            limits: Limits::default(),
            metrics: Metrics::new(),
            draining: AtomicBool::new(false),
            engine,
            tokenizer,
            models,
            created: unix_seconds(),
        })
    }

    /// The settings as they are now.
    pub(crate) fn plan(&self) -> Arc<ServePlan> {
        Arc::clone(&self.plan.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How connections are encrypted now, if at all.
    pub(crate) fn tls(&self) -> Option<Tls> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes new settings, all or none; certificates are read again.
    pub(crate) fn reload(&self, plan: ServePlan) -> Result<(), ServeError> {
        let tls = plan.tls()?;
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(plan);
        Ok(())
    }

    /// From now on only what runs is finished.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The models that the caller may name, in order.
    pub(crate) fn visible<'a>(
        &'a self,
        caller: &'a Caller,
    ) -> impl Iterator<Item = &'a Arc<ServedModel>> {
        self.models.iter().filter(|model| caller.may_name(&model.name))
    }

    /// The model of that name, or a 404 that lists the known ones. What the caller may not name does
    /// not exist for it.
    pub(crate) fn model(&self, caller: &Caller, name: &str) -> Result<&Arc<ServedModel>, ApiError> {
        let found = self.models.iter().find(|m| m.name == name);
        found.filter(|_| caller.may_name(name)).ok_or_else(|| {
            let known: Vec<&str> = self.visible(caller).map(|m| m.name.as_str()).collect();
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
