//! `--dry-run`: what a training would take.

use super::jobs::TrainJob;
use super::start::Start;
use crate::exit;
use crate::machine;
use crate::progress::clock;
use crate::resolve::load_decoder;
use ::train::{
    Event, GeneralText, MemoryEstimate, Method, Provenance, StepSize, TrainData, TrainPlan,
};
use anyhow::{Context, Result};
use model::WeightDtype;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

/// Prints the plans and what they would take: memory by what the loop allocates, time from one real
/// step on some of the rows.
pub(super) fn dry_run(jobs: &[TrainJob], mut start: Start) -> Result<ExitCode> {
    let plans: Vec<&TrainPlan> = jobs.iter().map(|job| &job.plan).collect();
    match &plans[..] {
        [plan] => println!("{}", serde_json::to_string_pretty(plan)?),
        plans => println!("{}", serde_json::to_string_pretty(plans)?),
    }
    let report = |name: &str, r: &::train::RowReport| {
        eprintln!(
            "{name}: {} rows, {} tokens, {} learnt, longest {}; left out: {} too long, {} without a learnt token",
            r.rows, r.tokens, r.supervised_tokens, r.longest, r.too_long, r.unsupervised
        );
    };
    for job in jobs {
        if !job.name.is_empty() {
            eprintln!("{}:", job.name);
        }
        report("train", &job.data.rows.train_report);
        report("held out", &job.data.rows.held_out_report);
        let expected = Expected::of(job, &mut start)?;
        eprintln!("{expected}");
        if expected.peak_bytes() > expected.available_bytes {
            eprintln!(
                "warning: that is more than this machine has free\n\
                 hint: lower micro_batch_tokens or max_length, or hold the base in less: --dtype q8_0 or nf4"
            );
        }
        // A step of full fine-tuning has changed the base.
        if job.plan.method == Method::Full && jobs.len() > 1 {
            start.decoder = load_decoder(&start.dir, WeightDtype::F32)?;
        }
    }
    eprintln!("nothing was written (--dry-run)");
    Ok(exit::done())
}

/// What a training is expected to take.
struct Expected {
    memory: MemoryEstimate,
    /// Memory of this process with the base loaded.
    loaded_bytes: u64,
    available_bytes: u64,
    /// Tokens of all passes, held-out rows included as often as they are measured.
    tokens: f64,
    tokens_per_second: f64,
}

impl Expected {
    fn of(job: &TrainJob, start: &mut Start) -> Result<Expected> {
        let (plan, rows) = (&job.plan, &job.data.rows);
        let mut memory = ::train::estimate(plan, &start.decoder, rows);
        if plan.method == Method::Full {
            memory.logits += rows.general.kept_bytes(start.decoder.config().vocab_size);
        }
        let (loaded_bytes, free) = (machine::rss_bytes(), machine::available_bytes());
        let dir = tempfile::tempdir()?;
        // One step, as large as a micro-batch, on the rows themselves.
        let probe = TrainPlan {
            output_dir: dir.path().join("probe"),
            step_size: StepSize::Tokens(plan.micro_batch_tokens),
            max_steps: 1,
            eval_steps: 0,
            save_steps: 0,
            ..plan.clone()
        };
        let data =
            TrainData { held_out: Vec::new(), general: GeneralText::default(), ..rows.clone() };
        let mut done = None;
        let mut observe = |event: &Event| {
            if let Event::Step { tokens, seconds, .. } = event {
                done = Some(*tokens as f64 / seconds.max(1e-9));
            }
        };
        let (decoder, never) = (&mut start.decoder, AtomicBool::new(false));
        let provenance = Provenance::default();
        ::train::run(&probe, decoder, &data, &provenance, false, &mut observe, &never)?;
        let tokens_per_second = done.context("the step that was to be timed did not end")?;
        let passes = match plan.max_steps {
            0 => plan.num_train_epochs,
            steps => steps as f64 / ::train::steps_per_epoch(plan, &rows.train) as f64,
        };
        let steps = passes * ::train::steps_per_epoch(plan, &rows.train) as f64;
        let measured = 2.0 + if plan.eval_steps > 0 { steps / plan.eval_steps as f64 } else { 0.0 };
        // A forward is a third of a step, or half of it where nothing is computed again.
        let forward = if plan.gradient_checkpointing { 1.0 / 3.0 } else { 0.5 };
        let held_out = rows.held_out_report.tokens as f64 * measured * forward;
        Ok(Expected {
            memory,
            loaded_bytes,
            available_bytes: free + loaded_bytes,
            tokens: rows.train_report.tokens as f64 * passes + held_out,
            tokens_per_second,
        })
    }

    fn peak_bytes(&self) -> u64 {
        self.loaded_bytes + self.memory.total() as u64
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        let m = &self.memory;
        write!(
            f,
            "expected: {:.2} GiB at most (loaded base {:.2}, what is trained {:.2}, activations {:.2}, logits \
             {:.2}, the rest {:.2}; {:.1} GiB are free), about {} at {:.0} tokens/s (one step was timed)",
            gib(self.peak_bytes() as usize),
            gib(self.loaded_bytes as usize),
            gib(m.trainable),
            gib(m.activations),
            gib(m.logits),
            gib(m.data + m.kernels),
            gib(self.available_bytes as usize),
            clock(self.tokens / self.tokens_per_second),
            self.tokens_per_second
        )
    }
}
