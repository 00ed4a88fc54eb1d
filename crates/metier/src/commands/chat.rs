//! `metier chat`: a conversation in the terminal.

use super::generate::{sampling_params, stream};
use crate::cli::ChatArgs;
use crate::exit;
use crate::resolve::{self, Adapter, Base};
use anyhow::Result;
use engine::{EngineOptions, SequenceRequest};
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use text::{Conversation, Message, StreamDecoder};

pub(super) fn run(args: &ChatArgs) -> Result<ExitCode> {
    let base = Base::load(&args.model, args.weights)?;
    let adapter = match &args.adapter {
        Some(dir) => Some(Adapter::load("adapter", dir, &base)?),
        None => None,
    };
    let template = adapter.as_ref().map_or(&base.template, |a| &a.template);
    let adapters: Vec<&Adapter> = adapter.iter().collect();
    let options = EngineOptions { max_num_seqs: 1, ..EngineOptions::default() };
    let (mut engine, slots) = resolve::engine(&base, &adapters, 0, options)?;
    let params = sampling_params(&args.sampling, &template.stop_ids(&base.tokenizer));

    let start: Vec<Message> =
        args.system.iter().map(|text| Message::new("system", text.clone())).collect();
    let mut messages = start.clone();
    let person = std::io::stdin().is_terminal();
    if person {
        eprintln!("{} · /reset forgets the conversation, /quit leaves", base.short_name());
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if person {
            eprint!("> ");
            let _ = std::io::stderr().flush();
        }
        let Some(line) = lines.next() else { break };
        let line = line?;
        match line.trim() {
            "" => continue,
            "/quit" => break,
            "/reset" => {
                messages = start.clone();
                continue;
            }
            said => messages.push(Message::new("user", said)),
        }
        let conversation = Conversation::new(messages.clone());
        let prompt = template.render(&base.tokenizer, &conversation, true)?.ids;
        let request = SequenceRequest {
            prompt,
            params: params.clone(),
            adapter: slots.first().copied(),
            ..SequenceRequest::default()
        };
        let decoder = StreamDecoder::new(Arc::clone(&base.tokenizer));
        let answer = stream(&mut engine, request, decoder, &[], |piece| {
            print!("{piece}");
            let _ = std::io::stdout().flush();
        });
        println!();
        match answer {
            Ok(answer) => messages.push(Message::new("assistant", answer.text)),
            // A conversation longer than the context ends here, not the program.
            Err(error) => {
                exit::print_error(&error);
                eprintln!("hint: /reset starts again");
                if !person {
                    return Err(error);
                }
                messages.pop();
            }
        }
    }
    Ok(exit::done())
}
