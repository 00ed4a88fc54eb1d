//! Where a score comes from: by field, by confused pair, by what changed, with and without leaks.

use crate::error::EvalError;
use crate::item::EvalItem;
use crate::run::{CandidateResult, EvalResult};
use crate::stats::{
    CONFIDENCE, Interval, PairedOptions, clusters_at, holm, mean, mean_interval_in,
    paired_difference_in, paired_interval,
};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Most different values of a field that is sliced by; a field with more (a date, a name) says nothing.
const MOST_VALUES: usize = 50;

/// A candidate's score on the examples of one value of a field, beside another candidate's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SliceReport {
    /// The field.
    pub field: String,
    /// Its value in these examples.
    pub value: String,
    /// Examples.
    pub n: usize,
    /// Mean score of the judged candidate, in [0, 1].
    pub score: f64,
    /// 95 % interval of the score.
    pub ci95: Interval,
    /// Mean of judged minus compared, between -1 and 1.
    pub difference: f64,
    /// Interval of the difference with a confidence of 95 % for all slices together: each has
    /// 1 - 0.05 / slices (C. E. Bonferroni), so that the worst one is not a product of looking at many.
    pub interval: Interval,
    /// p-value of "no difference in this slice", adjusted for all slices by Holm.
    pub p_holm: f64,
    /// Ids of its examples that the judged candidate has less right than the other.
    pub lost: Vec<String>,
}

impl SliceReport {
    /// Whether the judged candidate is proven to lose more than `margin` here.
    pub fn is_worse(&self, margin: f64) -> bool {
        self.interval.hi < -margin
    }
}

/// Every value of every field with at least `least` examples, worst difference first (then worst score).
/// `b` is judged against `a`. Fields with more than 50 values, or one alone, are left out,
/// as are slices whose examples all belong to one group: they are a single observation.
///
/// # Errors
/// [`EvalError::Stats`] for scores that cannot be compared.
pub fn slice_reports(
    result: &EvalResult,
    a: &CandidateResult,
    b: &CandidateResult,
    metric: usize,
    least: usize,
) -> Result<Vec<SliceReport>, EvalError> {
    let slices = members(&result.items, least.max(2));
    let confidence = 1.0 - 0.05 / slices.len().max(1) as f64;
    let options = PairedOptions { confidence, ..PairedOptions::default() };
    let binary = b.is_binary(result.metrics.get(metric).map(|m| m.scale));
    let (mut reports, mut p_values) = (Vec::new(), Vec::new());
    for ((field, value), places) in slices {
        let of = |scores: &[f64]| places.iter().map(|&p| scores[p]).collect::<Vec<f64>>();
        let (scores_a, scores_b) = (of(a.scores_of(metric)), of(b.scores_of(metric)));
        let Some(clusters) = clusters_at(&b.clusters, &places) else { continue };
        let paired = paired_difference_in(&scores_a, &scores_b, &clusters, &options)?;
        let lost = places.iter().zip(scores_a.iter().zip(&scores_b));
        let lost = lost.filter(|(_, (a, b))| b < a);
        p_values.push(paired.p_value);
        reports.push(SliceReport {
            field: field.to_owned(),
            value: value.to_owned(),
            n: places.len(),
            score: mean(&scores_b),
            ci95: mean_interval_in(&scores_b, binary, &clusters)?,
            difference: paired.difference,
            interval: paired.interval,
            p_holm: 1.0,
            lost: lost.map(|(&place, _)| result.items[place].id.clone()).collect(),
        });
    }
    for (report, p) in reports.iter_mut().zip(holm(&p_values)) {
        report.p_holm = p;
    }
    let order = |r: &SliceReport| (r.difference, r.score);
    reports
        .sort_by(|x, y| order(x).0.total_cmp(&order(y).0).then(order(x).1.total_cmp(&order(y).1)));
    Ok(reports)
}

