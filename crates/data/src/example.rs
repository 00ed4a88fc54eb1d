//! One example: a conversation that ends with the answer to learn.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use text::{Conversation, Message};

/// A conversation whose last turn is the assistant's answer, with its name and its place.
///
/// The readers guarantee: at most one system (or developer) turn, and that first; then user and
/// assistant in turn, ending with the assistant; no turn without text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Name of the example: its own `id`, or else a hash of its content, so that it stays the same
    /// when rows around it come and go. Unique within a file.
    pub id: String,
    /// The turns.
    pub conversation: Conversation,
    /// Examples of one group (a customer, a document) are never split between train and test.
    pub group: Option<String>,
    /// Where it was read.
    pub origin: Origin,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl Example {
    /// The text of the last assistant turn: the answer a test compares with.
    pub fn completion(&self) -> &str {
        self.conversation.messages.last().map_or("", |m| &m.content)
    }

    /// The turns before the last assistant turn: what the model is asked.
    pub fn prompt(&self) -> &[Message] {
        let messages = &self.conversation.messages;
        &messages[..messages.len().saturating_sub(1)]
    }

    /// What was said before the answer, without system turns, one turn per line. System turns are
    /// left out because a whole set shares them as a rule: they say nothing about whether two
    /// examples are the same.
    pub fn question(&self) -> String {
        let said = self.prompt().iter().filter(|m| !is_system(&m.role));
        said.map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// The example as one line of chat JSONL: `{"messages":[...],"id":"...","group":"..."}`
    /// without `group` when it has none, and without a line end.
    pub fn to_json_line(&self) -> String {
        #[derive(Serialize)]
        struct Row<'a> {
            messages: &'a [Message],
            id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            group: Option<&'a str>,
        }
        let row = Row {
            messages: &self.conversation.messages,
            id: &self.id,
            group: self.group.as_deref(),
        };
        serde_json::to_string(&row).expect("strings always serialise")
    }
}

/// Whether a role instructs the model rather than takes part in the conversation.
pub(crate) fn is_system(role: &str) -> bool {
    role == "system" || role == "developer"
}

/// Renames examples whose `id` an earlier one already has (files that each count from 1), by adding
/// `-2`, `-3`, ... Returns how many were renamed.
pub fn make_ids_unique(examples: &mut [Example]) -> usize {
    let mut seen: HashSet<String> = HashSet::with_capacity(examples.len());
    let mut renamed = 0;
    for example in examples {
        if seen.contains(&example.id) {
            let unique = (2..)
                .map(|n: u64| format!("{}-{n}", example.id))
                .find(|id| !seen.contains(id))
                .expect("there are more numbers than examples");
            example.id = unique;
            renamed += 1;
        }
        seen.insert(example.id.clone());
    }
    renamed
}

/// Sixteen hexadecimal digits of the SHA-256 over roles and contents.
pub(crate) fn content_id(conversation: &Conversation) -> String {
    let mut hasher = Sha256::new();
    for message in &conversation.messages {
        for part in [&message.role, &message.content] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
    }
    let mut id = hex(&hasher.finalize());
    id.truncate(16);
    id
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An example of one question and one answer, for the tests of this crate.
    pub(crate) fn example(line: usize, question: &str, answer: &str) -> Example {
        let conversation = Conversation::new(vec![
            Message::new("user", question),
            Message::new("assistant", answer),
        ]);
        let origin = Origin { file: PathBuf::from("rows.jsonl"), line };
        Example { id: format!("row-{line}"), conversation, group: None, origin }
    }

    #[test]
    fn the_id_depends_on_content_and_its_borders() {
        let a = content_id(&example(1, "ab", "c").conversation);
        assert_eq!(a, content_id(&example(2, "ab", "c").conversation));
        assert_ne!(a, content_id(&example(1, "a", "bc").conversation));
        assert_eq!(a.len(), 16);
    }

    #[test]
    fn a_second_owner_of_an_id_is_renamed() {
        let mut rows = [example(1, "a", "b"), example(1, "c", "d"), example(1, "e", "f")];
        rows[2].id = "row-1-2".into();
        assert_eq!(make_ids_unique(&mut rows), 2);
        let ids: Vec<_> = rows.iter().map(|e| e.id.as_str()).collect();
        assert_eq!(ids, ["row-1", "row-1-2", "row-1-2-2"]);
    }

    #[test]
    fn a_question_has_no_system_turn() {
        let mut e = example(1, "Where?", "Here.");
        e.conversation.messages.insert(0, Message::new("system", "Be brief."));
        assert_eq!(e.question(), "Where?");
        assert_eq!(e.completion(), "Here.");
        assert_eq!(
            e.to_json_line(),
            r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Where?"},{"role":"assistant","content":"Here."}],"id":"row-1"}"#
        );
    }
}
