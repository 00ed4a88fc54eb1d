//! `metier train`: from a config file and flags to plans, and the plans carried out.

mod expected;
mod jobs;
mod rows;
mod start;

use crate::card::{self, Card};
use crate::cli::TrainArgs;
use crate::config::ConfigFile;
use crate::exit;
use crate::progress::{TrainBars, clock};
use crate::resolve::load_decoder;
use ::train::{
    Event, Job, LOG_FILE, MANIFEST_FILE, Manifest, Method, Objective, Provenance, TrainOutcome,
    TrainPlan, TrainStatus,
};
use anyhow::{Context, Result};
use expected::dry_run;
use jobs::{TrainJob, jobs};
use model::WeightDtype;
use start::Start;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Trainings that share the base at a time: what each adds in memory is its adapter four times over.
const MOST_TOGETHER: usize = 8;

pub(super) fn run(args: &TrainArgs) -> Result<ExitCode> {
    let file = match &args.config {
        Some(path) => ConfigFile::read(path)?,
        None => ConfigFile::default(),
    };
    let mut start = Start::load(args, &file)?;
    let jobs = jobs(args, &file, &start)?;
    if args.dry_run {
        return dry_run(&jobs, start);
    }
    let cancel = cancel_on_ctrl_c()?;
    let full = jobs.iter().any(|job| job.plan.method == Method::Full);
    let mut outcomes: Vec<TrainOutcome> = Vec::new();
    for (i, group) in jobs.chunks(if full { 1 } else { MOST_TOGETHER }).enumerate() {
        if full && i > 0 {
            // The one before has trained the base itself.
            start.decoder = load_decoder(&start.dir, WeightDtype::F32)?;
        }
        let provenances: Vec<Provenance> =
            group.iter().map(|job| job.provenance(&start, &file)).collect();
        let together: Vec<Job<'_>> = group
            .iter()
            .zip(&provenances)
            .map(|(job, provenance)| Job { plan: &job.plan, data: &job.data.rows, provenance })
            .collect();
        let names: Vec<&str> = group.iter().map(|job| job.name.as_str()).collect();
        let mut bars = TrainBars::new(&names);
        let mut observe = |lane: usize, event: &Event| match (args.json, names[lane]) {
            (true, "") => println!("{}", serde_json::json!(event)),
            (true, name) => {
                let mut line = serde_json::json!(event);
                line["run"] = name.into();
                println!("{line}");
            }
            (false, _) => bars.event(lane, event),
        };
        let resume = args.resume;
        let ended =
            ::train::run_together(&together, &mut start.decoder, resume, &mut observe, cancel)?;
        for (job, outcome) in together.iter().zip(&ended) {
            if outcome.status != TrainStatus::Interrupted {
                let dir = &outcome.output_dir;
                write_card(dir, &start.name, job.provenance, job.plan.method)?;
            }
        }
        outcomes.extend(ended);
        if outcomes.iter().any(|o| o.status == TrainStatus::Interrupted) {
            break;
        }
    }
    let interrupted = outcomes.iter().any(|o| o.status == TrainStatus::Interrupted);
    match (&outcomes[..], args.json) {
        ([outcome], false) => print_outcome(outcome, &start.name, &jobs[0].plan),
        ([_], true) => {}
        (outcomes, _) => print_runs(&jobs, outcomes, &start.name, args.json),
    }
    Ok(if interrupted { ExitCode::from(exit::FAILED) } else { exit::done() })
}

