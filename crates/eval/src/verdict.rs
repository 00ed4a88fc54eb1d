//! From the paired interval to a decision in three plain sentences.

use crate::cost::Cost;
use crate::metrics::Metric;
use crate::numbers::{count, money, percent, points, signed};
use crate::stats::{PairedDifference, graded_sample_size};
use serde::{Deserialize, Serialize};

/// Whether the second candidate is worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval of its gain lies above the margin, and nothing stands in the way.
    WorthIt,
    /// The interval holds the margin, or something stands in the way.
    NotProven,
    /// The whole interval lies below the margin.
    NotWorthIt,
}

impl Verdict {
    /// As a headline.
    pub fn title(self) -> &'static str {
        match self {
            Verdict::WorthIt => "Worth it",
            Verdict::NotProven => "Not proven",
            Verdict::NotWorthIt => "Not worth it",
        }
    }
}

/// What a decision rests on. `b` is judged against `a`.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// Name of the candidate compared with, usually the base.
    pub a: &'a str,
    /// Name of the candidate judged.
    pub b: &'a str,
    /// The metric that decides, named before the run.
    pub metric: &'a Metric,
    /// Mean score of `a`.
    pub score_a: f64,
    /// Mean score of `b`.
    pub score_b: f64,
    /// b minus a.
    pub paired: &'a PairedDifference,
    /// The gain that must be exceeded, as a share: 0.3 is 30 points.
    pub margin: f64,
    /// What forbids "worth it" whatever the scores, each a clause that completes "because ...":
    /// leaked test examples, answers that failed.
    pub blockers: &'a [String],
    /// What serving `a` costs, when known.
    pub cost_a: Option<&'a Cost>,
    /// What serving `b` costs, when known.
    pub cost_b: Option<&'a Cost>,
}

/// The verdict. An interval that touches the margin proves nothing, and neither does a test that is
/// not clean; but a clear failure stays one.
pub fn decide(decision: &Decision) -> Verdict {
    let interval = decision.paired.ci95;
    if interval.hi < decision.margin {
        Verdict::NotWorthIt
    } else if interval.lo > decision.margin && decision.blockers.is_empty() {
        Verdict::WorthIt
    } else {
        Verdict::NotProven
    }
}

/// What was scored; how sure that is; what follows.
pub fn sentences(decision: &Decision) -> [String; 3] {
    [scored(decision), how_sure(decision), what_follows(decision)]
}

fn scored(d: &Decision) -> String {
    let examples = if d.paired.n == 1 { "example" } else { "examples" };
    format!(
        "On the same {} test {examples}, {} gets {} {} and {} gets {}.",
        count(d.paired.n),
        d.b,
        percent(d.score_b),
        d.metric.reads_as,
        d.a,
        percent(d.score_a)
    )
}

fn how_sure(d: &Decision) -> String {
    let interval = d.paired.ci95;
    let margin = if d.margin == 0.0 {
        "zero".to_owned()
    } else {
        format!("the required {}", points(d.margin))
    };
    let place = if interval.lo > d.margin {
        format!("wholly above {margin}")
    } else if interval.hi < d.margin {
        format!("wholly below {margin}")
    } else {
        format!("which leaves open whether it is above {margin}")
    };
    format!(
        "The difference is {}; with 95 % confidence it lies between {} and {}, {place}.",
        points(d.paired.difference),
        signed(interval.lo),
        points(interval.hi)
    )
}

fn what_follows(d: &Decision) -> String {
    match decide(d) {
        Verdict::WorthIt => match (d.cost_b, d.cost_a) {
            (Some(b), Some(a)) if a.currency == b.currency => format!(
                "Under the assumptions stated below, 1,000 requests to {} cost {}, and to {} {}.",
                d.b,
                money(b.per_1000_requests, &b.currency),
                d.a,
                money(a.per_1000_requests, &a.currency)
            ),
            (Some(b), _) => format!(
                "Under the assumptions stated below, 1,000 requests to {} cost {}.",
                d.b,
                money(b.per_1000_requests, &b.currency)
            ),
            _ => "No cost was stated, so this says nothing about money.".to_owned(),
        },
        Verdict::NotProven if !d.blockers.is_empty() => {
            format!("It cannot be called proven because {}.", d.blockers.join(", and because "))
        }
        Verdict::NotProven => more_examples(d),
        Verdict::NotWorthIt => format!(
            "Do not put {} to use for this: improve its data or training, then test again.",
            d.b
        ),
    }
}

