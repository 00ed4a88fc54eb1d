//! The metrics: one file each, two tables.
//!
//! A metric turns what a candidate said to an example into a number. A new one is a new file with a
//! [`Metric`] and a line in [`METRICS`], or, where it takes a parameter, with a [`Family`] and a line
//! in [`FAMILIES`]; the tests below then check it, with the worked examples it brings.
//!
//! Metrics that say something only of all answers together, such as BLEU, bring a [`Corpus`] beside
//! the score of each example.

mod acc;
mod acc_bytes;
mod acc_norm;
mod accuracy;
mod bits_per_byte;
mod bleu;
mod brier;
mod byte_perplexity;
mod chrf;
mod command;
mod corpus;
mod ece;
mod edit_similarity;
mod embedding_similarity;
mod exact_match;
mod json;
mod json_exact;
mod json_field_accuracy;
mod json_schema;
mod json_valid;
mod latency;
mod likelihood;
mod mt13a;
mod named;
mod numeric_match;
mod perplexity;
mod python;
mod refusal;
mod regex_match;
mod rouge;
mod rouge1;
mod rouge2;
mod rouge_l;
mod rubric;
mod set_f1;
mod ter;
mod token_f1;
mod tokens;
mod word_perplexity;

use crate::candidate::Answer;
use crate::item::EvalItem;
use std::fmt;

pub(crate) use command::runs_a_program;
pub(crate) use corpus::sum as sum_of_parts;
pub use corpus::{Corpus, CorpusDifference, Parts};
pub(crate) use embedding_similarity::similarities;
pub use embedding_similarity::{EmbedTexts, Embedded};
pub(crate) use named::known;
pub use named::metrics_by_name;
pub(crate) use python::{is_space as python_is_space, strip as python_strip};
pub use rubric::RUBRIC;

/// Every metric that needs no parameter.
pub static METRICS: &[&Metric] = &[
    &exact_match::METRIC,
    &token_f1::METRIC,
    &json_valid::METRIC,
    &json_field_accuracy::METRIC,
    &json_exact::METRIC,
    &numeric_match::METRIC,
    &set_f1::METRIC,
    &edit_similarity::METRIC,
    &embedding_similarity::METRIC,
    &rubric::METRIC,
    &rouge1::METRIC,
    &rouge2::METRIC,
    &rouge_l::METRIC,
    &bleu::METRIC,
    &chrf::METRIC,
    &ter::METRIC,
    &acc::METRIC,
    &acc_norm::METRIC,
    &acc_bytes::METRIC,
    &brier::METRIC,
    &ece::METRIC,
    &perplexity::METRIC,
    &word_perplexity::METRIC,
    &byte_perplexity::METRIC,
    &bits_per_byte::METRIC,
    &refusal::METRIC,
    &latency::METRIC,
    &tokens::PROMPT,
    &tokens::ANSWER,
];

/// Every metric with a parameter, written `name:parameter`.
pub static FAMILIES: &[&Family] = &[
    &exact_match::FAMILY,
    &numeric_match::FAMILY,
    &regex_match::FAMILY,
    &json_schema::FAMILY,
    &command::FAMILY,
];

/// How an answer is scored.
pub struct Metric {
    /// Name in commands, configuration and JSON; with its parameter, where it has one.
    pub name: &'static str,
    /// What it measures, one sentence for the reader of a report.
    pub what: &'static str,
    /// Completes "the model gets 87.3 % ...", or "... 12.4" where scores are no shares.
    pub reads_as: &'static str,
    /// Which scores occur, and so which statistics suit them.
    pub scale: Scale,
    /// Which of two scores is the better one.
    pub better: Better,
    /// The score of one example.
    pub score: Score,
    /// The value of all examples together, where it is not the mean of their scores.
    pub corpus: Option<Corpus>,
    /// Whether a reference can be scored against; the reason when not. Called before any candidate
    /// is asked, so that a broken test set costs no run.
    pub check_reference: fn(&str) -> Result<(), String>,
    /// Scores of the parts of (answer, reference), when it has parts.
    pub fields: Option<fn(&str, &str) -> Vec<FieldScore>>,
    /// Worked examples (answer, reference, score): documentation and test at once.
    pub examples: &'static [(&'static str, &'static str, f64)],
}

