//! The binary as a running server, and adapters for it.

use model::{Decoder, LoraAdapter, LoraConfig};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tempfile::TempDir;

pub(crate) const METIER: &str = env!("CARGO_BIN_EXE_metier");

/// A running server; killed when a test fails.
pub(crate) struct Serving {
    pub(crate) child: Child,
    pub(crate) url: String,
    pub(crate) state: Arc<TempDir>,
    pub(crate) key: Option<String>,
}

impl Serving {
    pub(crate) fn start(model: &Path) -> Serving {
        Self::start_with(Arc::new(tempfile::tempdir().unwrap()), model, &[])
    }

    pub(crate) fn start_with(state: Arc<TempDir>, model: &Path, more: &[&str]) -> Serving {
        Self::start_from(Command::new(METIER), state, model, more)
    }

    /// With the environment of `metier`, a command for the program.
    pub(crate) fn start_from(
        mut metier: Command,
        state: Arc<TempDir>,
        model: &Path,
        more: &[&str],
    ) -> Serving {
        let mut child = metier
            .args(["serve", "--port", "0", "--model", model.to_str().unwrap()])
            .args(more)
            .env("METIER_STATE", state.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        Serving { child, url: url.expect(&line).to_owned(), state, key: None }
    }

    /// Status and body of the answer; None when the connection broke.
    pub(crate) async fn try_post(&self, path: &str, body: &Value) -> Option<(u16, Value)> {
        let mut request = reqwest::Client::new().post(format!("{}{path}", self.url)).json(body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        Some((status, response.json().await.ok()?))
    }

    pub(crate) async fn send(&self, path: &str, body: &Value) -> reqwest::Response {
        let request = reqwest::Client::new().post(format!("{}{path}", self.url)).json(body);
        request.send().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.try_post(path, &body).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        answer
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        self.signal("-TERM");
        self.child.wait().unwrap()
    }
}

/// Standard output of a command on that state.
pub(crate) fn metier(state: &TempDir, args: &[&str]) -> String {
    let output =
        Command::new(METIER).args(args).env("METIER_STATE", state.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano")
}

/// Writes an adapter of `nano` whose values are `values` of their places.
pub(crate) fn adapter(base: &Decoder, folder: &Path, values: impl Fn(usize) -> f32) {
    let config = LoraConfig { r: 2, lora_alpha: 4.0, ..LoraConfig::default() };
    let mut adapter = LoraAdapter::init(&config, base, 1).unwrap();
    adapter.params.iter_mut().enumerate().for_each(|(i, value)| *value = values(i));
    std::fs::create_dir_all(folder).unwrap();
    adapter.save(folder, "nano", base.digest().unwrap(), &[]).unwrap();
}
