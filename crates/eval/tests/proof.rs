//! A proof from recorded answers: what it says, and that `verify` finds every change.

use eval::{
    Answer, Arm, ArmPlan, Candidate, CandidateResult, DataSummary, EconomicsPlan, EvalError,
    EvalItem, EvalResult, Exchange, FileDigest, Finding, Forgotten, Games, Language, Licence, Look,
    LossPoint, Machine, MachinePlan, OneOff, PairPlan, Preference, PriceTable, Prompting,
    ProofFacts, ProofFiles, ProofPlan, Report, Rule, Running, Throughput, TrainSummary, Verdict,
    evaluate, metrics_by_name, prove, read_sealed, verify,
};
use serde_json::Value;
use std::path::Path;
use text::{Conversation, Message};

struct Given(&'static str, &'static str, Vec<Answer>);

impl Candidate for Given {
    fn name(&self) -> &str {
        self.0
    }

    fn kind(&self) -> &'static str {
        self.1
    }

    fn answer(
        &mut self,
        _: &[EvalItem],
        _: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        Ok(self.2.clone())
    }
}

const N: usize = 200;

/// A rented model that is right in 90 of 100 and an adapter that is right in 95, on short labels.
fn run() -> EvalResult {
    let item = |i: usize| {
        let turns = vec![
            Message::new("user", format!("message {i} <script>alert(1)</script> | `x`")),
            Message::new("assistant", format!("label-{}", i % 7)),
        ];
        let mut item = EvalItem::new(format!("row-{i}"), Conversation::new(turns)).unwrap();
        item.slices
            .insert("shop".into(), if i.is_multiple_of(20) { "north" } else { "south" }.into());
        item.slices.insert("half".into(), if i < N / 2 { "first" } else { "second" }.into());
        item
    };
    let items: Vec<EvalItem> = (0..N).map(item).collect();
    let answers = |wrong: &dyn Fn(usize) -> bool, input: usize, seconds: f64| -> Vec<Answer> {
        let answer = |i: usize| Answer {
            text: if wrong(i) { "other".into() } else { items[i].reference.clone() },
            stopped: Some(true),
            prompt_tokens: Some(input + 3 * (i % 11)),
            answer_tokens: Some(4 + i % 3),
            seconds: Some(seconds + i as f64 / 1000.0),
            ..Answer::default()
        };
        (0..N).map(answer).collect()
    };
    let rented = answers(&|i| i.is_multiple_of(10), 900, 0.6);
    let adapted = answers(&|i| i % 20 == 1, 120, 0.2);
    let base = answers(&|i| i % 3 != 0, 120, 0.2);
    let mut candidates: [Box<dyn Candidate>; 3] = [
        Box::new(Given("gpt", "rented", rented)),
        Box::new(Given("tickets", "local", adapted)),
        Box::new(Given("base", "local", base)),
    ];
    let metrics = metrics_by_name(&["exact_match", "token_f1"]).unwrap();
    let mut result = evaluate(&mut candidates, items.clone(), metrics, &mut |_| ()).unwrap();
    for candidate in &mut result.candidates {
        candidate.seconds = 2.5;
    }
    result
}

fn machine() -> MachinePlan {
    MachinePlan {
        machine: "server".into(),
        price_per_hour: 0.089,
        currency: "EUR".into(),
        price_source: "offer, 2026-10-07".into(),
        hours_per_month: 730.0,
        at_least: 1,
        peak: 3.0,
        utilisation: 0.7,
        throughput: Throughput {
            prefill: 800.0,
            decode: 200.0,
            machine: "server".into(),
            source: "metier bench serve".into(),
        },
    }
}

fn plan(volume: Option<f64>) -> ProofPlan {
    let price =
        PriceTable::shipped().unwrap().model("openai/gpt-4o", "2026-11-27").unwrap().clone();
    let arm = |name: &str, running: Running, one_off: Vec<OneOff>| ArmPlan {
        name: name.into(),
        running,
        fixed_per_month: 0.0,
        one_off,
    };
    let rented = Running::PerToken { price, service: None, cached_share: None };
    let labelling = vec![OneOff { what: "labelling".into(), amount: 600.0 }];
    ProofPlan {
        language: Language::En,
        metrics: vec!["exact_match".into(), "token_f1".into()],
        metric: "exact_match".into(),
        judged: "tickets".into(),
        also_judged: Vec::new(),
        against: "gpt".into(),
        margin: -0.03,
        max_cost_per_1000: None,
        embedding_model: None,
        must_be_cheaper: true,
        least_slice: 20,
        slice_margin: None,
        look: None,
        max_forgetting: None,
        economics: Some(EconomicsPlan {
            currency: "EUR".into(),
            exchange: vec![Exchange { from: "USD".into(), rate: 0.92, source: "test".into() }],
            requests_per_month: volume,
            amortise_months: 12.0,
            arms: vec![
                arm("gpt", rented, Vec::new()),
                arm("tickets", Running::Machine(machine()), labelling),
            ],
            pairs: vec![PairPlan { a: "gpt".into(), b: "tickets".into() }],
        }),
        asked: [("gpt".to_owned(), "with instructions".to_owned())].into(),
        arms: [].into(),
        forgotten: [].into(),
        leaked: Vec::new(),
        findings: Vec::new(),
        games: Vec::new(),
        rubric: None,
    }
}

