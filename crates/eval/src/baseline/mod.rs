//! Simple candidates, which a model must beat to be worth anything: the most frequent answer, the answer
//! to the nearest question, a linear model of words. They learn from the training set and cost nothing.

mod linear;
mod majority;
mod nearest;
mod tfidf;

use crate::candidate::{Answer, Candidate};
use crate::error::EvalError;
use crate::item::EvalItem;

/// What a baseline has learnt: from a question to an answer.
type Answerer = Box<dyn Fn(&str) -> String>;

/// A kind of baseline: its name, and how it learns from (question, answer) pairs, of which there is at
/// least one.
struct Kind {
    name: &'static str,
    learn: fn(&[(String, String)]) -> Answerer,
}

/// [`Candidate::kind`] of baselines.
pub(crate) const BASELINE: &str = "baseline";

const KINDS: &[&Kind] = &[&majority::KIND, &nearest::KIND, &linear::KIND];

/// Names of all baselines.
pub fn baseline_names() -> Vec<&'static str> {
    KINDS.iter().map(|kind| kind.name).collect()
}

/// A baseline that has learnt.
pub struct BaselineCandidate {
    name: String,
    answerer: Answerer,
}

impl BaselineCandidate {
    /// Has the baseline called `kind` learn from the questions and references of `train`: `majority`
    /// gives the most frequent reference, `nearest` that of the question with the most similar words,
    /// `linear` what softmax regression over the words says. The result depends on nothing else.
    ///
    /// # Errors
    /// [`EvalError::UnknownBaseline`]; [`EvalError::NoItems`] for an empty training set.
    pub fn learn(kind: &str, train: &[EvalItem]) -> Result<BaselineCandidate, EvalError> {
        let known = KINDS.iter().find(|known| known.name == kind);
        let known = known.ok_or_else(|| EvalError::UnknownBaseline {
            found: kind.to_owned(),
            known: baseline_names().join(", "),
        })?;
        if train.is_empty() {
            return Err(EvalError::NoItems);
        }
        let pairs: Vec<(String, String)> =
            train.iter().map(|item| (question(item), item.reference.clone())).collect();
        Ok(BaselineCandidate { name: kind.to_owned(), answerer: (known.learn)(&pairs) })
    }
}

impl Candidate for BaselineCandidate {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        BASELINE
    }

    fn answer(
        &mut self,
        examples: &[EvalItem],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        let answer = |item: &EvalItem| Answer {
            text: (self.answerer)(&question(item)),
            stopped: Some(true),
            ..Answer::default()
        };
        let answers = examples.iter().map(answer).collect();
        progress(examples.len());
        Ok(answers)
    }
}

/// What is asked, without the instructions that every example shares.
fn question(item: &EvalItem) -> String {
    let asked = item.conversation.messages.iter().rev().find(|message| message.role == "user");
    asked.map_or_else(|| item.prompt(), |message| message.content.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use text::{Conversation, Message};

    fn items(rows: &[(&str, &str)]) -> Vec<EvalItem> {
        let item = |(index, (question, answer)): (usize, &(&str, &str))| {
            let turns = vec![
                Message::new("system", "Name the appliance."),
                Message::new("user", *question),
                Message::new("assistant", *answer),
            ];
            EvalItem::new(index.to_string(), Conversation::new(turns)).unwrap()
        };
        rows.iter().enumerate().map(item).collect()
    }

    fn answers(kind: &str) -> Vec<String> {
        let train = items(&[
            ("the oven does not get hot", "oven"),
            ("oven door is broken", "oven"),
            ("oven light broken", "oven"),
            ("milk in the fridge is warm", "fridge"),
            ("the fridge is full of ice", "fridge"),
            ("kettle leaks water", "kettle"),
        ]);
        let test = items(&[
            ("my fridge has warm milk", ""),
            ("light of the oven", ""),
            ("water leaks from it", ""),
            ("xyzzy", ""),
        ]);
        let mut candidate = BaselineCandidate::learn(kind, &train).unwrap();
        let answers = candidate.answer(&test, &mut |_| ()).unwrap();
        assert_eq!((candidate.name(), candidate.kind()), (kind, "baseline"));
        answers.into_iter().map(|answer| answer.text).collect()
    }

    #[test]
    fn baselines_learn_what_words_tell() {
        assert_eq!(answers("majority"), ["oven", "oven", "oven", "oven"]);
        assert_eq!(answers("nearest")[..3], ["fridge", "oven", "kettle"]);
        assert_eq!(answers("linear"), ["fridge", "oven", "kettle", "oven"]);
        assert_eq!(answers("linear"), answers("linear"));
    }

    #[test]
    fn what_cannot_learn_is_refused() {
        let error = BaselineCandidate::learn("forest", &items(&[("a", "b")])).err().unwrap();
        assert!(error.to_string().contains("majority, nearest, linear"), "{error}");
        assert!(BaselineCandidate::learn("linear", &[]).is_err());
    }
}
