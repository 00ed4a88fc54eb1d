//! The report as a page: every number and every length of a drawing is made here, the template
//! only places them. All text goes through the template's escaping; nothing is marked as safe.

use super::drawing::{Axes, averaged, visible};
use super::money::{self as money_views, ArmRow, PairView, Scatter, Volume};
use super::{CandidateReport, ExampleAnswer, Finding, LossPoint, Report};
use crate::error::EvalError;
use crate::numbers::{
    bytes, count, duration, money, p_value, percent, points, signed, significant,
};
use crate::stats::{Interval, PairedTest};
use crate::verdict::Verdict;
use crate::words::Language;
use askama::Template;
use serde_json::Value;

/// Longest text of an example that is shown, characters.
const SHOWN_CHARS: usize = 4000;

/// Most slices on the page.
const SHOWN_SLICES: usize = 30;

pub(super) fn render(report: &Report) -> Result<String, EvalError> {
    let page = Page::new(report)
        .render()
        .map_err(|error| EvalError::Render { format: "HTML", reason: error.to_string() })?;
    // The template has none of these characters, so all of them are from outside.
    Ok(page.chars().map(visible).collect())
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    report: &'a Report,
    language: Language,
    verdict_title: &'static str,
    verdict_class: &'static str,
    metrics: Vec<MetricView<'a>>,
    differences: Vec<DifferenceView<'a>>,
    /// Half the width of the differences' scale, as `±20 points`.
    difference_scale: String,
    candidates: Vec<&'a str>,
    fields: Vec<FieldView<'a>>,
    curve: Option<CurveView>,
    examples: Vec<ExampleView<'a>>,
    costs: Vec<CostView<'a>>,
    behaviour: Vec<BehaviourView<'a>>,
    machine: Vec<(&'static str, String)>,
    data: Vec<(&'static str, String)>,
    digests: Vec<(&'a str, &'a str, String)>,
    rules: Vec<RuleView<'a>>,
    scatter: Option<Scatter>,
    volume: Option<Volume>,
    arms: Vec<ArmRow>,
    pairs: Vec<PairView>,
    latencies: Vec<LatencyView<'a>>,
    lists: Vec<ListView>,
    slices: Vec<[String; 6]>,
    /// Slices that are not shown.
    more_slices: usize,
    asked: Vec<(&'a str, &'a str)>,
}

struct RuleView<'a> {
    mark: &'static str,
    class: &'static str,
    asks: &'a str,
    evidence: &'a str,
}

struct LatencyView<'a> {
    candidate: &'a str,
    cells: [String; 4],
}

/// The examples behind a number.
struct ListView {
    anchor: String,
    title: String,
    /// Number of the example on this page, and its id.
    shown: Vec<(usize, String)>,
    more: String,
}

struct MetricView<'a> {
    name: &'a str,
    what: &'a str,
    n: String,
    rows: Vec<BarView<'a>>,
}

/// A bar from 0 to 100 % with its interval. Lengths are percentages of the width.
struct BarView<'a> {
    candidate: &'a str,
    class: usize,
    value: String,
    interval: String,
    /// Where on the page the examples behind it are.
    link: String,
    bar: String,
    lo: String,
    hi: String,
}

struct DifferenceView<'a> {
    metric: &'a str,
    a: &'a str,
    b: &'a str,
    decides: bool,
    difference: String,
    interval: String,
    p_value: String,
    test: String,
    at: String,
    lo: String,
    hi: String,
    /// Place of the required gain, for the metric that decides.
    margin: Option<String>,
}

struct FieldView<'a> {
    field: &'a str,
    n: String,
    cells: Vec<(String, String)>,
}

struct CurveView {
    summary: String,
    train: String,
    held_out: String,
    held_out_dots: Vec<(String, String)>,
    x_ticks: Vec<(String, String)>,
    y_ticks: Vec<(String, String)>,
}

struct ExampleView<'a> {
    number: usize,
    id: &'a str,
    prompt: String,
    reference: Vec<(String, String)>,
    reference_text: String,
    answers: Vec<AnswerView<'a>>,
}

struct AnswerView<'a> {
    candidate: &'a str,
    mark: String,
    class: &'static str,
    error: Option<String>,
    text: String,
    cells: Vec<CellView>,
}

