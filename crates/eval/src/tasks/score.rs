//! From answers to values with standard errors, by the rules of lm-evaluation-harness.

use super::filters::{Pipeline, pipelines};
use super::prompt::Ask;
use super::python_random::PythonRandom;
use super::task_file::{MetricEntry, OutputType, TaskFile};
use super::{TaskError, TaskSample, TaskValue};
use crate::candidate::Answer;
use crate::item::EvalItem;
use crate::metrics::{Corpus, Metric, metrics_by_name};
use crate::stats::{mean, variance};
use indexmap::IndexMap;
use regex::Regex;
use serde_json::{Value, json};
use text::{Conversation, Message};

/// Resamples of a bootstrap; the slow metrics get fewer.
const RESAMPLES: usize = 100_000;
const SLOW_RESAMPLES: usize = 100;
/// Resamples of one start of the random numbers: chunk i starts from the seed i.
const CHUNK: usize = 1000;

/// How the scores of a metric become its value.
enum Scorer {
    /// The mean of what a metric of the table says of each document; whether it has a standard error.
    Mean(&'static Metric, bool),
    /// What it says of all of them; `scale` makes it the harness's unit.
    Whole { corpus: &'static Corpus, scale: f64, resamples: Option<usize> },
    /// Whether the answer is one of the right ones, after what the entry takes off both.
    Exact(Exact),
    /// Whether the right choice is what the model would have said.
    Greedy,
}

/// Refuses what cannot be scored, before the model is asked anything.
pub(super) fn check(file: &TaskFile) -> Result<(), TaskError> {
    scorers(file)?;
    let generates = file.output == OutputType::GenerateUntil;
    let other = |step: &serde_json::Map<String, Value>| step["function"] != "take_first";
    if !generates && file.filters.iter().any(|(_, steps)| steps.iter().any(other)) {
        let reason = "found a filter of texts at a task of log-likelihoods; expected take_first";
        return Err(TaskError::at(&file.path, "filter_list", reason.into()));
    }
    pipelines(file).map(|_| ())
}

/// Values by metric and filter, and every document with its scores.
pub(super) fn score(
    file: &TaskFile,
    asks: &[(Value, Ask)],
    answers: &[Answer],
) -> Result<(IndexMap<String, TaskValue>, Vec<TaskSample>), TaskError> {
    let scorers = scorers(file)?;
    let (mut values, mut samples) = (IndexMap::new(), Vec::new());
    for pipeline in pipelines(file)? {
        let filtered: Vec<Answer> =
            answers.iter().map(|answer| filter(&pipeline, answer)).collect();
        let mut scores: Vec<IndexMap<String, f64>> = vec![IndexMap::new(); asks.len()];
        for (name, scorer) in &scorers {
            let rows = asks.iter().zip(&filtered).enumerate();
            let of_each: Result<Vec<Vec<f64>>, TaskError> = rows
                .map(|(row, ((_, ask), answer))| {
                    parts(scorer, row, ask, answer).map_err(|reason| TaskError::Row {
                        path: file.path.clone(),
                        row,
                        reason,
                    })
                })
                .collect();
            let of_each = of_each?;
            for (row, parts) in of_each.iter().enumerate() {
                scores[row].insert(name.clone(), value_of(scorer, parts));
            }
            values.insert(format!("{name},{}", pipeline.name), value(scorer, &of_each));
        }
        for (row, scores) in scores.into_iter().enumerate() {
            let ((doc, ask), answer) = (&asks[row], &answers[row]);
            samples.push(TaskSample {
                doc_id: row,
                doc: doc.clone(),
                target: ask.target(),
                arguments: ask.arguments(),
                resps: responses(answer),
                filtered_resps: responses(&filtered[row]),
                filter: pipeline.name.clone(),
                scores,
            });
        }
    }
    Ok((values, samples))
}

fn scorers(file: &TaskFile) -> Result<Vec<(String, Scorer)>, TaskError> {
    let scorer = |entry: &MetricEntry| {
        let generates = file.output == OutputType::GenerateUntil;
        let scorer = match entry.name.as_str() {
            "exact_match" if generates => Scorer::Exact(Exact::new(entry).map_err(|reason| {
                TaskError::at(&file.path, "metric_list", format!("exact_match: {reason}"))
            })?),
            "exact_match" => Scorer::Greedy,
            name => {
                let metric = metrics_by_name(&[name])
                    .map_err(|e| TaskError::at(&file.path, "metric_list", e.to_string()))?[0];
                match &metric.corpus {
                    // The harness bootstraps some values and knows no error of this one.
                    None => Scorer::Mean(metric, name != "brier_score"),
                    Some(corpus) => Scorer::Whole {
                        corpus,
                        scale: if generates { 100.0 } else { 1.0 },
                        resamples: match name {
                            "perplexity" => Some(RESAMPLES),
                            _ if generates => Some(SLOW_RESAMPLES),
                            _ => None,
                        },
                    },
                }
            }
        };
        Ok((entry.name.clone(), scorer))
    };
    file.metrics.iter().map(scorer).collect()
}

fn filter(pipeline: &Pipeline, answer: &Answer) -> Answer {
    Answer { text: pipeline.apply(&answer.text), ..answer.clone() }
}

/// The numbers of one document that its metric's value is made of.
fn parts(scorer: &Scorer, row: usize, ask: &Ask, answer: &Answer) -> Result<Vec<f64>, String> {
    match scorer {
        Scorer::Mean(metric, _) => Ok(vec![metric.score(&ask.item(row)?, answer)?]),
        Scorer::Whole { corpus, .. } => match &answer.error {
            Some(reason) if !matches!(ask, Ask::Generate { .. }) => Err(reason.clone()),
            _ => (corpus.parts)(&ask.item(row)?, answer),
        },
        Scorer::Exact(exact) => {
            let Ask::Generate { targets, .. } = ask else { return Ok(vec![0.0]) };
            let right =
                answer.error.is_none() && targets.iter().any(|t| exact.same(&answer.text, t));
            Ok(vec![f64::from(right)])
        }
        Scorer::Greedy => {
            let Ask::Choices { gold, .. } = ask else { return Ok(vec![0.0]) };
            let right = answer.likelihoods.get(*gold).is_some_and(|likelihood| likelihood.greedy);
            Ok(vec![f64::from(right)])
        }
    }
}

fn value_of(scorer: &Scorer, parts: &[f64]) -> f64 {
    match scorer {
        Scorer::Whole { corpus, scale, .. } => scale * (corpus.value)(parts),
        _ => parts[0],
    }
}

/// The value of all documents, with its standard error.
fn value(scorer: &Scorer, parts: &[Vec<f64>]) -> TaskValue {
    let n = parts.len();
    let Scorer::Whole { corpus, scale, resamples } = scorer else {
        let scores: Vec<f64> = parts.iter().map(|parts| parts[0]).collect();
        let known = n > 1 && !matches!(scorer, Scorer::Mean(_, false));
        let stderr = known.then(|| (variance(&scores) / n as f64).sqrt());
        return TaskValue { value: mean(&scores), stderr };
    };
    let of = |places: &mut dyn Iterator<Item = usize>| {
        let mut sums = vec![0.0; parts[0].len()];
        for place in places {
            sums.iter_mut().zip(&parts[place]).for_each(|(sum, part)| *sum += part);
        }
        scale * (corpus.value)(&sums)
    };
    let stderr = resamples.filter(|_| n > 1).map(|resamples| {
        let chunk = CHUNK.min(resamples);
        let replicates: Vec<f64> = (0..resamples / chunk)
            .flat_map(|seed| {
                let mut random = PythonRandom::new(seed as u32);
                (0..chunk).map(|_| of(&mut (0..n).map(|_| random.choice(n)))).collect::<Vec<_>>()
            })
            .collect();
        variance(&replicates).sqrt()
    });
    TaskValue { value: of(&mut (0..n)), stderr }
}

/// Equality of texts after what a task takes off both.
struct Exact {
    ignored: Vec<Regex>,
    case: bool,
    punctuation: bool,
    numbers: bool,
}

impl Exact {
    fn new(entry: &MetricEntry) -> Result<Exact, String> {
        let flag = |key: &str| match entry.options.get(key) {
            None => Ok(false),
            Some(Value::Bool(yes)) => Ok(*yes),
            Some(other) => Err(format!("{key}: found {other}; expected true or false")),
        };
        let patterns: Vec<String> = match entry.options.get("regexes_to_ignore") {
            None | Some(Value::Null) => Vec::new(),
            Some(list) => serde_json::from_value(list.clone())
                .map_err(|error| format!("regexes_to_ignore: {error}"))?,
        };
        let compile = |pattern: &String| {
            Regex::new(pattern).map_err(|error| format!("regexes_to_ignore: {error}"))
        };
        Ok(Exact {
            ignored: patterns.iter().map(compile).collect::<Result<_, _>>()?,
            case: flag("ignore_case")?,
            punctuation: flag("ignore_punctuation")?,
            numbers: flag("ignore_numbers")?,
        })
    }

    fn same(&self, answer: &str, target: &str) -> bool {
        self.normalised(answer) == self.normalised(target)
    }

    fn normalised(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for pattern in &self.ignored {
            text = pattern.replace_all(&text, "").into_owned();
        }
        if self.case {
            text = text.to_lowercase();
        }
        text.retain(|c| {
            !(self.punctuation && c.is_ascii_punctuation() || self.numbers && c.is_ascii_digit())
        });
        text
    }
}

fn responses(answer: &Answer) -> Value {
    if let Some(reason) = &answer.error {
        return json!({ "error": reason });
    }
    match &answer.likelihoods[..] {
        [] => json!([answer.text]),
        several => several.iter().map(|l| json!([l.sum, l.greedy])).collect(),
    }
}

impl Ask {
    /// The document as the metrics see it.
    fn item(&self, row: usize) -> Result<EvalItem, String> {
        let (context, reference, choices, gold) = match self {
            Ask::Choices { pairs, choices, gold } => {
                let context = pairs.first().map_or("", |pair| &pair.0);
                (context, choices[*gold].clone(), choices.clone(), Some(*gold))
            }
            Ask::Weigh { context, target } => (&**context, target.clone(), Vec::new(), None),
            Ask::Roll { text } => ("", text.clone(), Vec::new(), None),
            Ask::Generate { context, targets } => match &targets[..] {
                [one] => (&**context, one.clone(), Vec::new(), None),
                several => {
                    return Err(format!(
                        "found {} right answers; expected one, except for exact_match",
                        several.len()
                    ));
                }
            },
        };
        let conversation = Conversation::new(vec![Message::new("user", context)]);
        Ok(EvalItem { id: row.to_string(), conversation, reference, choices, gold })
    }

    fn target(&self) -> Value {
        match self {
            Ask::Choices { gold, .. } => json!(gold),
            Ask::Weigh { target, .. } => json!(target),
            Ask::Roll { text } => json!(text),
            Ask::Generate { targets, .. } => match &targets[..] {
                [one] => json!(one),
                several => json!(several),
            },
        }
    }

    fn arguments(&self) -> Vec<Vec<String>> {
        match self {
            Ask::Generate { context, .. } => vec![vec![context.clone()]],
            Ask::Roll { text } => vec![vec![text.clone()]],
            Ask::Choices { .. } | Ask::Weigh { .. } => {
                self.pairs().into_iter().map(|(context, text)| vec![context, text]).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(options: Value) -> MetricEntry {
        MetricEntry { name: "exact_match".into(), options: options.as_object().unwrap().clone() }
    }

    #[test]
    fn exact_match_takes_off_what_its_entry_says() {
        for (options, answer, target, same) in [
            (json!({}), "a ", "a", false),
            (json!({"ignore_case": true}), "Éa", "éA", true),
            (json!({"ignore_punctuation": true}), "a.b!", "ab", true),
            (json!({"ignore_numbers": true}), "a1", "a", true),
            (json!({"regexes_to_ignore": [",", r"\$"]}), "$1,200", "1200", true),
        ] {
            let exact = Exact::new(&entry(options)).unwrap();
            assert_eq!(exact.same(answer, target), same, "{answer} {target}");
        }
        assert!(Exact::new(&entry(json!({"ignore_case": 1}))).is_err());
    }

    // statistics.stdev of what the harness's bootstrap_stderr makes of these items, on CPython (DISABLE_MULTIPROC=1, 2,000 resamples).
    #[test]
    fn bootstrapped_errors_are_those_of_the_harness() {
        let sums = [-1.5, -2.25, -0.5, -7.0, -3.0];
        let parts: Vec<Vec<f64>> = sums.iter().map(|sum| vec![*sum, 1.0]).collect();
        let metric = metrics_by_name(&["perplexity"]).unwrap()[0];
        let corpus = metric.corpus.as_ref().unwrap();
        let scorer = Scorer::Whole { corpus, scale: 1.0, resamples: Some(2000) };
        let found = value(&scorer, &parts);
        assert!((found.value - PERPLEXITY).abs() < 1e-9, "{found:?}");
        assert!((found.stderr.unwrap() - PERPLEXITY_STDERR).abs() < 1e-9, "{found:?}");
    }

    const PERPLEXITY: f64 = 17.28778184056764;
    const PERPLEXITY_STDERR: f64 = 49.275008549097514;
}
