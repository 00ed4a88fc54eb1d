//! `GET /health`: whether the engine runs, and how busy it is.

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
    #[serde(flatten)]
    engine: EngineStats,
}

async fn health(State(state): State<Arc<Shared>>) -> (StatusCode, Json<Health>) {
    let alive = state.engine.is_alive();
    let health = Health {
        status: if alive { "ok" } else { "stopped" },
        version: env!("CARGO_PKG_VERSION"),
        engine: state.engine.stats(),
    };
    (if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(health))
}
