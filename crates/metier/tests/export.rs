//! Exports: what is written, what is told, and that nothing half-made is ever left.

mod common;

use common::shared;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

const METIER: &str = env!("CARGO_BIN_EXE_metier");

fn metier(arguments: &[&str]) -> Output {
    Command::new(METIER).args(arguments).output().unwrap()
}

#[track_caller]
fn succeed(arguments: &[&str]) -> String {
    let output = metier(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(arguments: &[&str]) -> String {
    let output = metier(arguments);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Data, and an adapter of `nano` that learnt a little of it. Made once for all tests here.
struct Trained {
    dir: tempfile::TempDir,
}

impl Trained {
    fn data(&self) -> PathBuf {
        self.dir.path().join("train.jsonl")
    }

    fn adapter(&self) -> PathBuf {
        self.dir.path().join("tickets")
    }
}

static TRAINED: LazyLock<Trained> = LazyLock::new(|| {
    let trained = Trained { dir: tempfile::tempdir().unwrap() };
    let rows: String = (0..40)
        .map(|i| {
            let row = json!({"prompt": format!("ticket {i}: pump {} is loud", i * 7 % 50),
                "completion": format!("{{\"pump\": {}}}", i * 7 % 50)});
            format!("{row}\n")
        })
        .collect();
    fs::write(trained.data(), rows).unwrap();
    let (data, adapter) = (trained.data(), trained.adapter());
    succeed(&[
        "train",
        "--base",
        "nano",
        "--data",
        text(&data),
        "--out",
        text(&adapter),
        "--max-steps",
        "4",
        "--r",
        "4",
        "--learning-rate",
        "0.005",
    ]);
    trained
});

#[test]
fn every_format_of_the_bundled_base_is_compared_and_has_its_card() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, data) = (TRAINED.adapter(), TRAINED.data());
    for (format, files) in [
        (
            "peft",
            &[
                "README.md",
                "adapter_config.json",
                "adapter_model.safetensors",
                "chat_template.jinja",
                "metier_manifest.json",
            ][..],
        ),
        (
            "merged",
            &[
                "README.md",
                "chat_template.jinja",
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ],
        ),
        ("gguf-lora", &["README.md", "adapter.gguf"]),
    ] {
        let out = dir.path().join(format);
        let said = succeed(&[
            "export",
            "--base",
            "nano",
            "--adapter",
            text(&adapter),
            "--format",
            format,
            "--data",
            text(&data),
            "--limit",
            "12",
            "--json",
            "--out",
            text(&out),
        ]);
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(names(&out), files, "{format}");
        let number = |key: &str| said[key].as_f64().unwrap();
        assert!(number("logit_difference") <= number("allowed_logit_difference"), "{said}");
        let loss = (number("loss_after") - number("loss_before")).abs();
        assert!(loss <= number("allowed_loss_difference"), "{said}");
        assert!(number("kl") <= number("allowed_kl"), "{said}");
        assert!(number("loss_before") > 0.0 && number("compared_tokens") >= 12.0, "{said}");
        let card = fs::read_to_string(out.join("README.md")).unwrap();
        for expected in [
            "license: cc-by-sa-4.0",
            "base_model: \"nano\"",
            "- \"train.jsonl\"",
            "under the same licence",
            "read back and compared",
            "| before | 0 |",
        ] {
            assert!(card.contains(expected), "{format}: {expected} is not in\n{card}");
        }
        let library = match format {
            "peft" => "library_name: peft",
            "merged" => "library_name: transformers",
            _ => "library_name: gguf",
        };
        assert!(card.contains(library), "{card}");
    }
    // What the manifest says is in the card, digest by digest.
    let manifest = fs::read(adapter.join("metier_manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for card in [adapter.join("README.md"), dir.path().join("merged/README.md")] {
        let card = fs::read_to_string(card).unwrap();
        for key in ["data_sha256", "base_sha256", "tokenizer_sha256", "plan_sha256"] {
            assert!(card.contains(manifest[key].as_str().unwrap()), "{key} is not in\n{card}");
        }
    }
    // An exported adapter knows its base and its tokenizer, as the trained one does.
    let peft = dir.path().join("peft");
    succeed(&[
        "generate",
        "--model",
        "nano",
        "--adapter",
        text(&peft),
        "--prompt",
        "x",
        "--max-tokens",
        "2",
    ]);
}

#[test]
fn a_merged_model_in_shards_is_the_one_in_a_single_file() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = TRAINED.adapter();
    let export = |name: &str, size: &str| {
        let out = dir.path().join(name);
        succeed(&[
            "export",
            "--base",
            "nano",
            "--adapter",
            text(&adapter),
            "--format",
            "merged",
            "--max-shard-size",
            size,
            "--out",
            text(&out),
        ]);
        let generate = succeed(&[
            "generate",
            "--model",
            text(&out),
            "--prompt",
            "The pump",
            "--max-tokens",
            "8",
            "--temperature",
            "0",
            "--json",
        ]);
        (names(&out), generate)
    };
    let (one, said) = export("one", "5GB");
    let (many, said_in_shards) = export("many", "3MB");
    assert_eq!(said, said_in_shards);
    assert!(one.contains(&"model.safetensors".to_owned()));
    assert!(!many.contains(&"model.safetensors".to_owned()));
    assert!(many.contains(&"model-00001-of-00003.safetensors".to_owned()), "{many:?}");
    assert!(many.contains(&"model.safetensors.index.json".to_owned()));
    let wrong =
        metier(&["export", "--format", "merged", "--max-shard-size", "3 stone", "--out", "x"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn an_interrupted_export_leaves_nothing() {
    let adapter = TRAINED.adapter();
    let mut interrupted = 0;
    for delay in [0, 0, 20, 60, 150, 400] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("merged");
        let mut child = Command::new(METIER)
            .args(["export", "--base", "nano", "--adapter", text(&adapter), "--format", "merged"])
            .args(["--out", text(&out)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // From the moment that there is something to be left behind.
        while names(dir.path()).is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(delay));
        let id = child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &id]).stderr(Stdio::null()).status();
        assert!(killed.is_ok());
        let status = child.wait().unwrap();
        if status.success() {
            assert_eq!(names(dir.path()), ["merged"], "after {delay} ms");
            assert!(out.join("README.md").is_file() && out.join("config.json").is_file());
        } else {
            assert_eq!(status.code(), Some(1), "after {delay} ms");
            assert_eq!(names(dir.path()), [""; 0], "after {delay} ms");
            interrupted += 1;
        }
    }
    eprintln!("{interrupted} of 6 exports were interrupted");
    assert!(interrupted > 0, "every export was done before the signal came");
}

#[test]
fn what_a_killed_export_leaves_the_next_one_removes() {
    let adapter = TRAINED.adapter();
    let mut left = 0;
    for delay in [5, 100, 300] {
        let dir = tempfile::tempdir().unwrap();
        let export = |name: &str| {
            let mut command = Command::new(METIER);
            command
                .args(["export", "--base", "nano", "--adapter", text(&adapter), "--format", "peft"])
                .args(["--out", text(&dir.path().join(name))])
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command
        };
        let mut child = export("killed").spawn().unwrap();
        let locked = |name: &String| dir.path().join(name).join("lock").is_file();
        while !names(dir.path()).iter().any(locked) && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(delay));
        // SIGKILL, unless it has ended already.
        child.kill().unwrap();
        child.wait().unwrap();
        let done = dir.path().join("killed").exists();
        left += usize::from(names(dir.path()).iter().any(|name| name.starts_with('.')));
        assert!(export("next").status().unwrap().success());
        let mut expected = vec!["next"];
        if done {
            expected.insert(0, "killed");
        }
        assert_eq!(names(dir.path()), expected, "after {delay} ms");
    }
    assert!(left > 0, "every export was done before it was killed");
}

/// Real weights with a tokenizer that llama.cpp knows, in a folder of the test's own.
fn stories(dir: &Path) -> Option<PathBuf> {
    let folder = shared("models/stories260K")?.join("hf");
    let base = dir.join("stories");
    fs::create_dir(&base).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, base.join(path.file_name().unwrap())).unwrap();
    }
    Some(base)
}

