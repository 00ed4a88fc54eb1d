//! The rules of the verdict, each with its evidence in one sentence.

use super::ProofPlan;
use crate::cost::{Crossing, Economics, PairEconomics};
use crate::judge::Judgement;
use crate::numbers::{grouped, money as amount, percent, points, signed};
use crate::report::{CandidateReport, Finding, Rule, volume_words};
use crate::run::CandidateResult;
use crate::slices::SliceReport;
use crate::stats::{CONFIDENCE, PairedDifference};
use crate::words::Language;

fn rule(name: &str, asks: String, finding: Finding, evidence: String) -> Rule {
    Rule { name: name.to_owned(), asks, finding, evidence }
}

/// The gain against the margin.
pub(super) fn quality(plan: &ProofPlan, paired: &PairedDifference) -> Rule {
    let interval = paired.interval;
    let finding = if paired.exceeds(plan.margin) {
        Finding::Kept
    } else if interval.hi < plan.margin {
        Finding::Broken
    } else {
        Finding::Open
    };
    let (judged, against) = (&plan.judged, &plan.against);
    let asks = if plan.margin < 0.0 {
        let margin = points(-plan.margin).trim_start_matches('+').to_owned();
        plan.language.say(
            "{judged} loses less than {margin} against {against}.",
            &[("judged", judged), ("against", against), ("margin", &margin)],
        )
    } else {
        let margin = points(plan.margin).trim_start_matches('+').to_owned();
        plan.language.say(
            "{judged} gains more than {margin} over {against}.",
            &[("judged", judged), ("against", against), ("margin", &margin)],
        )
    };
    let evidence = plan.language.say(
        "The difference of {metric} lies between {lo} and {hi} with 95 % confidence.",
        &[("metric", &plan.metric), ("lo", &signed(interval.lo)), ("hi", &points(interval.hi))],
    );
    rule("quality", asks, finding, evidence)
}

/// Failed answers. Those of the judged candidate count as wrong, which is hard enough on it; those of
/// the one compared with would flatter the judged one, so that nothing can be proven with them.
pub(super) fn failures(
    plan: &ProofPlan,
    against: &CandidateResult,
    judged: &CandidateResult,
) -> Vec<Rule> {
    let words = |candidate: &CandidateResult| {
        let (failed, n, name) = (candidate.failed(), candidate.answers.len(), &candidate.name);
        if failed == 0 {
            return plan
                .language
                .say("All {n} answers of {name} are there.", &[("n", &n), ("name", name)]);
        }
        let first = candidate.answers.iter().find_map(|a| a.error.as_deref()).unwrap_or_default();
        let reason: String = first.chars().take(160).collect();
        plan.language.say(
            "Of {name} {failed} of {n} answers failed; the first because of: {reason}.",
            &[("name", name), ("failed", &failed), ("n", &n), ("reason", &reason)],
        )
    };
    let finding =
        |failed: usize, otherwise: Finding| if failed == 0 { Finding::Kept } else { otherwise };
    vec![
        rule(
            "answers_against",
            plan.language.say("Every example is answered by {name}.", &[("name", &plan.against)]),
            finding(against.failed(), Finding::Open),
            words(against),
        ),
        rule(
            "answers_judged",
            plan.language
                .say("Failed answers of {name} count as wrong.", &[("name", &plan.judged)]),
            finding(judged.failed(), Finding::Warning),
            words(judged),
        ),
    ]
}

/// The bound on cost, and whether the judged candidate is the cheaper one.
pub(super) fn money(
    plan: &ProofPlan,
    judged: Option<&CandidateReport>,
    money: Option<&Economics>,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    if let Some(most) = plan.max_cost_per_1000 {
        rules.push(bound(plan, most, judged));
    }
    if plan.must_be_cheaper {
        let asks = plan.language.say(
            "{judged} is cheaper than {against} at the volume stated.",
            &[("judged", &plan.judged), ("against", &plan.against)],
        );
        let pair =
            money.and_then(|m| m.pairs.iter().find(|p| p.a == plan.against && p.b == plan.judged));
        let (finding, evidence) = match (money, pair) {
            (Some(money), Some(pair)) => cheaper(plan.language, money, pair),
            _ => (Finding::Open, plan.language.t("The costs of both are not stated.").to_owned()),
        };
        rules.push(rule("cheaper", asks, finding, evidence));
    }
    rules
}

fn bound(plan: &ProofPlan, most: f64, judged: Option<&CandidateReport>) -> Rule {
    let name = &plan.judged;
    let asks = plan
        .language
        .say("1,000 requests to {name} cost at most {most}.", &[("name", name), ("most", &most)]);
    let Some(cost) = judged.and_then(|c| c.cost.as_ref()) else {
        let evidence = plan.language.say("What {name} costs is not stated.", &[("name", name)]);
        return rule("max_cost", asks, Finding::Open, evidence);
    };
    let found = amount(cost.per_1000_requests, &cost.currency);
    if cost.per_1000_requests <= most {
        let evidence = plan.language.say("They cost {amount}.", &[("amount", &found)]);
        return rule("max_cost", asks, Finding::Kept, evidence);
    }
    let evidence = plan.language.say(
        "1,000 requests to {name} cost {amount}, more than the {most} allowed.",
        &[("name", name), ("amount", &found), ("most", &amount(most, &cost.currency))],
    );
    rule("max_cost", asks, Finding::Open, evidence)
}

