//! Small tokenizers of every kind, built here, and the way to the large shared files.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use text::Tokenizer;

/// The folder with shared models and templates, or `None` with a loud word on stderr.
pub(crate) fn shared(what: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("METIER_SHARED") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
    };
    let path = root.join(what);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not there", path.display());
    None
}

/// The tokenizer folder of the bundled model.
pub(crate) fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano")
}

fn added(specials: &[&str], special: bool) -> Value {
    specials
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "special": special, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            })
        })
        .collect()
}

fn vocab(tokens: impl IntoIterator<Item = String>) -> Map<String, Value> {
    let mut vocab = Map::new();
    for token in tokens {
        let id = vocab.len();
        vocab.entry(token).or_insert(id.into());
    }
    vocab
}

/// A byte-level BPE as GPT-2's and its descendants': `specials` from id 0, then 256 bytes, then a
/// few merges.
pub(crate) fn byte_level_json(specials: &[&str]) -> Value {
    let mut bytes: Vec<char> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    bytes.sort_unstable();
    let merges = [
        ["Ġ", "t"],
        ["h", "e"],
        ["Ġt", "he"],
        ["l", "l"],
        ["o", "Ġ"],
        ["Ċ", "Ċ"],
        [":", "Ċ"],
        [".", "Ċ"],
        ["Ã", "©"],
        ["<", "|"],
        ["|", ">"],
        ["Ġ", "a"],
        ["e", "n"],
        ["en", "d"],
    ];
    let tokens = specials
        .iter()
        .map(|special| (*special).to_owned())
        .chain(bytes.into_iter().map(String::from))
        .chain(merges.iter().map(|pair| pair.concat()));
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(specials, true),
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab(tokens), "merges": merges,
        },
    })
}

/// A SentencePiece-like BPE with byte fallback as Llama 2's: `<unk>`, `<s>`, `</s>` and then
/// `specials`.
pub(crate) fn sentence_piece_json(specials: &[&str]) -> Value {
    let specials: Vec<&str> =
        ["<unk>", "<s>", "</s>"].into_iter().chain(specials.iter().copied()).collect();
    let merges = [
        ["▁", "t"],
        ["h", "e"],
        ["▁t", "he"],
        ["l", "l"],
        ["▁", "▁"],
        ["e", "n"],
        ["en", "d"],
        ["▁", "a"],
    ];
    let tokens = specials
        .iter()
        .map(|special| (*special).to_owned())
        .chain((0..=255).map(|byte| format!("<0x{byte:02X}>")))
        .chain("▁abcdefghijklmnopqrstuvwxyzAUé:.,<>|/_".chars().map(String::from))
        .chain(merges.iter().map(|pair| pair.concat()));
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(&specials, true),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab(tokens), "merges": merges,
        },
    })
}

/// The same with the newer Metaspace pieces in place of the normaliser.
pub(crate) fn metaspace_json(specials: &[&str]) -> Value {
    let mut file = sentence_piece_json(specials);
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    file["normalizer"] = Value::Null;
    file["pre_tokenizer"] = metaspace.clone();
    file["decoder"] = json!({"type": "Sequence", "decoders": [metaspace, {"type": "ByteFallback"}, {"type": "Fuse"}]});
    file
}

pub(crate) fn load(file: &Value, config: &Value) -> Tokenizer {
    try_load(file, config).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn try_load(file: &Value, config: &Value) -> Result<Tokenizer, text::TextError> {
    Tokenizer::from_bytes(file.to_string().as_bytes(), Some(config.to_string().as_bytes()))
}

/// The library's own reading of the same file, to compare with.
pub(crate) fn library(file: &Value) -> tokenizers::Tokenizer {
    file.to_string().parse().unwrap_or_else(|error| panic!("{error}"))
}

/// One tokenizer of each kind with ChatML's control tokens, each with its file.
pub(crate) fn every_kind() -> Vec<(&'static str, Value, Tokenizer)> {
    let chat = ["<|im_start|>", "<|im_end|>"];
    let spm = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
    let byte_level = byte_level_json(&["<|im_start|>", "<|im_end|>", "<|endoftext|>"]);
    let sentence_piece = sentence_piece_json(&chat);
    let metaspace = metaspace_json(&chat);
    let with = |name, file: Value, config: &Value| {
        let tokenizer = load(&file, config);
        (name, file, tokenizer)
    };
    vec![
        with("byte level", byte_level, &json!({"eos_token": "<|endoftext|>"})),
        with("sentence piece", sentence_piece, &spm),
        with("metaspace", metaspace, &spm),
    ]
}
