//! `metier bench`: how fast a model runs here, and how near that is to what the machine can do.

use crate::cli::{BenchArgs, BenchWhat};
use crate::exit;
use crate::machine::{self, ROOFLINE_BYTES, Roofline};
use crate::progress;
use crate::resolve::{self, Base};
use anyhow::{Result, bail};
use engine::{Engine, Event, SamplingParams, SequenceRequest};
use serde::Serialize;
use std::process::ExitCode;
use std::time::Instant;

/// Prompt before decoding, when none is asked for.
const DECODE_PROMPT: usize = 16;
/// Prompt of the prefill measurement, as the field's tools take it.
const PREFILL_PROMPT: usize = 512;

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let base = Base::load(&args.model)?;
    let context = base.decoder.config().max_position_embeddings;
    let work = Work::of(args, context)?;
    let (mut engine, _) = resolve::engine(&base, &[], 0, 1)?;
    // Before and after, so that a machine that slows down meanwhile is not taken for our merit.
    let before = Roofline::measure(ROOFLINE_BYTES);
    let bar = progress::bar("bench", args.runs as u64 + 1);
    let mut rates = Vec::new();
    for run in 0..=args.runs {
        let rate = work.run(&mut engine, base.decoder.config().vocab_size)?;
        // The first run warms caches and pages.
        if run > 0 {
            rates.push(rate);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let roofline = before.better(Roofline::measure(ROOFLINE_BYTES));
    rates.sort_by(f64::total_cmp);
    let speed =
        Speed { min: rates[0], median: rates[rates.len() / 2], max: rates[rates.len() - 1] };
    let weight_bytes = base.decoder.streamed_bytes();
    let share = match args.what {
        // Each token reads every weight once; memory is the limit.
        BenchWhat::Decode => speed.median * weight_bytes as f64 / roofline.bytes_per_second,
        // Two operations for each weight and token; arithmetic is the limit.
        BenchWhat::Prefill => {
            speed.median * base.decoder.flops_per_token() / roofline.flops_per_second
        }
    };
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "what": args.what, "model": args.model, "tokens_per_second": speed,
                "prompt_tokens": work.prompt, "generated_tokens": work.generate,
                "runs": args.runs, "peak_rss_bytes": machine::peak_rss_bytes(),
                "weight_bytes": weight_bytes, "roofline": roofline, "roofline_share": share,
                "machine": machine::detect(),
            })
        );
        return Ok(exit::done());
    }
    let limit = match args.what {
        BenchWhat::Decode => format!("{:.1} GB/s read", roofline.bytes_per_second / 1e9),
        BenchWhat::Prefill => format!("{:.0} GFLOP/s in f32", roofline.flops_per_second / 1e9),
    };
    println!(
        "{:.1} tokens/s [{:.1} to {:.1}, {} runs], {:.0} % of this machine's {limit}",
        speed.median,
        speed.min,
        speed.max,
        args.runs,
        100.0 * share
    );
    Ok(exit::done())
}

/// Tokens per second over the runs.
#[derive(Serialize)]
struct Speed {
    min: f64,
    median: f64,
    max: f64,
}

/// What one run does.
struct Work {
    prompt: usize,
    generate: usize,
    decode: bool,
}

impl Work {
    fn of(args: &BenchArgs, context: usize) -> Result<Work> {
        let decode = args.what == BenchWhat::Decode;
        let (prompt, generate) = match args.what {
            BenchWhat::Decode => (args.prompt_tokens.unwrap_or(DECODE_PROMPT), args.tokens),
            BenchWhat::Prefill => {
                (args.prompt_tokens.unwrap_or(PREFILL_PROMPT.min(context - 1)), 1)
            }
        };
        if prompt == 0 || (decode && generate < 2) || args.runs == 0 {
            bail!("expected at least 1 prompt token, 2 tokens to decode and 1 run");
        }
        if prompt + generate > context {
            bail!(
                "{prompt} prompt tokens and {generate} more do not fit this model's context of {context}\n\
                 hint: lower --prompt-tokens or --tokens"
            );
        }
        Ok(Work { prompt, generate, decode })
    }

    /// Tokens per second: of the prompt until its first token is there, or of the tokens after it.
    fn run(&self, engine: &mut Engine, vocab: usize) -> Result<f64> {
        let prompt = (0..self.prompt).map(|i| (i * 7919 % vocab) as u32).collect();
        let params = SamplingParams {
            max_tokens: self.generate,
            ignore_eos: true,
            ..SamplingParams::default()
        };
        let started = Instant::now();
        engine.add(SequenceRequest { prompt, params, adapter: None })?;
        let mut first = None;
        while engine.has_work() {
            for event in engine.step() {
                match event {
                    Event::Token { .. } => {
                        first.get_or_insert_with(Instant::now);
                    }
                    Event::Failed { error, .. } => return Err(error.into()),
                    Event::Finished { .. } => {}
                }
            }
        }
        let Some(first) = first else { bail!("the model generated nothing") };
        Ok(match self.decode {
            true => (self.generate - 1) as f64 / first.elapsed().as_secs_f64(),
            false => self.prompt as f64 / (first - started).as_secs_f64(),
        })
    }
}
