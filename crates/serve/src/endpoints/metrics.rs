//! `GET /metrics`: counters for Prometheus. Its labels tell who is served what, so it asks for an admin
//! key.

use crate::error::ApiError;
use crate::state::State as Shared;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use std::sync::Arc;

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    get(metrics)
}

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

async fn metrics(State(state): State<Arc<Shared>>) -> Result<Response, ApiError> {
    let text = state.metrics.text(&state.engine_stats(), state.store.lost());
    let text = text.map_err(|e| ApiError::internal(format!("writing the metrics: {e}")))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}
