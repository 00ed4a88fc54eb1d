//! `GET /ready`: whether new requests are welcome, for whatever spreads the load. Nothing listens while
//! the model is being loaded; from then on this says when to stay away.

use crate::state::State as Shared;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{MethodRouter, get};
use serde::Serialize;
use std::sync::Arc;

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    get(ready)
}

#[derive(Serialize)]
struct Readiness {
    /// `ready`, `draining`, `stopped` or `store_failed`.
    status: &'static str,
}

async fn ready(State(state): State<Arc<Shared>>) -> (StatusCode, Json<Readiness>) {
    let status = if state.is_draining() {
        "draining"
    } else if !state.engines_alive() {
        "stopped"
    } else if !state.store.is_healthy() {
        "store_failed"
    } else {
        return (StatusCode::OK, Json(Readiness { status: "ready" }));
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(Readiness { status }))
}
