//! The one error body of all endpoints, in OpenAI's shape.

use crate::store::StoreError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::EngineError;
use serde::Serialize;
use std::time::Duration;
use text::TextError;

/// An answer that is not a success: `{"error": {message, type, param, code}}`.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    body: ErrorDetail,
    retry: Retry,
}

/// What a refused client is told about trying again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Retry {
    /// Nothing: the status says enough.
    Unsaid,
    /// After so many seconds (`Retry-After`).
    After(u64),
    /// Not at all: OpenAI's clients repeat some statuses by themselves unless `x-should-retry` says no.
    Never,
}

/// What OpenAI's clients read from an error.
#[derive(Clone, Debug, Serialize)]
struct ErrorDetail {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field at fault, as `messages[0].content`.
    param: Option<String>,
    code: Option<&'static str>,
}

/// The error body as it goes over the wire.
#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a ErrorDetail,
}

/// Seconds after which a client refused for a full queue may try again: a few steps of the engine.
const BUSY_SECONDS: u64 = 1;

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> ApiError {
        let body = ErrorDetail { message: message.into(), kind, param: None, code };
        ApiError { status, body, retry: Retry::Unsaid }
    }

    fn with_retry(self, retry: Retry) -> ApiError {
        ApiError { retry, ..self }
    }

    /// 401: no key, or none that counts.
    pub(crate) fn unauthorized(message: impl Into<String>) -> ApiError {
        Self::client(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    /// 403: the key does not open this.
    pub(crate) fn forbidden(message: impl Into<String>) -> ApiError {
        Self::client(StatusCode::FORBIDDEN, "insufficient_permissions", message)
    }

    /// 429: too many `kind` ("requests", "tokens") in a minute; `wait` until there is room again, None
    /// when there never will be.
    pub(crate) fn rate_limited(
        kind: &'static str,
        message: String,
        wait: Option<Duration>,
    ) -> ApiError {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let retry =
            wait.map_or(Retry::Never, |w| Retry::After((w.as_secs_f64().ceil() as u64).max(1)));
        Self::new(status, kind, Some("rate_limit_exceeded"), message).with_retry(retry)
    }

    /// 429: the month's money is spent.
    pub(crate) fn budget_spent(message: String) -> ApiError {
        let code = "insufficient_quota";
        Self::new(StatusCode::TOO_MANY_REQUESTS, code, Some(code), message).with_retry(Retry::Never)
    }

    /// 403: a budget cannot be kept without prices.
    pub(crate) fn budget_without_prices() -> ApiError {
        let message = "this key has a monthly budget, but the server was given no prices. hint: \
                       start it with a config file that has [cost]";
        Self::client(StatusCode::FORBIDDEN, "budget_without_prices", message)
    }

    /// 504: the answer took longer than the server allows.
    pub(crate) fn timed_out(seconds: u64) -> ApiError {
        let message = format!(
            "the answer was not complete within {seconds} s. hint: ask for less (fewer tokens, or inputs)"
        );
        let status = StatusCode::GATEWAY_TIMEOUT;
        Self::new(status, "server_error", Some("request_timeout"), message).with_retry(Retry::Never)
    }

    /// 503: keys or usage cannot be read or written.
    pub(crate) fn store(error: &StoreError) -> ApiError {
        tracing::error!("{error}");
        let message = "keys and usage cannot be looked up or kept at the moment";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("store_failed"), message)
    }

    /// What the books call it: the code, or the type where there is none.
    pub(crate) fn outcome(&self) -> &'static str {
        self.body.code.unwrap_or(self.body.kind)
    }

    /// 400: the request is at fault.
    pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    /// 400: this field is at fault.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        Self::invalid(message).with_param(param)
    }

    /// Another status of the 4xx group.
    pub(crate) fn client(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
    ) -> ApiError {
        Self::new(status, "invalid_request_error", Some(code), message)
    }

    /// 500: the server is at fault.
    pub(crate) fn internal(message: impl Into<String>) -> ApiError {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message)
    }

    /// 503: the engine has ended, usually because the server is shutting down.
    pub(crate) fn stopped() -> ApiError {
        let message = "the server is shutting down; the answer is not complete";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("shutting_down"), message)
    }

    /// 503: something that is known is not to be had now.
    pub(crate) fn unavailable(code: &'static str, message: impl Into<String>) -> ApiError {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some(code), message)
    }

    /// 429: the same request may succeed a little later.
    pub(crate) fn busy(code: &'static str, message: impl Into<String>) -> ApiError {
        let busy =
            Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some(code), message);
        busy.with_retry(Retry::After(BUSY_SECONDS))
    }

    pub(crate) fn with_param(mut self, param: impl Into<String>) -> ApiError {
        self.body.param = Some(param.into());
        self
    }

    /// The field at fault.
    pub(crate) fn param(&self) -> Option<&str> {
        self.body.param.as_deref()
    }

    /// What went wrong, as a word for programs.
    pub(crate) fn code(&self) -> Option<&'static str> {
        self.body.code
    }

    /// What went wrong, in words.
    pub(crate) fn message(&self) -> &str {
        &self.body.message
    }

    /// An error of the engine about a request whose prompt came in the field `prompt_field`.
    pub(crate) fn engine(error: &EngineError, prompt_field: &'static str) -> ApiError {
        let message = error.to_string();
        match error {
            EngineError::QueueFull { .. } => Self::busy("queue_full", message),
            EngineError::PromptTooLong { .. }
            | EngineError::PromptExceedsCache { .. }
            | EngineError::InputTooLong { .. } => {
                Self::client(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
                    .with_param(prompt_field)
            }
            EngineError::EmptyPrompt | EngineError::TokenOutOfRange { .. } => {
                Self::field(prompt_field, message)
            }
            EngineError::Params { field, .. } => Self::field(*field, message),
            EngineError::Grammar(_) => Self::invalid(message),
            EngineError::AdapterGone { .. } => {
                Self::client(StatusCode::NOT_FOUND, "model_not_found", message).with_param("model")
            }
            EngineError::Stopped => Self::stopped(),
            EngineError::Options(_) | EngineError::NonFinite { .. } | EngineError::Forward(_) => {
                Self::internal(message)
            }
        }
    }

    /// An error of encoding or of the chat template about the field `param`.
    pub(crate) fn text(error: &TextError, param: &'static str) -> ApiError {
        let message = error.to_string();
        match error {
            TextError::TemplateRefused { .. }
            | TextError::TemplateBudget { .. }
            | TextError::TemplateFailed { .. }
            | TextError::ControlToken { .. }
            | TextError::Role { .. }
            | TextError::Dropped { .. }
            | TextError::DroppedCall { .. }
            | TextError::DoubleBos { .. }
            | TextError::Grammar { .. }
            | TextError::Encode { .. } => Self::field(param, message),
            _ => Self::internal(message),
        }
    }

    /// The body, for a stream that has begun and cannot change its status any more.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(&ErrorBody { error: &self.body })
            .unwrap_or_else(|_| r#"{"error":{"message":"internal error"}}"#.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ErrorBody { error: &self.body })).into_response();
        let headers = response.headers_mut();
        match self.retry {
            Retry::Unsaid => {}
            Retry::After(seconds) => _ = headers.insert(header::RETRY_AFTER, seconds.into()),
            Retry::Never => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For the books, and for endpoints whose errors have another shape.
        response.extensions_mut().insert(self);
        response
    }
}
