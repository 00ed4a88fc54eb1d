//! From a document of the data to what the model is asked, by the rules of lm-evaluation-harness.

use super::TaskError;
use super::python_random::PythonRandom;
use super::task_file::{OutputType, TaskFile};
use super::template::Templates;
use crate::metrics::{python_is_space, python_strip};
use serde_json::{Map, Value};
use std::path::Path;

/// Bytes that a data file of a task may take.
const MOST_BYTES: u64 = 1 << 30;
/// Where the harness's few-shot sampler starts.
const FEWSHOT_SEED: u32 = 1234;

/// What the model is asked about one document.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ask {
    /// How likely each (context, continuation) is; the place of the right one.
    Choices { pairs: Vec<(String, String)>, choices: Vec<String>, gold: usize },
    /// How likely the continuation of the context is.
    Weigh { context: String, target: String },
    /// How likely the whole text is.
    Roll { text: String },
    /// What comes after the context, and what should.
    Generate { context: String, targets: Vec<String> },
}

/// What `doc_to_target` or `doc_to_text` gives.
#[derive(Clone, Debug, PartialEq)]
enum Field {
    Text(String),
    Place(i64),
    List(Vec<Value>),
}

/// All that is asked, in the order of the documents.
pub(super) fn asks(file: &TaskFile, limit: Option<usize>) -> Result<Vec<(Value, Ask)>, TaskError> {
    let docs = Docs::read(file)?;
    let eval = docs.split(file.eval_split()?)?;
    if eval.is_empty() {
        return Err(docs.fail("test_split", "the data has no rows".into()));
    }
    let mut shots = Shots::new(file, &docs)?;
    let take = limit.unwrap_or(usize::MAX).min(eval.len());
    let mut asks = Vec::with_capacity(take);
    for (index, doc) in eval[..take].iter().enumerate() {
        let ask = ask(&docs, doc, &mut shots).map_err(|reason| TaskError::Row {
            path: file.path.clone(),
            row: index,
            reason,
        })?;
        asks.push((doc.clone(), ask));
    }
    Ok(asks)
}

fn ask(docs: &Docs, doc: &Value, shots: &mut Shots) -> Result<Ask, String> {
    let file = docs.file;
    let description = docs.resolve(&file.description, doc)?;
    let mut before = description;
    before.push_str(&shots.text(docs, doc)?);
    let prefix = match &file.gen_prefix {
        Some(prefix) => Some(docs.resolve(prefix, doc)?),
        None => None,
    };
    let question = docs.field(&file.doc_to_text, doc)?;
    let context = |question: &str| {
        let mut context = format!("{before}{question}");
        if let Some(prefix) = prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            if needs_delimiter(question, prefix) {
                context.push_str(&file.target_delimiter);
            }
            context.push_str(prefix);
        }
        context
    };
    let plain = || match &question {
        Field::Text(text) => Ok(context(text)),
        _ => Err("doc_to_text gives no text; expected one".to_owned()),
    };
    match file.output {
        OutputType::MultipleChoice => multiple_choice(docs, doc, &question, &context),
        OutputType::Loglikelihood => {
            Ok(Ask::Weigh { context: plain()?, target: docs.target_text(doc)? })
        }
        OutputType::LoglikelihoodRolling => Ok(Ask::Roll { text: docs.target_text(doc)? }),
        OutputType::GenerateUntil => {
            let targets = match docs.field(&file.doc_to_target, doc)? {
                Field::List(_) if file.doc_to_choice.is_some() => {
                    return Err(
                        "doc_to_target gives a list beside doc_to_choice; expected one place"
                            .into(),
                    );
                }
                Field::List(several) => several.iter().map(plain_text).collect(),
                one => vec![docs.chosen(one, doc, file.doc_to_choice.as_ref())?],
            };
            Ok(Ask::Generate { context: plain()?, targets })
        }
    }
}

