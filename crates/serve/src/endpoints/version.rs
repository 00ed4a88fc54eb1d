//! `GET /version`: which program this is.

use crate::state::State as Shared;
use axum::Json;
use axum::routing::{MethodRouter, get};
use serde::Serialize;
use std::sync::Arc;

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    get(version)
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}
