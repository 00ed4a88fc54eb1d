//! `metier runs`: the training runs on this machine, and what sets them apart.

mod compare;
mod found;

use crate::cli::{RunsArgs, RunsCommand};
use crate::exit;
use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use eval::LossPoint;
use found::Run;
use std::path::PathBuf;
use std::process::ExitCode;

pub(super) fn run(args: &RunsArgs) -> Result<ExitCode> {
    match &args.command {
        Some(RunsCommand::Compare(compare)) => compare::run(compare),
        None => list(args),
    }
}

fn list(args: &RunsArgs) -> Result<ExitCode> {
    let here = [PathBuf::from(".")];
    let dirs = if args.dirs.is_empty() { &here[..] } else { &args.dirs };
    if let Some(missing) = dirs.iter().find(|dir| !dir.is_dir()) {
        bail!("{}: no such folder", missing.display());
    }
    let mut runs: Vec<Run> = found::below(dirs).iter().map(|dir| Run::read(dir)).collect();
    // Newest last: nearest to the prompt.
    runs.sort_by(|a, b| a.time.total_cmp(&b.time).then_with(|| a.dir.cmp(&b.dir)));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&runs)?);
        return Ok(exit::done());
    }
    if runs.is_empty() {
        eprintln!(
            "no training runs here; `metier train` makes them, `metier runs DIR` looks elsewhere"
        );
        return Ok(exit::done());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "run", "date", "base", "method", "r", "lr", "steps", "held-out", "general", "tokens/s",
        "status",
    ]);
    for run in &runs {
        table.add_row([
            run.dir.display().to_string(),
            run.date(),
            run.base.clone(),
            run.setting("method"),
            if run.setting("method") == "full" { String::new() } else { run.setting("r") },
            run.setting("learning_rate"),
            run.steps_shown(),
            run.held_out_shown(),
            run.guard_shown(),
            run.tokens_per_second.map_or(String::new(), |speed| format!("{speed:.0}")),
            run.status.clone(),
        ]);
    }
    println!("{table}");
    Ok(exit::done())
}

/// A loss curve in one line of text, `width` characters wide, on a scale from `lo` to `hi`.
fn sparkline(points: &[(u64, f64)], last_step: u64, width: usize, lo: f64, hi: f64) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mut cells: Vec<(f64, usize)> = vec![(0.0, 0); width];
    for (step, loss) in points.iter().filter(|(_, loss)| loss.is_finite()) {
        let at = (*step as f64 / last_step.max(1) as f64 * (width - 1) as f64).round() as usize;
        let cell = &mut cells[at.min(width - 1)];
        *cell = (cell.0 + loss, cell.1 + 1);
    }
    let bar = |(sum, count): &(f64, usize)| match count {
        0 => ' ',
        _ => {
            let share = (sum / *count as f64 - lo) / (hi - lo).max(f64::MIN_POSITIVE);
            BARS[(share.clamp(0.0, 1.0) * 7.0).round() as usize]
        }
    };
    cells.iter().map(bar).collect()
}

/// Steps and losses of one kind.
fn losses(curve: &[LossPoint], of: fn(&LossPoint) -> Option<f64>) -> Vec<(u64, f64)> {
    let noted = curve.iter().filter_map(|p| Some((p.step, of(p)?)));
    noted.filter(|(_, loss)| loss.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use super::sparkline;

    #[test]
    fn sparklines() {
        let points: Vec<(u64, f64)> = (0..8).map(|i| (i, 7.0 - i as f64)).collect();
        assert_eq!(sparkline(&points, 7, 8, 0.0, 7.0), "█▇▆▅▄▃▂▁");
        // Several in one cell are averaged, empty cells stay empty, one value is no division by zero.
        assert_eq!(sparkline(&[(0, 1.0), (0, 3.0), (9, 0.0)], 9, 4, 0.0, 4.0), "▅  ▁");
        assert_eq!(sparkline(&[(5, 2.0), (6, f64::NAN)], 5, 3, 2.0, 2.0), "  ▁");
        assert_eq!(sparkline(&[], 0, 2, f64::INFINITY, f64::NEG_INFINITY), "  ");
    }
}
