//! One request on its way: what was asked, what is generated, which pages it holds.

use crate::constraint::{Constraint, GrammarRef, TokenSet};
use crate::error::EngineError;
use crate::params::SamplingParams;
use crate::pooler::Pooler;
use crate::sampler::{Sampler, TokenLogprobs};
use model::{BLOCK_SIZE, Pooling};
use serde::Serialize;
use std::ops::Range;

/// Name of a sequence, unique within its engine; a later request has a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// What a caller wants generated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceRequest {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How to go on from there.
    pub params: SamplingParams,
    /// Slot in the engine's [`model::AdapterSet`]; None is the base alone.
    pub adapter: Option<usize>,
    /// What the answer must keep to.
    pub grammar: Option<GrammarRef>,
    /// Do not go on from the prompt but make one embedding of it, of its final hidden states (comes as
    /// [`crate::Event::Embedding`]). `params` and `grammar` do not count then.
    pub pooling: Option<Pooling>,
    /// Who asks. Waiting requests of different tenants get equal shares of the engine, however many
    /// each of them has sent.
    pub tenant: u64,
    /// This tenant's share is so many times that of a tenant with 1; 0 counts as 1.
    pub weight: u32,
}

/// What any request must keep within, fixed when the engine is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest context of the model, tokens.
    pub context_len: usize,
    /// Tokens that all pages of the KV cache hold together.
    pub cache_tokens: usize,
    /// V
    pub vocab_size: usize,
}

impl Limits {
    pub(crate) fn new(context_len: usize, num_blocks: usize, vocab_size: usize) -> Limits {
        Limits { context_len, cache_tokens: num_blocks.saturating_mul(BLOCK_SIZE), vocab_size }
    }

    /// Longest sequence, prompt and generated tokens together.
    pub fn max_len(&self) -> usize {
        self.context_len.min(self.cache_tokens)
    }

    /// Checks a request against these limits and its own parameters' ranges. A `max_tokens` beyond
    /// the context is fine: the sequence then ends at the context with [`FinishReason::Length`].
    ///
    /// # Errors
    /// The first rule broken, as an [`EngineError`].
    pub fn check(&self, request: &SequenceRequest) -> Result<(), EngineError> {
        let tokens = request.prompt.len();
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if request.pooling.is_some() {
            if tokens > self.max_len() {
                return Err(EngineError::InputTooLong { tokens, most: self.max_len() });
            }
        } else {
            request.params.validate(self.vocab_size)?;
            // Scoring alone does not run the last token: nothing is foretold from it.
            let scored = request.params.max_tokens == 0 && tokens > 1;
            let (run, beyond) = if scored { (tokens - 1, 1) } else { (tokens, 0) };
            if run >= self.context_len + beyond {
                return Err(EngineError::PromptTooLong { tokens, context_len: self.context_len });
            }
            if run >= self.cache_tokens {
                return Err(EngineError::PromptExceedsCache {
                    tokens,
                    capacity: self.cache_tokens,
                });
            }
        }
        match request.prompt.iter().position(|&t| t as usize >= self.vocab_size) {
            Some(position) => Err(EngineError::TokenOutOfRange {
                token: request.prompt[position],
                position,
                vocab_size: self.vocab_size,
            }),
            None => Ok(()),
        }
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// A stop token was chosen, or the embedding is complete.
    Stop,
    /// `max_tokens`, the context or the KV cache is used up.
    Length,
    /// The caller gave up.
    Cancelled,
}

/// Tokens processed for one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, tokens whose keys and values were there already from earlier requests.
    pub cached_tokens: usize,
    /// Tokens generated; counts the stop token that ended the sequence, which is not output.
    pub completion_tokens: usize,
}

/// A request being worked on.
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    /// Prompt, then what was generated.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_len: usize,
    /// Tokens whose keys and values are in `pages`. The rest is still to run.
    pub(crate) computed: usize,
    /// Page table; empty while waiting.
    pub(crate) pages: Vec<u32>,
    pub(crate) adapter: Option<usize>,
    /// Which adapter the slot held when the sequence came: keys made with another one are none of its.
    pub(crate) generation: u64,
    pub(crate) tenant: u64,
    pub(crate) weight: u32,
    /// Its place in the order of service, see [`crate::scheduler::Scheduler`].
    pub(crate) start: f64,
    /// Tokens found in the cache when it first got pages; None before that.
    pub(crate) cached: Option<usize>,
    /// Tokens of the prompt whose log probability is told.
    scored: usize,
    constraint: Option<Box<dyn Constraint>>,
    /// What may be chosen next, made beside the forward.
    allowed: Result<TokenSet, String>,
    /// What the draft model thinks will follow.
    pub(crate) drafted: Vec<u32>,
    /// Guessed tokens that were run, and those of them that were right.
    guesses: (usize, usize),
    /// Where the prompt is embedded.
    pooler: Option<Pooler>,
    sampler: Sampler,
    params: SamplingParams,
}

