//! Adapters that come and go while the server runs: loading, unloading, tiers, and folders that lie.

mod common;

use common::{MODELS, TestServer, adapter, chat, error_of, load, roomy, save, with};
use engine::EngineOptions;
use futures_util::StreamExt;
use futures_util::future::join_all;
use model::LoraAdapter;
use serde_json::{Value, json};
use serve::ServePlan;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

const CHAT: &str = "/v1/chat/completions";
const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";
/// Adapters that the test server has from the start.
const STATIC: usize = MODELS.len() - 1;

/// A server that loads from `dir`, with room for `free` adapters beside the static ones.
async fn serving(dir: &Path, free: usize) -> TestServer {
    TestServer::start_with(plan(dir, free), roomy()).await
}

fn plan(dir: &Path, free: usize) -> ServePlan {
    ServePlan {
        adapter_dirs: vec![dir.to_owned()],
        max_loaded_adapters: STATIC + free,
        ..ServePlan::default()
    }
}

async fn loaded(server: &TestServer, name: &str, path: &str, more: Value) {
    let body = with(json!({"lora_name": name, "lora_path": path}), more);
    let response = server.post(LOAD, &body).await;
    let status = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(status, 200, "{text}");
    assert_eq!(text, format!("Success: LoRA adapter '{name}' added successfully."));
}

async fn unloaded(server: &TestServer, name: &str) {
    let response = server.post(UNLOAD, &json!({"lora_name": name})).await;
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    assert_eq!(text, format!("Success: LoRA adapter '{name}' removed successfully."));
}

async fn says(server: &TestServer, model: &str) -> String {
    let answer = server.ok(CHAT, &chat(model, "hello", 24)).await;
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

async fn card(server: &TestServer, model: &str) -> Value {
    server.get(&format!("/v1/models/{model}")).await.json().await.unwrap()
}

/// Which of `names` are in memory.
async fn in_memory(server: &TestServer, names: &[&str]) -> Vec<bool> {
    let cards = join_all(names.iter().map(|name| card(server, name))).await;
    cards.iter().map(|card| card["loaded"].as_bool().unwrap()).collect()
}

fn endless(model: &str) -> Value {
    with(chat(model, "go on", common::CONTEXT), json!({"stream": true, "ignore_eos": true}))
}

#[tokio::test]
async fn an_adapter_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    save(&adapter(7), &dir.path().join("seven"));
    // The same values as an adapter that is there from the start: the answers must be equal.
    save(&adapter(0), &dir.path().join("as-red"));
    let server = serving(dir.path(), 2).await;
    loaded(&server, "new", "seven", json!({})).await;
    let full = dir.path().join("as-red").to_str().unwrap().to_owned();
    loaded(&server, "rouge", &full, json!({"pinned": true})).await;
    assert_eq!(says(&server, "rouge").await, says(&server, "red").await);
    let answer = says(&server, "new").await;
    for model in MODELS {
        assert_ne!(says(&server, model).await, answer, "{model}");
    }
    let new = card(&server, "new").await;
    let expected = json!({"parent": "base", "adapter_digest": adapter(7).digest(), "loaded": true,
                          "pinned": false, "max_model_len": common::CONTEXT});
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(new[field], *value, "{field}");
    }
    assert_eq!(card(&server, "rouge").await["pinned"], true);
    let base = card(&server, "base").await;
    assert_eq!((&base["parent"], &base["adapter_digest"]), (&Value::Null, &Value::Null));

    unloaded(&server, "new").await;
    let (status, error) = server.refused(CHAT, &chat("new", "hello", 5)).await;
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")));
    let (status, error) = server.refused(UNLOAD, &json!({"lora_name": "new"})).await;
    assert_eq!((status, &error["param"]), (404, &json!("lora_name")));
    let (status, error) = server.refused(UNLOAD, &json!({"lora_name": "base"})).await;
    assert_eq!((status, &error["param"]), (400, &json!("lora_name")));
    // The slot and the name are free again, and what comes into them is another adapter.
    loaded(&server, "new", "as-red", json!({})).await;
    assert_eq!(says(&server, "new").await, says(&server, "red").await);
}