/// What a score is made of.
#[derive(Clone, Copy)]
pub enum Score {
    /// The score of (answer, reference). Never panics; any text is an answer.
    Text(&'static (dyn Fn(&str, &str) -> f64 + Send + Sync)),
    /// The score of all that is known of an example and its answer; the reason when what it needs
    /// is not known.
    Item(&'static (dyn Fn(&EvalItem, &Answer) -> Result<f64, String> + Send + Sync)),
}

/// Which of two scores is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The higher one.
    Higher,
    /// The lower one. Such a metric cannot decide a verdict.
    Lower,
}

/// Metrics of one kind that a parameter tells apart.
pub struct Family {
    /// Name in front of the colon.
    pub name: &'static str,
    /// What stands behind the colon, for help texts.
    pub parameter: &'static str,
    /// What it measures, one sentence.
    pub what: &'static str,
    /// A parameter that it accepts, with worked examples as in [`Metric::examples`].
    pub example: &'static str,
    /// The metric of a parameter, but for its name; the reason when there is none.
    pub build: fn(&str) -> Result<Metric, String>,
}

impl Metric {
    /// What most metrics of texts have in common: scores in [0, 1], the higher the better, any
    /// reference suits, and the mean of the scores is the value.
    const GRADED: Metric = Metric {
        name: "",
        what: "",
        reads_as: "",
        scale: Scale::Graded,
        better: Better::Higher,
        score: Score::Text(&|_, _| 0.0),
        corpus: None,
        check_reference: any_reference,
        fields: None,
        examples: &[],
    };

    /// The same where only 0 and 1 occur.
    const BINARY: Metric = Metric { scale: Scale::Binary, ..Metric::GRADED };

    /// The same for numbers of any size, of which less is better.
    const LESS_OF: Metric =
        Metric { scale: Scale::Unbounded, better: Better::Lower, ..Metric::GRADED };

    /// The score of an answer. One that failed gets the worst score that a text can get, 0 (1 where
    /// less is better), whatever its metric would say of an empty text.
    ///
    /// # Errors
    /// Why the answer cannot be scored: what the metric needs is not known of it.
    pub fn score(&self, item: &EvalItem, answer: &Answer) -> Result<f64, String> {
        match (self.score, &answer.error, self.better) {
            (Score::Item(score), ..) => score(item, answer),
            (Score::Text(_), Some(_), Better::Higher) => Ok(0.0),
            (Score::Text(_), Some(_), Better::Lower) => Ok(1.0),
            (Score::Text(score), None, _) => Ok(score(&answer.text, &item.reference)),
        }
    }
}

impl fmt::Debug for Metric {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Metric({})", self.name)
    }
}

/// Which scores a metric gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Only 0 and 1: Wilson interval, McNemar's test.
    Binary,
    /// Anything in [0, 1]: Student's t interval, sign-flip test.
    Graded,
    /// Any finite number: Student's t interval, and no verdict, whose margin is a share.
    Unbounded,
}

/// How one field of a structured answer compares with the reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldScore {
    /// Name of the field in the reference.
    pub field: String,
    /// Whether the answer has the same value there.
    pub right: bool,
}

