//! Listening, reading bodies, and stopping.

use crate::adapters::LoadAdapter;
use crate::endpoints;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::state::{ServeError, ServedModel, State};
use axum::Router;
use axum::extract::{FromRequest, Request};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use engine::EngineHandle;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use text::Tokenizer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// How to serve, resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServePlan {
    /// Address to listen on. There is no authentication, so anything but this machine's own
    /// address belongs behind a gateway.
    pub host: IpAddr,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Largest request body, bytes.
    pub max_body_bytes: usize,
    /// A body must arrive within this.
    pub body_timeout_seconds: u64,
    /// Most choices of one request (`n` times the number of prompts).
    pub max_choices: usize,
    /// How long a shutdown waits for running answers.
    pub shutdown_seconds: u64,
    /// Folders below which requests may name adapters to load; empty: none may be loaded so.
    pub adapter_dirs: Vec<PathBuf>,
    /// Most adapters in memory; the others that are known wait on disk.
    pub max_loaded_adapters: usize,
    /// Most memory for adapters together, bytes.
    pub max_adapter_bytes: usize,
}

impl Default for ServePlan {
    /// This machine only, port 8080, bodies up to 2 MiB, up to 64 adapters in 1 GiB.
    fn default() -> ServePlan {
        ServePlan {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8080,
            max_body_bytes: 2 << 20,
            body_timeout_seconds: 30,
            max_choices: 64,
            shutdown_seconds: 30,
            adapter_dirs: Vec::new(),
            max_loaded_adapters: 64,
            max_adapter_bytes: 1 << 30,
        }
    }
}

impl ServePlan {
    /// Opens the plan's address.
    ///
    /// # Errors
    /// When it is taken or not allowed.
    pub async fn bind(&self) -> std::io::Result<TcpListener> {
        TcpListener::bind((self.host, self.port)).await
    }
}

/// The server: a router over an engine.
pub struct Server {
    state: Arc<State>,
}

impl Server {
    /// A server that answers for `models`, the base first. `engine` runs them all; the slots in
    /// `models` are its adapters.
    ///
    /// # Errors
    /// [`ServeError`] when a name is taken twice or unusable, or there is no model.
    pub fn new(
        plan: ServePlan,
        engine: EngineHandle,
        tokenizer: Arc<Tokenizer>,
        models: Vec<ServedModel>,
    ) -> Result<Server, ServeError> {
        Ok(Server { state: Arc::new(State::new(plan, engine, tokenizer, models)?) })
    }

    /// The same server, which can load adapters: `load` reads their folders.
    #[must_use]
    pub fn with_loader(self, load: Arc<LoadAdapter>) -> Server {
        self.state.models.set_loader(load);
        self
    }

    /// Loads an adapter from a folder of the operator's choice, and answers for it as `name`. It may
    /// give way to others later and be read again, unless it is pinned.
    ///
    /// # Errors
    /// [`ServeError::Adapter`] with the reason.
    pub async fn add_adapter(
        &self,
        name: &str,
        folder: &Path,
        pinned: bool,
    ) -> Result<(), ServeError> {
        let added = self.state.models.add_trusted(name.to_owned(), folder.to_owned(), pinned);
        added.await.map_err(|error| ServeError::Adapter {
            name: name.to_owned(),
            reason: error.message().to_owned(),
        })
    }

    /// All endpoints.
    pub fn router(&self) -> Router {
        let mut router = Router::new();
        for endpoint in endpoints::ALL {
            router = router.route(endpoint.path, (endpoint.route)());
        }
        router
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            .layer(middleware::from_fn(log))
            // Outermost: whatever refuses a request, the client gets the shape that it knows.
            .layer(middleware::from_fn(endpoints::shape_errors))
            .with_state(Arc::clone(&self.state))
    }