#[test]
fn what_differs_too_much_is_not_left_there() {
    let dir = tempfile::tempdir().unwrap();
    let Some(base) = stories(dir.path()) else { return };
    // One weight in each row of a block is so large that the others vanish in 4 bits.
    let path = base.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let head = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + head]).unwrap();
    for (name, tensor) in header.as_object().unwrap() {
        if name.ends_with("_proj.weight") {
            assert_eq!(tensor["dtype"], "F32");
            let width = tensor["shape"][1].as_u64().unwrap() as usize;
            let start = 8 + head + tensor["data_offsets"][0].as_u64().unwrap() as usize;
            let end = 8 + head + tensor["data_offsets"][1].as_u64().unwrap() as usize;
            for at in (start..end).step_by(4 * width.min(32)) {
                bytes[at..at + 4].copy_from_slice(&20.0f32.to_le_bytes());
            }
        }
    }
    fs::write(&path, bytes).unwrap();
    let out = dir.path().join("new/out");
    let export = |format: &str, dtype: &str| {
        ["export", "--base", text(&base), "--format", format, "--dtype", dtype, "--out", text(&out)]
            .map(str::to_owned)
    };
    for format in ["gguf", "ollama"] {
        let arguments = export(format, "q4_0");
        let said = refused(&arguments.each_ref().map(String::as_str));
        assert!(said.contains("the exported model differs") && said.contains("allowed"), "{said}");
        assert_eq!(names(out.parent().unwrap()), [""; 0], "{format}");
    }
    let arguments = export("gguf", "f32");
    succeed(&arguments.each_ref().map(String::as_str));
}

