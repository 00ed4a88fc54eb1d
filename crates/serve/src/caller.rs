//! Who asks: every request passes [`admit`], which finds its key, holds it to its rights and limits,
//! and keeps the books until the last byte has left.

use crate::digest::Digest;
use crate::endpoints::{self, Endpoint, Scope};
use crate::error::ApiError;
use crate::generation::{Piece, Usage};
use crate::limits::check_budget;
use crate::metrics::Ended;
use crate::state::{ServedModel, State as Shared, unix_seconds};
use crate::store::{Answer, Contents, Database, Identity, Key, StoreError, UsageRecord};
use crate::traces::RequestSpan;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use engine::{Event, Ticket};
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The one who asks, and the books of this request. Clones share them; when the last one goes and
/// nothing has been written down, the client has gone away.
#[derive(Clone)]
pub(crate) struct Caller {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<Shared>,
    /// None while no key exists.
    key: Option<Key>,
    /// 32 hexadecimal digits.
    id: String,
    /// The path in the table, or `other`.
    endpoint: &'static str,
    arrived: Instant,
    span: RequestSpan,
    first_token: OnceLock<Instant>,
    /// Tokens that the engine has generated, over all choices.
    generated: AtomicUsize,
    /// Tokens of the prompts that were known already.
    cached: AtomicUsize,
    entry: Mutex<Entry>,
}

/// What is to be written down.
#[derive(Default)]
struct Entry {
    /// Name and digest, from when the engine is asked.
    model: Option<(String, Digest)>,
    prompt_tokens: usize,
    /// The answer's tokens as the client is told them; None until it is complete.
    completion_tokens: Option<usize>,
    /// The tickets of the choices, which know when each first ran.
    started: Vec<Arc<OnceLock<Instant>>>,
    submitted: Option<Instant>,
    contents: Option<Contents>,
    /// Whether it has been written down.
    settled: bool,
}

/// The middleware around all routes, the one for unknown paths included: no key, no answer.
pub(crate) async fn admit(
    State(state): State<Arc<Shared>>,
    mut request: Request,
    next: Next,
) -> Response {
    let arrived = Instant::now();
    let id = format!("{:032x}", rand::random::<u128>());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let endpoint = matched.and_then(|path| endpoints::find(path, &method));
    let name = endpoint.map_or("other", |e| e.path);
    let span = RequestSpan::start(request.headers(), &method, name, &id);

    let admitted = check_head(&request, state.plan().max_header_bytes)
        .and_then(|()| identify(&state, request.headers()))
        .and_then(|key| check_rights(&state, key, endpoint, &method));
    let (mut response, key) = match admitted {
        Err(refused) => (refused.into_response(), None),
        Ok(key) => {
            let caller = Caller::new(&state, key.clone(), id.clone(), name, arrived, span.clone());
            let limited = match (&key, method == Method::POST) {
                (Some(key), true) => state.limits.request(key, arrived),
                _ => Ok(()),
            };
            let response = match limited {
                Err(refused) => refused.into_response(),
                Ok(()) => {
                    request.extensions_mut().insert(caller.clone());
                    next.run(request).await
                }
            };
            // Successes and streams are written down where they end.
            let error = response.extensions().get::<ApiError>().map(ApiError::outcome);
            if let Some(outcome) = error {
                caller.finish(outcome).await;
            }
            (response, key)
        }
    };

    let status = response.status();
    state.metrics.answered(name, status);
    span.answered(status);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(&id) {
        headers.insert("x-request-id", id);
    }
    if let Some(key) = &key {
        state.limits.headers(key, Instant::now(), headers);
    }
    let (ms, path) = (arrived.elapsed().as_millis() as u64, crate::fields::shortened(&path));
    let key = key.as_ref().map_or("", |k| k.prefix.as_str());
    tracing::info!(request_id = id, %method, path, status = status.as_u16(), ms, key, "answered");
    response
}

/// Holds the request line and headers to their bound. What reads them has the same one, but looks at it only
/// where a piece of them has arrived without the end.
fn check_head(request: &Request, limit: usize) -> Result<(), ApiError> {
    // What stands around the parts: spaces, colon, version and line ends.
    const LINE: usize = 12;
    const FIELD: usize = 4;
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let fields =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD);
    let found = request.method().as_str().len() + path + LINE + fields.sum::<usize>();
    if found <= limit {
        return Ok(());
    }
    let message = format!("request line and headers have {found} bytes; expected at most {limit}");
    let status = axum::http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    Err(ApiError::client(status, "headers_too_large", message))
}

