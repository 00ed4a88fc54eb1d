//! Training from the command line: killed at random and resumed, it ends with the same bytes.

use assert_cmd::Command;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

const METIER: &str = env!("CARGO_BIN_EXE_metier");

/// A few short conversations; the answer follows from the question.
fn write_data(path: &Path) {
    let rows: String = (0..48)
        .map(|i| {
            let row = json!({"messages": [
                {"role": "user", "content": format!("ticket {i}: the pump number {} is loud", i * 7 % 50)},
                {"role": "assistant", "content": format!("{{\"pump\": {}}}", i * 7 % 50)},
            ]});
            format!("{row}\n")
        })
        .collect();
    fs::write(path, rows).unwrap();
}

const CONFIG: &str = r#"
[base]
model = "nano"
[data]
train = ["train.jsonl"]
valid_fraction = 0.1
[train]
r = 4
lora_alpha = 8
max_steps = 14
max_length = 128
step_size = { rows = 4 }
save_steps = 1
eval_steps = 5
"#;

fn train_args(config: &Path, out: &Path) -> Vec<String> {
    ["train", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap(), "--resume"]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn killed_and_resumed_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("train.jsonl"));
    let config = dir.path().join("metier.toml");
    fs::write(&config, CONFIG).unwrap();
    let whole = dir.path().join("whole");
    Command::new(METIER).args(train_args(&config, &whole)).assert().success();
    let killed = dir.path().join("killed");
    // Different moments on every run of the test; each must do.
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let mut kills = 0;
    for attempt in 0..40u64 {
        let mut child = Process::new(METIER)
            .args(train_args(&config, &killed))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(
            300 + (u64::from(nanos) / 1000 + attempt * 173) % 900 + attempt * 100,
        ));
        let finished = child.try_wait().unwrap();
        if let Some(status) = finished {
            assert!(status.success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    Command::new(METIER).args(train_args(&config, &killed)).assert().success();
    eprintln!("killed {kills} time(s)");
    let read = |dir: &Path| fs::read(dir.join("adapter_model.safetensors")).unwrap();
    assert!(read(&whole) == read(&killed), "the resumed adapter differs");
}

#[test]
fn the_adapter_evaluates_generates_and_exports() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("train.jsonl");
    write_data(&data);
    let out = dir.path().join("adapter");
    let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
    Command::new(METIER)
        .args([
            "train",
            "--base",
            "nano",
            "--data",
            data,
            "--out",
            out,
            "--max-steps",
            "6",
            "--r",
            "4",
        ])
        .assert()
        .success();
    let answers = dir.path().join("answers.jsonl");
    let eval = Command::new(METIER)
        .args([
            "eval",
            "--model",
            "nano",
            "--adapter",
            out,
            "--data",
            data,
            "--json",
            "--limit",
            "8",
        ])
        .args([
            "--metrics",
            "exact_match,json_valid",
            "--max-tokens",
            "24",
            "--answers",
            answers.to_str().unwrap(),
        ])
        .output()
        .unwrap();
    assert!(eval.status.success(), "{}", String::from_utf8_lossy(&eval.stderr));
    let result: serde_json::Value = serde_json::from_slice(&eval.stdout).unwrap();
    assert_eq!(result["metrics"]["exact_match"]["n"], 8);
    assert_eq!(fs::read_to_string(&answers).unwrap().lines().count(), 8);
    for format in ["peft", "merged"] {
        let to = dir.path().join(format);
        Command::new(METIER)
            .args([
                "export",
                "--base",
                "nano",
                "--adapter",
                out,
                "--format",
                format,
                "--out",
                to.to_str().unwrap(),
            ])
            .assert()
            .success();
    }
    let merged = dir.path().join("merged");
    Command::new(METIER)
        .args([
            "generate",
            "--model",
            merged.to_str().unwrap(),
            "--prompt",
            "The pump",
            "--max-tokens",
            "4",
        ])
        .assert()
        .success();
}

