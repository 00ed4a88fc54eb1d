//! The endpoints: one file each with wire types, handler and tests; one table.

mod adapters;
mod chat_completions;
mod completions;
mod health;
mod messages;
mod models;
mod responses;
mod tokenize;

use crate::state::State;
use axum::routing::MethodRouter;
use std::sync::Arc;

pub(crate) use messages::shape_errors;

/// One endpoint.
pub struct Endpoint {
    /// Path, with axum's placeholders.
    pub path: &'static str,
    /// The method it takes.
    pub method: &'static str,
    pub(crate) route: fn() -> MethodRouter<Arc<State>>,
}

/// THE table: a new endpoint is a new file and one line here.
pub const ALL: &[Endpoint] = &[
    Endpoint { path: "/health", method: "GET", route: health::route },
    Endpoint { path: "/v1/models", method: "GET", route: models::route_all },
    Endpoint { path: "/v1/models/{model}", method: "GET", route: models::route_one },
    Endpoint { path: "/v1/chat/completions", method: "POST", route: chat_completions::route },
    Endpoint { path: "/v1/completions", method: "POST", route: completions::route },
    Endpoint { path: "/v1/responses", method: "POST", route: responses::route },
    Endpoint { path: "/v1/messages", method: "POST", route: messages::route },
    Endpoint { path: "/v1/messages/count_tokens", method: "POST", route: messages::route_count },
    Endpoint { path: "/v1/load_lora_adapter", method: "POST", route: adapters::route_load },
    Endpoint { path: "/v1/unload_lora_adapter", method: "POST", route: adapters::route_unload },
    Endpoint { path: "/tokenize", method: "POST", route: tokenize::route },
    Endpoint { path: "/detokenize", method: "POST", route: tokenize::route_back },
];
