//! The ragged batch: several sequences of unequal length side by side, without padding.

use crate::ModelError;
use crate::config::DecoderConfig;
use kernels::{BLOCK_SIZE, RopeRow, RopeTable};
use std::ops::Range;

/// One sequence's new tokens in a [`Batch`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Segment {
    /// New tokens of this sequence in the batch, at least 1.
    pub len: usize,
    /// Tokens of this sequence that the KV cache already holds; the new ones get positions
    /// `past..past + len`.
    pub past: usize,
    /// Page table: pages[i] holds positions 16 i .. 16 i + 15. Must cover `past + len`. Left empty
    /// in training, where the tape makes its own pages.
    pub pages: Vec<u32>,
    /// Slot in the [`crate::AdapterSet`]; None is the base alone.
    pub adapter: Option<usize>,
    /// Training with dropout: what decides the draws of this sequence, another number for each step
    /// and row. None drops nothing.
    pub dropout: Option<u64>,
    /// Tokens that the sequence is known to have when it is not cut into steps: a prompt that goes
    /// in piece by piece. At least `past + len` counts. Matters only where positions are rotated
    /// otherwise in long sequences (see [`DecoderConfig::rope_switch`]).
    pub reach: usize,
}

/// What one forward works on: packed training sequences and batched serving requests alike.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids of all segments, one after the other, [T].
    pub tokens: Vec<u32>,
    /// The segments, in the order of their tokens; their lengths sum to T.
    pub segments: Vec<Segment>,
    /// Rows of `tokens` whose final hidden state is wanted, ascending.
    pub logit_rows: Vec<usize>,
}

impl Batch {
    /// The same batch with the segments of each adapter side by side, so that its matrices are read
    /// once for all of its rows, and where the row of each of `logit_rows` is among the new ones. None
    /// where that is so already.
    ///
    /// # Panics
    /// When the segments do not hold the batch's tokens.
    pub fn by_adapter(&self) -> Option<(Batch, Vec<usize>)> {
        if self.segments.is_sorted_by_key(|s| s.adapter) {
            return None;
        }
        let mut start = 0;
        let mut order: Vec<(Option<usize>, Range<usize>, usize)> = Vec::new();
        for (index, segment) in self.segments.iter().enumerate() {
            order.push((segment.adapter, start..start + segment.len, index));
            start += segment.len;
        }
        order.sort_by_key(|(adapter, ..)| *adapter);
        let mut sorted = Batch::default();
        let mut places = vec![0; self.logit_rows.len()];
        for (_, rows, index) in order {
            let at = sorted.tokens.len();
            sorted.tokens.extend_from_slice(&self.tokens[rows.clone()]);
            sorted.segments.push(self.segments[index].clone());
            let first = self.logit_rows.partition_point(|&row| row < rows.start);
            let wanted = self.logit_rows[first..].iter().take_while(|&&row| row < rows.end);
            for (i, row) in wanted.enumerate() {
                places[first + i] = sorted.logit_rows.len();
                sorted.logit_rows.push(at + row - rows.start);
            }
        }
        Some((sorted, places))
    }
}

/// A checked batch with what the layers need of it.
pub(crate) struct Layout {
    pub(crate) positions: Vec<u32>,
    /// Rows of each segment.
    pub(crate) rows: Vec<Range<usize>>,
    pub(crate) past: Vec<usize>,
    pub(crate) pages: Vec<Vec<u32>>,
    /// Adjacent segments of one adapter, merged: (rows, slot).
    pub(crate) adapter_rows: Vec<(Range<usize>, usize)>,
    /// Segments with dropout: (rows, key).
    pub(crate) dropout: Vec<(Range<usize>, u64)>,
    pub(crate) num_pages: usize,
    /// cos and sin of every row, for each rotation of the model.
    pub(crate) ropes: Vec<RopeTable>,
}

