//! The binary as a server: started, asked over HTTP, stopped by a signal.
#![cfg(unix)]

mod common;

use common::shared;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const METIER: &str = env!("CARGO_BIN_EXE_metier");

/// A running server; killed when a test fails.
struct Serving {
    child: Child,
    url: String,
}

impl Serving {
    fn start(model: &Path) -> Serving {
        let mut child = Command::new(METIER)
            .args(["serve", "--port", "0", "--model", model.to_str().unwrap()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        Serving { child, url: url.expect(&line).to_owned() }
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request = reqwest::Client::new().post(format!("{}{path}", self.url)).json(&body);
        let response = request.send().await.unwrap();
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