/// Judged answers to the questions of [`write_data`].
fn write_pairs(path: &Path) {
    let rows: String = (0..40)
        .map(|i| {
            let row = json!({
                "prompt": format!("ticket {i}: the pump number {} is loud", i * 7 % 50),
                "chosen": format!("{{\"pump\": {}}}", i * 7 % 50),
                "rejected": format!("It is pump {}.", i * 7 % 50),
            });
            format!("{row}\n")
        })
        .collect();
    fs::write(path, rows).unwrap();
}

#[test]
fn a_sweep_over_judged_answers_names_the_lowest_held_out_loss() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("pairs.jsonl");
    write_pairs(&data);
    let out = dir.path().join("sweep");
    let run = Command::new(METIER)
        .args(["train", "--base", "nano", "--objective", "dpo", "--max-steps", "4", "--json"])
        .args(["--sweep", "learning_rate=1e-3,1e-5", "--sweep", "r=2,4"])
        .args([Path::new("--data"), &data, Path::new("--out"), &out])
        .assert()
        .success();
    let told = String::from_utf8(run.get_output().stdout.clone()).unwrap();
    let last: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    let runs = last["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    let loss = |run: &serde_json::Value| run["best"]["loss"].as_f64().unwrap();
    assert!(runs.windows(2).all(|pair| loss(&pair[0]) <= loss(&pair[1])), "{runs:?}");
    assert_eq!(last["winner"], runs[0]["run"]);
    for run in runs {
        let name = run["run"].as_str().unwrap();
        assert!(out.join(name).join("adapter_model.safetensors").is_file(), "{name}");
        assert!(run["best"]["rewards"]["accuracies"].is_number(), "{run}");
    }
    // The pairs are easily told apart: the larger rate must have learnt something of it.
    assert!(loss(&runs[0]) < std::f64::consts::LN_2 - 1e-3, "{runs:?}");
    assert!(runs[0]["run"].as_str().unwrap().starts_with("learning_rate=0.001"), "{runs:?}");
}

#[test]
fn runs_of_several_tenants_have_their_own_data_and_folders() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["north", "south"] {
        write_data(&dir.path().join(format!("{name}.jsonl")));
    }
    let config = dir.path().join("metier.toml");
    let text = CONFIG.replace("train = [\"train.jsonl\"]\n", "").replace("14", "2");
    let runs = "[[run]]\nname = \"north\"\ndata = \"north.jsonl\"\n\
                [[run]]\nname = \"south\"\ndata = \"south.jsonl\"\nseed = 5\nr = 2\n";
    fs::write(&config, format!("{text}\n{runs}")).unwrap();
    let out = dir.path().join("out");
    let args = ["train", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let run = Command::new(METIER).args(args).assert().success();
    let shown = String::from_utf8(run.get_output().stdout.clone()).unwrap();
    assert!(shown.contains("north") && shown.contains("south"), "{shown}");
    let config = |name: &str| -> serde_json::Value {
        let file = out.join(name).join("adapter_config.json");
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    };
    assert_eq!((&config("north")["r"], &config("south")["r"]), (&json!(4), &json!(2)));
    // A misspelt key of one run is named like any other.
    fs::write(dir.path().join("bad.toml"), format!("{text}\n{}", runs.replace("seed", "sead")))
        .unwrap();
    let bad = dir.path().join("bad.toml");
    let args = ["train", "--config", bad.to_str().unwrap(), "--out", "unused"];
    let run = Command::new(METIER).args(args).assert().failure();
    let shown = String::from_utf8(run.get_output().stderr.clone()).unwrap();
    assert!(shown.contains("did you mean \"seed\""), "{shown}");
}

/// The guard event of a training with these flags; None when there is none.
fn guard_of(dir: &Path, name: &str, flags: &[&str]) -> Option<serde_json::Value> {
    let run = Command::new(METIER)
        .current_dir(dir)
        .args(["train", "--base", "nano", "--data", "train.jsonl", "--max-steps", "2", "--json"])
        .args(["--r", "2", "--out", name])
        .args(flags)
        .assert()
        .success();
    let told = String::from_utf8(run.get_output().stdout.clone()).unwrap();
    let events = told.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events.into_iter().find(|event| event["event"] == "guard")
}

