//! The paged KV cache: a pool of pages of 16 tokens, handed out by whoever schedules.

use crate::config::DecoderConfig;
use kernels::BLOCK_SIZE;

/// Keys and values of every layer, in pages of [`BLOCK_SIZE`] tokens.
///
/// Per layer `k` is [pages][KV heads][D][16] (16 keys are lanes, so a page is a ready matmul
/// panel) and `v` is [pages][KV heads][16][D].
pub struct KvCache {
    pub(crate) k: Vec<Vec<f32>>,
    pub(crate) v: Vec<Vec<f32>>,
    num_blocks: usize,
}

impl KvCache {
    /// A cache of `num_blocks` pages for each layer. Memory is touched only as pages are used.
    pub fn new(config: &DecoderConfig, num_blocks: usize) -> KvCache {
        let size = num_blocks * Self::floats_per_block(config);
        let layers = config.num_hidden_layers;
        KvCache {
            k: (0..layers).map(|_| vec![0.0; size]).collect(),
            v: (0..layers).map(|_| vec![0.0; size]).collect(),
            num_blocks,
        }
    }

    /// Pages in the pool.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Bytes that one page takes over all layers, keys and values.
    pub fn bytes_per_block(config: &DecoderConfig) -> usize {
        2 * config.num_hidden_layers * Self::floats_per_block(config) * size_of::<f32>()
    }

    /// Floats of one page in one layer, keys or values.
    pub(crate) fn floats_per_block(config: &DecoderConfig) -> usize {
        config.num_key_value_heads * config.head_dim * BLOCK_SIZE
    }
}
