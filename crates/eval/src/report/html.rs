//! The report as a page: every number and every length of a drawing is made here, the template
//! only places them. All text goes through the template's escaping; nothing is marked as safe.

use super::{CandidateReport, ExampleAnswer, LossPoint, Report};
use crate::error::EvalError;
use crate::numbers::{
    bytes, count, duration, money, p_value, percent, points, signed, significant,
};
use crate::stats::{Interval, PairedTest};
use crate::verdict::Verdict;
use askama::Template;
use serde_json::Value;

/// Longest text of an example that is shown, characters.
const SHOWN_CHARS: usize = 4000;

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
    fn new(report: &'a Report) -> Page<'a> {
        let scale = difference_scale(report);
        Page {
            report,
            verdict_title: report.verdict.title(),
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
        }
    }
}

fn metric_views(report: &Report) -> Vec<MetricView<'_>> {
    let Some(first) = report.candidates.first() else { return Vec::new() };
    let bars = |name: &str| {
        let candidates = report.candidates.iter().enumerate();
        candidates.filter_map(|(place, candidate)| bar_view(place, candidate, name)).collect()
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

fn bar_view<'a>(place: usize, candidate: &'a CandidateReport, name: &str) -> Option<BarView<'a>> {
    let metric = candidate.metrics.get(name)?;
    Some(BarView {
        candidate: &candidate.name,
        class: place % 4,
        value: percent(metric.value),
        interval: interval_percent(metric.ci95),
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
/// Most points of a line; longer curves are averaged.
const CURVE_POINTS: usize = 300;

/// None when there is no finite loss at all.
fn curve_view(curve: &[LossPoint]) -> Option<CurveView> {
    let pick = |loss: fn(&LossPoint) -> Option<f64>| -> Vec<(f64, f64)> {
        let noted = curve.iter().filter_map(|p| loss(p).map(|loss| (p.step as f64, loss)));
        noted.filter(|(_, loss)| loss.is_finite()).collect()
    };
    let (train, held_out) = (pick(|p| p.loss), pick(|p| p.held_out));
    let all = || train.iter().chain(&held_out);
    let last_step = all().map(|p| p.0).fold(0.0, f64::max).max(1.0);
    let (lowest, highest) = all()
        .map(|p| p.1)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), loss| (lo.min(loss), hi.max(loss)));
    if lowest > highest {
        return None;
    }
    let y_ticks = ticks(lowest, highest);
    let (bottom, top) = (*y_ticks.first()?, *y_ticks.last()?);
    let x = |step: f64| CURVE_LEFT + step / last_step * (CURVE_WIDTH - CURVE_LEFT - CURVE_RIGHT);
    let y = |loss: f64| {
        CURVE_TOP + (top - loss) / (top - bottom) * (CURVE_HEIGHT - CURVE_TOP - CURVE_BOTTOM)
    };
    let coordinate = |value: f64| format!("{value:.1}");
    let line = |points: &[(f64, f64)]| {
        let points = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1)));
        points.collect::<Vec<_>>().join(" ")
    };
    let decimals = if top - bottom < 0.5 { 2 } else { 1 };
    let x_ticks = ticks(0.0, last_step).into_iter().filter(|&step| step <= last_step);
    Some(CurveView {
        summary: [("Training", &train), ("Held-out", &held_out)]
            .into_iter()
            .filter_map(|(name, points)| {
                let (first, last) = (points.first()?, points.last()?);
                Some(format!("{name} loss goes from {:.3} to {:.3}.", first.1, last.1))
            })
            .collect::<Vec<_>>()
            .join(" "),
        train: line(&averaged(&train)),
        held_out: line(&averaged(&held_out)),
        held_out_dots: averaged(&held_out)
            .iter()
            .map(|p| (coordinate(x(p.0)), coordinate(y(p.1))))
            .collect(),
        x_ticks: x_ticks.map(|s| (coordinate(x(s)), grouped_u64(s as u64))).collect(),
        y_ticks: y_ticks.iter().map(|&l| (coordinate(y(l)), format!("{l:.decimals$}"))).collect(),
    })
}

/// At most [`CURVE_POINTS`] points: means of neighbours.
fn averaged(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(CURVE_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        let sum = chunk.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (sum.0 / n, sum.1 / n)
    };
    points.chunks(size).map(mean).collect()
}

/// Three to six round numbers at even distances; the first is not above `lo`, the last not below
/// `hi`, and they differ.
fn ticks(lo: f64, hi: f64) -> Vec<f64> {
    let span = (hi - lo).max(hi.abs() * 1e-3).max(1e-3);
    let rough = span / 4.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&s| s >= rough);
    let step = step.unwrap_or(10.0 * power);
    let first = (lo / step).floor();
    let last = (hi / step).ceil().max(first + 1.0);
    (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect()
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

/// A control character as a sign for it, so that none can hide or reorder what is read; any other
/// character as it is.
fn visible(c: char) -> char {
    match c {
        '\n' | '\t' => c,
        '\0'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        // C1 controls and the marks that change the direction of writing.
        '\u{80}'..='\u{9f}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        _ => c,
    }
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
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_the_range() {
        for (lo, hi, expected) in [
            (0.0, 100.0, &[0.0, 50.0, 100.0][..]),
            (0.3, 2.9, &[0.0, 1.0, 2.0, 3.0]),
            (0.0, 7.0, &[0.0, 2.0, 4.0, 6.0, 8.0]),
            (-1.0, 1.0, &[-1.0, -0.5, 0.0, 0.5, 1.0]),
        ] {
            assert_eq!(ticks(lo, hi), expected, "{lo} {hi}");
        }
        for (lo, hi) in [(0.0, 0.0), (5.0, 5.0), (1e9, 1e9), (0.1, 0.10001), (0.0, 1e12)] {
            let ticks = ticks(lo, hi);
            assert!((2..=7).contains(&ticks.len()), "{lo} {hi}: {ticks:?}");
            assert!(ticks[0] <= lo && *ticks.last().unwrap() >= hi, "{lo} {hi}: {ticks:?}");
        }
    }

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
    fn control_characters_become_visible() {
        for (text, expected) in [
            ("a\nb\tc", "a\nb\tc"),
            ("\0\u{1b}[31m\r", "␀␛[31m␍"),
            ("\u{202e}evil\u{2069}", "\u{fffd}evil\u{fffd}"),
            ("Größe 👍", "Größe 👍"),
        ] {
            assert_eq!(text.chars().map(visible).collect::<String>(), expected);
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = shown(&"é".repeat(SHOWN_CHARS + 1500));
        assert!(long.ends_with("é … (1,500 more characters)"));
        assert_eq!(shown("short"), "short");
    }
}
