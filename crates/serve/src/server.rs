//! Listening, reading bodies, and stopping.

use crate::adapters::LoadAdapter;
use crate::caller::admit;
use crate::connections::{self, Tls, TlsFiles};
use crate::endpoints;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::state::{Host, ServeError, ServedModel, State};
use crate::store::{Prices, Store};
use axum::Router;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware;
use futures_util::StreamExt;
use model::Pooling;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How to serve, resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServePlan {
    /// Address to listen on. Not to be changed while the server runs, as `port` and `max_connections`.
    pub host: IpAddr,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Certificate and key of TLS; without them connections are plain.
    pub tls: Option<TlsFiles>,
    /// Largest request body, bytes.
    pub max_body_bytes: usize,
    /// A body must arrive within this.
    pub body_timeout_seconds: u64,
    /// Largest request line and headers together, bytes; at least 8192.
    pub max_header_bytes: usize,
    /// The headers of a request, the first or the next on a connection, must arrive within this: it
    /// also ends idle connections.
    pub header_timeout_seconds: u64,
    /// A connection whose client takes nothing for so long is closed.
    pub write_timeout_seconds: u64,
    /// Most connections open at a time; more wait to be accepted.
    pub max_connections: usize,
    /// An answer must be complete within this, waiting included.
    pub request_timeout_seconds: u64,
    /// Most choices of one request (`n` times the number of prompts).
    pub max_choices: usize,
    /// Web pages of these origins (such as `https://intranet.firm.eu`) may ask from a browser; none by
    /// default.
    pub cors_origins: Vec<String>,
    /// How long a shutdown waits for running answers.
    pub shutdown_seconds: u64,
    /// Folders below which requests may name adapters to load; empty: none may be loaded so.
    pub adapter_dirs: Vec<PathBuf>,
    /// Most adapters in memory; the others that are known wait on disk.
    pub max_loaded_adapters: usize,
    /// Most memory for adapters together, bytes.
    pub max_adapter_bytes: usize,
    /// How embeddings are made of hidden states, in place of what the model's folder says: of the base
    /// for embeddings where there is one, else of the base. Whoever builds the [`Host`] heeds it.
    pub pooling: Option<Pooling>,
    /// That model's embeddings may be cut (`dimensions`): it was made for that, though its config.json
    /// does not say so.
    pub matryoshka: bool,
    /// Whether adapters must carry a verdict of "worth it" that is about them, this base and this chat
    /// template. Whoever gives the server its loader heeds it.
    pub require_verdict: RequireVerdict,
    /// What tokens cost, for budgets; from `[cost]`, not from `[serve]`.
    #[serde(skip)]
    pub prices: Option<Prices>,
}

/// What happens to an adapter without a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequireVerdict {
    /// Nothing.
    #[default]
    Off,
    /// It is served; `/v1/models`, and the log at each loading, say what it lacks.
    Mark,
    /// It is not loaded.
    Refuse,
}

