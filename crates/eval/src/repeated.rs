//! A question asked more than once: sampled answers differ, and one draw of them says little.

use crate::candidate::{Answer, Candidate};
use crate::error::EvalError;
use crate::item::EvalItem;

/// A candidate whose answers are drawn several times, each time by a candidate of its own (another seed,
/// other records). The first draw's answers carry the further ones as [`Answer::repeats`].
pub struct Repeated<'a> {
    first: Box<dyn Candidate + 'a>,
    further: Vec<Box<dyn Candidate + 'a>>,
}

impl<'a> Repeated<'a> {
    /// `first`, whose name and kind count, and each of `further` once more.
    pub fn new(
        first: Box<dyn Candidate + 'a>,
        further: Vec<Box<dyn Candidate + 'a>>,
    ) -> Repeated<'a> {
        Repeated { first, further }
    }
}

impl Candidate for Repeated<'_> {
    fn name(&self) -> &str {
        self.first.name()
    }

    fn kind(&self) -> &'static str {
        self.first.kind()
    }

    fn answer(
        &mut self,
        examples: &[EvalItem],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        let draws = 1 + self.further.len();
        let mut answers = self.first.answer(examples, &mut |done| progress(done / draws))?;
        for (draw, candidate) in self.further.iter_mut().enumerate() {
            let before = (draw + 1) * examples.len();
            let again =
                candidate.answer(examples, &mut |done| progress((before + done) / draws))?;
            if again.len() != answers.len() {
                let (name, found) = (candidate.name().to_owned(), again.len());
                return Err(EvalError::AnswerCount { name, found, expected: answers.len() });
            }
            for (answer, repeat) in answers.iter_mut().zip(again) {
                answer.repeats.push(repeat);
            }
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidate::RecordedCandidate;
    use crate::metrics::metrics_by_name;
    use crate::run::evaluate;
    use crate::run::tests::Given;
    use text::{Conversation, Message};

    fn items() -> Vec<EvalItem> {
        let item = |id: &str, reference: &str| {
            let turns = vec![Message::new("user", "q"), Message::new("assistant", reference)];
            EvalItem::new(id.into(), Conversation::new(turns)).unwrap()
        };
        vec![item("x", "{\"a\": 1, \"b\": 2}"), item("y", "{\"a\": 1}")]
    }

    fn said(text: &str, tokens: usize) -> Answer {
        let (prompt_tokens, answer_tokens) = (Some(10), Some(tokens));
        Answer { text: text.into(), prompt_tokens, answer_tokens, ..Answer::default() }
    }

    #[test]
    fn repeats_are_averaged_per_example_and_read_back() {
        let draws = [
            vec![said("{\"a\": 1, \"b\": 2}", 4), said("{\"a\": 1}", 2)],
            vec![said("{\"a\": 1, \"b\": 3}", 6), Answer::failed("timeout")],
            vec![said("no", 2), said("{\"a\": 1}", 2)],
        ];
        let mut draws =
            draws.map(|answers| Box::new(Given("g", answers)) as Box<dyn Candidate>).into_iter();
        let first = draws.next().unwrap();
        let repeated = Repeated::new(first, draws.collect());
        let metrics = metrics_by_name(&["json_field_accuracy", "exact_match"]).unwrap();
        let mut seen = Vec::new();
        let mut note = |p: crate::run::Progress<'_>| seen.push(p.done);
        let result = evaluate(&mut [Box::new(repeated)], items(), metrics, &mut note).unwrap();
        assert_eq!(seen, [0, 0, 1, 2]);
        let [candidate] = &result.candidates[..] else { panic!("one candidate") };
        assert_eq!(candidate.scores[0], [0.5, 2.0 / 3.0]);
        assert_eq!(candidate.scores[1], [1.0 / 3.0, 2.0 / 3.0]);
        // One failed draw makes a failed example, and the counts are means of the draws.
        assert_eq!((candidate.failed(), candidate.answers.len()), (1, 2));
        let tokens = candidate.tokens(0);
        assert_eq!((tokens.input, tokens.output), (10.0, 4.0));
        // Means of repeats are no shares of right answers: no interval of a binomial.
        let (value, interval) = candidate.summary(&result.metrics, 1).unwrap();
        assert!((value - 0.5).abs() < 1e-12);
        assert_ne!(interval, crate::stats::wilson(1, 2).unwrap());
        let fields = result.field_scores(candidate);
        assert_eq!(fields["a"], [2.0 / 3.0, 2.0 / 3.0]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        result.write_answers(candidate, &path).unwrap();
        let back = RecordedCandidate::read("g", &path).unwrap();
        let again =
            evaluate(&mut [Box::new(back)], items(), result.metrics.clone(), &mut |_| ()).unwrap();
        assert_eq!(again.candidates[0].answers, candidate.answers);
        assert_eq!(again.candidates[0].scores, candidate.scores);
        std::fs::write(&path, "{\"id\": \"x\", \"answer\": \"a\", \"repeats\": [{}]}").unwrap();
        let error = RecordedCandidate::read("g", &path).err().unwrap().to_string();
        assert!(error.contains("one of its repeats"), "{error}");
    }
}
