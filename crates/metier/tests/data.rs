//! `metier data` and how `metier train` takes its data, on small files of every form.

use assert_cmd::Command;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn metier(dir: &Path, args: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_metier"))
        .current_dir(dir)
        .env("NO_COLOR", "1")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn shown(dir: &Path, args: &[&str]) -> String {
    let (ok, out, err) = metier(dir, args);
    assert!(ok, "{args:?}: {err}");
    out
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

#[test]
fn show_marks_what_is_learnt() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let rows = lines(&[
        json!({"messages": [user("One \u{1b}[31m"), {"role": "assistant", "content": "1", "weight": 0},
                            user("Two"), assistant("deux \u{e9}t\u{e9}s")]}),
        json!({"messages": [user("a"), assistant("b")]}),
    ]);
    fs::write(dir.join("chat.jsonl"), rows).unwrap();
    let out = shown(dir, &["data", "show", "chat.jsonl", "-n", "1"]);
    assert!(
        out.contains(
            "<|bos|><|user|>One \\u{1b}[31m<|end|><|assistant|>1<|end|><|user|>Two<|end|>\
             <|assistant|>\u{27e6}deux \u{e9}t\u{e9}s<|end|>\u{27e7}"
        ),
        "{out}"
    );
    assert!(out.contains("chat.jsonl:1: ") && out.contains("1 of 2 rows shown"), "{out}");
    assert!(!out.contains('\u{1b}'), "{out:?}");

    let out = shown(dir, &["data", "show", "chat.jsonl", "--json"]);
    let rows: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    let learnt = |row: &Value| {
        row["learnt"].as_array().unwrap().iter().filter(|v| v.as_bool().unwrap()).count()
    };
    for row in &rows {
        assert_eq!(row["ids"].as_array().unwrap().len() as u64, row["tokens"]);
        assert_eq!(learnt(row) as u64, row["learnt_tokens"]);
        assert!(learnt(row) >= 2);
    }

    let pairs = lines(&[json!({"prompt": "p", "chosen": "good", "rejected": "bad"})]);
    fs::write(dir.join("pairs.jsonl"), pairs).unwrap();
    let out = shown(dir, &["data", "show", "pairs.jsonl"]);
    for part in [
        "pairs.jsonl:1, chosen: ",
        "\u{27e6}good<|end|>\u{27e7}",
        ", rejected: ",
        "\u{27e6}bad<|end|>\u{27e7}",
        "1 of 1 rows",
    ] {
        assert!(out.contains(part), "{out} lacks {part}");
    }
    let labelled = lines(&[json!({"prompt": "p", "completion": "c", "label": false})]);
    fs::write(dir.join("labelled.jsonl"), labelled).unwrap();
    assert!(shown(dir, &["data", "show", "labelled.jsonl"]).contains("completion (bad)"));

    fs::create_dir(dir.join("texts")).unwrap();
    fs::write(dir.join("texts/a.md"), "# Title\n\nSome words.\n").unwrap();
    fs::write(dir.join("texts/b.txt"), "word ".repeat(2000)).unwrap();
    let out = shown(dir, &["data", "show", "texts"]);
    assert!(out.contains("a.md, text: ") && out.contains("Title\n\nSome words."), "{out}");
    assert!(out.contains(" more tokens") && out.contains("2 of 2 rows shown"), "{out}");
    assert!(shown(dir, &["data", "show", "texts/a.md"]).contains("Some words."));

    let (ok, _, err) = metier(dir, &["data", "show", "nothing.jsonl"]);
    assert!(!ok && err.contains("nothing.jsonl"), "{err}");
}

#[test]
fn check_hints_at_personal_data_and_does_not_fail() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("set")).unwrap();
    let csv = "text,label\n\"Mail me: jane.roe@firm.co.uk, or 07700 900123\",mail\n\
               My IBAN is DE89 3704 0044 0532 0130 00,bank\nplain 12345 words,none\n";
    fs::write(dir.join("set/train.csv"), csv).unwrap();
    fs::write(dir.join("set/README.md"), "---\nlicense: etalab-2.0\n---\n").unwrap();
    let out = shown(dir, &["data", "check", "set"]);
    for part in [
        "licence of set/train.csv: etalab-2.0",
        "e-mail addresses: set/train.csv:2 messages[0].content: j***.***@****.**.**",
        "phone numbers: set/train.csv:2 messages[0].content: 07*** ******",
        "IBANs: set/train.csv:3 messages[0].content: DE** **** ****",
        "1 e-mail addresses, 1 IBANs, 1 phone numbers in 2 rows",
    ] {
        assert!(out.contains(part), "{out} lacks {part}");
    }
    assert!(!out.contains("jane") && !out.contains("3704") && !out.contains("900123"), "{out}");
    let report: Value =
        serde_json::from_str(&shown(dir, &["data", "check", "set", "--json"])).unwrap();
    assert_eq!(report["personal"]["counts"], json!({"email": 1, "iban": 1, "phone": 1}));
    assert_eq!(report["inputs"][0]["format"], "prompt_completion_csv");
    assert_eq!(report["inputs"][0]["license"], "etalab-2.0");
}

