//! The evaluation itself: every candidate answers every example, every answer is scored.

use crate::candidate::{Answer, Candidate, Likelihood};
use crate::cost::{RequestTokens, Traffic};
use crate::error::EvalError;
use crate::files::write_atomic;
use crate::item::EvalItem;
use crate::metrics::{Corpus, CorpusDifference, METRICS, Metric, Scale, known, sum_of_parts};
use crate::stats::{
    CONFIDENCE, Interval, PairedDifference, PairedOptions, cluster_interval, clusters_of, mean,
    mean_interval_in, paired_difference_in, student_t,
};
use indexmap::IndexMap;
use serde::Serialize;
use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

/// All candidates' answers to the same examples, with their scores.
#[derive(Debug)]
pub struct EvalResult {
    /// The test examples.
    pub items: Vec<EvalItem>,
    /// The metrics, in the order asked for.
    pub metrics: Vec<&'static Metric>,
    /// The candidates, in the order asked.
    pub candidates: Vec<CandidateResult>,
}

/// One candidate's answers and their scores.
#[derive(Clone, Debug)]
pub struct CandidateResult {
    /// Its name.
    pub name: String,
    /// `local` or `recorded`.
    pub kind: String,
    /// One answer per example.
    pub answers: Vec<Answer>,
    /// Score of each example for each metric: `scores[metric][example]`, the mean over an answer and its
    /// repeats: the examples stay the unit of every statistic, since repeats of one are not new examples. In
    /// [0, 1], except where the metric's scale is [`Scale::Unbounded`].
    pub scores: Vec<Vec<f64>>,
    /// Number of each example's cluster, from [`EvalItem::group`]; empty when no two examples share a
    /// group. Statistics of the scores take clusters, not examples, for the independent unit.
    pub clusters: Vec<usize>,
    /// Wall time of answering, seconds.
    pub seconds: f64,
}

/// Resamples for values of all answers together: as many as sacrebleu takes for its bootstrap.
const CORPUS_OPTIONS: PairedOptions =
    PairedOptions { resamples: 1000, seed: 12_345, confidence: CONFIDENCE };

/// How far an evaluation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Name of the candidate at work.
    pub candidate: &'a str,
    /// Examples it has answered.
    pub done: usize,
    /// Examples in all.
    pub total: usize,
}

/// Asks every candidate every example, one candidate after the other, and scores the answers. The
/// test set is checked first, so that a broken one costs no run.
///
/// A failed answer stays in, with the score 0: leaving it out would flatter whoever fails.
///
/// # Errors
/// [`EvalError`] for an empty or ambiguous test set, a reference that a metric cannot use, two
/// candidates of one name, or a candidate that cannot answer at all.
pub fn evaluate(
    candidates: &mut [Box<dyn Candidate + '_>],
    items: Vec<EvalItem>,
    metrics: Vec<&'static Metric>,
    progress: &mut dyn FnMut(Progress),
) -> Result<EvalResult, EvalError> {
    check_items(&items, &metrics)?;
    check_names(candidates)?;
    let clusters = clusters_of(items.iter().map(|item| item.group.as_deref()));
    let mut results = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let started = Instant::now();
        let name = candidate.name().to_owned();
        let total = items.len();
        let mut report = |done| progress(Progress { candidate: &name, done, total });
        report(0);
        let answers = candidate.answer(&items, &mut report)?;
        let seconds = started.elapsed().as_secs_f64();
        if answers.len() != total {
            return Err(EvalError::AnswerCount { name, found: answers.len(), expected: total });
        }
        let scores = metrics.iter().map(|metric| score_all(metric, &name, &items, &answers));
        let scores = scores.collect::<Result<_, _>>()?;
        let kind = candidate.kind().to_owned();
        let clusters = clusters.clone();
        results.push(CandidateResult { name, kind, answers, scores, clusters, seconds });
    }
    Ok(EvalResult { items, metrics, candidates: results })
}

/// How much better candidate `b` is than candidate `a` by the metric at place `metric`.
///
/// # Errors
/// [`EvalError::Stats`] when the scores cannot be compared.
pub fn compare(
    a: &CandidateResult,
    b: &CandidateResult,
    metric: usize,
    options: &PairedOptions,
) -> Result<PairedDifference, EvalError> {
    Ok(paired_difference_in(a.scores_of(metric), b.scores_of(metric), &b.clusters, options)?)
}