    /// Serves until `shutdown` resolves. Then no new connection is accepted, running answers have
    /// the plan's time to finish, and what is left is cancelled. The engine has stopped when this
    /// returns.
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn run(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let (stopping, stopped) = oneshot::channel();
        let signal = async move {
            shutdown.await;
            _ = stopping.send(());
        };
        let server = axum::serve(listener, self.router()).with_graceful_shutdown(signal);
        let server = std::future::IntoFuture::into_future(server);
        tokio::pin!(server);
        let patience = Duration::from_secs(self.state.plan.shutdown_seconds);
        let timed_out = async {
            if stopped.await.is_err() {
                // The server ended by itself.
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(patience).await;
        };
        let finished = tokio::select! {
            result = &mut server => Some(result),
            () = timed_out => None,
        };
        // Waits for the engine's thread, at most one step.
        let engine = self.state.engine.clone();
        if let Err(e) = tokio::task::spawn_blocking(move || engine.shutdown()).await {
            tracing::error!("stopping the engine: {e}");
        }
        match finished {
            Some(result) => result,
            None => {
                // The answers that were cut off have been told so; give them a moment to leave.
                let left = tokio::time::timeout(Duration::from_secs(1), server).await;
                tracing::warn!(
                    "running answers were cancelled after {} s{}",
                    patience.as_secs(),
                    if left.is_err() { "; some connections were still open" } else { "" }
                );
                Ok(())
            }
        }
    }
}

/// A request's JSON body, still to be read field by field.
pub(crate) struct Body(pub(crate) Fields);

impl FromRequest<Arc<State>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<State>) -> Result<Body, ApiError> {
        check_content_type(&request)?;
        let patience = Duration::from_secs(state.plan.body_timeout_seconds);
        let read = read_body(request, state.plan.max_body_bytes);
        let bytes = tokio::time::timeout(patience, read).await.map_err(|_| {
            let message = format!("the body did not arrive within {} s", patience.as_secs());
            ApiError::client(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
        })??;
        Fields::parse(&bytes).map(Body)
    }
}

/// Only JSON: a web page in the user's browser can send other types to this machine without
/// asking first, but not this one.
fn check_content_type(request: &Request) -> Result<(), ApiError> {
    let found = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let essence = found.unwrap_or("").split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!(
        "the content type is {}; expected application/json. hint: send the header Content-Type: application/json",
        found.map_or("missing".into(), |f| format!("\"{}\"", crate::fields::shortened(f)))
    );
    Err(ApiError::client(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}

/// At most `limit` bytes. A longer body is read on for a while and thrown away, because a client
/// that is still sending does not see an answer.
async fn read_body(request: Request, limit: usize) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        let message =
            format!("the body is larger than {limit} bytes. hint: shorten the conversation");
        ApiError::client(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let mut bytes = Vec::new();
    let mut total = 0usize;
    let mut frames = request.into_body().into_data_stream();
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(|e| {
            ApiError::invalid(format!("the body could not be read to its end: {e}"))
        })?;
        total = total.saturating_add(frame.len());
        if total <= limit {
            bytes.extend_from_slice(&frame);
        } else {
            bytes = Vec::new();
            if total > limit.saturating_mul(16) {
                break;
            }
        }
    }
    if total > limit { Err(too_large()) } else { Ok(bytes) }
}

async fn not_found(method: Method, uri: Uri) -> ApiError {
    let paths: Vec<&str> = endpoints::ALL.iter().map(|e| e.path).collect();
    let message = format!(
        "no endpoint {method} {}; there are: {}",
        crate::fields::shortened(uri.path()),
        paths.join(", ")
    );
    ApiError::client(StatusCode::NOT_FOUND, "not_found", message)
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    let expected = endpoints::ALL.iter().find(|e| e.path == path).map_or("GET", |e| e.method);
    let message = format!("{path} does not take {method}; expected {expected}");
    ApiError::client(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// One line for each answered request; nothing of its content.
async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let start = Instant::now();
    let response = next.run(request).await;
    let ms = start.elapsed().as_millis() as u64;
    tracing::info!(%method, path, status = response.status().as_u16(), ms, "answered");
    response
}
