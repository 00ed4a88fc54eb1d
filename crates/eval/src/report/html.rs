//! The report as a page: every number and every length of a drawing is made here, the template
//! only places them. All text goes through the template's escaping; nothing is marked as safe.

use super::drawing::{Axes, averaged, visible};
use super::money::{self as money_views, ArmRow, PairView, Scatter, Volume};
use super::{CandidateReport, ExampleAnswer, Finding, LossPoint, Report};
use crate::error::EvalError;
use crate::numbers::significant;
use crate::stats::PairedTest;
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
    licences: Vec<(String, String)>,
    digests: Vec<(String, &'a str, String)>,
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
    judged: Vec<JudgedView<'a>>,
    confused: Vec<ConfusedView<'a>>,
    leaks: Option<LeaksView<'a>>,
    asked: Vec<(&'a str, String)>,
}

/// One of several judged candidates.
struct JudgedView<'a> {
    name: &'a str,
    decides: bool,
    cells: [String; 4],
}

/// A right answer and what was said instead.
struct ConfusedView<'a> {
    reference: &'a str,
    answer: String,
    count: String,
    /// Number on this page of the first example, and its id.
    first: Option<(usize, &'a str)>,
}

/// Scores with and without what leaked.
struct LeaksView<'a> {
    rows: Vec<(&'a str, [String; 2])>,
    caption: String,
    difference: String,
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
    what: String,
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
    kind: String,
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
        let money = report.economics.as_ref();
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
            difference_scale: language
                .say("{n} points", &[("n", &language.significant(scale * 100.0))]),
            candidates: report.candidates.iter().map(|c| c.name.as_str()).collect(),
            fields: field_views(report),
            curve: report.train.as_ref().and_then(|train| curve_view(language, &train.curve)),
            examples: example_views(report),
            costs: report.candidates.iter().filter_map(|c| cost_view(language, c)).collect(),
            behaviour: report.candidates.iter().map(|c| behaviour_view(language, c)).collect(),
            machine: machine_rows(report),
            data: data_rows(report),
            licences: licence_rows(report),
            digests: report
                .files
                .iter()
                .map(|(name, file)| {
                    let size = match file.path.is_some() || file.bytes > 0 {
                        true => language.bytes(file.bytes),
                        false => "–".to_owned(),
                    };
                    (file_words(language, name), file.sha256.as_str(), size)
                })
                .collect(),
            rules: report.rules.iter().map(|rule| rule_view(language, rule)).collect(),
            scatter: money_views::scatter(report),
            volume: money_views::volume(report),
            arms: money.map_or_else(Vec::new, |m| money_views::arm_rows(language, m)),
            pairs: money.map_or_else(Vec::new, |m| money_views::pair_views(language, m)),
            latencies: report.candidates.iter().filter_map(|c| latency_view(language, c)).collect(),
            lists: list_views(report),
            slices: report
                .slices
                .iter()
                .take(SHOWN_SLICES)
                .map(|s| slice_view(language, s))
                .collect(),
            more_slices: report.slices.len().saturating_sub(SHOWN_SLICES),
            judged: judged_views(report),
            confused: confused_views(report),
            leaks: leaks_view(report),
            asked: asked_rows(report),
        }
    }
}

/// All judged candidates, where there are several; one alone has all of it in its rules.
fn judged_views(report: &Report) -> Vec<JudgedView<'_>> {
    let language = report.language();
    let view = |j: &'_ super::JudgedReport| {
        let interval = language.differences(j.interval);
        [
            language.points(j.difference),
            format!("{interval} ({})", language.confidence(j.confidence)),
            language.p_value(j.p_holm),
            language.t(j.verdict.title()).to_owned(),
        ]
    };
    match report.judged.len() {
        0 | 1 => Vec::new(),
        _ => report
            .judged
            .iter()
            .map(|j| JudgedView { name: &j.name, decides: j.decides, cells: view(j) })
            .collect(),
    }
}

