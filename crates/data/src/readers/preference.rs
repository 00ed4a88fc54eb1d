//! Preference data in TRL's forms: a prompt with a chosen and a rejected answer, with the prompt in
//! a field of its own or as what the two conversations share; and KTO's prompt, completion and
//! label. Texts are strings (one turn) or lists of messages.

use std::path::Path;

use serde_json::{Map, Value};
use text::{Conversation, Message};

use super::rows::{Fields, Rows, check_turns};
use super::turns::{messages, tools};
use super::values::{describe, optional_text_of};
use super::{ReadOptions, RowSink, container_of};
use crate::error::{DataError, Problem, excerpt};
use crate::example::make_unique;
use crate::preference::{Answers, Preference, joined, preference_id};

/// Usual names of the field with the prompt.
const PROMPTS: [&str; 4] = ["prompt", "question", "instruction", "input"];
const PAIR: &str = r#"{"prompt": ..., "chosen": ..., "rejected": ...}"#;
const LABELLED: &str = r#"{"prompt": ..., "completion": ..., "label": true}"#;

/// Reads every preference of a file, in its order; which container it is follows from its name, as
/// for [`read`](super::read).
///
/// * `{"prompt", "chosen", "rejected"}`: all strings, or lists of messages. A string is one turn,
///   the prompt the user's (behind [`ReadOptions::system_prompt`]), the others the assistant's.
/// * `{"chosen", "rejected"}` as lists: the turns that both begin with are the prompt.
/// * `{"prompt", "completion", "label"}`, where the label is true or false.
///
/// `tools`, `id` and `group` are read as in chat data.
///
/// # Errors
/// Those of [`read`](super::read); among the wrong rows are those whose answers are empty or equal.
pub fn read_preferences(path: &Path, options: &ReadOptions) -> Result<Vec<Preference>, DataError> {
    let container = container_of(path)?;
    let mut sink = Preferences { path, options, rows: Rows::new(path, options), first: None };
    (container.read)(path, options, &mut sink)?;
    let mut preferences = sink.rows.finish()?;
    make_unique(preferences.iter_mut().map(|p| &mut p.id));
    Ok(preferences)
}

/// Whether rows with these fields are preferences, and not asked to be read as something else.
pub(super) fn accepts(names: &[&str], options: &ReadOptions) -> bool {
    let has = |name: &str| names.contains(&name);
    let labelled = has("completion") && has("label") && PROMPTS.iter().any(|name| has(name));
    options.completion_column.is_none() && ((has("chosen") && has("rejected")) || labelled)
}

/// The error for preferences where conversations are wanted.
pub(super) fn not_here(path: &Path, names: &[&str]) -> DataError {
    DataError::Columns {
        path: path.to_owned(),
        found: format!("preference data (the fields are {})", excerpt(&names.join(", "))),
        expected: "conversations, or prompts with one answer each to learn".to_owned(),
        hint:
            "preferences are learnt with an objective such as dpo or kto; to learn all answers of \
               one field, name it with --completion-column"
                .to_owned(),
    }
}

/// Makes preferences of rows.
struct Preferences<'a> {
    path: &'a Path,
    options: &'a ReadOptions,
    rows: Rows<'a, Preference>,
    /// Whether the first row was a pair, and its line.
    first: Option<(bool, usize)>,
}

impl RowSink for Preferences<'_> {
    fn header(&mut self, names: &[&str]) -> Result<(), DataError> {
        if accepts(names, &ReadOptions::default()) {
            return Ok(());
        }
        Err(DataError::Columns {
            path: self.path.to_owned(),
            found: format!("the columns {}", excerpt(&names.join(", "))),
            expected: format!("{PAIR} or {LABELLED}"),
            hint: "preferences name a better and a worse answer, or say whether one is good"
                .to_owned(),
        })
    }

    fn row(
        &mut self,
        line: usize,
        row: Result<Map<String, Value>, Problem>,
    ) -> Result<(), DataError> {
        let preference = row.and_then(|object| self.preference(line, object));
        self.rows.push(preference);
        Ok(())
    }
}

