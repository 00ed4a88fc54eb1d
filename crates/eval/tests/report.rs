//! The report as a whole: complete, self-contained, safe against what models write, readable.

use eval::stats::{PairedOptions, PairedTest};
use eval::{
    Answer, Candidate, Cost, CostPlan, DataSummary, Decision, EvalError, EvalItem, EvalResult,
    FileDigest, Licence, LossPoint, Machine, MachinePrice, Measurement, Report, SCHEMA_VERSION,
    TrainSummary, Verdict, candidate_reports, compare, comparison_report, decide, evaluate,
    example_reports, field_reports, metrics_by_name, sentences,
};
use serde_json::{Value, json};
use std::path::Path;
use text::{Conversation, Message};

const HOSTILE: &str =
    "</pre><script>alert(1)</script><img src=x onerror=\"alert(2)\">'\"&amp;{{7*7}}\u{202e}\0";

#[test]
fn the_page_is_complete() {
    let report = fixture();
    let html = report.to_html().unwrap();
    let mut expected = vec![
        "Worth it",
        "<html lang=\"en\">",
        "json_field_accuracy",
        "Field by field",
        "postcode",
        "Training loss",
        "<polyline class=\"loss\" points=\"4",
        "Examples side by side",
        "Cost per 1,000 requests",
        "Assumed for this test, 2026-11-24",
        "Test processor 9000",
        "Decode, one sequence",
        "Test examples found in the training data",
        "Apache-2.0",
        "0123456789abcdef",
        "✗ missing",
        "✗ wrong",
        "✗ not asked for",
        "✗ failed",
        "exact McNemar test",
        "sign-flip permutation test, 10,000 permutations",
    ];
    expected.extend(report.sentences.iter().map(String::as_str));
    for text in expected {
        assert!(html.contains(text), "missing: {text}");
    }
    assert_eq!(html.matches("<article ").count(), 10);
    save("report.html", &html);
}

#[test]
fn the_page_is_well_formed_and_accessible() {
    let html = fixture().to_html().unwrap();
    for tag in ["section", "table", "tr", "td", "th", "div", "dl", "dt", "dd", "svg", "article"] {
        let opened =
            html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
        assert!(opened > 0, "{tag}");
    }
    assert_eq!(html.matches("<h1>").count(), 1);
    assert_eq!(html.matches("<table>").count(), html.matches("<caption>").count());
    assert_eq!(html.matches("<svg").count(), html.matches("role=\"img\" aria-label=").count());
    assert!(!html.contains("aria-label=\"\""));
    let mut ids: Vec<_> = html.split(" id=\"").skip(1).map(|s| s.split('"').next()).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
    assert!(!html.contains("NaN") && !html.contains("inf%"));
}

/// What axe's rule `definition-list` wants: descriptions hold terms, their values, and groups of both alone.
#[test]
fn descriptions_hold_terms_and_values_alone() {
    let html = fixture().to_html().unwrap();
    let list = regex::Regex::new(r"(?s)<dl[^>]*>(.*?)</dl>").unwrap();
    let allowed = regex::Regex::new(r"(?s)<dt>.*?</dt>|<dd[^>]*>.*?</dd>|</?div[^>]*>|\s").unwrap();
    let lists: Vec<String> = list.captures_iter(&html).map(|found| found[1].to_owned()).collect();
    assert!(lists.iter().any(|list| list.contains("class=\"note")), "no field is noted");
    for list in lists {
        assert_eq!(allowed.replace_all(&list, ""), "", "{list}");
    }
}

#[test]
fn the_page_needs_nothing_from_outside() {
    let html = fixture().to_html().unwrap();
    let markup = without_text(&html);
    for forbidden in
        ["://", "src=", "url(", "@import", "<script", "<link", "<iframe", "<object", "data:"]
    {
        assert!(!markup.contains(forbidden), "{forbidden}");
    }
    // Links lead nowhere but to other places of the page.
    assert!(markup.split("href=").skip(1).all(|rest| rest.starts_with("\"#")));
    assert!(html.contains("default-src 'none'"));
}