struct CellView {
    field: String,
    value: String,
    class: &'static str,
    note: &'static str,
}

struct CostView<'a> {
    candidate: &'a str,
    amount: String,
    assumptions: &'a [String],
}

struct BehaviourView<'a> {
    candidate: &'a str,
    kind: &'a str,
    failed: String,
    stopped: String,
    tokens: String,
    speed: String,
    time: String,
}

impl<'a> Page<'a> {
    /// A text of the template in the report's language.
    fn t(&self, english: &'static str) -> &'static str {
        self.language.t(english)
    }

    /// The language's code.
    fn lang(&self) -> &'static str {
        self.language.code()
    }

    fn new(report: &'a Report) -> Page<'a> {
        let scale = difference_scale(report);
        let language = report.language();
        Page {
            report,
            language,
            verdict_title: language.t(report.verdict.title()),
            verdict_class: match report.verdict {
                Verdict::WorthIt => "good",
                Verdict::NotProven => "open",
                Verdict::NotWorthIt => "bad",
            },
            metrics: metric_views(report),
            differences: difference_views(report, scale),
            difference_scale: format!("{} points", significant(scale * 100.0)),
            candidates: report.candidates.iter().map(|c| c.name.as_str()).collect(),
            fields: field_views(report),
            curve: report.train.as_ref().and_then(|train| curve_view(&train.curve)),
            examples: example_views(report),
            costs: report.candidates.iter().filter_map(cost_view).collect(),
            behaviour: report.candidates.iter().map(behaviour_view).collect(),
            machine: machine_rows(report),
            data: data_rows(report),
            digests: report
                .files
                .iter()
                .map(|(name, file)| (name.as_str(), file.sha256.as_str(), bytes(file.bytes)))
                .collect(),
            rules: report.rules.iter().map(|rule| rule_view(language, rule)).collect(),
            scatter: money_views::scatter(report),
            volume: money_views::volume(report),
            arms: report
                .economics
                .as_ref()
                .map_or_else(Vec::new, |m| money_views::arm_rows(language, m)),
            pairs: report
                .economics
                .as_ref()
                .map_or_else(Vec::new, |m| money_views::pair_views(language, m)),
            latencies: report.candidates.iter().filter_map(latency_view).collect(),
            lists: list_views(report),
            slices: report.slices.iter().take(SHOWN_SLICES).map(slice_view).collect(),
            more_slices: report.slices.len().saturating_sub(SHOWN_SLICES),
            asked: report
                .plan
                .iter()
                .flat_map(|plan| &plan.asked)
                .map(|(a, b)| (&**a, &**b))
                .collect(),
        }
    }
}

fn rule_view(language: Language, rule: &super::Rule) -> RuleView<'_> {
    let (mark, class) = match rule.finding {
        Finding::Kept => (language.t("✓ kept"), "right"),
        Finding::Warning => (language.t("! warning"), "warning"),
        Finding::Open => (language.t("✗ open"), "wrong"),
        Finding::Broken => (language.t("✗ broken"), "wrong"),
    };
    RuleView { mark, class, asks: &rule.asks, evidence: &rule.evidence }
}

fn slice_view(slice: &crate::slices::SliceReport) -> [String; 6] {
    [
        shown(&format!("{} = {}", slice.field, slice.value)),
        count(slice.n),
        format!("{} ({})", percent(slice.score), interval_percent(slice.ci95)),
        points(slice.difference),
        format!("{} to {}", signed(slice.interval.lo), signed(slice.interval.hi)),
        p_value(slice.p_holm),
    ]
}

fn latency_view(candidate: &CandidateReport) -> Option<LatencyView<'_>> {
    let latency = candidate.latency?;
    let seconds = |s: f64| format!("{} s", significant(s));
    let cells =
        [count(latency.n), seconds(latency.p50), seconds(latency.p95), seconds(latency.max)];
    Some(LatencyView { candidate: &candidate.name, cells })
}