fn multiple_choice(
    docs: &Docs,
    doc: &Value,
    question: &Field,
    context: &dyn Fn(&str) -> String,
) -> Result<Ask, String> {
    let file = docs.file;
    let choices = docs.choices(doc, file.doc_to_choice.as_ref())?;
    if choices.is_empty() || choices.iter().any(String::is_empty) {
        return Err(format!("found the choices {choices:?}; expected some, none of them empty"));
    }
    let delimiter = &file.target_delimiter;
    let target = docs.field(&file.doc_to_target, doc)?;
    let (pairs, gold) = match question {
        Field::Text(text) => {
            let pairs =
                choices.iter().map(|choice| (context(text), format!("{delimiter}{choice}")));
            (pairs.collect(), target)
        }
        // The choices are beginnings, of which one fits: doc_to_text says which.
        Field::Place(place) => {
            let Field::Text(target) = target else {
                return Err("doc_to_target gives no text; expected one behind each choice".into());
            };
            let pairs = choices.iter().map(|c| (context(c), format!("{delimiter}{target}")));
            (pairs.collect(), Field::Place(*place))
        }
        Field::List(_) => return Err("doc_to_text gives a list; expected a text".into()),
    };
    let gold = match &gold {
        Field::Place(place) => usize::try_from(*place).ok().filter(|p| *p < choices.len()),
        Field::Text(text) => choices.iter().position(|choice| choice == text),
        Field::List(_) => {
            return Err("doc_to_target gives several right answers; expected one".into());
        }
    };
    match gold {
        Some(gold) => Ok(Ask::Choices { pairs, choices, gold }),
        None => Err(format!("the right answer is none of the choices {choices:?}")),
    }
}

/// The data of a task, and the templates that read it.
struct Docs<'a> {
    file: &'a TaskFile,
    templates: Templates,
    splits: Vec<(String, Vec<Value>)>,
}

impl<'a> Docs<'a> {
    fn read(file: &'a TaskFile) -> Result<Docs<'a>, TaskError> {
        let mut splits = Vec::new();
        for (split, files) in &file.data_files {
            let mut rows = Vec::new();
            for path in files {
                read_rows(path, &mut rows)?;
            }
            fill(&mut rows);
            splits.push((split.clone(), rows));
        }
        Ok(Docs { file, templates: Templates::new(), splits })
    }

    fn fail(&self, key: &str, reason: String) -> TaskError {
        TaskError::at(&self.file.path, key, reason)
    }

    fn split(&self, name: &str) -> Result<&[Value], TaskError> {
        match self.splits.iter().find(|(split, _)| split == name) {
            Some((_, rows)) => Ok(rows),
            None => {
                let known: Vec<_> = self.splits.iter().map(|(split, _)| split.as_str()).collect();
                let reason =
                    format!("found no split {name:?}; data_files has {}", known.join(", "));
                Err(self.fail("dataset_kwargs.data_files", reason))
            }
        }
    }

    /// A field's text where `name` is a field, else what the template makes of the document.
    fn resolve(&self, name: &str, doc: &Value) -> Result<String, String> {
        match doc.get(name) {
            Some(value) => Ok(plain_text(value)),
            None => self.templates.render(name, doc),
        }
    }

    /// As the harness reads `doc_to_text` and `doc_to_target`: digits are a place where there are
    /// choices, brackets a list.
    fn field(&self, template: &Value, doc: &Value) -> Result<Field, String> {
        let template = match template {
            Value::Number(place) => {
                return Ok(Field::Place(place.as_i64().ok_or("found no whole number")?));
            }
            Value::Array(items) => return Ok(Field::List(items.clone())),
            Value::String(template) => template,
            other => return Err(format!("found {other}; expected a template")),
        };
        if let Some(value) = doc.get(template) {
            return Ok(match value {
                Value::Number(n) if n.is_i64() => Field::Place(n.as_i64().unwrap_or_default()),
                Value::Bool(yes) => Field::Place(i64::from(*yes)),
                Value::Array(items) => Field::List(items.clone()),
                other => Field::Text(plain_text(other)),
            });
        }
        let text = self.templates.render(template, doc)?;
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if digits && self.file.doc_to_choice.is_some() {
            return text.parse().map(Field::Place).map_err(|_| format!("{text} is too large"));
        }
        if text.len() >= 2 && text.starts_with('[') && text.ends_with(']') {
            return match self.templates.value(template, doc) {
                Some(Ok(Value::Array(items))) => Ok(Field::List(items)),
                _ => Err(format!(
                    "found {text:?}, which Python might read as a list; expected a text, or a list from one expression"
                )),
            };
        }
        Ok(Field::Text(text))
    }

    fn target_text(&self, doc: &Value) -> Result<String, String> {
        match self.field(&self.file.doc_to_target, doc)? {
            Field::Text(text) => Ok(text),
            _ => Err("doc_to_target gives no text; expected one".into()),
        }
    }

    fn choices(&self, doc: &Value, template: Option<&Value>) -> Result<Vec<String>, String> {
        let items = match template {
            Some(Value::Array(items)) => items.clone(),
            Some(Value::String(template)) => match doc.get(template) {
                Some(Value::Array(items)) => items.clone(),
                Some(other) => {
                    return Err(format!("doc_to_choice: found {other}; expected a list"));
                }
                None => match self.templates.value(template, doc) {
                    Some(value) => match value? {
                        Value::Array(items) => items,
                        other => {
                            return Err(format!("doc_to_choice: found {other}; expected a list"));
                        }
                    },
                    None => self.written_list(template, doc)?,
                },
            },
            _ => return Err("doc_to_choice is missing; expected a list".into()),
        };
        let text = |item: &Value| match item {
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("doc_to_choice: found {other} among the choices; expected texts")),
        };
        items.iter().map(text).collect()
    }

