//! Which column holds what, and how a row of columns becomes a conversation.

use std::path::Path;

use text::Message;

use super::ReadOptions;
use super::rows::Fields;
use crate::error::{DataError, excerpt};

/// Pairs of input and answer that need no options.
const PAIRS: &[(&str, &str)] = &[
    ("prompt", "completion"),
    ("text", "category"),
    ("text", "label"),
    ("question", "answer"),
    ("input", "output"),
    // Known so that an `input` beside it is not taken for the whole prompt.
    ("instruction", "output"),
];

/// The roles of a table's columns, by the names they have there.
pub(super) struct Columns {
    prompt: Prompt,
    pub(super) completion: String,
    pub(super) group: Option<String>,
    pub(super) id: Option<String>,
}

enum Prompt {
    Column(String),
    Template(Vec<Part>),
}

enum Part {
    Text(String),
    Column(String),
}

impl Columns {
    /// Matches the options, or else the usual names, to the columns there are. `kind` is what the
    /// names are called in messages.
    pub(super) fn resolve(
        path: &Path,
        names: &[&str],
        kind: &str,
        options: &ReadOptions,
    ) -> Result<Columns, DataError> {
        let shown: Vec<String> = names.iter().map(|n| format!("{:?}", excerpt(n))).collect();
        let fail = |found: String, expected: String, hint: &str| DataError::Columns {
            path: path.to_owned(),
            found: format!("{found} (the {kind} are {})", shown.join(", ")),
            expected,
            hint: hint.to_owned(),
        };
        let named = |option: &str, wanted: &str| match &find(names, wanted)[..] {
            [only] => Ok((*only).to_owned()),
            [] => Err(fail(
                format!("no {wanted:?} for {option}"),
                format!("one of the {kind}"),
                "name one of them",
            )),
            several => Err(fail(
                format!("{} times {wanted:?} for {option}", several.len()),
                "it once".to_owned(),
                "rename the others",
            )),
        };
        let optional = |option: &str, wanted: &Option<String>, usual: &str| match wanted {
            Some(wanted) => named(option, wanted).map(Some),
            None if find(names, usual).is_empty() => Ok(None),
            None => named(option, usual).map(Some),
        };
        let group = optional("the group column", &options.group_column, "group")?;
        let id = optional("the id column", &options.id_column, "id")?;

        // What the options leave open must follow from the recognised pairs.
        let prompt_given = options.prompt_template.is_some() || options.prompt_column.is_some();
        let completion_given = options.completion_column.is_some();
        let has = |name: &str| !find(names, name).is_empty();
        let mut open: Vec<(Option<&str>, Option<&str>)> = Vec::new();
        for (prompt, completion) in PAIRS {
            let fits = (prompt_given || has(prompt)) && (completion_given || has(completion));
            let left = (
                Some(*prompt).filter(|_| !prompt_given),
                Some(*completion).filter(|_| !completion_given),
            );
            if fits && !open.contains(&left) {
                open.push(left);
            }
        }
        let hint = "name the columns: --prompt-column and --completion-column, or prompt_column \
                    and completion_column in [data]";
        let (prompt, completion) = match (&open[..], prompt_given && completion_given) {
            (_, true) => (None, None),
            ([only], _) => *only,
            ([], _) => {
                let pairs: Vec<_> = PAIRS.iter().map(|(p, c)| format!("{p}/{c}")).collect();
                let found = "no recognised names for prompt and completion".to_owned();
                return Err(fail(found, format!("one of {}", pairs.join(", ")), hint));
            }
            (several, _) => {
                let choices = several
                    .iter()
                    .map(|(p, c)| p.iter().chain(c).copied().collect::<Vec<_>>().join("/"));
                let found = format!("several choices: {}", choices.collect::<Vec<_>>().join(", "));
                return Err(fail(found, "one that is clear".to_owned(), hint));
            }
        };
        let wanted = |given: &Option<String>, usual: Option<&str>| {
            given.as_deref().or(usual).unwrap_or_default().to_owned()
        };
        let completion =
            named("the completion column", &wanted(&options.completion_column, completion))?;
        let prompt = match &options.prompt_template {
            Some(template) => Prompt::Template(parse_template(template, &named)?),
            None => {
                Prompt::Column(named("the prompt column", &wanted(&options.prompt_column, prompt))?)
            }
        };
        Ok(Columns { prompt, completion, group, id })
    }

    /// The user turn, with each column's text from `value`.
    pub(super) fn prompt<E>(
        &self,
        mut value: impl FnMut(&str) -> Result<String, E>,
    ) -> Result<String, E> {
        match &self.prompt {
            Prompt::Column(name) => value(name),
            Prompt::Template(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Text(text) => Ok(text.clone()),
                    Part::Column(name) => value(name),
                })
                .collect(),
        }
    }

    /// The columns that the user turn is made of.
    pub(super) fn prompt_columns(&self) -> Vec<&str> {
        match &self.prompt {
            Prompt::Column(name) => vec![name],
            Prompt::Template(parts) => parts
                .iter()
                .filter_map(|part| match part {
                    Part::Column(name) => Some(name.as_str()),
                    Part::Text(_) => None,
                })
                .collect(),
        }
    }

    /// The conversation of a row.
    pub(super) fn messages(
        &self,
        prompt: String,
        completion: String,
        options: &ReadOptions,
    ) -> Vec<Message> {
        let mut messages: Vec<Message> = options.system_turn().into_iter().collect();
        messages.push(Message::new("user", prompt));
        messages.push(Message::new("assistant", completion));
        messages
    }

    /// What the turns are called in messages.
    pub(super) fn fields(&self) -> Fields {
        let prompt = match &self.prompt {
            Prompt::Column(name) => name.clone(),
            Prompt::Template(_) => "prompt_template".to_owned(),
        };
        Fields::Pair(prompt, self.completion.clone())
    }
}

/// The names that are `wanted`; without one, those that differ from it in ASCII case alone.
fn find<'n>(names: &[&'n str], wanted: &str) -> Vec<&'n str> {
    let exact: Vec<&str> = names.iter().copied().filter(|n| *n == wanted).collect();
    if !exact.is_empty() {
        return exact;
    }
    names.iter().copied().filter(|n| n.eq_ignore_ascii_case(wanted)).collect()
}

/// Text with columns in braces; `{{` and `}}` are braces.
fn parse_template(
    template: &str,
    named: &impl Fn(&str, &str) -> Result<String, DataError>,
) -> Result<Vec<Part>, DataError> {
    let fail = |found: &str| DataError::Option {
        option: "prompt_template",
        found: format!("{found} in {:?}", excerpt(template)),
        expected: "text with at least one column in braces, such as \"Text: {text}\"; braces \
                   themselves are written {{ and }}",
    };
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix(brace) {
            text.push_str(brace);
            rest = after;
        } else if brace == "{" {
            let Some((name, after)) = after.split_once('}') else {
                return Err(fail("a brace that is never closed"));
            };
            parts.push(Part::Text(std::mem::take(&mut text)));
            parts.push(Part::Column(named("prompt_template", name.trim())?));
            rest = after;
        } else {
            return Err(fail("a closing brace that was never opened"));
        }
    }
    text.push_str(rest);
    parts.push(Part::Text(text));
    if parts.iter().any(|part| matches!(part, Part::Column(_))) {
        Ok(parts)
    } else {
        Err(fail("no column"))
    }
}
