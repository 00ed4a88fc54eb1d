//! What people and models say to one another, before any template.

use serde::{Deserialize, Serialize};

/// The roles that [`ChatTemplate::render`](crate::ChatTemplate::render) accepts. The list is closed
/// because many templates paste the role between the brackets of a control token: an invented role
/// could then forge one.
pub const ROLES: [&str; 7] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks, one of [`ROLES`]; `assistant` is the model.
    pub role: String,
    /// What was said, as plain text.
    pub content: String,
}

impl Message {
    /// A turn of `role` with the text `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A list of turns, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Conversation {
    /// The turns, oldest first.
    pub messages: Vec<Message>,
}

impl Conversation {
    /// A conversation of the given turns.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages }
    }
}
