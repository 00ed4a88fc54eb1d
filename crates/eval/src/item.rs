//! One test example.

use crate::error::EvalError;
use data::Example;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use text::Conversation;

/// A question and the answer that is held to be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvalItem {
    /// Name of the example, unique within the test set.
    pub id: String,
    /// The turns up to the answer.
    pub conversation: Conversation,
    /// The right answer.
    pub reference: String,
    /// The source that the example shares with others (a customer, a document). Scores of one group
    /// are not independent, so the statistics treat each group as one cluster.
    pub group: Option<String>,
    /// Fields by which scores are told apart, with the example's value of each.
    pub slices: IndexMap<String, String>,
    /// What may be answered, where the example offers a choice; else empty.
    pub choices: Vec<String>,
    /// Place of the right one among `choices`; None: the first that is the reference.
    pub gold: Option<usize>,
}

impl EvalItem {
    /// A test example from a data example: its last message, which must be the assistant's, is the
    /// reference, what comes before is the question. Earlier answers stay part of the question.
    ///
    /// # Errors
    /// [`EvalError::NoReference`] when the last message is not an answer, or nothing is before it.
    pub fn from_example(example: &Example) -> Result<EvalItem, EvalError> {
        let item = EvalItem::new(example.id.clone(), example.conversation.clone())?;
        Ok(EvalItem { group: example.group.clone(), slices: example.slices.clone(), ..item })
    }

    /// The same from an id and a whole conversation, without group or slices.
    ///
    /// # Errors
    /// As [`EvalItem::from_example`].
    pub fn new(id: String, mut conversation: Conversation) -> Result<EvalItem, EvalError> {
        let found = match conversation.messages.pop() {
            // There is no text to compare with.
            Some(last) if last.content.is_empty() && !last.tool_calls.is_empty() => {
                "an answer that only calls tools".to_owned()
            }
            Some(last) if last.role == "assistant" && !conversation.messages.is_empty() => {
                return Ok(EvalItem {
                    id,
                    conversation,
                    reference: last.content,
                    group: None,
                    slices: IndexMap::new(),
                    choices: Vec::new(),
                    gold: None,
                });
            }
            Some(last) if last.role == "assistant" => "an answer to nothing".to_owned(),
            Some(last) => format!("a message of the role {:?}", last.role),
            None => "no message at all".to_owned(),
        };
        Err(EvalError::NoReference { id, found })
    }

    /// The question as people read it: the text alone when the user asks once, otherwise every turn
    /// behind its role.
    pub fn prompt(&self) -> String {
        let messages = &self.conversation.messages;
        match &messages[..] {
            [only] if only.role == "user" => only.content.clone(),
            _ => {
                let turns = messages.iter().map(|m| format!("{}: {}", m.role, m.content));
                turns.collect::<Vec<_>>().join("\n\n")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use text::Message;

    fn item(turns: &[(&str, &str)]) -> Result<EvalItem, EvalError> {
        let messages = turns.iter().map(|&(role, content)| Message::new(role, content));
        EvalItem::new("7".into(), Conversation::new(messages.collect()))
    }

    #[test]
    fn the_last_answer_is_the_reference() {
        let plain = item(&[("user", "Hi"), ("assistant", "Hello")]).unwrap();
        assert_eq!((plain.prompt().as_str(), plain.reference.as_str()), ("Hi", "Hello"));
        let long = item(&[
            ("system", "s"),
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ])
        .unwrap();
        assert_eq!(long.prompt(), "system: s\n\nuser: a\n\nassistant: b\n\nuser: c");
        assert_eq!(long.reference, "d");
    }

    #[test]
    fn without_an_answer_the_example_is_named() {
        for (turns, said) in [
            (&[("user", "Hi")][..], "a message of the role \"user\""),
            (&[("assistant", "Hi")][..], "an answer to nothing"),
            (&[][..], "no message at all"),
        ] {
            let error = item(turns).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("\"7\""), "{error}");
        }
    }
}