/// The bound on what any slice may lose.
pub(super) fn slices(plan: &ProofPlan, slices: &[SliceReport]) -> Option<Rule> {
    let margin = plan.slice_margin?;
    let words = points(margin).trim_start_matches('+').to_owned();
    let asks =
        plan.language.say("No slice is proven to lose more than {margin}.", &[("margin", &words)]);
    let worse: Vec<&SliceReport> = slices.iter().filter(|s| s.is_worse(margin)).collect();
    let (finding, evidence) = match worse.first() {
        None => (
            Finding::Kept,
            plan.language.say("None of {n} slices is.", &[("n", &slices.len())]),
        ),
        Some(worst) => (
            Finding::Open,
            plan.language.say(
                "{count} of {n} slices are, the worst of them {field} = {value}, between {lo} and {hi}.",
                &[
                    ("count", &worse.len()),
                    ("n", &slices.len()),
                    ("field", &worst.field),
                    ("value", &worst.value),
                    ("lo", &signed(worst.interval.lo)),
                    ("hi", &points(worst.interval.hi)),
                ],
            ),
        ),
    };
    Some(rule("slices", asks, finding, evidence))
}

/// A judge's opinion. It is shown with what is known of the judge, and decides nothing.
pub(super) fn judgement(language: Language, judgement: &Judgement) -> Rule {
    let asks =
        language.t("A judge's opinion is shown with what speaks against it; it decides nothing.");
    let mut evidence = language.say(
        "{judge} prefers {b} to {a} in {rate} of the examples, ties half (95 % between {lo} and {hi}); the order changed its mind in {flips}.",
        &[
            ("judge", &judgement.judge),
            ("a", &judgement.a),
            ("b", &judgement.b),
            ("rate", &percent(judgement.win_rate)),
            ("lo", &percent(judgement.ci95.lo)),
            ("hi", &percent(judgement.ci95.hi)),
            ("flips", &percent(judgement.position_flips)),
        ],
    );
    if let Some(rate) = judgement.length_controlled {
        evidence.push(' ');
        let rate = percent(rate);
        evidence.push_str(
            &language.say("With answers of the same length: {rate}.", &[("rate", &rate)]),
        );
    }
    if let Some(agreement) = &judgement.agreement {
        evidence.push(' ');
        evidence.push_str(&language.say(
            "Agreement with people on {n} examples: {share}, kappa {kappa}.",
            &[
                ("n", &agreement.n),
                ("share", &percent(agreement.agreement)),
                ("kappa", &format!("{:.2}", agreement.kappa)),
            ],
        ));
    }
    for warning in &judgement.warnings {
        evidence.push(' ');
        evidence.push_str(warning);
    }
    let finding = if judgement.warnings.is_empty() { Finding::Kept } else { Finding::Warning };
    rule("judge", asks.to_owned(), finding, evidence)
}

fn cheaper(language: Language, money: &Economics, pair: &PairEconomics) -> (Finding, String) {
    let volume = volume_words(language, &pair.break_even);
    let stated = money.requests_per_month.map(|n| grouped(n.round() as i64)).unwrap_or_default();
    let share = pair.cheaper_share.map(percent).unwrap_or_default();
    let values: &[(&str, &dyn std::fmt::Display)] =
        &[("a", &pair.a), ("b", &pair.b), ("n", &stated), ("volume", &volume), ("share", &share)];
    match (pair.crossing, money.requests_per_month, pair.cheaper_share) {
        (Crossing::Never, _, _) => {
            (Finding::Broken, language.say("{b} is not cheaper than {a} at any volume.", values))
        }
        (_, Some(_), Some(share)) if share >= CONFIDENCE => (
            Finding::Kept,
            language.say(
                "At {n} requests a month {b} is cheaper than {a} in {share} of the resamples.",
                values,
            ),
        ),
        (Crossing::Always, None, _) => {
            (Finding::Kept, language.say("{b} is cheaper than {a} at any volume.", values))
        }
        (Crossing::UpTo, Some(_), _) => (
            Finding::Open,
            language.say(
                "At {n} requests a month {b} is not proven cheaper than {a}; it is up to {volume}.",
                values,
            ),
        ),
        (_, Some(_), _) => (
            Finding::Open,
            language.say(
                "At {n} requests a month {b} is not proven cheaper than {a}; it is from {volume} on.",
                values,
            ),
        ),
        (Crossing::UpTo, None, _) => {
            (Finding::Open, language.say("No volume is stated; {b} is cheaper up to {volume}.", values))
        }
        (_, None, _) => {
            (Finding::Open, language.say("No volume is stated; {b} is cheaper from {volume} on.", values))
        }
    }
}
