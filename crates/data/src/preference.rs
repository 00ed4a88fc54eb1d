//! Which of two answers is better, or whether one is good: what preference tuning learns from.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use text::{Conversation, Message};

use crate::example::{Origin, content_id_of};

/// A prompt and what somebody thought of its answers.
///
/// The reader guarantees: prompt and answer together are a conversation as an
/// [`Example`](crate::Example) has it, the answers begin and end with the assistant, and the two of
/// a pair differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preference {
    /// Its own `id`, or else a hash of its content. Unique within a file.
    pub id: String,
    /// The turns before the answer, ending with the user or a tool, and the tools at hand.
    pub prompt: Conversation,
    /// The answers with the judgement.
    pub answers: Answers,
    /// Preferences of one group are never split between train and test.
    pub group: Option<String>,
    /// Where it was read.
    pub origin: Origin,
}

/// Answers and what was thought of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answers {
    /// Two answers, the first of them better (DPO, arXiv 2305.18290, and its relatives).
    Pair {
        /// The better one.
        chosen: Vec<Message>,
        /// The worse one.
        rejected: Vec<Message>,
    },
    /// One answer, good or bad (KTO, arXiv 2402.01306).
    Labelled {
        /// The answer.
        completion: Vec<Message>,
        /// Whether it is good.
        label: bool,
    },
}

impl Answers {
    /// The answers with their names in the data: chosen and rejected, or completion.
    pub fn named(&self) -> Vec<(&'static str, &[Message])> {
        match self {
            Self::Pair { chosen, rejected } => vec![("chosen", chosen), ("rejected", rejected)],
            Self::Labelled { completion, .. } => vec![("completion", completion)],
        }
    }
}

impl Preference {
    /// The whole conversations to render, each the prompt with one answer: chosen and rejected, or
    /// the completion. Of the prompt nothing is learnt; of the answer the assistant's turns, save
    /// those that the data mark as not to be learnt.
    pub fn conversations(&self) -> Vec<Conversation> {
        self.answers.named().into_iter().map(|(_, answer)| joined(&self.prompt, answer)).collect()
    }
}

/// The prompt with an answer, with what is learnt marked.
pub(crate) fn joined(prompt: &Conversation, answer: &[Message]) -> Conversation {
    let given = prompt.messages.iter().map(|m| m.clone().with_train(false));
    let learnt = answer.iter().map(|m| m.clone().with_train(m.is_learnt()));
    Conversation::new(given.chain(learnt).collect()).with_tools(prompt.tools.clone())
}

/// Name of a preference without an own one: a hash of prompt, answers and label.
pub(crate) fn preference_id(prompt: &Conversation, answers: &Answers) -> String {
    let named = answers.named();
    // Which answer a turn belongs to is part of the content.
    let marks: Vec<Message> = named.iter().map(|(name, _)| Message::new(*name, "")).collect();
    let turns = marks
        .iter()
        .zip(&named)
        .flat_map(|(mark, (_, turns))| std::iter::once(mark).chain(turns.iter()));
    let label = match answers {
        Answers::Pair { .. } => None,
        Answers::Labelled { label, .. } => Some(Value::Bool(*label)),
    };
    let rest: Vec<Value> = prompt.tools.iter().cloned().chain(label).collect();
    content_id_of(prompt.messages.iter().chain(turns), &rest)
}
