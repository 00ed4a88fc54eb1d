//! One request on its way: what was asked, what is generated, which pages it holds.

use crate::error::EngineError;
use crate::sampler::Sampler;
use model::BLOCK_SIZE;
use serde::{Deserialize, Serialize};

/// Name of a sequence, unique within its engine; a later request has a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// How tokens are chosen and when generation ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Logits are divided by this; 0 takes the most likely token (ties: the lowest id).
    pub temperature: f32,
    /// Keep the smallest set of most likely tokens whose probability reaches this, in (0, 1]
    /// (nucleus sampling, arXiv 1904.09751); 1 keeps all.
    pub top_p: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Most tokens to generate, at least 1.
    pub max_tokens: usize,
    /// Start of the sequence's own random numbers: the same seed gives the same tokens whatever
    /// else is in the batch.
    pub seed: u64,
    /// Tokens that end the sequence; they are not part of its output.
    pub stop_ids: Vec<u32>,
    /// Do not end at `stop_ids` (benchmarks of a fixed length); they are then output like others.
    pub ignore_eos: bool,
}

impl Default for SamplingParams {
    /// Greedy, up to 256 tokens.
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            max_tokens: 256,
            seed: 0,
            stop_ids: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl SamplingParams {
    /// Checks every range.
    ///
    /// # Errors
    /// [`EngineError::Params`] naming the field.
    pub fn validate(&self) -> Result<(), EngineError> {
        let bad =
            |field, found: String, expected| Err(EngineError::Params { field, found, expected });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", self.temperature.to_string(), "a number of at least 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", self.top_p.to_string(), "above 0 and at most 1");
        }
        if self.max_tokens == 0 {
            return bad("max_tokens", "0".into(), "at least 1");
        }
        Ok(())
    }
}

/// What a caller wants generated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceRequest {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How to go on from there.
    pub params: SamplingParams,
    /// Slot in the engine's [`model::AdapterSet`]; None is the base alone.
    pub adapter: Option<usize>,
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
        request.params.validate()?;
        let tokens = request.prompt.len();
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if tokens >= self.context_len {
            return Err(EngineError::PromptTooLong { tokens, context_len: self.context_len });
        }
        if tokens >= self.cache_tokens {
            return Err(EngineError::PromptExceedsCache { tokens, capacity: self.cache_tokens });
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
    /// A stop token was chosen.
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
    /// Tokens generated; counts the stop token that ended the sequence, which is not output.
    pub completion_tokens: usize,
}

/// A request being worked on.
#[derive(Debug)]
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
    sampler: Sampler,
    params: SamplingParams,
}

impl Sequence {
    /// `request` has been checked against the limits.
    pub(crate) fn new(id: SequenceId, request: SequenceRequest) -> Sequence {
        Sequence {
            id,
            prompt_len: request.prompt.len(),
            tokens: request.prompt,
            computed: 0,
            pages: Vec::new(),
            adapter: request.adapter,
            sampler: Sampler::new(&request.params),
            params: request.params,
        }
    }

    /// Tokens not yet run: the whole prompt at first, a single token while decoding, all of them
    /// again after a preemption.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_len,
            completion_tokens: self.tokens.len() - self.prompt_len,
        }
    }

    /// Chooses the next token from `logits` [V] and appends it.
    ///
    /// # Errors
    /// [`EngineError::NonFinite`].
    pub(crate) fn advance(
        &mut self,
        logits: &[f32],
        limits: &Limits,
    ) -> Result<Advance, EngineError> {
        let sampled = self
            .sampler
            .sample(logits)
            .ok_or(EngineError::NonFinite { position: self.tokens.len() })?;
        self.tokens.push(sampled.token);
        let stopped = !self.params.ignore_eos && self.params.stop_ids.contains(&sampled.token);
        let full = self.usage().completion_tokens >= self.params.max_tokens
            || self.tokens.len() >= limits.max_len();
        Ok(Advance {
            output: (!stopped).then_some((sampled.token, sampled.logprob)),
            finished: match (stopped, full) {
                (true, _) => Some(FinishReason::Stop),
                (false, true) => Some(FinishReason::Length),
                (false, false) => None,
            },
        })
    }
}

/// What one sampled token meant for its sequence.
pub(crate) struct Advance {
    /// The token and its log probability, unless it was a stop token.
    pub(crate) output: Option<(u32, f32)>,
    pub(crate) finished: Option<FinishReason>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_name_the_rule_broken() {
        let limits = Limits::new(100, 4, 50);
        assert_eq!(limits.max_len(), 64);
        let check = |prompt: Vec<u32>, change: &dyn Fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            limits.check(&SequenceRequest { prompt, params, adapter: None })
        };
        let keep = |_: &mut SamplingParams| {};
        assert_eq!(check(vec![1; 63], &keep), Ok(()));
        assert_eq!(check(vec![], &keep), Err(EngineError::EmptyPrompt));
        assert_eq!(
            check(vec![1; 64], &keep),
            Err(EngineError::PromptExceedsCache { tokens: 64, capacity: 64 })
        );
        let long = check(vec![1; 100], &keep).unwrap_err();
        assert_eq!(long, EngineError::PromptTooLong { tokens: 100, context_len: 100 });
        assert!(long.to_string().contains("at most 99 tokens"), "{long}");
        assert_eq!(
            check(vec![1, 50], &keep),
            Err(EngineError::TokenOutOfRange { token: 50, position: 1, vocab_size: 50 })
        );
        let field = |change: &dyn Fn(&mut SamplingParams)| match check(vec![1], change) {
            Err(EngineError::Params { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(&|p| p.temperature = -0.1), "temperature");
        assert_eq!(field(&|p| p.temperature = f32::NAN), "temperature");
        assert_eq!(field(&|p| p.temperature = f32::INFINITY), "temperature");
        assert_eq!(field(&|p| p.top_p = 0.0), "top_p");
        assert_eq!(field(&|p| p.top_p = 1.5), "top_p");
        assert_eq!(field(&|p| p.top_p = f32::NAN), "top_p");
        assert_eq!(field(&|p| p.max_tokens = 0), "max_tokens");
    }

    #[test]
    fn ends_at_stop_ids_max_tokens_and_the_length_limit() {
        let one_hot =
            |token: usize| (0..8).map(|i| if i == token { 5.0 } else { 0.0 }).collect::<Vec<f32>>();
        let limits = Limits::new(6, 100, 8);
        let start = |change: &dyn Fn(&mut SamplingParams)| {
            let mut params = SamplingParams { stop_ids: vec![7], ..SamplingParams::default() };
            change(&mut params);
            Sequence::new(
                SequenceId(0),
                SequenceRequest { prompt: vec![1, 2], params, adapter: None },
            )
        };
        let advance = |s: &mut Sequence, token| {
            let a = s.advance(&one_hot(token), &limits).unwrap();
            (a.output.map(|o| o.0), a.finished)
        };
        let mut s = start(&|_| {});
        assert_eq!(advance(&mut s, 3), (Some(3), None));
        assert_eq!(
            advance(&mut s, 7),
            (None, Some(FinishReason::Stop)),
            "a stop token is not output"
        );
        assert_eq!(s.usage(), Usage { prompt_tokens: 2, completion_tokens: 2 });

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
}