/// The lists of examples that numbers link to: won, lost, and what each candidate has wrong.
fn list_views(report: &Report) -> Vec<ListView> {
    let language = report.language();
    let numbers: std::collections::HashMap<&str, usize> =
        report.examples.iter().enumerate().map(|(i, e)| (e.id.as_str(), i + 1)).collect();
    let list = |anchor: String, title: String, ids: &[String]| {
        let shown: Vec<(usize, String)> =
            ids.iter().filter_map(|id| Some((*numbers.get(id.as_str())?, shown(id)))).collect();
        let more = match ids.len() - shown.len() {
            0 => String::new(),
            more => language.say("and {n} more, named in report.json", &[("n", &count(more))]),
        };
        ListView { anchor, title: format!("{title} ({})", count(ids.len())), shown, more }
    };
    let mut lists = Vec::new();
    if let Some(changed) = &report.changed {
        let (a, b) = (&changed.a, &changed.b);
        let better = language.say("Better answered by {b} than by {a}", &[("a", a), ("b", b)]);
        lists.push(list("won".into(), better, &changed.won));
        let worse = language.say("Worse answered by {b} than by {a}", &[("a", a), ("b", b)]);
        lists.push(list("lost".into(), worse, &changed.lost));
        for (place, candidate) in report.candidates.iter().enumerate() {
            let title = language.say("Not wholly right: {name}", &[("name", &candidate.name)]);
            lists.push(list(format!("wrong-{place}"), title, &candidate.wrong));
        }
    }
    lists
}

fn metric_views(report: &Report) -> Vec<MetricView<'_>> {
    let Some(first) = report.candidates.first() else { return Vec::new() };
    let bars = |name: &str| {
        let candidates = report.candidates.iter().enumerate();
        let has_lists = report.changed.is_some();
        let link = |place: usize| match has_lists {
            true => format!("#wrong-{place}"),
            false if report.examples.is_empty() => String::new(),
            false => "#examples".to_owned(),
        };
        candidates
            .filter_map(|(place, candidate)| bar_view((place, link(place)), candidate, name))
            .collect()
    };
    first
        .metrics
        .iter()
        .map(|(name, metric)| MetricView {
            name,
            what: &metric.what,
            n: count(metric.n),
            rows: bars(name),
        })
        .collect()
}

fn bar_view<'a>(
    (place, link): (usize, String),
    candidate: &'a CandidateReport,
    name: &str,
) -> Option<BarView<'a>> {
    let metric = candidate.metrics.get(name)?;
    Some(BarView {
        candidate: &candidate.name,
        class: place % 4,
        value: percent(metric.value),
        interval: interval_percent(metric.ci95),
        link,
        bar: share_of_width(metric.value),
        lo: share_of_width(metric.ci95.lo),
        hi: share_of_width(metric.ci95.hi),
    })
}

/// Half the width of the scale of differences: a round number that holds all intervals and the
/// margin.
fn difference_scale(report: &Report) -> f64 {
    let ends = report.comparisons.iter().flat_map(|c| [c.ci95.lo.abs(), c.ci95.hi.abs()]);
    let widest = ends.fold(report.margin.abs(), f64::max);
    let round = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5];
    round.into_iter().find(|&r| widest <= r).unwrap_or(1.0)
}

fn difference_views(report: &Report, scale: f64) -> Vec<DifferenceView<'_>> {
    let place = |difference: f64| share_of_width((difference / scale + 1.0) / 2.0);
    report
        .comparisons
        .iter()
        .map(|c| {
            let decides = c.metric == report.metric;
            DifferenceView {
                metric: &c.metric,
                a: &c.a,
                b: &c.b,
                decides,
                difference: points(c.difference),
                interval: format!("{} to {}", signed(c.ci95.lo), signed(c.ci95.hi)),
                p_value: p_value(c.p_value),
                test: match c.test {
                    PairedTest::McnemarExact { only_b, only_a } => format!(
                        "exact McNemar test; only {} right in {}, only {} right in {}",
                        c.b,
                        count(only_b),
                        c.a,
                        count(only_a)
                    ),
                    PairedTest::SignFlip { resamples } => {
                        format!("sign-flip permutation test, {} permutations", count(resamples))
                    }
                    PairedTest::ClusterSignFlip { resamples, clusters } => format!(
                        "sign-flip permutation test of {} clusters, {} permutations",
                        count(clusters),
                        count(resamples)
                    ),
                },
                at: place(c.difference),
                lo: place(c.ci95.lo),
                hi: place(c.ci95.hi),
                margin: decides.then(|| place(report.margin)),
            }
        })
        .collect()
}

