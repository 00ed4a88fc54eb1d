//! The rules of the verdict, each with its evidence in one sentence.

use super::{Arm, Forgotten, Look, ProofPlan};
use crate::cost::{Crossing, Economics, PairEconomics};
use crate::judge::{Agreement, Judgement};
use crate::metrics::RUBRIC;
use crate::report::{CandidateReport, Finding, Rule, volume_words};
use crate::rubric::GradesReport;
use crate::run::CandidateResult;
use crate::slices::SliceReport;
use crate::stats::{CONFIDENCE, Interval, PairedDifference};
use crate::verdict::Verdict;
use crate::words::Language;

/// Rise of the loss on general text, nats per token, from which on the reader is warned where no bound is
/// stated: the perplexity is a tenth higher.
const FORGOTTEN: f64 = 0.1;

fn rule(name: &str, asks: String, finding: Finding, evidence: String) -> Rule {
    Rule { name: name.to_owned(), asks, finding, evidence }
}

/// A number of points without its sign.
fn amount_of(language: Language, points: f64) -> String {
    language.points(points.abs()).trim_start_matches('+').to_owned()
}

/// The gain of the candidate `judged` against the margin.
pub(super) fn quality(plan: &ProofPlan, judged: &str, paired: &PairedDifference) -> Rule {
    let (language, interval) = (plan.language, paired.interval);
    let finding = if paired.exceeds(plan.margin) {
        Finding::Kept
    } else if interval.hi < plan.margin {
        Finding::Broken
    } else {
        Finding::Open
    };
    let margin = amount_of(language, plan.margin);
    let values: &[(&str, &dyn std::fmt::Display)] =
        &[("judged", &judged), ("against", &plan.against), ("margin", &margin)];
    let asks = match plan.margin < 0.0 {
        true => language.say("{judged} loses less than {margin} against {against}.", values),
        false => language.say("{judged} gains more than {margin} over {against}.", values),
    };
    let evidence = language.say(
        "The difference of {metric} lies between {lo} and {hi} with {confidence} confidence.",
        &[
            ("metric", &plan.metric),
            ("lo", &language.signed(interval.lo)),
            ("hi", &language.points(interval.hi)),
            ("confidence", &language.confidence(paired.confidence)),
        ],
    );
    rule("quality", asks, finding, evidence)
}

/// Which of `all` candidates judged together are worth it, and which one the verdict is about.
pub(super) fn family(
    language: Language,
    worth: &[&str],
    (about, verdict): (&str, Verdict),
    all: usize,
) -> Rule {
    let asks = language.say(
        "Of {n} candidates judged together, a false claim about any has a chance of at most 5 % (Holm).",
        &[("n", &all)],
    );
    let names = worth.join(", ");
    let values: &[(&str, &dyn std::fmt::Display)] = &[("names", &names), ("name", &about)];
    let evidence = match verdict {
        Verdict::WorthIt => language.say(
            "Worth it: {names}; the verdict is about {name}, which gains the most.",
            values,
        ),
        Verdict::NotProven => language.say(
            "None is proven worth it; the verdict is about {name}, the first named that is not ruled out.",
            values,
        ),
        Verdict::NotWorthIt => language.say(
            "All are ruled out; the verdict is about {name}, named first.",
            values,
        ),
    };
    rule("family", asks, Finding::Kept, evidence)
}

/// Looks at the test set, whose interval at this one has `confidence`.
pub(super) fn looks(language: Language, look: Look, confidence: f64) -> Rule {
    let asks = language.say(
        "The sealed test set is looked at {planned} times at most; a false claim at any of them has a chance of at most 5 %.",
        &[("planned", &look.planned)],
    );
    let values: &[(&str, &dyn std::fmt::Display)] = &[
        ("at", &look.at),
        ("planned", &look.planned),
        ("confidence", &language.confidence(confidence)),
    ];
    if look.at > look.planned {
        let evidence = language.say(
            "This is look {at}, and {planned} were planned: no chance of error is left to spend, so that only a new test set can prove anything.",
            values,
        );
        return rule("looks", asks, Finding::Open, evidence);
    }
    let evidence = language.say(
        "This is look {at} of {planned}; it may claim what an interval of {confidence} confidence shows.",
        values,
    );
    rule("looks", asks, Finding::Kept, evidence)
}

