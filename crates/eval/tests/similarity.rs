//! A proof by likeness of meaning: it is computed again from what was recorded, and, where an embedding
//! model is at hand, from the texts.

use eval::{
    Answer, Candidate, Embedded, EvalError, EvalItem, Language, ProofFacts, ProofFiles, ProofPlan,
    evaluate, metrics_by_name, prove, verify, verify_similarities,
};
use std::path::Path;
use text::{Conversation, Message};

struct Given(&'static str, fn(usize) -> String);

impl Candidate for Given {
    fn name(&self) -> &str {
        self.0
    }

    fn kind(&self) -> &'static str {
        "local"
    }

    fn answer(
        &mut self,
        items: &[EvalItem],
        _: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        let answer = |i: usize| Answer { text: (self.1)(i), ..Answer::default() };
        let mut answers: Vec<Answer> = (0..items.len()).map(answer).collect();
        answers[3] = Answer::failed("no answer");
        Ok(answers)
    }
}

/// A text's bytes, counted.
fn bytes(texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
    let counts = |text: &&str| {
        let mut counts = vec![0.0; 256];
        text.bytes().for_each(|byte| counts[usize::from(byte)] += 1.0);
        counts
    };
    Ok(texts.iter().map(counts).collect())
}

/// The same with one byte that counts more.
fn others(texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
    let mut vectors = bytes(texts)?;
    vectors.iter_mut().for_each(|vector| vector[usize::from(b'1')] += 1.0);
    Ok(vectors)
}

const N: usize = 30;

fn write_proof(dir: &Path) {
    let item = |i: usize| {
        let turns = vec![Message::new("user", "q"), Message::new("assistant", format!("case {i}"))];
        EvalItem::new(i.to_string(), Conversation::new(turns)).unwrap()
    };
    let items: Vec<EvalItem> = (0..N).map(item).collect();
    let names = ["embedding_similarity".to_owned()];
    let (mut one, mut other) = (bytes, bytes);
    let far = Given("far", |i| format!("hm {}", i % 3));
    let near = Given("near", |i| format!("case {}", i - i % 2));
    let mut candidates: [Box<dyn Candidate>; 2] = [
        Box::new(Embedded::new(Box::new(far), &mut one)),
        Box::new(Embedded::new(Box::new(near), &mut other)),
    ];
    let metrics = metrics_by_name(&names).unwrap();
    let result = evaluate(&mut candidates, items, metrics, &mut |_| ()).unwrap();
    let plan = ProofPlan {
        language: Language::En,
        metrics: names.to_vec(),
        metric: names[0].clone(),
        judged: "near".into(),
        also_judged: Vec::new(),
        against: "far".into(),
        margin: 0.0,
        max_cost_per_1000: None,
        embedding_model: Some("bytes".into()),
        must_be_cheaper: false,
        least_slice: 20,
        slice_margin: None,
        look: None,
        max_forgetting: None,
        economics: None,
        asked: [].into(),
        arms: [].into(),
        forgotten: [].into(),
        leaked: Vec::new(),
        findings: Vec::new(),
        games: Vec::new(),
        rubric: None,
    };
    let files = ProofFiles::of(&result);
    let facts = ProofFacts { files: files.digests(), ..ProofFacts::default() };
    files.write(&prove(&plan, facts, &result).unwrap(), dir).unwrap();
}

#[test]
fn similarities_are_computed_again_from_the_texts() {
    let dir = tempfile::tempdir().unwrap();
    write_proof(dir.path());
    let path = dir.path().join("report.json");
    let report = verify(&path, false).unwrap().report.unwrap();
    let value = |i: usize| report.candidates[i].metrics["embedding_similarity"].value;
    assert!(value(1) > 0.85 && value(0) < 0.5, "{} {}", value(0), value(1));
    // One answer of each has failed.
    assert_eq!(verify_similarities(&path, &mut bytes).unwrap(), 2 * (N - 1));
    let error = verify_similarities(&path, &mut others).unwrap_err().to_string();
    assert!(error.contains("compared again it is") && error.contains("report.json"), "{error}");
    let mut broken = |_: &[&str]| Ok(Vec::new());
    assert!(matches!(verify_similarities(&path, &mut broken), Err(EvalError::Embedding(_))));
    let answers = dir.path().join("answers/2_near.jsonl");
    let text = std::fs::read_to_string(&answers).unwrap();
    std::fs::write(&answers, text.replacen("\"similarity\":0.8", "\"similarity\":0.7", 1)).unwrap();
    for error in
        [verify(&path, false).err().unwrap(), verify_similarities(&path, &mut bytes).unwrap_err()]
    {
        assert!(error.to_string().contains("2_near.jsonl"), "{error}");
    }
}
