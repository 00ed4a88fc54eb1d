//! `metier bench`: how fast a model runs here, and how near that is to what the machine can do.

mod serve;

use crate::cli::{BenchActivations, BenchArgs, BenchWhat};
use crate::exit;
use crate::machine::{self, ROOFLINE_BYTES, Roofline};
use crate::progress;
use crate::resolve::{self, Base};
use ::train::{
    FloatDtype, Job, MemoryEstimate, Method, Objective, Provenance, Row, StepSize, TrainData,
    TrainPlan,
};
use anyhow::{Result, bail};
use engine::{Engine, EngineOptions, Event, SamplingParams, SequenceRequest};
use serde::Serialize;
use std::process::ExitCode;
use std::time::Instant;

/// Prompt before decoding, when none is asked for.
const DECODE_PROMPT: usize = 16;
/// Prompt of the prefill measurement, as the field's tools take it.
const PREFILL_PROMPT: usize = 512;

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    match args.what {
        BenchWhat::Train => return train(args),
        BenchWhat::Serve => return serve::run(&args.serve, args.json),
        BenchWhat::Decode | BenchWhat::Prefill => {}
    }
    let base = Base::load(&args.model, args.weights)?;
    let context = base.decoder.config().max_position_embeddings;
    let work = Work::of(args, context)?;
    // What is known of a past run, or guessed of this one, is not what is measured.
    let options = EngineOptions {
        kv_cache_dtype: args.kv_cache.dtype(),
        max_num_seqs: 1,
        prefix_caching: false,
        num_speculative_tokens: 0,
        ..EngineOptions::default()
    };
    let (mut engine, _) = resolve::engine(&base, &[], 0, options)?;
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
        BenchWhat::Prefill | BenchWhat::Train | BenchWhat::Serve => {
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
        BenchWhat::Prefill | BenchWhat::Train | BenchWhat::Serve => {
            format!("{:.0} GFLOP/s in f32", roofline.flops_per_second / 1e9)
        }
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

/// LoRA steps on made-up rows of which every token is learnt, through the training loop itself.
fn train(args: &BenchArgs) -> Result<ExitCode> {
    let path = resolve::model_path(&args.model)?;
    let mut decoder = resolve::load_decoder(&path, args.weights.dtype.unwrap_or_default())?;
    let config = decoder.config();
    let length =
        args.prompt_tokens.unwrap_or(PREFILL_PROMPT).min(config.max_position_embeddings - 1);
    if length < 2 || args.rows == 0 || args.runs == 0 || args.adapters == 0 {
        bail!("expected rows of at least 2 tokens, and at least 1 row, 1 run and 1 adapter");
    }
    let vocab = config.vocab_size;
    let dir = tempfile::tempdir()?;
    let plan = |i: usize| TrainPlan {
        output_dir: dir.path().join(i.to_string()),
        seed: i as u64,
        r: args.r,
        lora_alpha: args.r as f32,
        max_length: length + 1,
        step_size: StepSize::Rows(args.rows),
        // Short rows of several adapters share a micro-batch; long ones take turns, so that all
        // together need the memory of one.
        micro_batch_tokens: (args.rows * length).max(PREFILL_PROMPT),
        max_steps: args.runs as u64 + 1,
        gradient_checkpointing: args.activations == BenchActivations::Recompute,
        activation_dtype: match args.activations {
            BenchActivations::Bfloat16 => FloatDtype::Bfloat16,
            BenchActivations::Recompute | BenchActivations::Float32 => FloatDtype::Float32,
        },
        eval_steps: 0,
        save_steps: 0,
        ..TrainPlan::new(Method::Lora, Objective::Sft, config)
    };
    let plans: Vec<TrainPlan> = (0..args.adapters).map(plan).collect();
    let rows = |seed: usize| -> Vec<Row> {
        let row = |n: usize| {
            let ids = (0..=length).map(|i| ((i * 7919 + n * 104_729 + seed * 31) % vocab) as u32);
            Row::new(format!("row {n}"), ids.collect(), vec![true; length + 1])
        };
        (0..args.rows).map(row).collect()
    };
    // Any id may end a made-up row.
    let stop_ids: Vec<u32> = (0..vocab as u32).collect();
    let data = plans
        .iter()
        .enumerate()
        .map(|(i, plan)| TrainData::from_rows(rows(i), vec![], &stop_ids, None, plan))
        .collect::<Result<Vec<_>, _>>()?;
    let provenance = Provenance::default();
    let jobs: Vec<Job<'_>> = plans
        .iter()
        .zip(&data)
        .map(|(plan, data)| Job { plan, data, provenance: &provenance })
        .collect();
    let flops_per_token = decoder.flops_per_token();
    let weight_bytes = decoder.weight_bytes();
    let bar = progress::bar("bench", args.runs as u64 + 1);
    let mut moments = vec![Instant::now()];
    let mut losses = Vec::new();
    let mut observe = |lane: usize, event: &::train::Event| {
        if let ::train::Event::Step { loss, .. } = event
            && lane + 1 == args.adapters
        {
            moments.push(Instant::now());
            losses.push(*loss);
            bar.inc(1);
        }
    };
    let never = std::sync::atomic::AtomicBool::new(false);
    // The rows of all adapters share the micro-batches: what these take is that of one training with
    // all rows, and each adapter has its own beside it.
    let own: usize = plans
        .iter()
        .zip(&data)
        .map(|(plan, data)| ::train::estimate(plan, &decoder, data).trainable)
        .sum();
    let all = (0..args.adapters).flat_map(rows).collect();
    let whole = TrainPlan { step_size: StepSize::Rows(args.adapters * args.rows), ..plan(0) };
    let data_of_all = TrainData::from_rows(all, vec![], &stop_ids, None, &whole)?;
    let shared: MemoryEstimate = ::train::estimate(&whole, &decoder, &data_of_all);
    let expected = machine::rss_bytes() as usize + own + shared.total() - shared.trainable;
    let expected = (expected as u64).max(machine::peak_rss_bytes());
    ::train::run_together(&jobs, &mut decoder, false, &mut observe, &never)?;
    bar.finish_and_clear();
    // After the peak is read: the measurement takes memory of its own.
    let peak = machine::peak_rss_bytes();
    let roofline = Roofline::measure(ROOFLINE_BYTES);
    let tokens = (args.adapters * args.rows * length) as f64;
    // The first step warms up.
    let mut rates: Vec<f64> =
        moments[1..].windows(2).map(|pair| tokens / (pair[1] - pair[0]).as_secs_f64()).collect();
    rates.sort_by(f64::total_cmp);
    let speed =
        Speed { min: rates[0], median: rates[rates.len() / 2], max: rates[rates.len() - 1] };
    // Forward, and the gradient of the inputs; with recomputation another forward.
    let passes = if args.activations == BenchActivations::Recompute { 3.0 } else { 2.0 };
    let share = speed.median * passes * flops_per_token / roofline.flops_per_second;
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "what": args.what, "model": args.model, "tokens_per_second": speed,
                "rows": args.rows, "length": length, "r": args.r, "adapters": args.adapters,
                "activations": args.activations, "runs": args.runs, "losses": losses,
                "peak_rss_bytes": peak, "expected_peak_bytes": expected,
                "weight_bytes": weight_bytes, "roofline": roofline, "roofline_share": share,
                "machine": machine::detect(),
            })
        );
        return Ok(exit::done());
    }
    println!(
        "{:.1} tokens/s [{:.1} to {:.1}, {} steps], {:.0} % of this machine's {:.0} GFLOP/s in f32, peak memory {:.2} GiB ({:.2} expected)",
        speed.median,
        speed.min,
        speed.max,
        args.runs,
        100.0 * share,
        roofline.flops_per_second / 1e9,
        peak as f64 / (1u64 << 30) as f64,
        expected as f64 / (1u64 << 30) as f64
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
            BenchWhat::Prefill | BenchWhat::Train | BenchWhat::Serve => {
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
        engine.add(SequenceRequest { prompt, params, ..SequenceRequest::default() })?;
        let mut first = None;
        while engine.has_work() {
            for event in engine.step() {
                match event {
                    Event::Token { .. } => {
                        first.get_or_insert_with(Instant::now);
                    }
                    Event::Failed { error, .. } => return Err(error.into()),
                    Event::Started { .. }
                    | Event::Prompt { .. }
                    | Event::Embedding { .. }
                    | Event::Finished { .. } => {}
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
