//! One process under everything at once: good requests, whose answers must never change, beside clients
//! that go away in the middle, send garbage, load adapters that are none, exceed their limits or dawdle.
//! Memory must stay flat, and what was accepted must be there after `kill -9`.
//!
//! Runs for METIER_SOAK_SECONDS, 40 where nothing is said; an hour is
//! `METIER_SOAK_SECONDS=3600 cargo test --release -p metier --test soak -- --nocapture`.
#![cfg(target_os = "linux")]

mod common;

use common::serving::{Serving, adapter, metier, nano};
use futures_util::StreamExt;
use model::{Decoder, LoadOptions};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CHAT: &str = "/chat/completions";
const MODELS: [&str; 3] = ["nano", "one", "two"];
const QUESTIONS: [&str; 4] =
    ["Hello", "My washing machine leaks since Monday.", "Tell me about the sea.", "1 2 3 4 5"];
/// Growth of resident memory after the warm-up that is no leak: pages of caches touched for the first
/// time, and the allocator's fragments.
const ALLOWED_GROWTH: u64 = 8 << 20;
/// What a request may leave behind on average; less than the least thing that is kept for one.
const ALLOWED_PER_REQUEST: u64 = 512;

struct Soak {
    url: String,
    client: Client,
    keys: Keys,
    /// The answers of each model to each question, when nothing else ran.
    expected: Vec<Vec<String>>,
    stop: AtomicBool,
    counts: Counts,
}

struct Keys {
    good: String,
    poor: String,
    admin: String,
}

#[derive(Default)]
struct Counts {
    good: AtomicU64,
    answered: AtomicU64,
    corrected: AtomicU64,
    hung_up: AtomicU64,
    refused: AtomicU64,
    limited: AtomicU64,
    dawdled: AtomicU64,
    loaded: AtomicU64,
}

impl Counts {
    fn shown(&self) -> String {
        let shown =
            |name: &str, count: &AtomicU64| format!("{} {name}", count.load(Ordering::SeqCst));
        [
            shown("good", &self.good),
            shown("corrected", &self.corrected),
            shown("hung up", &self.hung_up),
            shown("refused", &self.refused),
            shown("limited", &self.limited),
            shown("dawdled", &self.dawdled),
            shown("loaded", &self.loaded),
        ]
        .join(", ")
    }

    fn all(&self) -> u64 {
        let counts = [
            &self.answered,
            &self.corrected,
            &self.hung_up,
            &self.refused,
            &self.limited,
            &self.loaded,
        ];
        counts.iter().map(|count| count.load(Ordering::SeqCst)).sum()
    }
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::SeqCst);
}

fn asked(model: &str, text: &str, max_tokens: usize) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}],
           "max_tokens": max_tokens, "temperature": 0})
}

