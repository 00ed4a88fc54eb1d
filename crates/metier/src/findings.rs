//! What a proof must tell beside the answers: of the data, its terms and licences, and of the test set.

use ::data::{Example, LeakOptions, PersonalReport};
use ::eval::{DataSummary, Finding, Language, Licence, Rule};
use anyhow::Result;
use std::collections::BTreeSet;

fn rule(name: &str, asks: String, finding: Finding, evidence: String) -> Rule {
    Rule { name: name.to_owned(), asks, finding, evidence }
}

/// Test examples in the training data.
pub(crate) struct Leaks {
    /// None where there is no training data to look at.
    pub(crate) rule: Option<Rule>,
    pub(crate) summary: DataSummary,
    /// Ids of the test examples.
    pub(crate) ids: Vec<String>,
}

/// `apart`: the rows of `train` that do not stand in the test set, which baselines and worked examples come
/// from; `not_apart`: candidates of whose training it is not known that it left the others out.
pub(crate) fn leaks(
    (train, apart): (&[Example], &[Example]),
    test: &[Example],
    not_apart: &[String],
    language: Language,
) -> Result<Leaks> {
    let mut summary =
        DataSummary { test_rows: test.len(), train_rows: train.len(), ..DataSummary::default() };
    if train.is_empty() {
        summary.leak_check = language.say("Not done: [data] names no training data.", &[]);
        return Ok(Leaks { rule: None, summary, ids: Vec::new() });
    }
    let leaks = ::data::leak_check(train, test, &LeakOptions::default())?;
    summary.leaks = leaks.total();
    summary.leak_check = language.say(
        "Every test question was compared with every training question: {exact} the same byte by byte, {normalised} more after normalising, {near} more by overlap of three-word sequences.",
        &[("exact", &leaks.exact), ("normalised", &leaks.normalised), ("near", &leaks.near)],
    );
    let first: Vec<&str> = leaks.leaked_ids.iter().take(5).map(String::as_str).collect();
    let (n, left_out) = (leaks.total(), train.len() - apart.len());
    let found = || {
        language.say(
            "{n} test examples are in the training data, exactly or nearly, such as {first}.",
            &[("n", &n), ("first", &first.join(", "))],
        )
    };
    let (finding, evidence) = if n == 0 {
        (Finding::Kept, language.say("None was found.", &[]))
    } else if !not_apart.is_empty() {
        let names = not_apart.join(", ");
        let trained =
            language.say("Nothing says that {names} learnt without them.", &[("names", &names)]);
        (Finding::Open, format!("{} {trained}", found()))
    } else if ::data::leak_check(apart, test, &LeakOptions::default())?.is_clean() {
        let without = language.say(
            "Adapters, baselines and worked examples do without the {left_out} training rows concerned.",
            &[("left_out", &left_out)],
        );
        (Finding::Kept, format!("{} {without}", found()))
    } else {
        (Finding::Open, found())
    };
    let asks = language.say("No test example is in the training data.", &[]);
    let rule = Some(rule("leaks", asks, finding, evidence));
    Ok(Leaks { rule, summary, ids: leaks.leaked_ids })
}

/// Whether the test set was opened before. Choosing by what a test set says wears it out, so the reader is
/// told how often that was possible. None where further looks are planned for, and counted.
pub(crate) fn openings(count: Option<usize>, planned: bool, language: Language) -> Option<Rule> {
    let (finding, evidence) = match (count, planned) {
        (Some(_), true) => return None,
        (Some(1), false) => (Finding::Kept, language.say("It was opened for the first time.", &[])),
        (Some(n), false) => (
            Finding::Warning,
            language.say(
                "It was opened {n} times; each look makes a chance finding likelier.",
                &[("n", &n)],
            ),
        ),
        (None, true) => (
            Finding::Open,
            language
                .say("Its openings could not be counted, so which look this is is not known.", &[]),
        ),
        (None, false) => {
            (Finding::Warning, language.say("Its openings could not be counted.", &[]))
        }
    };
    let asks = language.say("The sealed test set is opened once.", &[]);
    Some(rule("openings", asks, finding, evidence))
}