#[tokio::test]
async fn what_runs_while_it_is_unloaded_or_replaced_ends_as_it_began() {
    let dir = tempfile::tempdir().unwrap();
    save(&adapter(7), &dir.path().join("seven"));
    save(&adapter(8), &dir.path().join("eight"));
    let server = serving(dir.path(), 3).await;
    loaded(&server, "x", "seven", json!({})).await;
    let long = with(chat("x", "hello", 1500), json!({"ignore_eos": true}));
    let alone = server.ok(CHAT, &long).await["choices"].clone();
    for change in ["unload", "replace"] {
        let posting = server.client.post(format!("{}{CHAT}", server.url)).json(&long).send();
        let running = tokio::spawn(async { posting.await.unwrap().json::<Value>().await.unwrap() });
        server.wait_until("running", 1).await;
        match change {
            "unload" => {
                unloaded(&server, "x").await;
                assert_eq!(server.refused(CHAT, &chat("x", "hello", 5)).await.0, 404);
                // Its slot is still taken: the next one must not get it.
                loaded(&server, "y", "eight", json!({})).await;
                assert_ne!(says(&server, "y").await, "");
            }
            _ => {
                let eight = says(&server, "y").await;
                loaded(&server, "x", "eight", json!({"load_inplace": true})).await;
                assert_eq!(says(&server, "x").await, eight);
            }
        }
        assert_eq!(running.await.unwrap()["choices"], alone, "{change}");
        if change == "unload" {
            loaded(&server, "x", "seven", json!({})).await;
        }
    }
    let body = json!({"lora_name": "x", "lora_path": "seven"});
    let (status, error) = server.refused(LOAD, &body).await;
    assert_eq!((status, &error["param"]), (400, &json!("lora_name")));
    assert!(error["message"].as_str().unwrap().contains("load_inplace"), "{error}");
    // What is bad does not replace what is good.
    let before = says(&server, "x").await;
    let body = json!({"lora_name": "x", "lora_path": "nine", "load_inplace": true});
    assert_eq!(server.refused(LOAD, &body).await.0, 404);
    assert_eq!(says(&server, "x").await, before);
}

#[tokio::test]
async fn adapters_give_way_in_the_order_of_their_last_requests() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 10..14 {
        save(&adapter(seed), &dir.path().join(format!("a{seed}")));
    }
    let server = serving(dir.path(), 2).await;
    loaded(&server, "a10", "a10", json!({})).await;
    loaded(&server, "a11", "a11", json!({})).await;
    let names = ["a10", "a11", "a12"];
    let first = says(&server, "a10").await;
    // a11 was asked for longest ago.
    loaded(&server, "a12", "a12", json!({})).await;
    assert_eq!(in_memory(&server, &names).await, [true, false, true]);
    let digest = card(&server, "a11").await["adapter_digest"].clone();
    assert_eq!(digest, adapter(11).digest(), "known on disk too");
    // A request brings it back, and a10 goes.
    let second = says(&server, "a11").await;
    assert_eq!(in_memory(&server, &names).await, [false, true, true]);
    assert_ne!(first, second);
    assert_eq!(says(&server, "a10").await, first, "the same after a while on disk");
    // Eight at once for two places, and all are answered as alone.
    let answers = join_all((0..8).map(|i| says(&server, names[i % 2]))).await;
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, [&first, &second][i % 2].as_str());
    }

    // What is at work stays, and so does what is pinned.
    let streams =
        [server.post(CHAT, &endless("a10")).await, server.post(CHAT, &endless("a11")).await];
    server.wait_until("running", 2).await;
    let refused = server.post(CHAT, &chat("a12", "hello", 5)).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let (status, error) = error_of(refused).await;
    assert_eq!((status, &error["code"]), (429, &json!("adapters_busy")));
    drop(streams);
    server.wait_until("running", 0).await;
    for name in ["a10", "a11"] {
        unloaded(&server, name).await;
        loaded(&server, name, name, json!({"pinned": true})).await;
    }
    let (status, error) = server.refused(CHAT, &chat("a12", "hello", 5)).await;
    assert_eq!((status, &error["code"]), (503, &json!("adapters_full")));
    assert!(error["message"].as_str().unwrap().contains("5 pinned"), "{error}");
    let (status, _) = server.refused(LOAD, &json!({"lora_name": "a13", "lora_path": "a13"})).await;
    assert_eq!(status, 503);
    // One that is pinned can be replaced in its own place.
    loaded(&server, "a10", "a13", json!({"load_inplace": true})).await;
    assert_eq!(in_memory(&server, &["a10", "a11"]).await, [true, true]);
    assert_eq!(says(&server, "a12").await, says(&server, "a12").await, "a10 is not pinned now");
}

