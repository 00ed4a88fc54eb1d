//! What all formats share: a row is checked, gets its id, or is remembered as wrong.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use indexmap::IndexMap;
use serde_json::Value;
use text::{Conversation, Message};

use super::ReadOptions;
use crate::error::{DataError, Problem, RowErrors, excerpt};
use crate::example::{Example, Origin, content_id, is_system, is_tool};

/// A row as its format understood it, not yet checked.
pub(super) struct Draft {
    pub(super) messages: Vec<Message>,
    pub(super) tools: Vec<Value>,
    /// Its own id; `None`: the hash of its content.
    pub(super) id: Option<String>,
    pub(super) group: Option<String>,
    /// What is left of the row to slice by.
    pub(super) slices: IndexMap<String, String>,
    /// Names of the fields that hold each turn's text, for messages.
    pub(super) fields: Fields,
}

/// How the turns of a draft are called in its file.
pub(super) enum Fields {
    /// Turn `i` is item `i` of this field.
    List(&'static str),
    /// Names of the input and the answer.
    Pair(String, String),
    /// Turn `i` is item `i` of the first field, or, from this number on, the second's.
    Lists(&'static str, usize, &'static str),
}

impl Fields {
    /// A turn as a whole.
    fn turn(&self, index: usize, last: usize) -> String {
        match self {
            Fields::List(list) => format!("{list}[{index}]"),
            Fields::Pair(_, completion) if index == last => completion.clone(),
            Fields::Pair(prompt, _) => prompt.clone(),
            Fields::Lists(_, first, list) if index >= *first => {
                format!("{list}[{}]", index - first)
            }
            Fields::Lists(list, ..) => format!("{list}[{index}]"),
        }
    }

    fn part(&self, index: usize, last: usize, part: &str) -> String {
        match self {
            Fields::List("conversations") => {
                let part = if part == "role" { "from" } else { "value" };
                format!("{}.{part}", self.turn(index, last))
            }
            Fields::Pair(..) if part == "content" => self.turn(index, last),
            _ => format!("{}.{part}", self.turn(index, last)),
        }
    }

    fn whole(&self) -> &str {
        match self {
            Fields::List(list) | Fields::Lists(_, _, list) => list,
            Fields::Pair(..) => "",
        }
    }
}

/// Collects what the rows of one file become.
pub(super) struct Rows<'a, T> {
    path: &'a Path,
    options: &'a ReadOptions,
    items: Vec<T>,
    /// The line that first used an id.
    own_ids: HashMap<String, usize>,
    any_group: bool,
    problems: Vec<Problem>,
    more: usize,
}

impl<'a, T> Rows<'a, T> {
    pub(super) fn new(path: &'a Path, options: &'a ReadOptions) -> Self {
        Self {
            path,
            options,
            items: Vec::new(),
            own_ids: HashMap::new(),
            any_group: false,
            problems: Vec::new(),
            more: 0,
        }
    }

    /// Takes a row, read or failed.
    pub(super) fn push(&mut self, row: Result<T, Problem>) {
        match row {
            Ok(item) => self.items.push(item),
            Err(problem) if self.problems.len() < self.options.max_problems.max(1) => {
                self.problems.push(problem);
            }
            Err(_) => self.more += 1,
        }
    }

    /// The id of a row: its own, which no other row of the file may have, or what `hash` says.
    pub(super) fn id(
        &mut self,
        line: usize,
        own: Option<String>,
        hash: impl FnOnce() -> String,
    ) -> Result<String, Problem> {
        let Some(id) = own else { return Ok(hash()) };
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
        Ok(id)
    }

    /// Remembers whether any row has a group.
    pub(super) fn group(&mut self, group: Option<String>) -> Option<String> {
        self.any_group |= group.is_some();
        group
    }

    pub(super) fn origin(&self, line: usize) -> Origin {
        Origin { file: self.path.to_owned(), line }
    }

    /// All rows, or all that is wrong with them.
    pub(super) fn finish(self) -> Result<Vec<T>, DataError> {
        let path = self.path.to_owned();
        if !self.problems.is_empty() {
            let (problems, more) = (self.problems, self.more);
            return Err(DataError::Rows(RowErrors { path, problems, more }));
        }
        if self.items.is_empty() {
            let expected = "at least one row below the header".to_owned();
            return Err(DataError::Empty { path, expected });
        }
        if let Some(group) = self.options.group_column.as_ref().filter(|_| !self.any_group) {
            return Err(DataError::Columns {
                path,
                found: "no row has a value in the group field".to_owned(),
                expected: format!("the field {group:?}"),
                hint: "without groups, leave the option out".to_owned(),
            });
        }
        Ok(self.items)
    }
}