impl Preferences<'_> {
    fn preference(
        &mut self,
        line: usize,
        mut object: Map<String, Value>,
    ) -> Result<Preference, Problem> {
        let options = self.options;
        let is_pair = object.contains_key("chosen") || object.contains_key("rejected");
        let is_labelled = object.contains_key("completion") || object.contains_key("label");
        let (first_is_pair, first) = *self.first.get_or_insert((is_pair, line));
        let one = |found: String| {
            let expected = match first == line {
                true => format!("{PAIR} or {LABELLED}"),
                false => {
                    format!("{}, as in line {first}", if first_is_pair { PAIR } else { LABELLED })
                }
            };
            Problem::new(line, "", found, expected, "one file holds one form of rows")
        };
        if is_pair == is_labelled || is_pair != first_is_pair {
            let names: Vec<&str> = object.keys().map(String::as_str).collect();
            return Err(one(format!("a row with the fields {}", excerpt(&names.join(", ")))));
        }
        let group_field = options.group_column.as_deref().unwrap_or("group");
        let id_field = options.id_column.as_deref().unwrap_or("id");
        let id = optional_text_of(line, id_field, object.remove(id_field))?;
        let group = optional_text_of(line, group_field, object.remove(group_field))?;
        let tools = tools(line, &mut object)?;
        let system = match optional_text_of(line, "system", object.remove("system"))? {
            Some(own) => Some(Message::new("system", own)),
            None => options.system_turn(),
        };

        let usual = PROMPTS.into_iter().find(|name| object.contains_key(*name));
        let prompt_field = options.prompt_column.as_deref().or(usual).unwrap_or(PROMPTS[0]);
        let prompt = match object.remove(prompt_field) {
            None | Some(Value::Null) => None,
            Some(value) => Some(Said::read(line, prompt_field, value)?),
        };
        let row = Row { line, prompt, prompt_field, system };
        let (prompt, answers, checks) = if is_pair {
            let chosen = Said::required(line, "chosen", &mut object)?;
            let rejected = Said::required(line, "rejected", &mut object)?;
            row.pair(chosen, rejected)?
        } else {
            let completion = Said::required(line, "completion", &mut object)?;
            let label = label(line, object.remove("label"))?;
            row.labelled(completion, label)?
        };
        let prompt = Conversation::new(prompt).with_tools(tools);
        for ((name, answer), fields) in answers.named().into_iter().zip(&checks) {
            if let Some(role) = answer.first().map(|m| &m.role).filter(|r| *r != "assistant") {
                return Err(Problem::new(
                    line,
                    name,
                    format!("an answer that begins with a turn of {}", excerpt(role)),
                    "the assistant's turn",
                    "chosen and rejected share everything up to the answer, and nothing of it",
                ));
            }
            let whole = joined(&prompt, answer);
            check_turns(line, &whole.messages, &whole.tools, fields)?;
        }
        if let Answers::Pair { chosen, rejected } = &answers
            && same(chosen, rejected)
        {
            return Err(Problem::new(
                line,
                "rejected",
                "the same answer as in chosen",
                "another one",
                "leave out rows whose answers are equal: there is nothing to prefer",
            ));
        }
        let id = self.rows.id(line, id, || preference_id(&prompt, &answers))?;
        let group = self.rows.group(group);
        Ok(Preference { id, prompt, answers, group, origin: self.rows.origin(line) })
    }
}

/// What a field says.
enum Said {
    Text(String),
    Turns(Vec<Message>),
}

impl Said {
    fn read(line: usize, field: &str, value: Value) -> Result<Said, Problem> {
        match value {
            Value::String(text) => Ok(Said::Text(text)),
            list @ Value::Array(_) => messages(line, field, list).map(Said::Turns),
            // One turn that stands alone.
            turn @ Value::Object(_) => {
                messages(line, field, Value::Array(vec![turn])).map(Said::Turns)
            }
            other => {
                let expected = "a string or a list of messages";
                Err(Problem::new(line, field, describe(&other), expected, ""))
            }
        }
    }

    fn required(
        line: usize,
        field: &str,
        object: &mut Map<String, Value>,
    ) -> Result<Said, Problem> {
        match object.remove(field) {
            Some(value) => Said::read(line, field, value),
            None => {
                let expected = "a string or a list of messages";
                Err(Problem::new(line, field, "no such field", expected, ""))
            }
        }
    }
}

/// What a row has beside its answers.
struct Row<'a> {
    line: usize,
    prompt: Option<Said>,
    prompt_field: &'a str,
    system: Option<Message>,
}

/// Turns of the prompt, answers, and for each answer how its turns are called in the file.
type Parts = (Vec<Message>, Answers, Vec<Fields>);

