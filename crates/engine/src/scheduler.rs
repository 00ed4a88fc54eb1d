//! Which sequences run in the next step, and who gets the pages.

use crate::block_manager::{BlockManager, Root};
use crate::draft::{Ask, Drafter, prompt_lookup};
use crate::sequence::{Limits, Sequence, SequenceId};
use model::{Batch, Segment};
use std::collections::HashMap;
use std::ops::Range;

/// Fair among tenants, first come first served within each.
///
/// Every sequence gets a place in the order of service when it arrives: where its tenant's previous
/// one ends if each tenant were served at a speed of its weight, but not before the place of the
/// sequence admitted last (start-time fair queueing, Goyal, Vin and Cheng 1996). With one tenant that
/// is the order of arrival. A newcomer hence never gets a place before one that is running: every
/// sequence in `running` stands before every one in `waiting`, both are in order, and the first always
/// has the first claim on tokens and pages. It cannot be preempted, always advances, and so nothing
/// starves.
///
/// At most one running sequence, the last, is in the middle of its prompt: new ones are
/// admitted only with what the others leave of the step's tokens. Decodes never wait for a long
/// prompt.
pub(crate) struct Scheduler {
    /// In order of (start, id).
    pub(crate) waiting: Vec<Sequence>,
    pub(crate) running: Vec<Sequence>,
    pub(crate) blocks: BlockManager,
    /// Sequences that lost their pages and had to start again, in all.
    pub(crate) preemptions: u64,
    /// Place of the sequence admitted last.
    now: f64,
    /// Where the last place of each tenant ends; gone when it has nothing left here.
    ends: HashMap<u64, f64>,
    bounds: Bounds,
}

/// What a step must keep within.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) limits: Limits,
    pub(crate) max_batch_tokens: usize,
    pub(crate) max_num_seqs: usize,
    /// Most rows of logits in a step; at least one. Hidden states are no logits.
    pub(crate) max_logit_rows: usize,
    /// Most tokens guessed for a sequence.
    pub(crate) num_speculative_tokens: usize,
    /// See [`crate::Runner::recompute_beyond`].
    pub(crate) recompute_beyond: Option<usize>,
    /// See [`crate::Runner::whole_prompts`].
    pub(crate) whole_prompts: bool,
}

/// Rows of a step up to which a row more costs little, because the weights are read anyway: guesses
/// fill a step no further.
const GUESSING_ROWS: usize = 16;

/// One step's work.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) batch: Batch,
    /// What each segment of `batch` is.
    pub(crate) scheduled: Vec<Scheduled>,
    /// Sequences that run for the first time, and how many of their tokens were known.
    pub(crate) started: Vec<(SequenceId, usize)>,
}

/// One segment's sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scheduled {
    pub(crate) id: SequenceId,
    /// Its rows among the batch's `logit_rows`.
    pub(crate) rows: Range<usize>,
    /// Whether these are wanted as hidden states, not as logits.
    pub(crate) embeds: bool,
    /// The tokens at its end that are only guessed.
    pub(crate) guesses: Vec<u32>,
}

impl Bounds {
    /// What the keys of `sequence` depend on beside its tokens.
    pub(crate) fn root(&self, sequence: &Sequence) -> Root {
        let long = self.recompute_beyond.is_some_and(|most| sequence.tokens.len() > most);
        Root { generation: sequence.generation, long }
    }

    /// How many tokens may be guessed for one of `running` sequences.
    fn guesses_wanted(&self, sequence: &Sequence, running: usize) -> usize {
        let room = GUESSING_ROWS.saturating_sub(running) / running.max(1);
        let mut most = self.num_speculative_tokens.min(room);
        if let Some(beyond) = self.recompute_beyond
            && sequence.tokens.len() <= beyond
        {
            most = most.min(beyond - sequence.tokens.len());
        }
        sequence.guesses_worth(most, &self.limits)
    }