/// Licences that are not known are a warning: nobody can say whether this may be used.
pub(crate) fn licences(licences: &[Licence], language: Language) -> Rule {
    let asks = language.say("The licences of base and data are known, and what they ask for.", &[]);
    let unknown = licences.iter().filter(|l| crate::licences::find(&l.licence).is_none());
    let unknown: Vec<String> =
        unknown.map(|l| format!("{}: {}", l.what, language.translated(&l.licence))).collect();
    let known: BTreeSet<&str> = licences
        .iter()
        .filter_map(|l| crate::licences::find(&l.licence))
        .map(|licence| licence.id)
        .collect();
    let told = |id: &&str| {
        let licence = crate::licences::find(id)?;
        let asked = licence.obligations.iter().map(|text| language.translated(text));
        let asked = asked.collect::<Vec<_>>().join(" ");
        Some(format!("{}: {asked}", licence.name))
    };
    let told = known.iter().filter_map(told).collect::<Vec<_>>().join(" ");
    let (finding, evidence) = match (unknown.is_empty(), licences.len()) {
        (true, 0) => (Finding::Warning, language.say("No licence is stated.", &[])),
        (true, _) => (Finding::Kept, told),
        (false, _) => {
            let unknown = language.say("Not known: {list}.", &[("list", &unknown.join("; "))]);
            (Finding::Warning, format!("{unknown} {told}"))
        }
    };
    rule("licences", asks, finding, evidence.trim().to_owned())
}

/// Fields of a row that say what wrote it.
const WRITERS: [&str; 6] =
    ["generated_by", "generator", "teacher", "model", "source", "provenance"];
/// What the names of models begin with that can only be rented.
const RENTED: [&str; 6] = ["gpt-", "chatgpt", "claude", "gemini", "grok", "mistral-large"];

/// Rented models that rows say they were written by.
pub(crate) fn writers(examples: &[Example]) -> BTreeSet<String> {
    let named = examples.iter().flat_map(|example| {
        WRITERS.iter().filter_map(|field| example.slices.get(*field)).map(String::as_str)
    });
    let rented = named.filter(|name| {
        let model = name.rsplit('/').next().unwrap_or(name).to_lowercase();
        // gpt-oss is published.
        RENTED.iter().any(|begin| model.starts_with(begin)) && !model.starts_with("gpt-oss")
    });
    rented.map(str::to_owned).collect()
}

/// Training data that a model wrote: its provider's terms may forbid what is done with it here.
pub(crate) fn terms_of_use(writers: &BTreeSet<String>, language: Language) -> Option<Rule> {
    if writers.is_empty() {
        return None;
    }
    let names: Vec<&str> = writers.iter().map(String::as_str).collect();
    let asks =
        language.say("Whoever wrote the training data allows a model to be trained on it.", &[]);
    let evidence = language.say(
        "It was written by {names}: read the provider's terms of use on training models with its output.",
        &[("names", &names.join(", "))],
    );
    Some(rule("terms_of_use", asks, Finding::Warning, evidence))
}

