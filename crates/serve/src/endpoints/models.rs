//! `GET /v1/models` and `GET /v1/models/{model}`: the names that requests can use.

use crate::adapters::Card;
use crate::error::ApiError;
use crate::state::State as Shared;
use axum::Json;
use axum::extract::{Path, State};
use axum::routing::{MethodRouter, get};
use serde::Serialize;
use std::sync::Arc;

pub(crate) fn route_all() -> MethodRouter<Arc<Shared>> {
    get(list)
}

pub(crate) fn route_one() -> MethodRouter<Arc<Shared>> {
    get(retrieve)
}

#[derive(Serialize)]
struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Longest sequence, prompt and answer together, in tokens. This and what follows are not
    /// OpenAI's fields; vLLM has `parent` and `max_model_len` too.
    max_model_len: usize,
    /// The base that an adapter works on; null for the base.
    parent: Option<String>,
    /// SHA-256 of what acts in an adapter; null for the base.
    adapter_digest: Option<String>,
    /// Whether it is in memory; otherwise the first request for it has it loaded.
    loaded: bool,
    /// Whether it stays there.
    pinned: bool,
}

impl Model {
    fn new(state: &Shared, card: Card) -> Result<Model, ApiError> {
        Ok(Model {
            object: "model",
            created: card.created,
            owned_by: "metier",
            max_model_len: state.engine.limits().max_len(),
            parent: if card.is_adapter { Some(state.models.base()?.name.clone()) } else { None },
            adapter_digest: card.digest,
            loaded: card.loaded,
            pinned: card.pinned,
            id: card.name,
        })
    }
}

async fn list(State(state): State<Arc<Shared>>) -> Result<Json<ModelList>, ApiError> {
    let cards = state.models.cards().into_iter();
    let data = cards.map(|card| Model::new(&state, card)).collect::<Result<_, _>>()?;
    Ok(Json(ModelList { object: "list", data }))
}

async fn retrieve(
    State(state): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<Model>, ApiError> {
    Ok(Json(Model::new(&state, state.models.card(&name)?)?))
}
