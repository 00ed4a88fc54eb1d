//! The drawings and tables of money: quality against cost, and cost against volume.

use super::drawing::ticks;
use super::{CandidateReport, Report};
use crate::cost::{Crossing, Economics, Estimate, PairEconomics};
use crate::numbers::{grouped, signed};
use crate::words::Language;

/// The drawings, in units of their view boxes.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 42.0;

pub(super) struct Scatter {
    pub(super) points: Vec<Point>,
    /// The line through those that no other is both better and cheaper than.
    pub(super) pareto: String,
    pub(super) x_ticks: Vec<(String, String)>,
    pub(super) y_ticks: Vec<(String, String)>,
    pub(super) currency: String,
    pub(super) summary: String,
}

pub(super) struct Point {
    pub(super) number: usize,
    pub(super) name: String,
    pub(super) class: usize,
    pub(super) x: String,
    pub(super) y: String,
    pub(super) lo: String,
    pub(super) hi: String,
    pub(super) words: String,
    pub(super) on_pareto: bool,
}

pub(super) struct Volume {
    pub(super) lines: Vec<VolumeLine>,
    pub(super) crossings: Vec<CrossingMark>,
    pub(super) stated: Option<String>,
    pub(super) x_ticks: Vec<(String, String)>,
    pub(super) y_ticks: Vec<(String, String)>,
    pub(super) currency: String,
    pub(super) summary: String,
}

pub(super) struct VolumeLine {
    pub(super) name: String,
    pub(super) class: usize,
    pub(super) points: String,
    pub(super) last_y: String,
    pub(super) number: usize,
}

pub(super) struct CrossingMark {
    pub(super) x: String,
    pub(super) band_x: String,
    pub(super) band_width: String,
}

pub(super) struct ArmRow {
    pub(super) name: String,
    pub(super) cells: Vec<String>,
}

