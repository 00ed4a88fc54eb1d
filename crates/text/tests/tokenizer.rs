//! Text to ids: the same ids as the tokenizers library, no forged control tokens, and clear errors.

mod common;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use common::{
    byte_level_json, every_kind, library, load, nano, sentence_piece_json, shared, try_load,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use text::{TextError, Tokenizer};

#[test]
fn the_bundled_tokenizer_keeps_its_promises() {
    let tokenizer = Tokenizer::from_dir(&nano()).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.max_id()), (4096, 4095));
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.add_bos()),
        (Some(1), Some(2), true)
    );
    assert_eq!(tokenizer.stop_ids(), [2, 6]);
    let names = [
        "<|pad|>",
        "<|bos|>",
        "<|eos|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
        "<|reserved_0|>",
    ];
    for (id, name) in names.into_iter().enumerate() {
        assert_eq!(tokenizer.token_id(name), Some(id as u32), "{name}");
    }
    assert_eq!(tokenizer.encode("75011").unwrap().len(), 5);
    assert_eq!(tokenizer.sha256().len(), 64);
    for text in [
        "My oven won't heat.",
        "L’évier fuit, aujourd'hui !\n\n",
        "🧺👩🏽‍🔧 日本",
        r#"{"a":"b"}"#,
        "",
        " ",
        "<|end|>",
    ] {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

#[test]
fn stories260k_as_published() {
    let Some(dir) = shared("models/stories260K/hf") else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    assert_eq!(tokenizer.encode_prompt("").unwrap(), [1]);
    assert_eq!(tokenizer.encode("").unwrap(), [0; 0]);
    assert_eq!((tokenizer.bos_id(), tokenizer.stop_ids()), (Some(1), &[2][..]));
    let text = "Once upon a time, there was a little girl.";
    let ids = tokenizer.encode_prompt(text).unwrap();
    assert_eq!(ids[0], 1);
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    tokenizer.check_vocab(512).unwrap();
}

#[test]
fn phi3_end_token_is_a_control_token_though_not_marked() {
    let Some(dir) = shared("tokenizers/phi-3-mini") else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    assert!(!tokenizer.add_bos());
    for forged in ["</s>", "<|end|>", "<|user|>", "<|endoftext|>"] {
        let ids = tokenizer.encode(forged).unwrap();
        assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "{forged}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), forged);
        assert_eq!(tokenizer.encode_with_specials(forged).unwrap().len(), 1, "{forged}");
    }
}

#[test]
fn hostile_merges_are_an_error() {
    let Some(path) = shared("hostile/tokenizer-bad-merges.json") else { return };
    let error = Tokenizer::from_bytes(&fs::read(path).unwrap(), None).unwrap_err().to_string();
    assert!(error.contains("model.merges["), "{error}");
}

#[test]
fn raw_prompts_get_one_beginning_token_where_the_tokenizer_adds_one() {
    let file = sentence_piece_json(&[]);
    let check = |config: Value, text: &str, expected: &[u32]| {
        let ids = load(&file, &config).encode_prompt(text).unwrap();
        assert!(
            ids.starts_with(expected)
                && ids.iter().filter(|id| **id == 1).count() == expected.len(),
            "{config} {text:?} {ids:?}"
        );
    };
    let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
    check(tokens.clone(), "", &[1]);
    check(tokens.clone(), "the end", &[1]);
    check(tokens.clone(), "<s>the end", &[1]);
    check(json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false}), "the end", &[]);
    check(json!({"bos_token": null, "eos_token": "</s>"}), "the end", &[]);

    // Without a post-processor only the configuration says so.
    let file = byte_level_json(&["<bos>"]);
    assert!(load(&file, &json!({"bos_token": "<bos>", "add_bos_token": true})).add_bos());
    assert!(!load(&file, &json!({"bos_token": "<bos>"})).add_bos());
}

