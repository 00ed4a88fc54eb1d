//! The binary as a server: started, asked over HTTP, stopped by a signal; and the commands that look at
//! what it has written down.
#![cfg(unix)]

mod common;

use common::serving::{METIER, Serving, adapter, metier, nano};
use common::shared;
use model::{Decoder, LoadOptions};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;
use text::Tokenizer;
use train::{Method, Objective, TrainPlan, TrainStatus};

fn metier_json(state: &TempDir, args: &[&str]) -> Value {
    serde_json::from_str(&metier(state, args)).unwrap()
}

fn question(text: &str, max_tokens: usize) -> Value {
    json!({"model": "nano", "messages": [{"role": "user", "content": text}],
           "max_tokens": max_tokens, "temperature": 0})
}

const CHAT: &str = "/chat/completions";

/// Real weights with a SentencePiece tokenizer, which writes a space before every word: the
/// continuation begins with the one that parts it from the prompt.
#[tokio::test]
async fn a_completion_goes_on_where_the_prompt_ends() {
    let Some(folder) = shared("models/stories260K/hf") else { return };
    let prompt = "Once upon a time,";
    let output = Command::new(METIER)
        .args(["generate", "--model", folder.to_str().unwrap(), "--prompt", prompt])
        .args(["--max-tokens", "24", "--temperature", "0"])
        .output()
        .unwrap();
    let generated = String::from_utf8(output.stdout).unwrap();

    let mut server = Serving::start(&folder);
    let body =
        json!({"model": "hf", "prompt": prompt, "max_tokens": 24, "temperature": 0, "echo": true});
    let echoed = server.post("/completions", body.clone()).await;
    assert_eq!(echoed["choices"][0]["text"], format!("{prompt}{generated}"));
    let mut alone = body;
    alone["echo"] = json!(false);
    assert_eq!(server.post("/completions", alone).await["choices"][0]["text"], generated);
    assert!(generated.starts_with(" there was"), "{generated}");
    assert!(server.terminate().success());
}

