//! Text at the edge of the model: the tokenizer, the chat template, streaming decode and stop
//! strings. Inside the engine there are only token ids; this crate is where they come from and
//! where they become text again.
//!
//! Read [`ChatTemplate::render`] first: it is the one way from a conversation to token ids, used for
//! training (with the loss mask), evaluation and serving alike.

mod answer;
mod conversation;
mod error;
mod gguf_tokens;
mod go_template;
mod grammar;
mod jinja;
mod mask;
mod python;
mod stop;
mod stream;
mod template;
mod tokenizer;
mod tools;
mod unigram;
mod vocabulary;

pub use answer::{AnswerFormat, AnswerReader, Part, Thinking};
pub use conversation::{Conversation, Message, ROLES};
pub use error::TextError;
pub use gguf_tokens::{GgufTokens, NotInGguf};
pub use go_template::{GoTemplate, NotInGo};
pub use grammar::{
    CallSpec, CompiledGrammar, GrammarCompiler, GrammarSpec, GrammarState, Uncalled,
};
pub use stop::{StopOutcome, StopStrings};
pub use stream::StreamDecoder;
pub use template::{ChatTemplate, Rendered};
pub use tokenizer::Tokenizer;
pub use tools::{TOOL_FORMATS, ToolCall, ToolFormat};
pub use vocabulary::GgufVocabulary;
