//! The OpenAI-compatible HTTP server: text and JSON outside, token ids and the engine inside.
//!
//! Read [`endpoints`](mod@endpoints) first (one table, one file each), then `generation`: how a
//! prompt becomes sequences of the engine and their tokens text again. A field of a request is
//! honoured or refused by name, never silently ignored.
//!
//! Every request passes `caller` on its way in, which finds its key and keeps its books; what is
//! written down goes to the [`Store`].

mod adapters;
mod answers;
mod caller;
mod connections;
mod conversation;
mod digest;
pub mod endpoints;
mod error;
mod fields;
mod generation;
mod harvest;
mod limits;
mod logprobs;
mod metrics;
mod sampling;
mod server;
mod sse;
mod state;
mod store;
mod structured;
mod traces;

pub use adapters::{LoadAdapter, LoadedAdapter, Proven};
pub use connections::TlsFiles;
pub use digest::Digest;
pub use harvest::{Harvest, HarvestOptions, harvest};
pub use server::{Reloader, RequireVerdict, ServePlan, Server};
pub use state::{Host, ServeError, ServedModel};
pub use store::{
    Answer, Database, Happened, Kept, Key, NewKey, Prices, RETENTION_DAYS, STATE_FILE, Secret,
    Store, StoreError, UsageBy, UsageRow,
};
pub use traces::{SpanExport, export_spans};
