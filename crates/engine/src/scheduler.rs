//! Which sequences run in the next step, and who gets the pages.

use crate::block_manager::BlockManager;
use crate::sequence::{Sequence, SequenceId};
use model::{Batch, Segment};
use std::collections::VecDeque;

/// First come, first served. Every sequence in `running` is older than every one in `waiting`, and
/// both are in order of age, so the oldest always has the first claim on tokens and pages: it
/// cannot be preempted, always advances, and hence nothing starves.
///
/// At most one running sequence, the youngest, is in the middle of its prompt: new ones are
/// admitted only with what the others leave of the step's tokens. Decodes never wait for a long
/// prompt.
#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(crate) waiting: VecDeque<Sequence>,
    pub(crate) running: Vec<Sequence>,
    pub(crate) blocks: BlockManager,
    /// Sequences that lost their pages and had to start again, in all.
    pub(crate) preemptions: u64,
    max_batch_tokens: usize,
    max_num_seqs: usize,
}

/// One step's work.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) batch: Batch,
    /// The sequence of each segment of `batch`, and its row of logits when its last token is in.
    pub(crate) scheduled: Vec<(SequenceId, Option<usize>)>,
}

impl Scheduler {
    pub(crate) fn new(
        num_blocks: usize,
        max_batch_tokens: usize,
        max_num_seqs: usize,
    ) -> Scheduler {
        Scheduler {
            waiting: VecDeque::new(),
            running: Vec::new(),
            blocks: BlockManager::new(num_blocks),
            preemptions: 0,
            max_batch_tokens,
            max_num_seqs,
        }
    }

    /// Adds a sequence, younger than all before it.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// The next step: running sequences first, oldest first, then waiting ones while tokens, pages
    /// and places are left. None when there is nothing to do.
    pub(crate) fn schedule(&mut self) -> Option<Step> {
        let mut step = Step::default();
        let mut budget = self.max_batch_tokens;
        let mut next = 0;
        while next < self.running.len() && budget > 0 {
            if !self.make_room(next) {
                break;
            }
            budget -= step.push(&self.running[next], budget);
            next += 1;
        }
        // `next` stops short when tokens or pages ran out: then there is nothing for newcomers.
        while budget > 0 && next == self.running.len() && self.admit() {
            budget -= step.push(&self.running[next], budget);
            next += 1;
        }
        (!step.scheduled.is_empty()).then_some(step)
    }

    /// Gives `running[index]` the pages for all its tokens, preempting the youngest while none is
    /// free. False when it had to go itself.
    fn make_room(&mut self, index: usize) -> bool {
        loop {
            let sequence = &mut self.running[index];
            if self.blocks.grow(&mut sequence.pages, sequence.tokens.len()) {
                return true;
            }
            let Some(mut youngest) = self.running.pop() else { return false };
            self.blocks.release(&mut youngest.pages);
            youngest.computed = 0;
            self.preemptions += 1;
            self.waiting.push_front(youngest);
            if index >= self.running.len() {
                return false;
            }
        }
    }

    /// Moves the oldest waiting sequence to `running`, with the pages for its whole prompt, so
    /// that a later chunk cannot fail for want of one. Keeps a page in reserve for every running
    /// sequence: each will want one within 16 steps, and admitting a prompt only to preempt it
    /// wastes its prefill. Alone, a sequence always fits (checked when it was added).
    fn admit(&mut self) -> bool {
        let Some(sequence) = self.waiting.front_mut() else { return false };
        let needed = BlockManager::blocks_for(sequence.tokens.len());
        let fits = needed + self.running.len() <= self.blocks.num_free();
        if self.running.len() >= self.max_num_seqs
            || !fits
            || !self.blocks.grow(&mut sequence.pages, sequence.tokens.len())
        {
            return false;
        }
        self.running.extend(self.waiting.pop_front());
        true
    }

    /// The running sequence `id`.
    pub(crate) fn running_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        let index = self.running.binary_search_by_key(&id, |s| s.id).ok()?;
        Some(&mut self.running[index])
    }

    /// Takes a sequence out, wherever it is, and its pages back.
    pub(crate) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let mut sequence = match self.running.binary_search_by_key(&id, |s| s.id) {
            Ok(index) => self.running.remove(index),
            Err(_) => {
                let index = self.waiting.binary_search_by_key(&id, |s| s.id).ok()?;
                self.waiting.remove(index)?
            }
        };
        self.blocks.release(&mut sequence.pages);
        Some(sequence)
    }
}

impl Step {
    /// Adds the next tokens of `sequence`, at most `budget`; returns how many.
    fn push(&mut self, sequence: &Sequence, budget: usize) -> usize {
        let len = sequence.pending().min(budget);
        let past = sequence.computed;
        self.batch.tokens.extend_from_slice(&sequence.tokens[past..past + len]);
        self.batch.segments.push(Segment {
            len,
            past,
            pages: sequence.pages.clone(),
            adapter: sequence.adapter,
            reach: sequence.tokens.len(),
            dropout: None,
        });
        let row = (len == sequence.pending()).then(|| {
            self.batch.logit_rows.push(self.batch.tokens.len() - 1);
            self.batch.logit_rows.len() - 1
        });
        self.scheduled.push((sequence.id, row));
        len
    }