    /// Guesses at what follows in one of `running` sequences: the draft model's, otherwise what
    /// followed before.
    fn guess(&self, sequence: &Sequence, running: usize) -> Vec<u32> {
        match (self.guesses_wanted(sequence, running), &sequence.drafted[..]) {
            (0, _) => Vec::new(),
            (most, []) => prompt_lookup(&sequence.tokens, most).to_vec(),
            (most, drafted) => drafted[..drafted.len().min(most)].to_vec(),
        }
    }
}

impl Scheduler {
    pub(crate) fn new(num_blocks: usize, prefix_caching: bool, bounds: Bounds) -> Scheduler {
        Scheduler {
            waiting: Vec::new(),
            running: Vec::new(),
            blocks: BlockManager::new(num_blocks, prefix_caching),
            preemptions: 0,
            now: 0.0,
            ends: HashMap::new(),
            bounds,
        }
    }

    /// Has `drafter` guess for the running sequences whose next step has room for it.
    pub(crate) fn draft(&mut self, drafter: &mut dyn Drafter) {
        let count = self.running.len();
        let ask =
            |s| Ask { most: self.bounds.guesses_wanted(s, count), id: s.id, tokens: &s.tokens };
        let asks: Vec<Ask> = self.running.iter().map(ask).filter(|ask| ask.most > 0).collect();
        if asks.is_empty() {
            return;
        }
        let ids: Vec<SequenceId> = asks.iter().map(|ask| ask.id).collect();
        let running = self.running.iter().map(|s| s.id).collect();
        let vocab = self.bounds.limits.vocab_size;
        let guesses = drafter.guess(&asks, &running);
        for (id, mut guesses) in ids.into_iter().zip(guesses) {
            let known = guesses.iter().take_while(|&&token| (token as usize) < vocab).count();
            guesses.truncate(known);
            if let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) {
                sequence.drafted = guesses;
            }
        }
    }

    /// Adds a sequence at its place.
    pub(crate) fn add(&mut self, mut sequence: Sequence) {
        let cost = sequence.pending() + sequence.cost_left(&self.bounds.limits);
        let end = self.ends.entry(sequence.tenant).or_insert(self.now);
        sequence.start = end.max(self.now);
        *end = sequence.start + cost as f64 / f64::from(sequence.weight);
        self.enqueue(sequence);
    }

    fn enqueue(&mut self, sequence: Sequence) {
        let place = (sequence.start, sequence.id);
        let index = self.waiting.partition_point(|w| (w.start, w.id) < place);
        self.waiting.insert(index, sequence);
    }

    /// The next step: running sequences first, in order, then waiting ones while tokens, pages
    /// and places are left. None when there is nothing to do.
    pub(crate) fn schedule(&mut self) -> Option<Step> {
        let mut step = Step::default();
        let mut left =
            Left { tokens: self.bounds.max_batch_tokens, rows: self.bounds.max_logit_rows };
        let mut next = 0;
        while next < self.running.len() && left.some() {
            let mut guesses = self.bounds.guess(&self.running[next], self.running.len());
            guesses.truncate(left.tokens.min(left.rows) - 1);
            let len = self.running[next].tokens.len();
            let sequence = &mut self.running[next];
            if !guesses.is_empty() && !self.blocks.grow(&mut sequence.pages, len + guesses.len()) {
                guesses.clear();
            }
            if !self.make_room(next) {
                break;
            }
            step.push(&self.running[next], guesses, &mut left);
            next += 1;
        }
        // `next` stops short when tokens or pages ran out: then there is nothing for newcomers.
        while left.some() && next == self.running.len() && self.admit(&mut step, left.tokens) {
            step.push(&self.running[next], Vec::new(), &mut left);
            next += 1;
        }
        (!step.scheduled.is_empty()).then_some(step)
    }

    /// Gives `running[index]` the pages for all its tokens, preempting the last while none is
    /// free. False when it had to go itself.
    fn make_room(&mut self, index: usize) -> bool {
        loop {
            let sequence = &mut self.running[index];
            if self.blocks.grow(&mut sequence.pages, sequence.tokens.len()) {
                return true;
            }
            let Some(mut last) = self.running.pop() else { return false };
            self.blocks.release(&mut last.pages);
            last.computed = 0;
            self.preemptions += 1;
            self.enqueue(last);
            if index >= self.running.len() {
                return false;
            }
        }
    }

    /// Moves the first waiting sequence to `running`, with the pages for its whole prompt, so
    /// that a later chunk cannot fail for want of one. Keeps a page in reserve for every running
    /// sequence: each will want one within 16 steps, and admitting a prompt only to preempt it
    /// wastes its prefill. Alone, a sequence always fits (checked when it was added).
    ///
    /// What the pages know of its beginning is not run again, up to the first token whose logits are wanted.
    /// `tokens` are left of the step, which a prompt that must not be cut may not exceed.
    fn admit(&mut self, step: &mut Step, tokens: usize) -> bool {
        let Some(sequence) = self.waiting.first_mut() else { return false };
        if self.bounds.whole_prompts && sequence.pending() > tokens {
            return false;
        }
        let known = self.blocks.find(self.bounds.root(sequence), sequence.skippable());
        let needed = BlockManager::blocks_for(sequence.tokens.len()) - known.len()
            + self.blocks.idle_among(&known);
        if self.running.len() >= self.bounds.max_num_seqs
            || needed + self.running.len() > self.blocks.num_free()
        {
            return false;
        }
        self.blocks.hold(&known);
        sequence.computed = known.len() * model::BLOCK_SIZE;
        sequence.pages = known;
        if !self.blocks.grow(&mut sequence.pages, sequence.tokens.len()) {
            self.blocks.release(&mut sequence.pages);
            sequence.computed = 0;
            return false;
        }
        if sequence.cached.is_none() {
            sequence.cached = Some(sequence.computed);
            step.started.push((sequence.id, sequence.computed));
        }
        self.now = sequence.start;
        self.running.push(self.waiting.remove(0));
        true
    }

    /// Notes that the running sequence at `index` has come as far as it says: its full pages are
    /// known from now on.
    pub(crate) fn remember(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        let root = self.bounds.root(sequence);
        let Sequence { tokens, pages, computed, .. } = sequence;
        self.blocks.remember(root, &tokens[..*computed], pages);
    }

    /// Takes the pages of the running sequence at `index`, which has to run from its start again.
    pub(crate) fn restart(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        sequence.computed = 0;
        self.blocks.release(&mut sequence.pages);
    }

    /// Takes a sequence out, wherever it is, and its pages back.
    pub(crate) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let place = |queue: &[Sequence]| queue.iter().position(|s| s.id == id);
        let mut sequence = match (place(&self.running), place(&self.waiting)) {
            (Some(index), _) => self.running.remove(index),
            (None, Some(index)) => self.waiting.remove(index),
            (None, None) => return None,
        };
        self.blocks.release(&mut sequence.pages);
        let tenant = sequence.tenant;
        if self.running.iter().chain(&self.waiting).all(|s| s.tenant != tenant) {
            self.ends.remove(&tenant);
        } else {
            let left = sequence.cost_left(&self.bounds.limits) as f64;
            self.give_back(tenant, left / f64::from(sequence.weight));
        }
        Some(sequence)
    }

    /// What a sequence did not use is its tenant's again: those behind it come forward.
    fn give_back(&mut self, tenant: u64, unused: f64) {
        if let Some(end) = self.ends.get_mut(&tenant) {
            *end -= unused;
        }
        for sequence in self.waiting.iter_mut().filter(|s| s.tenant == tenant) {
            sequence.start = (sequence.start - unused).max(self.now);
        }
        self.waiting.sort_by(|a, b| a.start.total_cmp(&b.start).then(a.id.cmp(&b.id)));
    }
}

