//! What can go wrong with a request, said so that the caller can act.

/// Errors of this crate. All of them concern one request; none of them stops the engine, except
/// [`EngineError::Options`], which keeps it from being built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// An engine cannot be built with these options.
    #[error("engine options: {0}")]
    Options(String),
    /// The prompt has no tokens.
    #[error(
        "the prompt is empty; expected at least one token. hint: begin with the BOS token when the model has one"
    )]
    EmptyPrompt,
    /// The prompt does not leave room for one generated token in the model's context.
    #[error("the prompt has {tokens} tokens, which leaves no room in the context of {context_len} tokens. hint: shorten the prompt to at most {} tokens", context_len.saturating_sub(1))]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Context length of the model.
        context_len: usize,
    },
    /// The prompt does not fit into the whole KV cache, even alone.
    #[error(
        "the prompt has {tokens} tokens, the KV cache holds {capacity} in all. hint: shorten the prompt or give the cache more memory"
    )]
    PromptExceedsCache {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that all pages hold together.
        capacity: usize,
    },
    /// A text to embed is longer than the model's context or the KV cache.
    #[error("the input has {tokens} tokens; expected at most {most}. hint: cut it into pieces")]
    InputTooLong {
        /// Tokens of the input.
        tokens: usize,
        /// Most tokens.
        most: usize,
    },
    /// A prompt token is not in the vocabulary.
    #[error(
        "token id {token} at position {position} of the prompt; expected below the vocabulary of {vocab_size}. hint: encode the prompt with this model's own tokenizer"
    )]
    TokenOutOfRange {
        /// The id found.
        token: u32,
        /// Where in the prompt.
        position: usize,
        /// V
        vocab_size: usize,
    },
    /// A sampling parameter is outside its range.
    #[error("{field} is {found}; expected {expected}")]
    Params {
        /// Name of the parameter.
        field: &'static str,
        /// What was given.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// Too many requests wait already.
    #[error("the queue is full: {limit} requests wait already. hint: try again later")]
    QueueFull {
        /// Most requests that may wait.
        limit: usize,
    },
    /// The model gave a number that is not finite, so nothing can be sampled or embedded.
    #[error(
        "the model gave a non-finite number for token {position} of the sequence. hint: the weights or the adapter hold broken numbers"
    )]
    NonFinite {
        /// Position in the sequence of the token that was to be sampled or embedded.
        position: usize,
    },
    /// The grammar could not be followed any further.
    #[error("the grammar cannot be followed: {0}")]
    Grammar(String),
    /// The adapter was taken out or replaced, maybe while the sequence was on its way.
    #[error("the adapter in slot {slot} is not there any more. hint: ask again")]
    AdapterGone {
        /// The slot.
        slot: usize,
    },
    /// The forward pass failed for this sequence, even without the others of its batch.
    #[error("the forward pass failed: {0}")]
    Forward(String),
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}
