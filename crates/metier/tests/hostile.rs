//! Outside bytes that lie: a clear error, exit code 1, no panic, nothing written.

mod common;

use assert_cmd::Command;
use common::shared;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn metier() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_metier"));
    command.env("RUST_BACKTRACE", "0");
    command
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

fn assets(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(name)
}

/// Runs the command and checks exit code 1, every expected piece of the message, and no panic.
#[track_caller]
fn refused(args: &[&str], expected: &[&str]) {
    let output = metier().args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    for piece in expected {
        assert!(stderr.contains(piece), "{args:?}: expected \"{piece}\" in: {stderr}");
    }
}

/// A working model folder: the tiny checkpoint's weights with the bundled tokenizer, its vocabulary
/// cut down by nothing (generation is never reached in these tests).
fn model_dir(dir: &Path) {
    for name in ["config.json", "model.safetensors"] {
        fs::copy(testdata("llama_tiny").join(name), dir.join(name)).unwrap();
    }
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(assets("nano").join(name), dir.join(name)).unwrap();
    }
}

fn generate(dir: &Path, expected: &[&str]) {
    refused(&["generate", "--model", dir.to_str().unwrap(), "--prompt", "x"], expected);
}

fn edit_config(dir: &Path, field: &str, value: Value) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[field] = value;
    fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn safetensors_that_lie() {
    let whole = fs::read(testdata("llama_tiny/model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let with_header = |edit: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut header: serde_json::Map<String, Value> =
            serde_json::from_slice(&whole[8..8 + header_len]).unwrap();
        edit(&mut header);
        let mut text = serde_json::to_vec(&header).unwrap();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend(text);
        file.extend(&whole[8 + header_len..]);
        file
    };
    let norm = "model.norm.weight";
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "model.safetensors"),
        ("seven bytes", vec![0; 7], "expected a safetensors file"),
        ("cut short", whole[..whole.len() / 2].to_vec(), "hint: download it again"),
        (
            "header 2^63",
            [&(1u64 << 63).to_le_bytes()[..], &whole[8..]].concat(),
            "the header claims 9223372036854775808",
        ),
        (
            "header past the end",
            [&(whole.len() as u64).to_le_bytes()[..], &whole[8..]].concat(),
            "the header claims",
        ),
        (
            "header is no JSON",
            [&8u64.to_le_bytes()[..], b"\xff\xfe{{{{{{"].concat(),
            "not a valid safetensors file",
        ),
        (
            "offsets reversed",
            with_header(&|h| h[norm]["data_offsets"] = json!([256, 0])),
            "not a valid safetensors file",
        ),
        (
            "offsets past the end",
            with_header(&|h| h[norm]["data_offsets"] = json!([0, 1u64 << 40])),
            "not a valid safetensors file",
        ),
        (
            "shape overflows",
            with_header(&|h| h[norm]["shape"] = json!([1u64 << 40, 1u64 << 40])),
            "not a valid safetensors file",
        ),
        (
            "header is no object",
            [&8u64.to_le_bytes()[..], b"[1, 2]  "].concat(),
            "not a valid safetensors file",
        ),
        (
            "tensors overlap",
            with_header(&|h| {
                let other = "model.layers.0.input_layernorm.weight";
                h[norm]["data_offsets"] = h[other]["data_offsets"].clone();
            }),
            "not a valid safetensors file",
        ),
        (
            "a hole between tensors",
            with_header(&|h| drop(h.remove("model.layers.0.input_layernorm.weight"))),
            "not a valid safetensors file",
        ),
        (
            "shape and bytes differ",
            with_header(&|h| h[norm]["shape"] = json!([63])),
            "not a valid safetensors file",
        ),
        (
            "a negative size",
            with_header(&|h| h[norm]["shape"] = json!([-64])),
            "not a valid safetensors file",
        ),
        (
            "a name twice",
            {
                // The second entry, in the same words, claims the place of the first.
                let text = String::from_utf8(whole[8..8 + header_len].to_vec()).unwrap();
                let text = text.trim_end().strip_suffix('}').unwrap();
                let entry = r#""dtype":"F32","shape":[1],"data_offsets":[0,4]"#;
                let text = format!("{text},\"{norm}\":{{{entry}}}}}");
                [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &whole[8 + header_len..]]
                    .concat()
            },
            "not a valid safetensors file",
        ),
        (
            "unknown dtype",
            with_header(&|h| h[norm]["dtype"] = json!("F33")),
            "not a valid safetensors file",
        ),
    ];
    for (name, bytes, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        model_dir(dir.path());
        fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        eprintln!("case: {name}");
        generate(dir.path(), &[expected, "model.safetensors"]);
    }
}