fn facts(files: &ProofFiles) -> ProofFacts {
    ProofFacts {
        title: "Labels".into(),
        created: "2026-11-27 18:00 UTC".into(),
        program: "metier 0.1.0".into(),
        machine: Machine { cpu: "Test processor".into(), ..Machine::default() },
        files: files.digests(),
        ..ProofFacts::default()
    }
}

fn report(plan: &ProofPlan) -> Report {
    let result = run();
    prove(plan, facts(&ProofFiles::of(&result)), &result).unwrap()
}

fn rule<'a>(report: &'a Report, name: &str) -> &'a Rule {
    report.rules.iter().find(|r| r.name == name).unwrap()
}

#[test]
fn good_enough_and_cheaper_is_worth_it() {
    let report = report(&plan(Some(500_000.0)));
    assert_eq!(report.verdict, Verdict::WorthIt, "{:?}", report.rules);
    assert_eq!(rule(&report, "cheaper").finding, Finding::Kept);
    let first = &report.comparisons[0];
    assert_eq!(
        (first.a.as_str(), first.b.as_str(), first.metric.as_str()),
        ("gpt", "tickets", "exact_match")
    );
    assert!((first.difference - 0.05).abs() < 1e-12);
    let changed = report.changed.as_ref().unwrap();
    assert_eq!((changed.won.len(), changed.lost.len()), (20, 10));
    assert_eq!(report.candidates[1].wrong.len(), 10);
    let latency = report.candidates[0].latency.unwrap();
    assert!(
        (latency.p50 - 0.699).abs() < 1e-9 && (latency.p95 - 0.789).abs() < 1e-9,
        "{latency:?}"
    );
    assert!(report.candidates[2].cost.is_none());
}

#[test]
fn too_little_volume_is_not_proven_and_says_from_where_on() {
    let report = report(&plan(Some(20_000.0)));
    assert_eq!(report.verdict, Verdict::NotProven);
    let rule = rule(&report, "cheaper");
    assert_eq!(rule.finding, Finding::Open);
    assert!(
        rule.evidence.contains("it is from") && rule.evidence.contains("requests a month"),
        "{rule:?}"
    );
    assert!(report.sentences[2].contains("at 20,000 requests a month"), "{}", report.sentences[2]);
}

#[test]
fn never_cheaper_is_not_worth_it() {
    let mut plan = plan(Some(500_000.0));
    let economics = plan.economics.as_mut().unwrap();
    if let Running::Machine(machine) = &mut economics.arms[1].running {
        machine.price_per_hour = 100.0;
    }
    let report = report(&plan);
    assert_eq!(report.verdict, Verdict::NotWorthIt);
    assert_eq!(rule(&report, "cheaper").finding, Finding::Broken);
    assert!(report.sentences[2].contains("not cheaper than gpt at any volume"));
}

#[test]
fn a_finding_from_outside_blocks() {
    let mut plan = plan(Some(500_000.0));
    plan.findings.push(Rule {
        name: "leaks".into(),
        asks: "No test example is in the training data.".into(),
        finding: Finding::Open,
        evidence: "25 test examples are in the training data.".into(),
    });
    let report = report(&plan);
    assert_eq!(report.verdict, Verdict::NotProven);
    assert!(report.sentences[2].contains("because 25 test examples are in the training data"));
}

#[test]
fn nothing_is_worth_it_that_a_simple_baseline_does_better() {
    let with_baseline = |wrong: usize, judged: &[&str]| {
        let mut result = run();
        let right = |(i, item): (usize, &EvalItem)| match i < wrong {
            true => Answer { text: "wrong".into(), ..Answer::default() },
            false => Answer { text: item.reference.clone(), ..Answer::default() },
        };
        let answers: Vec<Answer> = result.items.iter().enumerate().map(right).collect();
        let scores = (0..result.items.len()).map(|i| f64::from(i >= wrong)).collect();
        let scores = vec![scores; result.metrics.len()];
        let (name, kind) = ("linear".to_owned(), "baseline".to_owned());
        let clusters = Vec::new();
        result.candidates.push(CandidateResult {
            name,
            kind,
            answers,
            scores,
            clusters,
            seconds: 0.1,
        });
        let mut plan = plan(Some(500_000.0));
        plan.also_judged = judged.iter().map(|name| (*name).to_owned()).collect();
        prove(&plan, facts(&ProofFiles::of(&result)), &result).unwrap()
    };
    let better = with_baseline(0, &[]);
    assert_eq!(
        (rule(&better, "baseline").finding, better.verdict),
        (Finding::Open, Verdict::NotProven)
    );
    assert!(
        better.sentences[2].contains("because linear, which needs no language model, does better")
    );
    // It is its own gain that is told, not the loss of the other.
    assert!(rule(&better, "baseline").evidence.contains("(95 % between +"));
    let worse = with_baseline(150, &[]);
    assert_eq!(
        (rule(&worse, "baseline").finding, worse.verdict),
        (Finding::Kept, Verdict::WorthIt)
    );
    // As good as it: a warning.
    let right = |name: &str| worse.candidates.iter().find(|c| c.name == name).unwrap().wrong.len();
    let alike = with_baseline(right(&worse.judged[0].name), &[]);
    assert_eq!(
        (rule(&alike, "baseline").finding, alike.verdict),
        (Finding::Warning, Verdict::WorthIt)
    );
    // Whoever judges the baseline too may find it worth it.
    let judged = with_baseline(0, &["linear"]);
    assert!(judged.rules.iter().all(|rule| rule.name != "baseline"));
}

