//! How many tokens are read and written.

use super::{Metric, Score};

/// Tokens of the prompt, template included, by the candidate's own tokenizer.
pub(super) static PROMPT: Metric = Metric {
    name: "prompt_tokens",
    what: "Tokens of the prompt, template included. Lower is cheaper.",
    reads_as: "tokens per prompt",
    score: Score::Item(&|_, answer| known(answer.prompt_tokens)),
    ..Metric::LESS_OF
};

/// Tokens generated, by the candidate's own tokenizer.
pub(super) static ANSWER: Metric = Metric {
    name: "answer_tokens",
    what: "Tokens generated. Lower is cheaper.",
    reads_as: "tokens per answer",
    score: Score::Item(&|_, answer| known(answer.answer_tokens)),
    ..Metric::LESS_OF
};

fn known(tokens: Option<usize>) -> Result<f64, String> {
    tokens.map(|n| n as f64).ok_or_else(|| "the candidate does not count its tokens".to_owned())
}
