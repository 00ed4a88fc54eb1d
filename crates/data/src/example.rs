//! One example: a conversation that ends with the answer to learn.

use std::collections::HashSet;
use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use text::{Conversation, Message};

/// A conversation whose last turn is the assistant's answer, with its name and its place.
///
/// The readers guarantee: at most one system (or developer) turn, and that first; then user and
/// assistant in turn, ending with the assistant, with the tools' answers behind each turn that calls
/// tools; no turn without text, save that the assistant may call instead of speaking and a tool may
/// have nothing to say; at least one turn to learn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Name of the example: its own `id`, or else a hash of its content, so that it stays the same
    /// when rows around it come and go. Unique within a file.
    pub id: String,
    /// The turns.
    pub conversation: Conversation,
    /// Examples of one group (a customer, a document) are never split between train and test.
    pub group: Option<String>,
    /// The row's other short fields (language, customer, date ...), by which scores can be told apart:
    /// at most [`MAX_SLICES`] of them, names up to 64 and values up to 128 bytes. They are neither
    /// learnt nor asked, and no part of what makes two examples the same.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub slices: IndexMap<String, String>,
    /// Where it was read.
    pub origin: Origin,
}

/// Most fields of a row that are kept to slice by; further ones are dropped.
pub const MAX_SLICES: usize = 16;
const MAX_SLICE_NAME: usize = 64;
const MAX_SLICE_VALUE: usize = 128;

/// Names that say something to a reader of rows, and so never become the name of a slice: a written
/// example would be read back as something else.
const TAKEN: [&str; 7] = ["messages", "tools", "functions", "id", "group", "chosen", "completion"];

/// The fields of a row, of those that its form left over, that can be sliced by: text, numbers and
/// truth values that are short. Long text, lists, nothing and whatever is in `used` are left out.
pub(crate) fn slices_of(fields: &Map<String, Value>, used: &[&str]) -> IndexMap<String, String> {
    let short = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            _ => return None,
        };
        let kept = (1..=MAX_SLICE_NAME).contains(&name.len())
            && (1..=MAX_SLICE_VALUE).contains(&value.len())
            && !TAKEN.contains(&name.as_str())
            && !used.contains(&name.as_str());
        kept.then(|| (name.clone(), value))
    };
    fields.iter().filter_map(short).take(MAX_SLICES).collect()
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
    /// The text of the last assistant turn: the answer a test compares with. Empty where that
    /// turn only calls tools.
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

    /// The last assistant turn with what it calls.
    pub(crate) fn answer(&self) -> String {
        let last = self.conversation.messages.last();
        let calls = last.map_or(&[][..], |m| &m.tool_calls);
        let calls: String = calls.iter().map(|call| format!("\n{call}")).collect();
        self.completion().trim().to_owned() + &calls
    }

    /// The example as one line of chat JSONL:
    /// `{"messages":[...],"tools":[...],"id":"...","group":"..."}` and a field for each of
    /// [`Example::slices`], without `tools` or `group` when it has none, and without a line end.
    pub fn to_json_line(&self) -> String {
        #[derive(Serialize)]
        struct Row<'a> {
            messages: &'a [Message],
            #[serde(skip_serializing_if = "<[Value]>::is_empty")]
            tools: &'a [Value],
            id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            group: Option<&'a str>,
            #[serde(flatten)]
            slices: &'a IndexMap<String, String>,
        }
        let row = Row {
            messages: &self.conversation.messages,
            tools: &self.conversation.tools,
            id: &self.id,
            group: self.group.as_deref(),
            slices: &self.slices,
        };
        serde_json::to_string(&row).expect("strings always serialise")
    }
}

/// Whether a role instructs the model rather than takes part in the conversation.
pub(crate) fn is_system(role: &str) -> bool {
    role == "system" || role == "developer"
}

/// Whether a role gives what a call came back with.
pub(crate) fn is_tool(role: &str) -> bool {
    role == "tool" || role == "function" || role == "ipython"
}

/// Renames examples whose `id` an earlier one already has (files that each count from 1), by adding
/// `-2`, `-3`, ... Returns how many were renamed.
pub fn make_ids_unique(examples: &mut [Example]) -> usize {
    make_unique(examples.iter_mut().map(|example| &mut example.id))
}

/// [`make_ids_unique`] of ids.
pub(crate) fn make_unique<'a>(ids: impl Iterator<Item = &'a mut String>) -> usize {
    let mut seen: HashSet<String> = HashSet::new();
    let mut renamed = 0;
    for id in ids {
        if seen.contains(id) {
            *id = (2..)
                .map(|n: u64| format!("{id}-{n}"))
                .find(|id| !seen.contains(id))
                .expect("there are more numbers than examples");
            renamed += 1;
        }
        seen.insert(id.clone());
    }
    renamed
}

/// Sixteen hexadecimal digits of the SHA-256 over roles and contents, and over tool calls and tools
/// where there are any.
pub(crate) fn content_id(conversation: &Conversation) -> String {
    content_id_of(conversation.messages.iter(), &conversation.tools)
}

/// [`content_id`] of messages.
pub(crate) fn content_id_of<'a>(
    messages: impl Iterator<Item = &'a Message>,
    tools: &[Value],
) -> String {
    let mut hasher = Sha256::new();
    let mut update = |part: &str| {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    for message in messages {
        update(&message.role);
        update(&message.content);
        message.tool_calls.iter().for_each(|call| update(&call.to_string()));
    }
    tools.iter().for_each(|tool| update(&tool.to_string()));
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
        let id = format!("row-{line}");
        Example { id, conversation, group: None, slices: IndexMap::new(), origin }
    }

    #[test]
    fn the_id_depends_on_content_and_its_borders() {
        let a = content_id(&example(1, "ab", "c").conversation);
        assert_eq!(a, content_id(&example(2, "ab", "c").conversation));
        assert_ne!(a, content_id(&example(1, "a", "bc").conversation));
        assert_eq!(a.len(), 16);
    }

    #[test]
    fn short_fields_that_say_nothing_else_are_slices() {
        let long = "x".repeat(MAX_SLICE_VALUE + 1);
        let row = serde_json::json!({
            "lang": " fr ", "year": 2024, "vip": true, "text": "used", "id": "7", "note": long,
            "tags": ["a"], "none": null, "empty": " ", "chosen": "x",
        });
        let slices = slices_of(row.as_object().unwrap(), &["text"]);
        let found: Vec<_> = slices.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, [("lang", "fr"), ("year", "2024"), ("vip", "true")]);
        let many: Map<String, Value> = (0..99).map(|i| (format!("f{i}"), i.into())).collect();
        assert_eq!(slices_of(&many, &[]).len(), MAX_SLICES);
        let mut e = example(1, "a", "b");
        let plain = content_id(&e.conversation);
        e.slices = slices;
        assert_eq!(content_id(&e.conversation), plain);
        assert!(
            e.to_json_line().ends_with(r#","id":"row-1","lang":"fr","year":"2024","vip":"true"}"#)
        );
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