/// What is left of a step.
struct Left {
    tokens: usize,
    rows: usize,
}

impl Left {
    fn some(&self) -> bool {
        self.tokens > 0 && self.rows > 0
    }
}

impl Step {
    /// Adds the next tokens of `sequence`, and `guesses` behind them, as far as `left` goes.
    fn push(&mut self, sequence: &Sequence, guesses: Vec<u32>, left: &mut Left) {
        let past = sequence.computed;
        let mut len = sequence.pending().min(left.tokens);
        if sequence.scores_prompt() {
            len = len.min(left.rows);
        }
        let (start, first) = (self.batch.tokens.len(), self.batch.logit_rows.len());
        self.batch.tokens.extend_from_slice(&sequence.tokens[past..past + len]);
        self.batch.tokens.extend_from_slice(&guesses);
        let wanted = sequence.wanted(len, guesses.len());
        self.batch.logit_rows.extend(wanted.start + start..wanted.end + start);
        len += guesses.len();
        self.batch.segments.push(Segment {
            len,
            past,
            pages: sequence.pages.clone(),
            adapter: sequence.adapter,
            reach: sequence.tokens.len(),
            dropout: None,
        });
        left.tokens -= len;
        let (rows, embeds) = (first..first + wanted.len(), sequence.embeds());
        if !embeds {
            left.rows -= rows.len();
        }
        self.scheduled.push(Scheduled { id: sequence.id, rows, embeds, guesses });
    }