impl Rows<'_, Example> {
    /// A draft as an example, if nothing is wrong with it.
    pub(super) fn example(&mut self, line: usize, draft: Draft) -> Result<Example, Problem> {
        check_turns(line, &draft.messages, &draft.tools, &draft.fields)?;
        let conversation = Conversation::new(draft.messages).with_tools(draft.tools);
        let id = self.id(line, draft.id, || content_id(&conversation))?;
        let group = self.group(draft.group);
        let origin = self.origin(line);
        Ok(Example { id, conversation, group, slices: draft.slices, origin })
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

/// Checks that a conversation can be learnt: known roles in a sensible order (a tool speaks when it
/// was called, with an answer to that call), text or calls in every turn, the assistant at the end,
/// and at least one turn to learn.
pub(super) fn check_turns(
    line: usize,
    messages: &[Message],
    tools: &[Value],
    fields: &Fields,
) -> Result<(), Problem> {
    let Some(last) = messages.len().checked_sub(1) else {
        let expected = "a user turn and an assistant turn at least";
        return Err(Problem::new(line, fields.whole(), "an empty list", expected, ""));
    };
    let offered: HashSet<&str> =
        tools.iter().filter_map(|t| t.pointer("/function/name")?.as_str()).collect();
    // Calls of the assistant that no tool has answered yet.
    let mut open: Vec<Option<&str>> = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        let wrong = |part: &str, found: String, expected: &str, hint: &str| {
            Err(Problem::new(line, fields.part(i, last, part), found, expected, hint))
        };
        let role = message.role.as_str();
        if !is_system(role) && !is_tool(role) && role != "user" && role != "assistant" {
            let found = format!("the unknown role {:?}", excerpt(role));
            let hint = match role {
                "human" => "write user instead of human",
                "gpt" | "bot" | "model" | "ai" => "write assistant for what the model says",
                "function_call" | "tool_call" => "write calls as tool_calls of an assistant turn",
                _ => "roles are written in lower case",
            };
            return wrong("role", found, "system, user, assistant or tool", hint);
        }
        let before = i.checked_sub(1).map(|i| messages[i].role.as_str());
        let expected = match before {
            None if is_system(role) => role,
            None => "user",
            Some(before) if is_system(before) => "user",
            Some("user") => "assistant",
            Some("assistant") if open.is_empty() => "user",
            // Every call is answered before anybody else speaks.
            Some(_) if !open.is_empty() => "tool",
            Some(_) => "assistant",
        };
        let fits = role == expected || (expected == "tool" && is_tool(role));
        if !fits {
            let place = before.map_or("at the beginning".to_owned(), |b| format!("after {b}"));
            let hint = match (expected, is_tool(role)) {
                ("tool", _) => "behind a turn with tool_calls stands what the tools answered",
                (_, true) => "a tool speaks when the assistant has called it, once for each call",
                _ => {
                    "turns go user, assistant, user, ..., with at most one system turn, at the \
                     beginning; join neighbours of the same role"
                }
            };
            return wrong("role", format!("{role} {place}"), expected, hint);
        }
        if is_tool(role) {
            match answered(&open, message.tool_call_id.as_deref()) {
                Some(call) => _ = open.remove(call),
                None => {
                    let id = message.tool_call_id.as_deref().unwrap_or_default();
                    let ids: Vec<&str> = open.iter().copied().flatten().collect();
                    let expected = format!("the id of an open call: {}", excerpt(&ids.join(", ")));
                    return wrong("tool_call_id", format!("{:?}", excerpt(id)), &expected, "");
                }
            }
        } else {
            open.clear();
        }
        if !message.tool_calls.is_empty() && role != "assistant" {
            let expected = "tool calls in assistant turns alone";
            return wrong("tool_calls", format!("tool calls of {role}"), expected, "");
        }
        for call in &message.tool_calls {
            let name = call.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
            if !offered.is_empty() && !offered.contains(name) {
                let found = format!("a call of {:?}", excerpt(name));
                let hint = "the model would learn to call what it was not offered";
                return wrong("tool_calls", found, "one of the row's tools", hint);
            }
            open.push(call.get("id").and_then(Value::as_str));
        }
        if message.train == Some(true) && role != "assistant" {
            let found = format!("a {role} turn to learn");
            return wrong("train", found, "assistant turns alone to learn", "");
        }
        // A tool may have nothing to say.
        if message.content.trim().is_empty() && message.tool_calls.is_empty() && !is_tool(role) {
            let hint = match role {
                "assistant" => "an empty answer would teach the model to say nothing",
                _ => "",
            };
            return wrong("content", format!("an empty {role} turn"), "text", hint);
        }
    }
    if messages[last].role != "assistant" {
        let found = format!("a conversation that ends with {}", messages[last].role);
        let expected = "the assistant's answer at the end";
        return Err(Problem::new(line, fields.whole(), found, expected, ""));
    }
    if !messages.iter().any(Message::is_learnt) {
        let found = "no turn to learn: every assistant turn has weight 0";
        let hint = "leave the row out, or give an answer weight 1";
        return Err(Problem::new(line, fields.whole(), found, "one at least", hint));
    }
    Ok(())
}

/// Which of the open calls a tool's turn answers: the one with its id, or, where either side has no
/// ids, the first.
fn answered(open: &[Option<&str>], id: Option<&str>) -> Option<usize> {
    match id {
        Some(id) => open
            .iter()
            .position(|call| *call == Some(id))
            .or_else(|| open.iter().position(Option::is_none)),
        None => (!open.is_empty()).then_some(0),
    }
}