#[test]
fn failed_answers_of_the_arm_compared_with_prove_nothing() {
    let mut result = run();
    result.candidates[0].answers[5] = Answer::failed("status 500");
    let report = prove(&plan(Some(500_000.0)), facts(&ProofFiles::of(&result)), &result).unwrap();
    assert_eq!(report.verdict, Verdict::NotProven);
    assert!(rule(&report, "answers_against").evidence.contains("1 of 200 answers failed"));
    let mut absent = plan(None);
    absent.against = "claude".into();
    assert!(
        prove(&absent, ProofFacts::default(), &result).unwrap_err().to_string().contains("claude")
    );
}

#[test]
fn every_form_is_written_and_says_the_same() {
    let report = report(&plan(Some(500_000.0)));
    let html = report.to_html().unwrap();
    for said in [
        "Quality against cost",
        "Cost by volume",
        "Break-even",
        "href=\"#won\"",
        "id=\"wrong-1\"",
        "95 of 100",
    ] {
        assert!(html.contains(said), "{said}");
    }
    assert!(!html.contains("<script") && !html.contains("NaN") && !html.contains("inf"));
    // Every link leads to a place of the page.
    for link in html.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(html.contains(&format!("id=\"{link}\"")), "{link}");
    }
    let markdown = report.to_markdown();
    assert!(markdown.starts_with("## Worth it: Labels") && markdown.contains("| tickets |"));
    assert!(!markdown.contains("<script"));
    let junit = report.to_junit();
    assert!(junit.contains(&format!("tests=\"{}\" failures=\"0\"", report.rules.len())), "{junit}");
    let junit = self::report(&plan(Some(20_000.0))).to_junit();
    assert!(junit.contains("failures=\"1\"") && junit.contains("<failure message=\""));
    if let Some(dir) = std::env::var_os("METIER_SAVE_REPORT") {
        std::fs::write(Path::new(&dir).join("proof.html"), html).unwrap();
    }
}

/// The schema in docs is the one that the program's types have; METIER_WRITE_SCHEMA writes it.
#[test]
fn the_published_schema_is_this_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/report.schema.json");
    let ours = serde_json::to_string_pretty(&Report::json_schema()).unwrap() + "\n";
    if std::env::var_os("METIER_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, &ours).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap();
    assert!(
        published == ours,
        "{} is not up to date: METIER_WRITE_SCHEMA=1 writes it",
        path.display()
    );
}

/// A judge that prefers the rented model in four of five examples, and follows the place in every tenth.
fn games() -> Games {
    let played = |i: usize| match (i % 10, i % 5) {
        (0, _) => [Some(Preference::A), Some(Preference::B)],
        (_, 1) => [Some(Preference::B); 2],
        _ => [Some(Preference::A); 2],
    };
    Games {
        a: "gpt".into(),
        b: "tickets".into(),
        judge: "claude-haiku-4-5".into(),
        played: (0..N).map(played).collect(),
        labels: (0..20).map(|i| (format!("row-{i}"), Preference::A)).collect(),
    }
}

#[test]
fn a_judges_opinion_is_computed_from_its_games_and_decides_nothing() {
    let report = report(&ProofPlan { games: vec![games()], ..plan(Some(500_000.0)) });
    let rule = rule(&report, "judge");
    assert_eq!((report.verdict, rule.finding), (Verdict::WorthIt, Finding::Warning));
    // Of ten: two won, one tie.
    assert!(
        rule.evidence.contains("prefers tickets to gpt in 25.0 %")
            && rule.evidence.contains("changed its mind in 10.0 %")
            && rule.evidence.contains("20 examples have a human label"),
        "{}",
        rule.evidence
    );
    let judgement = &report.judgements[0];
    assert_eq!((judgement.results.len(), judgement.failed), (N, 0));
    assert_eq!(judgement.agreement.unwrap().n, 20);
    let short = ProofPlan {
        games: vec![Games { played: vec![[None; 2]], ..games() }],
        ..plan(Some(500_000.0))
    };
    let error = prove(&short, ProofFacts::default(), &run()).unwrap_err().to_string();
    assert!(error.contains("claude-haiku-4-5") && error.contains("1 answers"), "{error}");
}

/// `base` and `tickets` beside `gpt`, by quality alone.
fn two_judged(first: &str, second: &str, margin: f64) -> ProofPlan {
    ProofPlan {
        judged: first.into(),
        also_judged: vec![second.into()],
        margin,
        economics: None,
        must_be_cheaper: false,
        ..plan(None)
    }
}

