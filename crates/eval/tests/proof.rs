//! A proof from recorded answers: what it says, and that `verify` finds every change.

use eval::{
    Answer, ArmPlan, Candidate, EconomicsPlan, EvalError, EvalItem, EvalResult, Exchange,
    FileDigest, Finding, Judgement, Language, Machine, MachinePlan, OneOff, PairPlan, PriceTable,
    ProofFacts, ProofFiles, ProofPlan, Report, Rule, Running, Throughput, Verdict, evaluate,
    metrics_by_name, prove, verify,
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
        against: "gpt".into(),
        margin: -0.03,
        max_cost_per_1000: None,
        embedding_model: None,
        must_be_cheaper: true,
        least_slice: 20,
        slice_margin: None,
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
        findings: Vec::new(),
        judgements: Vec::new(),
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

#[test]
fn a_judges_opinion_is_shown_and_decides_nothing() {
    let mut plan = plan(Some(500_000.0));
    plan.judgements.push(Judgement {
        a: "gpt".into(),
        b: "tickets".into(),
        judge: "claude-haiku-4-5".into(),
        win_rate: 0.2,
        ci95: [0.15, 0.26].into(),
        length_controlled: Some(0.25),
        position_flips: 0.11,
        longer_wins: None,
        failed: 0,
        agreement: None,
        warnings: vec!["The judge is not validated.".into()],
        results: Vec::new(),
    });
    let report = report(&plan);
    let rule = rule(&report, "judge");
    assert_eq!((report.verdict, rule.finding), (Verdict::WorthIt, Finding::Warning));
    assert!(
        rule.evidence.contains("prefers tickets to gpt in 20.0 %")
            && rule.evidence.contains("not validated")
    );
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
    let report = prove(&plan(Some(500_000.0)), facts, &result).unwrap();
    files.write(&report, dir).unwrap();
}

#[test]
fn a_proof_can_be_verified_and_its_schema_fits() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let verified = verify(&dir.path().join("report.json")).unwrap();
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
            let error = verify(&report).expect_err(&format!("{name}, byte {place}")).to_string();
            assert!(error.contains(name), "{name}, byte {place}: {error}");
            tried += 1;
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(verify(&report).is_err(), "{name} cut");
        std::fs::remove_file(&path).unwrap();
        assert!(verify(&report).unwrap_err().to_string().contains(name), "{name} removed");
        std::fs::write(&path, whole).unwrap();
    }
    assert_eq!(tried, 64);
    verify(&report).unwrap();
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
    let error = verify(&path).unwrap_err().to_string();
    assert!(error.contains("comparisons.0.difference"), "{error}");
    report.seal.clear();
    std::fs::write(&path, report.to_json().unwrap()).unwrap();
    assert!(verify(&path).unwrap_err().to_string().contains("no seal"));
}

#[test]
fn the_report_can_be_french() {
    let french = report(&ProofPlan { language: Language::Fr, ..plan(Some(500_000.0)) });
    let english = report(&plan(Some(500_000.0)));
    assert_eq!(french.verdict, english.verdict);
    assert_eq!(french.candidates, english.candidates);
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
