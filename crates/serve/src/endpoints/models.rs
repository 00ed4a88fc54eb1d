//! `GET /v1/models` and `GET /v1/models/{model}`: the names that requests can use.

use crate::caller::Caller;
use crate::error::ApiError;
use crate::state::{ServedModel, State as Shared};
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
    /// The base that an adapter works on; null for the base, and where the key may not
    /// name the base. Not one of OpenAI's fields.
    parent: Option<String>,
}

impl Model {
    fn new(state: &Shared, caller: &Caller, model: &ServedModel) -> Model {
        let base = state.visible(caller).find(|m| m.adapter.is_none());
        Model {
            id: model.name.clone(),
            object: "model",
            created: state.created,
            owned_by: "metier",
            parent: base.filter(|_| model.adapter.is_some()).map(|b| b.name.clone()),
        }
    }
}

async fn list(State(state): State<Arc<Shared>>, caller: Caller) -> Json<ModelList> {
    let data = state.visible(&caller).map(|m| Model::new(&state, &caller, m)).collect();
    Json(ModelList { object: "list", data })
}

async fn retrieve(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Model>, ApiError> {
    Ok(Json(Model::new(&state, &caller, state.model(&caller, &name)?)))
}
