//! Guesses at what comes next, which one forward checks all at once: from what was said already, or
//! by a small model.

use crate::block_manager::BlockManager;
use crate::sampler::argmax;
use crate::sequence::SequenceId;
use model::{AdapterSet, Batch, Decoder, KvCache, KvDtype, Memory, Segment};
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Longest repeated stretch that is looked for, tokens.
const LONGEST: usize = 4;
/// Shortest; a single token that came before says too little.
const SHORTEST: usize = 2;
/// Only so many tokens are looked back, so that a step's cost does not grow with the context.
const LOOK_BACK: usize = 4096;

/// What followed the last time that the sequence's last tokens stood in it, at most `most` tokens:
/// prompt lookup (the idea of arXiv 2304.04487). Answers that quote their prompt are full of such
/// stretches. Empty when there is none.
pub(crate) fn prompt_lookup(tokens: &[u32], most: usize) -> &[u32] {
    let recent = &tokens[tokens.len().saturating_sub(LOOK_BACK)..];
    for len in (SHORTEST..=LONGEST).rev() {
        if recent.len() <= len || most == 0 {
            continue;
        }
        let (before, tail) = recent.split_at(recent.len() - len);
        // The latest earlier place; it may overlap the tail, which is how a loop is guessed.
        let place = (0..before.len()).rev().find(|&i| recent[i..i + len] == *tail);
        if let Some(place) = place {
            let follows = &recent[place + len..];
            return &follows[..follows.len().min(most)];
        }
    }
    &[]
}

/// A sequence that guesses are wanted for.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Which one.
    pub id: SequenceId,
    /// All of its tokens, prompt and answer.
    pub tokens: &'a [u32],
    /// Most tokens to guess, at least one.
    pub most: usize,
}

/// Who guesses what comes next, see [`crate::Engine::with_drafter`].
pub trait Drafter: Send {
    /// Guesses for each of `asks`, in their order: at most as many as asked for, none where it has no
    /// idea. Wrong ones, even tokens that do not exist, cost time but change no text. Sequences that
    /// are not in `running` have ended.
    fn guess(&mut self, asks: &[Ask], running: &HashSet<SequenceId>) -> Vec<Vec<u32>>;
}

/// Tokens of a long beginning that the draft model reads in one forward.
const DRAFT_BATCH: usize = 512;

/// A small model of the same tokenizer that guesses (Leviathan et al., arXiv:2211.17192), greedily,
/// token by token for all sequences at once. It has pages of its own and no adapters.
pub struct DraftModel {
    decoder: Arc<Decoder>,
    adapters: AdapterSet,
    cache: KvCache,
    free: Vec<u32>,
    known: HashMap<SequenceId, Known>,
}

/// What the draft model's pages know of a sequence.
#[derive(Default)]
struct Known {
    tokens: Vec<u32>,
    pages: Vec<u32>,
}

/// A sequence on its way through the draft model.
struct Going<'a> {
    ask: &'a Ask<'a>,
    guesses: &'a mut Vec<u32>,
    /// The ask's tokens and the guesses.
    tokens: Vec<u32>,
}

impl DraftModel {
    /// A draft model with a cache of `num_blocks` pages in the form `dtype`.
    pub fn new(decoder: Arc<Decoder>, num_blocks: usize, dtype: KvDtype) -> DraftModel {
        DraftModel {
            cache: KvCache::with_dtype(decoder.config(), num_blocks, dtype),
            adapters: AdapterSet::new(),
            decoder,
            free: (0..num_blocks as u32).rev().collect(),
            known: HashMap::new(),
        }
    }

    fn forget(&mut self, id: SequenceId) {
        if let Some(known) = self.known.remove(&id) {
            self.free.extend(known.pages);
        }
    }

    /// Pages for `len` tokens of a sequence, whose pages know no more than its first `tokens` from
    /// now on. False, and nothing is known of it, when there are not enough.
    fn make_room(&mut self, id: SequenceId, tokens: &[u32], len: usize) -> bool {
        let known = self.known.entry(id).or_default();
        let same = known.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        // The last token is run for what follows it, known or not.
        known.tokens.truncate(same.min(tokens.len() - 1));
        let needed = BlockManager::blocks_for(len).saturating_sub(known.pages.len());
        if needed > self.free.len() {
            self.forget(id);
            return false;
        }
        known.pages.extend(self.free.split_off(self.free.len() - needed));
        true
    }

