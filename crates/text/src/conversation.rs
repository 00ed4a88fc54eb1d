//! What people and models say to one another, before any template.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The roles that [`ChatTemplate::render`](crate::ChatTemplate::render) accepts. The list is closed
/// because many templates paste the role between the brackets of a control token: an invented role
/// could then forge one.
pub const ROLES: [&str; 7] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks, one of [`ROLES`]; `assistant` is the model.
    pub role: String,
    /// What was said, as plain text. May be empty beside tool calls.
    #[serde(default)]
    pub content: String,
    /// What the assistant calls, each as `{"type": "function", "function": {"name": ...,
    /// "arguments": ...}}`, mostly with an `id` (OpenAI's form). `arguments` may be an object or a
    /// string that holds one; templates get the object, as Hugging Face's expect it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
    /// In a tool's turn: the `id` of the call that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Name of the speaker: in a tool's turn that of the function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the assistant thought before it answered, for templates that write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Whether the turn is learnt in training; `None`: where the assistant speaks. No turn of
    /// another role is ever learnt, whatever stands here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<bool>,
}

impl Message {
    /// A turn of `role` with the text `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// The same turn, learnt or not.
    #[must_use]
    pub fn with_train(mut self, train: bool) -> Self {
        self.train = Some(train);
        self
    }

    /// Whether the turn is learnt in training.
    pub fn is_learnt(&self) -> bool {
        self.role == "assistant" && self.train != Some(false)
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
