//! Disks that are full and checkpoints that are damaged: what was trained up to the newest good checkpoint
//! stays, it is said which that is, and going on from it ends with the same bytes.
#![cfg(unix)]

use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const METIER: &str = env!("CARGO_BIN_EXE_metier");

/// A measurement after step 5 makes the checkpoint larger: the best weights are kept from then on.
const CONFIG: &str = r#"
[data]
train = ["train.jsonl"]
valid_fraction = 0.1
[train]
r = 4
max_steps = 7
max_length = 128
step_size = { rows = 4 }
save_steps = 1
eval_steps = 5
guard = false
report_to = ["tensorboard"]
"#;

fn write_inputs(dir: &Path) {
    let rows: String = (0..40)
        .map(|i| {
            let row =
                json!({"prompt": format!("pump {i} is loud"), "completion": format!("pump: {i}")});
            format!("{row}\n")
        })
        .collect();
    fs::write(dir.join("train.jsonl"), rows).unwrap();
    fs::write(dir.join("metier.toml"), CONFIG).unwrap();
}

fn train(dir: &Path, out: &str) -> Output {
    let mut command = Command::new(METIER);
    command.current_dir(dir).args(["train", "--config", "metier.toml", "--resume", "--out", out]);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn trained(dir: &Path, out: &str) -> Output {
    let output = train(dir, out);
    assert!(output.status.success(), "{}", said(&output));
    output
}

fn adapter(dir: &Path, out: &str) -> Vec<u8> {
    fs::read(dir.join(out).join("adapter_model.safetensors")).unwrap()
}

/// Names of what is in a folder and is no whole thing.
fn half_written(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.') && name != ".train.lock").collect()
}

/// Everything that a person needs to go on.
fn assert_told(output: &Output, file: &str, cause: &str, checkpoint: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for expected in [file, cause, checkpoint, "stands", "--resume"] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// Files may not outgrow a size: fits four checkpoints, and not the fifth, which is larger.
#[test]
fn a_file_that_cannot_grow_costs_no_more_than_the_step() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_inputs(dir);
    trained(dir, "whole");
    let whole = fs::metadata(dir.join("whole/checkpoint-7/tensors.safetensors")).unwrap().len();
    // Three tensors of four, and a half.
    let blocks = whole * 7 / 8 / 512;
    let limited = |command: &str| {
        let script = format!("ulimit -f {blocks}; exec \"$0\" {command}");
        Command::new("sh").current_dir(dir).args(["-c", &script, METIER]).output().unwrap()
    };
    let output = limited("train --config metier.toml --out out");
    assert_told(
        &output,
        "checkpoint-5.tmp/tensors.safetensors",
        "File too large",
        "out/checkpoint-4",
    );
    assert_eq!(half_written(&dir.join("out")), Vec::<String>::new());
    assert!(!dir.join("out/adapter_model.safetensors").exists());
    // Again, with no more room: the same is said, and nothing is lost.
    let output = limited("train --config metier.toml --out out --resume");
    assert_told(
        &output,
        "checkpoint-5.tmp/tensors.safetensors",
        "File too large",
        "out/checkpoint-4",
    );
    let output = trained(dir, "out");
    assert!(said(&output).contains("resumed after step 4"), "{}", said(&output));
    assert!(adapter(dir, "out") == adapter(dir, "whole"), "the resumed adapter differs");
    let steps = |out: &str| {
        let log = fs::read_to_string(dir.join(out).join("train_log.jsonl")).unwrap();
        let events = log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let steps = events.filter(|e| e["event"] == "step").map(|e| e["step"].as_u64().unwrap());
        steps.collect::<Vec<_>>()
    };
    assert_eq!(steps("out"), steps("whole"));
}

/// A disk of a few megabytes, full in the middle of a checkpoint, of the log, and at the end.
#[test]
fn a_full_disk_costs_no_more_than_the_work_since_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_inputs(dir);
    // A file system of its own, gone with the process.
    let within = |script: &str| {
        let script = format!(
            "mkdir -p disk kept && mount -t tmpfs -o size=8m none disk || exit 77\n\
             run() {{ \"$0\" train --config metier.toml --out disk/out \"$@\"; }}\n{script}"
        );
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, METIER])
            .current_dir(dir)
            .output()
    };
    let allowed = within("true").is_ok_and(|output| output.status.success());
    if !allowed {
        eprintln!("SKIPPED: no file system can be mounted here, so no disk becomes full");
        return;
    }
    trained(dir, "whole");
    let size = |name: &str| fs::metadata(dir.join("whole").join(name)).unwrap().len();
    let checkpoint = size("checkpoint-7/tensors.safetensors");
    // Room for two checkpoints, and not for a third beside them before the oldest goes; then for nothing
    // at all; then for all of it.
    let first = (checkpoint * 9 / 4) >> 10;
    let output = within(&format!(
        "mount -o remount,size={first}k disk\n\
         run; echo \"ended $?\" >&2; ls -A disk/out >&2\n\
         mkdir full; head -c 100m /dev/zero > disk/filler\n\
         run --resume; echo \"ended again $?\" >&2; ls -A disk/out >&2\n\
         rm disk/filler; mount -o remount,size=64m disk\n\
         run --resume || exit 1; cp -r disk/out kept"
    ))
    .unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("ended 1") && said.contains("ended again 1"), "{said}");
    for file in ["tensors.safetensors", "train_log.jsonl"] {
        assert!(said.contains(&format!("{file}: No space left on device")), "{said}");
    }
    let told = "checkpoint-2 stands\nhint: make room on the disk";
    assert_eq!(said.matches(told).count(), 2, "{said}");
    // After the resume no step is lost but those since the checkpoint.
    assert!(said.contains("resumed after step 2"), "{said}");
    assert!(!said.contains("panicked") && !said.contains(".tmp\n"), "{said}");
    assert!(adapter(dir, "kept/out") == adapter(dir, "whole"), "the resumed adapter differs");
}

