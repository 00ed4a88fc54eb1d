//! Vocabularies in other forms than tokenizer.json, against the ids that the field's own libraries
//! give (scripts/make_tokenizer_golden.py), and files that lie.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::shared;
use serde::Deserialize;
use serde_json::json;
use text::{GgufVocabulary, TextError, Tokenizer};

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizers").join(name)
}

fn cases(name: &str) -> Vec<Case> {
    serde_json::from_slice(&fs::read(testdata(name)).unwrap()).unwrap()
}

#[track_caller]
fn compare(what: &str, tokenizer: &Tokenizer, cases: &[Case]) {
    let mut wrong = Vec::new();
    for Case { text, ids } in cases {
        match tokenizer.encode(text) {
            Ok(found) if found == *ids => {}
            found => wrong.push(format!("{text:?}\n  expected {ids:?}\n  found    {found:?}")),
        }
    }
    assert!(wrong.is_empty(), "{what}: {} differ\n{}", wrong.len(), wrong.join("\n"));
    println!("{what}: {} texts", cases.len());
}

#[test]
fn sentence_piece_models_give_its_own_ids() {
    for name in ["bpe", "bpe_collapsing", "bpe_no_prefix", "unigram", "unigram_unknown"] {
        let tokenizer = Tokenizer::from_dir(&testdata(name)).unwrap();
        compare(name, &tokenizer, &cases(&format!("{name}/golden.json")));
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
        assert!(tokenizer.add_bos());
    }
}

#[test]
fn sentence_piece_round_trips() {
    let tokenizer = Tokenizer::from_dir(&testdata("bpe")).unwrap();
    for text in ["Hello world", " two  spaces ", "é😀\n日本", "</s> <turn>", ""] {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "{text}");
    }
    assert_eq!(
        tokenizer.encode_with_specials("<turn>").unwrap(),
        [tokenizer.token_id("<turn>").unwrap()]
    );
}

#[test]
fn mistral_v3_gives_sentence_piece_s_ids() {
    let Some(folder) = shared("tokenizers/mistral-v3") else { return };
    let Some(texts) = shared("tokenizers/gpt-2/ggml-vocab-gpt-2.gguf.inp") else { return };
    let tokenizer = Tokenizer::from_dir(&folder).unwrap();
    compare("mistral-v3: SentencePiece", &tokenizer, &cases("mistral-v3.json"));
    let texts = fs::read_to_string(texts).unwrap();
    let ids = fs::read_to_string(testdata("mistral-v3.out")).unwrap();
    let published: Vec<Case> = texts
        .split("\n__ggml_vocab_test__\n")
        .zip(ids.lines())
        .map(|(text, ids)| Case {
            text: text.to_owned(),
            ids: ids.split_whitespace().map(|id| id.parse().unwrap()).collect(),
        })
        .collect();
    assert_eq!(published.len(), 47);
    compare("mistral-v3: SentencePiece, llama.cpp's texts", &tokenizer, &published);
}

#[test]
fn qwen2_ranks_give_tiktoken_s_ids() {
    let Some(folder) = shared("tokenizers/qwen2") else { return };
    let tokenizer = Tokenizer::from_dir(&folder).unwrap();
    compare("qwen2: ranks", &tokenizer, &cases("qwen2.json"));
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(151_645));
    assert_eq!(tokenizer.eos_id(), Some(151_645));
    assert_eq!(tokenizer.bos_id(), None);
    assert_eq!(tokenizer.encode_with_specials("<|im_start|>").unwrap(), [151_644]);
    // Without the configuration the three tokens that every Qwen has are known still.
    let dir = tempfile::tempdir().unwrap();
    fs::copy(folder.join("qwen.tiktoken"), dir.path().join("qwen.tiktoken")).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(151_645));
    assert_eq!(tokenizer.eos_id(), Some(151_643));
}

#[test]
fn llama_3_ranks_give_tiktoken_s_ids() {
    // Qwen's first 128,000 ranks stand in for Llama's: both begin with cl100k's.
    let Some(ranks) = shared("tokenizers/qwen2/qwen.tiktoken") else { return };
    let ranks = fs::read_to_string(ranks).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("original")).unwrap();
    let path = dir.path().join("original/tokenizer.model");
    let first: Vec<&str> = ranks.lines().take(128_000).collect();
    fs::write(&path, first.join("\n")).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    compare("llama 3: ranks", &tokenizer, &cases("llama3_ranks.json"));
    for (id, token) in [
        (128_000, "<|begin_of_text|>"),
        (128_001, "<|end_of_text|>"),
        (128_004, "<|finetune_right_pad_id|>"),
        (128_005, "<|reserved_special_token_2|>"),
        (128_006, "<|start_header_id|>"),
        (128_009, "<|eot_id|>"),
        (128_010, "<|python_tag|>"),
        (128_011, "<|reserved_special_token_3|>"),
        (128_255, "<|reserved_special_token_247|>"),
    ] {
        assert_eq!(tokenizer.token_id(token), Some(id), "{token}");
        assert!(tokenizer.is_control(id));
        assert_eq!(tokenizer.encode_with_specials(token).unwrap(), [id]);
        assert!(tokenizer.encode(token).unwrap().len() > 1);
    }
    assert_eq!((tokenizer.max_id(), tokenizer.bos_id()), (128_255, Some(128_000)));
    assert_eq!(tokenizer.stop_ids(), [128_001, 128_008, 128_009]);
    assert_eq!(tokenizer.encode_prompt("Hello").unwrap()[0], 128_000);
}

