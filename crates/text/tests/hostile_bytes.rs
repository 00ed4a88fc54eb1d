//! Whatever is in a tokenizer file: loading, encoding and decoding end with a result or an error,
//! never with a panic. Each file here is an honest one with a few lies in it.

mod common;

use common::{byte_level_json, metaspace_json, sentence_piece_json};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};
use std::sync::LazyLock;
use text::Tokenizer;

const TEXTS: [&str; 4] = ["", "the end <b>", "  é😀\n\n\u{2581}x ", "AAAA<0x41>ll\0"];

/// Loads the bytes, and uses what loads in every way there is.
fn use_all(tokenizer_json: &[u8], config: Option<&[u8]>) {
    let Ok(tokenizer) = Tokenizer::from_bytes(tokenizer_json, config) else { return };
    for text in TEXTS {
        let plain = tokenizer.encode(text);
        let others = [tokenizer.encode_with_specials(text), tokenizer.encode_prompt(text)];
        for ids in others.into_iter().chain([plain]).flatten() {
            let _ = tokenizer.decode(&ids);
        }
    }
    let _ = tokenizer.decode(&[0, 1, 2, 3, 270, u32::MAX]);
    let _ = text::ChatTemplate::plain().render(
        &tokenizer,
        &text::Conversation::new(vec![
            text::Message::new("user", "the <b> end"),
            text::Message::new("assistant", "all"),
        ]),
        false,
    );
}

static HONEST: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let mut cut = byte_level_json(&["<b>", "<e>"]);
    cut["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "},
        {"type": "Strip", "strip_left": true, "strip_right": false}, {"type": "Lowercase"},
    ]});
    cut["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\s+(?!\\S)|\\w+"}, "behavior": "Isolated", "invert": false},
        {"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    let unigram = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{"id": 1, "content": "<b>", "special": true, "normalized": true, "single_word": false, "lstrip": true, "rstrip": false}],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [["<unk>", 0.0], ["<b>", -1.0], ["the", -2.0], ["e", -3.0], ["n", -3.5]]},
    });
    vec![
        byte_level_json(&["<b>", "<e>"]),
        cut,
        sentence_piece_json(&["<b>"]),
        metaspace_json(&[]),
        unigram,
    ]
});

/// Walks down `path`, at each level to the child of that number modulo how many there are, and
/// changes what is there: replaces it, or removes it where `with` is `None`.
fn change(value: &mut Value, path: &[usize], with: Option<&Value>) {
    let children = match &*value {
        Value::Object(fields) => fields.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    };
    let Some((step, rest)) = path.split_first().filter(|_| children > 0) else {
        *value = with.cloned().unwrap_or(Value::Null);
        return;
    };
    let index = step % children;
    if rest.is_empty() && with.is_none() {
        match value {
            Value::Object(fields) => {
                let name = fields.keys().nth(index).cloned().expect("the index is in range");
                fields.remove(&name);
            }
            Value::Array(items) => drop(items.remove(index)),
            _ => {}
        }
        return;
    }
    let child = match value {
        Value::Object(fields) => fields.values_mut().nth(index),
        Value::Array(items) => items.get_mut(index),
        _ => None,
    };
    change(child.expect("the index is in range"), rest, with);
}

/// What a lie may put in place of the truth: wrong types, empty and odd strings, patterns that match
/// nothing, everything or only the end, numbers at the edges, other steps.
fn lie() -> impl Strategy<Value = Option<Value>> {
    let values = vec![
        json!(null),
        json!(true),
        json!(""),
        json!(" "),
        json!("\u{2581}"),
        json!("<b>"),
        json!("é"),
        json!("##"),
        json!("x*"),
        json!("(?=a)"),
        json!("$"),
        json!("^"),
        json!("|"),
        json!(0),
        json!(1),
        json!(-1),
        json!(255),
        json!(4294967295u64),
        json!(u64::MAX),
        json!(0.5),
        json!(-1e308),
        json!([]),
        json!({}),
        json!([["e", "n"]]),
        json!({"String": ""}),
        json!({"Regex": ""}),
        json!({"Regex": "(a*)*"}),
        json!({"String": "e"}),
        json!({"type": "Strip", "content": "e", "start": 9, "stop": 9}),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "Prepend", "prepend": ""}),
        json!({"type": "Prepend", "prepend": "<b>"}),
        json!({"type": "Replace", "pattern": {"Regex": "."}, "content": ""}),
        json!({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "yy"}),
        json!({"type": "Split", "pattern": {"Regex": "x*"}, "behavior": "MergedWithNext", "invert": true}),
        json!({"type": "Split", "pattern": {"String": "e"}, "behavior": "Removed", "invert": true}),
        json!({"type": "FixedLength", "length": 0}),
        json!({"type": "UnicodeScripts"}),
        json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8A"}),
        json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
        json!({"type": "BPEDecoder", "suffix": ""}),
        json!({"type": "NFKD"}),
        json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
        json!({"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}),
        json!({"type": "WordLevel", "vocab": {"the": 0}, "unk_token": "?"}),
        json!({"type": "WordPiece", "vocab": {"t": 0, "##": 1}, "unk_token": "t", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}),
    ];
    prop_oneof![1 => Just(None), 6 => prop::sample::select(values).prop_map(Some)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, rng_seed: RngSeed::Fixed(3), ..ProptestConfig::default() })]

    #[test]
    fn lying_values(
        file in 0usize..5,
        lies in prop::collection::vec((prop::collection::vec(0usize..300, 1..6), lie()), 1..4),
        config in prop::option::of(lie()),
    ) {
        let mut value = HONEST[file].clone();
        for (path, with) in lies {
            change(&mut value, &path, with.as_ref());
        }
        let config = config.flatten().map(|lie| json!({"bos_token": "<b>", "eos_token": lie}).to_string());
        use_all(value.to_string().as_bytes(), config.as_deref().map(str::as_bytes));
    }

    #[test]
    fn lying_bytes(
        file in 0usize..5,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut bytes = HONEST[file].to_string().into_bytes();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        use_all(&bytes, None);
    }
}