#[test]
fn of_several_judged_the_best_that_is_worth_it_decides() {
    let found = report(&two_judged("base", "tickets", -0.03));
    assert_eq!(found.verdict, Verdict::WorthIt);
    assert_eq!(found.changed.as_ref().unwrap().b, "tickets");
    let [base, tickets] = &found.judged[..] else { panic!("two are judged") };
    assert_eq!((base.verdict, base.decides), (Verdict::NotWorthIt, false));
    assert_eq!((tickets.verdict, tickets.decides), (Verdict::WorthIt, true));
    // The clear one is decided among two, the other one alone.
    assert!((tickets.confidence - 0.975).abs() < 1e-12 && (base.confidence - 0.95).abs() < 1e-12);
    assert!(tickets.p_holm >= tickets.p_value && base.p_holm < 1e-6);
    assert!(found.sentences[1].contains("with 97.5 % confidence"), "{}", found.sentences[1]);
    assert!(rule(&found, "family").evidence.contains("the verdict is about tickets"));
    let first = &found.comparisons[0];
    assert_eq!((first.a.as_str(), first.b.as_str()), ("gpt", "tickets"));
    assert!(found.comparisons.iter().any(|c| c.a == "gpt" && c.b == "base"));
    assert!(found.to_html().unwrap().contains("All judged candidates"));
    assert!(found.to_markdown().contains("| Judged |"));
    // Where none is worth it, the first that is not ruled out decides; where all are, the first.
    let none = report(&two_judged("base", "tickets", 0.06));
    assert_eq!(
        (none.verdict, none.changed.as_ref().unwrap().b.as_str()),
        (Verdict::NotProven, "tickets")
    );
    assert!(
        rule(&none, "family")
            .evidence
            .contains("about tickets, the first named that is not ruled out")
    );
    let all = report(&two_judged("base", "tickets", 0.2));
    assert_eq!(
        (all.verdict, all.changed.as_ref().unwrap().b.as_str()),
        (Verdict::NotWorthIt, "base")
    );
    assert!(rule(&all, "family").evidence.contains("All are ruled out"));
    let turned = report(&two_judged("tickets", "base", 0.2));
    assert_eq!(turned.changed.as_ref().unwrap().b, "tickets");
    assert!((turned.judged[0].confidence - 0.975).abs() < 1e-12);
    // One alone has no family.
    let alone = report(&plan(Some(500_000.0)));
    assert!(alone.rules.iter().all(|r| r.name != "family") && alone.judged.len() == 1);
    assert_eq!(
        (alone.judged[0].confidence, alone.judged[0].p_holm),
        (0.95, alone.judged[0].p_value)
    );
}

#[test]
fn planned_looks_widen_the_interval_and_more_than_planned_prove_nothing() {
    let at = |at: usize| {
        let look = Some(Look { planned: 3, at });
        report(&ProofPlan { look, ..plan(Some(500_000.0)) })
    };
    let (first, last, beyond) = (at(1), at(3), at(4));
    let interval = |r: &Report| r.judged[0].interval;
    assert!(
        interval(&first).lo < interval(&last).lo
            && interval(&last).lo < first.comparisons[0].ci95.lo
    );
    assert!(rule(&first, "looks").evidence.contains("look 1 of 3"));
    assert_eq!(rule(&last, "looks").finding, Finding::Kept);
    // The first look may claim only what is overwhelming.
    assert_eq!((first.verdict, last.verdict), (Verdict::NotProven, Verdict::WorthIt));
    assert_eq!(rule(&beyond, "looks").finding, Finding::Open);
    assert_eq!(beyond.verdict, Verdict::NotProven);
    assert!(beyond.sentences[2].contains("look 4, and 3 were planned"), "{}", beyond.sentences[2]);
}

#[test]
fn confused_answers_and_scores_without_leaks_are_shown() {
    // The adapter's mistakes are in rows 1, 21, 41 ...; two of the rows it has right leaked, and one wrong.
    let leaked = ["row-0", "row-1", "row-2", "row-of-another-set"].map(str::to_owned).to_vec();
    let found = report(&ProofPlan { leaked, ..plan(Some(500_000.0)) });
    let pair = &found.confused[0];
    assert_eq!(pair.answer, "", "\"other\" is none of the labels");
    assert_eq!(found.confused.iter().map(|p| p.ids.len()).sum::<usize>(), 10);
    let leaks = found.without_leaks.as_ref().unwrap();
    let tickets = &leaks.scores["tickets"];
    assert_eq!((leaks.leaked, tickets.n, tickets.all), (3, 197, 0.95));
    assert!((tickets.clean.unwrap() - 188.0 / 197.0).abs() < 1e-12);
    assert!((leaks.difference.unwrap() - (188.0 - 178.0) / 197.0).abs() < 1e-12);
    let html = found.to_html().unwrap();
    for said in ["What is taken for what", "none of the right answers", "the 197 that are left"] {
        assert!(html.contains(said), "{said}");
    }
    let markdown = found.to_markdown();
    assert!(markdown.contains("| Right answer |") && markdown.contains("95.4 %"), "{markdown}");
    assert_eq!(report(&plan(None)).without_leaks, None);
}