#[tokio::test]
async fn keys_close_a_running_server_at_once() {
    let mut server = Serving::start(Path::new("nano"));
    let state = Arc::clone(&server.state);
    let ask = question("Hello", 4);
    server.post(CHAT, ask.clone()).await;
    let key = metier(&state, &["keys", "create", "--name", "ann", "--adapter", "nano"]);
    assert!(key.starts_with("mk-") && key.trim().len() == 67, "{key}");
    assert_eq!(server.try_post(CHAT, &ask).await.unwrap().0, 401);
    server.key = Some(key.trim().to_owned());
    server.post(CHAT, ask.clone()).await;
    let made = metier_json(
        &state,
        &[
            "keys",
            "create",
            "--name",
            "bob",
            "--adapter",
            "other",
            "--expires",
            "2999-12-31",
            "--requests-per-minute",
            "9",
            "--store-contents",
            "--json",
        ],
    );
    assert_eq!((&made["name"], &made["retention_days"]), (&json!("bob"), &json!(30)));
    server.key = Some(made["key"].as_str().unwrap().to_owned());
    assert_eq!(server.try_post(CHAT, &ask).await.unwrap().0, 404, "not one of its models");

    let list = metier_json(&state, &["keys", "list", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert!(list[0].get("key").is_none() && list[0].get("sha256").is_none(), "{list}");
    let table = metier(&state, &["keys", "list"]);
    assert!(table.contains("2999-12-31") && table.contains("30 days"), "{table}");
    metier(&state, &["keys", "revoke", "ann"]);
    server.key = Some(key.trim().to_owned());
    assert_eq!(server.try_post(CHAT, &ask).await.unwrap().0, 401);
    let again = Command::new(METIER)
        .args(["keys", "revoke", "ann"])
        .env("METIER_STATE", state.path())
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(1));

    let usage = metier_json(&state, &["usage", "--json"]);
    let shown: Vec<String> = usage["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| format!("{} {}", row["group"].as_str().unwrap(), row["requests"]))
        .collect();
    assert_eq!(shown, ["(no key) 1", "ann 1"]);
    let table = metier(&state, &["usage", "--by", "adapter"]);
    assert!(table.contains("nano"), "{table}");
    assert!(server.terminate().success());
}

/// Whatever was answered before the kill is in the books after it, and so is whatever feedback was
/// taken: both are committed before anybody is told.
#[tokio::test]
async fn what_was_accepted_survives_a_kill() {
    let state = Arc::new(tempfile::tempdir().unwrap());
    let key = metier(&state, &["keys", "create", "--name", "ann", "--store-contents"]);
    let mut server = Serving::start_with(Arc::clone(&state), Path::new("nano"), &[]);
    server.key = Some(key.trim().to_owned());
    let (answered, corrected) = (AtomicU64::new(0), AtomicU64::new(0));
    let client = |number: usize| {
        let (server, answered, corrected) = (&server, &answered, &corrected);
        async move {
            for turn in 0.. {
                let text = format!("Question {number} of turn {turn}: how are you?");
                let asked = server.try_post(CHAT, &question(&text, 3)).await;
                let Some((200, answer)) = asked else { return };
                answered.fetch_add(1, Ordering::SeqCst);
                let better = format!("Answer {number} {turn}");
                let feedback = json!({"id": answer["id"], "rating": "up", "correction": better});
                let Some((200, _)) = server.try_post("/feedback", &feedback).await else { return };
                if corrected.fetch_add(1, Ordering::SeqCst) == 20 {
                    server.signal("-KILL");
                }
            }
        }
    };
    futures_util::future::join_all((0..6).map(client)).await;
    server.child.wait().unwrap();
    let (answered, corrected) = (answered.into_inner(), corrected.into_inner());
    assert!(corrected > 20 && answered >= corrected);

    let usage = metier_json(&state, &["usage", "--json"]);
    let written = usage["rows"][0]["requests"].as_u64().unwrap();
    assert!(written >= answered, "{answered} were answered, {written} are in the books");
    let out = state.path().join("harvest.jsonl");
    let out = out.to_str().unwrap();
    let test = state.path().join("test.jsonl");
    let sealed = "Question 0 of turn 0: how are you?";
    let row = json!({"messages": [{"role": "user", "content": sealed},
                                  {"role": "assistant", "content": "Sealed."}]});
    std::fs::write(&test, row.to_string()).unwrap();
    let all = metier_json(&state, &["data", "harvest", "--out", out, "--json"]);
    let kept = all["corrected"].as_u64().unwrap();
    assert!(kept >= corrected, "{corrected} corrections were taken, {kept} are kept");
    let lines = std::fs::read_to_string(out).unwrap();
    assert_eq!(lines.lines().count() as u64, all["taken"].as_u64().unwrap());
    assert!(lines.contains("Answer 0 0"), "{lines}");

    let test = ["--test", test.to_str().unwrap()];
    let clean = metier(&state, &["data", "harvest", "--out", out, test[0], test[1]]);
    assert!(clean.contains("too near to a question of the test set"), "{clean}");
    assert!(!std::fs::read_to_string(out).unwrap().contains(sealed));
    // What was harvested is data like any other.
    metier(&state, &["data", "check", out, "--json"]);

    // And the file serves again.
    let mut server = Serving::start_with(Arc::clone(&state), Path::new("nano"), &[]);
    server.key = Some(key.trim().to_owned());
    server.post(CHAT, question("Again", 2)).await;
    assert!(server.terminate().success());
}

#[tokio::test]
async fn a_hangup_reads_the_settings_again() {
    let state = Arc::new(tempfile::tempdir().unwrap());
    let config = state.path().join("metier.toml");
    let write = |limit: &str| {
        let cost = "[cost]\ncurrency = 'EUR'\ninput_per_mtok = 1.0\noutput_per_mtok = 1000000.0\n";
        std::fs::write(&config, format!("[serve]\nmax_choices = {limit}\n{cost}")).unwrap();
    };
    write("1");
    let flags = ["--config", config.to_str().unwrap()];
    let mut server = Serving::start_with(Arc::clone(&state), Path::new("nano"), &flags);
    let mut two = question("Hello", 2);
    two["n"] = json!(2);
    assert_eq!(server.try_post(CHAT, &two).await.unwrap().0, 400);
    write("2");
    server.signal("-HUP");
    while server.try_post(CHAT, &two).await.unwrap().0 != 200 {}
    // A file with a mistake changes nothing.
    write("'many'");
    server.signal("-HUP");
    server.post(CHAT, two).await;
    let by_day = ["usage", "--by", "day", "--config", flags[1], "--json"];
    let usage = metier_json(&state, &by_day);
    let row = &usage["rows"][0];
    let tokens = row["completion_tokens"].as_f64().unwrap();
    assert!(row["cost"].as_f64().unwrap() >= tokens, "{usage}");
    let none = metier_json(&state, &["usage", "--to", "2001-01-01", "--json"]);
    assert_eq!(none["rows"], json!([]));
    assert!(server.terminate().success());
}

/// A model that guesses changes no answer; one of another tokenizer is refused.
#[tokio::test]
async fn a_draft_model_guesses() {
    let ask = async |flags: &[&str]| {
        let state = Arc::new(tempfile::tempdir().unwrap());
        let mut server = Serving::start_with(state, Path::new("nano"), flags);
        let answer = server.post(CHAT, question("Tell me about the sea.", 40)).await;
        assert!(server.terminate().success());
        (answer["choices"][0]["message"]["content"].clone(), answer["usage"].clone())
    };
    let alone = ask(&["--num-speculative-tokens", "0"]).await;
    assert_eq!(ask(&["--draft-model", "nano"]).await, alone);
    let short = ["--draft-model", "nano", "--kv-cache-dtype", "q8"];
    assert_eq!(ask(&short).await.1["completion_tokens"].as_u64().map(|n| n > 0), Some(true));

    // Two tokens of the same length, one for the other.
    let other = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(nano()).unwrap() {
        let file = file.unwrap();
        std::os::unix::fs::symlink(
            file.path().canonicalize().unwrap(),
            other.path().join(file.file_name()),
        )
        .unwrap();
    }
    let path = other.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let [x, y] = ["x", "y"].map(|token| vocabulary[token].clone());
    (vocabulary["x"], vocabulary["y"]) = (y, x);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let mut command = Command::new(METIER);
    command.args(["serve", "--model", "nano", "--draft-model"]).arg(other.path());
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("must have the same tokenizer"), "{said}");
}

/// METIER_TEST_LM_EVAL names a Python that has the package lm_eval and what it needs to ask a server; it is
/// some 900 MB, so `.ci/run` does not install it.
#[tokio::test]
async fn the_evaluation_harness_is_served() {
    let python = std::env::var("METIER_TEST_LM_EVAL").unwrap_or_default();
    if python.is_empty() {
        eprintln!(
            "SKIPPED: lm-evaluation-harness; set METIER_TEST_LM_EVAL to a Python that has \
             lm-eval[api] and transformers (scripts/check_lm_eval.py says how)"
        );
        return;
    }
    let mut server = Serving::start(Path::new("nano"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/check_lm_eval.py");
    let mut command = Command::new(python);
    // The address without the version.
    command.arg(script).args(["--url", server.url.trim_end_matches("/v1")]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{shown}");
    assert!(output.status.success(), "{shown}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(shown.contains("PASS local-chat-completions"), "{shown}");
    assert!(server.terminate().success());
}

/// `bench serve` asks as any client does, and counts what comes.
#[tokio::test]
async fn a_running_server_is_measured() {
    let state = Arc::new(tempfile::tempdir().unwrap());
    let mut server = Serving::start_with(Arc::clone(&state), Path::new("nano"), &[]);
    let key = metier(&state, &["keys", "create", "--name", "bench"]);
    let bench = |arguments: &str, key: &str| {
        let mut command = Command::new(METIER);
        command.args(["bench", "serve", "--json", "--url", &server.url]);
        command.args(["--api-key-env", "BENCH_KEY"]).env("BENCH_KEY", key);
        command.args(arguments.split_whitespace()).output().unwrap()
    };
    let loads = ["--concurrency 3 --prompt-vocab 2000", "--rate 50 --chat"];
    for load in loads {
        let lengths = "--requests 6 --input-tokens 8 --output-tokens 4 --ignore-eos";
        let output = bench(&format!("{load} {lengths} --goodput e2el:600000"), key.trim());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&found["requests"], &found["failed"]), (&json!(6), &json!(0)), "{found}");
        assert_eq!(found["completion_tokens"], 24);
        assert_eq!(found["prompt_tokens"] == 48, load == loads[0], "ids are exact: {found}");
        assert_eq!(found["goodput"], found["request_throughput"]);
        for spread in ["ttft_ms", "e2e_ms"] {
            let [p50, p99] = ["p50", "p99"].map(|p| found[spread][p].as_f64().unwrap());
            assert!(0.0 < p50 && p50 <= p99, "{found}");
        }
    }
    let output = bench("--requests 2 --serve-model nano", "mk-wrong");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("401"), "{output:?}");
    assert!(server.terminate().success());
}

/// The binary reads, checks and probes adapters, at the start and later.
#[tokio::test]
async fn adapters_are_checked_and_probed_before_they_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| dir.path().join(name);
    let base = Decoder::load(&nano(), &LoadOptions::default()).unwrap();
    let acts = |seed: usize| move |i: usize| ((i * 31 + seed * 17) % 97) as f32 / 97.0 - 0.5;
    adapter(&base, &folder("one"), acts(1));
    adapter(&base, &folder("two"), acts(2));
    adapter(&base, &folder("zero"), |_| 0.0);
    adapter(&base, &folder("huge"), |_| 1e30);
    // The manifest of a training on another base, beside weights that fit.
    adapter(&base, &folder("other"), acts(3));
    let tokenizer = Tokenizer::from_dir(&nano()).unwrap();
    let plan = TrainPlan::new(Method::Lora, Objective::Sft, base.config());
    let manifest = json!({
        "schema_version": 1, "metier_version": "0", "base_name": "another", "base_sha256": "00",
        "base_licence": "", "data_files": [], "data_licences": [], "data_sha256": "",
        "tokenizer_sha256": tokenizer.sha256(),
        "chat_template_sha256": "", "plan_sha256": "", "plan": plan,
        "status": TrainStatus::Completed, "steps": 1, "saved_step": 1, "tokens": 1,
        "supervised_tokens": 1, "seconds": 1.0, "train_loss": 1.0, "held_out_before": null,
        "held_out": null, "best": null,
    });
    std::fs::write(folder("other/metier_manifest.json"), manifest.to_string()).unwrap();

    let state = Arc::new(tempfile::tempdir().unwrap());
    let (one, all) = (format!("one={}", folder("one").display()), dir.path().to_str().unwrap());
    let mut server = Serving::start_with(
        Arc::clone(&state),
        Path::new("nano"),
        &["--adapter", &one, "--pin", "one", "--adapter-dir", all],
    );
    let load = |path: &str| json!({"lora_name": path, "lora_path": path});
    assert!(server.send("/load_lora_adapter", &load("two")).await.status().is_success());
    for (path, reason) in
        [("zero", "does nothing"), ("huge", "a logit is"), ("other", "its manifest names 00")]
    {
        let response = server.send("/load_lora_adapter", &load(path)).await;
        assert_eq!(response.status(), 400, "{path}");
        let error = response.text().await.unwrap();
        assert!(error.contains(reason), "{error}");
    }
    let mut texts = Vec::new();
    for model in ["nano", "one", "two"] {
        let body = json!({"model": model, "prompt": "The", "max_tokens": 8, "temperature": 0});
        texts.push(server.post("/completions", body).await["choices"][0]["text"].clone());
    }
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    assert!(server.terminate().success());

    let zero = format!("zero={}", folder("zero").display());
    for (arguments, reason) in [
        (vec!["--adapter", &zero], "does nothing"),
        (vec!["--adapter", &one, "--pin", "two"], "--pin two"),
        (vec!["--adapter-dir", "no/such/folder"], "expected a folder that holds adapters"),
    ] {
        let mut command = Command::new(METIER);
        command.args(["serve", "--port", "0"]).args(arguments).env("METIER_STATE", state.path());
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(reason), "{error}");
    }
}

