//! `metier prove` and `metier verify` from the config file to the exit code.

use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

fn metier(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_metier")).current_dir(dir).args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

const N: usize = 120;

/// A test set of short labels.
fn write_test(dir: &Path, n: usize) {
    let row = |i: usize| {
        json!({"id": format!("row-{i}"), "messages": [
            {"role": "user", "content": format!("message {i}")},
            {"role": "assistant", "content": format!("label-{}", i % 5)}]})
        .to_string()
    };
    std::fs::write(dir.join("test.jsonl"), (0..n).map(row).collect::<Vec<_>>().join("\n")).unwrap();
}

/// Answers of which every `step`-th is wrong.
fn write_answers(dir: &Path, name: &str, step: usize) {
    let row = |i: usize| {
        let answer =
            if i.is_multiple_of(step) { "no".to_owned() } else { format!("label-{}", i % 5) };
        json!({"id": format!("row-{i}"), "answer": answer, "prompt_tokens": 400 + i % 50, "answer_tokens": 5,
            "seconds": 0.5})
        .to_string()
    };
    std::fs::write(dir.join(name), (0..N).map(row).collect::<Vec<_>>().join("\n")).unwrap();
}

fn config(margin: f64, more: &str) -> String {
    format!(
        "[data]\ntest = 'test.jsonl'\n[prove]\nmetric = 'exact_match'\nmargin = {margin}\n
[[prove.candidate]]\nname = 'rented'\nanswers = 'rented.jsonl'\nprice = 'openai/gpt-4o'\n
[[prove.candidate]]\nname = 'ours'\nanswers = 'ours.jsonl'\nruns_on = 'server'\n{more}
[cost]\ncurrency = 'EUR'\nexchange = {{ USD = 0.92 }}\nexchange_source = 'test'\nrequests_per_month = 1000000\n
[[cost.machine]]\nname = 'server'\nprice_per_hour = 0.089\nprice_source = 'offer, 2026-10-07'
tokens_per_second = 2000.0\nmeasured_on = 'server'\n"
    )
}

fn prepared(ours: usize, margin: f64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_test(dir.path(), N);
    write_answers(dir.path(), "rented.jsonl", 10);
    write_answers(dir.path(), "ours.jsonl", ours);
    std::fs::write(dir.path().join("metier.toml"), config(margin, "")).unwrap();
    dir
}

fn report(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("proof/report.json")).unwrap()).unwrap()
}

#[test]
fn the_exit_code_is_the_verdict() {
    for (ours, margin, expected, verdict) in
        [(40, -0.03, 0, "worth_it"), (40, 0.06, 3, "not_proven"), (2, -0.03, 4, "not_worth_it")]
    {
        let dir = prepared(ours, margin);
        let output = metier(dir.path(), &["prove"]);
        assert_eq!(code(&output), expected, "{}", said(&output));
        let report = report(dir.path());
        assert_eq!(report["verdict"], verdict);
        assert_eq!(report["candidates"].as_array().unwrap().len(), 2);
        assert!(report["candidates"][0]["cost_per_1000_requests"].as_f64().unwrap() > 0.5);
        for file in
            ["report.html", "report.md", "report.junit.xml", "items.jsonl", "answers/2_ours.jsonl"]
        {
            assert!(dir.path().join("proof").join(file).is_file(), "{file}");
        }
        let output = metier(dir.path(), &["verify", "proof/report.json", "--json"]);
        assert_eq!(code(&output), 0, "{}", said(&output));
        let verified: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&verified["verified"], &verified["verdict"]), (&json!(true), &json!(verdict)));
        assert!(verified["files"].as_array().unwrap().contains(&json!("test set")));
    }
}

#[test]
fn a_changed_test_set_is_named() {
    let dir = prepared(40, -0.03);
    metier(dir.path(), &["prove"]);
    write_test(dir.path(), N - 1);
    let output = metier(dir.path(), &["verify", "proof/report.json"]);
    assert_eq!(code(&output), 1);
    assert!(said(&output).contains("test.jsonl"), "{}", said(&output));
}

