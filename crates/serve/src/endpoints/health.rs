//! `GET /health`: whether the engines run, and how busy they are.

use crate::state::State as Shared;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{MethodRouter, get};
use engine::EngineStats;
use serde::Serialize;
use std::sync::Arc;

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    get(health)
}

#[derive(Serialize)]
struct Health {
    /// `ok` or `stopped`.
    status: &'static str,
    version: &'static str,
    /// Of all engines together: the base's, and that of a base for embeddings beside it.
    #[serde(flatten)]
    engine: EngineStats,
}

async fn health(State(state): State<Arc<Shared>>) -> (StatusCode, Json<Health>) {
    let alive = state.engines_alive();
    let health = Health {
        status: if alive { "ok" } else { "stopped" },
        version: env!("CARGO_PKG_VERSION"),
        engine: state.engine_stats(),
    };
    (if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(health))
}
