//! The number that the answer ends with is the reference's.

use super::{Family, Metric, Score};
use regex::Regex;
use std::sync::LazyLock;

/// The last number of the answer equals the last number of the reference, whatever stands around
/// them: a model that shows its work is judged by where it arrives, as in GSM8K (arXiv 2110.14168).
///
/// A point or comma is a decimal sign or groups digits. Where both occur the later one is decimal;
/// one that is repeated groups, and so does a single comma before exactly three digits unless
/// a lone 0 stands before it (`1,234` is a thousand, `0,123` and `1,5` are not). Spaces and
/// apostrophes before three digits group. A percent sign or currency beside a number is not read.
pub(super) static METRIC: Metric = Metric {
    name: "numeric_match",
    what: "The share of answers whose last number is the reference's.",
    reads_as: "of the numbers right",
    score: Score::Text(&|answer, reference| score(answer, reference, 0.0)),
    check_reference,
    examples: &[
        ("42", "42", 1.0),
        ("6 * 7 = 42.", "The answer is 42", 1.0),
        ("1,234.50 EUR", "1234.5", 1.0),
        ("1.234,50 €", "1234.5", 1.0),
        ("1 234,5", "1234.5", 1.0),
        ("-3", "3", 0.0),
        ("about 42, not 43", "42", 0.0),
        ("forty-two", "42", 0.0),
        ("", "0", 0.0),
    ],
    ..Metric::BINARY
};

/// `numeric_match:0.01`: the answer's number may be off by that share of the reference's.
pub(super) static FAMILY: Family = Family {
    name: "numeric_match",
    parameter: "TOLERANCE",
    what: "The share of answers whose last number is the reference's within a relative tolerance.",
    example: "0.01",
    build,
};

fn build(parameter: &str) -> Result<Metric, String> {
    let tolerance: f64 = parameter.trim().parse().unwrap_or(f64::NAN);
    if !(0.0..1.0).contains(&tolerance) {
        return Err(format!("found {parameter:?}; expected a number from 0 to below 1"));
    }
    let score = move |answer: &str, reference: &str| score(answer, reference, tolerance);
    Ok(Metric {
        what: FAMILY.what,
        reads_as: "of the numbers right within the tolerance",
        score: Score::Text(Box::leak(Box::new(score))),
        check_reference,
        examples: &[
            ("100.9", "100", 1.0),
            ("99.1", "100", 1.0),
            ("101.1", "100", 0.0),
            ("-100", "100", 0.0),
            ("0", "0", 1.0),
        ],
        ..Metric::BINARY
    })
}

fn score(answer: &str, reference: &str, tolerance: f64) -> f64 {
    match (last_number(answer), last_number(reference)) {
        (Some(answer), Some(reference)) => {
            f64::from((answer - reference).abs() <= tolerance * reference.abs())
        }
        _ => 0.0,
    }
}

fn check_reference(reference: &str) -> Result<(), String> {
    match last_number(reference) {
        Some(_) => Ok(()),
        None => Err("it holds no number; expected one such as 42 or 1,234.5".to_owned()),
    }
}

static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    // Digits with groups or decimals, then an exponent. A sign counts where no letter or digit stands
    // before it: 3-4 is not minus four.
    Regex::new(
        r"(?:^|[^\w])?([-−+]?)((?:\d+(?:[.,]\d+|[ '\u{a0}\u{202f}]\d{3}\b)*|\.\d+)(?:[eE][-+]?\d{1,3}\b)?)",
    )
    .expect("the expression of this file compiles")
});

fn last_number(text: &str) -> Option<f64> {
    let found = NUMBER.captures_iter(text).last()?;
    let (sign, digits) = (found.get(1)?, found.get(2)?);
    let before = text[..sign.start()].chars().next_back();
    let negative = matches!(sign.as_str(), "-" | "−") && !before.is_some_and(char::is_alphanumeric);
    let value: f64 = plain(digits.as_str()).parse().ok()?;
    value.is_finite().then_some(if negative { -value } else { value })
}

/// A number's text without grouping, with a decimal point.
fn plain(text: &str) -> String {
    let text: String =
        text.chars().filter(|c| !matches!(c, ' ' | '\'' | '\u{a0}' | '\u{202f}')).collect();
    let count = |sign| text.matches(sign).count();
    let decimal = match (text.rfind('.'), text.rfind(',')) {
        (Some(point), Some(comma)) => Some(point.max(comma)),
        (Some(point), None) if count('.') == 1 => Some(point),
        (None, Some(comma)) if count(',') == 1 => {
            let behind = text[comma + 1..].bytes().take_while(u8::is_ascii_digit).count();
            let groups = behind == 3 && (1..=3).contains(&comma) && &text[..comma] != "0";
            (!groups).then_some(comma)
        }
        _ => None,
    };
    let keep = |(place, c): (usize, char)| match c {
        '.' | ',' if Some(place) == decimal => Some('.'),
        '.' | ',' => None,
        other => Some(other),
    };
    text.char_indices().filter_map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_read_as_people_write_them() {
        for (text, expected) in [
            ("#### 1,200", Some(1200.0)),
            ("1.200", Some(1.2)),
            ("1.200.000", Some(1_200_000.0)),
            ("0,123", Some(0.123)),
            ("1'234", Some(1234.0)),
            ("12\u{202f}345,6 €", Some(12345.6)),
            ("from 3-4", Some(4.0)),
            ("= -4", Some(-4.0)),
            ("−4", Some(-4.0)),
            ("2e3", Some(2000.0)),
            (".5", Some(0.5)),
            ("2, 3", Some(3.0)),
            ("$18.", Some(18.0)),
            ("none", None),
        ] {
            assert_eq!(last_number(text), expected, "{text:?}");
        }
        assert!(last_number(&"9".repeat(400)).is_none());
        assert!(build("1.5").is_err() && build("x").is_err() && build("-0.1").is_err());
    }
}
