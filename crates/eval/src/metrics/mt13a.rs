//! The tokenisation of mteval-v13a, by which BLEU scores are compared in the field.

use super::python;
use regex::Regex;
use std::sync::LazyLock;

static STEPS: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    let step = |pattern, with| (Regex::new(pattern).expect("these expressions compile"), with);
    [
        // Punctuation and symbols of ASCII, but for apostrophe, comma, hyphen and full stop.
        step(r"([\x7b-\x7e\x5b-\x60\x20-\x26\x28-\x2b\x3a-\x40\x2f])", " $1 "),
        // Full stop and comma, unless between digits.
        step(r"([^0-9])([.,])", "$1 $2 "),
        step(r"([.,])([^0-9])", " $1 $2"),
        // A hyphen behind a digit.
        step(r"([0-9])(-)", "$1 $2 "),
    ]
});

/// The tokens of a text.
pub(super) fn tokens(text: &str) -> Vec<String> {
    let text = text.trim_end_matches(python::is_space);
    let mut line = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (name, sign) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        line = line.replace(name, sign);
    }
    line = format!(" {line} ");
    for (pattern, with) in STEPS.iter() {
        line = pattern.replace_all(&line, *with).into_owned();
    }
    python::split(&line).map(str::to_owned).collect()
}