#[tokio::test]
async fn the_byte_budget_holds_too() {
    let dir = tempfile::tempdir().unwrap();
    for seed in [10, 11] {
        save(&adapter(seed), &dir.path().join(format!("a{seed}")));
    }
    let one = load("x", &dir.path().join("a10"), 0).unwrap().packed.bytes();
    for (budget, expected) in
        [(one - 1, None), (2 * one - 1, Some([false, true])), (2 * one, Some([true, true]))]
    {
        let plan = ServePlan { max_adapter_bytes: budget, ..plan(dir.path(), 9) };
        let server = TestServer::start_with(plan, roomy()).await;
        let Some(expected) = expected else {
            let body = json!({"lora_name": "a10", "lora_path": "a10"});
            let (status, error) = server.refused(LOAD, &body).await;
            assert_eq!((status, &error["code"]), (400, &json!("adapter_refused")));
            assert!(error["message"].as_str().unwrap().contains("bytes in memory"), "{error}");
            continue;
        };
        loaded(&server, "a10", "a10", json!({})).await;
        loaded(&server, "a11", "a11", json!({})).await;
        assert_eq!(in_memory(&server, &["a10", "a11"]).await, expected);
    }
}

#[tokio::test]
async fn loading_stops_nobody_and_happens_once() {
    let dir = tempfile::tempdir().unwrap();
    for seed in [10, 11] {
        save(&adapter(seed), &dir.path().join(format!("a{seed}")));
    }
    // A disk that reads only when the test lets it.
    let (open, gate) = sync_channel::<()>(10);
    let gate = Mutex::new(gate);
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reads);
    let slow = move |name: &str, folder: &Path, most: usize| {
        counted.fetch_add(1, Ordering::SeqCst);
        gate.lock().unwrap().recv().map_err(|e| e.to_string())?;
        load(name, folder, most)
    };
    let server = TestServer::start_with_loader(plan(dir.path(), 1), roomy(), Arc::new(slow)).await;
    open.send(()).unwrap();
    loaded(&server, "a10", "a10", json!({})).await;
    open.send(()).unwrap();
    loaded(&server, "a11", "a11", json!({})).await;
    // a10 is on disk now. Five ask for it, and wait.
    let bodies = vec![chat("a10", "hello", 24); 5];
    let mut waiting: Vec<_> = bodies
        .iter()
        .map(|body| {
            let post = server.client.post(format!("{}{CHAT}", server.url)).json(body).send();
            tokio::spawn(async { post.await.unwrap().json::<Value>().await.unwrap() })
        })
        .collect();
    while reads.load(Ordering::SeqCst) < 3 {
        tokio::task::yield_now().await;
    }
    // Others are served meanwhile, a whole stream of them too.
    for model in MODELS {
        says(&server, model).await;
    }
    let body = with(chat("red", "hello", 200), json!({"stream": true}));
    assert!(server.stream(CHAT, &body).await.len() > 1);
    assert_eq!(server.health().await["waiting"], 0);
    // One of the five goes away: the others still get what they wait for.
    waiting.pop().unwrap().abort();
    open.send(()).unwrap();
    let mut answers = Vec::new();
    for answer in waiting {
        answers.push(answer.await.unwrap()["choices"].clone());
    }
    assert!(answers.iter().all(|a| *a == answers[0] && a[0]["message"].is_object()), "{answers:?}");
    assert_eq!(reads.load(Ordering::SeqCst), 3, "read once for all of them");
}

