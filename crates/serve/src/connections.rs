//! Connections: as many as the plan allows, encrypted where there is a certificate, and given up when
//! their clients send or take nothing.

use crate::state::{ServeError, State};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

/// Files of TLS, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, and behind it those that vouch for it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Greets connections with a certificate.
#[derive(Clone)]
pub(crate) struct Tls(TlsAcceptor);

impl TlsFiles {
    pub(crate) fn read(&self) -> Result<Tls, ServeError> {
        let wrong = |path: &Path, reason: String| ServeError::Tls { path: path.to_owned(), reason };
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.cert)
            .and_then(Iterator::collect)
            .map_err(|e| wrong(&self.cert, e.to_string()))?;
        if certificates.is_empty() {
            let reason = "no certificate in it; expected PEM with BEGIN CERTIFICATE";
            return Err(wrong(&self.cert, reason.into()));
        }
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|e| wrong(&self.key, e.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
            .map_err(|e| {
                wrong(&self.cert, format!("does not work with {}: {e}", self.key.display()))
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(TlsAcceptor::from(Arc::new(config))))
    }
}

/// Accepts connections until `shutdown` resolves, then lets what runs finish within the plan's time and
/// cancels the rest. The engine has stopped and no connection is open when this returns.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    state: Arc<State>,
    shutdown: impl Future<Output = ()>,
) {
    let plan = state.plan();
    let door = Door { listener, places: Arc::new(Semaphore::new(plan.max_connections)) };
    let mut open = JoinSet::new();
    let graceful = GracefulShutdown::new();
    let let_in = |open: &mut JoinSet<()>, (stream, place), watcher: Option<Watcher>| {
        open.spawn(connection(stream, place, router.clone(), Arc::clone(&state), watcher));
    };
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            newcomer = door.next() => let_in(&mut open, newcomer, Some(graceful.watcher())),
            Some(_) = open.join_next() => {}
        }
    }
    state.drain();
    let finished = graceful.shutdown();
    let patience = tokio::time::sleep(Duration::from_secs(plan.shutdown_seconds));
    tokio::pin!(finished, patience);
    let complete = loop {
        tokio::select! {
            () = &mut finished => break true,
            () = &mut patience => break false,
            // Whoever spreads the load asks /ready, and is told to go elsewhere.
            newcomer = door.next() => let_in(&mut open, newcomer, None),
            Some(_) = open.join_next() => {}
        }
    };
    drop(door);
    // Waits for the engines' threads, at most one step each.
    let hosts = state.models.hosts();
    let stopped = move || hosts.iter().for_each(|host| host.engine.shutdown());
    if let Err(e) = tokio::task::spawn_blocking(stopped).await {
        tracing::error!("stopping the engine: {e}");
    }
    if !complete {
        // The answers that were cut off have been told so; give them a moment to leave.
        let left = tokio::time::timeout(Duration::from_secs(1), finished).await;
        tracing::warn!(
            "running answers were cancelled after {} s{}",
            plan.shutdown_seconds,
            if left.is_err() { "; some connections were still open" } else { "" }
        );
    }
    open.shutdown().await;
}

struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Door {
    /// The next connection, when there is a place for it. May be dropped and asked again.
    async fn next(&self) -> (TcpStream, OwnedSemaphorePermit) {
        loop {
            let place = Arc::clone(&self.places).acquire_owned().await;
            // The semaphore is never closed.
            let Ok(place) = place else { std::future::pending().await };
            match self.listener.accept().await {
                Ok((stream, _)) => return (stream, place),
                Err(e) if of_one_connection(&e) => {}
                Err(e) => {
                    // Out of file descriptors, as a rule: others may close some.
                    tracing::error!("accepting a connection: {e}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Whether an error of `accept` concerns only a client that has gone already.
fn of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Serves one connection to its end. With a watcher, the end comes after the answer that runs when the
/// server is told to stop.
async fn connection(
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    router: Router,
    state: Arc<State>,
    watcher: Option<Watcher>,
) {
    let _counted = Counted::new(&state);
    let plan = state.plan();
    // Tokens are to leave as they come.
    _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(Duration::from_secs(plan.write_timeout_seconds.max(1))));
    let stream = Box::pin(stream);
    let patience = Duration::from_secs(plan.header_timeout_seconds.max(1));
    let served = match state.tls() {
        None => http(stream, router, &state, patience, watcher).await,
        Some(Tls(acceptor)) => {
            match tokio::time::timeout(patience, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => http(Box::pin(stream), router, &state, patience, watcher).await,
                Ok(Err(e)) => return tracing::debug!("no TLS was agreed on: {e}"),
                Err(_) => return tracing::debug!("no TLS was agreed on in time"),
            }
        }
    };
    if let Err(e) = served {
        tracing::debug!("a connection ended early: {e}");
    }
}

async fn http<S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: Pin<Box<S>>,
    router: Router,
    state: &State,
    patience: Duration,
    watcher: Option<Watcher>,
) -> hyper::Result<()> {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(state.plan().max_header_bytes)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match watcher {
        Some(watcher) => watcher.watch(connection).await,
        None => connection.await,
    }
}

/// Counts a connection while it lives, however it ends.
struct Counted<'a>(&'a State);

impl<'a> Counted<'a> {
    fn new(state: &'a State) -> Counted<'a> {
        state.metrics.connections.inc();
        Counted(state)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.metrics.connections.dec();
    }
}
