//! The OpenAI-compatible HTTP server: text and JSON outside, token ids and the engine inside.
//!
//! Read [`endpoints`](mod@endpoints) first (one table, one file each), then `generation`: how a
//! prompt becomes sequences of the engine and their tokens text again. A field of a request is
//! honoured or refused by name, never silently ignored.

mod adapters;
mod answers;
pub mod endpoints;
mod error;
mod fields;
mod generation;
mod logprobs;
mod messages;
mod sampling;
mod server;
mod sse;
mod state;
mod structured;

pub use adapters::{LoadAdapter, LoadedAdapter};
pub use server::{ServePlan, Server};
pub use state::{ServeError, ServedModel};