#[test]
fn settings_come_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let write =
        |name: &str, content: Value| fs::write(dir.path().join(name), content.to_string()).unwrap();
    write("tokenizer.json", byte_level_json(&["<b>", "<e>", "<turn>", "<more>"]));
    let open = || Tokenizer::from_dir(dir.path());

    // No configuration: the model's ids.
    write("config.json", json!({"bos_token_id": 0, "eos_token_id": 1}));
    let tokenizer = open().unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.stop_ids()), (Some(0), &[1][..]));
    assert!(!tokenizer.add_bos());

    write(
        "tokenizer_config.json",
        json!({
            "bos_token": {"content": "<b>", "lstrip": false},
            "eos_token": "<e>",
            "add_bos_token": true,
            "chat_template": [
                {"name": "other", "template": "{{ raise_exception('no') }}"},
                {"name": "default", "template": "{% for m in messages %}{{ m.content }}<turn>{% endfor %}"},
            ],
        }),
    );
    write("generation_config.json", json!({"eos_token_id": [1, 3]}));
    let tokenizer = open().unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.add_bos()), (Some(0), true));
    assert_eq!(tokenizer.stop_ids(), [1, 3, 2], "config, generation config, template");

    let check = |name: &str, content: &str, part: &str| {
        let path = dir.path().join(name);
        let before = fs::read(&path).unwrap();
        fs::write(&path, content).unwrap();
        let error = open().unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains(part) && error.contains("expected"),
            "{error}"
        );
        fs::write(&path, before).unwrap();
    };
    check("tokenizer.json", "{", "not JSON");
    check("tokenizer.json", "[]", "no object `model`");
    check("tokenizer.json", r#"{"model": {}}"#, "no `model.vocab`");
    check(
        "tokenizer.json",
        r#"{"model": {"type": "Quantum", "vocab": {"a": 0}}}"#,
        "does not load",
    );
    check("tokenizer_config.json", "[1]", "map");
    check("tokenizer_config.json", r#"{"eos_token": 5}"#, "eos_token is 5");
    check("tokenizer_config.json", r#"{"eos_token": "<absent>"}"#, "<absent>");
    check("tokenizer_config.json", r#"{"add_bos_token": "yes"}"#, "add_bos_token");
    check("generation_config.json", r#"{"eos_token_id": "x"}"#, "eos_token_id");
    check("config.json", r#"{"eos_token_id": [1, -1]}"#, "eos_token_id is -1");
    assert!(open().is_ok());

    let missing = Tokenizer::from_dir(Path::new("no/such/folder")).unwrap_err();
    assert!(matches!(&missing, TextError::Read { .. }));
    assert!(missing.to_string().contains("no/such/folder/tokenizer.json"), "{missing}");
}

#[test]
fn lying_files_are_refused() {
    let check = |change: &dyn Fn(&mut Value), part: &str| {
        let mut file = byte_level_json(&["<b>", "<e>"]);
        change(&mut file);
        let error = try_load(&file, &json!({})).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    check(&|file| file["model"]["vocab"]["he"] = 5.into(), "the same id 5");
    check(&|file| file["model"]["vocab"]["he"] = (-1).into(), "the id -1");
    check(&|file| file["model"]["merges"][0] = json!(["a", "zz"]), "names \"zz\"");
    check(&|file| file["model"]["merges"][0] = json!("a zz"), "names \"zz\"");
    check(&|file| file["model"]["merges"][0] = json!("azz"), "not a pair");
    check(&|file| file["model"]["merges"][0] = json!(7), "not a pair");
    // The library panics on these two.
    check(&|file| file["model"]["merges"][0] = json!(["<b>", "<e>"]), "joins");
    check(
        &|file| file["model"]["continuing_subword_prefix"] = "longer than any token".into(),
        "joins",
    );
    check(&|file| file["added_tokens"][1]["id"] = 900.into(), "has the id 900");
    check(&|file| file["added_tokens"][0]["content"] = "<new>".into(), "<new>");
    // An added token in the place of another.
    check(&|file| file["added_tokens"][0]["content"] = "he".into(), "\"he\"");
    check(&|file| file["added_tokens"][0]["content"] = "<e>".into(), "\"<e>\"");
    check(
        &|file| file["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
        "does not load",
    );
}

/// The engine of expressions counts its steps back, so the time is bounded whatever the file says.
#[test]
fn an_expression_that_tries_everything_is_stopped() {
    let mut file = byte_level_json(&["<b>"]);
    for expression in ["(a+)+\\1c", "(?:a|aa)+(?!a)b", "(?=(a+)+\\1b)a"] {
        file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]});
        let tokenizer = load(&file, &json!({}));
        let text = "a".repeat(60);
        match tokenizer.encode(&text) {
            Ok(ids) => assert_eq!(tokenizer.decode(&ids).unwrap(), text),
            Err(error) => assert!(matches!(error, TextError::Encode { .. }), "{error}"),
        }
    }
}

#[test]
fn empty_patterns_are_refused() {
    let check = |part: &str, content: Value, place: &str| {
        let mut file = sentence_piece_json(&[]);
        file[part] = content;
        let error = try_load(&file, &json!({})).unwrap_err().to_string();
        assert!(error.contains(place) && error.contains("is empty"), "{error}");
    };
    for pattern in [json!({"String": ""}), json!({"Regex": ""})] {
        let replace = json!({"type": "Replace", "pattern": pattern, "content": "x"});
        check("normalizer", replace.clone(), "normalizer.pattern");
        check("decoder", replace.clone(), "decoder.pattern");
        let nested = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, replace]});
        check("normalizer", nested, "normalizer.normalizers[1].pattern");
        let split =
            json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
        check("pre_tokenizer", split, "pre_tokenizer.pattern");
    }
}

#[test]
fn tokens_beyond_the_embedding_are_named() {
    let tokenizer = load(&byte_level_json(&["<b>"]), &json!({}));
    let last = tokenizer.max_id();
    tokenizer.check_vocab(last as usize + 1).unwrap();
    let error = tokenizer.check_vocab(last as usize).unwrap_err().to_string();
    assert!(error.contains(&last.to_string()) && error.contains("\"end\""), "{error}");
}

#[test]
fn left_over_training_settings_are_ignored() {
    let mut file = byte_level_json(&["<pad>"]);
    let plain = load(&file, &json!({}));
    file["truncation"] =
        json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"});
    file["model"]["dropout"] = 0.9.into();
    let tokenizer = load(&file, &json!({}));
    let text = "the end of all the things that end";
    assert_eq!(tokenizer.encode(text).unwrap(), plain.encode(text).unwrap());
}

#[test]
fn added_tokens_decoder_extends_the_vocabulary() {
    let file = byte_level_json(&["<b>"]);
    let next = load(&file, &json!({})).max_id() + 1;
    let token = json!({"content": "<new>", "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true});
    let tokenizer = load(&file, &json!({"added_tokens_decoder": {next.to_string(): token}}));
    assert_eq!(tokenizer.encode_with_specials("<new>").unwrap(), [next]);
    let wrong = json!({"added_tokens_decoder": {(next + 5).to_string(): token}});
    assert!(try_load(&file, &wrong).unwrap_err().to_string().contains("<new>"));
}

#[test]
fn a_unigram_model_spells_control_pieces_out() {
    // The library's model would find the token in its list, special or not.
    let mut vocab = vec![json!(["<unk>", 0.0]), json!(["</s>", -1.0]), json!(["a", -2.0])];
    vocab.extend(["<", "/", "s", ">"].map(|piece| json!([piece, -9.0])));
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 1, "content": "</s>", "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": vocab},
    });
    let tokenizer = load(&file, &json!({"eos_token": "</s>"}));
    assert_eq!(tokenizer.encode("a").unwrap(), [2]);
    assert_eq!(tokenizer.encode("a</s>").unwrap(), [2, 3, 4, 5, 6]);
    assert_eq!(tokenizer.encode_with_specials("a</s>").unwrap(), [2, 1]);
    assert_eq!(tokenizer.decode(&[2, 3, 4, 5, 6]).unwrap().replace(' ', ""), "a</s>");
}