impl Soak {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn request(&self, key: &str, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).bearer_auth(key).json(body)
    }

    /// Status and body; None when the server is gone, as it is at the end.
    async fn post(&self, key: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let response = self.request(key, path, body).send().await.ok()?;
        let status = response.status().as_u16();
        let text = response.text().await.ok()?;
        Some((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Asks what was asked before, streamed or not, and compares.
    async fn good(&self, seed: u64) -> Option<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        while self.goes_on() {
            let (m, q) = (rng.random_range(0..3usize), rng.random_range(0..4usize));
            let body = asked(MODELS[m], QUESTIONS[q], 12);
            let text = if rng.random_bool(0.5) {
                let (status, answer) = self.post(&self.keys.good, CHAT, &body).await?;
                assert_eq!(status, 200, "{answer}");
                answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
            } else {
                let mut body = body;
                body["stream"] = json!(true);
                let response = self.request(&self.keys.good, CHAT, &body).send().await.ok()?;
                assert_eq!(response.status(), 200);
                streamed(&response.text().await.ok()?)
            };
            assert_eq!(text, self.expected[m][q], "{} to {:?}", MODELS[m], QUESTIONS[q]);
            add(&self.counts.good);
            add(&self.counts.answered);
        }
        Some(())
    }

    /// Answers that are corrected; no two alike, so that each is found again.
    async fn corrects(&self) -> Option<()> {
        for turn in 0.. {
            if !self.goes_on() {
                break;
            }
            let body = asked("nano", &format!("Question of turn {turn}, and {}", turn * 7919), 3);
            let (status, answer) = self.post(&self.keys.good, CHAT, &body).await?;
            assert_eq!(status, 200, "{answer}");
            add(&self.counts.answered);
            let better = format!("Answer {turn}");
            let feedback = json!({"id": answer["id"], "rating": "up", "correction": better});
            let (status, answer) = self.post(&self.keys.good, "/feedback", &feedback).await?;
            assert_eq!(status, 200, "{answer}");
            add(&self.counts.corrected);
        }
        Some(())
    }

    /// Goes away in the middle of an answer, or before it.
    async fn hangs_up(&self, seed: u64) -> Option<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        while self.goes_on() {
            let mut body = asked(MODELS[rng.random_range(0..3usize)], "Go on and on", 200);
            body["ignore_eos"] = json!(true);
            body["stream"] = json!(rng.random_bool(0.7));
            let send = self.request(&self.keys.good, CHAT, &body).send();
            let patience = Duration::from_millis(rng.random_range(1..60));
            if let Ok(response) = tokio::time::timeout(patience, send).await {
                let mut stream = response.ok()?.bytes_stream();
                for _ in 0..rng.random_range(0..4) {
                    _ = tokio::time::timeout(patience, stream.next()).await;
                }
            }
            add(&self.counts.hung_up);
        }
        Some(())
    }

    /// Sends what is no request, or none that can be honoured; every answer is a refusal.
    async fn garbage(&self) -> Option<()> {
        let huge = "x".repeat(300_000);
        let deep = "[".repeat(50_000);
        let address = self.url.split('/').nth(2).expect("a host").to_owned();
        for turn in 0usize.. {
            if !self.goes_on() {
                break;
            }
            let mut raw = StdRng::seed_from_u64(turn as u64);
            let bytes: Vec<u8> = (0..200).map(|_| raw.random()).collect();
            let mut socket = TcpStream::connect(&address).await.ok()?;
            _ = socket.write_all(&bytes).await;
            _ = socket.shutdown().await;
            let mut answer = Vec::new();
            _ = socket.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));

            let text = |body: &str| {
                let request = self.client.post(format!("{}{CHAT}", self.url));
                let request = request.bearer_auth(&self.keys.good);
                request.header("content-type", "application/json").body(body.to_owned())
            };
            let chat = |change: Value| {
                let mut body = asked("nano", "Hello", 4);
                for (field, value) in change.as_object().expect("an object") {
                    body[field] = value.clone();
                }
                self.request(&self.keys.good, CHAT, &body)
            };
            let requests = [
                (text("{\"model\": "), 400),
                (text(&deep), 400),
                (text("{\"model\": \"\\ud800\"}"), 400),
                (text(&format!("{{\"model\": \"{huge}\"}}")), 413),
                (chat(json!({"temperature": "hot"})), 400),
                (chat(json!({"model": "nobody"})), 404),
                (chat(json!({"messages": [{"role": "user", "content": "x".repeat(60_000)}]})), 400),
                (
                    chat(json!({"response_format": {"type": "json_schema", "json_schema":
                    {"name": "n", "schema": {"type": "nothing"}}}})),
                    400,
                ),
                (chat(json!({})).header("x-large", "y".repeat(40_000)), 431),
                (self.request("mk-wrong", CHAT, &asked("nano", "Hello", 4)), 401),
                (self.request(&self.keys.good, "/nowhere", &json!({})), 404),
            ];
            for (number, (request, expected)) in requests.into_iter().enumerate() {
                let Ok(response) = request.send().await else {
                    // Too much may also be answered by the end of the connection.
                    if self.goes_on() && expected != 431 && expected != 413 {
                        panic!("request {number} has no answer");
                    }
                    continue;
                };
                assert_eq!(response.status(), expected, "request {number}");
                _ = response.text().await;
                add(&self.counts.refused);
            }
        }
        Some(())
    }

    /// Loads adapters, good ones and others, and takes the good ones away again.
    async fn loads(&self) -> Option<()> {
        let load = |path: &str| json!({"lora_name": path, "lora_path": path});
        while self.goes_on() {
            for (path, expected) in
                [("zero", 400), ("text", 400), ("cut", 400), ("../one", 400), ("none", 404)]
            {
                let (status, answer) =
                    self.post(&self.keys.admin, "/load_lora_adapter", &load(path)).await?;
                assert_eq!(status, expected, "{path}: {answer}");
                add(&self.counts.refused);
            }
            let (status, answer) =
                self.post(&self.keys.admin, "/load_lora_adapter", &load("three")).await?;
            assert_eq!(status, 200, "{answer}");
            let (status, answer) =
                self.post(&self.keys.good, CHAT, &asked("three", "Hello", 4)).await?;
            assert_eq!(status, 200, "{answer}");
            add(&self.counts.answered);
            let gone = json!({"lora_name": "three"});
            let (status, answer) =
                self.post(&self.keys.admin, "/unload_lora_adapter", &gone).await?;
            assert_eq!(status, 200, "{answer}");
            add(&self.counts.loaded);
        }
        Some(())
    }

    /// Asks more often than its key allows.
    async fn exceeds(&self) -> Option<()> {
        while self.goes_on() {
            let (status, answer) =
                self.post(&self.keys.poor, CHAT, &asked("nano", "Hello", 2)).await?;
            match status {
                200 => add(&self.counts.answered),
                429 => add(&self.counts.limited),
                _ => panic!("{status} {answer}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(())
    }

    /// Sends a letter now and then until it is thrown out.
    async fn dawdles(&self) -> Option<()> {
        let address = self.url.split('/').nth(2).expect("a host").to_owned();
        while self.goes_on() {
            let mut socket = TcpStream::connect(&address).await.ok()?;
            _ = socket
                .write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                .await;
            let mut byte = [0];
            while self.goes_on() {
                let pause = Duration::from_millis(100);
                match tokio::time::timeout(pause, socket.read(&mut byte)).await {
                    // Closed, or a first letter of a refusal.
                    Ok(_) => break,
                    Err(_) => _ = socket.write_all(b"y").await,
                }
            }
            add(&self.counts.dawdled);
        }
        Some(())
    }
}

/// The text of a stream's chunks.
fn streamed(body: &str) -> String {
    assert!(body.trim_end().ends_with("data: [DONE]"), "{body}");
    (body.lines().filter_map(|line| line.strip_prefix("data: ")))
        .filter_map(|data| serde_json::from_str::<Value>(data).ok())
        .filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect()
}

/// Resident memory, bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("a number") << 10
}

/// The largest of ten looks at resident memory within a second.
async fn most_resident(pid: u32) -> u64 {
    let mut most = 0;
    for _ in 0..10 {
        most = most.max(resident(pid));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    most
}

fn adapters(folder: &Path) {
    let base = Decoder::load(&nano(), &LoadOptions::default()).expect("the bundled base");
    let acts = |seed: usize| move |i: usize| ((i * 31 + seed * 17) % 97) as f32 / 97.0 - 0.5;
    for (seed, name) in ["one", "two", "three", "cut"].into_iter().enumerate() {
        adapter(&base, &folder.join(name), acts(seed));
    }
    adapter(&base, &folder.join("zero"), |_| 0.0);
    std::fs::create_dir(folder.join("text")).expect("a folder");
    std::fs::write(folder.join("text/adapter_config.json"), "no JSON").expect("written");
    let weights = folder.join("cut/adapter_model.safetensors");
    let bytes = std::fs::read(&weights).expect("written");
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_bears_everything_at_once() {
    let seconds = std::env::var("METIER_SOAK_SECONDS").map_or(40, |s| s.parse().expect("seconds"));
    let state = Arc::new(tempfile::tempdir().expect("a folder"));
    let folder = tempfile::tempdir().expect("a folder");
    adapters(folder.path());
    let config = state.path().join("metier.toml");
    let settings = "[serve]\nheader_timeout_seconds = 2\nmax_body_bytes = 200000\n";
    std::fs::write(&config, settings).expect("written");
    let key = |state: &TempDir, more: &[&str]| {
        metier(state, &[&["keys", "create"], more].concat()).trim().to_owned()
    };
    let keys = Keys {
        good: key(&state, &["--name", "good", "--store-contents"]),
        poor: key(&state, &["--name", "poor", "--requests-per-minute", "2"]),
        admin: key(&state, &["--name", "admin", "--admin"]),
    };
    let named = |name: &str| format!("{name}={}", folder.path().join(name).display());
    let (one, two) = (named("one"), named("two"));
    let dir = folder.path().to_str().expect("a path");
    let arguments = [
        "--config",
        config.to_str().expect("a path"),
        "--adapter",
        &one,
        "--adapter",
        &two,
        "--adapter-dir",
        dir,
        "--kv-cache-mib",
        "8",
        "--max-num-seqs",
        "8",
    ];
    let mut server = Serving::start_with(Arc::clone(&state), Path::new("nano"), &arguments);
    let mut soak = Soak {
        url: server.url.clone(),
        client: Client::new(),
        keys,
        expected: Vec::new(),
        stop: AtomicBool::new(false),
        counts: Counts::default(),
    };
    for model in MODELS {
        let mut texts = Vec::new();
        for question in QUESTIONS {
            let asked = asked(model, question, 12);
            let (_, answer) = soak.post(&soak.keys.good, CHAT, &asked).await.expect("an answer");
            let text = answer["choices"][0]["message"]["content"].as_str();
            texts.push(text.unwrap_or_else(|| panic!("{answer}")).to_owned());
            add(&soak.counts.answered);
        }
        soak.expected.push(texts);
    }
    assert!(soak.expected[0] != soak.expected[1] && soak.expected[1] != soak.expected[2]);

    let soak = Arc::new(soak);
    let mut clients = tokio::task::JoinSet::new();
    macro_rules! client {
        ($method:ident $(, $argument:expr)*) => {{
            let soak = Arc::clone(&soak);
            // Where one breaks off, the server is gone; before the end that is a failure.
            clients.spawn(async move {
                let done = soak.$method($($argument),*).await;
                assert!(done.is_some() || !soak.goes_on(), concat!(stringify!($method), ": no answer"));
            });
        }};
    }
    for seed in 0..3 {
        client!(good, seed);
        client!(dawdles);
    }
    client!(hangs_up, 10);
    client!(hangs_up, 11);
    client!(corrects);
    client!(garbage);
    client!(loads);
    client!(exceeds);

    let started = Instant::now();
    let pid = server.child.id();
    let until = |part: f64| {
        let end = Duration::from_secs_f64(seconds as f64 * part);
        tokio::time::sleep(end.saturating_sub(started.elapsed()))
    };
    until(0.4).await;
    let (before, requests) = (most_resident(pid).await, soak.counts.all());
    until(0.95).await;
    let (after, requests) = (most_resident(pid).await, soak.counts.all() - requests);
    println!(
        "{seconds} s: {}; resident {:.1} MiB after the warm-up, {:.1} MiB {requests} requests later",
        soak.counts.shown(),
        before as f64 / (1 << 20) as f64,
        after as f64 / (1 << 20) as f64
    );
    // A client that found something wrong has ended by now.
    if let Some(ended) = clients.try_join_next() {
        ended.expect("a client found something wrong");
        panic!("a client ended before the end");
    }
    let allowed = ALLOWED_GROWTH + ALLOWED_PER_REQUEST * requests;
    assert!(after <= before + allowed, "memory grew from {before} to {after} bytes");
    // In the middle of it all.
    soak.stop.store(true, Ordering::SeqCst);
    server.signal("-KILL");
    server.child.wait().expect("it has ended");
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client found something wrong");
    }
    // So little that a busy machine gets there as well.
    let counts = &soak.counts;
    for count in
        [&counts.good, &counts.corrected, &counts.hung_up, &counts.refused, &counts.limited]
    {
        assert!(count.load(Ordering::SeqCst) > 3, "{}", counts.shown());
    }
    for count in [&counts.loaded, &counts.dawdled] {
        assert!(count.load(Ordering::SeqCst) > 0, "{}", counts.shown());
    }

    let usage: Value = serde_json::from_str(&metier(&state, &["usage", "--json"])).expect("JSON");
    let rows = usage["rows"].as_array().expect("rows");
    let written: u64 = rows.iter().filter_map(|row| row["requests"].as_u64()).sum();
    let answered = soak.counts.answered.load(Ordering::SeqCst);
    assert!(written >= answered, "{answered} were answered, {written} are in the books");
    let out = state.path().join("harvest.jsonl");
    let harvest = ["data", "harvest", "--out", out.to_str().expect("a path"), "--json"];
    let all: Value = serde_json::from_str(&metier(&state, &harvest)).expect("JSON");
    let harvested = std::fs::read_to_string(&out).expect("written");
    let corrected = soak.counts.corrected.load(Ordering::SeqCst);
    for turn in 0..corrected {
        assert!(harvested.contains(&format!("\"Answer {turn}\"")), "{turn} of {corrected}: {all}");
    }

    let mut server = Serving::start_with(Arc::clone(&state), Path::new("nano"), &arguments);
    server.key = Some(soak.keys.good.clone());
    let answer = server.post(CHAT, asked("two", QUESTIONS[1], 12)).await;
    assert_eq!(answer["choices"][0]["message"]["content"], soak.expected[2][1].as_str());
    assert!(server.terminate().success());
}