/// The places of the examples of each value of each field.
fn members(items: &[EvalItem], least: usize) -> Vec<((&str, &str), Vec<usize>)> {
    let mut fields: IndexMap<&str, IndexMap<&str, Vec<usize>>> = IndexMap::new();
    for (place, item) in items.iter().enumerate() {
        for (field, value) in &item.slices {
            fields.entry(field).or_default().entry(value).or_default().push(place);
        }
    }
    let told = fields.into_iter().filter(|(_, values)| (2..=MOST_VALUES).contains(&values.len()));
    told.flat_map(|(field, values)| {
        let enough = values.into_iter().filter(|(_, places)| places.len() >= least);
        enough.map(move |(value, places)| ((field, value), places))
    })
    .collect()
}

/// A right answer and the wrong one that was given for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ConfusedPair {
    /// The right answer.
    pub reference: String,
    /// The answer given; empty for an answer that failed or is none of the right answers of the test set.
    pub answer: String,
    /// Ids of the examples.
    pub ids: Vec<String>,
}

/// For classification: which right answers were taken for which others, most frequent first, at most
/// `most` pairs. Empty when the test set is no classification: more than half of its right answers stand
/// alone, or one is longer than 100 bytes. Of repeats the first answer counts. Failed answers and answers that are no class count under the
/// empty answer.
pub fn confused_pairs(
    result: &EvalResult,
    candidate: &CandidateResult,
    most: usize,
) -> Vec<ConfusedPair> {
    let classes: HashSet<&str> = result.items.iter().map(|item| item.reference.trim()).collect();
    let named = result.items.iter().all(|item| item.reference.len() <= 100);
    if !named || classes.len() * 2 > result.items.len() {
        return Vec::new();
    }
    let mut pairs: IndexMap<(&str, &str), Vec<String>> = IndexMap::new();
    for (item, answer) in result.items.iter().zip(&candidate.answers) {
        let said = if answer.error.is_some() { "" } else { answer.text.trim() };
        let said = classes.get(said).copied().unwrap_or_default();
        let reference = item.reference.trim();
        if said != reference {
            pairs.entry((reference, said)).or_default().push(item.id.clone());
        }
    }
    let mut found: Vec<ConfusedPair> = pairs
        .into_iter()
        .map(|((reference, answer), ids)| ConfusedPair {
            reference: reference.to_owned(),
            answer: answer.to_owned(),
            ids,
        })
        .collect();
    found.sort_by_key(|pair| std::cmp::Reverse(pair.ids.len()));
    found.truncate(most);
    found
}

/// Ids of examples by what two candidates made of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    /// b's score is higher.
    pub won: Vec<String>,
    /// b's score is lower.
    pub lost: Vec<String>,
    /// Neither has the full score, and they score alike.
    pub both_wrong: Vec<String>,
    /// Both have the full score.
    pub both_right: usize,
}

/// What changed from `a` to `b`, in the test set's order.
pub fn outcomes(
    result: &EvalResult,
    a: &CandidateResult,
    b: &CandidateResult,
    metric: usize,
) -> Outcomes {
    let mut found = Outcomes::default();
    let scores = a.scores_of(metric).iter().zip(b.scores_of(metric));
    for (item, (a, b)) in result.items.iter().zip(scores) {
        match b.total_cmp(a) {
            std::cmp::Ordering::Greater => found.won.push(item.id.clone()),
            std::cmp::Ordering::Less => found.lost.push(item.id.clone()),
            std::cmp::Ordering::Equal if *b < 1.0 => found.both_wrong.push(item.id.clone()),
            std::cmp::Ordering::Equal => found.both_right += 1,
        }
    }
    found
}

/// Scores by one metric with and without the examples that the training data gives away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LeakScores {
    /// Examples that the training data gives away.
    pub leaked: usize,
    /// Every candidate's score, by its name.
    pub scores: IndexMap<String, WithoutLeaks>,
    /// Mean of judged minus compared over the clean examples; None without two of them.
    pub difference: Option<f64>,
    /// Its 95 % interval; None also when all clean examples belong to one group.
    pub ci95: Option<Interval>,
}