fn arm(template: &str, first_token: &str, stop: &str) -> Arm {
    Arm {
        base: "b".repeat(64),
        template: template.repeat(64),
        first_token: first_token.into(),
        bos: first_token == "<s>",
        stops: vec![stop.into()],
    }
}

#[test]
fn arms_that_are_asked_differently_are_a_finding() {
    let judged = |a: Option<Arm>, b: Option<Arm>| {
        let both = [("gpt", a), ("tickets", b)].into_iter();
        let arms = both.filter_map(|(name, arm)| Some((name.to_owned(), arm?))).collect();
        report(&ProofPlan { arms, ..plan(Some(500_000.0)) })
    };
    let plain = || Some(arm("t", "<s>", "</s>"));
    let finding = |r: &Report| r.rules.iter().find(|r| r.name == "arms").map(|r| r.finding);
    assert_eq!(finding(&judged(plain(), plain())), Some(Finding::Kept));
    // Of what is rented or recorded nothing is known.
    let unknown = judged(None, plain());
    assert_eq!(finding(&unknown), None);
    let html = unknown.to_html().unwrap();
    assert!(html.contains("chat template and first token unknown"), "of gpt");
    let template = judged(plain(), Some(arm("u", "<s>", "</s>")));
    assert_eq!((finding(&template), template.verdict), (Some(Finding::Warning), Verdict::WorthIt));
    let stops = judged(plain(), Some(arm("t", "<s>", "<|end|>")));
    assert!(rule(&stops, "arms").evidence.contains("(<|end|> against </s>)"));
    // The same base without its beginning token is another question than that of the adapter.
    let bos = judged(plain(), Some(arm("t", "user", "</s>")));
    assert_eq!((finding(&bos), bos.verdict), (Some(Finding::Open), Verdict::NotProven));
    let other = Arm { base: "c".repeat(64), ..arm("t", "user", "</s>") };
    assert_eq!(finding(&judged(plain(), Some(other))), Some(Finding::Warning));
}

fn forgotten(rise: f64) -> Forgotten {
    Forgotten {
        text: "the bundled text".into(),
        tokens: 1200,
        loss_before: 3.0,
        loss_after: 3.0 + rise,
        ci95: Some([rise - 0.01, rise + 0.01].into()),
    }
}

#[test]
fn what_was_forgotten_is_held_against_its_bound() {
    let found = |max_forgetting, rise: Option<f64>| {
        let forgotten = rise.map(|rise| ("tickets".to_owned(), forgotten(rise)));
        let forgotten = forgotten.into_iter().collect();
        report(&ProofPlan { max_forgetting, forgotten, ..plan(Some(500_000.0)) })
    };
    let finding = |max, rise| {
        let report = found(max, rise);
        report.rules.iter().find(|r| r.name == "forgetting").map(|r| r.finding)
    };
    assert_eq!(finding(None, None), None);
    assert_eq!(finding(Some(0.05), Some(0.03)), Some(Finding::Kept));
    // The interval reaches beyond the bound.
    assert_eq!(finding(Some(0.05), Some(0.045)), Some(Finding::Open));
    assert_eq!(finding(Some(0.05), None), Some(Finding::Open));
    assert_eq!(finding(None, Some(0.05)), Some(Finding::Kept));
    assert_eq!(finding(None, Some(0.2)), Some(Finding::Warning));
    let open = found(Some(0.05), Some(0.2));
    assert_eq!(open.verdict, Verdict::NotProven);
    assert!(open.sentences[2].contains("from 3.0000 to 3.2000 nats"), "{}", open.sentences[2]);
}

#[test]
fn slices_are_reported_worst_first_and_can_be_bounded() {
    let shown = report(&plan(Some(500_000.0)));
    let names: Vec<&str> = shown.slices.iter().map(|s| s.value.as_str()).collect();
    // Ten examples of the north are too few.
    assert!(
        names.contains(&"first") && names.contains(&"south") && !names.contains(&"north"),
        "{names:?}"
    );
    assert!(shown.slices.is_sorted_by(|a, b| a.difference <= b.difference));
    assert!(shown.to_html().unwrap().contains("Slice by slice"));
    let bounded = report(&ProofPlan { slice_margin: Some(0.05), ..plan(Some(500_000.0)) });
    assert_eq!(
        (rule(&bounded, "slices").finding, bounded.verdict),
        (Finding::Kept, Verdict::WorthIt)
    );
    // Judged the other way round, the half that loses is named.
    let mut turned = ProofPlan { slice_margin: Some(0.1), ..plan(None) };
    (turned.judged, turned.against, turned.margin) = ("base".into(), "tickets".into(), -0.99);
    (turned.economics, turned.must_be_cheaper) = (None, false);
    let turned = report(&turned);
    assert_eq!(
        (rule(&turned, "slices").finding, turned.verdict),
        (Finding::Open, Verdict::NotProven)
    );
}