impl Default for ServePlan {
    /// This machine only, port 8000, bodies up to 2 MiB, answers up to ten minutes, up to 64 adapters in
    /// 1 GiB.
    fn default() -> ServePlan {
        ServePlan {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8000,
            tls: None,
            max_body_bytes: 2 << 20,
            body_timeout_seconds: 30,
            max_header_bytes: 32 << 10,
            header_timeout_seconds: 60,
            write_timeout_seconds: 60,
            max_connections: 1024,
            request_timeout_seconds: 600,
            max_choices: 64,
            cors_origins: Vec::new(),
            shutdown_seconds: 30,
            adapter_dirs: Vec::new(),
            max_loaded_adapters: 64,
            max_adapter_bytes: 1 << 30,
            pooling: None,
            matryoshka: false,
            require_verdict: RequireVerdict::Off,
            prices: None,
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

    /// Reads certificate and key, where there are any.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, ServeError> {
        self.tls.as_ref().map(TlsFiles::read).transpose()
    }

    fn check(&self) -> Result<(), ServeError> {
        let wrong = |field, reason: String| Err(ServeError::Plan { field, reason });
        // The least that the HTTP library takes.
        if self.max_header_bytes < 8192 {
            return wrong(
                "max_header_bytes",
                format!("{}, expected at least 8192", self.max_header_bytes),
            );
        }
        if self.max_connections == 0 {
            return wrong("max_connections", "0, expected at least 1".into());
        }
        for origin in &self.cors_origins {
            let plain = origin.parse::<HeaderValue>().is_ok_and(|_| {
                origin
                    .split_once("://")
                    .is_some_and(|(_, host)| !host.is_empty() && !host.contains('/'))
            });
            if !plain {
                let reason =
                    format!("\"{origin}\", expected an origin such as https://intranet.firm.eu");
                return wrong("cors_origins", reason);
            }
        }
        Ok(())
    }

    /// Which web pages may ask.
    fn cors(&self) -> CorsLayer {
        let origins = self.cors_origins.iter().filter_map(|origin| origin.parse().ok());
        CorsLayer::new()
            .allow_origin(AllowOrigin::list(origins))
            .allow_methods([Method::GET, Method::POST])
            .allow_headers([
                header::AUTHORIZATION,
                header::CONTENT_TYPE,
                HeaderName::from_static("x-api-key"),
            ])
            .expose_headers([HeaderName::from_static("x-request-id")])
    }
}

/// The server: a router over an engine.
pub struct Server {
    state: Arc<State>,
}

/// Gives a running server new settings.
#[derive(Clone)]
pub struct Reloader {
    state: Arc<State>,
}

impl Reloader {
    /// Puts `plan` in place of the running one, and reads certificates again. Address, port, origins,
    /// the number of connections and what concerns adapters and embeddings stay as they are; keys need
    /// no reload.
    ///
    /// # Errors
    /// [`ServeError`] when something in it cannot be; nothing has changed then.
    pub fn reload(&self, plan: ServePlan) -> Result<(), ServeError> {
        plan.check()?;
        self.state.reload(plan)
    }
}

impl Server {
    /// A server that answers for `models`, the base first. `host` runs them all; the slots in `models` are
    /// its engine's adapters. Keys and usage are in `store`.
    ///
    /// # Errors
    /// [`ServeError`] when a name is taken twice or unusable, there is no model, or the plan has
    /// something that cannot be.
    pub fn new(
        plan: ServePlan,
        host: Host,
        models: Vec<ServedModel>,
        store: Store,
    ) -> Result<Server, ServeError> {
        plan.check()?;
        Ok(Server { state: Arc::new(State::new(plan, host, models, store)?) })
    }

    /// For new settings while the server runs.
    pub fn reloader(&self) -> Reloader {
        Reloader { state: Arc::clone(&self.state) }
    }

    /// The same server, which can load adapters: `load` reads their folders.
    #[must_use]
    pub fn with_loader(self, load: Arc<LoadAdapter>) -> Server {
        self.state.models.set_loader(load);
        self
    }

    /// The same server, which also answers for `model`, a base for embeddings that `host` runs.
    ///
    /// # Errors
    /// [`ServeError`] when its name is taken or unusable.
    pub fn with_embedder(self, host: Host, model: ServedModel) -> Result<Server, ServeError> {
        self.state.models.add_base(host, model)?;
        Ok(self)
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
        let router = router
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            .layer(middleware::from_fn_with_state(Arc::clone(&self.state), admit))
            // Around it: whatever refuses a request, the client gets the shape that it knows.
            .layer(middleware::from_fn(endpoints::shape_errors))
            .with_state(Arc::clone(&self.state));
        let plan = self.state.plan();
        // Outside the keys: a browser asks whether it may ask before it sends one.
        if plan.cors_origins.is_empty() { router } else { router.layer(plan.cors()) }
    }

    /// Serves until `shutdown` resolves. Then running answers have the plan's time to finish, newcomers
    /// are told to go elsewhere, and what is left is cancelled. The engine has stopped and the books
    /// are written when this returns.
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn run(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let state = Arc::clone(&self.state);
        let sweeping = tokio::spawn(sweep_daily(state.store.clone()));
        let connections = connections::serve(listener, self.router(), Arc::clone(&state), shutdown);
        connections.await;
        sweeping.abort();
        if let Err(e) = state.store.flush().await {
            tracing::error!("closing the books: {e}");
        }
        Ok(())
    }
}

/// Deletes contents whose time is over, now and once a day.
async fn sweep_daily(store: Store) {
    let mut days = tokio::time::interval(Duration::from_secs(86_400));
    loop {
        days.tick().await;
        if let Err(e) = store.sweep().await {
            tracing::error!("deleting contents whose time is over: {e}");
        }
    }
}

/// A request's JSON body, still to be read field by field.
pub(crate) struct Body(pub(crate) Fields);

impl FromRequest<Arc<State>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<State>) -> Result<Body, ApiError> {
        check_content_type(&request)?;
        let patience = Duration::from_secs(state.plan().body_timeout_seconds);
        let read = read_body(request, state.plan().max_body_bytes);
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
