//! `metier runs` finds trainings, says how they stand, and sets them side by side.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

fn metier(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_metier"))
        .current_dir(dir)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn runs_are_listed_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..12)
        .map(|i| {
            let row = json!({"prompt": format!("pump {i}"), "completion": format!("loud {i}")});
            format!("{row}\n")
        })
        .collect();
    fs::write(dir.path().join("data.jsonl"), rows).unwrap();
    for (out, r) in [("out/a", "4"), ("out/deeper/b", "8")] {
        metier(
            dir.path(),
            &[
                "train",
                "--base",
                "nano",
                "--data",
                "data.jsonl",
                "--valid",
                "data.jsonl",
                "--max-steps",
                "3",
                "--r",
                r,
                "--out",
                out,
                "--report-to",
                "tensorboard",
            ],
        );
        assert!(dir.path().join(out).join("events.out.tfevents.metier").is_file());
        assert!(dir.path().join(out).join("README.md").is_file());
    }
    // A run that was killed has a log and no more; a line of it was cut off.
    let killed = dir.path().join("out/killed");
    fs::create_dir(&killed).unwrap();
    let log = fs::read_to_string(dir.path().join("out/a/train_log.jsonl")).unwrap();
    let kept: Vec<&str> = log.lines().take_while(|l| !l.contains("\"step\":2")).collect();
    fs::write(killed.join("train_log.jsonl"), kept.join("\n") + "\n{\"event\":\"st").unwrap();

    let runs: Value = serde_json::from_str(&metier(dir.path(), &["runs", "--json"])).unwrap();
    let of = |name: &str| {
        runs.as_array()
            .unwrap()
            .iter()
            .find(|run| run["dir"] == name)
            .unwrap_or_else(|| panic!("{name} is not among {runs}"))
    };
    assert_eq!(runs.as_array().unwrap().len(), 3);
    let (a, killed) = (of("out/a"), of("out/killed"));
    assert_eq!(
        (&a["status"], &a["step"], &a["base"]),
        (&json!("completed"), &json!(3), &json!("nano"))
    );
    assert_eq!((&killed["status"], &killed["step"]), (&json!("stopped"), &json!(1)));
    assert_eq!(killed["total_steps"], 3);
    assert_eq!(killed["settings"]["r"], 4);
    assert!(a["held_out"].as_f64() < a["held_out_before"].as_f64(), "{a}");
    // What was forgotten, where the run came to its end.
    assert!(
        a["guard_before"].as_f64().unwrap() > 1.0 && a["guard_kl"].as_f64().unwrap() > 0.0,
        "{a}"
    );
    assert_eq!(killed["guard_before"], Value::Null);
    let general = format!(
        "{:.4} -> {:.4}",
        a["guard_before"].as_f64().unwrap(),
        a["guard_after"].as_f64().unwrap()
    );
    let card = fs::read_to_string(dir.path().join("out/a/README.md")).unwrap();
    assert!(card.contains("general ability") && card.contains(&general), "{card}");
    let table = metier(dir.path(), &["runs", "out"]);
    assert!(table.contains(&general), "{general} is not in\n{table}");
    for expected in ["out/deeper/b", "completed", "stopped", "1/3", "nano", "lora"] {
        assert!(table.contains(expected), "{expected} is not in\n{table}");
    }

    let said = metier(dir.path(), &["runs", "compare", "out/a", "out/deeper/b", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["differing_settings"], json!({"r": ["4", "8"]}), "{said}");
    assert_eq!(said["results"]["steps"], json!(["3", "3"]));
    let before = said["results"]["general text, loss before"].as_array().unwrap();
    assert!(before[0] == before[1] && before[0] != "", "{said}");
    for row in ["general text, loss after", "general text, KL from the base"] {
        assert!(said["results"][row][0].as_str().unwrap().parse::<f64>().is_ok(), "{said}");
    }
    let html = fs::read_to_string(dir.path().join("runs.html")).unwrap();
    assert_eq!(html.matches("<polyline").count(), 4);
    assert!(html.contains("out/deeper/b") && !html.contains("<script"));
    let shown =
        metier(dir.path(), &["runs", "compare", "out/a", "out/killed", "--html", "two.html"]);
    assert!(shown.contains("The settings are the same") && shown.contains("held-out"), "{shown}");
    assert!(dir.path().join("two.html").is_file());
}
