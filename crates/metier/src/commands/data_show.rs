//! `metier data show`: rows as the model sees them.

use super::data::{Counting, read_options};
use crate::cli::DataShowArgs;
use crate::exit;
use ::data::{Answers, DataError, Document, Example, Preference};
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use text::{Conversation, StreamDecoder, Tokenizer};

/// So many tokens of a plain text are shown: a book would fill the screen for hours.
const TEXT_TOKENS: usize = 512;

pub(super) fn run(args: &DataShowArgs) -> Result<ExitCode> {
    let model = Counting::load(&args.model)?;
    let mut rows = rows(args)?;
    let total = rows.len();
    rows.truncate(args.rows);
    let coloured = std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // Dates that templates write stand still in training too.
    let template = model.template.clone().at(train::TRAINING_CLOCK);
    for row in &rows {
        for (name, part) in &row.parts {
            let shown = match part {
                Part::Conversation(conversation) => {
                    let rendered = template
                        .render(&model.tokenizer, conversation, false)
                        .with_context(|| row.place.clone())?;
                    Shown { ids: rendered.ids, mask: rendered.mask, more: 0 }
                }
                Part::Text(text) => {
                    plain(&model.tokenizer, text).with_context(|| row.place.clone())?
                }
            };
            if args.json {
                println!("{}", shown.json(row, name));
            } else {
                print!("{}", shown.for_people(row, name, &model, coloured)?);
            }
        }
    }
    if !args.json {
        println!("{} of {total} rows shown", rows.len());
    }
    Ok(exit::done())
}

/// A row of the file.
struct Row {
    /// File and line.
    place: String,
    id: String,
    /// What is rendered of it, with names where there are several.
    parts: Vec<(&'static str, Part)>,
}

enum Part {
    Conversation(Conversation),
    Text(String),
}

fn rows(args: &DataShowArgs) -> Result<Vec<Row>> {
    if is_text(&args.file) {
        return Ok(::data::read_text(&args.file)?.into_iter().map(of_document).collect());
    }
    let options = read_options(&args.columns);
    match ::data::read(&args.file, &options) {
        Ok(examples) => Ok(examples.into_iter().map(of_example).collect()),
        Err(DataError::Preferences { .. }) => {
            let preferences = ::data::read_preferences(&args.file, &options)?;
            Ok(preferences.iter().map(of_preference).collect())
        }
        // A folder of texts has no file with rows.
        Err(error @ DataError::Folder { .. }) => match ::data::read_text(&args.file) {
            Ok(documents) => Ok(documents.into_iter().map(of_document).collect()),
            Err(_) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

fn is_text(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    extension == "txt" || extension == "md"
}

fn of_document(document: Document) -> Row {
    let Document { id, text } = document;
    Row { place: id.clone(), id, parts: vec![("text", Part::Text(text))] }
}

fn of_example(example: Example) -> Row {
    Row {
        place: format!("{}:{}", example.origin.file.display(), example.origin.line),
        id: example.id,
        parts: vec![("", Part::Conversation(example.conversation))],
    }
}

fn of_preference(preference: &Preference) -> Row {
    let names = preference.answers.named().into_iter().map(|(name, _)| name);
    let parts = names.zip(preference.conversations().into_iter().map(Part::Conversation));
    let mut parts: Vec<_> = parts.collect();
    if let Answers::Labelled { label, .. } = preference.answers {
        parts[0].0 = if label { "completion (good)" } else { "completion (bad)" };
    }
    Row {
        place: format!("{}:{}", preference.origin.file.display(), preference.origin.line),
        id: preference.id.clone(),
        parts,
    }
}

/// The beginning of a text: of each token the next one is learnt, so all but the first are.
fn plain(tokenizer: &Tokenizer, text: &str) -> Result<Shown> {
    let mut ids: Vec<u32> =
        tokenizer.bos_id().filter(|_| tokenizer.add_bos()).into_iter().collect();
    ids.extend(tokenizer.encode(text)?);
    ids.extend(tokenizer.eos_id());
    let more = ids.len().saturating_sub(TEXT_TOKENS);
    ids.truncate(TEXT_TOKENS);
    let mask = (0..ids.len()).map(|i| i > 0).collect();
    Ok(Shown { ids, mask, more })
}

/// A rendered row.
struct Shown {
    ids: Vec<u32>,
    /// Which of them are learnt.
    mask: Vec<bool>,
    /// Tokens left out behind them.
    more: usize,
}

impl Shown {
    fn learnt(&self) -> usize {
        self.mask.iter().filter(|&&learnt| learnt).count()
    }

    fn json(&self, row: &Row, name: &str) -> serde_json::Value {
        let mut object = serde_json::json!({
            "place": row.place,
            "id": row.id,
            "tokens": self.ids.len() + self.more,
            "learnt_tokens": self.learnt() + self.more,
            "ids": self.ids,
            "learnt": self.mask,
        });
        if !name.is_empty() {
            object["part"] = name.into();
        }
        object
    }

    fn for_people(
        &self,
        row: &Row,
        name: &str,
        model: &Counting,
        coloured: bool,
    ) -> Result<String> {
        let tokens = self.ids.len() + self.more;
        let part = if name.is_empty() { String::new() } else { format!(", {name}") };
        let long = if tokens > model.limit && name != "text" {
            format!("; longer than the model's {}", model.limit)
        } else {
            String::new()
        };
        let mut out = format!(
            "{}{part}: {tokens} tokens, {} learnt{long}\n",
            row.place,
            self.learnt() + self.more
        );
        let texts = texts(&model.tokenizer, &self.ids)?;
        let mut before = false;
        for (i, (text, &learnt)) in texts.iter().zip(&self.mask).enumerate() {
            let text = printable(text);
            if coloured {
                // Green on two grounds for what is learnt, grey for the rest.
                let colour = match (learnt, i % 2) {
                    (true, 0) => "30;42",
                    (true, _) => "30;102",
                    (false, 0) => "90",
                    (false, _) => "37",
                };
                write!(out, "\x1b[{colour}m{text}\x1b[0m")?;
            } else {
                match (before, learnt) {
                    (false, true) => out.push('\u{27e6}'),
                    (true, false) => out.push('\u{27e7}'),
                    _ => {}
                }
                out.push_str(&text);
            }
            before = learnt;
        }
        if before && !coloured {
            out.push('\u{27e7}');
        }
        if self.more > 0 {
            write!(out, " ... and {} more tokens", self.more)?;
        }
        out.push_str("\n\n");
        Ok(out)
    }
}

/// The text of each token; of a character in several tokens, with the last of them.
fn texts(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> Result<Vec<String>> {
    let mut decoder = StreamDecoder::new(Arc::clone(tokenizer));
    let mut texts: Vec<String> = Vec::with_capacity(ids.len());
    for &id in ids {
        if tokenizer.is_control(id) {
            // What was held back cannot go on behind a control token.
            let rest = decoder.finish();
            if let Some(last) = texts.last_mut() {
                last.push_str(&rest);
            }
            decoder = StreamDecoder::new(Arc::clone(tokenizer));
            texts.push(tokenizer.token(id).unwrap_or_default());
        } else {
            texts.push(decoder.push(id)?.unwrap_or_default());
        }
    }
    if let Some(last) = texts.last_mut() {
        last.push_str(&decoder.finish());
    }
    Ok(texts)
}

/// Data may hold escape sequences of its own; they are shown and not sent to the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c.is_control() && c != '\n' && c != '\t' {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}
