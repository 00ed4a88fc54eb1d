//! `metier prove` where answers are drawn several times and graded by a judge: against a server on this machine
//! that speaks OpenAI's protocol, and the bundled model.

mod common;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use common::proving::{code, metier, said, write_test};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

const N: usize = 12;

type Asked = Arc<Mutex<Vec<Value>>>;

/// The rented model says another thing each time; the judge likes what has an even number of letters.
async fn answer(State(asked): State<Asked>, Json(body): Json<Value>) -> Json<Value> {
    let count = {
        let mut asked = asked.lock().unwrap();
        asked.push(body.clone());
        asked.len()
    };
    let content = match body["model"].as_str() {
        Some("judge-1") => {
            let text = body["messages"][1]["content"].as_str().unwrap();
            let (_, said) = text.split_once("Answer:\n").unwrap();
            let said = said.trim_start_matches('`').trim_start_matches('\n');
            let (said, _) = said.split_once("\n```").unwrap();
            json!({"grade": if said.chars().count() % 2 == 0 { 5 } else { 2 }}).to_string()
        }
        _ => "x".repeat(1 + count % 5),
    };
    Json(json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
    }))
}

async fn start() -> (String, Asked) {
    let asked = Asked::default();
    let router =
        Router::new().route("/v1/chat/completions", post(answer)).with_state(Arc::clone(&asked));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, asked)
}

fn config(url: &str) -> String {
    format!(
        "[data]\ntest = 'test.jsonl'\n
[prove]\nmetrics = ['rubric', 'exact_match', 'answer_tokens']\nmetric = 'rubric'\nrepeats = 3\nmax_tokens = 6\n
[prove.rubric]\nrented = 'judge-1'\nurl = '{url}'\ncriteria = 'Even is good.'\n
[[prove.candidate]]\nname = 'far'\nrented = 'm-1'\nurl = '{url}'\nparameters = {{ temperature = 0.9 }}\n
[[prove.candidate]]\nname = 'greedy'\nmodel = 'nano'\n
[[prove.candidate]]\nname = 'drawn'\nmodel = 'nano'\n\
parameters = {{ temperature = 1.0, top_p = 0.95, seed = 4 }}\n"
    )
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A line of answers as a list: the first, then its repeats.
fn draws(line: &Value) -> Vec<Value> {
    let repeats = line["repeats"].as_array().cloned().unwrap_or_default();
    std::iter::once(line.clone()).chain(repeats).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sampled_answers_are_drawn_again_and_graded() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_owned();
    let (url, asked) = start().await;
    write_test(&at, N);
    let config = config(&url);
    std::fs::write(at.join("metier.toml"), &config).unwrap();
    let run = |arguments: &'static [&'static str]| {
        let at = at.clone();
        async move { tokio::task::spawn_blocking(move || metier(&at, arguments)).await.unwrap() }
    };
    let dry = run(&["prove", "--dry-run"]).await;
    assert!(said(&dry).contains("3 answers to each question"), "{}", said(&dry));
    let output = run(&["prove"]).await;
    assert!([0, 3, 4].contains(&code(&output)), "{}", said(&output));
    let proof = at.join("proof");
    let report: Value =
        serde_json::from_slice(&std::fs::read(proof.join("report.json")).unwrap()).unwrap();

    // The rented one is asked three times each, the greedy one once, the sampled one three times.
    let models =
        |model: &str| asked.lock().unwrap().iter().filter(|body| body["model"] == model).count();
    assert_eq!(models("m-1"), 3 * N);
    let far = lines(&proof.join("answers/1_far.jsonl"));
    assert!(far.iter().all(|line| draws(line).len() == 3));
    let greedy = lines(&proof.join("answers/2_greedy.jsonl"));
    assert!(greedy.iter().all(|line| line.get("repeats").is_none()));
    let drawn = lines(&proof.join("answers/3_drawn.jsonl"));
    let texts: HashSet<String> =
        drawn.iter().flat_map(draws).map(|draw| draw["answer"].to_string()).collect();
    assert!(texts.len() > N, "{texts:?}");
    // Scores are means of the draws' grades.
    for line in far.iter().chain(&greedy).chain(&drawn) {
        let grades: Vec<f64> =
            draws(line).iter().map(|d| (d["grade"].as_f64().unwrap() - 1.0) / 4.0).collect();
        let mean = grades.iter().sum::<f64>() / grades.len() as f64;
        assert!((line["scores"]["rubric"].as_f64().unwrap() - mean).abs() < 1e-12, "{line}");
    }
    let words = report["plan"]["asked"]["drawn"].as_str().unwrap();
    assert!(words.contains("temperature 1, 3 answers to each question"), "{words}");
    let words = report["plan"]["asked"]["far"].as_str().unwrap();
    assert!(words.contains("temperature 0.9, 3 answers to each question"), "{words}");
    assert_eq!(
        report["candidates"][2]["metrics"]["rubric"]["n"].as_u64().unwrap_or(N as u64),
        N as u64
    );
    let grades = &report["grades"][0];
    assert_eq!((&grades["judge"], &grades["unreadable"]), (&json!("judge-1"), &json!([0, 0])));
    assert!(grades["warnings"][0].as_str().unwrap().contains("not validated: 0"), "{grades}");

    // Again: nobody is asked, the draws are the same, and everything is computed again from the records.
    let before = asked.lock().unwrap().len();
    let again = run(&["prove"]).await;
    assert_eq!(code(&again), code(&output), "{}", said(&again));
    assert_eq!(asked.lock().unwrap().len(), before);
    let same = |a: &Value, b: &Value| {
        draws(a).iter().zip(draws(b)).all(|(a, b)| a["answer"] == b["answer"])
    };
    let now = lines(&proof.join("answers/3_drawn.jsonl"));
    assert!(drawn.iter().zip(&now).all(|(a, b)| same(a, b)));
    let verified = run(&["verify", "proof/report.json"]).await;
    assert_eq!(code(&verified), 0, "{}", said(&verified));
    let changed = std::fs::read_to_string(proof.join("answers/3_drawn.jsonl")).unwrap();
    let changed = match changed.contains("\"grade\":2") {
        true => changed.replacen("\"grade\":2", "\"grade\":5", 1),
        false => changed.replacen("\"grade\":5", "\"grade\":2", 1),
    };
    std::fs::write(proof.join("answers/3_drawn.jsonl"), changed).unwrap();
    let verified = run(&["verify", "proof/report.json"]).await;
    assert_ne!(code(&verified), 0);
    assert!(said(&verified).contains("3_drawn.jsonl"), "{}", said(&verified));
}

