//! What every request can see: the engine, the tokenizer, who answers to which name, and the books.

use crate::adapters::{Registry, Resident};
use crate::caller::Caller;
use crate::connections::Tls;
use crate::digest::Digest;
use crate::error::ApiError;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::server::ServePlan;
use crate::store::Store;
use crate::structured::Grammars;
use engine::{EngineHandle, EngineStats};
use model::EmbeddingForm;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};
use text::{ChatTemplate, Tokenizer};

/// What runs a base and its adapters.
pub struct Host {
    /// Their engine.
    pub engine: EngineHandle,
    /// Their tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Whether they answer in text. An encoder, and a base that is here for that alone, only makes
    /// embeddings.
    pub generates: bool,
    /// How embeddings are made.
    pub embedding: EmbeddingForm,
    /// Values of a whole embedding.
    pub embedding_len: usize,
}

/// A name that requests can put into `model`: a base, or an adapter on one.
pub struct ServedModel {
    /// The name.
    pub name: String,
    /// Slot in the engine's adapter set; None is the base alone.
    pub adapter: Option<usize>,
    /// How its conversations become tokens: an adapter answers in the template it was trained in.
    pub template: ChatTemplate,
    /// Tokens that end its answers.
    pub stop_ids: Vec<u32>,
    /// Which weights answer. Usage and feedback are kept under it.
    pub digest: Digest,
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
    /// The first base's.
    pub(crate) engine: EngineHandle,
    /// The first base's.
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) grammars: Grammars,
    /// What each token reads as; made when the first request asks for log probabilities.
    token_bytes: OnceLock<Vec<Vec<u8>>>,
    pub(crate) models: Arc<Registry>,
}

impl State {
    pub(crate) fn new(
        plan: ServePlan,
        host: Host,
        models: Vec<ServedModel>,
        store: Store,
    ) -> Result<State, ServeError> {
        let (engine, tokenizer) = (host.engine.clone(), Arc::clone(&host.tokenizer));
        let models = Arc::new(Registry::new(&plan, host, models)?);
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
            grammars: Grammars::default(),
            token_bytes: OnceLock::new(),
            models,
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

    /// The model of that name, which must be one that answers in text; loaded from disk if need be. It
    /// stays in memory while the caller holds it. What the key may not name does not exist for it.
    pub(crate) async fn model(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Arc<Resident>, ApiError> {
        let model = self.any_model(caller, name).await?;
        model.must_generate()?;
        Ok(model)
    }

    /// [`State::model`], also where it only makes embeddings.
    pub(crate) async fn any_model(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Arc<Resident>, ApiError> {
        self.models.acquire(caller, name).await
    }

    /// [`State::any_model`]; without a name the base, for endpoints where `model` may be left out.
    pub(crate) async fn model_or_base(
        &self,
        caller: &Caller,
        name: Option<&str>,
    ) -> Result<Arc<Resident>, ApiError> {
        let base = self.models.base()?;
        self.any_model(caller, name.unwrap_or(&base.name)).await
    }

    /// What all engines hold and have done together.
    pub(crate) fn engine_stats(&self) -> EngineStats {
        self.models.hosts().iter().map(|host| host.engine.stats()).sum()
    }

    /// Whether every engine runs.
    pub(crate) fn engines_alive(&self) -> bool {
        self.models.hosts().iter().all(|host| host.engine.is_alive())
    }
}

/// Has something done that takes a while, off the reactor; `what` it is, should it panic.
pub(crate) async fn off_reactor<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| ApiError::internal(format!("{what}: {e}")))
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
