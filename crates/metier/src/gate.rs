//! The verdict that an adapter carries: a small file in its folder, which the server may ask for.

use ::eval::{JudgedReport, Report, Verdict};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Name of the file in the adapter's folder.
pub(crate) const VERDICT_FILE: &str = "metier_verdict.json";
/// The file is a few hundred bytes.
const MOST_BYTES: u64 = 1 << 16;

/// `metier_verdict.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Carried {
    /// Version of this file's form.
    pub(crate) schema_version: u32,
    /// The decision.
    pub(crate) verdict: Verdict,
    /// The metric that decided, and the gain that had to be exceeded.
    pub(crate) metric: String,
    /// As a share.
    pub(crate) margin: f64,
    /// When.
    pub(crate) created: String,
    /// Digest of the adapter, as the server computes it.
    pub(crate) adapter_sha256: String,
    /// Digest of the base.
    pub(crate) base_sha256: String,
    /// Digest of the chat template.
    pub(crate) template_sha256: String,
    /// Digest of the test set's file; empty when it is a folder.
    pub(crate) test_sha256: String,
    /// Digest of `report.json`.
    pub(crate) report_sha256: String,
}

/// Puts what `report`, which lies at `path`, says of a judged adapter into its folder.
pub(crate) fn write(
    dir: &Path,
    report: &Report,
    JudgedReport { name: judged, verdict, .. }: &JudgedReport,
    path: &Path,
) -> Result<()> {
    let digest = |name: &str| report.files.get(name).map(|f| f.sha256.clone()).unwrap_or_default();
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    let carried = Carried {
        schema_version: 1,
        verdict: *verdict,
        metric: report.metric.clone(),
        margin: report.margin,
        created: report.created.clone(),
        adapter_sha256: digest(&format!("adapter of {judged}")),
        base_sha256: digest(&format!("base of {judged}")),
        template_sha256: digest(&format!("chat template of {judged}")),
        test_sha256: digest("test set"),
        report_sha256: model::sha256_hex(&text),
    };
    let json = serde_json::to_string_pretty(&carried)? + "\n";
    Ok(model::write_atomic(&dir.join(VERDICT_FILE), json.as_bytes())?)
}

/// What to do about an adapter that is not proven.
pub(crate) const HINT: &str = "hint: `metier prove` judges it and leaves its verdict in the folder";

/// Why the adapter in `dir` is not proven worth it with this base and template; None when it is. Users of
/// the server may read it: it names no folder.
pub(crate) fn missing(dir: &Path, adapter: &str, base: &str, template: &str) -> Option<String> {
    let carried = match read(dir) {
        Ok(carried) => carried,
        Err(reason) => return Some(reason),
    };
    let differs = [
        ("adapter", &carried.adapter_sha256, adapter),
        ("base", &carried.base_sha256, base),
        ("chat template", &carried.template_sha256, template),
    ];
    let other = differs.iter().find(|(_, was, is)| was != is).map(|(what, _, _)| what);
    match (other, carried.verdict) {
        (Some(what), _) => Some(format!("its verdict is about another {what}")),
        (None, Verdict::WorthIt) => None,
        (None, verdict) => {
            Some(format!("its verdict of {} is \"{}\"", carried.created, verdict.title()))
        }
    }
}

fn read(dir: &Path) -> Result<Carried, String> {
    let Ok(file) = File::open(dir.join(VERDICT_FILE)) else {
        return Err(format!("it carries no verdict ({VERDICT_FILE})"));
    };
    let mut text = Vec::new();
    file.take(MOST_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|error| format!("its {VERDICT_FILE} cannot be read: {error}"))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(format!("its {VERDICT_FILE} has more than {MOST_BYTES} bytes"));
    }
    serde_json::from_slice(&text)
        .map_err(|error| format!("its {VERDICT_FILE} is not a verdict: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(verdict: Verdict) -> Carried {
        Carried {
            schema_version: 1,
            verdict,
            metric: "exact_match".into(),
            margin: 0.0,
            created: "2026-11-27".into(),
            adapter_sha256: "a".into(),
            base_sha256: "b".into(),
            template_sha256: "t".into(),
            test_sha256: "x".into(),
            report_sha256: "r".into(),
        }
    }

    #[test]
    fn only_a_verdict_about_this_adapter_base_and_template_counts() {
        let dir = tempfile::tempdir().unwrap();
        let missing = |a: &str, b: &str, t: &str| missing(dir.path(), a, b, t);
        assert!(missing("a", "b", "t").unwrap().contains("carries no verdict"));
        let put = |text: String| std::fs::write(dir.path().join(VERDICT_FILE), text).unwrap();
        put(serde_json::to_string(&carried(Verdict::WorthIt)).unwrap());
        assert_eq!(missing("a", "b", "t"), None);
        assert!(missing("z", "b", "t").unwrap().contains("another adapter"));
        assert!(missing("a", "z", "t").unwrap().contains("another base"));
        assert!(missing("a", "b", "z").unwrap().contains("another chat template"));
        put(serde_json::to_string(&carried(Verdict::NotProven)).unwrap());
        assert!(missing("a", "b", "t").unwrap().contains("Not proven"));
        put("{}".to_owned());
        assert!(missing("a", "b", "t").unwrap().contains("not a verdict"));
        put(" ".repeat(MOST_BYTES as usize + 1));
        assert!(missing("a", "b", "t").unwrap().contains("more than"));
    }
}
