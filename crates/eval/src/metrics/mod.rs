//! The metrics: one file each, one table.
//!
//! A metric turns an answer and its reference into a score between 0 and 1. A new one is a new
//! file with a [`Metric`] and a line in [`METRICS`]; the tests below then check it, with the worked
//! examples it brings.

mod exact_match;
mod json;
mod json_exact;
mod json_field_accuracy;
mod json_valid;
mod token_f1;

use crate::error::EvalError;

/// Every metric there is.
pub static METRICS: &[&Metric] = &[
    &exact_match::METRIC,
    &token_f1::METRIC,
    &json_valid::METRIC,
    &json_field_accuracy::METRIC,
    &json_exact::METRIC,
];

/// How an answer is scored against its reference.
#[derive(Debug)]
pub struct Metric {
    /// Name in commands, configuration and JSON.
    pub name: &'static str,
    /// What it measures, one sentence for the reader of a report.
    pub what: &'static str,
    /// Completes "the model gets 87.3 % ...".
    pub reads_as: &'static str,
    /// Which scores occur, and so which statistics suit them.
    pub scale: Scale,
    /// Score in [0, 1] of (answer, reference). Never panics; any text is an answer.
    pub score: fn(&str, &str) -> f64,
    /// Whether a reference can be scored against; the reason when not. Called before any candidate
    /// is asked, so that a broken test set costs no run.
    pub check_reference: fn(&str) -> Result<(), String>,
    /// Scores of the parts of (answer, reference), when it has parts.
    pub fields: Option<fn(&str, &str) -> Vec<FieldScore>>,
    /// Worked examples (answer, reference, score): documentation and test at once.
    pub examples: &'static [(&'static str, &'static str, f64)],
}

/// Which scores a metric gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Only 0 and 1: Wilson interval, McNemar's test.
    Binary,
    /// Anything in [0, 1]: Student's t interval, sign-flip test.
    Graded,
}

/// How one field of a structured answer compares with the reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldScore {
    /// Name of the field in the reference.
    pub field: String,
    /// Whether the answer has the same value there.
    pub right: bool,
}

/// The metrics of these names, in this order; a name given twice counts once.
///
/// # Errors
/// [`EvalError::UnknownMetric`] with the nearest known name, [`EvalError::NoMetrics`] for no name.
pub fn metrics_by_name<S: AsRef<str>>(names: &[S]) -> Result<Vec<&'static Metric>, EvalError> {
    let mut found: Vec<&'static Metric> = Vec::new();
    for name in names {
        let name = name.as_ref().trim();
        let metric =
            METRICS.iter().copied().find(|m| m.name == name).ok_or_else(|| unknown(name))?;
        if !found.iter().any(|m| m.name == metric.name) {
            found.push(metric);
        }
    }
    if found.is_empty() {
        return Err(EvalError::NoMetrics { known: known() });
    }
    Ok(found)
}

fn unknown(name: &str) -> EvalError {
    let nearest = METRICS
        .iter()
        .map(|m| (strsim::jaro_winkler(name, m.name), m.name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|&(similarity, _)| similarity > 0.7);
    let hint = nearest.map(|(_, near)| format!(". hint: did you mean {near:?}?"));
    EvalError::UnknownMetric {
        found: name.to_owned(),
        known: known(),
        hint: hint.unwrap_or_default(),
    }
}

fn known() -> String {
    METRICS.iter().map(|m| m.name).collect::<Vec<_>>().join(", ")
}

/// For metrics that any reference suits.
fn any_reference(_: &str) -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// References of all sorts; each metric is tested with those that suit it.
    const REFERENCES: &[&str] = &[
        "",
        "Yes.",
        "  surrounded by space \n",
        "...",
        "Größe: 37,5 °C – l'eau",
        "{}",
        "[1, 2]",
        "12",
        r#"{"appliance": "washing machine", "urgent": true, "postcode": "75011", "callback": null}"#,
        r#"{"nested": {"a": [1, 2.0]}, "n": 1e2}"#,
    ];

    const HOSTILE: &[&str] =
        &["", " ", "\0", "{", "[[[[[[", "\"", "\u{202e}x", "null", "{\"a\":1}{"];

    #[test]
    fn worked_examples() {
        for metric in METRICS {
            assert!(metric.examples.len() >= 5, "{} brings too few examples", metric.name);
            for &(answer, reference, expected) in metric.examples {
                let score = (metric.score)(answer, reference);
                let what = format!("{}: {answer:?} against {reference:?}", metric.name);
                assert!((score - expected).abs() < 1e-12, "{what}: {score}, expected {expected}");
                assert_eq!((metric.check_reference)(reference), Ok(()), "{what}");
            }
            let scores = metric.examples.iter().map(|e| e.2);
            assert!(scores.clone().any(|s| s == 0.0) && scores.clone().any(|s| s == 1.0));
        }
    }

    #[test]
    fn a_reference_scores_1_against_itself() {
        for metric in METRICS {
            let suitable = REFERENCES.iter().filter(|r| (metric.check_reference)(r).is_ok());
            let mut tried = 0;
            for reference in suitable {
                assert_eq!(
                    (metric.score)(reference, reference),
                    1.0,
                    "{} {reference}",
                    metric.name
                );
                tried += 1;
            }
            assert!(tried >= 3, "{} suits only {tried} references", metric.name);
        }
    }

    #[test]
    fn scores_and_fields_agree_and_stay_in_range() {
        for metric in METRICS {
            for reference in REFERENCES {
                for answer in REFERENCES.iter().chain(HOSTILE) {
                    check_score(metric, answer, reference);
                }
            }
        }
    }

    #[test]
    fn names_are_unique_and_found() {
        let names: Vec<_> = METRICS.iter().map(|m| m.name).collect();
        let found: Vec<_> = metrics_by_name(&names).unwrap().iter().map(|m| m.name).collect();
        assert_eq!(found, names);
        assert_eq!(metrics_by_name(&["token_f1", " token_f1 "]).unwrap().len(), 1);
        assert!(matches!(metrics_by_name::<&str>(&[]), Err(EvalError::NoMetrics { .. })));
        let error = metrics_by_name(&["exact_macth"]).unwrap_err().to_string();
        assert!(error.contains("did you mean \"exact_match\""), "{error}");
        let error = metrics_by_name(&["zzz"]).unwrap_err().to_string();
        assert!(error.contains("token_f1") && !error.contains("did you mean"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer(answer in any::<String>(), reference in any::<String>()) {
            for metric in METRICS {
                check_score(metric, &answer, &reference);
            }
        }
    }

    fn check_score(metric: &Metric, answer: &str, reference: &str) {
        let score = (metric.score)(answer, reference);
        assert!((0.0..=1.0).contains(&score), "{}: {answer:?}: {score}", metric.name);
        if metric.scale == Scale::Binary {
            assert!(score == 0.0 || score == 1.0, "{}: {answer:?}: {score}", metric.name);
        }
        if let Some(fields) = metric.fields
            && (metric.check_reference)(reference).is_ok()
        {
            let fields = fields(answer, reference);
            if !fields.is_empty() {
                let right = fields.iter().filter(|f| f.right).count();
                let share = right as f64 / fields.len() as f64;
                assert!((share - score).abs() < 1e-12, "{}: {answer:?}", metric.name);
            }
        }
    }
}