/// The key that a request brings, in force; None while no key exists at all.
fn identify(state: &Shared, headers: &HeaderMap) -> Result<Option<Key>, ApiError> {
    let read = state.store.read(|database| {
        if !database.has_keys()? {
            return Ok(None);
        }
        let presented = presented(headers);
        presented.map(|key| database.identify(key, unix_seconds())).transpose().map(Some)
    });
    // Whoever cannot be looked up is not let in.
    let Some(found) = read.map_err(|e| ApiError::store(&e))? else { return Ok(None) };
    match found {
        Some(Identity::Valid(key)) => Ok(Some(key)),
        None => Err(ApiError::unauthorized(
            "this server asks for a key. hint: send the header Authorization: Bearer mk-...",
        )),
        Some(Identity::Unknown) => {
            Err(ApiError::unauthorized("this key is not known here. hint: `metier keys list`"))
        }
        Some(Identity::Refused(why)) => {
            Err(ApiError::unauthorized(format!("this key is {why}. hint: ask for a new one")))
        }
    }
}

/// `Authorization: Bearer KEY` (OpenAI's clients) or `x-api-key: KEY` (Anthropic's).
fn presented(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok().map(str::trim))
}

/// Holds a key to the route's scope, and everybody to a shutdown.
fn check_rights(
    state: &Shared,
    key: Option<Key>,
    endpoint: Option<&Endpoint>,
    method: &Method,
) -> Result<Option<Key>, ApiError> {
    if let (Some(key), Some(Endpoint { scope: Scope::Admin, path, .. })) = (&key, endpoint)
        && !key.admin
    {
        return Err(ApiError::forbidden(format!(
            "{path} asks for an admin key. hint: `metier keys create --admin`"
        )));
    }
    if state.is_draining() && method == Method::POST {
        return Err(ApiError::stopped());
    }
    Ok(key)
}

impl FromRequestParts<Arc<Shared>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Shared>) -> Result<Caller, ApiError> {
        // Every request has passed `admit`; one that has not is nobody's.
        let caller = parts.extensions.get::<Caller>().cloned();
        caller.ok_or_else(|| ApiError::internal("a request that nobody has admitted"))
    }
}

impl Caller {
    fn new(
        state: &Arc<Shared>,
        key: Option<Key>,
        id: String,
        endpoint: &'static str,
        arrived: Instant,
        span: RequestSpan,
    ) -> Caller {
        let inner = Inner {
            state: Arc::clone(state),
            key,
            id,
            endpoint,
            arrived,
            span,
            first_token: OnceLock::new(),
            generated: AtomicUsize::new(0),
            cached: AtomicUsize::new(0),
            entry: Mutex::new(Entry::default()),
        };
        Caller { inner: Arc::new(inner) }
    }

    /// Number of the caller's key; None while no key exists.
    pub(crate) fn key_id(&self) -> Option<i64> {
        self.inner.key.as_ref().map(|key| key.id)
    }

    /// Whose share of the engine the request takes: each key has its own.
    pub(crate) fn tenant(&self) -> u64 {
        self.key_id().map_or(0, i64::cast_unsigned)
    }

    /// For how many days the caller's key has contents kept, if at all.
    pub(crate) fn retention_days(&self) -> Option<u32> {
        self.inner.key.as_ref()?.retention_days
    }

    /// Whether the caller may name this model.
    pub(crate) fn may_name(&self, model: &str) -> bool {
        self.inner.key.as_ref().is_none_or(|key| key.may_name(model))
    }

    /// The id of the answer, which is that of the request behind a mark: feedback can name either.
    pub(crate) fn answer_id(&self, mark: &str) -> String {
        format!("{mark}{}", self.inner.id)
    }

    /// Notes what was asked, where the key has contents kept.
    pub(crate) fn asked(&self, asked: impl FnOnce() -> Value) {
        if let Some(days) = self.retention_days() {
            let delete_after = unix_seconds() + u64::from(days) * 86_400;
            let contents = Contents { asked: asked(), answers: Vec::new(), delete_after };
            self.entry().contents = Some(contents);
        }
    }

    /// Opens the books for a request to `model`; `prompt_tokens` count against the key's limits.
    ///
    /// # Errors
    /// 429 when the key has used up its minute or its month.
    pub(crate) fn begin(&self, model: &ServedModel, prompt_tokens: usize) -> Result<(), ApiError> {
        if let Some(key) = &self.inner.key {
            let state = &self.inner.state;
            check_budget(key, state.plan().prices.as_ref(), &state.store, unix_seconds())?;
            state.limits.prompt(key, prompt_tokens, Instant::now())?;
        }
        let mut entry = self.entry();
        entry.model = Some((model.name.clone(), model.digest.clone()));
        entry.prompt_tokens = prompt_tokens;
        entry.submitted = Some(Instant::now());
        Ok(())
    }

    /// Notes a choice that the engine has taken.
    pub(crate) fn submitted(&self, ticket: &Ticket) {
        self.entry().started.push(ticket.started());
    }