/// Failed answers. Those of the judged candidate count as wrong, which is hard enough on it; those of
/// the one compared with would flatter the judged one, so that nothing can be proven with them.
pub(super) fn failures(
    plan: &ProofPlan,
    against: &CandidateResult,
    judged: &CandidateResult,
) -> Vec<Rule> {
    let language = plan.language;
    let words = |candidate: &CandidateResult| {
        let (failed, n) = (candidate.failed(), candidate.answers.len());
        let (failed_words, n, name) = (language.count(failed), language.count(n), &candidate.name);
        if failed == 0 {
            return language
                .say("All {n} answers of {name} are there.", &[("n", &n), ("name", name)]);
        }
        let first = candidate.all_answers().find_map(|a| a.error.as_deref()).unwrap_or_default();
        let reason: String = first.chars().take(160).collect();
        language.say(
            "Of {name} {failed} of {n} answers failed; the first because of: {reason}.",
            &[("name", name), ("failed", &failed_words), ("n", &n), ("reason", &reason)],
        )
    };
    let finding =
        |failed: usize, otherwise: Finding| if failed == 0 { Finding::Kept } else { otherwise };
    vec![
        rule(
            "answers_against",
            language.say("Every example is answered by {name}.", &[("name", &plan.against)]),
            finding(against.failed(), Finding::Open),
            words(against),
        ),
        rule(
            "answers_judged",
            language.say("Failed answers of {name} count as wrong.", &[("name", &judged.name)]),
            finding(judged.failed(), Finding::Warning),
            words(judged),
        ),
    ]
}

/// Whether both are asked alike, token by token; nothing where that is not known of one of them. The same
/// model asked without its beginning token answers worse (EleutherAI/lm-evaluation-harness#1465), which
/// looks like a gain of the other, so that nothing is proven then.
pub(super) fn arms(plan: &ProofPlan, judged: &str) -> Option<Rule> {
    let (a, b) = (plan.arms.get(&plan.against)?, plan.arms.get(judged)?);
    let language = plan.language;
    let asks = language.say(
        "{judged} and {against} are asked alike: chat template, first token, tokens that end an answer.",
        &[("judged", &judged), ("against", &plan.against)],
    );
    let first = |arm: &Arm| match arm.bos {
        true => language.say("the beginning token {token}", &[("token", &arm.first_token)]),
        false => arm.first_token.clone(),
    };
    let mut differ: Vec<String> = Vec::new();
    if a.template != b.template {
        differ.push(language.t("the chat template").to_owned());
    }
    let same_first = (&a.first_token, a.bos) == (&b.first_token, b.bos);
    if !same_first {
        differ.push(
            language
                .say("the first token ({b} against {a})", &[("b", &first(b)), ("a", &first(a))]),
        );
    }
    if a.stops != b.stops {
        let stops = |arm: &Arm| arm.stops.join(" ");
        differ.push(language.say(
            "the tokens that end an answer ({b} against {a})",
            &[("b", &stops(b)), ("a", &stops(a))],
        ));
    }
    if differ.is_empty() {
        let evidence = language.say(
            "Both begin with {first} and end with {stops}, in the same chat template.",
            &[("first", &first(a)), ("stops", &a.stops.join(" "))],
        );
        return Some(rule("arms", asks, Finding::Kept, evidence));
    }
    let differ = differ.join(", ");
    let (finding, evidence) = match (a.base == b.base, same_first) {
        (false, _) => (
            Finding::Warning,
            language.say("They are different bases, each asked in its own way; different are: {differ}.", &[("differ", &differ)]),
        ),
        (true, true) => (
            Finding::Warning,
            language.say("On the same base, different are: {differ}. Part of the difference may come from there.", &[("differ", &differ)]),
        ),
        (true, false) => (
            Finding::Open,
            language.say("On the same base, different are: {differ}. The comparison is not one of the models alone.", &[("differ", &differ)]),
        ),
    };
    Some(rule("arms", asks, finding, evidence))
}

/// Whether the judged candidate does better than something simple that learnt from the same rows and needs no
/// language model. Where that one is proven better, nobody should serve the judged one.
pub(super) fn baseline(
    plan: &ProofPlan,
    judged: &str,
    baseline: &str,
    difference: f64,
    interval: Interval,
) -> Rule {
    let language = plan.language;
    // What is better is said to gain, so its gain is what stands between the bounds.
    let gain = match interval.hi < 0.0 {
        true => Interval { lo: -interval.hi, hi: -interval.lo },
        false => interval,
    };
    let (lo, hi) = (language.signed(gain.lo), language.points(gain.hi));
    let values: &[(&str, &dyn std::fmt::Display)] = &[
        ("judged", &judged),
        ("baseline", &baseline),
        ("metric", &plan.metric),
        ("amount", &amount_of(language, difference)),
        ("lo", &lo),
        ("hi", &hi),
    ];
    let asks = language.say(
        "{judged} does better than {baseline}, which learns from the same rows and needs no language model.",
        values,
    );
    let (finding, evidence) = if interval.lo > 0.0 {
        (
            Finding::Kept,
            language.say("It gains {amount} by {metric} (95 % between {lo} and {hi}).", values),
        )
    } else if interval.hi < 0.0 {
        (
            Finding::Open,
            language.say(
                "{baseline}, which needs no language model, does better by {amount} of {metric} (95 % between {lo} and {hi}).",
                values,
            ),
        )
    } else {
        (
            Finding::Warning,
            language.say(
                "Which one does better is not proven: by {metric} the difference lies between {lo} and {hi}.",
                values,
            ),
        )
    };
    rule("baseline", asks, finding, evidence)
}

