//! `metier verify`: everything in a proof's folder computed again.

use super::files::{ITEMS, REPORT, answers_path, forms, hex};
use super::{ProofFacts, ProofFiles, prove};
use crate::candidate::RecordedCandidate;
use crate::error::EvalError;
use crate::item::EvalItem;
use crate::metrics::{Metric, metrics_by_name, runs_a_program};
use crate::report::{FileDigest, Report};
use crate::run::{CandidateResult, EvalResult, evaluate};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// What was found right.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verified {
    /// The report.
    pub report: Option<Report>,
    /// Files whose bytes are those that the report names.
    pub files: Vec<String>,
    /// Files from elsewhere that are not here, so that nothing can be said of them.
    pub absent: Vec<String>,
    /// Numbers that were computed again and came out the same.
    pub numbers: usize,
    /// Metrics whose scores were taken as recorded, since their programs were not run.
    pub not_recomputed: Vec<String>,
}

/// A report whose seal fits, with what became of the files that it names.
#[derive(Clone, Debug, PartialEq)]
pub struct Sealed {
    /// The report.
    pub report: Report,
    /// Files whose bytes are those that the report names.
    pub files: Vec<String>,
    /// Files from elsewhere that are not here.
    pub absent: Vec<String>,
    /// Files from elsewhere that are others by now, each with its path and what differs.
    pub changed: Vec<(PathBuf, String)>,
}

