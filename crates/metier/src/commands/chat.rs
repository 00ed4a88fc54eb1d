//! `metier chat`: a conversation in the terminal, with one of several adapters or with none, and the same
//! question to all of them side by side.

use super::generate::sampling_params;
use crate::cli::{ChatArgs, SamplingArgs};
use crate::exit;
use crate::resolve::{self, Adapter, Base};
use anyhow::{Context, Result, bail};
use comfy_table::{ContentArrangement, Table, presets};
use engine::{Engine, EngineOptions, Event, SequenceRequest};
use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use text::{ChatTemplate, Conversation, Message, StreamDecoder};

pub(super) fn run(args: &ChatArgs) -> Result<ExitCode> {
    let mut chat = Chat::new(args)?;
    let person = std::io::stdin().is_terminal();
    if person {
        eprintln!("{} · /help tells what there is, /quit leaves", chat.name(chat.current));
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if person {
            eprint!("{}> ", chat.name(chat.current));
            let _ = std::io::stderr().flush();
        }
        let Some(line) = lines.next() else { break };
        let line = line?;
        match chat.line(line.trim()) {
            Ok(true) => {}
            Ok(false) => break,
            // What goes wrong for a person ends the turn, not the program.
            Err(error) if person => exit::print_error(&error),
            Err(error) => return Err(error),
        }
    }
    Ok(exit::done())
}

const HELP: &str = "\
/adapter            which adapters there are
/adapter NAME       go on with this one; base: with none
/adapter NAME=DIR   load one and go on with it
/compare QUESTION   the base's answer and every adapter's, side by side; forgotten afterwards
/model              what is being talked to
/history            the conversation so far
/save FILE          add it to FILE as a line of training data
/clear, /reset      forget it
/quit               leave";

/// Most models of one comparison: the base and its adapters.
const MOST: usize = 16;
/// Columns of a table that goes to no terminal.
const WIDTH: u16 = 100;

struct Chat<'a> {
    base: Base,
    engine: Engine,
    sampling: &'a SamplingArgs,
    /// The adapters, each with its slot in the engine.
    adapters: Vec<(Adapter, usize)>,
    /// Which adapter answers; None for the base.
    current: Option<usize>,
    /// What a conversation begins with.
    start: Vec<Message>,
    messages: Vec<Message>,
}

