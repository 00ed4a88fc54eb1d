//! From the paired interval to a decision in three plain sentences.

use crate::cost::Cost;
use crate::metrics::Metric;
use crate::numbers::{count, money, p_value, percent, points, signed};
use crate::stats::PairedDifference;
use crate::words::Language;
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
    if decision.paired.interval.hi < decision.margin {
        Verdict::NotWorthIt
    } else if decision.paired.exceeds(decision.margin) && decision.blockers.is_empty() {
        Verdict::WorthIt
    } else {
        Verdict::NotProven
    }
}

/// What was scored; how sure that is; what follows. In English.
pub fn sentences(decision: &Decision) -> [String; 3] {
    sentences_in(decision, Language::En)
}

/// [`sentences`] in a language. Blockers stand as they were given.
pub fn sentences_in(decision: &Decision, lang: Language) -> [String; 3] {
    [scored(decision, lang), how_sure(decision, lang), what_follows(decision, lang)]
}

fn scored(d: &Decision, lang: Language) -> String {
    let n = lang.number(count(d.paired.n));
    let (b, a) = (lang.number(percent(d.score_b)), lang.number(percent(d.score_a)));
    let (name_a, name_b, one) = (d.a, d.b, d.paired.n == 1);
    lang.pick(
        format!(
            "On the same {n} test {}, {name_b} gets {b} {} and {name_a} gets {a}.",
            if one { "example" } else { "examples" },
            d.metric.reads_as
        ),
        format!(
            "Sur {} de test, {name_b} obtient {b} et {name_a} {a} (mesure : {}).",
            if one { "le même exemple".to_owned() } else { format!("les mêmes {n} exemples") },
            d.metric.name
        ),
    )
}

/// The line that the interval is held against, in words.
fn line(d: &Decision, lang: Language) -> String {
    let amount = lang.number(points(d.margin));
    let allowed = lang.number(points(-d.margin).trim_start_matches('+').to_owned());
    match d.margin.total_cmp(&0.0) {
        std::cmp::Ordering::Less => lang.pick(
            format!("the allowed loss of {allowed}"),
            format!("la perte admise de {allowed}"),
        ),
        std::cmp::Ordering::Equal => lang.pick("zero".to_owned(), "zéro".to_owned()),
        std::cmp::Ordering::Greater => {
            lang.pick(format!("the required {amount}"), format!("un gain exigé de {amount}"))
        }
    }
}

/// French: of something.
fn of(line: &str) -> String {
    match line.starts_with(['u', 'a', 'e', 'i', 'o']) {
        true => format!("d'{line}"),
        false => format!("de {line}"),
    }
}

fn how_sure(d: &Decision, lang: Language) -> String {
    let interval = d.paired.interval;
    let line = line(d, lang);
    let place = if d.paired.exceeds(d.margin) {
        lang.pick(format!("wholly above {line}"), format!("entièrement au-dessus {}", of(&line)))
    } else if interval.hi < d.margin {
        lang.pick(format!("wholly below {line}"), format!("entièrement au-dessous {}", of(&line)))
    } else if interval.lo > d.margin {
        let p = p_value(d.paired.p_value);
        lang.pick(
            format!("above {line}, which the test of no difference does not confirm ({p})"),
            format!(
                "au-dessus {}, ce que le test d'absence de différence ne confirme pas ({})",
                of(&line),
                lang.number(p)
            ),
        )
    } else {
        lang.pick(
            format!("which leaves open whether it is above {line}"),
            format!("ce qui ne dit pas s'il est au-dessus {}", of(&line)),
        )
    };
    let confidence = lang.confidence(d.paired.confidence);
    let seen = lang.number(points(d.paired.difference));
    let (lo, hi) = (lang.number(signed(interval.lo)), lang.number(points(interval.hi)));
    lang.pick(
        format!(
            "The difference is {seen}; with {confidence} confidence it lies between {lo} and {hi}, {place}."
        ),
        format!(
            "L'écart est de {seen} ; avec une confiance de {confidence}, il est compris entre {lo} et {hi}, {place}."
        ),
    )
}

fn what_follows(d: &Decision, lang: Language) -> String {
    let name = d.b;
    match decide(d) {
        Verdict::WorthIt => costs(d, lang),
        Verdict::NotProven if !d.blockers.is_empty() => lang.pick(
            format!("It cannot be called proven because {}.", d.blockers.join(", and because ")),
            format!("Rien ne peut être dit prouvé : {}.", d.blockers.join(" ; ")),
        ),
        Verdict::NotProven => more_examples(d, lang),
        Verdict::NotWorthIt => lang.pick(
            format!(
                "Do not put {name} to use for this: improve its data or training, then test again."
            ),
            format!(
                "N'utilisez pas {name} pour cela : améliorez ses données ou son apprentissage, puis refaites le test."
            ),
        ),
    }
}