#[test]
fn what_models_write_stays_text() {
    let mut report = fixture();
    let hostile = || HOSTILE.to_owned();
    report.title = hostile();
    report.candidates[0].name = hostile();
    report.comparisons[0].b = hostile();
    report.fields[0].field = hostile();
    report.machine.cpu = hostile();
    report.files.insert(hostile(), FileDigest { sha256: hostile(), bytes: 1, path: None });
    report.licences[0].licence = hostile();
    for example in &mut report.examples {
        example.id = hostile();
        example.prompt = hostile();
        example.reference = json!({ HOSTILE: HOSTILE }).to_string();
        for answer in &mut example.answers {
            answer.text = hostile();
            answer.error = answer.error.as_ref().map(|_| hostile());
            for cell in &mut answer.fields {
                cell.field = hostile();
                cell.value = Some(hostile());
            }
        }
    }
    let html = report.to_html().unwrap();
    for forbidden in ["<script", "<img", "onerror=\"", "\u{202e}", "\0"] {
        assert!(!html.contains(forbidden), "{forbidden:?}");
    }
    // Nothing of it was evaluated or lost either: every place shows it.
    assert!(html.matches("&#60;script&#62;alert(1)").count() > 50);
    assert!(html.matches("{{7*7}}").count() > 50);
    assert_eq!(html.matches("<pre ").count(), html.matches("</pre>").count());
    assert_eq!(html.matches("<div").count(), html.matches("</div>").count());
}

#[test]
fn the_json_keeps_its_contract() {
    let report = fixture();
    let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["verdict"], "worth_it");
    let base = &json["candidates"][0];
    assert_eq!((&base["name"], &base["kind"]), (&json!("base"), &json!("given")));
    let metric = &base["metrics"]["json_field_accuracy"];
    assert!(metric["value"].is_f64() && metric["n"] == 40);
    assert!(metric["ci95"][0].as_f64() < metric["ci95"][1].as_f64());
    assert_eq!(metric["ci95"].as_array().unwrap().len(), 2);
    assert!(base["cost_per_1000_requests"].is_f64());
    let comparison = &json["comparisons"][0];
    assert_eq!((&comparison["a"], &comparison["b"]), (&json!("base"), &json!("adapted")));
    let value =
        |i: usize| json["candidates"][i]["metrics"]["json_field_accuracy"]["value"].as_f64();
    let difference = value(1).unwrap() - value(0).unwrap();
    assert!((comparison["difference"].as_f64().unwrap() - difference).abs() < 1e-9);
    assert!(comparison["p_value"].as_f64().unwrap() < 0.01);
    assert!(comparison["ci95"][0].as_f64().unwrap() > 0.3);
    for field in ["tokens_per_second", "peak_rss_bytes", "seconds"] {
        assert!(json["train"][field].is_number(), "{field}");
    }
    assert!(json["machine"]["cpu"].is_string());
    assert_eq!(json["files"]["adapter.safetensors"]["sha256"].as_str().unwrap().len(), 64);
    let back: Report = serde_json::from_value(json).unwrap();
    assert_eq!(back, report);
}

#[test]
fn both_files_are_written_whole() {
    let dir = tempfile::tempdir().unwrap();
    let report = fixture();
    report.write(dir.path()).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("report.html"), report.to_html().unwrap());
    assert_eq!(read("report.json"), report.to_json().unwrap());
    let error = report.write(&dir.path().join("no such folder")).unwrap_err().to_string();
    assert!(error.contains("no such folder"), "{error}");
}

#[test]
fn the_same_input_gives_the_same_report() {
    assert_eq!(fixture().to_html().unwrap(), fixture().to_html().unwrap());
    assert_eq!(fixture(), fixture());
}

#[test]
fn a_bare_report_has_no_empty_sections() {
    let mut report = fixture();
    report.train = None;
    report.data = None;
    report.fields.clear();
    report.examples.clear();
    report.comparisons.clear();
    report.measurements.clear();
    report.licences.clear();
    report.files.clear();
    for candidate in &mut report.candidates {
        candidate.cost = None;
        candidate.cost_per_1000_requests = None;
        candidate.traffic = None;
        candidate.stopped_share = None;
    }
    let html = report.to_html().unwrap();
    for absent in ["id=\"loss\"", "id=\"fields\"", "id=\"data\"", "id=\"examples\"", "id=\"files\""]
    {
        assert!(!html.contains(absent), "{absent}");
    }
    assert!(html.contains("No cost was stated.") && html.contains("not known"));
    report.candidates.clear();
    assert!(report.to_html().is_ok());
}

