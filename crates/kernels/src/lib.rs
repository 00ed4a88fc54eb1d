//! Number crunching on slices and packed weights. Imports nothing of ours; the only home of
//! `unsafe`.
//!
//! One file per operation, each with a plain reference (`reference_*`, forward and backward), the
//! fast variant, and tests that hold one against the other and the gradients against finite
//! differences. Letters used throughout: T tokens (rows), N outputs, K inputs, H hidden size,
//! D head size, V vocabulary, R LoRA rank.
//!
//! Work is split over rayon's pool by output element only: each output is summed by one thread in
//! one order, so results do not depend on the number of threads, nor on which other rows are in
//! the batch.

mod arenas;
mod attention;
mod blocks;
mod cross_entropy;
mod dropout;
mod elementwise;
mod embedding;
mod formats;
mod gated;
mod gelu;
mod int8;
mod kv_pages;
mod layer_norm;
mod lora;
mod mapped_file;
mod matmul;
mod packed;
mod rms_norm;
mod roofline;
mod rope;
mod simd;
mod softmax;
mod tile;
mod vector;

pub use arenas::limit_arenas;
pub use attention::{
    AttnRule, attention, attention_backward, reference_attention, reference_attention_backward,
};
pub use blocks::buffer_bytes;
pub use cross_entropy::{
    IGNORE_INDEX, cross_entropy, cross_entropy_backward_inplace, reference_cross_entropy,
    reference_cross_entropy_backward_inplace,
};
pub use dropout::dropout;
pub use elementwise::{
    add_row, add_scaled, from_bf16, reference_soft_cap, reference_soft_cap_backward, scale_inplace,
    soft_cap, soft_cap_backward, sum_rows, to_bf16,
};
pub use embedding::{
    embedding, embedding_backward, reference_embedding, reference_embedding_backward,
};
pub use formats::Dtype;
pub use gated::{Activation, gated, gated_backward, reference_gated, reference_gated_backward};
pub use gelu::{Gelu, gelu, reference_gelu};
pub use kv_pages::{AttnSegment, BLOCK_SIZE, KvDtype, KvPages, KvStore, write_kv};
pub use layer_norm::{layer_norm, reference_layer_norm};
pub use lora::{
    LoraRef, lora, lora_dx, lora_grads, matmul_dx_lora, matmul_lora, reference_lora,
    reference_lora_backward,
};
pub use mapped_file::MappedFile;
pub use matmul::{
    matmul, matmul_dw, matmul_dx, reference_matmul, reference_matmul_dw, reference_matmul_dx,
};
pub use packed::{LAYOUT, PANEL, PackedMatrix};
pub use rms_norm::{reference_rms_norm, reference_rms_norm_backward, rms_norm, rms_norm_backward};
pub use roofline::{multiply_adds, read_all};
pub use rope::{RopeRow, RopeTable, reference_rope, reference_rope_backward, rope, rope_backward};
pub use simd::Level;
pub use softmax::{reference_softmax, reference_softmax_backward, softmax, softmax_backward};

/// Runs `f` on a thread of the pool. From anywhere else every kernel hands its work over and
/// sleeps until it is done; that is two changes of thread for each, which a token's hundreds of small
/// products feel.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// Sets the number of threads that kernels use; 0 means one per core. Only the first call in a
/// process counts, and only before the first parallel kernel: afterwards the pool stands.
pub fn set_num_threads(n: usize) {
    // An error means that the pool stands already, as documented.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(n)
        .thread_name(|i| format!("kernel-{i}"))
        .build_global();
}
