//! Open-weight decoder models: configuration, weights, the one forward and backward, adapters; and
//! encoders, which only make embeddings ([`Encoder`]).
//!
//! Read [`decoder`] first: training, evaluation and serving all go through [`Decoder::forward`]
//! on the same ragged [`Batch`]; KV pages and the training tape are arguments.
//! This crate knows no text: it sees token ids, files of weights, and numbers.
//!
//! Letters: T tokens in the batch, H hidden size, D head size, V vocabulary, R LoRA rank,
//! L layers. Matrices are row-major; a weight is [out, in] as in Hugging Face files.

mod adapter;
mod batch;
mod config;
pub mod decoder;
mod encoder;
mod error;
mod experts;
mod families;
mod files;
pub mod gguf;
mod held;
mod inspect;
mod kv;
mod laid_out;
mod linear;
mod merged;
mod params;
mod pooling;
mod tape;
mod weights;

pub use adapter::{
    ALL_LINEAR, AdapterSet, LoraAdapter, LoraConfig, LoraConfigError, LoraCount, LoraModule,
    PORTABLE_RANKS, PackedAdapter, Targets,
};
pub use batch::{Batch, Segment};
pub use config::{
    Biases, DecoderConfig, ExpertsConfig, FeedForward, LayerConfig, NormPlacement, NormWeightForm,
    QkNorm,
};
pub use decoder::{Decoder, Grads, LoadOptions, Memory, WeightDtype};
pub use encoder::{Encoder, EncoderConfig, is_encoder};
pub use error::ModelError;
pub use families::Family;
pub use files::{sha256_hex, write_atomic};
pub use gguf::{GgmlType, GgufError, GgufFile};
pub use inspect::{ModelSummary, inspect};
pub use kernels::{
    Activation, BLOCK_SIZE, IGNORE_INDEX, KvDtype, buffer_bytes, cross_entropy,
    cross_entropy_backward_inplace, set_num_threads,
};
pub use kv::KvCache;
pub use merged::Merged;
pub use params::ParamSpec;
pub use pooling::{Dimensions, EmbeddingForm, Pooling};
pub use tape::{Tape, TapeMode};
