//! From use to training data: kept conversations whose answers were good, and those that somebody has
//! corrected.

use crate::store::{Answer, Kept};
use data::{DataError, DedupOptions, Example, LeakOptions, Origin, deduplicate, leak_check};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use text::{Conversation, Message};

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct HarvestOptions {
    /// Only answers of this name in `model`.
    pub adapter: Option<String>,
    /// Answers that nobody has corrected need this rating; None takes all that are not rated below 0.
    pub min_rating: Option<f64>,
}

/// Training examples, and what did not become one.
#[derive(Clone, Debug, Serialize)]
pub struct Harvest {
    /// The examples, in the order of the requests.
    #[serde(skip)]
    pub examples: Vec<Example>,
    /// Kept requests that were looked at.
    pub looked_at: usize,
    /// How many became examples.
    pub taken: usize,
    /// Of them, how many have a corrected answer.
    pub corrected: usize,
    /// Why the others did not, and how many for each reason.
    pub left_out: BTreeMap<&'static str, usize>,
}

/// Turns kept requests into training examples: each a conversation that ends with the answer, the
/// corrected one where there is one. Duplicates go, and everything too near to a question of `test`.
/// `origin` is the file that they come from.
///
/// # Errors
/// None that options made here could bring about; those of [`leak_check`].
pub fn harvest(
    kept: &[Kept],
    origin: &Path,
    options: &HarvestOptions,
    test: &[Example],
) -> Result<Harvest, DataError> {
    let mut left_out: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut corrections = HashSet::new();
    let mut examples = Vec::new();
    for (index, request) in kept.iter().enumerate() {
        match example(request, options) {
            Err(reason) => *left_out.entry(reason).or_default() += 1,
            Ok(conversation) => {
                if request.correction.is_some() {
                    corrections.insert(request.request_id.clone());
                }
                examples.push(Example {
                    id: request.request_id.clone(),
                    conversation,
                    group: None,
                    slices: Default::default(),
                    origin: Origin { file: origin.to_owned(), line: index + 1 },
                });
            }
        }
    }
    let (mut examples, duplicates) = deduplicate(examples, &DedupOptions::default());
    let mut count = |reason, n: usize| {
        if n > 0 {
            left_out.insert(reason, n);
        }
    };
    count("the same as another", duplicates.rows_in - duplicates.rows_out);

    let before = examples.len();
    let every = LeakOptions { listed: usize::MAX, ..LeakOptions::default() };
    // A test row is reported with the nearest example only: what is left is looked at again.
    loop {
        let report = leak_check(&examples, test, &every)?;
        let leaking: HashSet<&str> = report.leaks.iter().map(|l| l.train_id.as_str()).collect();
        if leaking.is_empty() {
            break;
        }
        examples.retain(|example| !leaking.contains(example.id.as_str()));
    }
    count("too near to a question of the test set", before - examples.len());
    Ok(Harvest {
        looked_at: kept.len(),
        taken: examples.len(),
        corrected: examples.iter().filter(|e| corrections.contains(&e.id)).count(),
        left_out,
        examples,
    })
}

/// The conversation with its right answer, or why it is not to be learnt from.
fn example(request: &Kept, options: &HarvestOptions) -> Result<Conversation, &'static str> {
    if options.adapter.as_ref().is_some_and(|name| *name != request.model) {
        return Err("answered by another model");
    }
    let asked: Conversation = match request.asked.get("messages") {
        None => return Err("plain text, not a conversation"),
        Some(_) => serde_json::from_value(request.asked.clone())
            .map_err(|_| "a conversation that cannot be read")?,
    };
    if !asked.tools.is_empty() {
        return Err("offers tools");
    }
    let answer = match &request.correction {
        Some(correction) => correction,
        None => &good_answer(request, options)?.text,
    };
    if answer.trim().is_empty() {
        return Err("without an answer");
    }
    let mut messages = asked.messages;
    if !in_order(&messages) {
        return Err("turns out of order");
    }
    messages.push(Message::new("assistant", answer.as_str()));
    Ok(Conversation::new(messages))
}

/// The one answer, when it came to its own end and nobody says that it is bad.
fn good_answer<'a>(
    request: &'a Kept,
    options: &HarvestOptions,
) -> Result<&'a Answer, &'static str> {
    match (request.rating, options.min_rating) {
        (None, Some(_)) => return Err("not rated"),
        (Some(rating), least) if rating < least.unwrap_or(0.0) => return Err("rated too low"),
        _ => {}
    }
    if request.outcome != "ok" {
        return Err("cancelled or failed");
    }
    match &request.answers[..] {
        // What was thought is no part of what should be said.
        [answer] if answer.text.contains("</think>") => Err("thinks before it answers"),
        // Which of several a rating is about is not known.
        [answer] if answer.finish_reason.as_deref() == Some("stop") => Ok(answer),
        [_] => Err("cut off at the longest length"),
        [] => Err("without an answer"),
        _ => Err("several choices"),
    }
}