#[tokio::test]
async fn folders_that_lie_are_refused_and_disturb_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let below = dir.path().join("adapters");
    save(&adapter(10), &below.join("good"));
    save(&adapter(10), &outside.path().join("elsewhere"));
    let change = |name: &str, change: &dyn Fn(&mut LoraAdapter)| {
        let mut adapter = adapter(10);
        change(&mut adapter);
        save(&adapter, &below.join(name));
    };
    let fill = |a: bool, value: f32| {
        move |adapter: &mut LoraAdapter| {
            for m in adapter.modules().to_vec() {
                adapter.params[if a { m.a } else { m.b }].fill(value);
            }
        }
    };
    change("zero-a", &fill(true, 0.0));
    change("zero-b", &fill(false, 0.0));
    change("huge", &fill(false, f32::MAX));
    adapter(10).save(&below.join("other-base"), "x", &"0".repeat(64), &[]).unwrap();
    let bytes = std::fs::read(below.join("good/adapter_model.safetensors")).unwrap();
    save(&adapter(10), &below.join("cut"));
    std::fs::write(below.join("cut/adapter_model.safetensors"), &bytes[..bytes.len() - 5]).unwrap();
    save(&adapter(10), &below.join("pickled"));
    std::fs::remove_file(below.join("pickled/adapter_model.safetensors")).unwrap();
    std::fs::write(below.join("pickled/adapter_model.bin"), b"\x80\x04").unwrap();
    std::fs::create_dir(below.join("empty")).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink(outside.path().join("elsewhere"), below.join("linked")).unwrap();
        save(&adapter(10), &below.join("linked-file"));
        let file = below.join("linked-file/adapter_model.safetensors");
        std::fs::remove_file(&file).unwrap();
        symlink(outside.path().join("elsewhere/adapter_model.safetensors"), file).unwrap();
        // A link to what lies below is fine.
        symlink(below.join("good"), below.join("alias")).unwrap();
    }
    let server = serving(&below, 4).await;
    let stream = server.post(CHAT, &endless("red")).await;
    let mut pieces = stream.bytes_stream();
    pieces.next().await.unwrap().unwrap();
    let elsewhere = outside.path().join("elsewhere");
    let mut cases = vec![
        ("zero-a", 400, "it does nothing"),
        ("zero-b", 400, "does nothing"),
        ("huge", 400, "a logit is"),
        ("other-base", 400, "another base"),
        ("cut", 400, "adapter_model.safetensors"),
        ("pickled", 400, "pickle"),
        ("empty", 400, "adapter_config.json"),
        ("nothing", 404, "no adapter folder"),
        ("good/adapter_config.json", 404, "no adapter folder"),
        ("", 400, "expected a folder below"),
        ("..", 400, "without \"..\""),
        ("../adapters/good", 400, "without \"..\""),
        ("good/../../adapters/good", 400, "without \"..\""),
        ("/etc", 404, "no adapter folder"),
        ("a\0b", 404, "no adapter folder"),
        (elsewhere.to_str().unwrap(), 404, "no adapter folder"),
    ];
    if cfg!(unix) {
        cases.push(("linked", 404, "no adapter folder"));
        cases.push(("linked-file", 400, "leads out of the folders"));
    }
    for (path, expected, part) in &cases {
        let body = json!({"lora_name": "bad", "lora_path": path});
        let (status, error) = server.refused(LOAD, &body).await;
        assert_eq!((status, &error["param"]), (*expected, &json!("lora_path")), "{path}: {error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{path}: {error}");
        let outside = outside.path().to_str().unwrap();
        assert!(path.contains(outside) || !error.to_string().contains(outside), "{error}");
        assert_eq!(server.refused(CHAT, &chat("bad", "x", 1)).await.0, 404);
    }
    for name in ["", "a\nb", &"x".repeat(201), "base"] {
        let body = json!({"lora_name": name, "lora_path": "good"});
        let (status, error) = server.refused(LOAD, &body).await;
        assert_eq!((status, &error["param"]), (400, &json!("lora_name")), "{error}");
    }
    if cfg!(unix) {
        loaded(&server, "alias", "alias", json!({})).await;
    }
    // All the while the stream went on.
    assert!(pieces.next().await.unwrap().is_ok());
    assert_eq!(server.health().await["running"], 1);
}

#[tokio::test]
async fn without_folders_nothing_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    save(&adapter(10), &dir.path().join("good"));
    let server = TestServer::start().await;
    let path = dir.path().join("good");
    let body = json!({"lora_name": "x", "lora_path": path.to_str().unwrap()});
    let (status, error) = server.refused(LOAD, &body).await;
    assert_eq!((status, &error["code"]), (403, &json!("adapters_fixed")));
    assert!(error["message"].as_str().unwrap().contains("--adapter-dir"), "{error}");
    // Those that were there from the start can be unloaded all the same.
    unloaded(&server, "red").await;
    assert_eq!(server.refused(CHAT, &chat("red", "x", 1)).await.0, 404);
}

#[tokio::test]
async fn files_that_change_behind_a_known_adapter_are_not_served() {
    let dir = tempfile::tempdir().unwrap();
    for seed in [10, 11] {
        save(&adapter(seed), &dir.path().join(format!("a{seed}")));
    }
    let options = EngineOptions { max_num_seqs: 4, ..roomy() };
    let server = TestServer::start_with(plan(dir.path(), 1), options).await;
    loaded(&server, "a10", "a10", json!({})).await;
    loaded(&server, "a11", "a11", json!({})).await;
    save(&adapter(12), &dir.path().join("a10"));
    let (status, error) = server.refused(CHAT, &chat("a10", "x", 1)).await;
    assert_eq!((status, &error["code"]), (503, &json!("adapter_failed")));
    assert!(!error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
    assert!(!in_memory(&server, &["a10", "a11"]).await[0]);
    says(&server, "a11").await;
    // Whoever may load says that it is meant.
    loaded(&server, "a10", "a10", json!({"load_inplace": true})).await;
    assert_eq!(card(&server, "a10").await["adapter_digest"], adapter(12).digest());
    says(&server, "a10").await;
}