/// Each file of the newest checkpoint, damaged in each way: named, and the checkpoint before it taken.
#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_taken() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_inputs(dir);
    trained(dir, "out");
    let expected = adapter(dir, "out");
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("cut in half", |file| {
            let bytes = fs::read(file).unwrap();
            fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("a bit flipped in the middle", |file| {
            let mut bytes = fs::read(file).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            fs::write(file, bytes).unwrap();
        }),
        ("deleted", |file| fs::remove_file(file).unwrap()),
    ];
    for name in ["tensors.safetensors", "state.json"] {
        for (what, damage) in damages {
            fs::remove_file(dir.join("out/adapter_model.safetensors")).unwrap();
            damage(&dir.join("out/checkpoint-7").join(name));
            let said = said(&trained(dir, "out"));
            let told = said.contains(&format!("checkpoint-7/{name}"))
                && said.contains("taking the checkpoint before it")
                && said.contains("resumed after step 6");
            assert!(told, "{name}, {what}:\n{said}");
            assert!(adapter(dir, "out") == expected, "{name}, {what}: the adapter differs");
        }
    }
    for step in [6, 7] {
        fs::write(dir.join(format!("out/checkpoint-{step}/tensors.safetensors")), "").unwrap();
    }
    let output = train(dir, "out");
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    for expected in ["none of the 2", "checkpoint-6/tensors", "checkpoint-7/tensors", "start again"]
    {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
}

/// The log, and the result at the end, of a run without checkpoints.
#[test]
fn a_log_or_result_that_cannot_be_written_is_named_and_is_no_result() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_inputs(dir);
    let config = CONFIG.replace("save_steps = 1", "save_steps = 0");
    fs::write(dir.join("metier.toml"), config).unwrap();
    // Four kilobytes hold the plan and a few steps; two hundred hold the log, and no adapter.
    for (blocks, file) in [(8, "train_log.jsonl"), (400, "adapter_model.safetensors")] {
        let out = dir.join(file);
        let script =
            format!("ulimit -f {blocks}; exec \"$0\" train --config metier.toml --out {file}");
        let output =
            Command::new("sh").current_dir(dir).args(["-c", &script, METIER]).output().unwrap();
        assert_told_without_checkpoint(&output, file);
        assert_eq!(half_written(&out), Vec::<String>::new());
        for result in ["adapter_model.safetensors", "metier_manifest.json", "README.md"] {
            assert!(!out.join(result).exists(), "{result} is there");
        }
    }
    // From the beginning, with the log of a whole run.
    fs::write(dir.join("metier.toml"), CONFIG).unwrap();
    trained(dir, "train_log.jsonl");
    trained(dir, "whole");
    assert!(adapter(dir, "train_log.jsonl") == adapter(dir, "whole"));
}

fn assert_told_without_checkpoint(output: &Output, file: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for expected in [file, "File too large", "has no checkpoint yet", "ulimit -f"] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}
