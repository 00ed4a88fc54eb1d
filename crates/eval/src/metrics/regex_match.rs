//! The answer matches an expression.

use super::{Family, Metric, Score};
use regex::RegexBuilder;

/// `regex:PATTERN`: 1 when the pattern is found anywhere in the answer, else 0; `^` and `$` are the
/// ends of the whole answer. The syntax is that of the `regex` crate: no look-around, so that the time
/// is linear in the answer's length. `{reference}` in the pattern stands for the reference, taken
/// literally.
pub(super) static FAMILY: Family = Family {
    name: "regex",
    parameter: "PATTERN",
    what: "The share of answers in which the pattern is found.",
    example: "(?i)^yes|{reference}$",
    build,
};

/// Bytes that a compiled pattern may take.
const SIZE_LIMIT: usize = 1 << 20;

fn build(pattern: &str) -> Result<Metric, String> {
    if pattern.is_empty() {
        return Err("found no pattern; expected one such as ^(yes|no)$".to_owned());
    }
    let compile = |pattern: &str| {
        RegexBuilder::new(pattern).size_limit(SIZE_LIMIT).build().map_err(|e| e.to_string())
    };
    let score: &'static (dyn Fn(&str, &str) -> f64 + Send + Sync) =
        if pattern.contains("{reference}") {
            compile(&pattern.replace("{reference}", "x"))?;
            let pattern = pattern.to_owned();
            Box::leak(Box::new(move |answer: &str, reference: &str| {
                let literal = regex::escape(reference.trim());
                let found = compile(&pattern.replace("{reference}", &literal));
                // Only a reference of a size beyond reason makes the pattern too large.
                f64::from(found.is_ok_and(|found| found.is_match(answer)))
            }))
        } else {
            let found = compile(pattern)?;
            Box::leak(Box::new(move |answer: &str, _: &str| f64::from(found.is_match(answer))))
        };
    Ok(Metric {
        what: FAMILY.what,
        reads_as: "of the answers match the pattern",
        score: Score::Text(score),
        examples: if pattern == FAMILY.example { EXAMPLES } else { &[] },
        ..Metric::BINARY
    })
}

const EXAMPLES: &[(&str, &str, f64)] = &[
    ("Yes, of course", "no", 1.0),
    ("It is 3.5", "3.5", 1.0),
    ("It is 345", "3.5", 0.0),
    ("say yes", "no", 0.0),
    ("", "no", 0.0),
];