/// Every text colour on every ground it stands on has the contrast of WCAG 2.2 AA: 4.5 for text,
/// 3 for drawings (success criteria 1.4.3 and 1.4.11), in both palettes.
#[test]
fn colours_have_enough_contrast() {
    let html = fixture().to_html().unwrap();
    let (light, dark) = html.split_once("prefers-color-scheme: dark").unwrap();
    for (palette, css) in [("light", light), ("dark", dark)] {
        let colour = |name: &str| -> [f64; 3] {
            let (_, rest) = css.split_once(&format!("--{name}: #")).unwrap();
            let byte = |i: usize| u8::from_str_radix(&rest[2 * i..2 * i + 2], 16).unwrap();
            [0, 1, 2].map(|i| f64::from(byte(i)) / 255.0)
        };
        let mut pairs = vec![
            ("text", "page", 4.5),
            ("text", "panel", 4.5),
            ("text", "track", 4.5),
            ("text", "wrong-bg", 4.5),
            ("muted", "page", 4.5),
            ("muted", "panel", 4.5),
            ("muted", "wrong-bg", 4.5),
            ("right", "panel", 4.5),
            ("wrong", "panel", 4.5),
            ("wrong", "wrong-bg", 4.5),
            ("on-verdict", "good", 4.5),
            ("on-verdict", "open", 4.5),
            ("on-verdict", "bad", 4.5),
            ("muted", "track", 3.0),
        ];
        for bar in ["c0", "c1", "c2", "c3"] {
            pairs.extend([(bar, "track", 3.0), (bar, "panel", 3.0)]);
        }
        for (front, back, least) in pairs {
            let found = contrast(colour(front), colour(back));
            assert!(found >= least, "{palette}: {front} on {back} is {found:.2}");
        }
    }
}

/// WCAG 2.2, definitions of relative luminance and contrast ratio.
fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
    let linear = |c: f64| if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) };
    let luminance =
        |c: [f64; 3]| 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

/// The tags alone, without the text between them and without the stylesheet's text.
fn without_text(html: &str) -> String {
    let mut tags = String::new();
    for part in html.split('<').skip(1) {
        let tag = part.split('>').next().unwrap_or(part);
        tags.push('<');
        tags.push_str(tag);
        if tag == "style" {
            tags.push_str(part);
        }
    }
    tags
}

/// Where a person can look at it, when asked for.
fn save(name: &str, text: &str) {
    if let Some(dir) = std::env::var_os("METIER_SAVE_REPORT") {
        std::fs::write(Path::new(&dir).join(name), text).unwrap();
    }
}

struct Given(&'static str, Vec<Answer>);

impl Candidate for Given {
    fn name(&self) -> &str {
        self.0
    }

    fn kind(&self) -> &'static str {
        "given"
    }

    fn answer(
        &mut self,
        _: &[EvalItem],
        _: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        Ok(self.1.clone())
    }
}

/// Forty tickets of a repair firm: the base mostly rambles, the adapted model makes a few mistakes.
fn evaluated() -> EvalResult {
    let appliances = ["washing machine", "dishwasher", "oven", "fridge", "dryer"];
    let reference = |i: usize| {
        json!({ "appliance": appliances[i % 5], "fault": "does not start", "urgent": i.is_multiple_of(3),
            "postcode": format!("75{:03}", i * 7 % 20), "callback": null })
    };
    let item = |i: usize| {
        let prompt = format!(
            "hello, my {} does not start since this morning, could someone come by? I am in 75{:03}. thanks <3",
            appliances[i % 5],
            i * 7 % 20
        );
        let turns =
            vec![Message::new("user", prompt), Message::new("assistant", reference(i).to_string())];
        EvalItem::new(format!("ticket-{i:03}"), Conversation::new(turns)).unwrap()
    };
    let answer = |text: String, stopped| Answer {
        text,
        error: None,
        stopped: Some(stopped),
        prompt_tokens: Some(61),
        answer_tokens: Some(33),
        ..Answer::default()
    };
    let base = (0..40).map(|i| match i % 8 {
        0 => Answer::failed("the prompt has 9,000 tokens, which leaves no room"),
        4 => {
            answer(json!({ "appliance": appliances[i % 5], "fault": "unknown" }).to_string(), true)
        }
        _ => {
            answer(format!("Of course! Your {} will be fine. ", appliances[i % 5]).repeat(4), false)
        }
    });
    let adapted = (0..40).map(|i| {
        let mut ticket = reference(i);
        if i % 5 == 3 {
            ticket["postcode"] = json!("75999");
        }
        if i % 8 == 4 {
            ticket["note"] = json!("polite");
        }
        answer(ticket.to_string(), true)
    });
    let metrics = metrics_by_name(&["json_field_accuracy", "json_exact", "json_valid"]).unwrap();
    let mut candidates: [Box<dyn Candidate>; 2] =
        [Box::new(Given("base", base.collect())), Box::new(Given("adapted", adapted.collect()))];
    evaluate(&mut candidates, (0..40).map(item).collect(), metrics, &mut |_| ()).unwrap()
}