#[test]
fn against_an_earlier_report_only_a_proven_regression_fails() {
    let dir = prepared(40, -0.03);
    assert_eq!(code(&metier(dir.path(), &["prove", "--out", "before"])), 0);
    for (ours, expected, words) in
        [(40, 0, "no proven regression"), (30, 0, "no proven regression"), (4, 4, "proven worse")]
    {
        write_answers(dir.path(), "ours.jsonl", ours);
        let output = metier(dir.path(), &["prove", "--against", "before/report.json"]);
        assert_eq!(code(&output), expected, "{}", said(&output));
        assert!(said(&output).contains(words), "{}", said(&output));
        assert_eq!(report(dir.path())["candidates"][2]["name"], "ours (earlier)");
        assert_eq!(code(&metier(dir.path(), &["verify", "proof/report.json"])), 0);
    }
    // Every file of the earlier proof must be as it was, also those that are not compared.
    let items = dir.path().join("before/items.jsonl");
    let whole = std::fs::read_to_string(&items).unwrap();
    std::fs::write(&items, whole.replacen("message 0", "message O", 1)).unwrap();
    let output = metier(dir.path(), &["prove", "--against", "before/report.json"]);
    assert!(code(&output) == 1 && said(&output).contains("items.jsonl"), "{}", said(&output));
    std::fs::write(&items, whole).unwrap();
    let answers = dir.path().join("before/answers/2_ours.jsonl");
    std::fs::write(&answers, std::fs::read_to_string(&answers).unwrap().replacen("no", "on", 1))
        .unwrap();
    let output = metier(dir.path(), &["prove", "--against", "before/report.json"]);
    assert!(code(&output) == 1 && said(&output).contains("2_ours.jsonl"), "{}", said(&output));
    std::fs::write(dir.path().join("before/report.json"), "{}").unwrap();
    assert_eq!(code(&metier(dir.path(), &["prove", "--against", "before/report.json"])), 1);
}

#[test]
fn a_missing_candidate_is_no_verdict() {
    let dir = prepared(40, -0.03);
    // An address where nobody listens.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rented =
        format!("rented = 'm'\nurl = 'http://127.0.0.1:{port}/v1'\nkey_env = 'METIER_TEST_KEY'");
    let text = config(-0.03, "").replace("answers = 'rented.jsonl'", &rented);
    std::fs::write(dir.path().join("metier.toml"), text).unwrap();
    let output = metier(dir.path(), &["prove"]);
    assert_eq!(code(&output), 1);
    assert!(said(&output).contains("METIER_TEST_KEY"), "{}", said(&output));
    // A run that came to no score has not looked at the test set.
    assert!(!dir.path().join("test.jsonl.openings").exists());
    assert!(!dir.path().join("proof/report.json").exists());
    let gone = config(-0.03, "").replace("ours.jsonl", "nobody.jsonl");
    std::fs::write(dir.path().join("metier.toml"), gone).unwrap();
    let output = metier(dir.path(), &["prove"]);
    assert!(code(&output) == 1 && said(&output).contains("nobody.jsonl"), "{}", said(&output));
    assert!(!dir.path().join("proof/report.json").exists());
}