/// The bound on cost, and whether the judged candidate is the cheaper one.
pub(super) fn money(
    plan: &ProofPlan,
    judged: &str,
    report: Option<&CandidateReport>,
    money: Option<&Economics>,
) -> Vec<Rule> {
    let language = plan.language;
    let mut rules = Vec::new();
    if let Some(most) = plan.max_cost_per_1000 {
        rules.push(bound(language, judged, most, report));
    }
    if plan.must_be_cheaper {
        let asks = language.say(
            "{judged} is cheaper than {against} at the volume stated.",
            &[("judged", &judged), ("against", &plan.against)],
        );
        let pair =
            money.and_then(|m| m.pairs.iter().find(|p| p.a == plan.against && p.b == judged));
        let (finding, evidence) = match (money, pair) {
            (Some(money), Some(pair)) => cheaper(language, money, pair),
            _ => (Finding::Open, language.t("The costs of both are not stated.").to_owned()),
        };
        rules.push(rule("cheaper", asks, finding, evidence));
    }
    rules
}

fn bound(language: Language, name: &str, most: f64, judged: Option<&CandidateReport>) -> Rule {
    let asks = language.say(
        "1,000 requests to {name} cost at most {most}.",
        &[("name", &name), ("most", &language.number(most.to_string()))],
    );
    let Some(cost) = judged.and_then(|c| c.cost.as_ref()) else {
        let evidence = language.say("What {name} costs is not stated.", &[("name", &name)]);
        return rule("max_cost", asks, Finding::Open, evidence);
    };
    let found = language.money(cost.per_1000_requests, &cost.currency);
    if cost.per_1000_requests <= most {
        let evidence = language.say("They cost {amount}.", &[("amount", &found)]);
        return rule("max_cost", asks, Finding::Kept, evidence);
    }
    let evidence = language.say(
        "1,000 requests to {name} cost {amount}, more than the {most} allowed.",
        &[("name", &name), ("amount", &found), ("most", &language.money(most, &cost.currency))],
    );
    rule("max_cost", asks, Finding::Open, evidence)
}

/// The bound on what any slice may lose.
pub(super) fn slices(plan: &ProofPlan, slices: &[SliceReport]) -> Option<Rule> {
    let (language, margin) = (plan.language, plan.slice_margin?);
    let asks = language.say(
        "No slice is proven to lose more than {margin}.",
        &[("margin", &amount_of(language, margin))],
    );
    let worse: Vec<&SliceReport> = slices.iter().filter(|s| s.is_worse(margin)).collect();
    let (finding, evidence) = match worse.first() {
        None => {
            (Finding::Kept, language.say("None of {n} slices is.", &[("n", &slices.len())]))
        }
        Some(worst) => (
            Finding::Open,
            language.say(
                "{count} of {n} slices are, the worst of them {field} = {value}, between {lo} and {hi}.",
                &[
                    ("count", &worse.len()),
                    ("n", &slices.len()),
                    ("field", &worst.field),
                    ("value", &worst.value),
                    ("lo", &language.signed(worst.interval.lo)),
                    ("hi", &language.points(worst.interval.hi)),
                ],
            ),
        ),
    };
    Some(rule("slices", asks, finding, evidence))
}

/// What the judged candidate lost on general text, against the bound stated; nothing where neither is known.
pub(super) fn forgetting(plan: &ProofPlan, judged: &str) -> Option<Rule> {
    let language = plan.language;
    let found = plan.forgotten.get(judged);
    let asks = match plan.max_forgetting {
        Some(bound) => language.say(
            "{name} loses at most {bound} nats per token on general text.",
            &[("name", &judged), ("bound", &language.number(bound.to_string()))],
        ),
        None => language.say("{name} has forgotten little.", &[("name", &judged)]),
    };
    let (finding, evidence) = match (plan.max_forgetting, found) {
        (None, None) => return None,
        (Some(_), None) => {
            (Finding::Open, language.t("Its training measured no such loss.").to_owned())
        }
        (bound, Some(found)) => (forgot(bound, found), forgetting_words(language, found)),
    };
    Some(rule("forgetting", asks, finding, evidence))
}