fn field_views(report: &Report) -> Vec<FieldView<'_>> {
    let cell = |field: &super::FieldReport, candidate: &CandidateReport| {
        field.scores.get(&candidate.name).map_or(("–".to_owned(), String::new()), |accuracy| {
            (percent(accuracy.value), interval_percent(accuracy.ci95))
        })
    };
    report
        .fields
        .iter()
        .map(|field| FieldView {
            field: &field.field,
            n: count(field.n),
            cells: report.candidates.iter().map(|candidate| cell(field, candidate)).collect(),
        })
        .collect()
}

fn example_views(report: &Report) -> Vec<ExampleView<'_>> {
    report
        .examples
        .iter()
        .enumerate()
        .map(|(index, example)| ExampleView {
            number: index + 1,
            id: &example.id,
            prompt: shown(&example.prompt),
            reference: reference_fields(&example.reference),
            reference_text: shown(&example.reference),
            answers: example.answers.iter().map(answer_view).collect(),
        })
        .collect()
}

fn reference_fields(reference: &str) -> Vec<(String, String)> {
    match serde_json::from_str(reference.trim()) {
        Ok(Value::Object(fields)) => {
            fields.iter().map(|(field, value)| (shown(field), shown(&value.to_string()))).collect()
        }
        _ => Vec::new(),
    }
}

fn answer_view(answer: &ExampleAnswer) -> AnswerView<'_> {
    let (mark, class) = match answer.score {
        _ if answer.error.is_some() => ("✗ failed".to_owned(), "wrong"),
        score if score >= 1.0 => ("✓ right".to_owned(), "right"),
        score if score <= 0.0 => ("✗ wrong".to_owned(), "wrong"),
        score => (format!("✗ {} right", percent(score)), "wrong"),
    };
    let cells = answer.fields.iter().map(|cell| CellView {
        field: shown(&cell.field),
        value: cell.value.as_deref().map(shown).unwrap_or_default(),
        class: if cell.right { "right" } else { "wrong" },
        note: match (cell.right, &cell.value, cell.extra) {
            (true, _, _) => "✓",
            (false, _, true) => "✗ not asked for",
            (false, None, _) => "✗ missing",
            (false, Some(_), _) => "✗ wrong",
        },
    });
    AnswerView {
        candidate: &answer.candidate,
        mark,
        class,
        error: answer.error.as_deref().map(shown),
        text: shown(&answer.text),
        cells: cells.collect(),
    }
}

fn cost_view(candidate: &CandidateReport) -> Option<CostView<'_>> {
    let cost = candidate.cost.as_ref()?;
    Some(CostView {
        candidate: &candidate.name,
        amount: money(cost.per_1000_requests, &cost.currency),
        assumptions: &cost.assumptions,
    })
}

fn behaviour_view(candidate: &CandidateReport) -> BehaviourView<'_> {
    let unknown = || "not known".to_owned();
    BehaviourView {
        candidate: &candidate.name,
        kind: &candidate.kind,
        failed: count(candidate.failed),
        stopped: candidate.stopped_share.map_or_else(unknown, percent),
        tokens: candidate.traffic.map_or_else(unknown, |traffic| {
            let (prompt, answer) = (traffic.prompt_tokens, traffic.answer_tokens);
            format!("{} and {}", significant(prompt), significant(answer))
        }),
        speed: candidate.tokens_per_second.map_or_else(unknown, significant),
        time: duration(candidate.seconds),
    }
}

fn machine_rows(report: &Report) -> Vec<(&'static str, String)> {
    let machine = &report.machine;
    let mut rows = vec![
        ("Processor", machine.cpu.clone()),
        ("Instructions used", machine.instructions.clone()),
        ("Logical cores", count(machine.cores)),
        ("Threads used", count(machine.threads)),
        ("Memory", bytes(machine.memory_bytes)),
        ("Operating system", machine.os.clone()),
    ];
    if let Some(train) = &report.train {
        rows.extend([
            ("Training", train.method.clone()),
            ("Training steps", grouped_u64(train.steps)),
            ("Training speed", format!("{} tokens a second", significant(train.tokens_per_second))),
            ("Training time", duration(train.seconds)),
            ("Most memory held", bytes(train.peak_rss_bytes)),
        ]);
    }
    rows
}