impl Row<'_> {
    fn pair(self, chosen: Said, rejected: Said) -> Result<Parts, Problem> {
        let names = ["chosen", "rejected"];
        let (prompt, [chosen, rejected], fields) = match (chosen, rejected) {
            (Said::Text(chosen), Said::Text(rejected)) => self.texts([chosen, rejected], names)?,
            (Said::Turns(chosen), Said::Turns(rejected)) => {
                self.turns([chosen, rejected], names)?
            }
            (Said::Turns(_), Said::Text(_)) | (Said::Text(_), Said::Turns(_)) => {
                let found = "a string beside a list of messages";
                let expected = "both answers in one form";
                return Err(Problem::new(self.line, "rejected", found, expected, ""));
            }
        };
        Ok((prompt, Answers::Pair { chosen, rejected }, fields))
    }

    fn labelled(self, completion: Said, label: bool) -> Result<Parts, Problem> {
        let names = ["completion"];
        let (prompt, [completion], fields) = match completion {
            Said::Text(completion) => self.texts([completion], names)?,
            Said::Turns(completion) => self.turns([completion], names)?,
        };
        Ok((prompt, Answers::Labelled { completion, label }, fields))
    }

    /// Answers of one turn each, which need a prompt of their own.
    fn texts<const N: usize>(
        self,
        answers: [String; N],
        names: [&'static str; N],
    ) -> Result<(Vec<Message>, [Vec<Message>; N], Vec<Fields>), Problem> {
        let field = self.prompt_field.to_owned();
        let prompt = match self.prompt {
            Some(Said::Text(text)) => {
                self.system.into_iter().chain([Message::new("user", text)]).collect()
            }
            Some(Said::Turns(turns)) => turns,
            None => {
                return Err(Problem::new(
                    self.line,
                    field,
                    "no such field",
                    "the prompt",
                    "where one text ends and the other begins cannot be told from strings; give the \
                     prompt in a field of its own, or the conversations as lists of messages",
                ));
            }
        };
        let fields = names.map(|name| Fields::Pair(field.clone(), name.to_owned()));
        let answers = answers.map(|text| vec![Message::new("assistant", text)]);
        Ok((prompt, answers, fields.into()))
    }

    /// Answers as lists of messages, of which the first may be the prompt's.
    fn turns<const N: usize>(
        self,
        mut answers: [Vec<Message>; N],
        names: [&'static str; N],
    ) -> Result<(Vec<Message>, [Vec<Message>; N], Vec<Fields>), Problem> {
        let whole = names.map(Fields::List).into();
        let is_answer =
            |turns: &Vec<Message>| turns.first().is_some_and(|turn| turn.role == "assistant");
        match self.prompt {
            Some(Said::Turns(prompt)) => {
                // The conversations may be given from their beginning all the same.
                if answers.iter().all(|turns| turns.starts_with(&prompt)) {
                    answers.iter_mut().for_each(|turns| _ = turns.drain(..prompt.len()));
                    return Ok((prompt, answers, whole));
                }
                let fields = names.map(|name| Fields::Lists("prompt", prompt.len(), name));
                Ok((prompt, answers, fields.into()))
            }
            Some(Said::Text(text)) if answers.iter().all(is_answer) => {
                let prompt: Vec<Message> =
                    self.system.into_iter().chain([Message::new("user", text)]).collect();
                let fields = names.map(|name| Fields::Lists("prompt", prompt.len(), name));
                Ok((prompt, answers, fields.into()))
            }
            _ => {
                let shared = shared_beginning(&answers);
                let prompt = answers[0][..shared].to_vec();
                if answers.iter().any(|turns| turns.len() == shared) && N > 1 {
                    let equal = answers.iter().all(|turns| turns.len() == shared);
                    let (found, hint) = match equal {
                        true => (
                            "the same answer as in chosen",
                            "leave out rows whose answers are equal",
                        ),
                        false => ("a conversation that is the beginning of the other", ""),
                    };
                    let expected = "another answer to the same prompt";
                    return Err(Problem::new(self.line, "rejected", found, expected, hint));
                }
                answers.iter_mut().for_each(|turns| _ = turns.drain(..shared));
                Ok((prompt, answers, whole))
            }
        }
    }
}

/// How many turns all conversations begin with. One conversation shares all but what its last user
/// or tool turn is answered with.
fn shared_beginning<const N: usize>(conversations: &[Vec<Message>; N]) -> usize {
    let first = &conversations[0];
    if N == 1 {
        return first.iter().rposition(|turn| turn.role == "user").map_or(0, |last| last + 1);
    }
    let same = |i: &usize| conversations.iter().all(|turns| turns.get(*i) == first.get(*i));
    (0..first.len()).take_while(same).count()
}

/// Whether two answers say and call the same.
fn same(a: &[Message], b: &[Message]) -> bool {
    let said = |m: &Message| (m.role.clone(), m.content.trim().to_owned(), m.tool_calls.clone());
    a.iter().map(said).eq(b.iter().map(said))
}

fn label(line: usize, value: Option<Value>) -> Result<bool, Problem> {
    let said = match &value {
        Some(Value::Bool(label)) => Some(*label),
        Some(Value::Number(number)) if number.as_f64() == Some(1.0) => Some(true),
        Some(Value::Number(number)) if number.as_f64() == Some(0.0) => Some(false),
        // Tables hold text.
        Some(Value::String(text)) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    };
    said.ok_or_else(|| {
        let found = value.as_ref().map_or("no such field".to_owned(), describe);
        Problem::new(line, "label", found, "true or false", "")
    })
}
