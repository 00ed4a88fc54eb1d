//! What the engine needs of a model: one forward over a ragged batch.

use model::{AdapterSet, Batch, Decoder, Encoder, KvCache, KvDtype, Memory, ModelError};
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
    /// As [`Runner::run`], but of the rows at the places `hidden` of `logit_rows`, ascending, the final
    /// hidden states are wanted: logits [rows, V] of the others, then those states [rows, H].
    ///
    /// # Errors
    /// As [`Runner::run`]; one that makes no embeddings says so here.
    fn run_hidden(
        &mut self,
        batch: &Batch,
        hidden: &[usize],
    ) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
        match hidden {
            [] => Ok((self.run(batch)?, Vec::new())),
            _ => Err(ModelError::Batch("this model makes no embeddings".into())),
        }
    }
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
    /// Whether a prompt must be run whole, because its tokens also see those behind them.
    fn whole_prompts(&self) -> bool {
        false
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
        Ok(self.run_hidden(batch, &[])?.0)
    }
    fn run_hidden(
        &mut self,
        batch: &Batch,
        hidden: &[usize],
    ) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
        let size = self.decoder.config().hidden_size;
        let mut forward = |batch: &Batch| {
            self.decoder.forward(batch, &self.adapters, Memory::Cache(&mut self.cache))
        };
        let rows = match batch.by_adapter() {
            None => forward(batch)?,
            Some((sorted, places)) => {
                let rows = forward(&sorted)?;
                let row = |place| &rows[place * size..(place + 1) * size];
                places.into_iter().flat_map(row).copied().collect()
            }
        };
        if hidden.is_empty() {
            return Ok((self.decoder.logits(&rows), Vec::new()));
        }
        let (mut states, mut others) = (Vec::new(), Vec::new());
        let mut hidden = hidden.iter().peekable();
        for (place, row) in rows.chunks_exact(size).enumerate() {
            match hidden.next_if(|&&next| next == place) {
                Some(_) => states.extend_from_slice(row),
                None => others.extend_from_slice(row),
            }
        }
        Ok((self.decoder.logits(&others), states))
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

/// An encoder, which only makes embeddings, of texts that are run whole. It keeps no keys: the engine's
/// pages only count how much it has taken on.
pub struct EncoderRunner {
    encoder: Arc<Encoder>,
    num_blocks: usize,
}

impl EncoderRunner {
    /// As if it had a cache of `num_blocks` pages.
    pub fn new(encoder: Arc<Encoder>, num_blocks: usize) -> EncoderRunner {
        EncoderRunner { encoder, num_blocks }
    }
}

impl Runner for EncoderRunner {
    fn run(&mut self, _: &Batch) -> Result<Vec<f32>, ModelError> {
        Err(ModelError::Batch("an encoder has no logits: it only makes embeddings".into()))
    }
    fn run_hidden(
        &mut self,
        batch: &Batch,
        hidden: &[usize],
    ) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
        if hidden.len() < batch.logit_rows.len() {
            return self.run(batch).map(|logits| (logits, Vec::new()));
        }
        Ok((Vec::new(), self.encoder.forward(batch)?))
    }
    fn whole_prompts(&self) -> bool {
        true
    }
    fn num_blocks(&self) -> usize {
        self.num_blocks
    }
    fn vocab_size(&self) -> usize {
        self.encoder.config().vocab_size
    }
    fn context_len(&self) -> usize {
        self.encoder.config().max_tokens()
    }
}