impl Sequence {
    /// `request` has been checked against the limits.
    pub(crate) fn new(
        id: SequenceId,
        mut request: SequenceRequest,
        generation: u64,
        vocab_size: usize,
    ) -> Sequence {
        if request.pooling.is_some() {
            request.params = SamplingParams { max_tokens: 0, ..SamplingParams::default() };
            request.grammar = None;
        }
        let constraint = request.grammar.map(|grammar| grammar.0.start());
        Sequence {
            id,
            prompt_len: request.prompt.len(),
            sampler: Sampler::new(&request.params, &request.prompt),
            computed: 0,
            pages: Vec::new(),
            adapter: request.adapter,
            generation,
            tenant: request.tenant,
            weight: request.weight.max(1),
            start: 0.0,
            cached: None,
            // Nothing stands before the first token.
            scored: match request.params.prompt_logprobs {
                true => request.params.prompt_logprobs_from.max(1),
                false => usize::MAX,
            },
            allowed: Ok(TokenSet::new(if constraint.is_some() { vocab_size } else { 0 })),
            constraint,
            drafted: Vec::new(),
            guesses: (0, 0),
            pooler: request.pooling.map(|pooling| Pooler::new(pooling, request.prompt.len())),
            params: request.params,
            tokens: request.prompt,
        }
    }

    /// Tokens not yet run: the whole prompt at first, a single token while decoding, all of them
    /// again after a preemption.
    pub(crate) fn pending(&self) -> usize {
        self.end() - self.computed
    }

    /// Tokens to run in all: those there are, without the last one where nothing is to follow it.
    fn end(&self) -> usize {
        match self.params.max_tokens {
            0 if self.pooler.is_none() => (self.tokens.len() - 1).max(1),
            _ => self.tokens.len(),
        }
    }

