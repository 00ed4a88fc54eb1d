//! Duplicate rows: they weigh double in training, and split apart they leak.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::excerpt;
use crate::example::{Example, Origin};
use crate::normalise::normalise;

/// What counts as a duplicate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DedupOptions {
    /// Also remove rows that differ in case, spacing and punctuation of what is asked.
    pub normalised: bool,
    /// How many removals and conflicts the report shows; all are counted.
    pub listed: usize,
}

impl Default for DedupOptions {
    fn default() -> Self {
        Self { normalised: true, listed: 50 }
    }
}

/// How a removed row resembles the one kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DuplicateKind {
    /// The same turns byte by byte.
    Exact,
    /// The same after [`normalise`], with the same answer.
    Normalised,
}

/// A row that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// How it resembles the kept one.
    pub kind: DuplicateKind,
    /// Where it was.
    pub removed: Origin,
    /// The first of its kind, which stays.
    pub kept: Origin,
}

/// One question with several answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The beginning of the question.
    pub question: String,
    /// The beginning of each answer and where it stands, in the order of the data.
    pub answers: Vec<(String, Origin)>,
}

/// What [`deduplicate`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupReport {
    /// Rows before.
    pub rows_in: usize,
    /// Rows after.
    pub rows_out: usize,
    /// Rows removed because an earlier one has the same turns.
    pub exact: usize,
    /// Further rows removed because an earlier one is the same after normalisation.
    pub normalised: usize,
    /// Questions (normalised) with more than one answer. Their rows stay: which answer is right is
    /// for people to say.
    pub conflicts: usize,
    /// The first removals.
    pub removed: Vec<Removed>,
    /// The first conflicts.
    pub conflicting: Vec<Conflict>,
}

/// Keeps the first of each set of duplicates, in the order of the data.
///
/// Two rows are normalised duplicates when what is asked (all turns before the answer, system turns
/// too) agrees after [`normalise`] and the answers are equal but for white space at the ends:
/// answers are what is learnt, so their case and punctuation count.
pub fn deduplicate(examples: Vec<Example>, options: &DedupOptions) -> (Vec<Example>, DedupReport) {
    let mut report = DedupReport { rows_in: examples.len(), ..DedupReport::default() };
    let (conflicts, conflicting) = conflicts(&examples, options.listed);
    (report.conflicts, report.conflicting) = (conflicts, conflicting);

    let mut first_exact: HashMap<Vec<(String, String, String)>, Origin> = HashMap::new();
    let mut first_normalised: HashMap<(String, String), Origin> = HashMap::new();
    let mut kept = Vec::with_capacity(examples.len());
    for example in examples {
        let turns = example.conversation.messages.iter();
        let mut exact: Vec<_> =
            turns.map(|m| (m.role.clone(), m.content.clone(), json(&m.tool_calls))).collect();
        exact.push((String::new(), String::new(), json(&example.conversation.tools)));
        let normalised = (normalised_prompt(&example), example.answer());
        let earlier = match first_exact.get(&exact) {
            Some(origin) => Some((DuplicateKind::Exact, origin)),
            None if options.normalised => {
                first_normalised.get(&normalised).map(|o| (DuplicateKind::Normalised, o))
            }
            None => None,
        };
        if let Some((kind, origin)) = earlier {
            match kind {
                DuplicateKind::Exact => report.exact += 1,
                DuplicateKind::Normalised => report.normalised += 1,
            }
            if report.removed.len() < options.listed {
                let (removed, kept) = (example.origin, origin.clone());
                report.removed.push(Removed { kind, removed, kept });
            }
            continue;
        }
        first_exact.insert(exact, example.origin.clone());
        first_normalised.entry(normalised).or_insert_with(|| example.origin.clone());
        kept.push(example);
    }
    report.rows_out = kept.len();
    (kept, report)
}

