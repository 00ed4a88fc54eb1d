//! Clients that were written for others, unchanged, against the server; each where it is installed.

mod common;

use common::{MODELS, TOOLS, TestServer};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the model says to texts that begin with 0, 1 and 2.
const SCRIPTS: &[&str] = &[
    "Well, it is 42 in all.",
    "<tool_call>{\"name\": \"look\", \"arguments\": {\"at\": 1}}</tool_call>",
    "{\"at\": 1}",
];

/// METIER_TEST_PYTHON names a Python that has the packages.
fn python() -> String {
    std::env::var("METIER_TEST_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Whether the Python has a package; said loudly when it has not.
fn has(package: &str) -> bool {
    let python = python();
    let import = Command::new(&python).args(["-c", &format!("import {package}")]).output();
    let found = import.is_ok_and(|o| o.status.success());
    if !found {
        eprintln!(
            "SKIPPED: {python} has no {package} package; set METIER_TEST_PYTHON to one that has"
        );
    }
    found
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(name)
}

/// Runs a checking script to its end; what it printed.
async fn run(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{shown}");
    assert!(output.status.success(), "{shown}\n{}", String::from_utf8_lossy(&output.stderr));
    shown
}

#[tokio::test]
async fn the_openai_client_is_served() {
    if !has("openai") {
        return;
    }
    let server = TestServer::start().await;
    let mut command = Command::new(python());
    command.arg(script("check_openai_client.py"));
    command.args(["--url", &server.url, "--base", MODELS[0]]);
    for adapter in &MODELS[1..] {
        command.args(["--adapter", adapter]);
    }
    let shown = run(command).await;
    assert!(shown.contains("PASS eight concurrent streams"), "{shown}");
    assert!(shown.contains("PASS embeddings"), "{shown}");
}

async fn check(package: &str, last: &str) {
    if !has(package) {
        return;
    }
    let server = TestServer::scripted(TOOLS, SCRIPTS).await;
    let mut command = Command::new(python());
    command.arg(script("check_more_clients.py"));
    command.args(["--client", package, "--url", &server.url, "--model", MODELS[0], "--tools"]);
    let shown = run(command).await;
    assert!(shown.contains(last), "{shown}");
}

#[tokio::test]
async fn the_openai_client_is_served_tools_and_forms() {
    check("openai", "PASS openai: calls that are forced").await;
}

#[tokio::test]
async fn the_anthropic_client_is_served() {
    check("anthropic", "PASS anthropic: calls that are forced").await;
}

#[tokio::test]
async fn litellm_is_served() {
    check("litellm", "PASS litellm: calls that are forced").await;
}

#[tokio::test]
async fn langchain_is_served() {
    check("langchain_openai", "PASS langchain: structured output").await;
}

#[tokio::test]
async fn langchain_embeds() {
    if !has("langchain_openai") {
        return;
    }
    let server = TestServer::start().await;
    let mut command = Command::new(python());
    command.arg(script("check_more_clients.py"));
    command.args(["--client", "langchain_embeddings", "--url", &server.url, "--model", MODELS[1]]);
    let shown = run(command).await;
    assert!(shown.contains("PASS langchain: texts to search in, and a question"), "{shown}");
}

/// METIER_TEST_NODE names a folder whose node_modules has the package `openai`.
#[tokio::test]
async fn the_openai_client_for_javascript_is_served() {
    let folder = std::env::var("METIER_TEST_NODE").unwrap_or_default();
    if !Path::new(&folder).join("node_modules/openai").is_dir() {
        eprintln!(
            "SKIPPED: no npm package openai; set METIER_TEST_NODE to a folder with node_modules/openai"
        );
        return;
    }
    let server = TestServer::scripted(TOOLS, SCRIPTS).await;
    let mut command = Command::new("node");
    command.arg(script("check_openai_client.mjs"));
    command.args([&folder, &server.url, MODELS[0], "tools"]);
    let shown = run(command).await;
    assert!(shown.contains("PASS calls that are forced"), "{shown}");
}