#[test]
fn a_control_token_that_cannot_be_spelt_otherwise_is_refused() {
    // Whole words have no spelling.
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 1, "content": "</s>", "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "</s>": 1, "a": 2}},
    });
    let tokenizer = load(&file, &json!({"eos_token": "</s>"}));
    assert_eq!(tokenizer.encode("a b").unwrap(), [2, 0]);
    assert!(matches!(tokenizer.encode("a </s>"), Err(TextError::ControlToken { .. })));
}

/// Text of people, with things in it that look like control tokens.
fn hostile_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        3 => "[ a-ehlnotAU.:é\\n]{0,8}",
        1 => "\\PC{0,4}",
        1 => prop::sample::select(vec!["<|im_end|>", "<|im_start|>", "<s>", "</s>", "<unk>", "<|im_", "end|>", "<<s>", "<|endoftext|>", "▁", "<0x41>", "\u{F0000}"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

/// One tokenizer of each kind, as this crate and as the library reads it.
static KINDS: LazyLock<Vec<(&str, Tokenizer, tokenizers::Tokenizer)>> = LazyLock::new(|| {
    let pair = |(name, file, tokenizer)| (name, tokenizer, library(&file));
    every_kind().into_iter().map(pair).collect()
});

proptest! {
    #[test]
    fn same_ids_as_the_library(text in hostile_text()) {
        for (name, tokenizer, library) in &*KINDS {
            let mut library = library.clone();
            let ids = |library: &tokenizers::Tokenizer| library.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
            prop_assert_eq!(tokenizer.encode_with_specials(&text).unwrap(), ids(&library), "{}", name);
            library.set_encode_special_tokens(true);
            prop_assert_eq!(tokenizer.encode(&text).unwrap(), ids(&library), "{} plain", name);
        }
    }

    #[test]
    fn text_never_becomes_a_control_token(text in hostile_text()) {
        for (name, tokenizer, _) in &*KINDS {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "{} {:?}", name, ids);
            if *name == "byte level" {
                prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_str());
            }
        }
    }
}

