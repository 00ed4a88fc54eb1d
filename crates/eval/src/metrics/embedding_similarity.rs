//! How near an answer's meaning is to the reference's, as an embedding model has it.
//!
//! The cosine is measured while the candidate answers ([`Embedded`]) and recorded with the answer, as its
//! time and tokens are: the model is a heavy part, and a proof must be computable again without it.

use super::{Metric, Score};
use crate::candidate::{Answer, Candidate, answered};
use crate::error::EvalError;
use crate::item::EvalItem;
use std::collections::HashMap;

/// The cosine of the embeddings of answer and reference, cut to [0, 1]. An empty text is near to another
/// empty one alone; a failed answer scores 0.
pub(super) static METRIC: Metric = Metric {
    name: "embedding_similarity",
    what: "Cosine of the embeddings of answer and reference; below 0 counts as 0.",
    reads_as: "by likeness of meaning",
    score: Score::Item(&|_, answer| match (&answer.error, answer.similarity) {
        (Some(_), _) => Ok(0.0),
        (None, Some(cosine)) => Ok(cosine.clamp(0.0, 1.0)),
        (None, None) => Err("no embedding model compared it with the reference. hint: name one, \
                             embedding_model in [prove] or --embedding-model"
            .to_owned()),
    }),
    ..Metric::GRADED
};

/// Turns texts, none of them empty, into vectors of one length; the reason where it cannot.
pub type EmbedTexts<'a> = dyn FnMut(&[&str]) -> Result<Vec<Vec<f32>>, String> + 'a;

/// A candidate whose answers are compared with the references by an embedding model.
pub struct Embedded<'a> {
    inner: Box<dyn Candidate + 'a>,
    embed: &'a mut EmbedTexts<'a>,
}

impl<'a> Embedded<'a> {
    /// `inner`, with its answers compared by means of `embed`.
    pub fn new(inner: Box<dyn Candidate + 'a>, embed: &'a mut EmbedTexts<'a>) -> Embedded<'a> {
        Embedded { inner, embed }
    }
}

impl Candidate for Embedded<'_> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn answer(
        &mut self,
        examples: &[EvalItem],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        let mut answers = self.inner.answer(examples, progress)?;
        let pairs: Vec<(&EvalItem, &Answer)> = answered(examples, &answers).collect();
        let cosines = similarities(&pairs, self.embed)?;
        let mut cosines = cosines.into_iter();
        for answer in &mut answers {
            answer.each(&mut |one| one.similarity = cosines.next().flatten());
        }
        Ok(answers)
    }
}

/// The cosine of each answer and its reference, to six digits; None for failed answers.
///
/// # Errors
/// [`EvalError::Embedding`].
pub(crate) fn similarities(
    answers: &[(&EvalItem, &Answer)],
    embed: &mut EmbedTexts,
) -> Result<Vec<Option<f64>>, EvalError> {
    let pairs = answers.iter().filter(|(_, answer)| answer.error.is_none());
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut texts: Vec<&str> = Vec::new();
    for text in pairs.flat_map(|(item, answer)| [item.reference.as_str(), answer.text.as_str()]) {
        if !text.trim().is_empty() && !places.contains_key(text) {
            places.insert(text, texts.len());
            texts.push(text);
        }
    }
    let vectors = embed(&texts).map_err(EvalError::Embedding)?;
    let len = vectors.first().map_or(0, Vec::len);
    if vectors.len() != texts.len() || vectors.iter().any(|v| v.len() != len) {
        let reason = format!("{} vectors came back of {} texts", vectors.len(), texts.len());
        return Err(EvalError::Embedding(reason));
    }
    let of = |text: &str| places.get(text).map(|&place| vectors[place].as_slice());
    let cosine = |(item, answer): &(&EvalItem, &Answer)| {
        answer.error.is_none().then(|| match (of(&item.reference), of(&answer.text)) {
            (Some(a), Some(b)) => (cosine(a, b) * 1e6).round() / 1e6,
            (None, None) => 1.0,
            _ => 0.0,
        })
    };
    Ok(answers.iter().map(cosine).collect())
}

/// 0 where a vector has no direction.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 && norms.is_finite() { dot(a, b) / norms } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::metrics_by_name;
    use crate::run::evaluate;
    use crate::run::tests::Given;
    use text::{Conversation, Message};

    fn items(references: &[&str]) -> Vec<EvalItem> {
        let item = |(i, reference): (usize, &&str)| {
            let turns = vec![Message::new("user", "q"), Message::new("assistant", *reference)];
            EvalItem::new(i.to_string(), Conversation::new(turns)).unwrap()
        };
        references.iter().enumerate().map(item).collect()
    }

    fn said(text: &str) -> Answer {
        Answer { text: text.to_owned(), ..Answer::default() }
    }

    /// A vector by the letters a and b of a text; both alone are at right angles.
    fn letters(texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
        assert!(texts.iter().all(|t| !t.trim().is_empty()), "{texts:?}");
        let count = |text: &str, c: char| text.matches(c).count() as f32;
        Ok(texts.iter().map(|t| vec![count(t, 'a'), count(t, 'b') - count(t, '-')]).collect())
    }

    #[test]
    fn answers_are_as_near_as_their_vectors() {
        let items = items(&["a", "a", "a", "ab", "b", "", " ", "a"]);
        let mut answers: Vec<Answer> = ["aaa", "b", "ab", "ab", "-", "", "a", "x"].map(said).into();
        answers[7] = Answer::failed("no answer");
        let pairs: Vec<(&EvalItem, &Answer)> = items.iter().zip(&answers).collect();
        let found = similarities(&pairs, &mut letters).unwrap();
        let half = (0.5f64.sqrt() * 1e6).round() / 1e6;
        let expected = [1.0, 0.0, half, 1.0, -1.0, 1.0, 0.0].map(Some);
        assert_eq!(found[..7], expected);
        assert_eq!(found[7], None);
        let metrics = metrics_by_name(&["embedding_similarity"]).unwrap();
        let candidate = Box::new(Given("given", answers));
        let mut embed = letters;
        let embedded = Embedded::new(candidate, &mut embed);
        let result = evaluate(&mut [Box::new(embedded)], items, metrics, &mut |_| ()).unwrap();
        let scores = &result.candidates[0].scores[0];
        assert_eq!(*scores, [1.0, 0.0, half, 1.0, 0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn without_a_model_there_is_no_score() {
        let metrics = metrics_by_name(&["embedding_similarity"]).unwrap();
        let given = Box::new(Given("given", vec![said("a")]));
        let error = evaluate(&mut [given], items(&["a"]), metrics, &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains("embedding_model in [prove]"), "{error}");
        let mut broken = |_: &[&str]| Ok(vec![vec![1.0], vec![1.0, 2.0]]);
        let (item, answer) = (&items(&["a"])[0], &said("b"));
        assert!(similarities(&[(item, answer)], &mut broken).is_err());
        let mut failing = |_: &[&str]| Err("it does not fit".to_owned());
        let error = similarities(&[(item, answer)], &mut failing).unwrap_err().to_string();
        assert!(error.contains("it does not fit"), "{error}");
    }
}