    /// A list that a template writes out, in the form that JSON shares with Python.
    fn written_list(&self, template: &str, doc: &Value) -> Result<Vec<Value>, String> {
        let text = self.templates.render(template, doc)?;
        serde_json::from_str(&text).map_err(|_| {
            format!("doc_to_choice: found {text:?}; expected a list, as one expression in {{{{ }}}} or with double quotes")
        })
    }

    /// The text of a target: itself, or the choice at its place.
    fn chosen(
        &self,
        target: Field,
        doc: &Value,
        choices: Option<&Value>,
    ) -> Result<String, String> {
        match (target, choices) {
            (Field::Text(text), None) => Ok(text),
            (Field::Place(place), None) => Ok(place.to_string()),
            (Field::Place(place), Some(_)) => {
                let choices = self.choices(doc, choices)?;
                let place = usize::try_from(place).ok();
                let chosen = place.and_then(|place| choices.get(place));
                chosen.cloned().ok_or_else(|| format!("its place is not among {choices:?}"))
            }
            (Field::Text(text), Some(_)) => Ok(text),
            (Field::List(_), _) => Err("found a list; expected one right answer".into()),
        }
    }
}

/// The few-shot examples in front of each question.
struct Shots<'a> {
    pool: Vec<&'a Value>,
    random: PythonRandom,
    /// The pool is what is evaluated, so that the question itself is left out.
    own: bool,
}