#[test]
fn wrong_shapes_are_all_listed() {
    let dir = tempfile::tempdir().unwrap();
    model_dir(dir.path());
    edit_config(dir.path(), "intermediate_size", json!(180));
    generate(
        dir.path(),
        &[
            "6 tensor(s) do not fit",
            "model.layers.0.mlp.gate_proj.weight: found shape [176, 64], expected [180, 64]",
            "model.layers.1.mlp.down_proj.weight: found shape [64, 176], expected [64, 180]",
        ],
    );
    edit_config(dir.path(), "num_hidden_layers", json!(1));
    generate(
        dir.path(),
        &["model.layers.1.self_attn.q_proj.weight: not part of this architecture"],
    );
}

#[test]
fn config_that_cannot_be() {
    for (field, value, expected) in [
        ("hidden_size", json!(0), "hidden_size"),
        ("vocab_size", json!(1_000_000_000_000u64), "vocab_size: found 1000000000000"),
        ("num_attention_heads", json!(-4), "num_attention_heads"),
        ("num_key_value_heads", json!(3), "a divisor of num_attention_heads"),
        ("num_key_value_heads", json!(8), "a divisor of num_attention_heads"),
        ("num_hidden_layers", json!(1_000_000_000u64), "num_hidden_layers"),
        ("max_position_embeddings", json!(0), "max_position_embeddings"),
        ("hidden_size", json!(64.5), "hidden_size"),
        ("rms_norm_eps", json!(0.0), "rms_norm_eps"),
        ("rms_norm_eps", json!(-1e-6), "rms_norm_eps"),
        ("rms_norm_eps", json!(1e300), "rms_norm_eps"),
        ("rms_norm_eps", json!("small"), "rms_norm_eps"),
        ("model_type", json!("nonesuch"), "model_type: found \"nonesuch\""),
        ("hidden_act", json!("gelu"), "hidden_act"),
        ("attention_bias", json!(true), "q_proj.bias: missing"),
        ("attention_chunk_size", json!(64), "attention_chunk_size = 64"),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "rope_theta": 10000.0}),
            "rope_parameters.rope_type",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        model_dir(dir.path());
        edit_config(dir.path(), field, value);
        generate(dir.path(), &["config.json", expected]);
    }
    let dir = tempfile::tempdir().unwrap();
    model_dir(dir.path());
    for text in ["[1, 2", "{\"rms_norm_eps\": NaN}"] {
        fs::write(dir.path().join("config.json"), text).unwrap();
        generate(dir.path(), &["config.json: not valid JSON"]);
    }
}

#[test]
fn missing_files_are_named() {
    for (file, expected) in [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "model.safetensors (or model.safetensors.index.json) is missing"),
        ("tokenizer.json", "tokenizer.json"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        model_dir(dir.path());
        fs::remove_file(dir.path().join(file)).unwrap();
        generate(dir.path(), &[expected, "hint"]);
    }
    refused(&["generate", "--model", "no/such/model", "--prompt", "x"], &["no such model", "hint"]);
    // A pickle is never opened.
    let dir = tempfile::tempdir().unwrap();
    model_dir(dir.path());
    fs::rename(dir.path().join("model.safetensors"), dir.path().join("pytorch_model.bin")).unwrap();
    generate(dir.path(), &["never"]);
}

#[test]
fn a_shard_outside_the_folder_is_refused() {
    for file in ["../model.safetensors", "/etc/passwd", "a/b.safetensors"] {
        let dir = tempfile::tempdir().unwrap();
        model_dir(dir.path());
        fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        let index = json!({"weight_map": {"model.norm.weight": file}});
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        generate(dir.path(), &["expected a plain file name inside the folder"]);
    }
}

#[test]
fn an_index_that_lies_is_refused() {
    let index = |map: Value, expected: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        model_dir(dir.path());
        let [from, to] = ["model.safetensors", "model-00001-of-00001.safetensors"];
        fs::rename(dir.path().join(from), dir.path().join(to)).unwrap();
        let index = json!({"weight_map": map});
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        generate(dir.path(), expected);
    };
    let here = "model-00001-of-00001.safetensors";
    index(json!({"model.norm.weight": "model-00002-of-00002.safetensors"}), &["00002-of-00002"]);
    index(
        json!({"model.norm.weight": here, "model.other.weight": here}),
        &["model.other.weight: model.safetensors.index.json places it in", "does not have it"],
    );
    index(json!({"model.norm.weight": 7}), &["index.json"]);
    index(json!([]), &["index.json"]);
}

