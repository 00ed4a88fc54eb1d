//! Progress bars with ETA on standard error. Where that is no terminal there is no bar, and a training
//! writes a line now and then instead.

use crate::machine;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;
use train::Event;

/// A bar over `total` items, named `what`.
pub(crate) fn bar(what: &str, total: u64) -> ProgressBar {
    styled(what, total, "{prefix:>10} {wide_bar:.cyan/dim} {pos}/{len} {msg} ETA {eta}")
}

/// A bar that appears with the first count, since what is counted, and how far, is known only then; it
/// goes when the value does.
#[derive(Default)]
pub(crate) struct Counted(Option<ProgressBar>);

impl Counted {
    /// `done` of `total`, named `what`.
    pub(crate) fn set(&mut self, what: &str, done: usize, total: usize) {
        self.0.get_or_insert_with(|| bar(what, total as u64)).set_position(done as u64);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn styled(what: &str, total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(what.to_owned());
    bar
}

/// Lines that a training writes where there is no bar, beside those for held-out losses.
const LINES: u64 = 20;

/// Draws a training: a bar with loss, learning rate, speed, ETA and memory, lines for what stays worth
/// reading.
#[derive(Default)]
pub(crate) struct TrainBar {
    bar: Option<ProgressBar>,
    held_out: Option<f64>,
    /// Step of the last line, where there is no bar.
    lined: u64,
}

impl TrainBar {
    /// Follows one event of the run.
    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::Start {
                step,
                total_steps,
                rows,
                tokens,
                held_out_rows,
                trainable_parameters,
                ..
            } => {
                eprintln!(
                    "  {rows} rows, {tokens} tokens a pass, {held_out_rows} rows held out, \
                     {trainable_parameters} parameters trained"
                );
                // The run knows better than the bar how long it will take.
                let template = "{prefix:>10} {wide_bar:.cyan/dim} {pos}/{len} {msg}";
                let bar = styled("training", *total_steps, template);
                bar.set_position(*step);
                self.bar = Some(bar);
                self.lined = *step;
            }
            Event::Step {
                step,
                total_steps,
                loss,
                learning_rate,
                tokens_per_second,
                eta_seconds,
                ..
            } => {
                let Some(bar) = &self.bar else { return };
                let held = self.held_out.map_or(String::new(), |l| format!(" held-out {l:.3}"));
                let mib = machine::peak_rss_bytes() >> 20;
                let left = clock(*eta_seconds);
                let numbers = format!(
                    "loss {loss:.3}{held} lr {learning_rate:.1e} {tokens_per_second:.0} tok/s {mib} MiB"
                );
                if bar.is_hidden() {
                    let every = (total_steps / LINES).max(1);
                    if *step == *total_steps || *step >= self.lined + every {
                        self.lined = *step;
                        eprintln!("  step {step}/{total_steps}: {numbers}, {left} left");
                    }
                    return;
                }
                bar.set_message(format!("{numbers} {left} left"));
                bar.set_position(*step);
            }
            Event::Evaluation { held_out, best } => {
                self.held_out = Some(held_out.loss);
                let bits = held_out
                    .bits_per_byte
                    .map_or(String::new(), |b| format!(", {b:.3} bits per byte"));
                let lowest = if *best { ", the lowest so far" } else { "" };
                self.line(&format!(
                    "  step {}: held-out loss {:.4}{bits}{lowest}",
                    held_out.step, held_out.loss
                ));
            }
            Event::Resumed { step, path } => {
                self.line(&format!("  resumed after step {step} from {}", path.display()));
            }
            Event::Warning { message } => self.line(&format!("warning: {message}")),
            Event::Plan { .. } | Event::Checkpoint { .. } | Event::Guard(_) => {}
            Event::End { .. } => {
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) if !bar.is_hidden() => bar.println(text),
            _ => eprintln!("{text}"),
        }
    }
}

/// Draws several trainings that go side by side: one bar over all their steps.
pub(crate) struct TrainBars {
    runs: Vec<OneOfSeveral>,
    alone: TrainBar,
    bar: Option<ProgressBar>,
}

struct OneOfSeveral {
    name: String,
    step: u64,
    total: u64,
    loss: f64,
}

impl TrainBars {
    /// Bars of runs with these names.
    pub(crate) fn new(names: &[&str]) -> TrainBars {
        let run = |name: &&str| OneOfSeveral {
            name: (*name).to_owned(),
            step: 0,
            total: 0,
            loss: f64::NAN,
        };
        TrainBars { runs: names.iter().map(run).collect(), alone: TrainBar::default(), bar: None }
    }

    /// Follows one event of run `index`.
    pub(crate) fn event(&mut self, index: usize, event: &Event) {
        if self.runs.len() == 1 {
            return self.alone.event(event);
        }
        let name = self.runs[index].name.clone();
        match event {
            Event::Start { step, total_steps, rows, held_out_rows, .. } => {
                (self.runs[index].step, self.runs[index].total) = (*step, *total_steps);
                let total = self.runs.iter().map(|r| r.total).sum();
                self.bar.get_or_insert_with(|| bar("training", total)).set_length(total);
                self.line(&format!("  {name}: {rows} rows, {held_out_rows} held out"));
            }
            Event::Step { step, loss, .. } => {
                (self.runs[index].step, self.runs[index].loss) = (*step, *loss);
                let Some(bar) = &self.bar else { return };
                let losses: Vec<String> =
                    self.runs.iter().take(4).map(|r| format!("{:.3}", r.loss)).collect();
                let more = if self.runs.len() > 4 { " .." } else { "" };
                bar.set_message(format!("loss {}{more},", losses.join(" ")));
                bar.set_position(self.runs.iter().map(|r| r.step).sum());
            }
            Event::Evaluation { held_out, .. } => self.line(&format!(
                "  {name}, step {}: held-out loss {:.4}",
                held_out.step, held_out.loss
            )),
            Event::Resumed { step, .. } => {
                self.line(&format!("  {name}: resumed after step {step}"));
            }
            Event::Warning { message } => self.line(&format!("warning: {name}: {message}")),
            Event::Plan { .. } | Event::Checkpoint { .. } | Event::Guard(_) => {}
            Event::End { .. } => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) if !bar.is_hidden() => bar.println(text),
            _ => eprintln!("{text}"),
        }
    }
}

/// Seconds as m:ss or h:mm:ss.
pub(crate) fn clock(seconds: f64) -> String {
    let s = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s % 3600 / 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::clock;

    #[test]
    fn clock_shows_minutes_and_hours() {
        for (seconds, shown) in
            [(0.4, "0:00"), (65.0, "1:05"), (3725.0, "1:02:05"), (f64::NAN, "0:00")]
        {
            assert_eq!(clock(seconds), shown);
        }
    }
}
