//! `metier embed`: the lines of a text as vectors.

use crate::cli::EmbedArgs;
use crate::embedder::{Embedder, names_encoder};
use crate::exit;
use crate::resolve::{Adapter, Base};
use anyhow::{Context, Result, bail};
use engine::{EngineHandle, EngineOptions, Event, EventReceiver, SequenceRequest};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write, stdin, stdout};
use std::process::ExitCode;

/// Lines in the engine at a time.
const AT_ONCE: usize = 64;
/// Memory for a decoder's keys and values.
const KV_BYTES: usize = 256 << 20;

pub(super) fn run(args: &EmbedArgs) -> Result<ExitCode> {
    let (embedder, adapter) = match &args.adapter {
        None => (Embedder::load(&args.model, args.weights, args.embedding)?, None),
        Some(_) if names_encoder(&args.model)? => {
            bail!("--adapter: {} is an encoder, which takes none", args.model)
        }
        Some(dir) => {
            let base = Base::load(&args.model, args.weights)?;
            let adapter = Adapter::load("adapter", dir, &base)?;
            (Embedder::of(&base, args.embedding)?, Some(adapter))
        }
    };
    if let Some(wanted) = args.dimensions {
        let checked = embedder.form.check_dimensions(wanted, embedder.embedding_len());
        if let Err(expected) = checked {
            bail!("--dimensions {wanted}: expected {expected}");
        }
    }
    let engine = embedder.spawn(adapter.as_ref(), KV_BYTES, EngineOptions::default())?;
    let lines: Box<dyn BufRead> = match &args.file {
        Some(path) => {
            Box::new(BufReader::new(File::open(path).with_context(|| path.display().to_string())?))
        }
        None => Box::new(stdin().lock()),
    };
    let mut out = BufWriter::new(stdout().lock());
    let mut waiting: VecDeque<(usize, EventReceiver)> = VecDeque::new();
    for (index, line) in lines.lines().enumerate() {
        let place = || format!("line {}", index + 1);
        let line = line.with_context(place)?;
        if waiting.len() == AT_ONCE {
            finish(&mut waiting, &embedder, args.dimensions, &mut out)?;
        }
        let receiver = submit(&engine, &embedder, &line, adapter.is_some()).with_context(place)?;
        waiting.push_back((index, receiver));
    }
    while !waiting.is_empty() {
        finish(&mut waiting, &embedder, args.dimensions, &mut out)?;
    }
    out.flush()?;
    Ok(exit::done())
}

fn submit(
    engine: &EngineHandle,
    embedder: &Embedder,
    line: &str,
    adapted: bool,
) -> Result<EventReceiver> {
    if line.is_empty() {
        bail!("found an empty line, expected a text");
    }
    let prompt = embedder.tokenizer.encode_whole(line)?;
    if let Some(most) = embedder.form.max_tokens.filter(|most| prompt.len() > *most) {
        bail!("found {} tokens, expected at most {most}", prompt.len());
    }
    Ok(engine.submit_blocking(SequenceRequest {
        prompt,
        adapter: adapted.then_some(0),
        pooling: Some(embedder.form.pooling),
        ..SequenceRequest::default()
    })?)
}

/// A line of the output: numbers as short as they are in an answer of the server.
#[derive(serde::Serialize)]
struct Row {
    index: usize,
    embedding: Vec<f32>,
}

/// Waits for the first line that is under way and writes its embedding.
fn finish(
    waiting: &mut VecDeque<(usize, EventReceiver)>,
    embedder: &Embedder,
    dimensions: Option<usize>,
    out: &mut impl Write,
) -> Result<()> {
    let Some((index, receiver)) = waiting.pop_front() else { return Ok(()) };
    loop {
        match receiver.recv() {
            Some(Event::Embedding { embedding, .. }) => {
                let embedding = embedder.form.finish(embedding, dimensions);
                let row = serde_json::to_string(&Row { index, embedding })?;
                return Ok(writeln!(out, "{row}")?);
            }
            Some(Event::Failed { error, .. }) => {
                return Err(error).with_context(|| format!("line {}", index + 1));
            }
            Some(_) => {}
            None => bail!("the engine has stopped"),
        }
    }
}
