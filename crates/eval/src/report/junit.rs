//! The rules of the verdict as JUnit's XML.

use super::drawing::visible;
use super::{Finding, Report, Rule};
use askama::Template;

#[derive(Template)]
#[template(path = "junit.xml")]
struct Page<'a> {
    report: &'a Report,
    failures: usize,
}

/// A rule that is kept, or of which the reader is only warned, is a test that passes.
fn fails(rule: &Rule) -> bool {
    matches!(rule.finding, Finding::Open | Finding::Broken)
}

pub(super) fn render(report: &Report) -> String {
    let failures = report.rules.iter().filter(|rule| fails(rule)).count();
    // The template writes into a string and calls nothing that can fail.
    let page = Page { report, failures }.render().unwrap_or_default();
    page.chars().map(visible).collect()
}
