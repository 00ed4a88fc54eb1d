//! Continuous batching over the one ragged forward of [`model::Decoder`]: token ids in, token ids
//! or embeddings out. No text, no files, no HTTP.
//!
//! Read [`Engine::step`] first: schedule, run, postprocess. A step mixes prompt chunks and single
//! decode tokens of many sequences, each with its own adapter, in one [`model::Batch`]; keys and
//! values live in pages of [`model::BLOCK_SIZE`] tokens that sequences borrow and give back.
//!
//! [`Engine::generate`] answers a list of requests offline; [`EngineHandle`] puts the engine on
//! its own thread for a server.

mod block_manager;
mod constraint;
mod draft;
mod engine;
mod error;
mod handle;
mod params;
mod pooler;
mod runner;
mod sampler;
mod scheduler;
mod sequence;

pub use constraint::{Constraint, Grammar, GrammarRef, TokenSet};
pub use draft::{Ask, DraftModel, Drafter};
pub use engine::{Completion, Engine, EngineOptions, EngineStats, Event};
pub use error::EngineError;
pub use handle::{EngineHandle, EventReceiver, Ticket};
pub use params::SamplingParams;
pub use runner::{DecoderRunner, EncoderRunner, Runner};
pub use sampler::{Sampled, Sampler, TokenLogprobs};
pub use sequence::{FinishReason, Limits, SequenceId, SequenceRequest, Usage};