    /// The batch with segment `index` alone.
    pub(crate) fn alone(&self, index: usize) -> Batch {
        let start: usize = self.batch.segments[..index].iter().map(|s| s.len).sum();
        let segment = self.batch.segments[index].clone();
        Batch {
            tokens: self.batch.tokens[start..start + segment.len].to_vec(),
            logit_rows: self.scheduled[index].1.map(|_| segment.len - 1).into_iter().collect(),
            segments: vec![segment],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::{SamplingParams, SequenceRequest};

    fn scheduler(num_blocks: usize, tokens: usize, seqs: usize, prompts: &[usize]) -> Scheduler {
        let mut s = Scheduler::new(num_blocks, tokens, seqs);
        for (i, &len) in prompts.iter().enumerate() {
            let request = SequenceRequest {
                prompt: (0..len as u32).collect(),
                params: SamplingParams::default(),
                adapter: None,
            };
            s.add(Sequence::new(SequenceId(i as u64), request));
        }
        s
    }

    /// Schedules, pretends to have run, lets each sampled sequence gain a token; returns
    /// (id, past, len, sampled) of each segment.
    fn step(s: &mut Scheduler) -> Vec<(u64, usize, usize, bool)> {
        let Some(step) = s.schedule() else { return Vec::new() };
        let shown = step.scheduled.iter().zip(&step.batch.segments);
        let shown: Vec<_> =
            shown.map(|(&(id, row), g)| (id.0, g.past, g.len, row.is_some())).collect();
        for &(id, _, len, sampled) in &shown {
            let sequence = s.running_mut(SequenceId(id)).unwrap();
            sequence.computed += len;
            if sampled {
                sequence.tokens.push(9);
            }
        }
        shown
    }

    #[test]
    fn prompts_are_chunked_and_mixed_with_decodes() {
        let mut s = scheduler(100, 8, 10, &[3, 12, 2]);
        assert_eq!(step(&mut s), [(0, 0, 3, true), (1, 0, 5, false)]);
        assert_eq!(step(&mut s), [(0, 3, 1, true), (1, 5, 7, true)]);
        assert_eq!(step(&mut s), [(0, 4, 1, true), (1, 12, 1, true), (2, 0, 2, true)]);
        assert_eq!(step(&mut s).len(), 3);
    }

    #[test]
    fn no_more_than_max_num_seqs_run() {
        let mut s = scheduler(100, 64, 2, &[1, 1, 1]);
        assert_eq!(step(&mut s).len(), 2);
        assert_eq!(s.waiting.len(), 1);
        s.remove(SequenceId(0)).unwrap();
        assert_eq!(step(&mut s), [(1, 1, 1, true), (2, 0, 1, true)]);
    }

    #[test]
    fn the_youngest_is_preempted_and_comes_back_first() {
        // Three pages: prompts of one page each plus a reserve page let two in.
        let mut s = scheduler(3, 64, 10, &[15, 15, 1]);
        assert_eq!(step(&mut s), [(0, 0, 15, true), (1, 0, 15, true)]);
        assert_eq!(step(&mut s).len(), 2, "16 tokens each, still one page each");
        // Token 17 of the first takes the last page; the second must give its own up.
        assert_eq!(step(&mut s), [(0, 16, 1, true)]);
        assert_eq!(s.preemptions, 1);
        assert_eq!(s.waiting.iter().map(|w| w.id.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(s.blocks.num_free(), 1);
        s.remove(SequenceId(0)).unwrap();
        assert_eq!(step(&mut s)[0], (1, 0, 17, true), "recomputed with what it had generated");
    }

    #[test]
    fn removing_gives_pages_back_from_both_queues() {
        let mut s = scheduler(4, 64, 1, &[20, 20]);
        step(&mut s);
        assert_eq!(s.blocks.num_free(), 2);
        assert!(s.remove(SequenceId(1)).is_some(), "waiting");
        assert!(s.remove(SequenceId(0)).is_some(), "running");
        assert!(s.remove(SequenceId(0)).is_none());
        assert_eq!(s.blocks.num_free(), 4);
        assert!(s.schedule().is_none());
    }

    #[test]
    fn a_segment_alone_asks_for_its_own_row() {
        let mut s = scheduler(100, 8, 10, &[3, 12]);
        let step = s.schedule().unwrap();
        let first = step.alone(0);
        assert_eq!((first.tokens, first.logit_rows), (vec![0, 1, 2], vec![2]));
        let second = step.alone(1);
        assert_eq!((second.tokens, second.logit_rows), (vec![0, 1, 2, 3, 4], vec![]));
        assert_eq!(second.segments, [step.batch.segments[1].clone()]);
    }
}