/// For metrics that any reference suits.
fn any_reference(_: &str) -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use text::{Conversation, Message};

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

    const HOSTILE: &[&str] = &[
        "",
        " ",
        "\0",
        "{",
        "[[[[[[",
        "\"",
        "\u{202e}x",
        "null",
        "{\"a\":1}{",
        "1e999",
        "-",
        ",,;,",
    ];

    /// Every metric of texts: those without a parameter, and each family's example.
    fn of_texts() -> Vec<&'static Metric> {
        let named = FAMILIES.iter().map(|f| format!("{}:{}", f.name, f.example));
        let families = named.map(|name| metrics_by_name(&[name]).unwrap()[0]);
        let all = METRICS.iter().copied().chain(families);
        all.filter(|metric| matches!(metric.score, Score::Text(_))).collect()
    }

    fn score(metric: &Metric, answer: &str, reference: &str) -> f64 {
        metric.score(&item(reference), &said(answer)).unwrap()
    }

    fn item(reference: &str) -> EvalItem {
        let turns = vec![Message::new("user", "q"), Message::new("assistant", reference)];
        EvalItem::new("i".into(), Conversation::new(turns)).unwrap()
    }

    fn said(text: &str) -> Answer {
        Answer { text: text.to_owned(), ..Answer::default() }
    }

    #[test]
    fn worked_examples() {
        for metric in of_texts() {
            assert!(metric.examples.len() >= 5, "{} brings too few examples", metric.name);
            for &(answer, reference, expected) in metric.examples {
                let score = score(metric, answer, reference);
                let what = format!("{}: {answer:?} against {reference:?}", metric.name);
                assert!((score - expected).abs() < 1e-12, "{what}: {score}, expected {expected}");
                assert_eq!((metric.check_reference)(reference), Ok(()), "{what}");
            }
            let scores = metric.examples.iter().map(|e| e.2);
            assert!(scores.clone().any(|s| s == 0.0) && scores.clone().any(|s| s == 1.0));
        }
    }

    #[test]
    fn a_reference_is_the_best_answer_to_itself() {
        // Whether an answer is of a schema or pattern has nothing to do with the reference.
        let independent =
            |m: &&&Metric| ["json_schema:", "regex:"].iter().any(|f| m.name.starts_with(f));
        for metric in of_texts().iter().filter(|m| !independent(m)) {
            let best = if metric.better == Better::Higher { 1.0 } else { 0.0 };
            let suitable = REFERENCES.iter().filter(|r| (metric.check_reference)(r).is_ok());
            let mut tried = 0;
            for reference in suitable {
                let score = score(metric, reference, reference);
                assert!((score - best).abs() < 1e-12, "{} {reference} {score}", metric.name);
                tried += 1;
            }
            assert!(tried >= 3, "{} suits only {tried} references", metric.name);
        }
    }

    #[test]
    fn scores_and_fields_agree_and_stay_in_range() {
        for metric in of_texts() {
            for reference in REFERENCES {
                for answer in REFERENCES.iter().chain(HOSTILE) {
                    check_score(metric, answer, reference);
                }
            }
        }
    }

    #[test]
    fn a_failed_answer_gets_the_worst_score() {
        let failed = Answer::failed("no answer");
        for metric in of_texts() {
            let worst = if metric.better == Better::Higher { 0.0 } else { 1.0 };
            assert_eq!(metric.score(&item(""), &failed), Ok(worst), "{}", metric.name);
        }
    }

    #[test]
    fn the_value_of_one_answer_is_its_score() {
        for metric in of_texts() {
            let Some(corpus) = &metric.corpus else { continue };
            for reference in REFERENCES.iter().filter(|r| (metric.check_reference)(r).is_ok()) {
                for answer in REFERENCES.iter().filter(|a| a.split_whitespace().count() > 4) {
                    let parts = (corpus.parts)(&item(reference), &said(answer)).unwrap();
                    let value = (corpus.value)(&parts);
                    assert!((value - score(metric, answer, reference)).abs() < 1e-12);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer(answer in any::<String>(), reference in any::<String>()) {
            for metric in of_texts() {
                check_score(metric, &answer, &reference);
            }
        }
    }

    fn check_score(metric: &Metric, answer: &str, reference: &str) {
        let score = score(metric, answer, reference);
        let what = format!("{}: {answer:?} against {reference:?}: {score}", metric.name);
        match metric.scale {
            Scale::Binary => assert!(score == 0.0 || score == 1.0, "{what}"),
            Scale::Graded => assert!((0.0..=1.0 + 1e-12).contains(&score), "{what}"),
            Scale::Unbounded => assert!(score.is_finite() && score >= 0.0, "{what}"),
        }
        if let Some(fields) = metric.fields
            && (metric.check_reference)(reference).is_ok()
        {
            let fields = fields(answer, reference);
            if !fields.is_empty() {
                let right = fields.iter().filter(|f| f.right).count();
                let share = right as f64 / fields.len() as f64;
                assert!((share - score).abs() < 1e-12, "{what}");
            }
        }
    }
}
