//! `metier tokenize`: what the model sees of a text.

use crate::cli::TokenizeArgs;
use crate::exit;
use crate::resolve::model_path;
use crate::text_source;
use anyhow::{Context, Result};
use std::io::IsTerminal;
use std::process::ExitCode;
use text::Tokenizer;

pub(super) fn run(args: &TokenizeArgs) -> Result<ExitCode> {
    let (tokenizer, _) = text_source::load(&model_path(&args.model)?)?;
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => std::fs::read_to_string(path)
            .with_context(|| format!("{}: cannot read it as UTF-8 text", path.display()))?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    let ids = if args.special {
        let bos = tokenizer.bos_id().filter(|_| tokenizer.add_bos());
        let mut ids: Vec<u32> = bos.into_iter().collect();
        ids.extend(tokenizer.encode_with_specials(&text)?);
        ids
    } else {
        tokenizer.encode(&text)?
    };
    if args.json {
        println!("{}", serde_json::json!({ "ids": ids }));
        return Ok(exit::done());
    }
    if std::io::stdout().is_terminal() {
        println!("{}", coloured(&tokenizer, &ids));
        println!("{} tokens, {} bytes", ids.len(), text.len());
    } else {
        println!("{}", ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    }
    Ok(exit::done())
}

/// Each token on one of two backgrounds in turn, control tokens in a third.
fn coloured(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    ids.iter()
        .enumerate()
        .map(|(i, &id)| {
            let shown = match tokenizer.is_control(id) {
                true => tokenizer.token(id).unwrap_or_default(),
                // A token may hold part of a character only.
                false => tokenizer.decode(&[id]).unwrap_or_default(),
            };
            // The text may hold escape sequences of its own; show them instead of sending them.
            let shown: String = shown
                .chars()
                .flat_map(|c| {
                    if c.is_control() && c != '\n' { c.escape_default().collect() } else { vec![c] }
                })
                .collect();
            let colour = if tokenizer.is_control(id) { 43 } else { [44, 45][i % 2] };
            format!("\x1b[97;{colour}m{shown}\x1b[0m")
        })
        .collect()
}