fn costs(d: &Decision, lang: Language) -> String {
    let amount = |cost: &Cost| lang.number(money(cost.per_1000_requests, &cost.currency));
    let (name_a, name_b) = (d.a, d.b);
    match (d.cost_b, d.cost_a) {
        (Some(b), Some(a)) if a.currency == b.currency => lang.pick(
            format!(
                "Under the assumptions stated below, 1,000 requests to {name_b} cost {}, and to {name_a} {}.",
                amount(b),
                amount(a)
            ),
            format!(
                "Sous les hypothèses indiquées plus bas, 1\u{202f}000 requêtes coûtent {} avec {name_b} et {} avec {name_a}.",
                amount(b),
                amount(a)
            ),
        ),
        (Some(b), _) => lang.pick(
            format!(
                "Under the assumptions stated below, 1,000 requests to {name_b} cost {}.",
                amount(b)
            ),
            format!(
                "Sous les hypothèses indiquées plus bas, 1\u{202f}000 requêtes coûtent {} avec {name_b}.",
                amount(b)
            ),
        ),
        _ => lang.pick(
            "No cost was stated, so this says nothing about money.".to_owned(),
            "Aucun coût n'a été indiqué : ceci ne dit donc rien de l'argent.".to_owned(),
        ),
    }
}

/// How many examples would settle it, if the difference seen is the true one.
fn more_examples(d: &Decision, lang: Language) -> String {
    let name = d.b;
    let needed = d.paired.examples_to_decide(d.margin);
    match needed.filter(|_| d.paired.difference > d.margin) {
        Some(needed) => {
            let (needed, there) = (lang.number(count(needed)), lang.number(count(d.paired.n)));
            lang.pick(
                format!(
                    "If the true difference is the one seen, about {needed} test examples would prove it with a chance of 80 %; there are {there}."
                ),
                format!(
                    "Si l'écart réel est celui observé, environ {needed} exemples de test le prouveraient avec une probabilité de 80\u{a0}% ; il y en a {there}."
                ),
            )
        }
        None => lang.pick(
            format!(
                "The difference seen is not above the required one, so improve {name} before collecting more test examples."
            ),
            format!(
                "L'écart observé n'atteint pas celui qui est exigé : améliorez {name} avant de réunir d'autres exemples de test."
            ),
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
            interval: Interval { lo, hi },
            confidence: 0.95,
            p_value: 0.01,
            test: PairedTest::SignFlip { resamples: 10 },
            mid_p: None,
            randomisation_p: 0.01,
            sd: 0.4,
            discordance: None,
            clusters: None,
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
    fn an_interval_without_its_test_proves_nothing() {
        let unsure = PairedDifference { p_value: 0.0625, ..paired(0.1, 0.01, 0.2) };
        let (verdict, words) = judge(&unsure, 0.0, &[], None);
        assert_eq!(verdict, Verdict::NotProven);
        assert!(words[1].contains("does not confirm (p = 0.0625)"), "{}", words[1]);
        // To lose no more than a margin is another question than that of no difference.
        let (verdict, words) = judge(&paired(0.0, -0.02, 0.02), -0.03, &[], None);
        assert_eq!(verdict, Verdict::WorthIt);
        assert!(words[1].ends_with("above the allowed loss of 3.0 points."), "{}", words[1]);
        let one_of_ten = PairedDifference { confidence: 0.995, ..paired(0.1, 0.01, 0.2) };
        let (verdict, words) = judge(&one_of_ten, 0.0, &[], None);
        assert_eq!(verdict, Verdict::NotProven, "p = 0.01 is not enough among ten");
        assert!(words[1].contains("with 99.5 % confidence"), "{}", words[1]);
    }

    #[test]
    fn the_same_in_french() {
        let paired = paired(0.75, 0.72, 0.78);
        let metric = metrics_by_name(&["json_field_accuracy"]).unwrap()[0];
        let cost =
            Cost { per_1000_requests: 1234.4, currency: "EUR".into(), assumptions: Vec::new() };
        let words = |margin, blockers: &[String], paired: &PairedDifference| {
            let (a, b, score_a, score_b) = ("base", "adapté", 0.12, 0.87);
            let (cost_a, cost_b) = (None, Some(&cost));
            let decision = Decision {
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
            };
            sentences_in(&decision, Language::Fr).map(|s| s.replace(['\u{a0}', '\u{202f}'], " "))
        };
        assert_eq!(
            words(0.3, &[], &paired),
            [
                "Sur les mêmes 400 exemples de test, adapté obtient 87,0 % et base 12,0 % (mesure : json_field_accuracy).",
                "L'écart est de +75,0 points ; avec une confiance de 95 %, il est compris entre +72,0 et +78,0 points, entièrement au-dessus d'un gain exigé de +30,0 points.",
                "Sous les hypothèses indiquées plus bas, 1 000 requêtes coûtent 1 234 EUR avec adapté.",
            ]
        );
        let open = PairedDifference { difference: 0.03, ..self::paired(0.03, -0.01, 0.07) };
        assert!(words(0.0, &[], &open)[2].contains("environ 1 396 exemples"));
        assert!(
            words(0.0, &["trois réponses manquent".into()], &open)[2].contains("prouvé : trois")
        );
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