    /// Runs the next tokens of `going` as far as [`DRAFT_BATCH`] goes, and returns which are run to
    /// their end with the likeliest token behind it, if any is. None when the forward failed.
    fn run(&mut self, going: &[Going]) -> Option<Vec<(usize, Option<usize>)>> {
        let mut batch = Batch::default();
        let (mut left, mut ended) = (DRAFT_BATCH, Vec::new());
        for (index, Going { ask, tokens, .. }) in going.iter().enumerate() {
            let known = self.known.get_mut(&ask.id)?;
            let past = known.tokens.len();
            let len = (tokens.len() - past).min(left);
            if len == 0 {
                continue;
            }
            left -= len;
            batch.tokens.extend_from_slice(&tokens[past..past + len]);
            batch.segments.push(Segment {
                len,
                past,
                pages: known.pages.clone(),
                adapter: None,
                reach: tokens.len(),
                dropout: None,
            });
            if past + len == tokens.len() {
                batch.logit_rows.push(batch.tokens.len() - 1);
                ended.push(index);
            }
            known.tokens.extend_from_slice(&tokens[past..past + len]);
        }
        let Self { decoder, adapters, cache, .. } = self;
        let forward = AssertUnwindSafe(|| {
            let hidden = decoder.forward(&batch, adapters, Memory::Cache(cache))?;
            Ok::<_, model::ModelError>(decoder.logits(&hidden))
        });
        let logits = catch_unwind(forward).ok()?.ok()?;
        let rows = logits.chunks_exact(decoder.config().vocab_size);
        Some(ended.into_iter().zip(rows.map(argmax)).collect())
    }
}

impl Drafter for DraftModel {
    fn guess(&mut self, asks: &[Ask], running: &HashSet<SequenceId>) -> Vec<Vec<u32>> {
        let gone: Vec<_> = self.known.keys().filter(|id| !running.contains(id)).copied().collect();
        gone.into_iter().for_each(|id| self.forget(id));
        let config = self.decoder.config();
        let (vocab, context) = (config.vocab_size as u32, config.max_position_embeddings);
        let mut guesses = vec![Vec::new(); asks.len()];
        let mut going = Vec::new();
        for (ask, guesses) in asks.iter().zip(&mut guesses) {
            let len = ask.tokens.len() + ask.most;
            let able = len <= context && ask.tokens.iter().all(|&token| token < vocab);
            if able && ask.most > 0 && self.make_room(ask.id, ask.tokens, len) {
                going.push(Going { ask, guesses, tokens: ask.tokens.to_vec() });
            }
        }
        while !going.is_empty() {
            let Some(next) = self.run(&going) else {
                // What the pages hold is not to be trusted.
                going.iter().for_each(|going| self.forget(going.ask.id));
                break;
            };
            let mut ended = Vec::new();
            for (at, token) in next {
                let Going { ask, guesses, tokens } = &mut going[at];
                guesses.extend(token.map(|token| token as u32));
                tokens.extend(token.map(|token| token as u32));
                if token.is_none() || guesses.len() == ask.most {
                    ended.push(at);
                }
            }
            ended.into_iter().rev().for_each(|at| _ = going.swap_remove(at));
        }
        guesses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_longest_repetition_is_continued() {
        assert_eq!(prompt_lookup(&[1, 2, 3, 4, 5, 1, 2], 3), [3, 4, 5]);
        assert_eq!(prompt_lookup(&[1, 2, 3, 4, 5, 1, 2], 1), [3]);
        assert_eq!(prompt_lookup(&[1, 2, 9, 1, 2, 8, 1, 2], 2), [8, 1], "the latest place");
        assert_eq!(
            prompt_lookup(&[7, 1, 2, 9, 3, 1, 2, 8, 7, 1, 2], 1),
            [9],
            "the longest stretch"
        );
        assert_eq!(prompt_lookup(&[1, 2, 3], 4), [0u32; 0]);
        assert_eq!(prompt_lookup(&[5, 1, 2, 5], 4), [0u32; 0], "one token is too little");
        assert_eq!(prompt_lookup(&[6, 6, 6], 4), [6], "a loop");
        assert_eq!(prompt_lookup(&[], 4), [0u32; 0]);
        assert_eq!(prompt_lookup(&[1, 2, 3, 1, 2], 0), [0u32; 0]);
    }
}