/// What looks like personal data, counted by kind.
pub(crate) fn personal_data(train: &[Example], test: &[Example], language: Language) -> Rule {
    let words = |report: &PersonalReport| {
        let kind = |(kind, n): (&::data::PersonalKind, &usize)| {
            format!("{n} {}", language.translated(kind.name()))
        };
        report.counts.iter().map(kind).collect::<Vec<_>>().join(", ")
    };
    let mut found = Vec::new();
    let report = ::data::personal_data(train);
    if report.rows > 0 {
        found.push(language.say(
            "In {n} training examples: {kinds}.",
            &[("n", &report.rows), ("kinds", &words(&report))],
        ));
    }
    let report = ::data::personal_data(test);
    if report.rows > 0 {
        found.push(language.say(
            "In {n} test examples: {kinds}.",
            &[("n", &report.rows), ("kinds", &words(&report))],
        ));
    }
    let asks =
        language.say("Data that a model learns holds no personal data that it might repeat.", &[]);
    let (finding, evidence) = match found.is_empty() {
        true => (
            Finding::Kept,
            language.say("None was recognised; names and addresses are not looked for.", &[]),
        ),
        false => (Finding::Warning, found.join(" ")),
    };
    rule("personal_data", asks, finding, evidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of JSON as a data file.
    fn rows(lines: &[&str]) -> Vec<Example> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();
        ::data::read(&path, &::data::ReadOptions::default()).unwrap()
    }

    #[test]
    fn rows_that_a_rented_model_wrote_are_told() {
        let data = rows(&[
            r#"{"prompt": "a", "completion": "b", "source": "openai/gpt-4o"}"#,
            r#"{"prompt": "c", "completion": "d", "generated_by": "Claude-Haiku-4-5"}"#,
            r#"{"prompt": "e", "completion": "f", "source": "tickets of 2024", "model": "gpt-oss-20b"}"#,
        ]);
        let found = writers(&data);
        assert_eq!(found.iter().collect::<Vec<_>>(), ["Claude-Haiku-4-5", "openai/gpt-4o"]);
        let rule = terms_of_use(&found, Language::En).unwrap();
        assert_eq!(rule.finding, Finding::Warning);
        assert!(rule.evidence.contains("gpt-4o") && rule.evidence.contains("terms of use"));
        assert_eq!(terms_of_use(&writers(&data[2..]), Language::En), None);
    }

    #[test]
    fn personal_data_is_counted_by_kind() {
        let train = rows(&[
            r#"{"prompt": "write to anna@firm.fr or bob@firm.fr", "completion": "done"}"#,
            r#"{"prompt": "call +33 6 12 34 56 78", "completion": "done"}"#,
        ]);
        let clean = rows(&[r#"{"prompt": "hello", "completion": "done"}"#]);
        let rule = personal_data(&train, &clean, Language::En);
        assert_eq!(rule.finding, Finding::Warning);
        assert_eq!(rule.evidence, "In 2 training examples: 2 e-mail addresses, 1 phone numbers.");
        assert!(personal_data(&clean, &train, Language::Fr).evidence.contains("2 adresses"));
        assert_eq!(personal_data(&clean, &clean, Language::En).finding, Finding::Kept);
    }

    #[test]
    fn planned_looks_are_no_finding_but_uncounted_ones_are() {
        let finding = |count, planned| openings(count, planned, Language::En).map(|r| r.finding);
        assert_eq!(finding(Some(1), false), Some(Finding::Kept));
        assert_eq!(finding(Some(2), false), Some(Finding::Warning));
        assert_eq!(finding(Some(2), true), None);
        assert_eq!(finding(None, true), Some(Finding::Open));
        assert_eq!(finding(None, false), Some(Finding::Warning));
    }

    #[test]
    fn obligations_are_told_once_and_unknown_licences_named() {
        let licence = |what: &str, licence: &str| Licence {
            what: what.to_owned(),
            licence: licence.to_owned(),
        };
        let both = licences(&[licence("a", "mit"), licence("b", "MIT License")], Language::En);
        assert_eq!(
            (both.finding, both.evidence.matches("MIT License").count()),
            (Finding::Kept, 1)
        );
        let one = licences(&[licence("a", "mit"), licence("b", "my own")], Language::En);
        assert!(
            one.finding == Finding::Warning && one.evidence.starts_with("Not known: b: my own.")
        );
        assert_eq!(licences(&[], Language::En).finding, Finding::Warning);
    }

    /// Every obligation of every licence has French words.
    #[test]
    fn obligations_are_told_in_french() {
        for licence in crate::licences::LICENCES {
            for text in licence.obligations {
                assert_ne!(&Language::Fr.translated(text), text);
            }
        }
    }
}
