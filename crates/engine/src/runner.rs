//! What the engine needs of a model: one forward over a ragged batch.

use model::{AdapterSet, Batch, Decoder, KvCache, KvDtype, Memory, ModelError};
use std::sync::Arc;

/// Runs batches. The engine is generic over it so that scheduling can be tested without weights.
pub trait Runner: Send {
    /// Logits of the batch's `logit_rows`, [rows, V] row-major. Keys and values of all tokens are
    /// kept in the pages that the segments name.
    ///
    /// # Errors
    /// Anything that kept this one batch from being run; the engine fails the sequences that do
    /// not run alone either, and goes on. A panic is treated the same way.
    fn run(&mut self, batch: &Batch) -> Result<Vec<f32>, ModelError>;
    /// Pages of the KV cache.
    fn num_blocks(&self) -> usize;
    /// V
    fn vocab_size(&self) -> usize;
    /// Longest context, tokens.
    fn context_len(&self) -> usize;
    /// A sequence that grows beyond so many tokens is run again from its start, because the keys of
    /// its shorter form do not serve the longer one; None where they always do.
    fn recompute_beyond(&self) -> Option<usize> {
        None
    }
    /// The adapters that batches name by slot; None where there are none.
    fn adapters_mut(&mut self) -> Option<&mut AdapterSet> {
        None
    }
    /// Which adapter `adapter`, a slot, holds: a number that no other adapter, and no changed form of
    /// the same one, ever has. None where the slot is empty. Keys made with one are no other's.
    fn adapter_generation(&self, adapter: Option<usize>) -> Option<u64> {
        Some(adapter.map_or(0, |slot| slot as u64 + 1))
    }
}

/// The real thing: a decoder, its adapters and its KV cache.
pub struct DecoderRunner {
    decoder: Arc<Decoder>,
    pub(crate) adapters: AdapterSet,
    cache: KvCache,
}

impl DecoderRunner {
    /// A cache of `num_blocks` pages in the form `dtype`, and no adapters yet.
    pub fn new(decoder: Arc<Decoder>, num_blocks: usize, dtype: KvDtype) -> DecoderRunner {
        let cache = KvCache::with_dtype(decoder.config(), num_blocks, dtype);
        DecoderRunner { decoder, adapters: AdapterSet::new(), cache }
    }
}

impl Runner for DecoderRunner {
    fn run(&mut self, batch: &Batch) -> Result<Vec<f32>, ModelError> {
        let mut forward = |batch: &Batch| {
            self.decoder.forward(batch, &self.adapters, Memory::Cache(&mut self.cache))
        };
        let hidden = match batch.by_adapter() {
            None => forward(batch)?,
            Some((sorted, places)) => {
                let (hidden, size) = (forward(&sorted)?, self.decoder.config().hidden_size);
                let row = |place| &hidden[place * size..(place + 1) * size];
                places.into_iter().flat_map(row).copied().collect()
            }
        };
        Ok(self.decoder.logits(&hidden))
    }
    fn num_blocks(&self) -> usize {
        self.cache.num_blocks()
    }
    fn vocab_size(&self) -> usize {
        self.decoder.config().vocab_size
    }
    fn context_len(&self) -> usize {
        self.decoder.config().max_position_embeddings
    }
    fn recompute_beyond(&self) -> Option<usize> {
        self.decoder.config().rope_switch()
    }
    fn adapters_mut(&mut self) -> Option<&mut AdapterSet> {
        Some(&mut self.adapters)
    }
    fn adapter_generation(&self, adapter: Option<usize>) -> Option<u64> {
        match adapter {
            None => Some(0),
            Some(slot) => self.adapters.generation(slot),
        }
    }
}