#[test]
fn tokens_that_join_in_too_many_ways_are_refused() {
    // Each is a run of one letter: a token of n letters can be cut in n - 1 ways.
    use base64::Engine;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    tokens.extend((2..800).map(|n| vec![b'a'; n]));
    let lines = tokens.iter().zip(0..).map(|(token, rank)| format!("{} {rank}\n", encode(token)));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("qwen.tiktoken"), lines.collect::<String>()).unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("qwen.tiktoken") && error.contains("too many ways"), "{error}");
}

/// A byte-level vocabulary as GGUF has it: 256 letters, some merges, an end token.
struct Small {
    tokens: Vec<String>,
    merges: Vec<String>,
    types: Vec<i32>,
}

impl Small {
    fn new() -> Small {
        let mut tokens: Vec<String> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
            .into_iter()
            .map(String::from)
            .collect();
        tokens.sort();
        let merges = ["t h", "th e", "Ġ the"].map(str::to_owned).to_vec();
        tokens.extend(merges.iter().map(|pair| pair.replace(' ', "")));
        let mut types = vec![1; tokens.len()];
        tokens.push("<end>".into());
        types.push(3);
        Small { tokens, merges, types }
    }

    fn vocabulary(&self) -> GgufVocabulary<'_> {
        GgufVocabulary {
            model: "gpt2",
            pre: Some("gpt-2"),
            tokens: &self.tokens,
            merges: Some(&self.merges),
            token_types: Some(&self.types),
            eos_id: Some(self.tokens.len() as u32 - 1),
            ..GgufVocabulary::default()
        }
    }
}

fn from_gguf(vocabulary: GgufVocabulary<'_>) -> Result<Tokenizer, TextError> {
    Tokenizer::from_gguf(Path::new("model.gguf"), &vocabulary)
}

#[test]
fn gguf_metadata_make_a_tokenizer() {
    let small = Small::new();
    let tokenizer = from_gguf(small.vocabulary()).unwrap();
    let ids = tokenizer.encode("the the<end>").unwrap();
    assert_eq!(ids[..2], [257, 258]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "the the<end>");
    assert_eq!(tokenizer.encode_with_specials("<end>").unwrap(), [259]);
    assert_eq!((tokenizer.eos_id(), tokenizer.add_bos()), (Some(259), false));
    let other = from_gguf(GgufVocabulary { add_bos: Some(true), ..small.vocabulary() }).unwrap();
    assert_ne!(tokenizer.sha256(), other.sha256());

    // A template in the metadata adds its end of a turn.
    let template = "{% for m in messages %}{{ m.content }}<end>{% endfor %}";
    let none = GgufVocabulary { eos_id: None, ..small.vocabulary() };
    assert!(from_gguf(none).unwrap().stop_ids().is_empty());
    let with = GgufVocabulary { chat_template: Some(template), ..none };
    assert_eq!(from_gguf(with).unwrap().stop_ids(), [259]);
}

