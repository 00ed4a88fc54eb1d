//! Log probabilities in the shapes of the two endpoints that tell them.

use crate::state::State;
use engine::TokenLogprobs;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Of a chat's answer.
#[derive(Serialize)]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatToken {
    #[serde(flatten)]
    token: Told,
    top_logprobs: Vec<Told>,
}

/// A token as people read it. One that is part of a character shows as U+FFFD; its bytes are whole.
#[derive(Serialize)]
struct Told {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
}

impl Told {
    fn new(state: &State, token: u32, logprob: f32) -> Told {
        let bytes = state.token_bytes(token);
        let token = String::from_utf8_lossy(&bytes).into_owned();
        Told { token, logprob: logprob.into(), bytes }
    }
}

impl ChatLogprobs {
    pub(crate) fn new(state: &State, tokens: &[TokenLogprobs]) -> ChatLogprobs {
        let told = |&(token, logprob): &(u32, f32)| Told::new(state, token, logprob);
        let content = tokens.iter().map(|t| ChatToken {
            token: Told::new(state, t.token, t.logprob),
            top_logprobs: t.top.iter().map(told).collect(),
        });
        ChatLogprobs { content: content.collect(), refusal: None }
    }
}

/// Of a completion: lists side by side, an entry for each token.
#[derive(Default, Serialize)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    /// None for the first token of an echoed prompt: nothing stands before it.
    token_logprobs: Vec<Option<f64>>,
    /// Token to log probability: the most likely ones, and the chosen one where it is not among them.
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins, characters from the beginning of the first one.
    text_offset: Vec<usize>,
    #[serde(skip)]
    end: usize,
}

impl CompletionLogprobs {
    /// Lists that begin at character `start` of the text.
    pub(crate) fn new(start: usize) -> CompletionLogprobs {
        CompletionLogprobs { end: start, ..CompletionLogprobs::default() }
    }

    /// The first token of a prompt.
    pub(crate) fn push_first(&mut self, state: &State, token: u32) {
        self.push_token(state, token);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    pub(crate) fn push(&mut self, state: &State, told: &TokenLogprobs) {
        self.push_token(state, told.token);
        // As wide as in the map below: clients compare the two.
        self.token_logprobs.push(Some(told.logprob.into()));
        let mut top = Map::new();
        for &(token, logprob) in told.top.iter().chain(&[(told.token, told.logprob)]) {
            // Two tokens may read alike; the likelier one, which comes first, counts.
            top.entry(name(state, token)).or_insert_with(|| json!(f64::from(logprob)));
        }
        self.top_logprobs.push(Some(top));
    }

    fn push_token(&mut self, state: &State, token: u32) {
        let text = name(state, token);
        self.text_offset.push(self.end);
        self.end += text.chars().count();
        self.tokens.push(text);
    }

    /// Characters up to the end of the last token.
    pub(crate) fn end(&self) -> usize {
        self.end
    }
}

/// How this endpoint spells a token that is no text by itself.
fn name(state: &State, token: u32) -> String {
    let bytes = state.token_bytes(token);
    match std::str::from_utf8(&bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{hex}")
        }
    }
}