fn forgot(bound: Option<f64>, found: &Forgotten) -> Finding {
    let rise = found.loss_after - found.loss_before;
    match (bound, found.ci95) {
        (Some(bound), Some(ci95)) if ci95.hi <= bound => Finding::Kept,
        // A single piece of text has no interval, so that nothing is proven.
        (Some(bound), None) if rise <= bound => Finding::Warning,
        (Some(_), _) => Finding::Open,
        (None, ci95) if rise > FORGOTTEN && ci95.is_none_or(|ci| ci.lo > 0.0) => Finding::Warning,
        (None, _) => Finding::Kept,
    }
}

fn forgetting_words(language: Language, found: &Forgotten) -> String {
    let number = |value: f64| language.number(format!("{value:.4}"));
    let signed = |value: f64| language.number(format!("{value:+.4}"));
    let interval = match found.ci95 {
        Some(ci95) => language.say(
            ", 95 % between {lo} and {hi}",
            &[("lo", &signed(ci95.lo)), ("hi", &signed(ci95.hi))],
        ),
        None => String::new(),
    };
    language.say(
        "On {text}, {tokens} tokens, the loss goes from {before} to {after} nats per token ({rise}{interval}).",
        &[
            ("text", &language.translated(&found.text)),
            ("tokens", &language.count(usize::try_from(found.tokens).unwrap_or(usize::MAX))),
            ("before", &number(found.loss_before)),
            ("after", &number(found.loss_after)),
            ("rise", &signed(found.loss_after - found.loss_before)),
            ("interval", &interval),
        ],
    )
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
            ("rate", &language.percent(judgement.win_rate)),
            ("lo", &language.percent(judgement.ci95.lo)),
            ("hi", &language.percent(judgement.ci95.hi)),
            ("flips", &language.percent(judgement.position_flips)),
        ],
    );
    if let Some(rate) = judgement.length_controlled {
        evidence.push(' ');
        let rate = language.percent(rate);
        evidence.push_str(
            &language.say("With answers of the same length: {rate}.", &[("rate", &rate)]),
        );
    }
    let finding = if judgement.warnings.is_empty() { Finding::Kept } else { Finding::Warning };
    evidence.push_str(&known_of_a_judge(language, &judgement.agreement, &judgement.warnings));
    rule("judge", asks.to_owned(), finding, evidence)
}

/// Grades of a judge. Those of the one compared with that could not be read would flatter the judged one
/// where they decide, so that nothing can be proven with them.
pub(super) fn grades(plan: &ProofPlan, grades: &GradesReport) -> Rule {
    let language = plan.language;
    let asks = language.t("A judge's grades are shown with what is known of the judge.").to_owned();
    let mut evidence = language.say(
        "{judge} grades the answers of {a} and {b}, each by itself, by these criteria: {criteria}",
        &[
            ("judge", &grades.judge),
            ("a", &grades.a),
            ("b", &grades.b),
            ("criteria", &grades.criteria),
        ],
    );
    evidence.push_str(&known_of_a_judge(language, &grades.agreement, &grades.warnings));
    let finding = match grades.unreadable[0] > 0 && plan.metric == RUBRIC {
        true => Finding::Open,
        false if grades.warnings.is_empty() => Finding::Kept,
        false => Finding::Warning,
    };
    rule("grades", asks, finding, evidence)
}

fn known_of_a_judge(
    language: Language,
    agreement: &Option<Agreement>,
    warnings: &[String],
) -> String {
    let agreement = agreement.as_ref().map(|agreement| {
        language.say(
            "Agreement with people on {n} examples: {share}, kappa {kappa}.",
            &[
                ("n", &agreement.n),
                ("share", &language.percent(agreement.agreement)),
                ("kappa", &language.number(format!("{:.2}", agreement.kappa))),
            ],
        )
    });
    agreement.iter().chain(warnings).map(|sentence| format!(" {sentence}")).collect()
}

fn cheaper(language: Language, money: &Economics, pair: &PairEconomics) -> (Finding, String) {
    let volume = volume_words(language, &pair.break_even);
    let stated =
        money.requests_per_month.map(|n| language.count(n.round() as usize)).unwrap_or_default();
    let share = pair.cheaper_share.map(|share| language.percent(share)).unwrap_or_default();
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
