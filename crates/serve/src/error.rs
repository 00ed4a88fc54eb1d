//! The one error body of all endpoints, in OpenAI's shape.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::EngineError;
use serde::Serialize;
use text::TextError;

/// An answer that is not a success: `{"error": {message, type, param, code}}`.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    body: ErrorDetail,
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

/// Seconds after which a refused client may try again: a few steps of the engine.
const RETRY_AFTER: &str = "1";

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> ApiError {
        ApiError { status, body: ErrorDetail { message: message.into(), kind, param: None, code } }
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
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some(code), message)
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
            EngineError::PromptTooLong { .. } | EngineError::PromptExceedsCache { .. } => {
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
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        // For endpoints whose errors have another shape.
        response.extensions_mut().insert(self);
        response
    }
}