#[test]
fn what_cannot_be_drawn_or_graded_is_refused_before_anybody_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    write_test(dir.path(), N);
    let config = config("http://127.0.0.1:9/v1");
    for (from, to, expected) in [
        ("repeats = 3", "repeats = 0", "repeats is 0; expected 1 to 100"),
        ("temperature = 0.9", "seed = 1, temperature = 0.9", "leave seed out"),
        ("temperature = 1.0", "temprature = 1.0", "temprature"),
        ("temperature = 1.0", "temperature = -1.0", "temperature"),
        ("metrics = ['rubric', ", "metrics = [", "needs a judge"),
        ("criteria = 'Even is good.'", "", "criteria is missing"),
    ] {
        assert!(config.contains(from), "{from}");
        let mut text = config.replace(from, to);
        if expected == "needs a judge" {
            // The metric that decides is among the metrics whether it is named there or not.
            let (begin, rest) = text.split_once("[prove.rubric]").unwrap();
            let (_, end) = rest.split_once("[[").unwrap();
            text = format!("{begin}[[{end}");
        }
        std::fs::write(dir.path().join("metier.toml"), text).unwrap();
        let output = metier(dir.path(), &["prove"]);
        assert_eq!(code(&output), 1, "{to}: {}", said(&output));
        assert!(said(&output).contains(expected), "{to}: {}", said(&output));
    }
    let greedy = config
        .replace("temperature = 0.9", "temperature = 0")
        .replace("temperature = 1.0", "temperature = 0.0");
    std::fs::write(dir.path().join("metier.toml"), greedy).unwrap();
    let output = metier(dir.path(), &["prove"]);
    assert!(said(&output).contains("no candidate's answers are sampled"), "{}", said(&output));
    let plain =
        config.replace("'rubric', ", "").replace("metric = 'rubric'", "metric = 'exact_match'");
    std::fs::write(dir.path().join("metier.toml"), plain).unwrap();
    let output = metier(dir.path(), &["prove"]);
    assert!(said(&output).contains("nothing asks for it"), "{}", said(&output));
    let output = metier(
        dir.path(),
        &["eval", "--model", "nano", "--data", "test.jsonl", "--metrics", "rubric"],
    );
    assert!(said(&output).contains("[prove.rubric]"), "{}", said(&output));
}