#[test]
fn several_candidates_are_judged_together_and_the_best_one_decides() {
    let dir = prepared(2, -0.03);
    write_answers(dir.path(), "better.jsonl", 60);
    let third =
        "[[prove.candidate]]\nname = 'better'\nanswers = 'better.jsonl'\nruns_on = 'server'\n";
    let text = config(-0.03, third).replace("margin", "judge = ['ours', 'better']\nmargin");
    std::fs::write(dir.path().join("metier.toml"), text).unwrap();
    let output = metier(dir.path(), &["prove", "--dry-run"]);
    assert!(said(&output).contains("ours, better are judged against rented"), "{}", said(&output));
    let output = metier(dir.path(), &["prove"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    let report = report(dir.path());
    assert_eq!(
        (&report["verdict"], &report["changed"]["b"]),
        (&json!("worth_it"), &json!("better"))
    );
    let verdicts: Vec<_> =
        report["judged"].as_array().unwrap().iter().map(|j| j["verdict"].clone()).collect();
    assert_eq!(verdicts, ["not_worth_it", "worth_it"]);
    let confidence = report["judged"][1]["confidence"].as_f64().unwrap();
    assert!((confidence - 0.975).abs() < 1e-9, "{confidence}");
    let output = metier(dir.path(), &["verify", "proof/report.json"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
}

#[test]
fn planned_looks_are_counted_and_one_too_many_proves_nothing() {
    let dir = prepared(40, -0.03);
    let text = config(-0.03, "").replace("margin", "looks = 2\nmargin");
    std::fs::write(dir.path().join("metier.toml"), text).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let output = metier(dir.path(), &["prove"]);
        let report = report(dir.path());
        let rules = report["rules"].as_array().unwrap();
        let looks = rules.iter().find(|r| r["name"] == "looks").unwrap().clone();
        assert!(rules.iter().all(|r| r["name"] != "openings"));
        seen.push((
            code(&output),
            report["plan"]["look"]["at"].as_u64().unwrap(),
            looks["finding"].as_str().unwrap().to_owned(),
            report["judged"][0]["confidence"].as_f64().unwrap(),
        ));
        assert_eq!(code(&metier(dir.path(), &["verify", "proof/report.json"])), 0);
    }
    assert_eq!((seen[0].1, seen[1].1, seen[2].1), (1, 2, 3));
    assert_eq!((seen[1].0, seen[2].0), (0, 3), "{seen:?}");
    assert_eq!((seen[1].2.as_str(), seen[2].2.as_str()), ("kept", "open"));
    assert!(seen[0].3 > 0.99 && seen[1].3 > 0.95 && seen[1].3 < 0.96, "{seen:?}");
}

/// Data that a rented model wrote, with personal data and test questions in it, proven in French.
#[test]
fn findings_about_the_data_are_told_in_the_language_of_the_report() {
    let dir = prepared(40, -0.03);
    let row = |i: usize| {
        json!({"prompt": if i < 3 { format!("message {i}") } else { format!("write to anna{i}@firm.fr") },
            "completion": "label-0", "source": "gpt-4o"})
        .to_string()
    };
    let rows: Vec<String> = (0..20).map(row).collect();
    std::fs::write(dir.path().join("train.jsonl"), rows.join("\n")).unwrap();
    let text = config(-0.03, "").replace(
        "test = 'test.jsonl'",
        "train = ['train.jsonl']\ntest = 'test.jsonl'\ngenerated_by = 'claude-sonnet-5'",
    );
    std::fs::write(dir.path().join("metier.toml"), text).unwrap();
    let output = metier(dir.path(), &["prove", "--lang", "fr"]);
    assert_eq!(code(&output), 3, "{}", said(&output));
    let report = report(dir.path());
    let rule = |name: &str| {
        let rules = report["rules"].as_array().unwrap();
        rules.iter().find(|r| r["name"] == name).unwrap().clone()
    };
    let evidence = |name: &str| rule(name)["evidence"].as_str().unwrap().to_owned();
    assert!(evidence("terms_of_use").contains("claude-sonnet-5, gpt-4o : lisez les conditions"));
    assert!(
        evidence("personal_data").contains("17 adresses électroniques"),
        "{}",
        evidence("personal_data")
    );
    assert_eq!(rule("leaks")["finding"], "open");
    assert_eq!(report["plan"]["leaked"].as_array().unwrap().len(), 3);
    assert_eq!(report["without_leaks"]["scores"]["ours"]["n"], N - 3);
    let html = std::fs::read_to_string(dir.path().join("proof/report.html")).unwrap();
    let markdown = std::fs::read_to_string(dir.path().join("proof/report.md")).unwrap();
    for text in [html.split_once("<body>").unwrap().1, &markdown] {
        for left in [" the ", " with ", " was ", " and ", " of ", " is "] {
            let mut parts = text.split(left);
            let before: Vec<char> = parts.next().unwrap().chars().rev().take(80).collect();
            let before: String = before.into_iter().rev().collect();
            assert_eq!(parts.next(), None, "{before}{left}");
        }
    }
    let output = metier(dir.path(), &["verify", "proof/report.json"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
}

#[test]
fn a_dry_run_says_who_would_be_asked_and_asks_nobody() {
    let dir = prepared(40, -0.03);
    let output = metier(dir.path(), &["prove", "--dry-run"]);
    let words = said(&output);
    assert!(code(&output) == 0 && words.contains("ours is judged against rented"), "{words}");
    assert!(words.contains("a gap of") && !dir.path().join("proof").exists(), "{words}");
}

/// Two ways to hold the bundled base, asked here, priced by the speed of this run.
#[test]
fn local_candidates_are_asked_with_instructions_and_examples() {
    let dir = tempfile::tempdir().unwrap();
    write_test(dir.path(), 4);
    let mut train = std::fs::read_to_string(dir.path().join("test.jsonl")).unwrap();
    let other = [("user", "Where do I park?"), ("assistant", "yard")];
    let other = other.map(|(role, content)| json!({"role": role, "content": content}));
    train += &format!("\n{}", json!({"messages": other}));
    std::fs::write(dir.path().join("train.jsonl"), train).unwrap();
    let text = "[data]\ntrain = ['train.jsonl']\ntest = 'test.jsonl'\n[prove]\nmetric = 'exact_match'\nmax_tokens = 4\n
[[prove.candidate]]\nname = 'plain'\nmodel = 'nano'\nruns_on = 'here'\n
[[prove.candidate]]\nname = 'prompted'\nmodel = 'nano'\ndtype = 'q8_0'\ninstructions = 'Answer with the label.'\nshots = 1\nruns_on = 'here'\n
[cost]\ncurrency = 'EUR'\nrequests_per_month = 1000\n[[cost.machine]]\nname = 'here'\nthis_machine = true\nprice_per_hour = 0.1\nprice_source = 'test'\n";
    std::fs::write(dir.path().join("metier.toml"), text).unwrap();
    let output = metier(dir.path(), &["prove"]);
    let report = report(dir.path());
    assert!(matches!(code(&output), 3 | 4), "{}", said(&output));
    let leaks = report["rules"].as_array().unwrap().iter().find(|r| r["name"] == "leaks").unwrap();
    // All four test questions are training questions, but nobody here has learnt or been shown them.
    assert_eq!((&leaks["finding"], &report["data"]["leaks"]), (&json!("kept"), &json!(4)));
    assert!(leaks["evidence"].as_str().unwrap().contains("without the 4 training rows"), "{leaks}");
    let tokens = |i: usize| report["candidates"][i]["traffic"]["prompt_tokens"].as_f64().unwrap();
    assert!(tokens(1) > tokens(0) + 5.0);
    assert!(report["economics"]["pairs"][0]["saving"]["prompt_tokens"].as_f64().unwrap() < 0.0);
    assert!(report["plan"]["asked"]["prompted"].as_str().unwrap().contains("q8_0"));
    assert_eq!(report["files"]["base of plain"]["sha256"].as_str().unwrap().len(), 64);
    // Both are asked alike, and the report shows how.
    let arms = report["rules"].as_array().unwrap().iter().find(|r| r["name"] == "arms").unwrap();
    assert_eq!(arms["finding"], "kept", "{arms}");
    let arm = &report["plan"]["arms"]["plain"];
    assert!(arm["stops"].as_array().is_some_and(|stops| !stops.is_empty()), "{arm}");
    assert_eq!(arm["template"].as_str().unwrap().len(), 64);
    assert_eq!(report["without_leaks"]["scores"]["plain"]["clean"], Value::Null);
    let output = metier(dir.path(), &["verify", "proof/report.json"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
}

/// An adapter trained here: its manifest brings what it forgot and who wrote its data into the proof.
#[test]
fn an_adapter_s_manifest_speaks_in_its_proof() {
    let dir = tempfile::tempdir().unwrap();
    write_test(dir.path(), 4);
    let row = |i: usize| json!({"prompt": format!("train {i}"), "completion": "yes"}).to_string();
    let rows: Vec<String> = (0..8).map(row).collect();
    let leaked = json!({"prompt": "message 0", "completion": "label-0"});
    std::fs::write(dir.path().join("train.jsonl"), format!("{}\n{leaked}", rows.join("\n")))
        .unwrap();
    let data = "[data]\ntrain = ['train.jsonl']\ntest = 'test.jsonl'\ngenerated_by = 'gpt-4o'\n[train]\nmax_steps = 1\nr = 2\n";
    std::fs::write(dir.path().join("train.toml"), data).unwrap();
    let output = metier(dir.path(), &["train", "--config", "train.toml", "--out", "adapter"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    let card = std::fs::read_to_string(dir.path().join("adapter/README.md")).unwrap();
    assert!(card.contains("written by gpt-4o"), "{card}");
    let manifest = std::fs::read(dir.path().join("adapter/metier_manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let prove = "[data]\ntrain = ['train.jsonl']\ntest = 'test.jsonl'\n[prove]\nmetric = 'exact_match'\nmax_tokens = 2\nmax_forgetting = 5.0\n
[[prove.candidate]]\nname = 'base'\nmodel = 'nano'\n[[prove.candidate]]\nname = 'ours'\nadapter = 'adapter'\n";
    std::fs::write(dir.path().join("metier.toml"), prove).unwrap();
    let output = metier(dir.path(), &["prove"]);
    assert_eq!(code(&output), 3, "{}", said(&output));
    let report = report(dir.path());
    let forgotten = &report["plan"]["forgotten"]["ours"];
    assert_eq!(forgotten["loss_before"], manifest["guard"]["loss_before"]);
    assert!(forgotten["tokens"].as_u64().unwrap() > 100, "{forgotten}");
    let rule = |name: &str| {
        let rules = report["rules"].as_array().unwrap();
        rules.iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    assert_eq!(rule("forgetting")["finding"], "kept", "{}", rule("forgetting"));
    assert_eq!(rule("arms")["finding"], "kept", "{}", rule("arms"));
    // The training left the test question out, and says so of this test set alone.
    assert_eq!(rule("leaks")["finding"], "kept", "{}", rule("leaks"));
    assert_eq!(report["data"]["leaks"], 1);
    assert!(rule("terms_of_use")["evidence"].as_str().unwrap().contains("gpt-4o"));
    let carried = std::fs::read(dir.path().join("adapter/metier_verdict.json")).unwrap();
    let carried: Value = serde_json::from_slice(&carried).unwrap();
    assert_eq!(carried["verdict"], "not_proven");
    let output = metier(dir.path(), &["verify", "proof/report.json"]);
    assert_eq!(code(&output), 0, "{}", said(&output));

    let mut manifest = manifest;
    manifest["kept_apart"] = json!(["0".repeat(64)]);
    let path = dir.path().join("adapter/metier_manifest.json");
    std::fs::write(path, manifest.to_string()).unwrap();
    metier(dir.path(), &["prove", "--out", "again"]);
    let again = std::fs::read_to_string(dir.path().join("again/report.md")).unwrap();
    assert!(again.contains("Nothing says that ours learnt without them."), "{again}");
}
