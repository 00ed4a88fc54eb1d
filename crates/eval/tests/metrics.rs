//! The metrics against the field's reference implementations: sacrebleu, rouge-score, scikit-learn.
//! The numbers were made by scripts/make_metrics_golden.py.

use eval::{Answer, Candidate, EvalError, EvalItem, EvalResult, Likelihood, metrics_by_name};
use serde_json::Value;
use text::{Conversation, Message};

struct Given(Vec<Answer>);

impl Candidate for Given {
    fn name(&self) -> &str {
        "given"
    }

    fn kind(&self) -> &'static str {
        "recorded"
    }

    fn answer(
        &mut self,
        _: &[EvalItem],
        _: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        Ok(self.0.clone())
    }
}

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/metrics/golden.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn evaluate(items: Vec<EvalItem>, answers: Vec<Answer>, metrics: &[&str]) -> EvalResult {
    let metrics = metrics_by_name(metrics).unwrap();
    eval::evaluate(&mut [Box::new(Given(answers))], items, metrics, &mut |_| ()).unwrap()
}

fn item(id: usize, reference: &str) -> EvalItem {
    let turns = vec![Message::new("user", "q"), Message::new("assistant", reference)];
    EvalItem::new(id.to_string(), Conversation::new(turns)).unwrap()
}

#[test]
fn scores_of_texts_are_those_of_sacrebleu_and_rouge_score() {
    let golden = golden();
    let metrics = metrics_by_name(&["bleu,chrf,ter,rouge1,rouge2,rougeL"]).unwrap();
    for pair in golden["pairs"].as_array().unwrap() {
        let item = item(0, pair["reference"].as_str().unwrap());
        let text = pair["answer"].as_str().unwrap().to_owned();
        let answer = Answer { text, ..Answer::default() };
        for metric in &metrics {
            let score = metric.score(&item, &answer).unwrap();
            let expected = pair["scores"][metric.name].as_f64().unwrap();
            let what = format!("{}: {:?}", metric.name, answer.text);
            assert!((score - expected).abs() < 1e-9, "{what}: {score}, expected {expected}");
        }
    }
}

#[test]
fn values_of_all_answers_are_those_of_sacrebleu() {
    let golden = golden();
    let pairs = golden["pairs"].as_array().unwrap();
    let text = |pair: &Value, side: &str| pair[side].as_str().unwrap().to_owned();
    let items = pairs.iter().enumerate().map(|(i, pair)| item(i, &text(pair, "reference")));
    let answers =
        pairs.iter().map(|pair| Answer { text: text(pair, "answer"), ..Answer::default() });
    let result = evaluate(items.collect(), answers.collect(), &["bleu,chrf,ter"]);
    let given = &result.candidates[0];
    for (place, metric) in result.metrics.iter().enumerate() {
        let (value, interval) = result.summary(given, place).unwrap();
        let expected = golden["corpus"][metric.name].as_f64().unwrap();
        assert!((value - expected).abs() < 1e-9, "{}: {value}, {expected}", metric.name);
        assert!(interval.lo < value && value < interval.hi, "{}: {interval:?}", metric.name);
        let same = result.compare_corpus(given, given, place).unwrap().unwrap();
        assert_eq!((same.difference, same.p_value), (0.0, 1.0));
    }
}

#[test]
fn calibration_is_that_of_scikit_learn_and_numpy() {
    let golden = &golden()["choices"];
    let likelihoods = golden["likelihoods"].as_array().unwrap();
    let (items, answers): (Vec<_>, Vec<_>) = likelihoods
        .iter()
        .enumerate()
        .map(|(i, row)| {
            let sums = row.as_array().unwrap().iter().map(|sum| sum.as_f64().unwrap());
            let likelihoods = sums.map(|sum| Likelihood { sum, greedy: false, tokens: 1 });
            let answer = Answer { likelihoods: likelihoods.collect(), ..Answer::default() };
            let mut item = item(i, "x");
            item.choices = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
            item.gold = Some(golden["gold"][i].as_u64().unwrap() as usize);
            (item, answer)
        })
        .unzip();
    let result = evaluate(items, answers, &["brier_score,ece,acc,acc_norm"]);
    for (place, metric) in result.metrics.iter().enumerate() {
        let (value, _) = result.summary(&result.candidates[0], place).unwrap();
        // All choices are equally long.
        let name = if metric.name == "acc_norm" { "acc" } else { metric.name };
        let expected = golden[name].as_f64().unwrap();
        assert!((value - expected).abs() < 1e-12, "{name}: {value}, expected {expected}");
    }
}

#[test]
fn likelihoods_that_nobody_told_are_an_error_that_says_so() {
    let metrics = metrics_by_name(&["perplexity"]).unwrap();
    let answers = vec![Answer::default()];
    let error =
        eval::evaluate(&mut [Box::new(Given(answers))], vec![item(7, "x")], metrics, &mut |_| ())
            .unwrap_err()
            .to_string();
    assert!(
        error.contains("\"7\"") && error.contains("perplexity") && error.contains("hint"),
        "{error}"
    );
}
