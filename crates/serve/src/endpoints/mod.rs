//! The endpoints: one file each with wire types, handler and tests; one table.

mod adapters;
mod chat_completions;
mod completions;
mod embeddings;
mod feedback;
mod health;
mod messages;
mod metrics;
mod models;
mod ready;
mod responses;
mod tokenize;
mod version;

use crate::state::State;
use axum::http::Method;
use axum::routing::MethodRouter;
use std::sync::Arc;

pub(crate) use messages::shape_errors;

/// One endpoint.
pub struct Endpoint {
    /// Path, with axum's placeholders.
    pub path: &'static str,
    /// The method it takes.
    pub method: &'static str,
    /// Which keys open it, once a key exists.
    pub scope: Scope,
    pub(crate) route: fn() -> MethodRouter<Arc<State>>,
}

/// Who may use an endpoint. No endpoint is open to those without a key once a key exists: what tells
/// nothing to a stranger would still tell that there is something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every key.
    User,
    /// Admin keys.
    Admin,
}

use Scope::{Admin, User};

/// THE table: a new endpoint is a new file and one line here.
#[rustfmt::skip]
pub const ALL: &[Endpoint] = &[
    Endpoint { path: "/health", method: "GET", scope: User, route: health::route },
    Endpoint { path: "/ready", method: "GET", scope: User, route: ready::route },
    Endpoint { path: "/version", method: "GET", scope: User, route: version::route },
    Endpoint { path: "/metrics", method: "GET", scope: Admin, route: metrics::route },
    Endpoint { path: "/v1/models", method: "GET", scope: User, route: models::route_all },
    Endpoint { path: "/v1/models/{model}", method: "GET", scope: User, route: models::route_one },
    Endpoint { path: "/v1/chat/completions", method: "POST", scope: User, route: chat_completions::route },
    Endpoint { path: "/v1/completions", method: "POST", scope: User, route: completions::route },
    Endpoint { path: "/v1/embeddings", method: "POST", scope: User, route: embeddings::route },
    Endpoint { path: "/v1/responses", method: "POST", scope: User, route: responses::route },
    Endpoint { path: "/v1/messages", method: "POST", scope: User, route: messages::route },
    Endpoint { path: "/v1/messages/count_tokens", method: "POST", scope: User, route: messages::route_count },
    Endpoint { path: "/v1/feedback", method: "POST", scope: User, route: feedback::route },
    Endpoint { path: "/v1/load_lora_adapter", method: "POST", scope: Admin, route: adapters::route_load },
    Endpoint { path: "/v1/unload_lora_adapter", method: "POST", scope: Admin, route: adapters::route_unload },
    Endpoint { path: "/tokenize", method: "POST", scope: User, route: tokenize::route },
    Endpoint { path: "/detokenize", method: "POST", scope: User, route: tokenize::route_back },
];

/// The endpoint behind a path of the table. Where the method is not one it takes, that of the widest
/// claim, so that a wrong method tells nobody more than the right one.
pub(crate) fn find(path: &str, method: &Method) -> Option<&'static Endpoint> {
    let same = || ALL.iter().filter(|e| e.path == path);
    same()
        .find(|e| e.method == method.as_str())
        .or_else(|| same().find(|e| e.scope == Scope::Admin))
        .or_else(|| same().next())
}