/// Reads a report and checks its seal and the digests of all files that it names. Files in the proof's own
/// folder must be as they were; what lies elsewhere may have changed since, which is told.
///
/// # Errors
/// [`EvalError::Broken`] naming the file, and what in it is not as it was; [`EvalError::Io`].
pub fn read_sealed(report_path: &Path) -> Result<Sealed, EvalError> {
    let dir = report_path.parent().unwrap_or(Path::new("")).to_owned();
    let report = read_report(report_path)?;
    let (mut files, mut absent, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for (name, digest) in &report.files {
        let Some(place) = &digest.path else {
            absent.push(name.clone());
            continue;
        };
        let path = dir.join(place);
        let inside = Path::new(place).components().all(|c| matches!(c, Component::Normal(_)));
        match difference(&path, name, digest)? {
            Some(Difference::Missing) if inside => return Err(broken(&path, "it is missing")),
            Some(Difference::Missing) => absent.push(name.clone()),
            Some(Difference::Other(reason)) if inside => return Err(broken(&path, reason)),
            Some(Difference::Other(reason)) => changed.push((path, reason)),
            None => files.push(name.clone()),
        }
    }
    Ok(Sealed { report, files, absent, changed })
}

/// Checks a proof: the seal of `report.json`, the digests of all files it names, every number from the
/// recorded answers, and the report's other forms. Metrics that are programs of the user's own (`command:`)
/// are run only where `run_commands` says so, since a report may come from anybody; otherwise their
/// recorded scores are taken as they are.
///
/// # Errors
/// [`EvalError::Broken`] naming the file, and what in it is not as it was; [`EvalError::Io`].
pub fn verify(report_path: &Path, run_commands: bool) -> Result<Verified, EvalError> {
    let dir = report_path.parent().unwrap_or(Path::new("")).to_owned();
    let Sealed { report, files, absent, changed } = read_sealed(report_path)?;
    if let Some((path, reason)) = changed.into_iter().next() {
        return Err(broken(&path, reason));
    }
    let mut verified = Verified { files, absent, ..Verified::default() };
    let plan = report.plan.as_ref().ok_or_else(|| broken(report_path, "it holds no plan"))?;
    let metrics = metrics_by_name(&plan.metrics)?;
    let kept = |metric: &Metric| !run_commands && runs_a_program(metric);
    let named = metrics.iter().filter(|metric| kept(metric)).map(|metric| metric.name.to_owned());
    verified.not_recomputed = named.collect();
    let result = read_result(&dir, report_path, &report, &metrics, &kept)?;
    let again = prove(plan, ProofFacts::of(&report), &result)?;
    let again = Report { seal: report.seal.clone(), ..again };
    let (was, is) = (to_value(&report, report_path)?, to_value(&again, report_path)?);
    if let Some((place, was, is)) = first_difference(&was, &is, String::new()) {
        let reason = format!("{place} is {was}; computed again from the answers it is {is}");
        return Err(broken(report_path, reason));
    }
    verified.numbers = count_numbers(&is);
    check_forms(&dir, &report)?;
    verified.files.push(REPORT.to_owned());
    verified.files.extend(forms(&report)?.iter().map(|(name, _)| (*name).to_owned()));
    verified.report = Some(report);
    Ok(verified)
}

/// A report whose seal fits.
pub(crate) fn read_report(path: &Path) -> Result<Report, EvalError> {
    let text = read_text(path)?;
    let report: Report = serde_json::from_str(&text)
        .map_err(|error| broken(path, format!("it is no report: {error}")))?;
    check_seal(path, &report, &text)?;
    Ok(report)
}

/// A file of the proof's own folder, which the report must name and whose bytes must be as it says.
pub(super) fn read_own(
    report_path: &Path,
    report: &Report,
    name: &str,
) -> Result<String, EvalError> {
    let dir = report_path.parent().unwrap_or(Path::new(""));
    let Some(digest) = report.files.get(name) else {
        return Err(broken(report_path, format!("it does not name {name}")));
    };
    let path = dir.join(name);
    match difference(&path, name, digest)? {
        Some(Difference::Missing) => Err(broken(&path, "it is missing")),
        Some(Difference::Other(reason)) => Err(broken(&path, reason)),
        None => read_text(&path),
    }
}

pub(super) fn broken(path: &Path, reason: impl Into<String>) -> EvalError {
    EvalError::Broken { path: path.to_owned(), reason: reason.into() }
}

fn read_text(path: &Path) -> Result<String, EvalError> {
    let bytes = std::fs::read(path).map_err(|source| EvalError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    String::from_utf8(bytes).map_err(|_| broken(path, "it is not UTF-8"))
}

fn check_seal(path: &Path, report: &Report, text: &str) -> Result<(), EvalError> {
    if report.seal.is_empty() {
        return Err(broken(
            path,
            "it has no seal; only `metier prove` writes reports that can be verified",
        ));
    }
    let sealed = report.sealed()?;
    if sealed == text {
        return Ok(());
    }
    let place = sealed.bytes().zip(text.bytes()).position(|(a, b)| a != b).unwrap_or(sealed.len());
    let line = text.bytes().take(place).filter(|&b| b == b'\n').count() + 1;
    Err(broken(
        path,
        format!("its seal does not fit; it was changed, at line {line} or in what its seal covers"),
    ))
}

/// How a file differs from what the report says of it.
enum Difference {
    Missing,
    Other(String),
}

fn difference(
    path: &Path,
    name: &str,
    digest: &FileDigest,
) -> Result<Option<Difference>, EvalError> {
    let Ok(meta) = std::fs::metadata(path) else { return Ok(Some(Difference::Missing)) };
    if !meta.is_file() || meta.len() != digest.bytes {
        let reason = format!("{name} has {} bytes; the report names {}", meta.len(), digest.bytes);
        return Ok(Some(Difference::Other(reason)));
    }
    if digest_of(path)? != digest.sha256 {
        let reason = "its SHA-256 is not the one that the report names".to_owned();
        return Ok(Some(Difference::Other(reason)));
    }
    Ok(None)
}

fn digest_of(path: &Path) -> Result<String, EvalError> {
    let io = |source| EvalError::Io { action: "read", path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(io)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Examples and answers as they were recorded, scored again but for the metrics that are `kept`.
fn read_result(
    dir: &Path,
    report_path: &Path,
    report: &Report,
    metrics: &[&'static Metric],
    kept: &dyn Fn(&Metric) -> bool,
) -> Result<EvalResult, EvalError> {
    let path = dir.join(ITEMS);
    let items = parse_items(&read_text(&path)?, &path)?;
    let mut scored: Vec<&'static Metric> = metrics.iter().copied().filter(|m| !kept(m)).collect();
    if scored.is_empty() {
        // Something must be scored to read the answers; nobody looks at it.
        scored = metrics_by_name(&["exact_match"])?;
    }
    let mut candidates = Vec::new();
    for (place, candidate) in report.candidates.iter().enumerate() {
        let empty = CandidateResult {
            name: candidate.name.clone(),
            kind: candidate.kind.clone(),
            answers: Vec::new(),
            scores: Vec::new(),
            clusters: Vec::new(),
            seconds: candidate.seconds,
        };
        let path = answers_path(place, &empty);
        if !report.files.contains_key(ITEMS) || !report.files.contains_key(&path) {
            return Err(broken(report_path, format!("it does not name {ITEMS} and {path}")));
        }
        let path = dir.join(&path);
        let recorded = RecordedCandidate::read(&candidate.name, &path)?;
        let again =
            evaluate(&mut [Box::new(recorded)], items.clone(), scored.clone(), &mut |_| ())?;
        let Some(again) = again.candidates.into_iter().next() else { continue };
        let mut computed = again.scores.into_iter();
        let scores = metrics.iter().map(|metric| match kept(metric) {
            true => recorded_scores(&path, metric, &items),
            false => Ok(computed.next().unwrap_or_default()),
        });
        let scores = scores.collect::<Result<_, _>>()?;
        let seconds = candidate.seconds;
        candidates.push(CandidateResult { scores, seconds, kind: empty.kind, ..again });
    }
    let result = EvalResult { items, metrics: metrics.to_vec(), candidates };
    // The scores in the files are those that the answers get now.
    let files = ProofFiles::of(&result);
    for (place, candidate) in result.candidates.iter().enumerate() {
        let path = answers_path(place, candidate);
        let (was, is) = (read_text(&dir.join(&path))?, files.text(&path).unwrap_or_default());
        if was != is {
            let line = was.lines().zip(is.lines()).position(|(a, b)| a != b).unwrap_or(0) + 1;
            let reason =
                format!("line {line} is not what its answer gives when it is scored again");
            return Err(broken(&dir.join(&path), reason));
        }
    }
    Ok(result)
}

/// The scores of a metric as they are in a file of answers.
fn recorded_scores(
    path: &Path,
    metric: &Metric,
    items: &[EvalItem],
) -> Result<Vec<f64>, EvalError> {
    #[derive(Deserialize)]
    struct Line {
        scores: HashMap<String, f64>,
    }
    let text = read_text(path)?;
    let score = |(index, line): (usize, &str)| {
        let found = serde_json::from_str::<Line>(line).ok();
        let score = found.and_then(|line| line.scores.get(metric.name).copied());
        score.filter(|score| (0.0..=1.0).contains(score)).ok_or_else(|| {
            let reason = format!("line {} has no score from 0 to 1 by {}", index + 1, metric.name);
            broken(path, reason)
        })
    };
    let scores = text.lines().enumerate().map(score).collect::<Result<Vec<f64>, _>>()?;
    match scores.len() == items.len() {
        true => Ok(scores),
        false => {
            let reason = format!("found {} answers, expected {}", scores.len(), items.len());
            Err(broken(path, reason))
        }
    }
}

/// The examples in the text of a proof's file of them.
pub(super) fn parse_items(text: &str, path: &Path) -> Result<Vec<EvalItem>, EvalError> {
    let item = |(index, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|error| broken(path, format!("line {}: {error}", index + 1)))
    };
    text.lines().enumerate().map(item).collect()
}

fn check_forms(dir: &Path, report: &Report) -> Result<(), EvalError> {
    for (name, expected) in forms(report)? {
        let path = dir.join(name);
        let found = std::fs::read(&path).map_err(|source| EvalError::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        if found != expected.as_bytes() {
            let place = found.iter().zip(expected.as_bytes()).position(|(a, b)| a != b);
            let line = found.iter().take(place.unwrap_or(0)).filter(|&&b| b == b'\n').count() + 1;
            return Err(broken(
                &path,
                format!("from line {line} on it does not say what report.json says"),
            ));
        }
    }
    Ok(())
}

fn to_value(report: &Report, path: &Path) -> Result<Value, EvalError> {
    serde_json::to_value(report).map_err(|error| broken(path, error.to_string()))
}

/// The first place where two values differ, with both.
fn first_difference(was: &Value, is: &Value, place: String) -> Option<(String, String, String)> {
    let at =
        |step: &str| if place.is_empty() { step.to_owned() } else { format!("{place}.{step}") };
    match (was, is) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            a.iter().find_map(|(key, value)| first_difference(value, &b[key], at(key)))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(i, (a, b))| first_difference(a, b, at(&i.to_string()))),
        _ if was == is => None,
        _ => {
            let short = |value: &Value| value.to_string().chars().take(80).collect::<String>();
            Some((place, short(was), short(is)))
        }
    }
}

fn count_numbers(value: &Value) -> usize {
    match value {
        Value::Number(_) => 1,
        Value::Array(values) => values.iter().map(count_numbers).sum(),
        Value::Object(fields) => fields.values().map(count_numbers).sum(),
        _ => 0,
    }
}
