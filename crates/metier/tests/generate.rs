//! Real weights give the published text; a conversation in the terminal does what its commands say.

mod common;

use common::shared;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn greedy(model: &Path, prompt: &str, max_tokens: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_metier"))
        .args(["generate", "--model", model.to_str().unwrap(), "--prompt", prompt])
        .args(["--max-tokens", max_tokens, "--temperature", "0"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn stories260k_tells_the_published_story() {
    let Some(folder) = shared("models/stories260K") else { return };
    let published = std::fs::read_to_string(folder.join("greedy_200.txt")).unwrap();
    assert_eq!(greedy(&folder.join("hf"), "", "200"), published);
    // The reference program prints the prompt too and counts its tokens.
    let more = std::fs::read_to_string(folder.join("greedy_more_prompts.txt")).unwrap();
    let mut checked = 0;
    for part in more.split("### prompt=[").skip(1) {
        let (prompt, rest) = part.split_once(']').unwrap();
        let expected = rest.split_once('\n').unwrap().1.trim_end_matches('\n');
        let ours = format!("{prompt}{}", greedy(&folder.join("hf"), prompt, "100"));
        assert!(ours.starts_with(expected), "{prompt}: {ours}\nexpected: {expected}");
        checked += 1;
    }
    assert_eq!(checked, 5);
}

/// `metier chat` with these lines at its input.
#[cfg(unix)]
fn chat(arguments: &[&str], lines: &str) -> Output {
    use std::io::Write;
    let mut child = Command::new(env!("CARGO_BIN_EXE_metier"))
        .args(["chat", "--model", "nano", "--temperature", "0", "--max-tokens", "6"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A chat that ends early takes no more.
    _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    child.wait_with_output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_chat_changes_adapters_compares_and_saves() {
    use common::serving::{adapter, nano};
    let folder = tempfile::tempdir().unwrap();
    let base = model::Decoder::load(&nano(), &model::LoadOptions::default()).unwrap();
    for (seed, name) in ["one", "two"].into_iter().enumerate() {
        let values = |i: usize| ((i * 31 + (seed + 1) * 17) % 97) as f32 / 97.0 - 0.5;
        adapter(&base, &folder.path().join(name), values);
    }
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let shown = |lines: &str| {
        let output = chat(&["--adapter", &path("one"), "--system", "Be brief."], lines);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let question = "Tell me about the sea.";
    let of_one = shown(question);
    let of_base = shown(&format!("/adapter base\n{question}"));
    assert_ne!(of_one, of_base);

    let saved = path("saved.jsonl");
    let lines = [
        question,
        "/model",
        &format!("/adapter second={}", path("two")),
        "/model",
        &format!("/compare {question}"),
        "/adapter",
        "/history",
        &format!("/save {saved}"),
        "/clear",
        "/adapter nano",
        question,
        &format!("/save {saved}"),
        "/help",
        "/quit",
        "never said",
    ]
    .join("\n");
    let all = shown(&lines);
    assert!(all.starts_with(&of_one), "{all}");
    for part in [
        "base nano, adapter one, 2 messages so far",
        "base nano, adapter second, 2 messages so far",
        "  nano (base)\n  one\n* second\n",
        &format!("system: Be brief.\nuser: {question}\nassistant: {of_one}"),
        "/compare QUESTION",
    ] {
        assert!(all.contains(part), "{part:?} in {all}");
    }
    let header = all.lines().find(|line| line.contains('┆')).unwrap_or_default();
    assert!(["nano", "one", "second"].iter().all(|name| header.contains(name)), "{all}");
    // After `/clear` and without an adapter the base says what it says at first.
    assert!(all.contains(&of_base), "{all}");
    let rows = std::fs::read_to_string(&saved).unwrap();
    let rows: Vec<serde_json::Value> =
        rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    let answer =
        |row: &serde_json::Value| row["messages"][2]["content"].as_str().unwrap().to_owned();
    assert_eq!((answer(&rows[0]) + "\n", answer(&rows[1]) + "\n"), (of_one, of_base));

    for (line, expected) in [
        ("/nonsense", "no command /nonsense"),
        ("/adapter three", "no adapter three; there are: base, one"),
        ("/adapter x=no/such/folder", "no such adapter folder"),
        ("/compare", "expected /compare QUESTION"),
        ("/save", "expected /save FILE"),
        ("/save x", "nothing was said"),
    ] {
        let output = chat(&["--adapter", &path("one")], line);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(expected), "{line}: {errors}");
    }
}

#[test]
fn prepared_weights_are_mapped_and_give_the_same_text() {
    let state = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_metier"))
            .args(args)
            .env("METIER_STATE", state.path())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let generate = |dtype: &str| {
        let prompt = ["generate", "-v", "--model", "nano", "--prompt", "The machine"];
        let (ok, said, log) =
            run(&[&prompt[..], &["--max-tokens", "8", "--dtype", dtype]].concat());
        assert!(ok, "{log}");
        (said, log.contains("weights mapped from"))
    };
    let prepare = ["models", "prepare", "nano", "--dtype", "q8_0"];
    let (converted, mapped) = generate("q8_0");
    assert!(!mapped);
    let (ok, said, log) = run(&[&prepare[..], &["--json"]].concat());
    assert!(ok, "{log}");
    let made: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(made["bytes"].as_u64().unwrap() > 1 << 20, "{made}");
    assert_eq!(generate("q8_0"), (converted.clone(), true));
    assert!(!generate("bf16").1, "it was prepared in another type");
    let undo = [&prepare[..], &["--undo"]].concat();
    assert!(run(&undo).0);
    assert!(!Path::new(made["path"].as_str().unwrap()).exists());
    assert_eq!(generate("q8_0"), (converted, false));
    let (ok, _, log) = run(&undo);
    assert!(!ok && log.contains("hint"), "{log}");
}
