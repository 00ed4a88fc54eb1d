//! The report's words in other languages. English is written where it is used; a pattern that has a
//! line in [`FRENCH`] is said in French where that is asked for, any other stays English (such as an
//! endpoint's own words).

use crate::french::FRENCH;
use crate::numbers;
use crate::stats::Interval;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// A language of reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English.
    #[default]
    En,
    /// French.
    Fr,
}

impl Language {
    /// The language of this code, `en` or `fr`.
    pub fn from_code(code: &str) -> Option<Language> {
        match code {
            "en" => Some(Language::En),
            "fr" => Some(Language::Fr),
            _ => None,
        }
    }

    /// Its code, as HTML has it.
    pub fn code(self) -> &'static str {
        match self {
            Language::En => "en",
            Language::Fr => "fr",
        }
    }

    /// An English text of ours in this language.
    pub(crate) fn t(self, english: &'static str) -> &'static str {
        self.known(english).unwrap_or(english)
    }

    /// A text that may be one of ours, such as what a metric measures, in this language; any other as it is.
    pub fn translated(self, text: &str) -> String {
        self.known(text).unwrap_or(text).to_owned()
    }

    fn known(self, english: &str) -> Option<&'static str> {
        match self {
            Language::En => None,
            Language::Fr => FRENCH.iter().find(|(en, _)| *en == english).map(|(_, fr)| *fr),
        }
    }

    /// A pattern in this language, with values in place of `{name}`. Values are not read again: what
    /// looks like a place in them stays as it is.
    pub fn say(self, pattern: &'static str, values: &[(&str, &dyn Display)]) -> String {
        let mut text = String::new();
        let mut rest = self.t(pattern);
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let (name, after) = after.split_once('}').unwrap_or((after, ""));
            match values.iter().find(|(known, _)| *known == name) {
                Some((_, value)) => text.push_str(&value.to_string()),
                None => text.push_str(name),
            }
            rest = after;
        }
        text + rest
    }

    /// One of two, by language.
    pub(crate) fn pick(self, english: String, french: String) -> String {
        match self {
            Language::En => english,
            Language::Fr => french,
        }
    }

    /// A number written the English way in this language's way: a decimal comma, and a narrow space
    /// between thousands.
    pub fn number(self, english: String) -> String {
        let letter = |c| match c {
            '.' => ',',
            ',' => '\u{202f}',
            ' ' => '\u{a0}',
            other => other,
        };
        match self {
            Language::En => english,
            Language::Fr => english.chars().map(letter).collect(),
        }
    }

    /// [`numbers::percent`] in this language, and so on.
    pub(crate) fn percent(self, share: f64) -> String {
        self.number(numbers::percent(share))
    }

    pub(crate) fn points(self, difference: f64) -> String {
        self.number(numbers::points(difference))
    }

    pub(crate) fn signed(self, difference: f64) -> String {
        self.number(numbers::signed(difference))
    }

    pub(crate) fn significant(self, value: f64) -> String {
        self.number(numbers::significant(value))
    }

    pub(crate) fn money(self, amount: f64, currency: &str) -> String {
        self.number(numbers::money(amount, currency))
    }

    pub(crate) fn count(self, value: usize) -> String {
        self.number(numbers::count(value))
    }

    pub(crate) fn p_value(self, p: f64) -> String {
        self.number(numbers::p_value(p))
    }

    pub(crate) fn confidence(self, share: f64) -> String {
        self.number(numbers::confidence(share))
    }

    pub(crate) fn duration(self, seconds: f64) -> String {
        self.number(numbers::duration(seconds))
    }

    pub(crate) fn bytes(self, value: u64) -> String {
        let english = numbers::bytes(value);
        let french = english.replace("bytes", "octets").replace("iB", "io");
        self.number(self.pick(english, french))
    }

    /// From one number to another.
    pub(crate) fn range(self, lo: impl Display, hi: impl Display) -> String {
        self.say("{lo} to {hi}", &[("lo", &lo), ("hi", &hi)])
    }

    /// The ends of an interval of shares.
    pub(crate) fn percents(self, interval: Interval) -> String {
        self.range(self.percent(interval.lo), self.percent(interval.hi))
    }

    /// The ends of an interval of differences, in points.
    pub(crate) fn differences(self, interval: Interval) -> String {
        self.range(self.signed(interval.lo), self.signed(interval.hi))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_put_in_their_places_and_not_read_again() {
        let text = Language::En.say("{b} beside {a}", &[("a", &"{b}"), ("b", &"x")]);
        assert_eq!(text, "x beside {b}");
        assert_eq!(Language::Fr.say("{b} beside {a}", &[("a", &1), ("b", &2)]), "2 face à 1");
        assert_eq!(Language::Fr.t("no such text"), "no such text");
    }

    /// Every text that is meant to be translated is, with the same places in it.
    #[test]
    fn nothing_is_left_in_english() {
        let sources = [
            include_str!("../templates/report.html"),
            include_str!("cost/economics.rs"),
            include_str!("judge.rs"),
            include_str!("prompting.rs"),
            include_str!("proof/rules.rs"),
            include_str!("report/html.rs"),
            include_str!("report/markdown.rs"),
            include_str!("report/money.rs"),
            include_str!("words.rs"),
            // The findings of the program.
            include_str!("../../metier/src/findings.rs"),
            include_str!("../../metier/src/commands/prove.rs"),
            include_str!("../../metier/src/prove_plan.rs"),
        ];
        let mut texts = 0;
        for source in sources {
            let source = source.split("#[cfg(test)]").next().unwrap().replace("\\\"", "\u{1}");
            for start in [".t(\"", ".t(\n", ".say(\"", ".say(\n"] {
                for rest in source.split(start).skip(1) {
                    let rest = match start.ends_with('\n') {
                        true => rest.trim_start().strip_prefix('"'),
                        false => Some(rest),
                    };
                    // A call without a text of its own passes one on.
                    let Some(rest) = rest else { continue };
                    let text = rest.split('"').next().unwrap().replace("\\u{a0}", "\u{a0}");
                    let text = text.replace('\u{1}', "\"");
                    assert!(FRENCH.iter().any(|(en, _)| *en == text), "not in French: {text:?}");
                    texts += 1;
                }
            }
        }
        assert!(texts > 200, "{texts}");
        let places = |text: &str| {
            let mut found: Vec<String> =
                text.split('{').skip(1).map(|r| r.split('}').next().unwrap().to_owned()).collect();
            found.sort_unstable();
            found
        };
        for (en, fr) in FRENCH {
            assert_eq!(places(en), places(fr), "{en}");
        }
    }

    /// What is translated where it is shown: measures, kinds of candidates.
    #[test]
    fn what_is_shown_from_elsewhere_is_translated_too() {
        let metrics = crate::metrics::METRICS.iter().map(|metric| metric.what);
        let families = crate::metrics::FAMILIES.iter().map(|family| family.what);
        let kinds = ["local", "rented", "recorded", "baseline"];
        for text in metrics.chain(families).chain(kinds) {
            assert!(FRENCH.iter().any(|(en, _)| *en == text), "not in French: {text:?}");
        }
    }

    #[test]
    fn numbers_are_written_the_language_s_way() {
        let fr = Language::Fr;
        assert_eq!(fr.money(1234.4, "EUR"), "1\u{202f}234\u{a0}EUR");
        assert_eq!(fr.percent(0.873), "87,3\u{a0}%");
        assert_eq!(fr.bytes(1_610_612_736), "1,5\u{a0}Gio");
        assert_eq!(fr.range(1, 2), "1 à 2");
        assert_eq!(Language::En.differences([-0.01, 0.02].into()), "-1.0 to +2.0");
    }
}