    /// Whether log probabilities of the prompt are still to be told: every row of logits from the one
    /// before the next such token is wanted.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.scored < self.prompt_len
    }

    /// Whether an embedding is made of the prompt, so that its rows are hidden states, not logits.
    pub(crate) fn embeds(&self) -> bool {
        self.pooler.is_some()
    }

    /// The beginning that need not be run where its keys are there already: what comes before the first
    /// row that is wanted.
    pub(crate) fn skippable(&self) -> &[u32] {
        let most = match &self.pooler {
            Some(pooler) if !pooler.may_skip() => 0,
            None if self.scores_prompt() => self.scored - 1,
            _ => self.end() - 1,
        };
        &self.tokens[..most]
    }

    /// Of its next `len` tokens, those whose rows are wanted, counted from the first of them; `guesses`
    /// tokens follow.
    pub(crate) fn wanted(&self, len: usize, guesses: usize) -> Range<usize> {
        match &self.pooler {
            Some(pooler) => pooler.wanted(self.computed, len),
            None if self.scores_prompt() => (self.scored - 1 - self.computed).min(len)..len,
            None if len == self.pending() => len - 1..len + guesses,
            None => 0..0,
        }
    }

    /// Tokens that the request may still cost, for the order of service.
    pub(crate) fn cost_left(&self, limits: &Limits) -> usize {
        let end = self.prompt_len.saturating_add(self.params.max_tokens).min(limits.max_len());
        end.saturating_sub(self.tokens.len())
    }

    /// How many tokens may be guessed for the next step, at most `most`: never beyond the end of the
    /// answer, none where a grammar decides, few where guesses were mostly wrong.
    pub(crate) fn guesses_worth(&self, most: usize, limits: &Limits) -> usize {
        if self.constraint.is_some() || self.pending() != 1 || self.scores_prompt() {
            return 0;
        }
        let (made, right) = self.guesses;
        let worth = match made {
            0..16 => most,
            _ => (most * 2 * right).div_ceil(made).min(most),
        };
        worth.min(self.cost_left(limits).saturating_sub(1))
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_len,
            cached_tokens: self.cached.unwrap_or(0),
            completion_tokens: self.tokens.len() - self.prompt_len,
        }
    }

    /// Whether a grammar says what may be chosen.
    pub(crate) fn is_constrained(&self) -> bool {
        self.constraint.is_some()
    }

    /// Asks the grammar what may follow. Takes a while, so it is done beside the forward.
    pub(crate) fn prepare(&mut self) {
        let Some(constraint) = &mut self.constraint else { return };
        let Ok(allowed) = &mut self.allowed else { return };
        allowed.clear();
        let (stops, ends) = (&self.params.stop_ids, !self.params.ignore_eos);
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            constraint.allowed(allowed)?;
            if ends && constraint.may_end() {
                stops.iter().for_each(|&id| allowed.insert(id));
            }
            Ok(())
        }));
        if let Err(problem) = asked.unwrap_or_else(|_| Err("the grammar's work panicked".into())) {
            self.allowed = Err(problem);
        }
    }

    /// Goes on behind a step that ran the next `len` of its tokens, of which the last `guessed` are
    /// no tokens of the sequence yet. `values` are those of the rows that [`Sequence::wanted`] asked for:
    /// logits [n, V], or hidden states [n, H] where the prompt is embedded.
    ///
    /// A guess is right when it is what the sampler chooses anyway, so guessing changes no text.
    ///
    /// # Errors
    /// [`EngineError::NonFinite`], [`EngineError::Grammar`].
    pub(crate) fn advance(
        &mut self,
        len: usize,
        guesses: &[u32],
        values: &[f32],
        limits: &Limits,
    ) -> Result<Advance, EngineError> {
        let mut advance = Advance::default();
        if let Some(pooler) = &mut self.pooler {
            pooler.take(self.computed, len, values)?;
            self.computed += len;
            if self.computed == self.tokens.len() {
                advance.embedding = Some(pooler.finish());
                advance.finished = Some(FinishReason::Stop);
            }
            return Ok(advance);
        }
        let mut rows = values.chunks_exact(limits.vocab_size);
        if self.scores_prompt() {
            self.score(&mut rows, &mut advance)?;
        }
        self.computed += len - guesses.len();
        if self.computed < self.end() {
            return Ok(advance);
        }
        if self.params.max_tokens == 0 {
            advance.finished = Some(FinishReason::Length);
            return Ok(advance);
        }
        self.guesses.0 += guesses.len();
        self.drafted.clear();
        for (i, row) in rows.enumerate() {
            self.choose(row, limits, &mut advance)?;
            if advance.finished.is_some() || guesses.get(i) != self.tokens.last() {
                break;
            }
            advance.accepted += 1;
        }
        self.guesses.1 += advance.accepted;
        // The keys of right guesses are in the pages; those of wrong ones will be written over.
        self.computed = self.tokens.len() - 1;
        Ok(advance)
    }

    /// Tells the log probabilities of the prompt's tokens that are told next, as far as `rows`
    /// go, and leaves the row that the first generated token is chosen from.
    fn score<'a>(
        &mut self,
        rows: &mut impl Iterator<Item = &'a [f32]>,
        advance: &mut Advance,
    ) -> Result<(), EngineError> {
        let top = self.params.logprobs.unwrap_or(0);
        for position in self.scored..self.prompt_len {
            let Some(row) = rows.next() else { break };
            if !row.iter().all(|l| l.is_finite()) {
                return Err(EngineError::NonFinite { position });
            }
            advance.prompt.push(TokenLogprobs::new(row, self.tokens[position], top));
            self.scored += 1;
        }
        Ok(())
    }

    /// Chooses the next token from `row` [V] and appends it.
    fn choose(
        &mut self,
        row: &[f32],
        limits: &Limits,
        advance: &mut Advance,
    ) -> Result<(), EngineError> {
        let position = self.tokens.len();
        let sampled = match (&self.constraint, &self.allowed) {
            (None, _) => self.sampler.sample(row, None),
            (Some(_), Err(problem)) => return Err(EngineError::Grammar(problem.clone())),
            (Some(_), Ok(allowed)) if allowed.is_empty() => {
                advance.finished = Some(FinishReason::Stop);
                return Ok(());
            }
            (Some(_), Ok(allowed)) => self.sampler.sample(row, Some(allowed)),
        };
        let sampled = sampled.ok_or(EngineError::NonFinite { position })?;
        self.tokens.push(sampled.token);
        let stopped = !self.params.ignore_eos && self.params.stop_ids.contains(&sampled.token);
        let full = self.usage().completion_tokens >= self.params.max_tokens
            || self.tokens.len() >= limits.max_len();
        let mut complete = false;
        if let (false, Some(constraint)) = (stopped, &mut self.constraint) {
            let accept = std::panic::AssertUnwindSafe(|| {
                constraint.accept(sampled.token)?;
                Ok(constraint.must_end())
            });
            complete = std::panic::catch_unwind(accept)
                .unwrap_or_else(|_| Err("the grammar's work panicked".into()))
                .map_err(EngineError::Grammar)?;
        }
        if !stopped {
            advance.tokens.push((sampled.token, sampled.logprobs));
        }
        advance.finished = match (stopped || complete, full) {
            (true, _) => Some(FinishReason::Stop),
            (false, true) => Some(FinishReason::Length),
            (false, false) => None,
        };
        Ok(())
    }
}