fn fixture() -> Report {
    let result = evaluated();
    let metric = result.metric("json_field_accuracy").unwrap();
    let [base, adapted] = &result.candidates[..] else { panic!("two candidates") };
    let paired: Vec<_> = (0..result.metrics.len())
        .map(|m| compare(base, adapted, m, &PairedOptions::default()).unwrap())
        .collect();
    let mut candidates = candidate_reports(&result).unwrap();
    for candidate in &mut candidates {
        // Not the measured time, so that the report is the same every time.
        candidate.seconds = 12.5;
        candidate.tokens_per_second = Some(301.0);
        candidate.set_cost(cost(candidate.traffic.unwrap()));
    }
    let decision = Decision {
        a: "base",
        b: "adapted",
        metric: result.metrics[metric],
        score_a: candidates[0].metrics["json_field_accuracy"].value,
        score_b: candidates[1].metrics["json_field_accuracy"].value,
        paired: &paired[metric],
        margin: 0.3,
        blockers: &[],
        cost_a: candidates[0].cost.as_ref(),
        cost_b: candidates[1].cost.as_ref(),
    };
    assert_eq!(decide(&decision), Verdict::WorthIt);
    let comparisons = result.metrics.iter().zip(&paired);
    Report {
        schema_version: SCHEMA_VERSION,
        verdict: decide(&decision),
        sentences: sentences(&decision),
        metric: "json_field_accuracy".into(),
        margin: 0.3,
        title: "Dispatch tickets from incoming messages".into(),
        created: "2026-11-24 09:30 UTC".into(),
        program: "metier 0.1.0".into(),
        comparisons: comparisons
            .map(|(m, paired)| comparison_report(m.name, "base", "adapted", paired))
            .inspect(|c| assert!(c.test != PairedTest::McnemarExact { only_b: 0, only_a: 0 }))
            .collect(),
        fields: field_reports(&result).unwrap(),
        examples: example_reports(&result, metric, 10),
        candidates,
        train: Some(TrainSummary {
            tokens_per_second: 5120.4,
            peak_rss_bytes: 612_000_000,
            seconds: 95.0,
            steps: 240,
            method: "LoRA, rank 32, on all linear layers".into(),
            curve: (1..=240).map(loss_point).collect(),
        }),
        machine: Machine {
            cpu: "Test processor 9000".into(),
            instructions: "AVX-512".into(),
            cores: 2,
            threads: 2,
            memory_bytes: 8 << 30,
            os: "Linux 6.8".into(),
        },
        measurements: vec![Measurement {
            what: "Decode, one sequence".into(),
            value: "412 tokens a second".into(),
            how: "median of 5 runs of 128 tokens".into(),
        }],
        data: Some(DataSummary {
            train_rows: 2000,
            valid_rows: 100,
            test_rows: 400,
            duplicates_removed: 12,
            leaks: 0,
            leak_check: "Exact, normalised, and near-duplicates by MinHash over word 3-grams."
                .into(),
        }),
        licences: vec![
            Licence { what: "metier-nano".into(), licence: "Apache-2.0".into() },
            Licence { what: "Sample trade".into(), licence: "Apache-2.0 OR MIT".into() },
        ],
        files: ["adapter.safetensors", "test.jsonl"]
            .map(|name| {
                (
                    name.into(),
                    FileDigest { sha256: "0123456789abcdef".repeat(4), bytes: 123_456, path: None },
                )
            })
            .into(),
        plan: None,
        rules: Vec::new(),
        economics: None,
        slices: Vec::new(),
        changed: None,
        judged: Vec::new(),
        confused: Vec::new(),
        without_leaks: None,
        judgements: Vec::new(),
        grades: Vec::new(),
        seal: String::new(),
    }
}

fn cost(traffic: eval::Traffic) -> Cost {
    let machine = MachinePrice {
        price_per_hour: 0.089,
        currency: "EUR".into(),
        price_source: "Assumed for this test, 2026-11-24".into(),
        tokens_per_second: 800.0,
        tokens_per_second_source: "measured on this machine while answering the test set".into(),
        utilisation: 0.3,
    };
    CostPlan::Machine(machine).cost(&traffic).unwrap()
}

fn loss_point(step: u64) -> LossPoint {
    let noise = ((step * 37 % 17) as f64 - 8.0) * 0.012;
    let loss = 0.25 + 2.4 * (-(step as f64) / 45.0).exp();
    LossPoint {
        step,
        loss: Some(loss + noise),
        held_out: step.is_multiple_of(40).then_some(loss + 0.06),
    }
}