/// How many examples would settle it, if the difference seen is the true one.
fn more_examples(d: &Decision) -> String {
    let beyond = d.paired.difference - d.margin;
    // All differences equal: their spread is unknown, not zero.
    let sd = if d.paired.sd > 0.0 { d.paired.sd } else { 0.5 };
    match graded_sample_size(beyond.clamp(-1.0, 1.0), sd) {
        Ok(needed) if beyond > 0.0 => format!(
            "If the true difference is the one seen, about {} test examples would prove it with a chance of 80 %; there are {}.",
            // Never fewer than the number that just failed to settle it.
            count(needed.max(d.paired.n + 1)),
            count(d.paired.n)
        ),
        _ => format!(
            "The difference seen is not above the required one, so improve {} before collecting more test examples.",
            d.b
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::metrics_by_name;
    use crate::stats::{Interval, PairedTest};

    fn paired(difference: f64, lo: f64, hi: f64) -> PairedDifference {
        PairedDifference {
            n: 400,
            difference,
            ci95: Interval { lo, hi },
            p_value: 0.01,
            test: PairedTest::SignFlip { resamples: 10 },
            sd: 0.4,
        }
    }

    fn judge(
        paired: &PairedDifference,
        margin: f64,
        blockers: &[String],
        cost: Option<&Cost>,
    ) -> (Verdict, [String; 3]) {
        let metric = metrics_by_name(&["json_field_accuracy"]).unwrap()[0];
        let decision = Decision {
            a: "base",
            b: "adapted",
            metric,
            score_a: 0.12,
            score_b: 0.12 + paired.difference,
            paired,
            margin,
            blockers,
            cost_a: None,
            cost_b: cost,
        };
        (decide(&decision), sentences(&decision))
    }

    #[test]
    fn the_interval_decides_against_the_margin() {
        for (lo, hi, margin, expected) in [
            (0.72, 0.78, 0.3, Verdict::WorthIt),
            (0.01, 0.2, 0.0, Verdict::WorthIt),
            (0.0, 0.2, 0.0, Verdict::NotProven),
            (-0.1, 0.2, 0.0, Verdict::NotProven),
            (0.2, 0.4, 0.3, Verdict::NotProven),
            (0.1, 0.3, 0.3, Verdict::NotProven),
            (0.1, 0.29, 0.3, Verdict::NotWorthIt),
            (-0.2, -0.1, 0.0, Verdict::NotWorthIt),
        ] {
            let paired = paired((lo + hi) / 2.0, lo, hi);
            assert_eq!(judge(&paired, margin, &[], None).0, expected, "{lo} {hi} {margin}");
        }
    }

    #[test]
    fn worth_it_in_words() {
        let cost =
            Cost { per_1000_requests: 0.0123, currency: "EUR".into(), assumptions: Vec::new() };
        let (_, words) = judge(&paired(0.75, 0.72, 0.78), 0.3, &[], Some(&cost));
        assert_eq!(
            words,
            [
                "On the same 400 test examples, adapted gets 87.0 % of the fields right and base gets 12.0 %.",
                "The difference is +75.0 points; with 95 % confidence it lies between +72.0 and +78.0 points, wholly above the required +30.0 points.",
                "Under the assumptions stated below, 1,000 requests to adapted cost 0.0123 EUR.",
            ]
        );
        let (_, words) = judge(&paired(0.75, 0.72, 0.78), 0.3, &[], None);
        assert!(words[2].contains("nothing about money"));
    }

    #[test]
    fn costs_are_set_side_by_side_only_in_one_currency() {
        let cost = |currency: &str| Cost {
            per_1000_requests: 2.0,
            currency: currency.into(),
            assumptions: Vec::new(),
        };
        let (ours, same, other) = (cost("EUR"), cost("EUR"), cost("USD"));
        let paired = paired(0.75, 0.72, 0.78);
        let last = |cost_a| {
            let metric = metrics_by_name(&["json_exact"]).unwrap()[0];
            let (score_a, score_b, margin, blockers) = (0.1, 0.85, 0.0, &[][..]);
            let (a, b, paired, cost_b) = ("gpt", "adapted", &paired, Some(&ours));
            let [_, _, last] = sentences(&Decision {
                a,
                b,
                metric,
                score_a,
                score_b,
                paired,
                margin,
                blockers,
                cost_a,
                cost_b,
            });
            last
        };
        assert!(last(Some(&same)).contains("to adapted cost 2.00 EUR, and to gpt 2.00 EUR."));
        assert!(!last(Some(&other)).contains("gpt"));
    }

    #[test]
    fn not_proven_says_what_would_help() {
        let (_, words) = judge(&paired(0.03, -0.01, 0.07), 0.0, &[], None);
        assert!(words[1].ends_with("which leaves open whether it is above zero."), "{}", words[1]);
        // (1.96 + 0.8416)² · 0.4² / 0.03² = 1395.4
        assert!(words[2].contains("about 1,396 test examples"), "{}", words[2]);
        let (_, words) = judge(&paired(-0.01, -0.05, 0.03), 0.0, &[], None);
        assert!(words[2].contains("improve adapted"), "{}", words[2]);
        let mut flat = paired(0.001, -0.01, 0.01);
        flat.sd = 0.0;
        assert!(judge(&flat, 0.0, &[], None).1[2].contains("test examples would prove it"));
    }

    #[test]
    fn what_stands_in_the_way_is_named_and_forbids_worth_it() {
        let blockers = ["3 test examples are in the training data".to_owned(), "x".to_owned()];
        let (verdict, words) = judge(&paired(0.75, 0.72, 0.78), 0.3, &blockers, None);
        assert_eq!(verdict, Verdict::NotProven);
        assert!(
            words[2].contains("because 3 test examples are in the training data, and because x.")
        );
        let (verdict, _) = judge(&paired(-0.75, -0.78, -0.72), 0.0, &blockers, None);
        assert_eq!(verdict, Verdict::NotWorthIt);
    }

    #[test]
    fn names_in_json_are_those_scripts_rely_on() {
        for (verdict, name) in [
            (Verdict::WorthIt, "\"worth_it\""),
            (Verdict::NotProven, "\"not_proven\""),
            (Verdict::NotWorthIt, "\"not_worth_it\""),
        ] {
            assert_eq!(serde_json::to_string(&verdict).unwrap(), name);
        }
    }
}