/// What a step meant for its sequence.
#[derive(Default)]
pub(crate) struct Advance {
    /// What is now known of the prompt's next tokens.
    pub(crate) prompt: Vec<TokenLogprobs>,
    /// The embedding of the prompt, where that was asked for and is complete.
    pub(crate) embedding: Option<Vec<f32>>,
    /// The tokens chosen, without a stop token.
    pub(crate) tokens: Vec<(u32, Option<TokenLogprobs>)>,
    /// Guesses that were right and gone beyond.
    pub(crate) accepted: usize,
    pub(crate) finished: Option<FinishReason>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_name_the_rule_broken() {
        let limits = Limits::new(100, 4, 50);
        assert_eq!(limits.max_len(), 64);
        let check = |prompt: Vec<u32>| {
            limits.check(&SequenceRequest { prompt, ..SequenceRequest::default() })
        };
        assert_eq!(check(vec![1; 63]), Ok(()));
        assert_eq!(check(vec![]), Err(EngineError::EmptyPrompt));
        assert_eq!(
            check(vec![1; 64]),
            Err(EngineError::PromptExceedsCache { tokens: 64, capacity: 64 })
        );
        let long = check(vec![1; 100]).unwrap_err();
        assert_eq!(long, EngineError::PromptTooLong { tokens: 100, context_len: 100 });
        assert!(long.to_string().contains("at most 99 tokens"), "{long}");
        assert_eq!(
            check(vec![1, 50]),
            Err(EngineError::TokenOutOfRange { token: 50, position: 1, vocab_size: 50 })
        );
        let embed = |len| {
            let pooling = Some(Pooling::Mean);
            limits.check(&SequenceRequest { prompt: vec![1; len], pooling, ..Default::default() })
        };
        assert_eq!(embed(64), Ok(()), "no token follows");
        assert_eq!(embed(65), Err(EngineError::InputTooLong { tokens: 65, most: 64 }));
        let params = SamplingParams { top_p: 0.0, ..SamplingParams::default() };
        let request = SequenceRequest { prompt: vec![1], params, ..SequenceRequest::default() };
        assert!(matches!(limits.check(&request), Err(EngineError::Params { field: "top_p", .. })));
    }

    #[test]
    fn ends_at_stop_ids_max_tokens_and_the_length_limit() {
        let limits = Limits::new(6, 100, 8);
        let start = |change: &dyn Fn(&mut SamplingParams)| {
            let mut params = SamplingParams { stop_ids: vec![7], ..SamplingParams::default() };
            change(&mut params);
            sequence(vec![1, 2], params)
        };
        let advance = |s: &mut Sequence, token| {
            let a = s.advance(s.pending(), &[], &one_hot(&[token]), &limits).unwrap();
            (a.tokens.first().map(|t| t.0), a.finished)
        };
        let mut s = start(&|_| {});
        assert_eq!(advance(&mut s, 3), (Some(3), None));
        assert_eq!(
            advance(&mut s, 7),
            (None, Some(FinishReason::Stop)),
            "a stop token is not output"
        );
        let usage = Usage { prompt_tokens: 2, cached_tokens: 0, completion_tokens: 2 };
        assert_eq!(s.usage(), usage);

        let mut s = start(&|p| p.ignore_eos = true);
        assert_eq!(advance(&mut s, 7), (Some(7), None));

        let mut s = start(&|p| p.max_tokens = 2);
        assert_eq!(advance(&mut s, 3), (Some(3), None));
        assert_eq!(advance(&mut s, 3), (Some(3), Some(FinishReason::Length)));

        let mut s = start(&|p| p.max_tokens = 2);
        assert_eq!(advance(&mut s, 3), (Some(3), None));
        assert_eq!(advance(&mut s, 7), (None, Some(FinishReason::Stop)), "stop wins over length");

        let mut s = start(&|_| {});
        for _ in 0..3 {
            assert_eq!(advance(&mut s, 4), (Some(4), None));
        }
        assert_eq!(
            advance(&mut s, 4),
            (Some(4), Some(FinishReason::Length)),
            "the context is full"
        );
    }