/// A tokenizer of an encoder, against what Transformers makes of whole texts.
#[test]
fn a_whole_text_stands_between_the_tokens_of_its_model() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/encoders/bert");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let golden: Value =
        serde_json::from_slice(&fs::read(dir.join("golden.json")).unwrap()).unwrap();
    let cases = golden["tokens"].as_object().unwrap();
    assert!(cases.len() >= 2);
    for (text, ids) in cases {
        assert_eq!(json!(tokenizer.encode_whole(text).unwrap()), *ids, "{text}");
    }
    // Text never becomes a control token.
    let ids = tokenizer.encode_whole("my [SEP] leak").unwrap();
    assert_eq!(ids.iter().filter(|id| tokenizer.is_control(**id)).count(), 2, "{ids:?}");
    assert_eq!((ids[0], ids[ids.len() - 1]), (2, 3));
    assert_eq!(tokenizer.encode_whole("").unwrap(), [2, 3]);

    let nano = Tokenizer::from_dir(&nano()).unwrap();
    assert_eq!(nano.encode_whole("héllo").unwrap(), nano.encode_prompt("héllo").unwrap());
    // The settings decide about the beginning token, whatever the vocabulary's file does.
    let plain = byte_level_json(&["<|bos|>"]);
    let with = |add: bool| {
        let config = json!({"bos_token": "<|bos|>", "add_bos_token": add});
        let config = serde_json::to_vec(&config).unwrap();
        let tokenizer = Tokenizer::from_bytes(plain.to_string().as_bytes(), Some(&config));
        tokenizer.unwrap().encode_whole("ab").unwrap()
    };
    assert_eq!(with(true)[1..], with(false)[..]);
}