/// A score with all examples, and without those that the training data gives away.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct WithoutLeaks {
    /// Mean over all examples.
    pub all: f64,
    /// Its 95 % interval.
    pub all_ci95: Interval,
    /// Mean over the clean ones; None when every example leaked.
    pub clean: Option<f64>,
    /// Its 95 % interval; None also when all clean examples belong to one group.
    pub clean_ci95: Option<Interval>,
    /// Clean examples.
    pub n: usize,
}

/// All candidates' scores with and without the examples whose ids are `leaked`
/// (`data::LeakReport::leaked_ids`), and what is left of the difference of `b` to `a`. None when none of
/// them is in the test set.
///
/// # Errors
/// [`EvalError::Stats`] without scores.
pub fn without_leaks(
    result: &EvalResult,
    (a, b): (&CandidateResult, &CandidateResult),
    metric: usize,
    leaked: &[String],
) -> Result<Option<LeakScores>, EvalError> {
    let leaked: HashSet<&str> = leaked.iter().map(String::as_str).collect();
    let clean = result.items.iter().enumerate();
    let clean = clean.filter(|(_, item)| !leaked.contains(item.id.as_str()));
    let places: Vec<usize> = clean.map(|(place, _)| place).collect();
    if places.len() == result.items.len() {
        return Ok(None);
    }
    let score =
        |c: &CandidateResult| Ok((c.name.clone(), clean_score(result, c, metric, &places)?));
    let scores = result.candidates.iter().map(score).collect::<Result<_, EvalError>>()?;
    let of = |c: &CandidateResult| -> Vec<f64> {
        places.iter().map(|&place| c.scores_of(metric)[place]).collect()
    };
    let (a, clusters) = (of(a), clusters_at(&b.clusters, &places));
    let b = of(b);
    let difference = (places.len() > 1).then(|| mean(&b) - mean(&a));
    let ci95 = match clusters.filter(|_| difference.is_some()) {
        Some(clusters) => Some(paired_interval(&a, &b, &clusters, CONFIDENCE)?),
        None => None,
    };
    let leaked = result.items.len() - places.len();
    Ok(Some(LeakScores { leaked, scores, difference, ci95 }))
}

/// The candidate's score with all examples and with those at `places`.
fn clean_score(
    result: &EvalResult,
    candidate: &CandidateResult,
    metric: usize,
    places: &[usize],
) -> Result<WithoutLeaks, EvalError> {
    let (all, all_ci95) = candidate.summary(&result.metrics, metric)?;
    let n = places.len();
    if n == 0 {
        return Ok(WithoutLeaks { all, all_ci95, clean: None, clean_ci95: None, n });
    }
    let scores: Vec<f64> = places.iter().map(|&p| candidate.scores_of(metric)[p]).collect();
    let binary = candidate.is_binary(result.metrics.get(metric).map(|m| m.scale));
    let clean_ci95 = match clusters_at(&candidate.clusters, places) {
        Some(clusters) => Some(mean_interval_in(&scores, binary, &clusters)?),
        None => None,
    };
    Ok(WithoutLeaks { all, all_ci95, clean: Some(mean(&scores)), clean_ci95, n })
}