    /// One row of logits for each of `tokens`, in which it wins.
    fn one_hot(tokens: &[usize]) -> Vec<f32> {
        let row = |&token: &usize| (0..8).map(move |i| if i == token { 5.0 } else { 0.0 });
        tokens.iter().flat_map(row).collect()
    }

    fn sequence(prompt: Vec<u32>, params: SamplingParams) -> Sequence {
        let request = SequenceRequest { prompt, params, ..SequenceRequest::default() };
        Sequence::new(SequenceId(0), request, 0, 8)
    }

    #[test]
    fn right_guesses_are_taken_and_the_first_wrong_one_ends_the_step() {
        let limits = Limits::new(100, 100, 8);
        let params = SamplingParams { stop_ids: vec![7], ..SamplingParams::default() };
        let mut s = sequence(vec![1, 2], params);
        s.advance(2, &[], &one_hot(&[3]), &limits).unwrap();
        let tokens = |a: Advance| a.tokens.into_iter().map(|t| t.0).collect::<Vec<_>>();
        // Guessed 4, 5, 6; the model says 4, 5, 1, and what it says behind the wrong 6 is no matter.
        let a = s.advance(4, &[4, 5, 6], &one_hot(&[4, 5, 1, 2]), &limits).unwrap();
        assert_eq!(tokens(a), [4, 5, 1]);
        assert_eq!((s.tokens.len(), s.computed), (6, 5));
        // A stop token ends it, whatever was guessed behind it.
        let a = s.advance(3, &[7, 2], &one_hot(&[7, 2, 2]), &limits).unwrap();
        assert_eq!(a.finished, Some(FinishReason::Stop));
        assert_eq!(tokens(a), [0u32; 0]);
    }

    #[test]
    fn guesses_stop_at_the_end_of_the_answer_and_after_failures() {
        let limits = Limits::new(100, 100, 8);
        let params = SamplingParams { max_tokens: 30, ..SamplingParams::default() };
        let mut s = sequence(vec![1, 2], params);
        assert_eq!(s.guesses_worth(4, &limits), 0, "the prompt is not in yet");
        s.advance(2, &[], &one_hot(&[3]), &limits).unwrap();
        assert_eq!(s.guesses_worth(4, &limits), 4);
        for _ in 0..4 {
            s.advance(5, &[1, 1, 1, 1], &one_hot(&[3, 3, 3, 3, 3]), &limits).unwrap();
        }
        assert_eq!(s.guesses_worth(4, &limits), 0, "16 were wrong");
        let params = SamplingParams { max_tokens: 3, ..SamplingParams::default() };
        let mut s = sequence(vec![1, 2], params);
        s.advance(2, &[], &one_hot(&[3]), &limits).unwrap();
        assert_eq!(s.guesses_worth(4, &limits), 1, "two tokens are left");
    }

    #[test]
    fn the_prompt_is_scored_once_and_in_order() {
        let limits = Limits::new(100, 100, 8);
        let params = SamplingParams {
            max_tokens: 1,
            logprobs: Some(1),
            prompt_logprobs: true,
            ..SamplingParams::default()
        };
        let mut s = sequence(vec![1, 2, 3, 4], params.clone());
        let told = |a: &Advance| a.prompt.iter().map(|p| (p.token, p.top[0].0)).collect::<Vec<_>>();
        let a = s.advance(2, &[], &one_hot(&[2, 6]), &limits).unwrap();
        assert_eq!(told(&a), [(2, 2), (3, 6)]);
        // Preempted: what was told is not told again.
        s.computed = 0;
        assert_eq!(s.wanted(4, 0), 2..4);
        let a = s.advance(4, &[], &one_hot(&[4, 5]), &limits).unwrap();
        assert_eq!(told(&a), [(4, 4)]);
        assert_eq!((a.tokens[0].0, a.finished), (5, Some(FinishReason::Length)));
        // Nothing is generated when nothing is wanted.
        let mut s = sequence(vec![1, 2], SamplingParams { max_tokens: 0, ..params });
        assert_eq!((s.pending(), s.wanted(1, 0)), (1, 0..1), "the last token need not be run");
        let a = s.advance(1, &[], &one_hot(&[2]), &limits).unwrap();
        assert_eq!((told(&a), a.tokens.len()), (vec![(2, 2)], 0));
        assert_eq!(a.finished, Some(FinishReason::Length));
    }
}
