//! `metier embed`: the lines of a text as vectors.

use crate::cli::EmbedArgs;
use crate::embedder::{AT_ONCE, Embedder, KV_BYTES, names_encoder};
use crate::exit;
use crate::resolve::{Adapter, Base};
use anyhow::{Context, Result, bail};
use engine::{EngineOptions, EventReceiver};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write, stdin, stdout};
use std::process::ExitCode;

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
        if line.is_empty() {
            bail!("{}: found an empty line, expected a text", place());
        }
        let receiver = embedder.submit(&engine, &line, adapter.is_some()).with_context(place)?;
        waiting.push_back((index, receiver));
    }
    while !waiting.is_empty() {
        finish(&mut waiting, &embedder, args.dimensions, &mut out)?;
    }
    out.flush()?;
    Ok(exit::done())
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
    let embedding =
        embedder.received(&receiver, dimensions).with_context(|| format!("line {}", index + 1))?;
    let row = serde_json::to_string(&Row { index, embedding })?;
    Ok(writeln!(out, "{row}")?)
}
