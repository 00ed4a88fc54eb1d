//! `metier runs compare`: what sets runs apart, in the terminal and as a page.

use super::found::{Run, shown};
use super::{losses, sparkline};
use crate::cli::RunsCompareArgs;
use crate::exit;
use ::train::LOG_FILE;
use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use eval::{RunColumn, RunsPage};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Width of a curve in the terminal, characters.
const SPARK_WIDTH: usize = 48;
/// Settings that say nothing about what was learnt.
const PLACES: [&str; 2] = ["output_dir", "report_to"];

pub(super) fn run(args: &RunsCompareArgs) -> Result<ExitCode> {
    for dir in &args.runs {
        if !dir.join(LOG_FILE).is_file() {
            bail!(
                "{}: no training run: it has no {LOG_FILE}\nhint: `metier runs` lists those that there are",
                dir.display()
            );
        }
    }
    let runs: Vec<Run> = args.runs.iter().map(|dir| Run::read(dir)).collect();
    let (settings, results) = (settings(&runs), results(&runs));
    let page = RunsPage {
        made: format!("{} · metier {}", now(), env!("CARGO_PKG_VERSION")),
        runs: runs
            .iter()
            .map(|run| RunColumn { name: run.dir.display().to_string(), curve: run.curve.clone() })
            .collect(),
        settings,
        results,
    };
    page.write(&args.html)?;
    if args.json {
        let table = |rows: &[(String, Vec<String>)]| -> Value {
            rows.iter().map(|(name, values)| (name.clone(), json!(values))).collect()
        };
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({
                "runs": runs, "differing_settings": table(&page.settings),
                "results": table(&page.results), "html": args.html,
            }))?
        );
        return Ok(exit::done());
    }
    print(&runs, &page, &args.html);
    Ok(exit::done())
}

/// Settings, base and digests that are not the same in all runs.
fn settings(runs: &[Run]) -> Vec<(String, Vec<String>)> {
    let mut names: Vec<&String> = Vec::new();
    for name in runs.iter().flat_map(|run| run.settings.keys().chain(run.digests.keys())) {
        if !names.contains(&name) && !PLACES.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let value = |run: &Run, name: &String| {
        if let Some(digest) = run.digests.get(name) {
            return shown(digest).chars().take(12).collect();
        }
        run.settings.get(name).map_or(String::new(), shown)
    };
    let base = ("base".to_owned(), runs.iter().map(|run| run.base.clone()).collect());
    let rows = names.iter().map(|name| {
        ((*name).clone(), runs.iter().map(|run| value(run, name)).collect::<Vec<String>>())
    });
    let differ = |(name, values): &(String, Vec<String>)| {
        // A run that did not end has no manifest: its digests are not known, and not others.
        let digest = runs.iter().any(|run| run.digests.contains_key(name));
        let mut known = values.iter().filter(|value| !(digest && value.is_empty()));
        let first = known.next();
        known.any(|value| Some(value) != first)
    };
    std::iter::once(base).chain(rows).filter(differ).collect()
}

fn results(runs: &[Run]) -> Vec<(String, Vec<String>)> {
    let loss = |loss: Option<f64>| loss.map_or(String::new(), |loss| format!("{loss:.4}"));
    let row = |name: &str, value: &dyn Fn(&Run) -> String| {
        (name.to_owned(), runs.iter().map(value).collect::<Vec<String>>())
    };
    vec![
        row("status", &|run| run.status.clone()),
        row("began (UTC)", &Run::date),
        row("steps", &Run::steps_shown),
        row("training loss, last", &|run| loss(run.train_loss)),
        row("held-out loss, before", &|run| loss(run.held_out_before)),
        row("held-out loss, last", &|run| loss(run.held_out.filter(|_| run.best.is_some()))),
        row("held-out loss, lowest", &|run| loss(run.best)),
        row("general text, loss before", &|run| loss(run.guard_before)),
        row("general text, loss after", &|run| loss(run.guard_after)),
        row("general text, KL from the base", &|run| loss(run.guard_kl)),
        row("seconds of training", &|run| format!("{:.0}", run.seconds)),
        row("tokens per second", &|run| {
            run.tokens_per_second.map_or(String::new(), |speed| format!("{speed:.0}"))
        }),
    ]
}

fn print(runs: &[Run], page: &RunsPage, html: &Path) {
    let table = |rows: &[(String, Vec<String>)]| {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let names = page.runs.iter().map(|run| run.name.clone());
        table.set_header(std::iter::once(String::new()).chain(names));
        for (name, values) in rows {
            table.add_row(std::iter::once(name).chain(values));
        }
        println!("{table}");
    };
    match page.settings.is_empty() {
        true => println!("The settings are the same."),
        false => {
            println!("Settings that differ:");
            table(&page.settings);
        }
    }
    println!("\nResults:");
    table(&page.results);
    curves(runs);
    println!("\nwrote {}", html.display());
}

/// All curves on one scale, one line each.
fn curves(runs: &[Run]) {
    type Kind = (&'static str, fn(&eval::LossPoint) -> Option<f64>);
    let kinds: [Kind; 2] = [("training", |p| p.loss), ("held-out", |p| p.held_out)];
    let points = |run: &Run, kind: &Kind| losses(&run.curve, kind.1);
    let all: Vec<(u64, f64)> =
        runs.iter().flat_map(|run| kinds.iter().flat_map(|kind| points(run, kind))).collect();
    if all.is_empty() {
        return;
    }
    let last_step = all.iter().map(|(step, _)| *step).max().unwrap_or(0);
    let lo = all.iter().fold(f64::INFINITY, |m, (_, loss)| m.min(*loss));
    let hi = all.iter().fold(f64::NEG_INFINITY, |m, (_, loss)| m.max(*loss));
    println!("\nLoss from {lo:.3} to {hi:.3} over {last_step} steps:");
    let names = runs.iter().map(|run| run.dir.display().to_string().chars().count()).max();
    // Fewer steps than places would leave gaps.
    let places = SPARK_WIDTH.min(last_step as usize + 1);
    for run in runs {
        for kind in &kinds {
            let line = sparkline(&points(run, kind), last_step, places, lo, hi);
            let name = run.dir.display().to_string();
            println!(
                "  {name:<width$}  {:<8}  {}",
                kind.0,
                line.trim_end(),
                width = names.unwrap_or(0)
            );
        }
    }
}

/// The time in UTC, RFC 3339.
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}