/// A value of all answers and the numbers of each that it is made of.
type CorpusParts<'a> = (&'a Corpus, Vec<Vec<f64>>);

impl EvalResult {
    /// The candidate of this name.
    ///
    /// # Errors
    /// [`EvalError::UnknownCandidate`] naming those there are.
    pub fn candidate(&self, name: &str) -> Result<&CandidateResult, EvalError> {
        self.candidates.iter().find(|c| c.name == name).ok_or_else(|| EvalError::UnknownCandidate {
            found: name.to_owned(),
            known: self.candidates.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Place of a metric in [`EvalResult::metrics`].
    ///
    /// # Errors
    /// [`EvalError::UnknownMetric`] when it was not measured.
    pub fn metric(&self, name: &str) -> Result<usize, EvalError> {
        let known =
            |metrics: &[&Metric]| metrics.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
        self.metrics.iter().position(|m| m.name == name).ok_or_else(|| EvalError::UnknownMetric {
            found: name.to_owned(),
            known: known(&self.metrics),
            hint: if METRICS.iter().any(|m| m.name == name) {
                ". hint: name it among the metrics of the run".to_owned()
            } else {
                String::new()
            },
        })
    }

    /// Value of a candidate's answers for the metric at place `metric`, with its 95 % interval: the
    /// mean of the scores, or what the metric says of all answers together.
    ///
    /// # Errors
    /// [`EvalError::Stats`] when there are no scores; [`EvalError::NotScored`].
    pub fn summary(
        &self,
        candidate: &CandidateResult,
        metric: usize,
    ) -> Result<(f64, Interval), EvalError> {
        let Some((corpus, parts)) = self.corpus_parts(candidate, metric)? else {
            return candidate.summary(&self.metrics, metric);
        };
        if parts.is_empty() {
            return Err(EvalError::NoItems);
        }
        Ok(corpus.summary(&parts, &CORPUS_OPTIONS))
    }

    /// How much better `b` does than `a` by the metric at place `metric`, of all answers together;
    /// None when the metric is a mean of scores, which [`compare`] is for.
    ///
    /// # Errors
    /// [`EvalError::NotScored`]; [`EvalError::AnswerCount`] for a result of other examples.
    pub fn compare_corpus(
        &self,
        a: &CandidateResult,
        b: &CandidateResult,
        metric: usize,
    ) -> Result<Option<CorpusDifference>, EvalError> {
        let (Some((corpus, a)), Some((_, b))) =
            (self.corpus_parts(a, metric)?, self.corpus_parts(b, metric)?)
        else {
            return Ok(None);
        };
        Ok(Some(corpus.compare(&a, &b, &CORPUS_OPTIONS)))
    }

    /// What the value of all answers together is made of, where the metric has one.
    fn corpus_parts(
        &self,
        candidate: &CandidateResult,
        metric: usize,
    ) -> Result<Option<CorpusParts<'_>>, EvalError> {
        let Some(metric) = self.metrics.get(metric) else { return Ok(None) };
        let Some(corpus) = &metric.corpus else { return Ok(None) };
        let (found, expected) = (candidate.answers.len(), self.items.len());
        if found != expected {
            return Err(EvalError::AnswerCount { name: candidate.name.clone(), found, expected });
        }
        let parts = self.items.iter().zip(&candidate.answers).map(|(item, answer)| {
            let parts = answer.all().map(|answer| (corpus.parts)(item, answer));
            let parts = parts
                .collect::<Result<Vec<_>, _>>()
                .map_err(|reason| not_scored(metric, &candidate.name, item, reason));
            parts.map(|parts| sum_of_parts(parts.iter()))
        });
        Ok(Some((corpus, parts.collect::<Result<_, _>>()?)))
    }

    /// For each field that any reference has, in order of first appearance: the scores (1 right,
    /// 0 wrong) of a candidate's answers in the examples that have the field. Empty when no metric
    /// of the run knows fields.
    pub fn field_scores(&self, candidate: &CandidateResult) -> IndexMap<String, Vec<f64>> {
        let mut scores: IndexMap<String, Vec<f64>> = IndexMap::new();
        let Some(fields) = self.metrics.iter().find_map(|metric| metric.fields) else {
            return scores;
        };
        for (item, answer) in self.items.iter().zip(&candidate.answers) {
            let of = |answer: &Answer| {
                let text = if answer.error.is_some() { "" } else { &answer.text };
                fields(text, &item.reference)
            };
            // The fields are the reference's, the same ones for each repeat.
            let all: Vec<_> = answer.all().map(of).collect();
            for (place, field) in all[0].iter().enumerate() {
                let right: Vec<f64> =
                    all.iter().map(|f| f64::from(f.get(place).is_some_and(|f| f.right))).collect();
                scores.entry(field.field.clone()).or_default().push(mean(&right));
            }
        }
        scores
    }

    /// One JSON object per example: `id`, `prompt`, `answer` (null when it failed), `reference`,
    /// `scores`, and `error`, `stopped`, `prompt_tokens`, `answer_tokens`, `seconds`, `likelihoods`,
    /// `similarity`, `grade` where known; further answers of the same example, with the same fields, in
    /// `repeats`. `scores` are means over all answers of the example.
    /// [`crate::RecordedCandidate`] reads it back.
    pub fn answers_jsonl(&self, candidate: &CandidateResult) -> String {
        let mut lines = String::new();
        for (index, (item, answer)) in self.items.iter().zip(&candidate.answers).enumerate() {
            let scores = self.metrics.iter().zip(&candidate.scores);
            let line = AnswerLine {
                id: &item.id,
                prompt: item.prompt(),
                answer: said(answer),
                reference: &item.reference,
                scores: scores.map(|(metric, scores)| (metric.name, scores[index])).collect(),
                known: Known::of(answer),
                repeats: answer.repeats.iter().map(Repeat::of).collect(),
            };
            // Strings, numbers and a map with string keys: nothing here can fail to serialise.
            lines.push_str(&serde_json::to_string(&line).unwrap_or_default());
            lines.push('\n');
        }
        lines
    }

    /// Writes [`EvalResult::answers_jsonl`] to a file, whole or not at all.
    ///
    /// # Errors
    /// [`EvalError::Io`] naming the file.
    pub fn write_answers(&self, candidate: &CandidateResult, path: &Path) -> Result<(), EvalError> {
        write_atomic(path, self.answers_jsonl(candidate).as_bytes())
    }
}

impl CandidateResult {
    /// Mean score and its 95 % interval for the metric at place `metric`.
    ///
    /// # Errors
    /// [`EvalError::Stats`] when there are no scores.
    pub fn summary(
        &self,
        metrics: &[&Metric],
        metric: usize,
    ) -> Result<(f64, Interval), EvalError> {
        let scores = self.scores_of(metric);
        let interval = match metrics.get(metric).map(|m| m.scale) {
            // The spread of a single number is unknown.
            Some(Scale::Unbounded) if scores.len() == 1 => [scores[0]; 2].into(),
            Some(Scale::Unbounded) if self.clusters.is_empty() => student_t(scores)?,
            Some(Scale::Unbounded) => cluster_interval(scores, &self.clusters, CONFIDENCE)?,
            scale => mean_interval_in(scores, self.is_binary(scale), &self.clusters)?,
        };
        Ok((mean(scores), interval))
    }

    /// Whether only 0 and 1 occur among the scores of a metric of this scale: means of repeats lie between.
    pub(crate) fn is_binary(&self, scale: Option<Scale>) -> bool {
        scale == Some(Scale::Binary) && self.answers.iter().all(|a| a.repeats.is_empty())
    }

    /// Scores for the metric at place `metric`; none when it was not measured.
    pub(crate) fn scores_of(&self, metric: usize) -> &[f64] {
        self.scores.get(metric).map_or(&[], Vec::as_slice)
    }

    /// The tokens of the request at a place, the mean over its repeats; 0 where they are not known.
    pub(crate) fn tokens(&self, place: usize) -> RequestTokens {
        let answers = self.answers[place].all();
        let count = |tokens: fn(&Answer) -> Option<usize>| {
            let counts: Vec<f64> =
                answers.clone().map(|answer| tokens(answer).unwrap_or(0) as f64).collect();
            mean(&counts)
        };
        RequestTokens {
            input: count(|answer| answer.prompt_tokens),
            cached: count(|answer| answer.cached_tokens),
            cache_write: count(|answer| answer.cache_write_tokens),
            output: count(|answer| answer.answer_tokens),
        }
    }

    /// All answers, repeats among them.
    pub(crate) fn all_answers(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().flat_map(Answer::all)
    }

    /// Examples of which an answer failed.
    pub fn failed(&self) -> usize {
        let failed = |answer: &&Answer| answer.all().any(|a| a.error.is_some());
        self.answers.iter().filter(failed).count()
    }

    /// Share of answers that ended by themselves, among those of which it is known; failed answers
    /// did not. None when it is known of none. A low share means that the limit on the answer's
    /// length, not the model, ended most answers.
    pub fn stopped_share(&self) -> Option<f64> {
        let known =
            self.all_answers().filter_map(|a| a.stopped.or(a.error.as_ref().map(|_| false)));
        let known: Vec<bool> = known.collect();
        let any_known = self.all_answers().any(|a| a.stopped.is_some());
        any_known.then(|| known.iter().filter(|&&s| s).count() as f64 / known.len() as f64)
    }

    /// The mean request, over answers of which both token counts are known; None when none is.
    pub fn traffic(&self) -> Option<Traffic> {
        let known: Vec<(usize, usize)> =
            self.all_answers().filter_map(|a| a.prompt_tokens.zip(a.answer_tokens)).collect();
        let mean_of = |count: fn(&(usize, usize)) -> usize| {
            known.iter().map(count).sum::<usize>() as f64 / known.len() as f64
        };
        (!known.is_empty())
            .then(|| Traffic { prompt_tokens: mean_of(|k| k.0), answer_tokens: mean_of(|k| k.1) })
    }

    /// Tokens of prompts and answers per second of the run; None when the counts are not known or
    /// no time passed.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let counts = self.all_answers().filter_map(|a| a.prompt_tokens.zip(a.answer_tokens));
        let tokens: usize = counts.map(|(prompt, answer)| prompt + answer).sum();
        (tokens > 0 && self.seconds > 0.0).then(|| tokens as f64 / self.seconds)
    }
}

#[derive(Serialize)]
struct AnswerLine<'a> {
    id: &'a str,
    prompt: String,
    answer: Option<&'a String>,
    reference: &'a str,
    scores: IndexMap<&'static str, f64>,
    #[serde(flatten)]
    known: Known<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    repeats: Vec<Repeat<'a>>,
}