/// The lines of a file by `metier embed`, and the same texts by a server, beside a base and alone.
#[tokio::test]
async fn an_encoder_embeds_beside_a_base_and_alone() {
    let bert = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/encoders/bert");
    let bert_arg = bert.to_str().unwrap();
    let state = Arc::new(tempfile::tempdir().unwrap());
    let texts = ["My boiler leaks", "a leak", "sky"];
    let file = state.path().join("texts.txt");
    std::fs::write(&file, texts.join("\n") + "\n").unwrap();
    let embed = ["embed", "--model", bert_arg, "--file", file.to_str().unwrap()];
    let lines = metier(&state, &embed);
    let expected: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(expected.len(), 3);
    let length: f64 = expected[0]["embedding"]
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap().powi(2))
        .sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");

    let body = |model: &str| json!({"model": model, "input": texts});
    let beside = ["--embedding-model", bert_arg];
    for (model, more) in [(Path::new("nano"), &beside[..]), (&bert, &[][..])] {
        let mut server = Serving::start_with(Arc::clone(&state), model, more);
        let answer = server.post("/embeddings", body("bert")).await;
        for (entry, expected) in answer["data"].as_array().unwrap().iter().zip(&expected) {
            assert_eq!(entry["index"], expected["index"]);
            assert_eq!(entry["embedding"], expected["embedding"]);
        }
        let (status, error) = server.try_post(CHAT, &with_model("bert")).await.unwrap();
        assert_eq!(status, 400, "{error}");
        if more.is_empty() {
            assert_eq!(server.try_post(CHAT, &question("a", 2)).await.unwrap().0, 404);
        } else {
            server.post(CHAT, question("a", 2)).await;
            // Any decoder embeds too.
            let own = server.post("/embeddings", body("nano")).await;
            assert_eq!(own["data"].as_array().unwrap().len(), 3);
        }
        assert!(server.terminate().success());
    }
    let usage = metier_json(&state, &["usage", "--by", "adapter", "--json"]);
    assert!(usage.to_string().contains("bert"), "{usage}");
}

fn with_model(name: &str) -> Value {
    let mut body = question("a", 2);
    body["model"] = json!(name);
    body
}
