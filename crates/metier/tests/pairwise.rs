//! `[prove.pairwise]` against a server on this machine that speaks OpenAI's protocol.

mod common;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use common::proving::{code, label, metier, said, write_answers, write_config, write_test};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex};

const N: usize = 120;

/// What was asked.
type Asked = Arc<Mutex<Vec<Value>>>;

/// Prefers a right answer, but takes the first one of every tenth question, as judges do that prefer a
/// place; one question it answers with what is no JSON.
async fn judge(State(asked): State<Asked>, Json(body): Json<Value>) -> Json<Value> {
    let text = body["messages"][1]["content"].as_str().unwrap().to_owned();
    let between = |mark: &str| {
        let rest = text.split_once(mark).unwrap().1;
        let inside = rest.trim_start_matches(['\n', '`']);
        inside.split_once("\n```").unwrap().0.to_owned()
    };
    let question: usize = between("Question:").trim_start_matches("message ").parse().unwrap();
    let right = ["Answer 1:", "Answer 2:"].map(|mark| between(mark) == label(question));
    let better = match right {
        _ if question % 10 == 5 => "1",
        [true, false] => "1",
        [false, true] => "2",
        _ => "tie",
    };
    let content = match question {
        7 => "I would say the first".to_owned(),
        _ => json!({"better": better}).to_string(),
    };
    asked.lock().unwrap().push(body);
    Json(json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "judge-2",
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 90, "completion_tokens": 7, "total_tokens": 97},
    }))
}

async fn start() -> (String, Asked, tokio::task::JoinHandle<()>) {
    let asked = Asked::default();
    let router =
        Router::new().route("/v1/chat/completions", post(judge)).with_state(Arc::clone(&asked));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, asked, task)
}

fn report(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("proof/report.json")).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_judge_is_asked_in_both_orders_and_held_against_people() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_owned();
    let (url, asked, server) = start().await;
    write_test(&at, N);
    // Ours is right but for every sixth question, the rented model at every third alone.
    let ours = |i: usize| i % 6 != 1;
    let rented = |i: usize| i.is_multiple_of(3);
    let answer = |right: bool, i: usize| if right { label(i) } else { format!("wrong {i}") };
    write_answers(&at, "ours.jsonl", N, |i| answer(ours(i), i));
    write_answers(&at, "rented.jsonl", N, |i| answer(rented(i), i));
    let better = |i: usize| match (rented(i), ours(i)) {
        (true, false) => "a",
        (false, true) => "b",
        _ => "tie",
    };
    let labels: Vec<String> = (0..N)
        .map(|i| json!({"id": format!("row-{i}"), "better": better(i)}).to_string())
        .collect();
    std::fs::write(at.join("labels.jsonl"), labels.join("\n") + "\n").unwrap();
    let section = format!(
        "[prove.pairwise]\nrented = 'judge-1'\nurl = '{url}'\nkey_env = 'METIER_TEST_JUDGE'\n\
         criteria = 'The label is right.'\nlabels = 'labels.jsonl'\n"
    );
    write_config(&at, &section);
    let prove = |at: &Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_metier"));
        let state = at.join("state");
        let command = command.current_dir(at).env("METIER_STATE", state).arg("prove");
        command.env("METIER_TEST_JUDGE", "sk-of-the-judge").output().unwrap()
    };
    let dir_of = at.clone();
    let output = tokio::task::spawn_blocking(move || prove(&dir_of)).await.unwrap();
    // By the metric ours is the better one; the judge decides nothing.
    assert_eq!(code(&output), 0, "{}", said(&output));

    let bodies = asked.lock().unwrap().clone();
    // Of the same two answers both orders are one request, and asked once.
    let same = (0..N).filter(|i| ours(*i) == rented(*i)).count();
    assert_eq!(bodies.len(), 2 * N - same);
    let first = &bodies[0];
    assert_eq!((&first["model"], &first["temperature"]), (&json!("judge-1"), &json!(0)), "{first}");
    let form = &first["response_format"];
    assert_eq!(
        (&form["type"], &form["json_schema"]["strict"]),
        (&json!("json_schema"), &json!(true))
    );
    let schema = &form["json_schema"]["schema"];
    assert_eq!(schema["properties"]["better"]["enum"], json!(["1", "2", "tie"]));

    let judgement = report(&at)["judgements"][0].clone();
    // Twelve questions whose first answer is taken whatever it is: both orders disagree, a tie each. The two
    // games without JSON are a tie as well.
    let outcome = |i: usize| match i {
        _ if i % 10 == 5 || i == 7 => 0.5,
        _ => match better(i) {
            "a" => 0.0,
            "b" => 1.0,
            _ => 0.5,
        },
    };
    let expected: Vec<f64> = (0..N).map(outcome).collect();
    assert_eq!(judgement["results"], json!(expected));
    let rate = expected.iter().sum::<f64>() / N as f64;
    assert!((judgement["win_rate"].as_f64().unwrap() - rate).abs() < 1e-12, "{judgement}");
    assert_eq!((&judgement["position_flips"], &judgement["failed"]), (&json!(0.1), &json!(2)));
    let agreement = &judgement["agreement"];
    assert_eq!(agreement["n"], N);
    let same = (0..N)
        .filter(|&i| {
            outcome(i)
                == [0.0, 0.5, 1.0][["a", "tie", "b"].iter().position(|b| *b == better(i)).unwrap()]
        })
        .count();
    assert_eq!(agreement["agreement"].as_f64().unwrap(), same as f64 / N as f64);
    let kappa = agreement["kappa"].as_f64().unwrap();
    assert!(kappa > 0.5 && kappa < agreement["agreement"].as_f64().unwrap(), "{agreement}");
    assert_eq!(judgement["warnings"], json!([]));

    // What was said is kept without the key, and asked of nobody again.
    let records = std::fs::read_to_string(at.join("proof/records/judge.jsonl")).unwrap();
    assert_eq!(records.lines().count(), bodies.len());
    assert!(!records.contains("sk-of-the-judge"));
    server.abort();
    let dir_of = at.clone();
    let again = tokio::task::spawn_blocking(move || prove(&dir_of)).await.unwrap();
    assert_eq!(code(&again), 0, "{}", said(&again));
    assert_eq!(report(&at)["judgements"][0], judgement);
    assert_eq!(asked.lock().unwrap().len(), bodies.len());
    let output = metier(&at, &["verify", "proof/report.json"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
}