#[test]
fn forgetting_is_told_on_the_bundled_text_or_on_another() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("train.jsonl"));
    // A text with what no tokenizer of words has, longer than is read of it.
    let text = "Le ciel est bleu. \u{1f980}\u{16a0} The sea is green.\n".repeat(600);
    fs::write(dir.path().join("text.txt"), text).unwrap();
    fs::write(dir.path().join("other.jsonl"), "{\"prompt\": \"Who?\", \"completion\": \"Me.\"}\n")
        .unwrap();
    let bundled = guard_of(dir.path(), "a", &[]).unwrap();
    assert_eq!(bundled["text"], "the bundled text");
    let tokens = bundled["tokens"].as_u64().unwrap();
    assert!((500..2048).contains(&tokens) && bundled["kl_tokens"] == tokens, "{bundled}");
    assert!(bundled["kl"].as_f64().unwrap() > 0.0, "{bundled}");
    let text = guard_of(dir.path(), "b", &["--guard", "text.txt"]).unwrap();
    assert!((1900..=2048).contains(&text["tokens"].as_u64().unwrap()), "{text}");
    assert!(text["bits_per_byte_before"].as_f64().unwrap() > 0.5, "{text}");
    let rows = guard_of(dir.path(), "c", &["--guard", "other.jsonl"]).unwrap();
    assert_eq!((&rows["pieces"], &rows["difference_interval"]), (&json!(1), &json!(null)));
    assert_eq!(guard_of(dir.path(), "d", &["--guard", "off"]), None);
    let adapter = |name: &str| fs::read(dir.path().join(name).join("adapter_model.safetensors"));
    assert!(adapter("a").unwrap() == adapter("d").unwrap(), "the guard changed the adapter");
    Command::new(METIER)
        .current_dir(dir.path())
        .args(["train", "--data", "train.jsonl", "--out", "e", "--guard", "none.txt"])
        .assert()
        .failure()
        .stderr(predicates::str::contains("none.txt"));
}

#[test]
fn plain_text_is_mixed_with_conversations_and_learnt_whole() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("train.jsonl"));
    let text = "The tide rises twice a day, and the boats rise with it.\n\n".repeat(120);
    fs::write(dir.path().join("sea.txt"), text).unwrap();
    let start = |sources: &str| -> serde_json::Value {
        let config = CONFIG.replace("[\"train.jsonl\"]", sources).replace("14", "2");
        fs::write(dir.path().join("metier.toml"), config).unwrap();
        let out = tempfile::tempdir().unwrap();
        let run = Command::new(METIER)
            .current_dir(dir.path())
            .args(["train", "--config", "metier.toml", "--guard", "off", "--json", "--out"])
            .arg(out.path())
            .assert()
            .success();
        let told = String::from_utf8(run.get_output().stdout.clone()).unwrap();
        let mut events = told.lines().map(|l| serde_json::from_str(l).unwrap());
        events.find(|e: &serde_json::Value| e["event"] == "start").unwrap()
    };
    let of = |event: &serde_json::Value, key: &str| event[key].as_u64().unwrap();
    let alone = start("[\"train.jsonl\"]");
    let whole = start("[\"train.jsonl\", \"sea.txt\"]");
    let half = start("[\"train.jsonl\", { path = \"sea.txt\", weight = 0.5 }]");
    let windows = of(&whole, "rows") - of(&alone, "rows");
    assert!(windows >= 8, "{whole}");
    assert_eq!(of(&half, "rows"), of(&alone, "rows") + windows.div_ceil(2));
    // Windows are as long as rows may be, and none of them is held out.
    assert!(of(&whole, "tokens") - of(&alone, "tokens") > (windows - 1) * 100);
    assert_eq!(of(&whole, "held_out_rows"), of(&alone, "held_out_rows"));
    for (arguments, told) in [
        (&["--data", "sea.txt"][..], "[data] text"),
        (&["--data", "sea.txt", "--objective", "dpo"], "cannot be mixed"),
    ] {
        Command::new(METIER)
            .current_dir(dir.path())
            .args(["train", "--out", "none"])
            .args(arguments)
            .assert()
            .failure()
            .stderr(predicates::str::contains(told));
    }
}