#[test]
fn gguf_metadata_that_lie_are_refused() {
    let check = |change: &dyn Fn(&mut GgufVocabulary<'_>), parts: &[&str]| {
        let small = Small::new();
        let mut vocabulary = small.vocabulary();
        change(&mut vocabulary);
        let error = from_gguf(vocabulary).unwrap_err().to_string();
        for part in parts.iter().chain(&["model.gguf"]) {
            assert!(error.contains(part), "expected {part:?} in: {error}");
        }
    };
    check(&|v| v.model = "bert", &["tokenizer.ggml.model", "\"bert\""]);
    check(&|v| v.pre = Some("babbage"), &["\"babbage\"", "known are gpt-2"]);
    check(&|v| v.pre = None, &["tokenizer.ggml.pre is missing"]);
    check(&|v| v.merges = None, &["no merges"]);
    check(&|v| v.tokens = &[], &["merges[0]"]);
    check(&|v| v.tokens = &v.tokens[..100], &["merges[0]"]);
    check(
        &|v| {
            v.tokens = &v.tokens[..259];
            v.eos_id = None;
        },
        &["260 token types for 259 tokens"],
    );
    check(&|v| v.token_types = Some(&[1, 1]), &["2 token types for 260 tokens"]);
    check(&|v| v.token_types = Some(&[9]), &["token_type[0] is 9"]);
    check(&|v| v.eos_id = Some(260), &["eos_token_id is 260", "260 tokens"]);
    check(&|v| v.end_ids[0] = Some(u32::MAX), &["eot_token_id is 4294967295"]);
    check(&|v| v.model = "llama", &["no scores"]);
    let scored: fn(&mut GgufVocabulary<'_>, &'static [f32]) = |v, scores| {
        v.model = "llama";
        v.scores = Some(scores);
    };
    check(&|v| scored(v, &[0.0; 3]), &["3 scores for 260 tokens"]);
    check(&|v| scored(v, &[f32::NAN; 260]), &["score of token 0 is NaN"]);
    check(
        &|v| {
            scored(v, &[0.0; 260]);
            v.unknown_id = Some(260);
        },
        &["unknown_token_id is 260"],
    );
    for merge in ["th", "t zz", "e e", "", " ", "t"] {
        let merges = [merge.to_owned()];
        let small = Small::new();
        let mut vocabulary = small.vocabulary();
        vocabulary.merges = Some(&merges);
        let error = from_gguf(vocabulary).unwrap_err().to_string();
        assert!(error.contains("merges[0]"), "{error}");
    }
    let mut small = Small::new();
    small.tokens[256] = "t".into();
    let error = from_gguf(small.vocabulary()).unwrap_err().to_string();
    assert!(error.contains("merges[0]") || error.contains("both \"t\""), "{error}");
    let mut small = Small::new();
    small.tokens[259] = "the".into();
    let error = from_gguf(small.vocabulary()).unwrap_err().to_string();
    assert!(
        error.contains("tokens 258 and 259 are both") || error.contains("are both \"the\""),
        "{error}"
    );
}

#[test]
fn files_of_every_form_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let check = |files: &[(&str, &[u8])], parts: &[&str]| {
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "expected {part:?} in: {error}");
        }
        for (name, _) in files {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
    };
    check(&[], &["tokenizer.json", "expected a tokenizer: tokenizer.json, tokenizer.model"]);

    let model = |bytes: &'static [u8], part| {
        check(&[("tokenizer.model", bytes)], &["tokenizer.model", part])
    };
    model(b"", "no tokens");
    model(
        b"IQ== 0\nIg== 1\n",
        "it has 2 ranks, but the one that is known under this name has 128000",
    );
    model(b"\x0a\xff\xff\xff\xff\x0f", "not a protocol buffer");
    model(b"\x0a\x02\x18\x09\x12\x02\x18\x02", "piece 0 has the type 9");
    model(b"\x0a\x03\x0a\x01a\x12\x02\x18\x03", "its kind is 3");
    check(&[("a.model", b""), ("b.model.v3", b"")], &["a.model, b.model.v3", "one tokenizer"]);

    let ranks =
        |bytes: &'static [u8], part| check(&[("qwen.tiktoken", bytes)], &["qwen.tiktoken", part]);
    ranks(b"", "no token \"\u{100}\"".trim());
    ranks(b"\xff", "not UTF-8");
    ranks(b"IQ==", "line 1: \"IQ==\" has no rank");
    ranks(b"I! 0", "line 1: \"I!\" is not base64");
    ranks(b"IQ== 0\nIg== 2", "line 2: the rank is \"2\", not 1");
    check(&[("my.tiktoken", b"")], &["my.tiktoken", "not known by its name", "qwen.tiktoken"]);

    let pair = |vocab: &'static [u8], merges: &'static [u8], part| {
        check(&[("encoder.json", vocab), ("vocab.bpe", merges)], &[part]);
    };
    pair(b"[]", b"", "encoder.json: not a JSON object");
    pair(br#"{"a": 1}"#, b"", "\"a\" has the id 1, but there are 1 tokens");
    pair(br#"{"a": 0, "b": 0}"#, b"", "\"a\" and \"b\" have the same id 0");
    pair(br#"{"a": -1}"#, b"", "has the id -1");
    pair(br#"{"a": 0}"#, b"a b", "merge[0] needs the token \"b\"");
    pair(br#"{"a": 0}"#, b"#version: 0.2\n\nab", "merge[0] is \"ab\", not a pair");
    pair(br#"{"a": 0}"#, b"\xff", "not UTF-8");
    pair(br#"{"a": 0}"#, b"", "it has no token");
    check(&[("vocab.json", br#"{"a": 0}"#), ("merges.txt", b"")], &["tokenizer_class"]);
    check(
        &[
            ("vocab.json", br#"{"a": 0}"#),
            ("merges.txt", b""),
            ("tokenizer_config.json", json!({"tokenizer_class": "Odd"}).to_string().as_bytes()),
        ],
        &["tokenizer_class is \"Odd\"", "GPT2Tokenizer"],
    );
}
