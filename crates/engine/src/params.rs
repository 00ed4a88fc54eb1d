//! How a caller wants tokens chosen.

use crate::error::EngineError;
use serde::{Deserialize, Serialize};

/// How tokens are chosen and when generation ends.
///
/// A step's logits are changed in this order: `repetition_penalty`, `presence_penalty` and
/// `frequency_penalty`, `logit_bias`, the grammar's mask, `temperature`, then `top_k`, `top_p`, `min_p`
/// and `typical_p`, each over what the one before it has left, as in Hugging Face's chain of warpers.
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
    /// Keep the tokens at least this share as likely as the most likely one, in [0, 1] (arXiv
    /// 2407.01082); 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest to the expected one until their probability reaches
    /// this, in (0, 1] (locally typical sampling, arXiv 2202.00666); 1 keeps all.
    pub typical_p: f32,
    /// Positive logits of tokens seen in the prompt or the answer are divided by this, negative ones
    /// multiplied, above 0 (arXiv 1909.05858); 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that the answer has already, from -2 to 2 (OpenAI's field).
    pub presence_penalty: f32,
    /// Taken from a token's logit for each time that the answer has it, from -2 to 2 (OpenAI's field).
    pub frequency_penalty: f32,
    /// (token, number added to its logit), each number from -100 to 100 (OpenAI's field).
    pub logit_bias: Vec<(u32, f32)>,
    /// Most tokens to generate; 0 only with `prompt_logprobs`.
    pub max_tokens: usize,
    /// Start of the sequence's own random numbers: the same seed gives the same tokens whatever
    /// else is in the batch.
    pub seed: u64,
    /// Tokens that end the sequence; they are not part of its output.
    pub stop_ids: Vec<u32>,
    /// Do not end at `stop_ids` (benchmarks of a fixed length); they are then output like others.
    pub ignore_eos: bool,
    /// Tell each chosen token's log probability, and those of so many most likely ones, at most
    /// [`SamplingParams::MAX_LOGPROBS`]. None tells nothing and costs nothing.
    pub logprobs: Option<usize>,
    /// Tell the same of the prompt's tokens (as [`crate::Event::Prompt`]); needs `logprobs`.
    pub prompt_logprobs: bool,
    /// Of the prompt's tokens only those from this place on are told, counted from 0; what stands before
    /// need not be run where its keys and values are there already. 0 and 1 tell all.
    pub prompt_logprobs_from: usize,
}

impl Default for SamplingParams {
    /// Greedy, up to 256 tokens.
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            max_tokens: 256,
            seed: 0,
            stop_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: false,
            prompt_logprobs_from: 0,
        }
    }
}

impl SamplingParams {
    /// Most alternatives told of each token, as in OpenAI's `top_logprobs`.
    pub const MAX_LOGPROBS: usize = 20;

    /// Checks every range; V is `vocab_size`.
    ///
    /// # Errors
    /// [`EngineError::Params`] naming the field.
    pub fn validate(&self, vocab_size: usize) -> Result<(), EngineError> {
        let bad =
            |field, found: String, expected| Err(EngineError::Params { field, found, expected });
        let within = |value: f32, low: f32, high: f32| value >= low && value <= high;
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", self.temperature.to_string(), "a number of at least 0");
        }
        for (field, share) in [("top_p", self.top_p), ("typical_p", self.typical_p)] {
            if !(share > 0.0 && share <= 1.0) {
                return bad(field, share.to_string(), "above 0 and at most 1");
            }
        }
        if !within(self.min_p, 0.0, 1.0) {
            return bad("min_p", self.min_p.to_string(), "from 0 to 1");
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            let found = self.repetition_penalty.to_string();
            return bad("repetition_penalty", found, "a number above 0");
        }
        for (field, penalty) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            if !within(penalty, -2.0, 2.0) {
                return bad(field, penalty.to_string(), "from -2 to 2");
            }
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocab_size {
                return bad("logit_bias", format!("for token {token}"), "ids of the vocabulary");
            }
            if !within(bias, -100.0, 100.0) {
                return bad("logit_bias", bias.to_string(), "from -100 to 100");
            }
        }
        if self.logprobs.is_some_and(|top| top > Self::MAX_LOGPROBS) {
            let found = self.logprobs.unwrap_or_default().to_string();
            return bad("logprobs", found, "at most 20");
        }
        if self.prompt_logprobs && self.logprobs.is_none() {
            return bad("prompt_logprobs", "true".into(), "false where logprobs is not asked for");
        }
        if self.max_tokens == 0 && !self.prompt_logprobs {
            return bad("max_tokens", "0".into(), "at least 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_names_its_field() {
        let field = |change: &dyn Fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            match params.validate(50) {
                Err(EngineError::Params { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        for bad in [-0.1, f32::NAN, f32::INFINITY] {
            assert_eq!(field(&|p| p.temperature = bad), "temperature");
            assert_eq!(field(&|p| p.repetition_penalty = bad), "repetition_penalty");
        }
        for bad in [0.0, 1.5, f32::NAN] {
            assert_eq!(field(&|p| p.top_p = bad), "top_p");
            assert_eq!(field(&|p| p.typical_p = bad), "typical_p");
        }
        for bad in [-0.1, 1.5, f32::NAN] {
            assert_eq!(field(&|p| p.min_p = bad), "min_p");
        }
        for bad in [-2.5, 3.0, f32::NAN] {
            assert_eq!(field(&|p| p.presence_penalty = bad), "presence_penalty");
            assert_eq!(field(&|p| p.frequency_penalty = bad), "frequency_penalty");
        }
        assert_eq!(field(&|p| p.repetition_penalty = 0.0), "repetition_penalty");
        assert_eq!(field(&|p| p.logit_bias = vec![(50, 0.0)]), "logit_bias");
        assert_eq!(field(&|p| p.logit_bias = vec![(1, 101.0)]), "logit_bias");
        assert_eq!(field(&|p| p.logit_bias = vec![(1, f32::NAN)]), "logit_bias");
        assert_eq!(field(&|p| p.logprobs = Some(21)), "logprobs");
        assert_eq!(field(&|p| p.prompt_logprobs = true), "prompt_logprobs");
        assert_eq!(field(&|p| p.max_tokens = 0), "max_tokens");
        let scored = SamplingParams {
            max_tokens: 0,
            logprobs: Some(0),
            prompt_logprobs: true,
            ..SamplingParams::default()
        };
        assert_eq!(scored.validate(50), Ok(()));
    }
}
