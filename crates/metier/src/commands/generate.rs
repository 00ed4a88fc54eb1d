//! `metier generate`: continue a prompt as it is.

use crate::cli::{GenerateArgs, SamplingArgs};
use crate::exit;
use crate::resolve::{self, Adapter, Base};
use anyhow::{Result, bail};
use engine::{Engine, EngineOptions, Event, FinishReason, SamplingParams, SequenceRequest, Usage};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use text::{StopStrings, StreamDecoder};

pub(super) fn run(args: &GenerateArgs) -> Result<ExitCode> {
    let base = Base::load(&args.model, args.weights)?;
    let adapter = match &args.adapter {
        Some(dir) => Some(Adapter::load("adapter", dir, &base)?),
        None => None,
    };
    let adapters: Vec<&Adapter> = adapter.iter().collect();
    let options = EngineOptions { max_num_seqs: 1, ..EngineOptions::default() };
    let (mut engine, slots) = resolve::engine(&base, &adapters, 0, options)?;
    let request = SequenceRequest {
        prompt: base.tokenizer.encode_prompt(&args.prompt)?,
        params: sampling_params(&args.sampling, base.tokenizer.stop_ids()),
        adapter: slots.first().copied(),
        ..SequenceRequest::default()
    };
    let decoder = StreamDecoder::after(Arc::clone(&base.tokenizer), &request.prompt)?;
    let done = stream(&mut engine, request, decoder, &args.stop, |piece| {
        if !args.json {
            print!("{piece}");
            // Text appears as it comes; an error here shows at the next write.
            let _ = std::io::stdout().flush();
        }
    })?;
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "text": done.text,
                "token_ids": done.tokens,
                "finish_reason": done.finish_reason,
                "usage": {
                    "prompt_tokens": done.usage.prompt_tokens,
                    "completion_tokens": done.usage.completion_tokens,
                    "total_tokens": done.usage.prompt_tokens + done.usage.completion_tokens,
                },
            })
        );
    } else if std::io::stdout().is_terminal() {
        // A pipe gets the text and nothing else.
        println!();
    }
    Ok(exit::done())
}

/// The engine's parameters from the flags.
pub(super) fn sampling_params(args: &SamplingArgs, stop_ids: &[u32]) -> SamplingParams {
    SamplingParams {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        max_tokens: args.max_tokens,
        seed: args.seed,
        stop_ids: stop_ids.to_vec(),
        ..SamplingParams::default()
    }
}

/// What one request gave.
pub(super) struct Streamed {
    pub(super) text: String,
    pub(super) tokens: Vec<u32>,
    pub(super) finish_reason: &'static str,
    pub(super) usage: Usage,
}

/// Runs one request, handing out text as soon as it is certain.
pub(super) fn stream(
    engine: &mut Engine,
    request: SequenceRequest,
    mut decoder: StreamDecoder,
    stop: &[String],
    mut emit: impl FnMut(&str),
) -> Result<Streamed> {
    let prompt_tokens = request.prompt.len();
    let mut stops = StopStrings::new(stop.to_vec());
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let mut give = |piece: &str, text: &mut String| {
        text.push_str(piece);
        emit(piece);
    };
    let id = engine.add(request)?;
    while engine.has_work() {
        for event in engine.step() {
            match event {
                Event::Token { token, .. } => {
                    tokens.push(token);
                    let Some(piece) = decoder.push(token)? else { continue };
                    let outcome = stops.push(&piece);
                    give(&outcome.text, &mut text);
                    if outcome.stopped {
                        engine.cancel(id);
                        let completion_tokens = tokens.len();
                        let usage = Usage { prompt_tokens, completion_tokens, ..Usage::default() };
                        return Ok(Streamed { text, tokens, finish_reason: "stop", usage });
                    }
                }
                Event::Finished { reason, usage, .. } => {
                    let rest = stops.push(&decoder.finish());
                    give(&rest.text, &mut text);
                    give(&stops.finish(), &mut text);
                    let finish_reason = match reason {
                        FinishReason::Stop => "stop",
                        FinishReason::Length => "length",
                        FinishReason::Cancelled => "cancelled",
                    };
                    return Ok(Streamed { text, tokens, finish_reason, usage });
                }
                Event::Failed { error, .. } => return Err(error.into()),
                Event::Started { .. } | Event::Prompt { .. } | Event::Embedding { .. } => {}
            }
        }
    }
    bail!("the engine stopped without finishing the request");
}
