//! The report as Markdown, short enough for a pull request.

use super::drawing::visible;
use super::{Finding, Report};
use crate::numbers::{count, money, percent, points, signed};

/// Ids that a list names before it says how many more there are.
const LISTED: usize = 20;

pub(super) fn render(report: &Report) -> String {
    let mut text = format!("## {}: {}\n\n", report.verdict.title(), plain(&report.title));
    for sentence in &report.sentences {
        text.push_str(&format!("{}\n\n", plain(sentence)));
    }
    if let Some(first) = report.candidates.first() {
        let names: Vec<&String> = first.metrics.keys().collect();
        let mut head = vec!["candidate".to_owned()];
        head.extend(names.iter().map(|name| plain(name)));
        head.push("1,000 requests".to_owned());
        let rows = report.candidates.iter().map(|candidate| {
            let mut row = vec![plain(&candidate.name)];
            row.extend(names.iter().map(|name| match candidate.metrics.get(*name) {
                Some(m) => format!(
                    "{} ({} to {})",
                    percent(m.value),
                    percent(m.ci95.lo),
                    percent(m.ci95.hi)
                ),
                None => "–".to_owned(),
            }));
            row.push(match &candidate.cost {
                Some(cost) => money(cost.per_1000_requests, &cost.currency),
                None => "not stated".to_owned(),
            });
            row
        });
        table(&mut text, &head, rows.collect());
    }
    let differences = report.comparisons.iter().map(|c| {
        let interval = format!("{} to {}", signed(c.ci95.lo), signed(c.ci95.hi));
        vec![
            plain(&c.metric),
            format!("{} − {}", plain(&c.b), plain(&c.a)),
            points(c.difference),
            interval,
        ]
    });
    let head = ["metric", "compared", "difference", "95 % interval"].map(str::to_owned);
    table(&mut text, &head, differences.collect());
    let rules = report.rules.iter().map(|rule| {
        let mark = match rule.finding {
            Finding::Kept => "✓",
            Finding::Warning => "! warning",
            Finding::Open => "✗ open",
            Finding::Broken => "✗ broken",
        };
        vec![mark.to_owned(), plain(&rule.asks), plain(&rule.evidence)]
    });
    table(&mut text, &["", "rule", "evidence"].map(str::to_owned), rules.collect());
    if let Some(changed) = &report.changed {
        for (what, ids) in [("won", &changed.won), ("lost", &changed.lost)] {
            let named: Vec<String> =
                ids.iter().take(LISTED).map(|id| format!("`{}`", plain(id))).collect();
            let more = match ids.len().saturating_sub(LISTED) {
                0 => String::new(),
                more => format!(" and {} more", count(more)),
            };
            let all = count(ids.len());
            text.push_str(&format!("{all} examples {what}: {}{more}\n\n", named.join(", ")));
        }
    }
    text.push_str(&format!("{}, {}\n", plain(&report.program), plain(&report.created)));
    text
}

fn table(text: &mut String, head: &[String], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    text.push_str(&line(head));
    text.push_str(&line(&vec!["---".to_owned(); head.len()]));
    rows.iter().for_each(|row| text.push_str(&line(row)));
    text.push('\n');
}

/// Foreign text in one line, without anything that Markdown or HTML would act on.
fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars().map(visible) {
        match c {
            '\n' | '\r' | '\t' => safe.push(' '),
            '<' => safe.push_str("&lt;"),
            '&' => safe.push_str("&amp;"),
            '|' | '*' | '_' | '`' | '[' | ']' | '\\' | '#' | '!' | '@' => {
                safe.push('\\');
                safe.push(c);
            }
            _ => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn foreign_text_stays_text() {
        assert_eq!(plain("a|b\n<img>*x*"), "a\\|b &lt;img>\\*x\\*");
    }
}