pub(super) struct PairView {
    pub(super) title: String,
    pub(super) facts: Vec<(&'static str, String)>,
}

fn scale(value: f64, (lo, hi): (f64, f64), (from, to): (f64, f64)) -> f64 {
    let share = if hi > lo { (value - lo) / (hi - lo) } else { 0.5 };
    from + share.clamp(0.0, 1.0) * (to - from)
}

fn place(value: f64) -> String {
    format!("{value:.1}")
}

fn cost_of(candidate: &CandidateReport) -> Option<f64> {
    candidate.cost_per_1000_requests.filter(|cost| *cost > 0.0 && cost.is_finite())
}

/// Quality upwards, cost to the right on a logarithmic scale; None with fewer than two costs.
pub(super) fn scatter(report: &Report) -> Option<Scatter> {
    let language = report.language();
    let priced: Vec<(usize, &CandidateReport, f64)> = report
        .candidates
        .iter()
        .enumerate()
        .filter_map(|(i, c)| Some((i, c, cost_of(c)?)))
        .filter(|(_, c, _)| c.metrics.contains_key(&report.metric))
        .collect();
    if priced.len() < 2 {
        return None;
    }
    let currency = priced[0].1.cost.as_ref()?.currency.clone();
    let costs = priced.iter().map(|(_, _, cost)| cost.log10());
    let (lo, hi) = costs.fold((f64::MAX, f64::MIN), |(lo, hi), c| (lo.min(c), hi.max(c)));
    let (lo, hi) = ((lo - 0.15).floor(), (hi + 0.15).ceil());
    let metric = |c: &CandidateReport| c.metrics[&report.metric].clone();
    let least = priced.iter().map(|(_, c, _)| metric(c).ci95.lo).fold(f64::MAX, f64::min);
    let most = priced.iter().map(|(_, c, _)| metric(c).ci95.hi).fold(f64::MIN, f64::max);
    let y_values = ticks(least * 100.0, most * 100.0);
    let y_range = (y_values[0] / 100.0, y_values[y_values.len() - 1] / 100.0);
    let x = |cost: f64| scale(cost.log10(), (lo, hi), (LEFT, WIDTH - RIGHT));
    let y = |quality: f64| scale(quality, y_range, (HEIGHT - BOTTOM, TOP));
    let beaten = |c: &CandidateReport, cost: f64| {
        priced.iter().any(|(_, other, other_cost)| {
            let (theirs, ours) = (metric(other).value, metric(c).value);
            *other_cost <= cost && theirs >= ours && (*other_cost < cost || theirs > ours)
        })
    };
    let points: Vec<Point> = priced
        .iter()
        .map(|(index, c, cost)| {
            let m = metric(c);
            Point {
                number: index + 1,
                name: c.name.clone(),
                class: index % 4,
                x: place(x(*cost)),
                y: place(y(m.value)),
                lo: place(y(m.ci95.lo)),
                hi: place(y(m.ci95.hi)),
                words: language.say(
                    "{share} ({interval}) at {amount}",
                    &[
                        ("share", &language.percent(m.value)),
                        ("interval", &language.percents(m.ci95)),
                        ("amount", &language.money(*cost, &currency)),
                    ],
                ),
                on_pareto: !beaten(c, *cost),
            }
        })
        .collect();
    let mut best: Vec<(f64, f64)> = priced
        .iter()
        .filter(|(_, c, cost)| !beaten(c, *cost))
        .map(|(_, c, cost)| (x(*cost), y(metric(c).value)))
        .collect();
    best.sort_by(|a, b| a.0.total_cmp(&b.0));
    // A staircase: between two candidates one has the cheaper one's quality.
    let mut pareto: Vec<String> = Vec::new();
    for (i, (px, py)) in best.iter().enumerate() {
        if i > 0 {
            pareto.push(format!("{px:.1},{:.1}", best[i - 1].1));
        }
        pareto.push(format!("{px:.1},{py:.1}"));
    }
    let decades = (lo as i32..=hi as i32).map(|power| {
        let cost = 10f64.powi(power);
        (place(x(cost)), language.significant(cost))
    });
    let names: Vec<&str> = points.iter().filter(|p| p.on_pareto).map(|p| p.name.as_str()).collect();
    Some(Scatter {
        pareto: pareto.join(" "),
        x_ticks: decades.collect(),
        y_ticks: y_values
            .iter()
            .map(|v| (place(y(v / 100.0)), language.number(format!("{v:.0} %"))))
            .collect(),
        summary: language.say(
            "No candidate is both better and cheaper than {names}.",
            &[("names", &names.join(language.t(" or ")))],
        ),
        currency,
        points,
    })
}

/// Cost of a month against volume, with the crossing and its band.
pub(super) fn volume(report: &Report) -> Option<Volume> {
    let money = report.economics.as_ref().filter(|m| !m.arms.is_empty())?;
    let last =
        money.arms.iter().filter_map(|arm| arm.curve.last()).map(|p| p.0).fold(1.0, f64::max);
    let highest =
        money.arms.iter().flat_map(|arm| &arm.curve).map(|p| p.1).fold(f64::MIN_POSITIVE, f64::max);
    let (xs, ys) = (ticks(0.0, last), ticks(0.0, highest));
    let (x_range, y_range) = ((0.0, last), (0.0, ys[ys.len() - 1]));
    let x = |v: f64| scale(v, x_range, (LEFT, WIDTH - RIGHT));
    let y = |v: f64| scale(v, y_range, (HEIGHT - BOTTOM, TOP));
    let number_of = |name: &str| report.candidates.iter().position(|c| c.name == name).unwrap_or(0);
    let lines = money.arms.iter().map(|arm| VolumeLine {
        name: arm.name.clone(),
        class: number_of(&arm.name) % 4,
        number: number_of(&arm.name) + 1,
        points: arm
            .curve
            .iter()
            .map(|(v, c)| format!("{:.1},{:.1}", x(*v), y(*c)))
            .collect::<Vec<_>>()
            .join(" "),
        last_y: place(arm.curve.last().map_or(0.0, |p| y(p.1))),
    });
    let crossings = money.pairs.iter().filter_map(|pair| {
        let value = pair.break_even.value.filter(|v| *v > 0.0 && *v <= last)?;
        let lo = x(pair.break_even.ci95[0].unwrap_or(last));
        let hi = x(pair.break_even.ci95[1].unwrap_or(last));
        Some(CrossingMark {
            x: place(x(value)),
            band_x: place(lo.min(hi)),
            band_width: place((hi - lo).abs().max(1.0)),
        })
    });
    let tick = |value: f64| report.language().number(short(value));
    let summary: Vec<String> =
        money.pairs.iter().map(|pair| crossing_words(report.language(), pair)).collect();
    Some(Volume {
        lines: lines.collect(),
        crossings: crossings.collect(),
        stated: money.requests_per_month.filter(|v| *v <= last).map(|v| place(x(v))),
        x_ticks: xs.iter().filter(|v| **v <= last).map(|v| (place(x(*v)), tick(*v))).collect(),
        y_ticks: ys.iter().map(|v| (place(y(*v)), tick(*v))).collect(),
        currency: money.currency.clone(),
        summary: summary.join(" "),
    })
}

/// `1,200`, `40 k`, `3.5 M`.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", trimmed(v / 1e6)),
        v if v >= 1e4 => format!("{} k", trimmed(v / 1e3)),
        v if v >= 10.0 || v == 0.0 => grouped(v.round() as i64),
        v => trimmed(v),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(crate) fn volume_words(language: Language, estimate: &Estimate) -> String {
    let words = |value: Option<f64>| match value {
        Some(value) => language.number(grouped(value.round() as i64)),
        None => language.t("never").to_owned(),
    };
    let [lo, hi] = estimate.ci95;
    language.say(
        "{value} requests a month (95 % between {lo} and {hi})",
        &[("value", &words(estimate.value)), ("lo", &words(lo)), ("hi", &words(hi))],
    )
}

fn crossing_words(language: Language, pair: &PairEconomics) -> String {
    let volume = volume_words(language, &pair.break_even);
    let values: &[(&str, &dyn std::fmt::Display)] =
        &[("a", &pair.a), ("b", &pair.b), ("volume", &volume)];
    match pair.crossing {
        Crossing::Always => language.say("{b} is not dearer than {a} at any volume.", values),
        Crossing::Never => language.say("{b} is dearer than {a} at every volume.", values),
        Crossing::From => language.say("{b} is cheaper than {a} from {volume} on.", values),
        Crossing::UpTo => language.say("{b} is cheaper than {a} up to {volume}.", values),
    }
}

pub(super) fn arm_rows(language: Language, reckoned: &Economics) -> Vec<ArmRow> {
    let currency = &reckoned.currency;
    let amount = |estimate: &Estimate| {
        with_interval(language, estimate, &|v| language.money(v, currency), language.t("no bound"))
    };
    let row = |arm: &crate::cost::ArmEconomics| ArmRow {
        name: arm.name.clone(),
        cells: vec![
            amount(&arm.per_1000_requests),
            arm.per_month.as_ref().map_or(language.t("no volume stated").to_owned(), amount),
            arm.machines.map_or("–".to_owned(), |n| language.number(grouped(n as i64))),
            arm.utilisation.map_or("–".to_owned(), |share| language.percent(share)),
            language.money(arm.one_off, currency),
        ],
    };
    reckoned.arms.iter().map(row).collect()
}

fn with_interval(
    language: Language,
    estimate: &Estimate,
    words: &dyn Fn(f64) -> String,
    unbounded: &str,
) -> String {
    let word = |value: Option<f64>| value.map_or(unbounded.to_owned(), words);
    let [lo, hi] = estimate.ci95;
    if lo == hi && lo == estimate.value {
        return word(estimate.value);
    }
    language.say(
        "{value} ({lo} to {hi})",
        &[("value", &word(estimate.value)), ("lo", &word(lo)), ("hi", &word(hi))],
    )
}

pub(super) fn pair_views(language: Language, reckoned: &Economics) -> Vec<PairView> {
    reckoned.pairs.iter().map(|pair| pair_view(language, &reckoned.currency, pair)).collect()
}

fn pair_view(language: Language, currency: &str, pair: &PairEconomics) -> PairView {
    let amount = |v: f64| language.money(v, currency);
    let months = |v: f64| language.say("{n} months", &[("n", &language.significant(v))]);
    let change = |v: f64| language.number(format!("{} %", signed(-v)));
    let percent = |v: f64| language.percent(v);
    let never = language.t("never");
    type Row<'a> = (&'static str, &'a Option<Estimate>, &'a dyn Fn(f64) -> String, &'a str);
    let rows: [Row<'_>; 5] = [
        (language.t("Saved in a month at the volume stated"), &pair.saving_per_month, &amount, "–"),
        (language.t("Payback"), &pair.payback_months, &months, never),
        (
            language
                .t("Change of the running price of the first that would make both cost the same"),
            &pair.price_drop,
            &change,
            "–",
        ),
        (
            language.t("Utilisation of the machines at break-even"),
            &pair.utilisation,
            &percent,
            language.t("never reached"),
        ),
        (
            language.t("What one wrong answer must cost for the dearer one to be right"),
            &pair.error_cost,
            &amount,
            language.t("no amount: the cheaper one is not the worse one"),
        ),
    ];
    let mut facts = vec![(language.t("Break-even"), crossing_words(language, pair))];
    facts.extend(rows.into_iter().filter_map(|(name, estimate, words, unbounded)| {
        Some((name, with_interval(language, estimate.as_ref()?, words, unbounded)))
    }));
    if pair.saving.prompt_tokens.abs() >= 0.5 {
        let (tokens, worth) = (
            language.significant(pair.saving.prompt_tokens),
            amount(pair.saving.per_1000_requests),
        );
        let words = language
            .say("{n}, worth {amount} per 1,000 requests", &[("n", &tokens), ("amount", &worth)]);
        facts.push((language.t("Prompt tokens saved on each request"), words));
    }
    if let Some(share) = pair.cheaper_share {
        let name = language.t("Resamples of the requests in which the second is not dearer");
        facts.push((name, percent(share)));
    }
    PairView { title: language.say("{b} beside {a}", &[("a", &pair.a), ("b", &pair.b)]), facts }
}
