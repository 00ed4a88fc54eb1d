//! What all formats share: a row is checked, gets its id, or is remembered as wrong.

use std::collections::HashMap;
use std::path::Path;

use text::{Conversation, Message};

use super::ReadOptions;
use crate::error::{DataError, Problem, RowErrors, excerpt};
use crate::example::{Example, Origin, content_id, is_system, make_ids_unique};

/// A row as its format understood it, not yet checked.
pub(super) struct Draft {
    pub(super) messages: Vec<Message>,
    /// Its own id; `None`: the hash of its content.
    pub(super) id: Option<String>,
    pub(super) group: Option<String>,
    /// Names of the fields that hold each turn's text, for messages.
    pub(super) fields: Fields,
}

/// How the turns of a draft are called in its file.
pub(super) enum Fields {
    /// `messages[i].content`
    Messages,
    /// Names of the input and the answer.
    Pair(String, String),
}

impl Fields {
    fn content(&self, index: usize, last: usize) -> String {
        match self {
            Fields::Messages => format!("messages[{index}].content"),
            Fields::Pair(_, completion) if index == last => completion.clone(),
            Fields::Pair(prompt, _) => prompt.clone(),
        }
    }
}

/// Collects the rows of one file.
pub(super) struct Rows<'a> {
    path: &'a Path,
    options: &'a ReadOptions,
    examples: Vec<Example>,
    /// The line that first used an id.
    own_ids: HashMap<String, usize>,
    problems: Vec<Problem>,
    more: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(path: &'a Path, options: &'a ReadOptions) -> Self {
        Self {
            path,
            options,
            examples: Vec::new(),
            own_ids: HashMap::new(),
            problems: Vec::new(),
            more: 0,
        }
    }

    /// Takes a row, read or failed.
    pub(super) fn push(&mut self, line: usize, row: Result<Draft, Problem>) {
        match row.and_then(|draft| self.check(line, draft)) {
            Ok(example) => self.examples.push(example),
            Err(problem) if self.problems.len() < self.options.max_problems.max(1) => {
                self.problems.push(problem);
            }
            Err(_) => self.more += 1,
        }
    }

    /// All rows, or all that is wrong with them.
    pub(super) fn finish(mut self) -> Result<Vec<Example>, DataError> {
        if !self.problems.is_empty() {
            let Self { path, problems, more, .. } = self;
            return Err(DataError::Rows(RowErrors { path: path.to_owned(), problems, more }));
        }
        if self.examples.is_empty() {
            return Err(DataError::Empty {
                path: self.path.to_owned(),
                expected: "at least one row below the header".to_owned(),
            });
        }
        // Rows without an own id that are equal have equal hashes.
        make_ids_unique(&mut self.examples);
        Ok(self.examples)
    }

    fn check(&mut self, line: usize, draft: Draft) -> Result<Example, Problem> {
        check_turns(line, &draft)?;
        let conversation = Conversation::new(draft.messages);
        let id = match draft.id {
            None => content_id(&conversation),
            Some(id) => {
                if let Some(first) = self.own_ids.get(&id) {
                    return Err(Problem::new(
                        line,
                        self.options.id_column.as_deref().unwrap_or("id"),
                        format!("{:?}, which line {first} already has", excerpt(&id)),
                        "an id of its own for every row",
                        "",
                    ));
                }
                self.own_ids.insert(id.clone(), line);
                id
            }
        };
        let origin = Origin { file: self.path.to_owned(), line };
        Ok(Example { id, conversation, group: draft.group, origin })
    }
}

/// The length of a row, checked against the limit.
pub(super) fn check_length(
    line: usize,
    bytes: usize,
    options: &ReadOptions,
) -> Result<(), Problem> {
    if bytes <= options.max_row_bytes {
        return Ok(());
    }
    Err(Problem::new(
        line,
        "",
        format!("a row of {bytes} bytes"),
        format!("at most {} bytes", options.max_row_bytes),
        "a line end or a closing quote may be missing; otherwise cut long texts into several rows",
    ))
}

fn check_turns(line: usize, draft: &Draft) -> Result<(), Problem> {
    let messages = &draft.messages;
    let Some(last) = messages.len().checked_sub(1) else {
        return Err(Problem::new(
            line,
            "messages",
            "an empty list",
            "a user turn and an assistant turn at least",
            "",
        ));
    };
    let first_said = usize::from(is_system(&messages[0].role));
    for (i, message) in messages.iter().enumerate() {
        let role_field = || format!("messages[{i}].role");
        let role = message.role.as_str();
        if !is_system(role) && role != "user" && role != "assistant" {
            return Err(Problem::new(
                line,
                role_field(),
                format!("the unknown role {:?}", excerpt(role)),
                "system, user or assistant",
                match role {
                    "human" => "write user instead of human",
                    "gpt" | "bot" | "model" | "ai" => "write assistant for what the model says",
                    "tool" | "function" => "tool calls cannot be learnt yet; leave these rows out",
                    _ => "roles are written in lower case",
                },
            ));
        }
        let expected = match i {
            _ if i < first_said => role,
            _ if (i - first_said) % 2 == 0 => "user",
            _ => "assistant",
        };
        if role != expected {
            let place = match i {
                0 => "at the beginning".to_owned(),
                i => format!("after {}", messages[i - 1].role),
            };
            return Err(Problem::new(
                line,
                role_field(),
                format!("{role} {place}"),
                expected,
                "turns go user, assistant, user, ..., with at most one system turn, at the \
                 beginning; join neighbours of the same role",
            ));
        }
        if message.content.trim().is_empty() {
            return Err(Problem::new(
                line,
                draft.fields.content(i, last),
                format!("an empty {role} turn"),
                "text",
                match role {
                    "assistant" => "an empty answer would teach the model to say nothing",
                    _ => "",
                },
            ));
        }
    }
    if messages[last].role != "assistant" {
        return Err(Problem::new(
            line,
            "messages",
            format!("a conversation that ends with {}", messages[last].role),
            "the assistant's answer at the end",
            "",
        ));
    }
    Ok(())
}
