//! The three sentences on top of a proof in a language other than English, from the same facts.

use crate::numbers::{count, money, percent, points, signed};
use crate::verdict::{Decision, Verdict, decide};
use crate::words::Language;

/// What was scored; how sure that is; what follows.
pub(super) fn sentences_in(language: Language, d: &Decision) -> [String; 3] {
    if language == Language::En {
        return crate::verdict::sentences(d);
    }
    let scored = language.say(
        "On the same {n} test examples, {b} gets {score_b} by {metric} and {a} gets {score_a}.",
        &[
            ("n", &count(d.paired.n)),
            ("a", &d.a),
            ("b", &d.b),
            ("score_a", &percent(d.score_a)),
            ("score_b", &percent(d.score_b)),
            ("metric", &d.metric.name),
        ],
    );
    let interval = d.paired.ci95;
    let values: &[(&str, &dyn std::fmt::Display)] = &[
        ("d", &points(d.paired.difference)),
        ("lo", &signed(interval.lo)),
        ("hi", &points(interval.hi)),
        ("margin", &points(d.margin)),
    ];
    let sure = if interval.lo > d.margin {
        language.say("The difference is {d}; with 95 % confidence it lies between {lo} and {hi}, wholly above the required {margin}.", values)
    } else if interval.hi < d.margin {
        language.say("The difference is {d}; with 95 % confidence it lies between {lo} and {hi}, wholly below the required {margin}.", values)
    } else {
        language.say("The difference is {d}; with 95 % confidence it lies between {lo} and {hi}, which leaves open whether it is above the required {margin}.", values)
    };
    [scored, sure, follows(language, d)]
}

fn follows(language: Language, d: &Decision) -> String {
    match (decide(d), d.cost_a.zip(d.cost_b)) {
        (Verdict::WorthIt, Some((a, b))) => language.say(
            "1,000 requests cost {cost_b} with {b} and {cost_a} with {a}, under the assumptions stated below.",
            &[
                ("a", &d.a),
                ("b", &d.b),
                ("cost_a", &money(a.per_1000_requests, &a.currency)),
                ("cost_b", &money(b.per_1000_requests, &b.currency)),
            ],
        ),
        (Verdict::WorthIt, None) => {
            language.t("No cost of both was stated, so this says nothing about money.").to_owned()
        }
        (Verdict::NotProven, _) if !d.blockers.is_empty() => {
            language.say("It cannot be called proven: {reasons}", &[("reasons", &(d.blockers.join("; ") + "."))])
        }
        (Verdict::NotProven, _) => language.t("More test examples are needed to decide.").to_owned(),
        (Verdict::NotWorthIt, _) => language.say(
            "Do not put {b} to use for this: improve its data or training, then test again.",
            &[("b", &d.b)],
        ),
    }
}