impl Chat<'_> {
    fn new(args: &ChatArgs) -> Result<Chat<'_>> {
        let base = Base::load(&args.model, args.weights)?;
        let mut loaded: Vec<Adapter> = Vec::new();
        for spec in &args.adapter {
            let (name, dir) = named(spec)?;
            if loaded.iter().any(|adapter| adapter.name == name) {
                bail!("two adapters are called {name}\nhint: --adapter NAME=FOLDER names one");
            }
            loaded.push(Adapter::load(name, dir, &base)?);
        }
        let adapters: Vec<&Adapter> = loaded.iter().collect();
        let options = EngineOptions { max_num_seqs: MOST, ..EngineOptions::default() };
        let (engine, slots) = resolve::engine(&base, &adapters, 0, options)?;
        let start: Vec<Message> =
            args.system.iter().map(|text| Message::new("system", text.clone())).collect();
        Ok(Chat {
            base,
            engine,
            sampling: &args.sampling,
            // The first one named answers first.
            current: (!loaded.is_empty()).then_some(0),
            adapters: loaded.into_iter().zip(slots).collect(),
            messages: start.clone(),
            start,
        })
    }

    /// Does what a line asks for. False when it is to leave.
    fn line(&mut self, line: &str) -> Result<bool> {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match command {
            "" => {}
            "/quit" => return Ok(false),
            "/help" => println!("{HELP}"),
            "/adapter" if rest.is_empty() => self.list(),
            "/adapter" => self.switch(rest)?,
            "/model" => println!("{}", self.described()),
            "/history" => self.history(),
            "/clear" | "/reset" => self.messages = self.start.clone(),
            "/save" => self.save(rest)?,
            "/compare" => self.compare(rest)?,
            _ if command.starts_with('/') => bail!("no command {command}\nhint: /help lists them"),
            _ => self.say(line)?,
        }
        Ok(true)
    }

    fn name(&self, model: Option<usize>) -> String {
        model.map_or_else(|| self.base.short_name(), |i| self.adapters[i].0.name.clone())
    }

    fn template(&self, model: Option<usize>) -> &ChatTemplate {
        model.map_or(&self.base.template, |i| &self.adapters[i].0.template)
    }

    fn list(&self) {
        let models = std::iter::once(None).chain((0..self.adapters.len()).map(Some));
        for model in models {
            let mark = if model == self.current { '*' } else { ' ' };
            println!("{mark} {}{}", self.name(model), if model.is_none() { " (base)" } else { "" });
        }
    }

    /// Goes on with another model; what was said stays.
    fn switch(&mut self, spec: &str) -> Result<()> {
        let found = self.adapters.iter().position(|(adapter, _)| adapter.name == spec);
        self.current = match found {
            Some(index) => Some(index),
            None if spec == "base" || spec == self.base.short_name() => None,
            None if !spec.contains('=') => {
                let names: Vec<String> = std::iter::once("base".to_owned())
                    .chain(self.adapters.iter().map(|(adapter, _)| adapter.name.clone()))
                    .collect();
                bail!(
                    "no adapter {spec}; there are: {}\nhint: /adapter NAME=FOLDER loads one",
                    names.join(", ")
                );
            }
            None => {
                let (name, dir) = named(spec)?;
                if self.adapters.len() + 1 == MOST {
                    bail!("{} adapters are loaded, and no more fit", self.adapters.len());
                }
                let adapter = Adapter::load(name, dir, &self.base)?;
                let slot = self
                    .engine
                    .adapters_mut()
                    .insert(name, &adapter.lora, &self.base.decoder)
                    .with_context(|| format!("loading the adapter \"{name}\""))?;
                self.adapters.push((adapter, slot));
                Some(self.adapters.len() - 1)
            }
        };
        Ok(())
    }

    fn described(&self) -> String {
        let mut text = format!("base {}", self.base.name);
        match self.current {
            None => text += ", no adapter",
            Some(i) => _ = write!(text, ", adapter {}", self.adapters[i].0.name),
        }
        let turns = self.messages.len() - self.start.len();
        _ = write!(text, ", {turns} messages so far");
        text
    }

    fn history(&self) {
        for message in &self.messages {
            println!("{}: {}", message.role, message.content);
        }
    }

    /// Adds the conversation to a file in the form that training reads.
    fn save(&self, file: &str) -> Result<()> {
        if file.is_empty() {
            bail!("/save names no file; expected /save FILE");
        }
        if self.messages.len() == self.start.len() {
            bail!("nothing was said that could be saved");
        }
        let turn = |m: &Message| serde_json::json!({"role": m.role, "content": m.content});
        let turns: Vec<serde_json::Value> = self.messages.iter().map(turn).collect();
        let line = serde_json::json!({"messages": turns});
        let wrong = || format!("{file}: could not be written");
        let mut out =
            std::fs::OpenOptions::new().create(true).append(true).open(file).with_context(wrong)?;
        writeln!(out, "{line}").with_context(wrong)?;
        eprintln!("saved {} messages to {file}", turns.len());
        Ok(())
    }

    /// One turn of the conversation.
    fn say(&mut self, said: &str) -> Result<()> {
        self.messages.push(Message::new("user", said));
        let answers = self.ask(&[self.current], |piece| {
            print!("{piece}");
            let _ = std::io::stdout().flush();
        });
        println!();
        match answers {
            Ok(answers) => {
                self.messages.extend(answers.into_iter().map(|a| Message::new("assistant", a)));
                Ok(())
            }
            Err(error) => {
                // A conversation longer than the context ends here.
                self.messages.pop();
                Err(error.context("no answer came; /clear starts again"))
            }
        }
    }

    /// Asks the base and every adapter the same, after the same conversation, in one batch.
    fn compare(&mut self, question: &str) -> Result<()> {
        if question.is_empty() {
            bail!("/compare asks nothing; expected /compare QUESTION");
        }
        let models: Vec<Option<usize>> =
            std::iter::once(None).chain((0..self.adapters.len()).map(Some)).collect();
        self.messages.push(Message::new("user", question));
        let answers = self.ask(&models, |_| {});
        self.messages.pop();
        let mut table = Table::new();
        table.load_style(presets::UTF8_NO_BORDERS);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        if !std::io::stdout().is_terminal() {
            table.set_width(WIDTH);
        }
        table.set_header(models.iter().map(|&model| self.name(model)));
        table.add_row(answers?);
        println!("{table}");
        Ok(())
    }

    /// The answers of `models` to the conversation, in one batch. `emit` gets the text as it comes,
    /// whoever says it.
    fn ask(&mut self, models: &[Option<usize>], mut emit: impl FnMut(&str)) -> Result<Vec<String>> {
        let conversation = Conversation::new(self.messages.clone());
        let mut asked = Vec::with_capacity(models.len());
        for &model in models {
            let template = self.template(model);
            let stop_ids = template.stop_ids(&self.base.tokenizer);
            let prompt = template.render(&self.base.tokenizer, &conversation, true)?.ids;
            asked.push(SequenceRequest {
                prompt,
                params: sampling_params(self.sampling, &stop_ids),
                adapter: model.map(|i| self.adapters[i].1),
                ..SequenceRequest::default()
            });
        }
        let decoder = |_: &_| StreamDecoder::new(Arc::clone(&self.base.tokenizer));
        let mut decoders: Vec<StreamDecoder> = models.iter().map(decoder).collect();
        let mut texts = vec![String::new(); models.len()];
        let mut broken = Ok(());
        let answers = self.engine.generate(asked, |index, event| {
            let piece = match event {
                Event::Token { token, .. } => decoders[index].push(*token),
                Event::Finished { .. } => Ok(Some(decoders[index].finish())),
                _ => Ok(None),
            };
            match piece {
                Ok(Some(piece)) => {
                    emit(&piece);
                    texts[index] += &piece;
                }
                Ok(None) => {}
                Err(error) => broken = Err(error),
            }
        });
        answers.into_iter().collect::<Result<Vec<_>, _>>()?;
        broken?;
        Ok(texts)
    }
}

/// Name and folder of an adapter, given as NAME=FOLDER or as a folder that lends its name.
fn named(spec: &str) -> Result<(&str, &Path)> {
    match spec.split_once('=') {
        Some((name, dir)) if !name.is_empty() && !dir.is_empty() && !Path::new(spec).is_dir() => {
            Ok((name, Path::new(dir)))
        }
        _ => {
            let dir = Path::new(spec);
            let name = dir.file_name().and_then(|name| name.to_str());
            let name = name.with_context(|| format!("{spec}: expected a folder or NAME=FOLDER"))?;
            Ok((name, dir))
        }
    }
}