/// Whether an answer may follow: at most one system turn, and that first, then user and assistant in
/// turn, the user last, none empty. Readers of training data ask the same.
fn in_order(messages: &[Message]) -> bool {
    let said = match messages {
        [first, rest @ ..] if first.role == "system" => rest,
        all => all,
    };
    let expected = ["user", "assistant"].iter().cycle();
    said.len() % 2 == 1
        && messages.iter().all(|m| !m.content.trim().is_empty())
        && said.iter().zip(expected).all(|(message, role)| message.role == *role)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kept(id: &str, question: &str, answer: &str) -> Kept {
        Kept {
            request_id: id.into(),
            model: "red".into(),
            digest: "d".into(),
            outcome: "ok".into(),
            asked: json!({"messages": [{"role": "user", "content": question}]}),
            answers: vec![Answer { text: answer.into(), finish_reason: Some("stop".into()) }],
            rating: None,
            correction: None,
        }
    }

    fn test_row(question: &str) -> Example {
        let messages = vec![Message::new("user", question), Message::new("assistant", "sealed")];
        Example {
            id: "t".into(),
            conversation: Conversation::new(messages),
            group: None,
            slices: Default::default(),
            origin: Origin { file: "test.jsonl".into(), line: 1 },
        }
    }

    #[test]
    fn good_answers_and_corrections_are_taken_and_the_rest_is_accounted_for() {
        let long = "please tell me how I can get my money back for the parcel that never came";
        let with = |mut kept: Kept, change: &dyn Fn(&mut Kept)| {
            change(&mut kept);
            kept
        };
        let rows = vec![
            kept("good", "What is two and two?", "Four."),
            kept("again", "what is two and two", "Four."),
            with(kept("corrected", "Capital of France?", "Rome."), &|k| {
                k.rating = Some(-1.0);
                k.correction = Some("Paris.".into());
            }),
            with(kept("bad", "Capital of Spain?", "Rome."), &|k| k.rating = Some(-1.0)),
            with(kept("cut", "Count.", "1, 2,"), &|k| {
                k.answers[0].finish_reason = Some("length".into());
            }),
            with(kept("gone", "Wait.", "For"), &|k| k.outcome = "cancelled".into()),
            with(kept("two", "Choose.", "a"), &|k| k.answers.push(k.answers[0].clone())),
            with(kept("text", "x", "y"), &|k| k.asked = json!({"prompt": ["x"]})),
            with(kept("order", "x", "y"), &|k| {
                let turn = json!({"role": "user", "content": "x"});
                k.asked = json!({"messages": [turn.clone(), turn]});
            }),
            with(kept("other", "Blue?", "Yes."), &|k| k.model = "blue".into()),
            kept("leak", long, "Soon."),
            kept("leak too", &format!("{long} today"), "Later."),
            kept("empty", "Say nothing.", " "),
            kept("thinks", "Why?", "<think>Hm.</think>Because."),
        ];
        let options = HarvestOptions { adapter: Some("red".into()), min_rating: None };
        let test = [test_row(long)];
        let found = harvest(&rows, Path::new("state"), &options, &test).unwrap();
        let ids: Vec<&str> = found.examples.iter().map(|e| e.id.as_str()).collect();
        assert_eq!(ids, ["good", "corrected"]);
        assert_eq!(found.examples[1].completion(), "Paris.");
        assert_eq!((found.looked_at, found.taken, found.corrected), (14, 2, 1));
        let reasons = BTreeMap::from([
            ("the same as another", 1),
            ("rated too low", 1),
            ("cut off at the longest length", 1),
            ("cancelled or failed", 1),
            ("several choices", 1),
            ("plain text, not a conversation", 1),
            ("turns out of order", 1),
            ("answered by another model", 1),
            ("too near to a question of the test set", 2),
            ("without an answer", 1),
            ("thinks before it answers", 1),
        ]);
        assert_eq!(found.left_out, reasons);
        assert_eq!(found.taken + found.left_out.values().sum::<usize>(), found.looked_at);
    }

    #[test]
    fn a_least_rating_asks_for_one() {
        let rated = |id: &str, rating| Kept { rating, ..kept(id, id, "Yes.") };
        let rows = [rated("a", None), rated("b", Some(0.4)), rated("c", Some(0.5))];
        let options = HarvestOptions { adapter: None, min_rating: Some(0.5) };
        let found = harvest(&rows, Path::new("state"), &options, &[]).unwrap();
        assert_eq!(found.examples.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["c"]);
        assert_eq!(found.left_out, BTreeMap::from([("not rated", 1), ("rated too low", 1)]));
    }
}
