//! `metier prices`: tables from files and from a server, and what proofs do with them.

mod common;

use common::proving::{code, label, metier, said, write_answers, write_config, write_test};
use common::shared;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc;

/// A server that gives each request the next of these answers; its address, and what was asked of it.
fn server(answers: Vec<(u16, Vec<u8>)>) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/prices.json", listener.local_addr().unwrap());
    let (asked, asks) = mpsc::channel();
    std::thread::spawn(move || {
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            while lines.next().unwrap().unwrap() != "" {}
            let head = format!(
                "HTTP/1.1 {status} X\r\nlocation: https://example.com/\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            // One that was refused for its head closes early.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            asked.send(first).unwrap();
        }
    });
    (url, asks)
}

/// genai-prices' form with one model of a provider that we do not know.
fn table(price: f64) -> Vec<u8> {
    let prices = json!({"input_mtok": price, "output_mtok": 2.0 * price});
    let model = json!({"id": "small-1", "prices": prices});
    json!([{"id": "acme", "pricing_urls": ["https://acme.example/prices"], "models": [model]}])
        .to_string()
        .into_bytes()
}

fn listed(dir: &Path, more: &[&str]) -> Value {
    let output = metier(dir, &[&["prices", "list", "--json"][..], more].concat());
    assert_eq!(code(&output), 0, "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_table_is_fetched_when_asked_and_a_bad_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let none = listed(dir.path(), &["acme"]);
    assert_eq!((&none["table"], &none["models"]), (&Value::Null, &json!([])));
    assert!(listed(dir.path(), &["openai/gpt-4o-mini"])["models"][0]["rates"]["input"] == 0.15);

    let good = table(0.5);
    let cut = good[..good.len() - 9].to_vec();
    let answers = [
        (200, good.clone()),
        (404, b"gone".to_vec()),
        (302, Vec::new()),
        (200, b"<html>not prices</html>".to_vec()),
        (200, cut),
        (200, b"[]".to_vec()),
        (200, vec![0xff, 0xfe]),
        (200, Vec::new()),
    ];
    let bad = answers.len() - 1;
    let (url, asks) = server(answers.into());
    let output =
        metier(dir.path(), &["prices", "update", "--from", &url, "--date", "2026-11-02", "--json"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    let entry: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        entry,
        json!({"source": url, "read": "2026-11-02", "sha256": sha256(&good), "bytes": good.len(),
               "models": 1, "machines": 0})
    );
    assert_eq!(asks.recv().unwrap(), "GET /prices.json HTTP/1.1");
    for _ in 0..bad {
        let output = metier(dir.path(), &["prices", "update", "--from", &url]);
        assert!(code(&output) == 1 && said(&output).contains(&url), "{}", said(&output));
        asks.recv().unwrap();
        let found = listed(dir.path(), &["acme"]);
        assert_eq!((&found["table"], &found["models"][0]["rates"]["input"]), (&entry, &json!(0.5)));
    }
    // In words, with the shipped prices beside; nobody is asked.
    let words = said(&metier(dir.path(), &["prices", "list"]));
    for part in ["2026-11-02", &url, "acme/small-1", "openai/gpt-4o-mini", "scaleway/L4-1-24G"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    let output =
        metier(dir.path(), &["prices", "update", "--from", "http://prices.example/x.json"]);
    assert!(code(&output) == 1 && said(&output).contains("https://"), "{}", said(&output));
    // The same day again, and a damaged table.
    let file = dir.path().join("newer.json");
    std::fs::write(&file, table(0.75)).unwrap();
    let output =
        metier(dir.path(), &["prices", "update", "--from", "newer.json", "--date", "2026-11-02"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    let found = listed(dir.path(), &["acme"]);
    assert_eq!(found["models"][0]["rates"]["input"], 0.75);
    let kept = dir.path().join(format!("state/prices/{}.json", sha256(&table(0.75))));
    std::fs::write(&kept, table(0.01)).unwrap();
    let output = metier(dir.path(), &["prices", "list"]);
    assert!(code(&output) == 1 && said(&output).contains("hint"), "{}", said(&output));
}

#[test]
fn a_proof_names_the_table_that_it_reckons_with() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    write_test(at, 40);
    write_answers(at, "rented.jsonl", 40, label);
    write_answers(at, "ours.jsonl", 40, label);
    let cost = "price = 'acme/small-1'\n[cost]\ncurrency = 'USD'\nrequests_per_month = 1000\n";
    write_config(at, cost);
    let output = metier(at, &["prove"]);
    assert!(code(&output) == 1 && said(&output).contains("acme/small-1"), "{}", said(&output));

    std::fs::write(at.join("t.json"), table(0.5)).unwrap();
    metier(at, &["prices", "update", "--from", "t.json", "--date", "2026-11-02"]);
    let report = |words: &str| {
        let output = metier(at, &["prove"]);
        assert!(matches!(code(&output), 0 | 3 | 4), "{}", said(&output));
        let text = std::fs::read_to_string(at.join("proof/report.json")).unwrap();
        let report: Value = serde_json::from_str(&text).unwrap();
        let files = report["files"].as_object().unwrap();
        let (name, digest) =
            files.iter().find(|(name, _)| name.starts_with("price table")).unwrap();
        assert_eq!(name, words);
        let arm = report["plan"]["economics"]["arms"][0].clone();
        (digest["sha256"].clone(), arm["running"]["price"].clone(), report)
    };
    let (digest, price, whole) = report("price table of 2026-11-02 from t.json");
    assert_eq!(digest, sha256(&table(0.5)));
    assert_eq!(
        (&price["rates"]["input"], &price["read"]),
        (&json!(0.5), &json!("2026-11-02")),
        "{whole}"
    );
    let output = metier(at, &["verify", "proof/report.json"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    // The config file's own table goes first.
    std::fs::write(at.join("own.json"), table(4.0)).unwrap();
    write_config(at, &format!("{cost}prices = 'own.json'\n"));
    let (digest, price, _) = report("price table");
    assert_eq!((digest, &price["rates"]["input"]), (json!(sha256(&table(4.0))), &json!(4.0)));
}

#[test]
fn the_published_tables_are_taken() {
    let Some(folder) = shared("api") else { return };
    for (name, least) in [("genai-prices.json", 1000), ("litellm-prices.json", 150)] {
        let dir = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let (url, _asks) = server(vec![(200, bytes.clone())]);
        let output = metier(dir.path(), &["prices", "update", "--from", &url, "--json"]);
        assert_eq!(code(&output), 0, "{}", said(&output));
        let entry: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(entry["models"].as_u64().unwrap() > least && entry["sha256"] == sha256(&bytes));
        let found = listed(dir.path(), &["openai/gpt-4o"]);
        assert_eq!(found["models"][0]["rates"]["input"], 2.5);
    }
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_metier"));
    command.env("METIER_STATE", dir.path()).args(["prices", "list"]);
    let output = command.stdout(writer).stderr(std::process::Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