/// Counts the questions (normalised) that have more than one answer, and shows the first `listed`.
pub fn conflicts(examples: &[Example], listed: usize) -> (usize, Vec<Conflict>) {
    let mut answers: HashMap<String, Vec<&Example>> = HashMap::new();
    let mut order: Vec<String> = Vec::new();
    for example in examples {
        let prompt = normalised_prompt(example);
        let known = answers.entry(prompt.clone()).or_default();
        if known.is_empty() {
            order.push(prompt);
        }
        if !known.iter().any(|e| e.answer() == example.answer()) {
            known.push(example);
        }
    }
    let several: Vec<&Vec<&Example>> =
        order.iter().map(|prompt| &answers[prompt]).filter(|rows| rows.len() > 1).collect();
    let shown = several.iter().take(listed).map(|examples| Conflict {
        question: excerpt(&examples[0].question()),
        answers: examples.iter().map(|e| (excerpt(&e.answer()), e.origin.clone())).collect(),
    });
    (several.len(), shown.collect())
}

/// Everything before the answer, with roles, after normalisation.
fn normalised_prompt(example: &Example) -> String {
    let turns = example.prompt().iter();
    let said: String = turns
        .map(|m| format!("{}\n{}\n{}", m.role, normalise(&m.content), json(&m.tool_calls)))
        .collect();
    said + &json(&example.conversation.tools)
}

/// Calls or tools as text; empty where there are none.
fn json(values: &[Value]) -> String {
    values.iter().map(|value| format!("{value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::tests::example;
    use proptest::prelude::*;

    #[test]
    fn the_first_stays_and_conflicts_stay_all() {
        let rows = vec![
            example(1, "Where?", "here"),
            example(2, "where", "here "),
            example(3, "Where?", "here"),
            example(4, "Where?", "HERE"),
            example(5, "Why?", "because"),
        ];
        let (kept, report) = deduplicate(rows.clone(), &DedupOptions::default());
        let lines: Vec<_> = kept.iter().map(|e| e.origin.line).collect();
        assert_eq!(lines, [1, 4, 5]);
        assert_eq!((report.rows_in, report.rows_out), (5, 3));
        assert_eq!((report.exact, report.normalised, report.conflicts), (1, 1, 1));
        let pairs: Vec<_> =
            report.removed.iter().map(|r| (r.kind, r.removed.line, r.kept.line)).collect();
        assert_eq!(pairs, [(DuplicateKind::Normalised, 2, 1), (DuplicateKind::Exact, 3, 1)]);
        let answers: Vec<_> =
            report.conflicting[0].answers.iter().map(|(a, o)| (a.as_str(), o.line)).collect();
        assert_eq!(answers, [("here", 1), ("HERE", 4)]);

        let exact_only = DedupOptions { normalised: false, listed: 0 };
        let (kept, report) = deduplicate(rows, &exact_only);
        assert_eq!((kept.len(), report.exact, report.normalised), (4, 1, 0));
        assert!(report.removed.is_empty() && report.conflicting.is_empty());
        assert_eq!(report.conflicts, 1);
    }

    #[test]
    fn another_system_turn_is_another_question() {
        let mut rows = vec![example(1, "Where?", "here"), example(2, "Where?", "there")];
        let system = text::Message::new("system", "You are in Rome.");
        rows[1].conversation.messages.insert(0, system);
        let (kept, report) = deduplicate(rows, &DedupOptions::default());
        assert_eq!((kept.len(), report.conflicts), (2, 0));
    }

    proptest! {
        #[test]
        fn the_counts_add_up_and_twice_is_once(
            pairs in prop::collection::vec(("[aAb]{1,2}[.?]?", "[xy]"), 0..30)
        ) {
            let rows: Vec<_> =
                pairs.iter().enumerate().map(|(i, (q, a))| example(i + 1, q, a)).collect();
            let (kept, report) = deduplicate(rows, &DedupOptions::default());
            prop_assert_eq!(report.rows_in - report.exact - report.normalised, report.rows_out);
            prop_assert_eq!(kept.len(), report.rows_out);
            let (again, second) = deduplicate(kept.clone(), &DedupOptions::default());
            prop_assert_eq!(again, kept);
            prop_assert_eq!(second.conflicts, report.conflicts);
        }
    }
}
