//! `GET /v1/models` and `GET /v1/models/{model}`: the names that requests can use.

use crate::adapters::{Card, Proven};
use crate::caller::Caller;
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
    /// The base that an adapter works on; null for the base, and where the key may not name the base.
    parent: Option<String>,
    /// SHA-256 of what acts in an adapter; null for the base.
    adapter_digest: Option<String>,
    /// Whether it is in memory; otherwise the first request for it has it loaded.
    loaded: bool,
    /// Whether it stays there.
    pinned: bool,
    /// Whether it carries a verdict of "worth it" about itself; null where the server does not ask.
    proven: Option<bool>,
    /// What it lacks; null where it lacks nothing.
    not_proven: Option<String>,
}

impl Model {
    fn new(state: &Shared, caller: &Caller, card: Card) -> Result<Model, ApiError> {
        let base = state.models.base()?.name.clone();
        let (proven, not_proven) = match card.proven {
            Proven::NotAsked => (None, None),
            Proven::Yes => (Some(true), None),
            Proven::No(reason) => (Some(false), Some(reason)),
        };
        Ok(Model {
            object: "model",
            created: card.created,
            owned_by: "metier",
            max_model_len: card.host.engine.limits().max_len(),
            parent: Some(base).filter(|base| card.is_adapter && caller.may_name(base)),
            adapter_digest: card.digest,
            loaded: card.loaded,
            pinned: card.pinned,
            proven,
            not_proven,
            id: card.name,
        })
    }
}

async fn list(
    State(state): State<Arc<Shared>>,
    caller: Caller,
) -> Result<Json<ModelList>, ApiError> {
    let cards = state.models.cards(&caller).into_iter();
    let data = cards.map(|card| Model::new(&state, &caller, card)).collect::<Result<_, _>>()?;
    Ok(Json(ModelList { object: "list", data }))
}

async fn retrieve(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Model>, ApiError> {
    Ok(Json(Model::new(&state, &caller, state.models.card(&caller, &name)?)?))
}