    /// Notes an event of the engine, on its thread; `first` is whether it concerns the first choice of
    /// a prompt, which is the one that the prompt counts for. False when the request has had its time.
    pub(crate) fn sees(&self, event: &Event, first: bool, deadline: Instant) -> bool {
        match event {
            Event::Token { .. } => {
                let now = Instant::now();
                self.inner.first_token.get_or_init(|| now);
                self.inner.generated.fetch_add(1, Ordering::Relaxed);
                return now < deadline;
            }
            Event::Started { cached_tokens, .. } if first => {
                self.inner.cached.fetch_add(*cached_tokens, Ordering::Relaxed);
            }
            _ => {}
        }
        true
    }

    /// Notes a piece of the answer, where contents are kept.
    pub(crate) fn answered(&self, piece: &Piece) {
        if self.retention_days().is_none() {
            return;
        }
        if let Some(contents) = &mut self.entry().contents {
            if contents.answers.len() <= piece.index {
                contents.answers.resize(piece.index + 1, Answer::default());
            }
            let answer = &mut contents.answers[piece.index];
            answer.text.push_str(&piece.text);
            answer.finish_reason = piece.end.as_ref().map(|end| end.finish_reason.into());
        }
    }

    /// Notes what a complete answer took.
    pub(crate) fn complete(&self, usage: Usage) {
        self.entry().completion_tokens = Some(usage.completion_tokens);
    }

    /// Closes the books with `outcome` (`ok`, or the code of an error) and waits until they are
    /// committed: whoever got a whole answer stands in them. Does nothing the second time.
    pub(crate) async fn finish(&self, outcome: &str) {
        let Some((record, contents)) = self.inner.settle(outcome) else { return };
        // The answer is there, and withholding it would help nobody; the loss is logged and counted,
        // and the server is not ready until a commit goes well again.
        _ = self.inner.state.store.write(move |database| write(database, &record, contents)).await;
    }

    fn entry(&self) -> MutexGuard<'_, Entry> {
        self.inner.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(
    database: &Database,
    record: &UsageRecord,
    contents: Option<Contents>,
) -> Result<(), StoreError> {
    database.insert_usage(record)?;
    contents.map_or(Ok(()), |said| database.insert_contents(&record.request_id, &said))
}

impl Inner {
    /// What to write down, once, when the request has reached a model; metrics and limits have it
    /// then.
    fn settle(&self, outcome: &str) -> Option<(UsageRecord, Option<Contents>)> {
        let mut entry = self.entry.lock().unwrap_or_else(PoisonError::into_inner);
        let (model, digest) = entry.model.clone()?;
        if std::mem::replace(&mut entry.settled, true) {
            return None;
        }
        let generated = self.generated.load(Ordering::Relaxed);
        let completion_tokens = entry.completion_tokens.unwrap_or(generated);
        let started = entry.started.iter().filter_map(|started| started.get().copied()).min();
        let queue = match (entry.submitted, started) {
            (Some(submitted), Some(started)) => Some(started.saturating_duration_since(submitted)),
            _ => None,
        };
        let since = |at: Instant| at.saturating_duration_since(self.arrived);
        let record = UsageRecord {
            request_id: self.id.clone(),
            key_id: self.key.as_ref().map(|key| key.id),
            model,
            digest,
            endpoint: self.endpoint,
            prompt_tokens: entry.prompt_tokens,
            cached_tokens: self.cached.load(Ordering::Relaxed),
            completion_tokens,
            queue,
            first_token: self.first_token.get().copied().map(since),
            total: since(Instant::now()),
            outcome: outcome.to_owned(),
            time: unix_seconds(),
        };
        if let Some(key) = &self.key {
            self.state.limits.answer(key, completion_tokens, Instant::now());
        }
        let per_token = record.first_token.filter(|_| completion_tokens > 1).map(|first| {
            record.total.saturating_sub(first)
                / (completion_tokens - 1).try_into().unwrap_or(u32::MAX)
        });
        self.state.metrics.ended(&Ended { record: &record, per_token });
        self.span.ended(&record);
        tracing::info!(
            request_id = record.request_id,
            adapter = record.model,
            outcome = record.outcome,
            prompt_tokens = record.prompt_tokens,
            completion_tokens = record.completion_tokens,
            ms = record.total.as_millis() as u64,
            "ended"
        );
        Some((record, entry.contents.take().filter(|said| !said.answers.is_empty())))
    }
}

impl Drop for Inner {
    /// Nobody is left to answer: the client has gone away.
    fn drop(&mut self) {
        if let Some((record, contents)) = self.settle("cancelled") {
            self.state.store.write_unwatched(move |database| write(database, &record, contents));
        }
    }
}

/// When so many seconds of a plan are over; more than a year counts as one, so that the sum exists.
pub(crate) fn deadline(seconds: u64) -> Instant {
    const YEAR: u64 = 366 * 86_400;
    Instant::now() + Duration::from_secs(seconds.min(YEAR))
}