fn confused_views(report: &Report) -> Vec<ConfusedView<'_>> {
    let language = report.language();
    let number = |id: &str| report.examples.iter().position(|e| e.id == id).map(|i| i + 1);
    let view = |pair: &'_ crate::slices::ConfusedPair| match pair.answer.as_str() {
        "" => language.t("none of the right answers, or a failure").to_owned(),
        answer => shown(language, answer),
    };
    let pairs = report.confused.iter();
    pairs
        .map(|pair| ConfusedView {
            reference: &pair.reference,
            answer: view(pair),
            count: language.count(pair.ids.len()),
            first: pair.ids.first().and_then(|id| Some((number(id)?, id.as_str()))),
        })
        .collect()
}

fn leaks_view(report: &Report) -> Option<LeaksView<'_>> {
    let (language, leaks) = (report.language(), report.without_leaks.as_ref()?);
    let score = |value: Option<f64>, ci95: Option<crate::stats::Interval>| match (value, ci95) {
        (Some(value), Some(ci95)) => {
            format!("{} ({})", language.percent(value), language.percents(ci95))
        }
        (Some(value), None) => language.percent(value),
        (None, _) => "–".to_owned(),
    };
    let rows = leaks.scores.iter().map(|(name, s)| {
        (name.as_str(), [score(Some(s.all), Some(s.all_ci95)), score(s.clean, s.clean_ci95)])
    });
    let clean = leaks.scores.first().map_or(0, |(_, s)| s.n);
    let caption = language.say(
        "By {metric}: all examples, and the {clean} that are left without the {leaked} that are in the training data",
        &[
            ("metric", &report.metric),
            ("clean", &language.count(clean)),
            ("leaked", &language.count(leaks.leaked)),
        ],
    );
    let difference = match (leaks.difference, leaks.ci95) {
        (Some(difference), Some(ci95)) => language.say(
            "Without them the difference is {difference} (95 % between {lo} and {hi}).",
            &[
                ("difference", &language.points(difference)),
                ("lo", &language.signed(ci95.lo)),
                ("hi", &language.signed(ci95.hi)),
            ],
        ),
        _ => language.t("Without them too few are left for a difference.").to_owned(),
    };
    Some(LeaksView { rows: rows.collect(), caption, difference })
}

/// How each was asked, with what is known of the tokens.
fn asked_rows(report: &Report) -> Vec<(&str, String)> {
    let language = report.language();
    let Some(plan) = &report.plan else { return Vec::new() };
    let tokens = |name: &str| match plan.arms.get(name) {
        Some(arm) => language.say(
            "first token {first}, answers end at {stops}, chat template {template}",
            &[
                ("first", &arm.first_token),
                ("stops", &arm.stops.join(" ")),
                ("template", &arm.template.get(..12).unwrap_or(&arm.template)),
            ],
        ),
        None => language.t("chat template and first token unknown").to_owned(),
    };
    plan.asked.iter().map(|(name, words)| (&**name, format!("{words}; {}", tokens(name)))).collect()
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

fn slice_view(language: Language, slice: &crate::slices::SliceReport) -> [String; 6] {
    [
        shown(language, &format!("{} = {}", slice.field, slice.value)),
        language.count(slice.n),
        format!("{} ({})", language.percent(slice.score), language.percents(slice.ci95)),
        language.points(slice.difference),
        language.differences(slice.interval),
        language.p_value(slice.p_holm),
    ]
}

fn latency_view(language: Language, candidate: &CandidateReport) -> Option<LatencyView<'_>> {
    let latency = candidate.latency?;
    let seconds = |s: f64| language.number(format!("{} s", significant(s)));
    let cells = [
        language.count(latency.n),
        seconds(latency.p50),
        seconds(latency.p95),
        seconds(latency.max),
    ];
    Some(LatencyView { candidate: &candidate.name, cells })
}