impl Layout {
    /// Checks `batch` against the model; `cache_blocks` is None when the tape makes the pages.
    pub(crate) fn new(
        batch: &Batch,
        config: &DecoderConfig,
        cache_blocks: Option<usize>,
    ) -> Result<Layout, ModelError> {
        let bad = |problem: String| Err(ModelError::Batch(problem));
        let total: usize = batch.segments.iter().map(|s| s.len).sum();
        if total != batch.tokens.len() || total == 0 {
            return bad(format!(
                "segments hold {total} tokens, the batch {}; expected the same number, at least 1",
                batch.tokens.len()
            ));
        }
        if let Some(token) = batch.tokens.iter().find(|&&t| t as usize >= config.vocab_size) {
            return bad(format!(
                "token id {token}, expected below the vocabulary of {}",
                config.vocab_size
            ));
        }
        if batch.logit_rows.iter().any(|&r| r >= total)
            || !batch.logit_rows.is_sorted_by(|a, b| a < b)
        {
            return bad("logit_rows must be ascending and below the number of tokens".into());
        }
        let mut layout = Layout {
            positions: Vec::with_capacity(total),
            rows: Vec::new(),
            past: Vec::new(),
            pages: Vec::new(),
            adapter_rows: Vec::new(),
            dropout: Vec::new(),
            num_pages: 0,
            ropes: Vec::new(),
        };
        let mut start = 0;
        for (i, segment) in batch.segments.iter().enumerate() {
            let end = segment.past + segment.len;
            if segment.len == 0 {
                return bad(format!("segment {i} is empty"));
            }
            if end > config.max_position_embeddings {
                return bad(format!(
                    "segment {i} reaches position {end}, expected at most the context of {}",
                    config.max_position_embeddings
                ));
            }
            let needed = end.div_ceil(BLOCK_SIZE);
            match cache_blocks {
                Some(blocks) => {
                    if segment.pages.len() < needed {
                        return bad(format!(
                            "segment {i} has {} pages, needs {needed}",
                            segment.pages.len()
                        ));
                    }
                    if let Some(page) = segment.pages.iter().find(|&&p| p as usize >= blocks) {
                        return bad(format!("segment {i} names page {page} of {blocks}"));
                    }
                    layout.pages.push(segment.pages[..needed].to_vec());
                }
                None => {
                    if segment.past != 0 {
                        return bad(format!(
                            "segment {i} has a past of {}, training starts at 0",
                            segment.past
                        ));
                    }
                    let first = layout.num_pages;
                    layout.pages.push((first..first + needed).map(|p| p as u32).collect());
                    layout.num_pages += needed;
                }
            }
            let rows = start..start + segment.len;
            layout.positions.extend((segment.past..end).map(|p| p as u32));
            if let Some(slot) = segment.adapter {
                match layout.adapter_rows.last_mut() {
                    Some((range, last)) if *last == slot && range.end == rows.start => {
                        range.end = rows.end
                    }
                    _ => layout.adapter_rows.push((rows.clone(), slot)),
                }
            }
            start = rows.end;
            layout.dropout.extend(segment.dropout.map(|key| (rows.clone(), key)));
            layout.rows.push(rows);
            layout.past.push(segment.past);
        }
        layout.ropes =
            config
                .ropes
                .iter()
                .map(|rope| {
                    let mut rows = Vec::with_capacity(total);
                    for (segment, range) in batch.segments.iter().zip(&layout.rows) {
                        let set = rope.at(segment.reach.max(segment.past + segment.len));
                        rows.extend(layout.positions[range.clone()].iter().map(|&position| {
                            RopeRow { position, inv_freq: &set.inv_freq, factor: set.factor }
                        }));
                    }
                    RopeTable::new(rope.short.inv_freq.len(), &rows)
                })
                .collect();
        Ok(layout)
    }

    pub(crate) fn attn_segments(&self) -> Vec<kernels::AttnSegment<'_>> {
        (0..self.rows.len())
            .map(|i| kernels::AttnSegment {
                rows: self.rows[i].clone(),
                past: self.past[i],
                pages: &self.pages[i],
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_an_adapter_come_together() {
        let segment = |len, adapter| Segment { len, adapter, ..Segment::default() };
        let mut batch = Batch {
            tokens: (0..9).collect(),
            segments: vec![
                segment(2, Some(1)),
                segment(1, None),
                segment(3, Some(0)),
                segment(1, Some(1)),
                segment(2, Some(0)),
            ],
            logit_rows: vec![1, 2, 4, 5, 6],
        };
        let (sorted, places) = batch.by_adapter().unwrap();
        assert_eq!(sorted.tokens, [2, 3, 4, 5, 7, 8, 0, 1, 6]);
        let adapters: Vec<_> = sorted.segments.iter().map(|s| (s.len, s.adapter)).collect();
        let (zero, one) = (Some(0), Some(1));
        assert_eq!(adapters, [(1, None), (3, zero), (2, zero), (2, one), (1, one)]);
        assert_eq!(sorted.logit_rows, [0, 2, 3, 7, 8]);
        for (old, new) in batch.logit_rows.iter().zip(places) {
            assert_eq!(batch.tokens[*old], sorted.tokens[sorted.logit_rows[new]]);
        }
        assert!(sorted.by_adapter().is_none());
        batch.segments.iter_mut().for_each(|s| s.adapter = None);
        assert!(batch.by_adapter().is_none());
    }
}