impl<'a> Shots<'a> {
    fn new(file: &'a TaskFile, docs: &'a Docs) -> Result<Shots<'a>, TaskError> {
        let shots = &file.fewshot;
        let usual = [&file.training_split, &file.validation_split, &file.test_split];
        let pool: Vec<&Value> = match (&shots.split, &shots.samples) {
            _ if file.num_fewshot == 0 => Vec::new(),
            (Some(split), _) => docs.split(split)?.iter().collect(),
            (None, Some(samples)) => samples.iter().collect(),
            (None, None) => match usual.into_iter().flatten().next() {
                Some(split) => docs.split(split)?.iter().collect(),
                None => Vec::new(),
            },
        };
        let pool = match &shots.indices {
            Some(indices) if !shots.first_n && !indices.is_empty() => {
                let of = |index: &usize| {
                    let found = pool.get(*index).copied();
                    let reason = format!("found {index}; there are {} rows", pool.len());
                    found.ok_or_else(|| docs.fail("fewshot_config.fewshot_indices", reason))
                };
                indices.iter().map(of).collect::<Result<_, _>>()?
            }
            _ => pool,
        };
        let own = shots.split == file.test_split;
        Ok(Shots { pool, random: PythonRandom::new(FEWSHOT_SEED), own })
    }

    /// Question, answer and delimiter of each example chosen for `doc`.
    fn text(&mut self, docs: &Docs, doc: &Value) -> Result<String, String> {
        let (n, shots) = (docs.file.num_fewshot, &docs.file.fewshot);
        let mut text = String::new();
        for shot in self.choose(n, doc, shots.first_n)? {
            let question = match docs.field(&shots.doc_to_text, shot)? {
                Field::Text(question) => question,
                place @ Field::Place(_) => {
                    docs.chosen(place, shot, shots.doc_to_choice.as_ref())?
                }
                Field::List(_) => return Err("doc_to_text gives a list; expected a text".into()),
            };
            let answer = match docs.field(&shots.doc_to_target, shot)? {
                Field::List(several) => {
                    plain_text(several.first().ok_or("doc_to_target gives an empty list")?)
                }
                one => docs.chosen(one, shot, shots.doc_to_choice.as_ref())?,
            };
            let prefix = match &shots.gen_prefix {
                Some(prefix) => docs.resolve(prefix, shot)?,
                None => String::new(),
            };
            text.push_str(&question);
            if (prefix.is_empty() && !answer.is_empty())
                || (!prefix.is_empty() && needs_delimiter(&question, &prefix))
            {
                text.push_str(&shots.target_delimiter);
            }
            text.push_str(&prefix);
            if answer.is_empty() {
                continue;
            }
            if !prefix.is_empty() && needs_delimiter(&prefix, &answer) {
                text.push(' ');
            }
            text.push_str(&answer);
            text.push_str(&shots.fewshot_delimiter);
        }
        Ok(text)
    }

    fn choose(&mut self, n: usize, doc: &Value, first_n: bool) -> Result<Vec<&'a Value>, String> {
        if n == 0 {
            return Ok(Vec::new());
        }
        let few = |there: usize| format!("{n} few-shot examples are wanted, {there} are there");
        let other = |shot: &&&Value| !self.own || **shot != doc;
        if first_n {
            let chosen: Vec<&Value> = self.pool.iter().filter(other).take(n).copied().collect();
            return if chosen.len() == n { Ok(chosen) } else { Err(few(chosen.len())) };
        }
        let draw = n + usize::from(self.own);
        let places = self.random.sample(self.pool.len(), draw);
        let places = places.ok_or_else(|| few(self.pool.len()))?;
        let mut chosen: Vec<&Value> = places.iter().map(|&place| self.pool[place]).collect();
        if self.own {
            chosen.retain(|shot| *shot != doc);
            chosen.truncate(n);
        }
        if chosen.len() < n {
            // The document is there several times: drawn anew from the others.
            let others: Vec<&Value> = self.pool.iter().copied().filter(|s| *s != doc).collect();
            let places = self.random.sample(others.len(), n).ok_or_else(|| few(others.len()))?;
            chosen = places.iter().map(|&place| others[place]).collect();
        }
        Ok(chosen)
    }
}

/// Whether two texts meet without space at the seam.
fn needs_delimiter(before: &str, after: &str) -> bool {
    let (Some(last), Some(first)) = (before.chars().next_back(), after.chars().next()) else {
        return false;
    };
    !python_is_space(last) && !python_is_space(first)
}

/// A value as `str` writes it, where it is a text or number.
fn plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        other => other.to_string(),
    }
}

/// Reads JSON lines, or one list of objects.
fn read_rows(path: &Path, rows: &mut Vec<Value>) -> Result<(), TaskError> {
    let fail = |reason: String| TaskError::File { path: path.to_owned(), reason };
    let bytes = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
    if bytes > MOST_BYTES {
        return Err(fail(format!("found {bytes} bytes, expected at most {MOST_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let expected = "expected one JSON object";
    if python_strip(&text).starts_with('[') {
        let list: Vec<Map<String, Value>> =
            serde_json::from_str(&text).map_err(|error| fail(format!("{error}; {expected}s")))?;
        rows.extend(list.into_iter().map(Value::Object));
        return Ok(());
    }
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row: Map<String, Value> = serde_json::from_str(line)
            .map_err(|error| fail(format!("line {}: {error}; {expected} a line", index + 1)))?;
        rows.push(Value::Object(row));
    }
    Ok(())
}

/// A field that some row has is there in all, as None.
fn fill(rows: &mut [Value]) {
    let mut fields: Map<String, Value> = Map::new();
    for row in rows.iter().filter_map(Value::as_object) {
        for field in row.keys() {
            if !fields.contains_key(field) {
                fields.insert(field.clone(), Value::Null);
            }
        }
    }
    for row in rows.iter_mut().filter_map(Value::as_object_mut) {
        for field in
            fields.keys().filter(|field| !row.contains_key(*field)).cloned().collect::<Vec<_>>()
        {
            row.insert(field, Value::Null);
        }
    }
}
