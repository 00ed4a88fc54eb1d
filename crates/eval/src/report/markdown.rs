//! The report as Markdown, short enough for a pull request.

use super::drawing::visible;
use super::{Finding, Report};

/// Ids that a list names before it says how many more there are.
const LISTED: usize = 20;

pub(super) fn render(report: &Report) -> String {
    let language = report.language();
    let words = |list: &[&'static str]| -> Vec<String> {
        list.iter().map(|text| language.translated(text)).collect()
    };
    let title = language.t(report.verdict.title());
    let mut text = format!("## {title}: {}\n\n", plain(&report.title));
    for sentence in &report.sentences {
        text.push_str(&format!("{}\n\n", plain(sentence)));
    }
    if let Some(first) = report.candidates.first() {
        let names: Vec<&String> = first.metrics.keys().collect();
        let mut head = words(&["Candidate"]);
        head.extend(names.iter().map(|name| plain(name)));
        head.extend(words(&["1,000 requests"]));
        let rows = report.candidates.iter().map(|candidate| {
            let mut row = vec![plain(&candidate.name)];
            row.extend(names.iter().map(|name| match candidate.metrics.get(*name) {
                Some(m) => format!("{} ({})", language.percent(m.value), language.percents(m.ci95)),
                None => "–".to_owned(),
            }));
            row.push(match &candidate.cost {
                Some(cost) => language.money(cost.per_1000_requests, &cost.currency),
                None => language.t("not stated").to_owned(),
            });
            row
        });
        table(&mut text, &head, rows.collect());
    }
    let differences = report.comparisons.iter().map(|c| {
        vec![
            plain(&c.metric),
            format!("{} − {}", plain(&c.b), plain(&c.a)),
            language.points(c.difference),
            language.differences(c.ci95),
        ]
    });
    let head = words(&["Metric", "Compared", "Difference", "95 % interval"]);
    table(&mut text, &head, differences.collect());
    if report.judged.len() > 1 {
        let judged = report.judged.iter().map(|j| {
            let interval = language.differences(j.interval);
            vec![
                plain(&j.name),
                language.points(j.difference),
                format!("{interval} ({})", language.confidence(j.confidence)),
                language.p_value(j.p_holm),
                language.t(j.verdict.title()).to_owned(),
            ]
        });
        let head = words(&["Judged", "Difference", "Interval", "Chance finding?", "Verdict"]);
        table(&mut text, &head, judged.collect());
    }
    let rules = report.rules.iter().map(|rule| {
        let mark = match rule.finding {
            Finding::Kept => "✓",
            Finding::Warning => language.t("! warning"),
            Finding::Open => language.t("✗ open"),
            Finding::Broken => language.t("✗ broken"),
        };
        vec![mark.to_owned(), plain(&rule.asks), plain(&rule.evidence)]
    });
    let mut head = vec![String::new()];
    head.extend(words(&["Rule", "Evidence"]));
    table(&mut text, &head, rules.collect());
    if let Some(leaks) = &report.without_leaks {
        let score = |value: Option<f64>| value.map_or("–".to_owned(), |v| language.percent(v));
        let rows = leaks.scores.iter();
        let rows = rows.map(|(name, s)| vec![plain(name), score(Some(s.all)), score(s.clean)]);
        let head = words(&["Candidate", "All examples", "Without those in the training data"]);
        table(&mut text, &head, rows.collect());
    }
    let confused = report.confused.iter().map(|pair| {
        let answer = match pair.answer.as_str() {
            "" => language.t("none of the right answers, or a failure").to_owned(),
            answer => plain(answer),
        };
        vec![plain(&pair.reference), answer, language.count(pair.ids.len())]
    });
    let head = words(&["Right answer", "Answered instead", "Examples"]);
    table(&mut text, &head, confused.collect());
    if let Some(changed) = &report.changed {
        for (ids, won) in [(&changed.won, true), (&changed.lost, false)] {
            let named: Vec<String> =
                ids.iter().take(LISTED).map(|id| format!("`{}`", plain(id))).collect();
            let more = match ids.len().saturating_sub(LISTED) {
                0 => String::new(),
                more => {
                    let n = language.count(more);
                    format!(" {}", language.say("and {n} more, named in report.json", &[("n", &n)]))
                }
            };
            let n = language.count(ids.len());
            let what = match won {
                true => language.say("{n} examples won", &[("n", &n)]),
                false => language.say("{n} examples lost", &[("n", &n)]),
            };
            text.push_str(&format!("{what}: {}{more}\n\n", named.join(", ")));
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
