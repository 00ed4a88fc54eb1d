//! The binary as a server: started, asked over HTTP, stopped by a signal.
#![cfg(unix)]

mod common;

use common::shared;
use model::{Decoder, LoadOptions, LoraAdapter, LoraConfig};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use text::Tokenizer;
use train::{Method, Objective, TrainPlan, TrainStatus};

const METIER: &str = env!("CARGO_BIN_EXE_metier");

/// A running server; killed when a test fails.
struct Serving {
    child: Child,
    url: String,
}

impl Serving {
    fn start(model: &Path) -> Serving {
        Serving::start_with(&["--model", model.to_str().unwrap()])
    }

    fn start_with(arguments: &[&str]) -> Serving {
        let mut child = Command::new(METIER)
            .args(["serve", "--port", "0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        Serving { child, url: url.expect(&line).to_owned() }
    }

    async fn send(&self, path: &str, body: &Value) -> reqwest::Response {
        let request = reqwest::Client::new().post(format!("{}{path}", self.url)).json(body);
        request.send().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let response = self.send(path, &body).await;
        assert!(response.status().is_success(), "{}", response.text().await.unwrap());
        response.json().await.unwrap()
    }

    fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano")
}

/// Writes an adapter of `nano` whose values are `values` of their places.
fn adapter(base: &Decoder, folder: &Path, values: impl Fn(usize) -> f32) {
    let config = LoraConfig { r: 2, lora_alpha: 4.0, ..LoraConfig::default() };
    let mut adapter = LoraAdapter::init(&config, base, 1).unwrap();
    adapter.params.iter_mut().enumerate().for_each(|(i, value)| *value = values(i));
    std::fs::create_dir_all(folder).unwrap();
    adapter.save(folder, "nano", base.digest().unwrap(), &[]).unwrap();
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

    let (one, all) = (format!("one={}", folder("one").display()), dir.path().to_str().unwrap());
    let mut server =
        Serving::start_with(&["--adapter", &one, "--pin", "one", "--adapter-dir", all]);
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
        let command = Command::new(METIER).args(["serve", "--port", "0"]).args(arguments).output();
        let output = command.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(reason), "{error}");
    }
}
