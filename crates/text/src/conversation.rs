//! What people and models say to one another, before any template.

use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// What the model may call, each as `{"type": "function", "function": {...}}` (OpenAI's form).
    /// How it is written is the template's business; many write nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
}

impl Conversation {
    /// A conversation of the given turns.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, tools: Vec::new() }
    }

    /// The same conversation with these tools at hand.
    #[must_use]
    pub fn with_tools(mut self, tools: Vec<Value>) -> Self {
        self.tools = tools;
        self
    }
}