#[test]
fn broken_tokenizers() {
    let dir = tempfile::tempdir().unwrap();
    model_dir(dir.path());
    fs::write(dir.path().join("tokenizer.json"), "{\"version\": \"1.0\"").unwrap();
    generate(dir.path(), &["tokenizer.json"]);
    if let Some(bad) = shared("hostile/tokenizer-bad-merges.json") {
        fs::copy(bad, dir.path().join("tokenizer.json")).unwrap();
        generate(dir.path(), &["tokenizer.json"]);
    }
}

#[test]
fn a_template_that_loops_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    model_dir(dir.path());
    edit_config(dir.path(), "vocab_size", json!(4096));
    let template = "{% for a in range(100000) %}{% for b in range(100000) %}{% set x = a * b %}{% endfor %}{% endfor %}";
    fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    fs::write(dir.path().join("train.jsonl"), chat_row("hello", "hi")).unwrap();
    let data = dir.path().join("train.jsonl");
    refused(
        &["data", "check", data.to_str().unwrap(), "--model", dir.path().to_str().unwrap()],
        &["template"],
    );
}

fn chat_row(question: &str, answer: &str) -> String {
    let row = json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]});
    format!("{row}\n")
}

#[test]
fn data_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, bytes: &[u8], expected: &[&str]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let expected: Vec<&str> = expected.iter().copied().chain([name]).collect();
        refused(&["data", "check", path.to_str().unwrap()], &expected);
    };
    let mut rows: Vec<String> =
        (0..1200).map(|i| chat_row(&format!("question {i}"), "yes")).collect();
    rows[999] = "{\"messages\": [{\"role\": \"user\"\n".into();
    check("line1000.jsonl", rows.concat().as_bytes(), &["1000"]);
    check("latin1.csv", b"prompt,completion\ncaf\xe9,oui\n", &["UTF-8"]);
    check("columns.csv", b"a,b\n1,2\n", &["a", "b", "prompt"]);
    check("empty.jsonl", b"", &[]);
    check(
        "roles.jsonl",
        chat_row("hello", "x").replace("assistant", "robot").as_bytes(),
        &["robot"],
    );
    check("deep.jsonl", ["[".repeat(100_000), "]".repeat(100_000)].concat().as_bytes(), &[]);
    check("table.xlsx", b"PK", &["jsonl"]);
    if let Some(latin) = shared("data/snips/PlayMusic/train_PlayMusic_full.json") {
        let path = dir.path().join("snips.jsonl");
        fs::copy(latin, &path).unwrap();
        refused(&["data", "check", path.to_str().unwrap()], &["UTF-8"]);
    }
}

#[test]
fn adapters_that_do_not_belong() {
    let nano = assets("nano").join("model.safetensors");
    assert!(nano.is_file(), "the bundled base is part of the repository");
    let run = |dir: &Path, expected: &[&str]| {
        let path = dir.to_str().unwrap();
        refused(&["generate", "--model", "nano", "--adapter", path, "--prompt", "x"], expected);
    };
    // Made for another base: every tensor has another shape.
    run(&testdata("llama_tiny_adapter"), &["problem(s) with this base", "expected [4, 256]"]);
    let broken = |edit: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(testdata("llama_tiny_adapter").join(name), dir.path().join(name)).unwrap();
        }
        edit(dir.path());
        dir
    };
    let set = |field: &'static str, value: Value| {
        broken(&move |dir: &Path| {
            let path = dir.join("adapter_config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config[field] = value.clone();
            fs::write(path, config.to_string()).unwrap();
        })
    };
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("r", json!(0)),
        ("lora_alpha", json!("big")),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("init_lora_weights", json!("pissa")),
    ] {
        run(set(field, value).path(), &[field]);
    }
    run(set("rank_pattern", json!({"nothing": 3})).path(), &["rank_pattern"]);
    let pickled = broken(&|dir: &Path| {
        fs::rename(dir.join("adapter_model.safetensors"), dir.join("adapter_model.bin")).unwrap();
    });
    run(pickled.path(), &["never"]);
    run(Path::new("no/such/adapter"), &["no such adapter folder"]);
}