/// The runs as a table, the lowest held-out loss first, and which won.
fn print_runs(jobs: &[TrainJob], outcomes: &[TrainOutcome], base: &str, json: bool) {
    let reached = |o: &TrainOutcome| {
        let last = o.held_out.map(|h| h.loss);
        o.best.map(|h| h.loss).into_iter().chain(last).fold(f64::INFINITY, f64::min)
    };
    let mut order: Vec<(&TrainJob, &TrainOutcome)> = jobs.iter().zip(outcomes).collect();
    order.sort_by(|a, b| reached(a.1).total_cmp(&reached(b.1)));
    let comparable = order.iter().all(|(job, _)| {
        job.data.rows.held_out == order[0].0.data.rows.held_out
            && !job.data.rows.held_out.is_empty()
    }) && outcomes.iter().all(|o| o.status != TrainStatus::Interrupted);
    let winner = comparable.then(|| order[0].0.name.as_str());
    if json {
        let runs: Vec<_> = order
            .iter()
            .map(|(job, o)| {
                serde_json::json!({
                    "run": job.name, "output_dir": o.output_dir, "status": o.status, "step": o.step,
                    "train_loss": o.train_loss, "held_out_before": o.held_out_before,
                    "held_out": o.held_out, "best": o.best, "guard": o.guard,
                })
            })
            .collect();
        println!("{}", serde_json::json!({"event": "runs", "runs": runs, "winner": winner}));
        return;
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "run",
        "steps",
        "held out before",
        "best",
        "at step",
        "last",
        "train loss",
        "general text",
    ]);
    let loss = |h: Option<::train::HeldOut>| h.map_or("-".into(), |h| format!("{:.4}", h.loss));
    for (job, o) in &order {
        table.add_row([
            job.name.clone(),
            format!("{} of {}", o.step, o.total_steps),
            loss(o.held_out_before),
            loss(o.best),
            o.best.map_or("-".into(), |h| h.step.to_string()),
            loss(o.held_out),
            format!("{:.4}", o.train_loss),
            o.guard
                .as_ref()
                .map_or("-".into(), |g| format!("{:.4} -> {:.4}", g.loss_before, g.loss_after)),
        ]);
    }
    println!("{table}");
    match winner {
        Some(name) => {
            println!("lowest held-out loss: {name}");
            println!("{}", next(&order[0].1.output_dir, base, &order[0].0.plan));
        }
        None => println!("no winner: the runs were not all measured on the same held-out rows"),
    }
}

/// A flag that the first Ctrl-C or SIGTERM raises.
fn cancel_on_ctrl_c() -> Result<&'static AtomicBool> {
    static CANCEL: AtomicBool = AtomicBool::new(false);
    ctrlc::set_handler(|| {
        if CANCEL.swap(true, Ordering::SeqCst) {
            // A second one: do not wait for the step to end. Checkpoints are whole or absent.
            std::process::exit(i32::from(exit::FAILED));
        }
        eprintln!("\nsaving a checkpoint ... (again to stop at once)");
    })?;
    Ok(&CANCEL)
}

/// The model card beside the result.
fn write_card(dir: &Path, base: &str, provenance: &Provenance, method: Method) -> Result<()> {
    let path = dir.join(MANIFEST_FILE);
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(&path)?)
        .with_context(|| format!("{}: not a manifest of Metier", path.display()))?;
    let adapter = method == Method::Lora;
    let card = Card {
        title: card::title(dir),
        what: match adapter {
            true => "a LoRA adapter in PEFT's format",
            false => "a whole model in Hugging Face's form",
        },
        base_name: base,
        base_licence: provenance.base_licence.clone(),
        adapter,
        manifest: Some(&manifest),
        usage: if adapter { card::adapter_usage(base, dir) } else { card::model_usage(dir) },
        checked: None,
    };
    model::write_atomic(&dir.join(card::FILE), card.render().as_bytes())?;
    Ok(())
}

fn print_outcome(outcome: &TrainOutcome, base: &str, plan: &TrainPlan) {
    let dir = outcome.output_dir.display();
    if outcome.status == TrainStatus::Interrupted {
        eprintln!(
            "interrupted after step {} of {}; the same command with --resume goes on from there",
            outcome.step, outcome.total_steps
        );
        return;
    }
    let held = match (&outcome.held_out_before, &outcome.held_out) {
        (Some(before), Some(after)) => {
            format!(", held-out loss {:.4} -> {:.4}", before.loss, after.loss)
        }
        _ => String::new(),
    };
    println!(
        "trained {} steps in {} ({:.0} tokens/s){held}",
        outcome.step,
        clock(outcome.seconds),
        outcome.tokens as f64 / outcome.seconds.max(1e-9)
    );
    for sentence in &outcome.guidance {
        println!("  {sentence}");
    }
    if let Some(guard) = &outcome.guard {
        println!("  {}", guard.sentence());
    }
    println!("wrote {dir}");
    println!("{}", next(&outcome.output_dir, base, plan));
}

/// What measures a result of this kind on rows that it has not seen.
fn next(dir: &Path, base: &str, plan: &TrainPlan) -> String {
    let dir = dir.display();
    let model = match plan.method {
        Method::Lora => format!("--model {base} --adapter {dir}"),
        Method::Full => format!("--model {dir}"),
    };
    match plan.objective {
        Objective::Text => format!("next: metier perplexity {model} --text TEST.txt"),
        // Answers that are only compared have no reference that a metric could take.
        objective if objective.is_preference() => {
            format!("next: metier chat {model} (rewards/accuracies are in {dir}/{LOG_FILE})")
        }
        _ => format!("next: metier eval {model} --data TEST.jsonl"),
    }
}