/// One more answer to an example.
#[derive(Serialize)]
struct Repeat<'a> {
    answer: Option<&'a String>,
    #[serde(flatten)]
    known: Known<'a>,
}

/// What is known of an answer beside its text.
#[derive(Serialize)]
struct Known<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_write_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    likelihoods: &'a [Likelihood],
    #[serde(skip_serializing_if = "Option::is_none")]
    similarity: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grade: Option<u8>,
}

impl<'a> Repeat<'a> {
    fn of(answer: &'a Answer) -> Repeat<'a> {
        Repeat { answer: said(answer), known: Known::of(answer) }
    }
}

impl<'a> Known<'a> {
    fn of(answer: &'a Answer) -> Known<'a> {
        Known {
            error: answer.error.as_deref(),
            stopped: answer.stopped,
            prompt_tokens: answer.prompt_tokens,
            answer_tokens: answer.answer_tokens,
            seconds: answer.seconds,
            cached_tokens: answer.cached_tokens,
            cache_write_tokens: answer.cache_write_tokens,
            model: answer.model.as_deref(),
            likelihoods: &answer.likelihoods,
            similarity: answer.similarity,
            grade: answer.grade,
        }
    }
}

/// The text, where the answer did not fail.
fn said(answer: &Answer) -> Option<&String> {
    answer.error.is_none().then_some(&answer.text)
}

fn score_all(
    metric: &Metric,
    candidate: &str,
    items: &[EvalItem],
    answers: &[Answer],
) -> Result<Vec<f64>, EvalError> {
    let score = |(item, answer): (&EvalItem, &Answer)| {
        let scores = answer.all().map(|answer| metric.score(item, answer));
        let scores = scores.collect::<Result<Vec<f64>, String>>();
        let scores = scores.map_err(|reason| not_scored(metric, candidate, item, reason))?;
        Ok(mean(&scores))
    };
    items.iter().zip(answers).map(score).collect()
}

fn not_scored(metric: &Metric, candidate: &str, item: &EvalItem, reason: String) -> EvalError {
    let (candidate, id) = (candidate.to_owned(), item.id.clone());
    EvalError::NotScored { candidate, metric: metric.name, id, reason }
}

fn check_items(items: &[EvalItem], metrics: &[&'static Metric]) -> Result<(), EvalError> {
    if items.is_empty() {
        return Err(EvalError::NoItems);
    }
    if metrics.is_empty() {
        return Err(EvalError::NoMetrics { known: known() });
    }
    let mut places = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        if let Some(first) = places.insert(item.id.as_str(), index + 1) {
            return Err(EvalError::DuplicateId { id: item.id.clone(), first, second: index + 1 });
        }
        for metric in metrics {
            (metric.check_reference)(&item.reference).map_err(|reason| {
                EvalError::BadReference { id: item.id.clone(), metric: metric.name, reason }
            })?;
        }
    }
    Ok(())
}

fn check_names(candidates: &[Box<dyn Candidate + '_>]) -> Result<(), EvalError> {
    for (index, candidate) in candidates.iter().enumerate() {
        let name = candidate.name();
        if candidates[..index].iter().any(|other| other.name() == name) {
            return Err(EvalError::DuplicateCandidate { name: name.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::candidate::RecordedCandidate;
    use crate::metrics::metrics_by_name;
    use text::{Conversation, Message};

    /// Answers as they are given.
    pub(crate) struct Given(pub(crate) &'static str, pub(crate) Vec<Answer>);

    impl Candidate for Given {
        fn name(&self) -> &str {
            self.0
        }

        fn kind(&self) -> &'static str {
            "given"
        }

        fn answer(
            &mut self,
            _: &[EvalItem],
            progress: &mut dyn FnMut(usize),
        ) -> Result<Vec<Answer>, EvalError> {
            progress(self.1.len());
            Ok(self.1.clone())
        }
    }

    fn item(id: &str, reference: &str) -> EvalItem {
        let turns = vec![Message::new("user", "q"), Message::new("assistant", reference)];
        EvalItem::new(id.into(), Conversation::new(turns)).unwrap()
    }

    fn answer(text: &str) -> Answer {
        Answer {
            text: text.into(),
            error: None,
            stopped: Some(true),
            prompt_tokens: Some(10),
            answer_tokens: Some(2),
            ..Answer::default()
        }
    }

    fn items() -> Vec<EvalItem> {
        vec![
            item("x", r#"{"a": 1, "b": 2}"#),
            item("y", r#"{"a": 1}"#),
            item("z", r#"{"c": "\u0000"}"#),
        ]
    }

    fn run(answers: Vec<Answer>) -> Result<EvalResult, EvalError> {
        let metrics = metrics_by_name(&["json_field_accuracy", "exact_match"]).unwrap();
        evaluate(&mut [Box::new(Given("g", answers))], items(), metrics, &mut |_| ())
    }

    fn three() -> Vec<Answer> {
        let cut = Answer { stopped: Some(false), ..answer(r#"{"a": 1, "b": 3}"#) };
        // A failed answer counts as wrong even where an empty one would be right.
        vec![cut, answer(r#"{"a": 1}"#), Answer::failed("timeout")]
    }

    #[test]
    fn every_answer_is_scored_and_failed_ones_are_wrong() {
        let result = run(three()).unwrap();
        let candidate = result.candidate("g").unwrap();
        assert_eq!(candidate.scores, [vec![0.5, 1.0, 0.0], vec![0.0, 1.0, 0.0]]);
        assert_eq!(candidate.failed(), 1);
        assert_eq!(candidate.stopped_share(), Some(1.0 / 3.0));
        let traffic = Traffic { prompt_tokens: 10.0, answer_tokens: 2.0 };
        assert_eq!(candidate.traffic(), Some(traffic));
        let (value, interval) = candidate.summary(&result.metrics, 0).unwrap();
        assert!(value == 0.5 && interval.contains(0.5));
        let fields = result.field_scores(candidate);
        let fields: Vec<_> = fields.iter().map(|(f, s)| (f.as_str(), s.as_slice())).collect();
        assert_eq!(fields, [("a", &[1.0, 1.0][..]), ("b", &[0.0][..]), ("c", &[0.0][..])]);
        assert!(result.candidate("h").unwrap_err().to_string().contains("there are g"));
        assert!(result.metric("token_f1").unwrap_err().to_string().contains("hint"));
        assert_eq!(result.metric("exact_match").unwrap(), 1);
    }

    #[test]
    fn written_answers_can_be_read_back_as_a_candidate() {
        let result = run(three()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        result.write_answers(&result.candidates[0], &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first["scores"]["json_field_accuracy"], 0.5);
        assert_eq!(first["prompt"], "q");
        let back = RecordedCandidate::read("g", &path).unwrap();
        let metrics = result.metrics.clone();
        let again = evaluate(&mut [Box::new(back)], items(), metrics, &mut |_| ()).unwrap();
        assert_eq!(again.candidates[0].scores, result.candidates[0].scores);
        assert_eq!(again.candidates[0].answers, result.candidates[0].answers);
    }

    #[test]
    fn candidates_are_compared_example_by_example() {
        let metrics = metrics_by_name(&["exact_match"]).unwrap();
        let right = items().iter().map(|i| answer(&i.reference)).collect();
        let mut candidates: [Box<dyn Candidate>; 2] =
            [Box::new(Given("base", three())), Box::new(Given("adapted", right))];
        let mut seen = Vec::new();
        let mut note = |p: Progress| seen.push((p.candidate.to_owned(), p.done, p.total));
        let result = evaluate(&mut candidates, items(), metrics, &mut note).unwrap();
        assert_eq!(seen.len(), 4);
        assert_eq!(seen[3], ("adapted".to_owned(), 3, 3));
        let [base, adapted] = &result.candidates[..] else { panic!("two candidates") };
        let paired = compare(base, adapted, 0, &PairedOptions::default()).unwrap();
        assert!((paired.difference - 2.0 / 3.0).abs() < 1e-12);
        assert!(compare(base, adapted, 9, &PairedOptions::default()).is_err());
    }

    #[test]
    fn a_broken_test_set_costs_no_run() {
        let refused = |items: Vec<EvalItem>, metric: &str| {
            let metrics = metrics_by_name(&[metric]).unwrap();
            evaluate(&mut [], items, metrics, &mut |_| ()).unwrap_err().to_string()
        };
        assert!(refused(Vec::new(), "exact_match").contains("no test examples"));
        let twice = refused(vec![item("i", ""), item("i", "")], "exact_match");
        assert!(twice.contains("1 and 2") && twice.contains("\"i\""), "{twice}");
        let plain = refused(vec![item("i", "yes")], "json_exact");
        assert!(plain.contains("\"i\"") && plain.contains("not JSON"), "{plain}");
        let array = refused(vec![item("i", "[1]")], "json_field_accuracy");
        assert!(array.contains("not an object"), "{array}");
        let none = evaluate(&mut [], items(), Vec::new(), &mut |_| ()).unwrap_err();
        assert!(matches!(none, EvalError::NoMetrics { .. }));
        let mut same: [Box<dyn Candidate>; 2] =
            [Box::new(Given("g", three())), Box::new(Given("g", three()))];
        let metrics = metrics_by_name(&["exact_match"]).unwrap();
        let error = evaluate(&mut same, items(), metrics, &mut |_| ()).unwrap_err();
        assert!(matches!(error, EvalError::DuplicateCandidate { .. }));
        let error = run(vec![answer("")]).unwrap_err();
        assert!(matches!(error, EvalError::AnswerCount { found: 1, expected: 3, .. }));
    }
}