fn written(dir: &Path) {
    written_with(dir, &ProofPlan { games: vec![games()], ..plan(Some(500_000.0)) });
}

fn written_with(dir: &Path, plan: &ProofPlan) {
    let result = run();
    let files = ProofFiles::of(&result);
    let mut facts = facts(&files);
    std::fs::write(dir.join("adapter.bin"), b"weights").unwrap();
    let digest = |path: Option<&str>| FileDigest {
        sha256: "f2f68e05b01e58a7f8a0b9a3d6c0f5fa2c9f5ad3a2c4a4d7c0e4a3bd9b1b1a11".into(),
        bytes: 7,
        path: path.map(str::to_owned),
    };
    facts.files.insert("elsewhere".into(), digest(Some("../not/here.bin")));
    facts.files.insert("nowhere".into(), digest(None));
    let report = prove(plan, facts, &result).unwrap();
    files.write(&report, dir).unwrap();
}

#[test]
fn a_proof_can_be_verified_and_its_schema_fits() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let verified = verify(&dir.path().join("report.json"), false).unwrap();
    assert_eq!(verified.absent, ["elsewhere", "nowhere"]);
    assert_eq!(verified.files.len(), 8, "{:?}", verified.files);
    assert!(verified.numbers > 500);
    let text = std::fs::read_to_string(dir.path().join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let validator = jsonschema::validator_for(&Report::json_schema()).unwrap();
    let errors: Vec<String> = validator.iter_errors(&report).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert!(!validator.is_valid(&serde_json::json!({"verdict": "maybe"})));
}

/// A byte changed anywhere, in any file of the proof, is found, and the file is named.
#[test]
fn a_changed_byte_anywhere_is_named() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let report = dir.path().join("report.json");
    let mut tried = 0;
    for name in [
        "report.json",
        "report.html",
        "report.md",
        "report.junit.xml",
        "items.jsonl",
        "answers/1_gpt.jsonl",
        "answers/2_tickets.jsonl",
        "answers/3_base.jsonl",
    ] {
        let path = dir.path().join(name);
        let whole = std::fs::read(&path).unwrap();
        for step in 0..8 {
            let place = (step * 7919 + 13) % whole.len();
            let mut changed = whole.clone();
            changed[place] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            let error =
                verify(&report, false).expect_err(&format!("{name}, byte {place}")).to_string();
            assert!(error.contains(name), "{name}, byte {place}: {error}");
            tried += 1;
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(verify(&report, false).is_err(), "{name} cut");
        std::fs::remove_file(&path).unwrap();
        assert!(verify(&report, false).unwrap_err().to_string().contains(name), "{name} removed");
        std::fs::write(&path, whole).unwrap();
    }
    assert_eq!(tried, 64);
    verify(&report, false).unwrap();
}

/// Someone who knows how the seal is made changes a number, and seals anew.
#[test]
fn a_number_that_the_answers_do_not_give_is_named() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let path = dir.path().join("report.json");
    let mut report: Report = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    report.comparisons[0].difference += 0.01;
    std::fs::write(&path, report.sealed().unwrap()).unwrap();
    let error = verify(&path, false).unwrap_err().to_string();
    assert!(error.contains("comparisons.0.difference"), "{error}");
    report.comparisons[0].difference -= 0.01;
    // What a judge is said to say is what its games give.
    report.judgements[0].win_rate = 0.9;
    std::fs::write(&path, report.sealed().unwrap()).unwrap();
    let error = verify(&path, false).unwrap_err().to_string();
    assert!(error.contains("judgements.0.win_rate"), "{error}");
    report.seal.clear();
    std::fs::write(&path, report.to_json().unwrap()).unwrap();
    assert!(verify(&path, false).unwrap_err().to_string().contains("no seal"));
}

#[test]
fn what_lies_elsewhere_may_have_changed_since_but_nothing_of_the_proof() {
    let dir = tempfile::tempdir().unwrap();
    let proof = dir.path().join("proof");
    std::fs::create_dir(&proof).unwrap();
    std::fs::write(dir.path().join("adapter.bin"), b"weights").unwrap();
    let result = run();
    let files = ProofFiles::of(&result);
    let mut facts = facts(&files);
    // Not that of "weights".
    let sha256 = "9c7a4b1d".repeat(8);
    let adapter = FileDigest { sha256, bytes: 7, path: Some("../adapter.bin".into()) };
    facts.files.insert("adapter".into(), adapter);
    files.write(&prove(&plan(None), facts, &result).unwrap(), &proof).unwrap();
    let report = proof.join("report.json");
    let sealed = read_sealed(&report).unwrap();
    assert_eq!(sealed.changed.len(), 1);
    assert!(sealed.changed[0].0.ends_with("adapter.bin"), "{:?}", sealed.changed);
    assert!(verify(&report, false).unwrap_err().to_string().contains("adapter.bin"));
    let items = proof.join("items.jsonl");
    let text = std::fs::read_to_string(&items).unwrap();
    std::fs::write(&items, text.replacen("message 0", "message O", 1)).unwrap();
    assert!(read_sealed(&report).unwrap_err().to_string().contains("items.jsonl"));
}

