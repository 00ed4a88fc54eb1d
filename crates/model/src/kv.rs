//! The paged KV cache: a pool of pages of 16 tokens, handed out by whoever schedules.

use crate::config::DecoderConfig;
use kernels::{BLOCK_SIZE, KvDtype, KvStore};

/// Keys and values of every layer, in pages of [`BLOCK_SIZE`] tokens.
///
/// Per layer `k` is [pages][KV heads][D][16] (16 keys are lanes, so a page is a ready matmul
/// panel) and `v` is [pages][KV heads][16][D].
pub struct KvCache {
    pub(crate) k: Vec<KvStore>,
    pub(crate) v: Vec<KvStore>,
    num_blocks: usize,
}

impl KvCache {
    /// A cache of `num_blocks` pages for each layer, in f32.
    pub fn new(config: &DecoderConfig, num_blocks: usize) -> KvCache {
        KvCache::with_dtype(config, num_blocks, KvDtype::F32)
    }

    /// A cache of `num_blocks` pages for each layer. Memory is touched only as pages are used.
    pub fn with_dtype(config: &DecoderConfig, num_blocks: usize, dtype: KvDtype) -> KvCache {
        let numbers = num_blocks * Self::numbers_per_block(config);
        let layers = config.num_hidden_layers;
        let store = |_| KvStore::new(dtype, numbers, config.head_dim);
        KvCache {
            k: (0..layers).map(store).collect(),
            v: (0..layers).map(store).collect(),
            num_blocks,
        }
    }

    /// Pages in the pool.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Bytes that one page takes over all layers, keys and values.
    pub fn bytes_per_block(config: &DecoderConfig, dtype: KvDtype) -> usize {
        let heads = 2 * config.num_hidden_layers * config.num_key_value_heads;
        heads * BLOCK_SIZE * dtype.bytes(config.head_dim)
    }

    /// Keys, or values, of one page in one layer.
    pub(crate) fn numbers_per_block(config: &DecoderConfig) -> usize {
        config.num_key_value_heads * config.head_dim * BLOCK_SIZE
    }
}
