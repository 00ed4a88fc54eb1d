//! Everything that can go wrong between text and token ids.

use std::path::PathBuf;

/// An error of this crate. Each message names the place, what was found and what was expected, and
/// ends with a hint where there is something to do.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}; expected {expected}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What should have been there.
        expected: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file was read but its content is not what it should be.
    #[error("{path}: {found}; expected {expected}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with the place.
        found: String,
        /// What should have been there.
        expected: &'static str,
    },
    /// The tokenizer and the model do not belong together.
    #[error(
        "the tokenizer has token id {id} ({token:?}), but the model's vocabulary ends at {last}; \
         hint: take tokenizer.json from the same folder as the weights"
    )]
    VocabTooLarge {
        /// The highest id of the tokenizer.
        id: u32,
        /// Its text.
        token: String,
        /// The highest id of the model.
        last: usize,
    },
    /// The tokenizer could not encode a text.
    #[error("cannot encode the text {text:?}: {reason}")]
    Encode {
        /// The beginning of the text.
        text: String,
        /// The tokenizer's reason.
        reason: String,
    },
    /// A grammar cannot be used.
    #[error("the grammar cannot be used: {reason}")]
    Grammar {
        /// What is wrong with it, or what it asks too much of.
        reason: String,
    },
    /// The tokenizer could not decode ids.
    #[error("cannot decode {count} token ids: {reason}")]
    Decode {
        /// How many ids were given.
        count: usize,
        /// The tokenizer's reason.
        reason: String,
    },
    /// Text that is not from the template would have become a control token.
    #[error(
        "the text {text:?} becomes the control token {token:?}, and this tokenizer offers no other \
         spelling; hint: remove that string from the data"
    )]
    ControlToken {
        /// The beginning of the text.
        text: String,
        /// The control token.
        token: String,
    },
    /// The chat template has a syntax error.
    #[error(
        "the chat template does not compile: {reason}; hint: it must be Jinja as Hugging Face uses it"
    )]
    TemplateSyntax {
        /// The engine's message with the line.
        reason: String,
    },
    /// The chat template called `raise_exception`: it does not want this conversation.
    #[error("the chat template refuses this conversation: {reason}")]
    TemplateRefused {
        /// The template's own words.
        reason: String,
    },
    /// The chat template failed while it ran.
    #[error("the chat template failed: {reason}")]
    TemplateFailed {
        /// The engine's message with the line.
        reason: String,
    },
    /// The chat template did not end, or wrote without end.
    #[error(
        "the chat template used up its budget ({limit}); hint: it probably loops without end, \
         otherwise shorten the conversation"
    )]
    TemplateBudget {
        /// Which budget, with its size.
        limit: String,
    },
    /// The template writes nothing of a message that instructs the model.
    #[error(
        "the chat template leaves out message {index} (role {role:?}); hint: put its text into the \
         first user message or use another chat template"
    )]
    Dropped {
        /// Index of the message, from 0.
        index: usize,
        /// Its role.
        role: String,
    },
    /// The template writes nothing of what the assistant calls, or of what it says beside it.
    #[error(
        "the chat template leaves out {part} of message {index}; hint: use a chat template that \
         writes it, take it out of the data, or mark the turn as not learnt"
    )]
    DroppedCall {
        /// Index of the message, from 0.
        index: usize,
        /// What is lost.
        part: &'static str,
    },
    /// No loss mask would be right: the training text of a turn does not begin with what the model
    /// is asked at that turn, or the answer cannot be found in it.
    #[error(
        "no loss mask can be made for message {turn}: {found}; hint: reshape the conversation (for \
         example put the system text into the first user message) or use another chat template"
    )]
    NoMask {
        /// Index of the assistant message, from 0.
        turn: usize,
        /// What stands in the way.
        found: String,
    },
    /// A role outside [`ROLES`](crate::ROLES).
    #[error(
        "message {index} has the role {role:?}; expected one of system, developer, user, assistant, tool, function, ipython"
    )]
    Role {
        /// Index of the message, from 0.
        index: usize,
        /// The role found.
        role: String,
    },
    /// The rendered conversation begins with two begin-of-sequence tokens.
    #[error(
        "the rendered conversation begins with {token:?} twice; hint: the chat template writes \
         bos_token more than once, remove one"
    )]
    DoubleBos {
        /// The begin-of-sequence token.
        token: String,
    },
}

/// The beginning of `text`, short enough for a message.
pub(crate) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