/// A report may come from anybody, and its `command:` metrics are programs.
#[cfg(unix)]
#[test]
fn verify_runs_no_program_unasked() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (script, marker) = (dir.path().join("score"), dir.path().join("it-ran"));
    let source = format!("#!/bin/sh\ntouch {}\ncat > /dev/null\necho 0.5\n", marker.display());
    std::fs::write(&script, source).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let name = format!("command:{}", script.display());
    let items: Vec<EvalItem> = run().items.into_iter().take(4).collect();
    let answers = |text: &str| vec![Answer { text: text.into(), ..Answer::default() }; 4];
    for metrics in [vec![name.clone()], vec!["exact_match".into(), name.clone()]] {
        let mut candidates: [Box<dyn Candidate>; 2] = [
            Box::new(Given("gpt", "rented", answers("a"))),
            Box::new(Given("tickets", "local", answers("b"))),
        ];
        let used = metrics_by_name(&metrics).unwrap();
        let result = evaluate(&mut candidates, items.clone(), used, &mut |_| ()).unwrap();
        let files = ProofFiles::of(&result);
        let plan = ProofPlan {
            metric: name.clone(),
            metrics,
            economics: None,
            must_be_cheaper: false,
            ..plan(None)
        };
        let proof = dir.path().join("proof");
        files.write(&prove(&plan, facts(&files), &result).unwrap(), &proof).unwrap();
        std::fs::remove_file(&marker).unwrap();
        let report = proof.join("report.json");
        let verified = verify(&report, false).unwrap();
        assert_eq!(verified.not_recomputed, std::slice::from_ref(&name));
        assert!(!marker.exists(), "the program ran");
        let verified = verify(&report, true).unwrap();
        assert!(verified.not_recomputed.is_empty() && marker.exists());
        std::fs::remove_dir_all(&proof).unwrap();
    }
}

#[test]
fn the_report_can_be_french() {
    let french = report(&ProofPlan { language: Language::Fr, ..plan(Some(500_000.0)) });
    let english = report(&plan(Some(500_000.0)));
    assert_eq!(french.verdict, english.verdict);
    for (fr, en) in french.candidates.iter().zip(&english.candidates) {
        assert_eq!((&fr.metrics, &fr.wrong), (&en.metrics, &en.wrong));
    }
    assert!(
        french.sentences[0].starts_with("Sur les mêmes 200 exemples"),
        "{}",
        french.sentences[0]
    );
    let html = french.to_html().unwrap();
    assert!(
        html.contains("<html lang=\"fr\">")
            && html.contains("Rentable")
            && html.contains("Qualité et coût")
    );
    for left in
        ["Quality against cost", "Evidence", "Break-even", "Saved in a month", "requests a month"]
    {
        assert!(!html.contains(left), "{left}");
    }
    let few = report(&ProofPlan { language: Language::Fr, ..plan(Some(20_000.0)) });
    assert!(few.sentences[2].contains("il l’est à partir de"), "{}", few.sentences[2]);
}

/// A proof with everything that a report can show.
fn rich_french() -> Report {
    let mut result = run();
    result.candidates[1].answers[3] = Answer::failed("502");
    let result = {
        let mut candidates: Vec<Box<dyn Candidate>> = Vec::new();
        for (name, c) in ["gpt", "tickets", "base"].into_iter().zip(&result.candidates) {
            let kind = if name == "gpt" { "rented" } else { "local" };
            candidates.push(Box::new(Given(name, kind, c.answers.clone())));
        }
        let names = ["exact_match", "token_f1", "rougeL", "edit_similarity"];
        let metrics = metrics_by_name(&names).unwrap();
        let mut again = evaluate(&mut candidates, result.items, metrics, &mut |_| ()).unwrap();
        again.candidates.iter_mut().for_each(|c| c.seconds = 7.25);
        again
    };
    let fr = Language::Fr;
    let prompting = Prompting { instructions: Some("x".into()), shots: Vec::new() };
    let plan = ProofPlan {
        language: fr,
        metrics: result.metrics.iter().map(|m| m.name.to_owned()).collect(),
        also_judged: vec!["base".into()],
        look: Some(Look { planned: 2, at: 2 }),
        max_cost_per_1000: Some(0.001),
        slice_margin: Some(0.05),
        max_forgetting: Some(0.05),
        arms: [("tickets", arm("t", "<s>", "</s>")), ("gpt", arm("u", "user", "<e>"))]
            .map(|(name, arm)| (name.to_owned(), arm))
            .into(),
        forgotten: [("tickets".to_owned(), forgotten(0.02))].into(),
        leaked: vec!["row-0".into(), "row-1".into()],
        asked: [("gpt", prompting.in_words(fr)), ("base", Prompting::default().in_words(fr))]
            .map(|(name, words)| (name.to_owned(), words))
            .into(),
        games: vec![games()],
        ..plan(Some(500_000.0))
    };
    let files = ProofFiles::of(&result);
    let mut facts = facts(&files);
    facts.title = fr.say("{b} beside {a}", &[("a", &"gpt"), ("b", &"tickets")]);
    facts.licences = vec![
        Licence { what: fr.say("training data", &[]), licence: "mit".into() },
        Licence {
            what: fr.say("base {name}", &[("name", &"nano")]),
            licence: "unknown (the model folder has no card that states it)".into(),
        },
    ];
    let digest = FileDigest { sha256: "0".repeat(64), bytes: 0, path: None };
    for name in ["base of tickets", "chat template of tickets", "adapter of tickets", "test set"] {
        facts.files.insert(name.into(), digest.clone());
    }
    facts.data = Some(DataSummary { train_rows: 1000, leaks: 2, ..DataSummary::default() });
    let point = |step| LossPoint { step, loss: Some(2.5), held_out: Some(2.25) };
    facts.train = Some(TrainSummary {
        tokens_per_second: 1234.5,
        peak_rss_bytes: 3 << 30,
        seconds: 185.0,
        steps: 1200,
        method: "LoRA".into(),
        curve: vec![point(0), point(600), point(1200)],
    });
    prove(&plan, facts, &result).unwrap()
}