    /// The places in the batch's `logit_rows` whose hidden states are wanted, not their logits.
    pub(crate) fn hidden(&self) -> Vec<usize> {
        self.scheduled.iter().filter(|s| s.embeds).flat_map(|s| s.rows.clone()).collect()
    }

    /// The batch with segment `index` alone.
    pub(crate) fn alone(&self, index: usize) -> Batch {
        let start: usize = self.batch.segments[..index].iter().map(|s| s.len).sum();
        let segment = self.batch.segments[index].clone();
        let rows = &self.batch.logit_rows[self.scheduled[index].rows.clone()];
        Batch {
            tokens: self.batch.tokens[start..start + segment.len].to_vec(),
            logit_rows: rows.iter().map(|row| row - start).collect(),
            segments: vec![segment],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::SamplingParams;
    use crate::sequence::SequenceRequest;
    use model::Pooling;

    const V: usize = 1000;

    fn empty(num_blocks: usize, tokens: usize, seqs: usize) -> Scheduler {
        let bounds = Bounds {
            limits: Limits::new(1000, num_blocks, V),
            max_batch_tokens: tokens,
            max_num_seqs: seqs,
            max_logit_rows: 64,
            num_speculative_tokens: 0,
            recompute_beyond: None,
            whole_prompts: false,
        };
        Scheduler::new(num_blocks, true, bounds)
    }

    fn add(s: &mut Scheduler, id: u64, change: impl Fn(&mut SequenceRequest)) {
        let mut request = SequenceRequest::default();
        change(&mut request);
        s.add(Sequence::new(SequenceId(id), request, 0, V));
    }

    /// Prompts of different tokens.
    fn scheduler(num_blocks: usize, tokens: usize, seqs: usize, prompts: &[usize]) -> Scheduler {
        let mut s = empty(num_blocks, tokens, seqs);
        for (i, &len) in prompts.iter().enumerate() {
            add(&mut s, i as u64, |r| r.prompt = vec![i as u32; len]);
        }
        s
    }

    /// Schedules, pretends to have run, lets each sampled sequence gain a token; returns
    /// (id, past, len, sampled) of each segment.
    fn step(s: &mut Scheduler) -> Vec<(u64, usize, usize, bool)> {
        let Some(step) = s.schedule() else { return Vec::new() };
        let shown = step.scheduled.iter().zip(&step.batch.segments);
        let shown: Vec<_> =
            shown.map(|(w, g)| (w.id.0, g.past, g.len, !w.rows.is_empty())).collect();
        for &(id, _, len, sampled) in &shown {
            let index = s.running.iter().position(|r| r.id.0 == id).unwrap();
            s.running[index].computed += len;
            s.remember(index);
            if sampled {
                s.running[index].tokens.push(9);
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
        assert_eq!(
            step(&mut s)[0],
            (1, 16, 1, true),
            "its full page was still there; the rest is run again"
        );
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
        assert_eq!((first.tokens, first.logit_rows), (vec![0; 3], vec![2]));
        let second = step.alone(1);
        assert_eq!((second.tokens, second.logit_rows), (vec![1; 5], vec![]));
        assert_eq!(second.segments, [step.batch.segments[1].clone()]);
    }

    #[test]
    fn a_known_beginning_is_not_run_again() {
        let mut s = empty(100, 64, 10);
        let prompt: Vec<u32> = (0..40).collect();
        add(&mut s, 0, |r| r.prompt = prompt.clone());
        assert_eq!(step(&mut s), [(0, 0, 40, true)]);
        add(&mut s, 1, |r| r.prompt = prompt.clone());
        // Exactly two blocks: the last token is run for its logits, so one block is known.
        add(&mut s, 2, |r| r.prompt = prompt[..32].to_vec());
        assert_eq!(step(&mut s), [(0, 40, 1, true), (1, 32, 8, true), (2, 16, 16, true)]);
        assert_eq!(
            s.running.iter().map(|r| r.usage().cached_tokens).collect::<Vec<_>>(),
            [0, 32, 16]
        );
        // Eight pages without sharing: three each for the first two, two for the last, which has
        // given its own second one back when that turned out to be there already.
        assert_eq!(s.blocks.num_free(), 100 - 4);
    }

    #[test]
    fn a_prompt_that_is_scored_asks_for_all_its_rows() {
        let mut s = empty(100, 100, 10);
        let params = SamplingParams {
            logprobs: Some(0),
            prompt_logprobs: true,
            ..SamplingParams::default()
        };
        add(&mut s, 0, |r| (r.prompt, r.params) = (vec![1; 80], params.clone()));
        let first = s.schedule().unwrap();
        assert_eq!((first.batch.tokens.len(), first.batch.logit_rows.len()), (64, 64));
        assert_eq!(first.scheduled[0].rows, 0..64, "as many rows as a step may have");
    }

    /// Mixed into the same batch as others; a long one goes in piece by piece.
    #[test]
    fn a_text_to_embed_asks_for_the_rows_of_its_pooling() {
        let mut s = empty(100, 12, 10);
        s.bounds.max_logit_rows = 1;
        add(&mut s, 0, |r| (r.prompt, r.pooling) = (vec![1; 4], Some(Pooling::Mean)));
        add(&mut s, 1, |r| (r.prompt, r.pooling) = (vec![2; 3], Some(Pooling::Cls)));
        add(&mut s, 2, |r| (r.prompt, r.pooling) = (vec![3; 8], Some(Pooling::Last)));
        let first = s.schedule().unwrap();
        assert_eq!(first.batch.logit_rows, [0, 1, 2, 3, 4], "they are no rows of logits");
        assert_eq!(first.hidden(), [0, 1, 2, 3, 4]);
        assert_eq!(first.scheduled[2].rows, 5..5, "its last token is not among the first five");
        s.remove(SequenceId(0)).unwrap();
        s.remove(SequenceId(1)).unwrap();
        s.running[0].computed = 5;
        add(&mut s, 3, |r| r.prompt = vec![4; 2]);
        let second = s.schedule().unwrap();
        assert_eq!(second.batch.tokens, [3, 3, 3, 4, 4]);
        assert_eq!((&second.batch.logit_rows[..], &second.hidden()[..]), (&[2, 4][..], &[0][..]));
    }

    #[test]
    fn a_prompt_that_must_not_be_cut_waits_for_a_step_of_its_own() {
        let mut s = empty(100, 10, 10);
        s.bounds.whole_prompts = true;
        for (id, len) in [(0, 6), (1, 5), (2, 4)] {
            add(&mut s, id, |r| (r.prompt, r.pooling) = (vec![1; len], Some(Pooling::Mean)));
        }
        let mut lengths = Vec::new();
        while let Some(step) = s.schedule() {
            lengths.push(step.batch.segments.iter().map(|s| s.len).collect::<Vec<_>>());
            step.scheduled.iter().for_each(|done| _ = s.remove(done.id).unwrap());
        }
        assert_eq!(lengths, [vec![6], vec![5, 4]]);
    }

    #[test]
    fn tenants_share_by_weight() {
        let mut s = empty(1000, 64, 1);
        let params = SamplingParams { max_tokens: 10, ..SamplingParams::default() };
        let request = |tenant, weight| {
            let params = params.clone();
            move |r: &mut SequenceRequest| {
                *r = SequenceRequest {
                    prompt: vec![tenant as u32; 10],
                    params: params.clone(),
                    tenant,
                    weight,
                    ..SequenceRequest::default()
                };
            }
        };
        // One tenant sends eight at once, another comes later with four of twice the weight.
        (0..8).for_each(|id| add(&mut s, id, request(1, 1)));
        step(&mut s);
        (8..12).for_each(|id| add(&mut s, id, request(2, 2)));
        let mut served = Vec::new();
        while let Some(&(id, ..)) = step(&mut s).first() {
            // All of it is used up.
            let sequence = s.running.first_mut().unwrap();
            sequence.tokens.resize(20, 9);
            s.remove(SequenceId(id)).unwrap();
            served.push(id);
        }
        assert_eq!(served, [0, 8, 9, 1, 10, 11, 2, 3, 4, 5, 6, 7]);
        assert!(s.ends.is_empty(), "nobody is remembered without need");
    }

    #[test]
    fn what_a_request_did_not_use_is_given_back() {
        let mut s = empty(1000, 64, 1);
        let long = SamplingParams { max_tokens: 500, ..SamplingParams::default() };
        let request = |tenant: u64| {
            let params = long.clone();
            move |r: &mut SequenceRequest| {
                *r = SequenceRequest {
                    prompt: vec![1; 10],
                    params: params.clone(),
                    tenant,
                    ..SequenceRequest::default()
                };
            }
        };
        (0..2).for_each(|id| add(&mut s, id, request(1)));
        (2..4).for_each(|id| add(&mut s, id, request(2)));
        // Each ends after one token of 500, so the tenants take turns.
        let mut served = Vec::new();
        while let Some(&(id, ..)) = step(&mut s).first() {
            s.remove(SequenceId(id)).unwrap();
            served.push(id);
        }
        assert_eq!(served, [0, 2, 1, 3]);
        add(&mut s, 4, request(1));
        add(&mut s, 5, request(1));
        step(&mut s);
        add(&mut s, 6, request(2));
        s.remove(SequenceId(4)).unwrap();
        assert!(s.waiting[0].id.0 == 6 && s.waiting[1].start < s.now + 12.0, "11 were used");
    }

    #[test]
    fn guesses_fill_small_steps_only() {
        let mut s = empty(100, 64, 32);
        s.bounds.num_speculative_tokens = 4;
        add(&mut s, 0, |r| r.prompt = vec![1, 2, 3, 4, 5, 6, 1, 2, 3]);
        step(&mut s);
        // The token sampled is 9, which was not there before.
        let next = s.schedule().unwrap();
        assert_eq!(next.scheduled[0].guesses, [0u32; 0]);
        s.running[0].tokens[9] = 4;
        let next = s.schedule().unwrap();
        assert_eq!(next.scheduled[0].guesses, [5, 6, 1, 2]);
        assert_eq!(next.batch.tokens, [4, 5, 6, 1, 2]);
        assert_eq!(next.batch.logit_rows, [0, 1, 2, 3, 4]);
        assert_eq!(next.batch.segments[0].reach, 10, "guesses are no part of the sequence");
        // With many running, none.
        (1..16).for_each(|id| add(&mut s, id, |r| r.prompt = vec![50 + id as u32]));
        s.schedule().unwrap();
        let next = s.schedule().unwrap();
        assert_eq!(next.scheduled[0].guesses, [0u32; 0]);
    }
}