/// The lists of examples that numbers link to: won, lost, and what each candidate has wrong.
fn list_views(report: &Report) -> Vec<ListView> {
    let language = report.language();
    let numbers: std::collections::HashMap<&str, usize> =
        report.examples.iter().enumerate().map(|(i, e)| (e.id.as_str(), i + 1)).collect();
    let list = |anchor: String, title: String, ids: &[String]| {
        let shown: Vec<(usize, String)> = ids
            .iter()
            .filter_map(|id| Some((*numbers.get(id.as_str())?, shown(language, id))))
            .collect();
        let more = match ids.len() - shown.len() {
            0 => String::new(),
            more => {
                language.say("and {n} more, named in report.json", &[("n", &language.count(more))])
            }
        };
        ListView { anchor, title: format!("{title} ({})", language.count(ids.len())), shown, more }
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
    let language = report.language();
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
            .filter_map(|(place, c)| bar_view(language, (place, link(place)), c, name))
            .collect()
    };
    first
        .metrics
        .iter()
        .map(|(name, metric)| MetricView {
            name,
            what: language.translated(&metric.what),
            n: language.count(metric.n),
            rows: bars(name),
        })
        .collect()
}

fn bar_view<'a>(
    language: Language,
    (place, link): (usize, String),
    candidate: &'a CandidateReport,
    name: &str,
) -> Option<BarView<'a>> {
    let metric = candidate.metrics.get(name)?;
    Some(BarView {
        candidate: &candidate.name,
        class: place % 4,
        value: language.percent(metric.value),
        interval: language.percents(metric.ci95),
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
    let language = report.language();
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
                difference: language.points(c.difference),
                interval: language.differences(c.ci95),
                p_value: language.p_value(c.p_value),
                test: test_words(language, c),
                at: place(c.difference),
                lo: place(c.ci95.lo),
                hi: place(c.ci95.hi),
                margin: decides.then(|| place(report.margin)),
            }
        })
        .collect()
}

fn test_words(language: Language, c: &super::ComparisonReport) -> String {
    match c.test {
        PairedTest::McnemarExact { only_b, only_a } => language.say(
            "exact McNemar test; only {b} right in {only_b}, only {a} right in {only_a}",
            &[
                ("b", &c.b),
                ("only_b", &language.count(only_b)),
                ("a", &c.a),
                ("only_a", &language.count(only_a)),
            ],
        ),
        PairedTest::SignFlip { resamples } => language.say(
            "sign-flip permutation test, {n} permutations",
            &[("n", &language.count(resamples))],
        ),
        PairedTest::ClusterSignFlip { resamples, clusters } => language.say(
            "sign-flip permutation test of {clusters} clusters, {n} permutations",
            &[("clusters", &language.count(clusters)), ("n", &language.count(resamples))],
        ),
    }
}

fn field_views(report: &Report) -> Vec<FieldView<'_>> {
    let language = report.language();
    let cell = |field: &super::FieldReport, candidate: &CandidateReport| {
        field.scores.get(&candidate.name).map_or(("–".to_owned(), String::new()), |accuracy| {
            (language.percent(accuracy.value), language.percents(accuracy.ci95))
        })
    };
    report
        .fields
        .iter()
        .map(|field| FieldView {
            field: &field.field,
            n: language.count(field.n),
            cells: report.candidates.iter().map(|candidate| cell(field, candidate)).collect(),
        })
        .collect()
}

fn example_views(report: &Report) -> Vec<ExampleView<'_>> {
    let language = report.language();
    report
        .examples
        .iter()
        .enumerate()
        .map(|(index, example)| ExampleView {
            number: index + 1,
            id: &example.id,
            prompt: shown(language, &example.prompt),
            reference: reference_fields(language, &example.reference),
            reference_text: shown(language, &example.reference),
            answers: example.answers.iter().map(|answer| answer_view(language, answer)).collect(),
        })
        .collect()
}

fn reference_fields(language: Language, reference: &str) -> Vec<(String, String)> {
    let shown = |text: &str| shown(language, text);
    match serde_json::from_str(reference.trim()) {
        Ok(Value::Object(fields)) => {
            fields.iter().map(|(field, value)| (shown(field), shown(&value.to_string()))).collect()
        }
        _ => Vec::new(),
    }
}

