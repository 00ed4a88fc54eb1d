//! A training run as its folder tells: the log, and the manifest where it came to one. Logs of other
//! versions are read as far as they go.

use ::train::{LOG_FILE, MANIFEST_FILE};
use eval::LossPoint;
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How deep runs are looked for below a folder.
const DEPTH: usize = 6;
/// Largest log that is read, bytes.
const LOG_BYTES: u64 = 1 << 30;

/// A training run.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Run {
    pub(super) dir: PathBuf,
    /// Seconds since 1970 when it began; of an older log, when it was last written.
    pub(super) time: f64,
    pub(super) base: String,
    /// completed, early_stopped, time_limit, interrupted, running, or stopped: killed before its end.
    pub(super) status: String,
    /// Optimizer steps done.
    pub(super) step: u64,
    /// Steps of the whole run.
    pub(super) total_steps: Option<u64>,
    pub(super) train_loss: Option<f64>,
    pub(super) held_out_before: Option<f64>,
    /// The last one measured.
    pub(super) held_out: Option<f64>,
    /// The lowest one after the first step.
    pub(super) best: Option<f64>,
    /// Loss of the base on general text.
    pub(super) guard_before: Option<f64>,
    /// The same after the training.
    pub(super) guard_after: Option<f64>,
    /// Divergence from the base there, nats per token.
    pub(super) guard_kl: Option<f64>,
    /// Tokens that went through the model.
    pub(super) tokens: u64,
    /// Seconds of training.
    pub(super) seconds: f64,
    pub(super) tokens_per_second: Option<f64>,
    /// The plan's settings.
    pub(super) settings: Map<String, Value>,
    /// Digests that the manifest names: of data, base, tokenizer.
    pub(super) digests: Map<String, Value>,
    #[serde(skip)]
    pub(super) curve: Vec<LossPoint>,
}