/// The words that a reader sees or hears, without those that are data: the stylesheet, examples and ids.
fn visible_words(html: &str) -> Vec<String> {
    let (_, body) = html.split_once("<body>").unwrap();
    let mut text = String::new();
    let mut rest = body;
    while let Some((before, after)) = rest.split_once('<') {
        text.push_str(before);
        text.push(' ');
        // What stands in a <pre> is an example's.
        if after.starts_with("pre ") {
            rest = after.split_once("</pre>").unwrap().1;
            continue;
        }
        let (tag, after) = after.split_once('>').unwrap();
        if let Some((_, label)) = tag.split_once("aria-label=\"") {
            text.push_str(label.split('"').next().unwrap());
            text.push(' ');
        }
        rest = after;
    }
    text.push_str(rest);
    words_of(&text)
}

fn words_of(text: &str) -> Vec<String> {
    let words = text
        .split(|c: char| !(c.is_alphanumeric() || c == '\'' || c == '’' || c == '-' || c == '_'));
    words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Words that English sentences are made with and French ones are not.
const ENGLISH: &[&str] = &[
    "about",
    "above",
    "against",
    "all",
    "allowed",
    "also",
    "and",
    "another",
    "answer",
    "answered",
    "answers",
    "any",
    "are",
    "as",
    "at",
    "be",
    "because",
    "been",
    "before",
    "below",
    "beside",
    "between",
    "both",
    "but",
    "by",
    "candidate",
    "confidence",
    "cost",
    "costs",
    "data",
    "day",
    "difference",
    "each",
    "end",
    "every",
    "example",
    "failed",
    "first",
    "for",
    "from",
    "found",
    "has",
    "have",
    "hour",
    "in",
    "is",
    "it",
    "its",
    "judge",
    "kept",
    "known",
    "least",
    "less",
    "lies",
    "loss",
    "mean",
    "measured",
    "model",
    "month",
    "more",
    "most",
    "named",
    "no",
    "none",
    "not",
    "of",
    "one",
    "only",
    "or",
    "other",
    "out",
    "over",
    "read",
    "right",
    "same",
    "score",
    "scores",
    "second",
    "share",
    "some",
    "spread",
    "stated",
    "such",
    "table",
    "than",
    "that",
    "the",
    "their",
    "them",
    "then",
    "there",
    "they",
    "this",
    "time",
    "to",
    "token",
    "tokens",
    "two",
    "was",
    "were",
    "what",
    "when",
    "where",
    "which",
    "with",
    "without",
    "words",
    "worth",
    "wrong",
    "year",
];

#[test]
fn no_english_is_left_in_a_french_report() {
    let report = rich_french();
    // Everything that can be shown is there.
    for name in ["family", "looks", "arms", "max_cost", "cheaper", "slices", "forgetting", "judge"]
    {
        assert!(report.rules.iter().any(|r| r.name == name), "{name}");
    }
    assert!(!report.confused.is_empty() && report.without_leaks.is_some());
    // Names of this fixture's candidates, metrics, fields, files and sources, and words that are the same.
    let data = [
        "gpt",
        "tickets",
        "base",
        "exact_match",
        "token_f1",
        "rougel",
        "edit_similarity",
        "row",
        "other",
        "test",
        "half",
        "first",
        "second",
        "shop",
        "answers",
        "items",
        "jsonl",
        "label",
    ];
    let html = report.to_html().unwrap();
    let texts = [
        ("report.html", visible_words(&html)),
        ("report.md", words_of(&report.to_markdown().replace('\\', ""))),
    ];
    for (name, words) in texts {
        assert!(words.len() > 300, "{name}: {}", words.len());
        let left: std::collections::BTreeSet<&String> = words
            .iter()
            .filter(|w| ENGLISH.contains(&w.as_str()) && !data.contains(&w.as_str()))
            .collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
    if let Some(dir) = std::env::var_os("METIER_SAVE_REPORT") {
        std::fs::write(Path::new(&dir).join("french.html"), html).unwrap();
    }
}
