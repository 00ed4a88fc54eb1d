//! OpenAI's own Python client against the server, where one is installed.

mod common;

use common::{MODELS, TestServer};
use std::path::Path;
use std::process::Command;

/// Set METIER_TEST_PYTHON to a Python that has the `openai` package.
#[tokio::test]
async fn the_openai_client_is_served() {
    let python = std::env::var("METIER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let import = Command::new(&python).args(["-c", "import openai"]).output();
    if !import.is_ok_and(|o| o.status.success()) {
        eprintln!(
            "SKIPPED: {python} has no openai package; set METIER_TEST_PYTHON to one that has"
        );
        return;
    }
    let server = TestServer::start().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/check_openai_client.py");
    let mut command = Command::new(python);
    command.arg(script).args(["--url", &server.url, "--base", MODELS[0]]);
    for adapter in &MODELS[1..] {
        command.args(["--adapter", adapter]);
    }
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{shown}");
    assert!(output.status.success(), "{shown}\n{errors}");
    assert!(shown.contains("PASS eight concurrent streams"), "{shown}");
}