/// Every folder below `dirs` (and these themselves) that has a training log.
pub(super) fn below(dirs: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<(PathBuf, usize)> = dirs.iter().map(|dir| (dir.clone(), 0)).collect();
    while let Some((dir, depth)) = open.pop() {
        if dir.join(LOG_FILE).is_file() {
            found.push(dir.clone());
        }
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        for entry in entries.filter(|_| depth < DEPTH) {
            let name = entry.file_name();
            // What is hidden is nobody's run; a link could lead in a circle.
            let visible = !name.to_string_lossy().starts_with('.');
            if visible && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push((clean(&dir).join(name), depth + 1));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// `./x` as `x`.
fn clean(dir: &Path) -> &Path {
    if dir == Path::new(".") { Path::new("") } else { dir }
}

impl Run {
    /// What the files in `dir` tell.
    pub(super) fn read(dir: &Path) -> Run {
        let mut run = Run { dir: dir.to_owned(), ..Run::default() };
        let path = dir.join(LOG_FILE);
        let small = fs::metadata(&path).is_ok_and(|meta| meta.len() <= LOG_BYTES);
        let log = if small { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        for line in String::from_utf8_lossy(&log).lines() {
            if let Ok(event) = serde_json::from_str::<Value>(line) {
                run.event(&event);
            }
        }
        if run.time == 0.0 {
            let written = fs::metadata(&path).and_then(|meta| meta.modified()).ok();
            let age = written.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            run.time = age.map_or(0.0, |age| age.as_secs_f64());
        }
        let manifest = fs::read(dir.join(MANIFEST_FILE)).unwrap_or_default();
        if let Ok(manifest) = serde_json::from_slice::<Value>(&manifest) {
            run.manifest(&manifest);
        }
        if run.status.is_empty() {
            let running = ::train::is_running(dir);
            run.status = if running { "running" } else { "stopped" }.to_owned();
        }
        run
    }

    fn event(&mut self, event: &Value) {
        let number = |key: &str| event[key].as_f64();
        let step = event["step"].as_u64();
        // A log goes on when a run is resumed.
        self.status.clear();
        match event["event"].as_str() {
            Some("plan") => {
                if self.time == 0.0 {
                    self.time = number("time").unwrap_or(0.0);
                }
                self.base = text(&event["base_name"]);
                self.settings = event["plan"].as_object().cloned().unwrap_or_default();
            }
            Some("start") => self.total_steps = event["total_steps"].as_u64(),
            Some("step") => {
                self.step = step.unwrap_or(self.step);
                self.train_loss = number("loss");
                self.total_steps = event["total_steps"].as_u64().or(self.total_steps);
                self.seconds = number("seconds").unwrap_or(self.seconds);
                self.tokens_per_second = number("tokens_per_second");
                self.curve.push(LossPoint {
                    step: self.step,
                    loss: self.train_loss,
                    held_out: None,
                });
            }
            Some("evaluation") => {
                let (step, loss) = (step.unwrap_or(0), number("loss"));
                if step == 0 {
                    self.held_out_before = loss;
                } else if let Some(loss) = loss {
                    self.best = Some(self.best.map_or(loss, |best| best.min(loss)));
                }
                self.held_out = loss;
                self.curve.push(LossPoint { step, loss: None, held_out: loss });
            }
            Some("guard") => self.guard(event),
            Some("end") => {
                self.step = step.unwrap_or(self.step);
                self.seconds = number("seconds").unwrap_or(self.seconds);
                self.status = text(&event["status"]);
            }
            _ => {}
        }
    }

    /// What a finished run says of itself counts more than what its log added up to.
    fn manifest(&mut self, manifest: &Value) {
        self.base = text(&manifest["base_name"]);
        self.status = text(&manifest["status"]);
        self.step = manifest["steps"].as_u64().unwrap_or(self.step);
        self.tokens = manifest["tokens"].as_u64().unwrap_or(0);
        self.seconds = manifest["seconds"].as_f64().unwrap_or(self.seconds);
        self.train_loss = manifest["train_loss"].as_f64().or(self.train_loss);
        for (field, key) in [
            (&mut self.held_out_before, "held_out_before"),
            (&mut self.held_out, "held_out"),
            (&mut self.best, "best"),
        ] {
            *field = manifest[key]["loss"].as_f64().or(*field);
        }
        self.guard(&manifest["guard"]);
        if self.tokens > 0 && self.seconds > 0.0 {
            self.tokens_per_second = Some(self.tokens as f64 / self.seconds);
        }
        if let Some(plan) = manifest["plan"].as_object() {
            self.settings = plan.clone();
        }
        for key in ["data_sha256", "base_sha256", "tokenizer_sha256", "chat_template_sha256"] {
            self.digests.insert(key.to_owned(), manifest[key].clone());
        }
    }

    fn guard(&mut self, found: &Value) {
        for (field, key) in [
            (&mut self.guard_before, "loss_before"),
            (&mut self.guard_after, "loss_after"),
            (&mut self.guard_kl, "kl"),
        ] {
            *field = found[key].as_f64().or(*field);
        }
    }

    /// A setting as text; empty when it is not known.
    pub(super) fn setting(&self, name: &str) -> String {
        self.settings.get(name).map_or(String::new(), shown)
    }

    /// The day and time it began, UTC.
    pub(super) fn date(&self) -> String {
        let time = OffsetDateTime::from_unix_timestamp(self.time as i64);
        let text = time.ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default();
        text.get(..16).unwrap_or_default().replace('T', " ")
    }

    pub(super) fn steps_shown(&self) -> String {
        match self.total_steps {
            Some(total) if total != self.step => format!("{}/{total}", self.step),
            _ => self.step.to_string(),
        }
    }

    /// `before -> after` on general text, where it was measured.
    pub(super) fn guard_shown(&self) -> String {
        match (self.guard_before, self.guard_after) {
            (Some(before), Some(after)) => format!("{before:.4} -> {after:.4}"),
            _ => String::new(),
        }
    }

    /// `before -> last (lowest)`, as far as it was measured.
    pub(super) fn held_out_shown(&self) -> String {
        let last = self.held_out.filter(|_| self.best.is_some());
        let ends: Vec<String> =
            [self.held_out_before, last].iter().flatten().map(|l| format!("{l:.4}")).collect();
        match (self.best, self.held_out) {
            (Some(best), Some(last)) if best < last => {
                format!("{} (lowest {best:.4})", ends.join(" -> "))
            }
            _ => ends.join(" -> "),
        }
    }
}

/// A JSON value for people: strings without quotes, lists with commas, fractions in five digits.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(n) if n.is_f64() => {
            let short = n.as_f64().and_then(|x| format!("{x:.4e}").parse::<f64>().ok());
            short.map_or_else(|| n.to_string(), |x| x.to_string())
        }
        Value::Array(list) => list.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