/// How often each value of each field stands in the examples, for a look at a test set before it is used.
pub fn slice_sizes(items: &[EvalItem]) -> IndexMap<String, IndexMap<String, usize>> {
    let mut sizes: IndexMap<String, IndexMap<String, usize>> = IndexMap::new();
    for (field, value) in items.iter().flat_map(|item| &item.slices) {
        *sizes.entry(field.clone()).or_default().entry(value.clone()).or_default() += 1;
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidate::{Answer, Candidate};
    use crate::metrics::metrics_by_name;
    use crate::run::{evaluate, tests::Given};
    use text::{Conversation, Message};

    /// These texts in turn.
    fn given(name: &'static str, texts: Vec<&'static str>) -> Given {
        let answer =
            |i: usize| Answer { text: texts[i % texts.len()].to_owned(), ..Answer::default() };
        Given(name, (0..80).map(answer).collect())
    }

    /// 80 examples, half of them French; `refund` and `card` in turn.
    fn run(a: Vec<&'static str>, b: Vec<&'static str>) -> EvalResult {
        let items = (0..80).map(|i| {
            let reference = if i % 2 == 0 { "refund" } else { "card" };
            let turns = vec![Message::new("user", "q"), Message::new("assistant", reference)];
            let mut item = EvalItem::new(format!("{i}"), Conversation::new(turns)).unwrap();
            let lang = if i < 40 { "fr" } else { "en" };
            item.slices.insert("lang".into(), lang.into());
            item.slices.insert("number".into(), format!("{i}"));
            item.slices.insert("all".into(), "alike".into());
            item
        });
        let mut candidates: [Box<dyn Candidate>; 2] =
            [Box::new(given("a", a)), Box::new(given("b", b))];
        let metrics = metrics_by_name(&["exact_match"]).unwrap();
        evaluate(&mut candidates, items.collect(), metrics, &mut |_| ()).unwrap()
    }

    #[test]
    fn the_worst_slice_stands_first_and_is_proven_for_all_slices_together() {
        let mut wrong_in_french = vec!["card"; 40];
        wrong_in_french.extend(["refund", "card"].repeat(20));
        let result = run(vec!["refund", "card"], wrong_in_french);
        let [a, b] = &result.candidates[..] else { panic!() };
        let slices = slice_reports(&result, a, b, 0, 10).unwrap();
        let names: Vec<_> = slices.iter().map(|s| (s.field.as_str(), s.value.as_str())).collect();
        assert_eq!(names, [("lang", "fr"), ("lang", "en")], "80 numbers and one value say nothing");
        let french = &slices[0];
        assert_eq!((french.n, french.score, french.difference), (40, 0.5, -0.5));
        assert!(french.is_worse(0.1) && french.p_holm < 0.001 && french.lost.len() == 20);
        assert!(french.p_holm > 1e-6, "twice McNemar's 2^-19");
        assert!(!slices[1].is_worse(0.0) && slices[1].p_holm == 1.0);
        assert!(slice_reports(&result, a, b, 0, 41).unwrap().is_empty());
    }

    #[test]
    fn confused_pairs_name_what_is_taken_for_what() {
        let result = run(vec!["refund", "card"], vec!["card", "no class"]);
        let [a, b] = &result.candidates[..] else { panic!() };
        let pairs = confused_pairs(&result, b, 9);
        let found: Vec<_> =
            pairs.iter().map(|p| (p.reference.as_str(), p.answer.as_str(), p.ids.len())).collect();
        assert_eq!(found, [("refund", "card", 40), ("card", "", 40)]);
        assert_eq!(confused_pairs(&result, b, 1).len(), 1);
        assert!(confused_pairs(&result, a, 9).is_empty());
        let changed = outcomes(&result, a, b, 0);
        assert_eq!((changed.won.len(), changed.lost.len(), changed.both_right), (0, 80, 0));
        assert_eq!(outcomes(&result, b, b, 0).both_wrong.len(), 80);
        assert_eq!(slice_sizes(&result.items)["lang"]["fr"], 40);
    }

    #[test]
    fn scores_with_and_without_what_leaked() {
        let result = run(vec!["refund"], vec!["refund", "card"]);
        let pair = (&result.candidates[0], &result.candidates[1]);
        let leaked: Vec<String> = (0..40).map(|i| format!("{}", i * 2)).collect();
        let found = without_leaks(&result, pair, 0, &leaked).unwrap().unwrap();
        let a = &found.scores["a"];
        assert_eq!((a.all, a.clean, a.n, found.leaked), (0.5, Some(0.0), 40, 40));
        // b has all of the clean ones right, a none.
        assert_eq!(found.difference, Some(1.0));
        assert!(found.ci95.unwrap().lo > 0.8, "{found:?}");
        let all: Vec<String> = (0..80).map(|i| i.to_string()).collect();
        let none = without_leaks(&result, pair, 0, &all).unwrap().unwrap();
        assert_eq!((none.scores["a"].clean, none.difference, none.ci95), (None, None, None));
        assert_eq!(without_leaks(&result, pair, 0, &["elsewhere".to_owned()]).unwrap(), None);
    }
}