#[test]
fn ollama_gets_a_modelfile() {
    let dir = tempfile::tempdir().unwrap();
    let Some(base) = stories(dir.path()) else { return };
    let chatml = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    fs::write(base.join("chat_template.jinja"), chatml).unwrap();
    fs::write(base.join("LICENSE"), "The licence of the stories.\n").unwrap();
    let out = dir.path().join("stories-ollama");
    succeed(&["export", "--base", text(&base), "--format", "ollama", "--out", text(&out)]);
    assert_eq!(names(&out), ["LICENSE", "Modelfile", "README.md", "model-q8_0.gguf"]);
    let modelfile = fs::read_to_string(out.join("Modelfile")).unwrap();
    let expected = "# stories-ollama
FROM ./model-q8_0.gguf
TEMPLATE \"\"\"{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ else }}{{ end }}{{ range .Messages }}{{ if eq .Role \"user\" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role \"assistant\" }}<|im_start|>assistant
{{ .Content }}<|im_end|>
{{ end }}{{ end }}<|im_start|>assistant
\"\"\"
PARAMETER stop \"</s>\"
LICENSE \"\"\"The licence of the stories.
\"\"\"
";
    assert_eq!(modelfile, expected);
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("ollama create stories-ollama -f Modelfile"), "{card}");

    // What depends on more than roles is refused before anything is written.
    let numbered = "{% for message in messages %}{{ loop.index ~ ': ' ~ message['content'] ~ '\\n' }}{% endfor %}";
    fs::write(base.join("chat_template.jinja"), numbered).unwrap();
    let out = dir.path().join("numbered");
    let said =
        refused(&["export", "--base", text(&base), "--format", "ollama", "--out", text(&out)]);
    assert!(
        said.contains("cannot be written as a Go template") && said.contains("--format gguf"),
        "{said}"
    );
    assert_eq!(names(dir.path()), ["stories", "stories-ollama"]);
}