#[test]
fn check_takes_preferences() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let pair = |i: u32| json!({"prompt": format!("mail a{i}@firm.eu"), "chosen": "good answer", "rejected": "bad"});
    fs::write(dir.join("p.jsonl"), lines(&[pair(1), pair(2), pair(1)])).unwrap();
    let report: Value =
        serde_json::from_str(&shown(dir, &["data", "check", "p.jsonl", "--json"])).unwrap();
    assert_eq!(report["inputs"][0]["format"], "preference_jsonl");
    assert_eq!(report["duplicates"]["exact"], 1);
    assert_eq!(report["personal"]["counts"], json!({"email": 3}));
    let learnt = |set: &str| report["tokens"][set]["supervised"].as_u64().unwrap();
    assert!(learnt("chosen") > learnt("rejected") && learnt("rejected") >= 6, "{report}");

    let one = json!({"prompt": "p", "completion": "c", "label": true});
    fs::write(dir.join("l.jsonl"), lines(&[one])).unwrap();
    let (ok, out, _) = metier(dir, &["data", "check", "l.jsonl"]);
    assert!(!ok && out.contains("all answers are labelled good"), "{out}");
    let (ok, _, err) = metier(dir, &["data", "check", "p.jsonl", "--test", "p.jsonl"]);
    assert!(!ok && err.contains("preference data"), "{err}");
}

/// Every form of one conversation becomes the same rows, whatever file it stands in.
#[test]
fn prepare_takes_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let chat = json!({"messages": [user("add 2 2"), assistant("4")]});
    let files = [
        ("a.jsonl", lines(std::slice::from_ref(&chat))),
        ("b.json", json!([chat]).to_string()),
        (
            "c.jsonl",
            lines(&[json!({"conversations": [{"from": "human", "value": "add 2 2"},
                                                     {"from": "gpt", "value": "4"}]})]),
        ),
        ("d.jsonl", lines(&[json!({"instruction": "add 2 2", "input": "", "output": "4"})])),
        ("e.jsonl", lines(&[json!({"prompt": "add 2 2", "completion": "4"})])),
        ("f.csv", "question,answer\nadd 2 2,4\n".to_owned()),
    ];
    let mut args = vec!["data", "prepare", "--out", "out", "--test-fraction", "0"];
    args.extend(["--valid-fraction", "0"]);
    for (name, text) in &files {
        fs::write(dir.join(name), text).unwrap();
        args.push(name);
    }
    shown(dir, &args);
    let written = fs::read_to_string(dir.join("out/train.jsonl")).unwrap();
    assert_eq!(written.lines().count(), 1, "all are duplicates of the first: {written}");
    let report: Value =
        serde_json::from_slice(&fs::read(dir.join("out/data_report.json")).unwrap()).unwrap();
    assert_eq!(report["duplicates"]["exact"], 5);
}

#[test]
fn weights_say_how_often_a_source_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let rows = |name: &str, n: usize| {
        let rows: Vec<Value> = (0..n)
            .map(|i| json!({"messages": [user(&format!("{name} {i}")), assistant("ok")]}))
            .collect();
        fs::write(dir.join(format!("{name}.jsonl")), lines(&rows)).unwrap();
    };
    rows("own", 10);
    rows("replay", 40);
    rows("valid", 3);
    let config = |train: &str| {
        let text = format!(
            "[base]\nmodel = 'nano'\n[data]\nvalid = 'valid.jsonl'\ntrain = {train}\n[train]\nmax_length = 64\n"
        );
        fs::write(dir.join("m.toml"), text).unwrap();
        metier(dir, &["train", "--config", "m.toml", "--out", "out", "--dry-run"])
    };
    let trained = |train: &str| {
        let (ok, _, err) = config(train);
        assert!(ok, "{err}");
        let line = err.lines().find(|line| line.starts_with("train: ")).expect("a report");
        line["train: ".len()..].split(' ').next().unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(trained("['own.jsonl', 'replay.jsonl']"), 50);
    let mixed = "['own.jsonl', { path = 'replay.jsonl', weight = 0.25 }]";
    assert_eq!(trained(mixed), 20);
    assert_eq!(trained("[{ path = 'own.jsonl', weight = 2.5 }]"), 25);
    let (ok, _, err) = config("['own.jsonl', { path = 'own.jsonl', weight = 2.0 }]");
    assert!(!ok && err.contains("named twice"), "{err}");
    let (ok, _, err) = config("[{ path = 'own.jsonl', weight = 0 }]");
    assert!(!ok && err.contains("weight"), "{err}");
}