fn data_rows(report: &Report) -> Vec<(&'static str, String)> {
    let Some(data) = &report.data else { return Vec::new() };
    vec![
        ("Training examples", count(data.train_rows)),
        ("Held-out examples", count(data.valid_rows)),
        ("Sealed test examples", count(data.test_rows)),
        ("Duplicates removed", count(data.duplicates_removed)),
        ("Test examples found in the training data", count(data.leaks)),
        ("How leaks were looked for", data.leak_check.clone()),
    ]
}

/// Width, height and margins of the loss curve, in units of its view box.
const CURVE_WIDTH: f64 = 360.0;
const CURVE_HEIGHT: f64 = 220.0;
const CURVE_LEFT: f64 = 40.0;
const CURVE_RIGHT: f64 = 12.0;
const CURVE_TOP: f64 = 10.0;
const CURVE_BOTTOM: f64 = 36.0;
/// None when there is no finite loss at all.
fn curve_view(curve: &[LossPoint]) -> Option<CurveView> {
    let pick = |loss: fn(&LossPoint) -> Option<f64>| -> Vec<(f64, f64)> {
        let noted = curve.iter().filter_map(|p| loss(p).map(|loss| (p.step as f64, loss)));
        noted.filter(|(_, loss)| loss.is_finite()).collect()
    };
    let (train, held_out) = (pick(|p| p.loss), pick(|p| p.held_out));
    let within = (CURVE_LEFT, CURVE_WIDTH - CURVE_RIGHT, CURVE_TOP, CURVE_HEIGHT - CURVE_BOTTOM);
    let axes = Axes::new(&mut train.iter().chain(&held_out).copied(), within)?;
    let coordinate = |value: f64| format!("{value:.1}");
    Some(CurveView {
        summary: [("Training", &train), ("Held-out", &held_out)]
            .into_iter()
            .filter_map(|(name, points)| {
                let (first, last) = (points.first()?, points.last()?);
                Some(format!("{name} loss goes from {:.3} to {:.3}.", first.1, last.1))
            })
            .collect::<Vec<_>>()
            .join(" "),
        train: axes.line(&averaged(&train)),
        held_out: axes.line(&averaged(&held_out)),
        held_out_dots: averaged(&held_out)
            .iter()
            .map(|p| (coordinate(axes.x(p.0)), coordinate(axes.y(p.1))))
            .collect(),
        x_ticks: axes.x_ticks().into_iter().map(|(x, step)| (x, grouped_u64(step))).collect(),
        y_ticks: axes.y_ticks(),
    })
}

fn interval_percent(interval: Interval) -> String {
    format!("{} to {}", percent(interval.lo), percent(interval.hi))
}

/// A length as a share of the drawing's width, kept inside it.
fn share_of_width(share: f64) -> String {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    format!("{:.2}%", share * 100.0)
}

fn grouped_u64(value: u64) -> String {
    count(usize::try_from(value).unwrap_or(usize::MAX))
}

/// Foreign text, cut after [`SHOWN_CHARS`] characters.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    let hidden = text.chars().skip(SHOWN_CHARS).count();
    if hidden > 0 {
        shown.push_str(&format!(" … ({} more characters)", count(hidden)));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::super::drawing::CURVE_POINTS;
    use super::*;

    #[test]
    fn odd_curves_are_drawn_or_left_out() {
        let point = |step, loss, held_out| LossPoint { step, loss, held_out };
        assert!(curve_view(&[]).is_none());
        assert!(curve_view(&[point(1, Some(f64::NAN), Some(f64::INFINITY))]).is_none());
        let single = curve_view(&[point(0, Some(2.0), None)]).unwrap();
        assert!(single.held_out.is_empty() && !single.train.contains("NaN"), "{}", single.train);
        let long: Vec<_> =
            (0..10_000).map(|i| point(i, Some(1.0 / (i + 1) as f64), None)).collect();
        assert!(curve_view(&long).unwrap().train.split(' ').count() <= CURVE_POINTS);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = shown(&"é".repeat(SHOWN_CHARS + 1500));
        assert!(long.ends_with("é … (1,500 more characters)"));
        assert_eq!(shown("short"), "short");
    }
}