fn answer_view(language: Language, answer: &ExampleAnswer) -> AnswerView<'_> {
    let shown = |text: &str| shown(language, text);
    let (mark, class) = match answer.score {
        _ if answer.error.is_some() => (language.t("✗ failed").to_owned(), "wrong"),
        score if score >= 1.0 => (language.t("✓ right").to_owned(), "right"),
        score if score <= 0.0 => (language.t("✗ wrong").to_owned(), "wrong"),
        score => {
            let share = language.percent(score);
            (language.say("✗ {share} right", &[("share", &share)]), "wrong")
        }
    };
    let cells = answer.fields.iter().map(|cell| CellView {
        field: shown(&cell.field),
        value: cell.value.as_deref().map(shown).unwrap_or_default(),
        class: if cell.right { "right" } else { "wrong" },
        note: match (cell.right, &cell.value, cell.extra) {
            (true, _, _) => "✓",
            (false, _, true) => language.t("✗ not asked for"),
            (false, None, _) => language.t("✗ missing"),
            (false, Some(_), _) => language.t("✗ wrong"),
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

fn cost_view(language: Language, candidate: &CandidateReport) -> Option<CostView<'_>> {
    let cost = candidate.cost.as_ref()?;
    Some(CostView {
        candidate: &candidate.name,
        amount: language.money(cost.per_1000_requests, &cost.currency),
        assumptions: &cost.assumptions,
    })
}

fn behaviour_view(language: Language, candidate: &CandidateReport) -> BehaviourView<'_> {
    let unknown = || language.t("not known").to_owned();
    BehaviourView {
        candidate: &candidate.name,
        kind: language.translated(&candidate.kind),
        failed: language.count(candidate.failed),
        stopped: candidate.stopped_share.map_or_else(unknown, |share| language.percent(share)),
        tokens: candidate.traffic.map_or_else(unknown, |traffic| {
            let (prompt, answer) = (traffic.prompt_tokens, traffic.answer_tokens);
            language.say(
                "{prompt} and {answer}",
                &[
                    ("prompt", &language.significant(prompt)),
                    ("answer", &language.significant(answer)),
                ],
            )
        }),
        speed: candidate.tokens_per_second.map_or_else(unknown, |n| language.significant(n)),
        time: language.duration(candidate.seconds),
    }
}

fn machine_rows(report: &Report) -> Vec<(&'static str, String)> {
    let (language, machine) = (report.language(), &report.machine);
    let mut rows = vec![
        (language.t("Processor"), machine.cpu.clone()),
        (language.t("Instructions used"), machine.instructions.clone()),
        (language.t("Logical cores"), language.count(machine.cores)),
        (language.t("Threads used"), language.count(machine.threads)),
        (language.t("Memory"), language.bytes(machine.memory_bytes)),
        (language.t("Operating system"), machine.os.clone()),
    ];
    if let Some(train) = &report.train {
        let speed = language.significant(train.tokens_per_second);
        rows.extend([
            (language.t("Training"), train.method.clone()),
            (language.t("Training steps"), grouped_u64(language, train.steps)),
            (language.t("Training speed"), language.say("{n} tokens a second", &[("n", &speed)])),
            (language.t("Training time"), language.duration(train.seconds)),
            (language.t("Most memory held"), language.bytes(train.peak_rss_bytes)),
        ]);
    }
    rows
}

fn data_rows(report: &Report) -> Vec<(&'static str, String)> {
    let (language, Some(data)) = (report.language(), &report.data) else { return Vec::new() };
    vec![
        (language.t("Training examples"), language.count(data.train_rows)),
        (language.t("Held-out examples"), language.count(data.valid_rows)),
        (language.t("Sealed test examples"), language.count(data.test_rows)),
        (language.t("Duplicates removed"), language.count(data.duplicates_removed)),
        (language.t("Test examples found in the training data"), language.count(data.leaks)),
        (language.t("How leaks were looked for"), data.leak_check.clone()),
    ]
}

fn licence_rows(report: &Report) -> Vec<(String, String)> {
    let language = report.language();
    let row = |l: &super::Licence| (l.what.clone(), language.translated(&l.licence));
    report.licences.iter().map(row).collect()
}

/// The name of a file or digest, of which scripts rely on the English one.
fn file_words(language: Language, name: &str) -> String {
    let of = |kind: &'static str| name.strip_prefix(kind).filter(|_| language == Language::Fr);
    for (kind, words) in [
        ("base of ", language.t("base of {name}")),
        ("chat template of ", language.t("chat template of {name}")),
        ("adapter of ", language.t("adapter of {name}")),
        ("adapter file of ", language.t("adapter file of {name}")),
        ("answers of ", language.t("answers of {name}")),
    ] {
        if let Some(rest) = of(kind) {
            return words.replace("{name}", rest);
        }
    }
    language.translated(name)
}

/// Width, height and margins of the loss curve, in units of its view box.
const CURVE_WIDTH: f64 = 360.0;
const CURVE_HEIGHT: f64 = 220.0;
const CURVE_LEFT: f64 = 40.0;
const CURVE_RIGHT: f64 = 12.0;
const CURVE_TOP: f64 = 10.0;
const CURVE_BOTTOM: f64 = 36.0;
/// None when there is no finite loss at all.
fn curve_view(language: Language, curve: &[LossPoint]) -> Option<CurveView> {
    let pick = |loss: fn(&LossPoint) -> Option<f64>| -> Vec<(f64, f64)> {
        let noted = curve.iter().filter_map(|p| loss(p).map(|loss| (p.step as f64, loss)));
        noted.filter(|(_, loss)| loss.is_finite()).collect()
    };
    let (train, held_out) = (pick(|p| p.loss), pick(|p| p.held_out));
    let within = (CURVE_LEFT, CURVE_WIDTH - CURVE_RIGHT, CURVE_TOP, CURVE_HEIGHT - CURVE_BOTTOM);
    let axes = Axes::new(&mut train.iter().chain(&held_out).copied(), within)?;
    let coordinate = |value: f64| format!("{value:.1}");
    Some(CurveView {
        summary: [(true, &train), (false, &held_out)]
            .into_iter()
            .filter_map(|(trained, points)| {
                let loss = |loss: f64| language.number(format!("{loss:.3}"));
                let (first, last) = (loss(points.first()?.1), loss(points.last()?.1));
                let ends: &[(&str, &dyn std::fmt::Display)] = &[("first", &first), ("last", &last)];
                Some(match trained {
                    true => language.say("Training loss goes from {first} to {last}.", ends),
                    false => language.say("Held-out loss goes from {first} to {last}.", ends),
                })
            })
            .collect::<Vec<_>>()
            .join(" "),
        train: axes.line(&averaged(&train)),
        held_out: axes.line(&averaged(&held_out)),
        held_out_dots: averaged(&held_out)
            .iter()
            .map(|p| (coordinate(axes.x(p.0)), coordinate(axes.y(p.1))))
            .collect(),
        x_ticks: axes
            .x_ticks()
            .into_iter()
            .map(|(x, step)| (x, grouped_u64(language, step)))
            .collect(),
        y_ticks: axes.y_ticks().into_iter().map(|(y, loss)| (y, language.number(loss))).collect(),
    })
}

/// A length as a share of the drawing's width, kept inside it.
fn share_of_width(share: f64) -> String {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    format!("{:.2}%", share * 100.0)
}

fn grouped_u64(language: Language, value: u64) -> String {
    language.count(usize::try_from(value).unwrap_or(usize::MAX))
}

/// Foreign text, cut after [`SHOWN_CHARS`] characters.
fn shown(language: Language, text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    let hidden = text.chars().skip(SHOWN_CHARS).count();
    if hidden > 0 {
        let more = language.say(" … ({n} more characters)", &[("n", &language.count(hidden))]);
        shown.push_str(&more);
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
        assert!(curve_view(Language::En, &[]).is_none());
        assert!(
            curve_view(Language::En, &[point(1, Some(f64::NAN), Some(f64::INFINITY))]).is_none()
        );
        let single = curve_view(Language::En, &[point(0, Some(2.0), None)]).unwrap();
        assert!(single.held_out.is_empty() && !single.train.contains("NaN"), "{}", single.train);
        let long: Vec<_> =
            (0..10_000).map(|i| point(i, Some(1.0 / (i + 1) as f64), None)).collect();
        assert!(curve_view(Language::En, &long).unwrap().train.split(' ').count() <= CURVE_POINTS);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = shown(Language::En, &"é".repeat(SHOWN_CHARS + 1500));
        assert!(long.ends_with("é … (1,500 more characters)"));
        assert_eq!(shown(Language::En, "short"), "short");
    }
}
