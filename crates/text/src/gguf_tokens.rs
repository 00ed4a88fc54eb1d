//! A tokenizer as the metadata of a GGUF file (`tokenizer.ggml.*`), as far as llama.cpp can do what
//! the tokenizer does: what it would do otherwise is refused, because a model that is given other
//! tokens answers nonsense without any error.

use crate::tokenizer::Tokenizer;
use crate::vocabulary::pre_tokenizer::{LLAMA_3, QWEN_2, TEKKEN};
use serde_json::Value;
use std::collections::HashMap;

/// The values of `tokenizer.ggml.*`.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTokens {
    /// `model`: "gpt2" (byte-level pairs) or "llama" (SentencePiece's pairs by score).
    pub model: &'static str,
    /// `pre`: how text is cut into words.
    pub pre: &'static str,
    /// `tokens`: the id of a token is its position.
    pub tokens: Vec<String>,
    /// `token_type`, as many: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub types: Vec<i32>,
    /// `scores`, as many, for "llama".
    pub scores: Option<Vec<f32>>,
    /// `merges`, for "gpt2".
    pub merges: Option<Vec<String>>,
    /// `bos_token_id`.
    pub bos_id: Option<u32>,
    /// `eos_token_id`.
    pub eos_id: Option<u32>,
    /// `eot_token_id`: another token that ends an answer.
    pub eot_id: Option<u32>,
    /// `unknown_token_id`.
    pub unknown_id: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: bool,
    /// `add_space_prefix`, for "llama".
    pub add_space_prefix: Option<bool>,
}

/// A tokenizer that does what no GGUF file can say.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer cannot be written into a GGUF file: {0}")]
pub struct NotInGguf(String);

const UNUSED: i32 = 5;

/// Ways to cut text into words that llama.cpp knows, and its names for them (`llama-vocab.cpp`):
/// the expressions of Split steps, "digits" and "gpt2" for the steps that have none.
const CUTS: &[(&str, &[&str])] = &[
    ("gpt-2", &["gpt2"]),
    ("smollm", &["digits", "gpt2"]),
    ("llama-bpe", &[LLAMA_3]),
    ("qwen2", &[QWEN_2]),
    ("tekken", &[TEKKEN]),
];

impl Tokenizer {
    /// The tokenizer as GGUF metadata, with one token for each of the model's `rows`.
    ///
    /// # Errors
    /// [`NotInGguf`] with what llama.cpp has no word for.
    pub fn to_gguf(&self, rows: usize) -> Result<GgufTokens, NotInGguf> {
        let file = self.to_json();
        let model = &file["model"];
        if model["type"].as_str() != Some("BPE") {
            let found = model["type"].as_str().unwrap_or("another kind");
            return Err(NotInGguf(format!("found the algorithm {found}, expected BPE")));
        }
        let merges = merges(model);
        let sentence_piece = model["byte_fallback"].as_bool() == Some(true);
        let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; rows];
        for id in 0..rows as u32 {
            let Some(token) = self.token(id) else { continue };
            types[id as usize] = match () {
                _ if self.is_control(id) && model["unk_token"].as_str() == Some(&token) => 2,
                _ if self.is_control(id) => 3,
                _ if sentence_piece && is_byte(&token) => 6,
                _ if is_added(&file, id) => 4,
                _ => 1,
            };
            tokens[id as usize] = token;
        }
        let eot_id = self.stop_ids().iter().copied().find(|id| Some(*id) != self.eos_id());
        let unknown_id = model["unk_token"].as_str().and_then(|token| self.token_id(token));
        let mut out = GgufTokens {
            model: "gpt2",
            pre: "default",
            tokens,
            types,
            scores: None,
            merges: None,
            bos_id: self.bos_id(),
            eos_id: self.eos_id(),
            eot_id,
            unknown_id,
            add_bos: self.add_bos(),
            add_space_prefix: None,
        };
        if sentence_piece {
            out.model = "llama";
            out.add_space_prefix = Some(space_prefix(&file)?);
            out.scores = Some(scores(&merges, &out.tokens));
        } else {
            let cuts = cuts(&file)?;
            let known = CUTS.iter().find(|(_, known)| *known == cuts);
            out.pre = known.map(|(name, _)| *name).ok_or_else(|| {
                NotInGguf(format!(
                    "its words are cut by {cuts:?}, which is none of the ways that llama.cpp knows"
                ))
            })?;
            out.merges = Some(merges.into_iter().map(|(a, b)| format!("{a} {b}")).collect());
        }
        Ok(out)
    }
}

/// Pairs, in either of the forms that files have.
fn merges(model: &Value) -> Vec<(String, String)> {
    let pair = |value: &Value| match value {
        Value::String(pair) => pair.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Value::Array(pair) => Some((pair.first()?.as_str()?.into(), pair.get(1)?.as_str()?.into())),
        _ => None,
    };
    model["merges"].as_array().into_iter().flatten().filter_map(pair).collect()
}

/// SentencePiece joins the pair whose token has the highest score: the earlier a merge, the higher.
fn scores(merges: &[(String, String)], tokens: &[String]) -> Vec<f32> {
    let mut rank: HashMap<String, usize> = HashMap::new();
    for (i, (a, b)) in merges.iter().enumerate() {
        rank.entry(format!("{a}{b}")).or_insert(i);
    }
    let last = merges.len();
    tokens.iter().map(|token| -(rank.get(token).copied().unwrap_or(last) as f32)).collect()
}

fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

fn is_added(file: &Value, id: u32) -> bool {
    let added = file["added_tokens"].as_array();
    added.into_iter().flatten().any(|token| token["id"].as_u64() == Some(u64::from(id)))
}

/// Whether SentencePiece puts a space before the text.
fn space_prefix(file: &Value) -> Result<bool, NotInGguf> {
    let steps = |value: &Value, list: &str| match value {
        Value::Null => Vec::new(),
        one => one[list].as_array().cloned().unwrap_or_else(|| vec![one.clone()]),
    };
    let mut prefix = false;
    for step in steps(&file["normalizer"], "normalizers") {
        match step["type"].as_str().unwrap_or_default() {
            "Prepend" => prefix = true,
            "Replace" if step["content"].as_str() == Some("\u{2581}") => {}
            other => {
                return Err(NotInGguf(format!("its text is normalised by {other}")));
            }
        }
    }
    for step in steps(&file["pre_tokenizer"], "pretokenizers") {
        match (step["type"].as_str().unwrap_or_default(), step["prepend_scheme"].as_str()) {
            ("Metaspace", Some("first" | "always")) => prefix = true,
            ("Metaspace", Some("never")) => {}
            (other, _) => {
                return Err(NotInGguf(format!("its words are cut by {other}")));
            }
        }
    }
    Ok(prefix)
}

/// The steps of the pre-tokenizer of a byte-level tokenizer, in the words of [`CUTS`].
fn cuts(file: &Value) -> Result<Vec<String>, NotInGguf> {
    // llama.cpp composes no letters, but most text is composed already; Qwen's files, which say NFC,
    // are published in GGUF all the same.
    if !matches!(file["normalizer"]["type"].as_str(), None | Some("NFC")) {
        return Err(NotInGguf(format!("its text is normalised by {}", file["normalizer"]["type"])));
    }
    let pre = &file["pre_tokenizer"];
    let steps = pre["pretokenizers"].as_array().cloned().unwrap_or_else(|| vec![pre.clone()]);
    let mut cuts = Vec::new();
    for step in steps {
        match step["type"].as_str().unwrap_or_default() {
            "Split" => match step["pattern"]["Regex"].as_str() {
                Some(expression) => cuts.push(expression.to_owned()),
                None => return Err(NotInGguf("its words are cut at a fixed string".into())),
            },
            "Digits" if step["individual_digits"].as_bool() == Some(true) => {
                cuts.push("digits".to_owned());
            }
            "ByteLevel" if step["add_prefix_space"].as_bool() != Some(true) => {
                if step["use_regex"].as_bool() != Some(false) {
                    cuts.push("gpt2".to_owned());
                }
            }
            other => return Err(NotInGguf(format!("its words are cut by {other}"))),
        }
    }
    Ok(cuts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(json: &str) -> Tokenizer {
        Tokenizer::from_bytes(json.as_bytes(), None).unwrap()
    }

    #[test]
    fn byte_level_pairs_are_listed() {
        let json = r#"{"added_tokens": [
              {"id": 3, "content": "<e>", "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false},
              {"id": 4, "content": "<u>", "special": false, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false}],
            "normalizer": null, "post_processor": null, "decoder": {"type": "ByteLevel",
              "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
              "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}"#;
        let out = tokenizer(json).to_gguf(7).unwrap();
        assert_eq!((out.model, out.pre), ("gpt2", "gpt-2"));
        assert_eq!(out.tokens, ["a", "b", "ab", "<e>", "<u>", "[PAD5]", "[PAD6]"]);
        assert_eq!(out.types, [1, 1, 1, 3, 4, 5, 5]);
        assert_eq!(out.merges, Some(vec!["a b".to_owned()]));
        assert_eq!(out.scores, None);
        let other = json.replace(
            r#""type": "ByteLevel", "add_prefix_space": false"#,
            r#""type": "Whitespace", "x": 1"#,
        );
        let refused = tokenizer(&other).to_gguf(7).unwrap_err().to_string();
        assert!(refused.contains("Whitespace"), "{refused}");
    }

    #[test]
    fn sentence_piece_pairs_become_scores() {
        let json = r#"{"added_tokens": [], "post_processor": null, "decoder": null,
            "normalizer": {"type": "Sequence", "normalizers": [
              {"type": "Prepend", "prepend": "\u2581"},
              {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
            "pre_tokenizer": null,
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": null,
              "vocab": {"<0x0A>": 0, "\u2581": 1, "a": 2, "\u2581a": 3, "aa": 4},
              "merges": [["a", "a"], ["\u2581", "a"]]}}"#;
        let out = tokenizer(json).to_gguf(5).unwrap();
        assert_eq!((out.model, out.add_space_prefix), ("llama", Some(true)));
        assert_eq!(out.types, [6, 1, 1, 1, 1]);
        assert_eq!(out.scores, Some(vec![-2.0, -2.0, -2.0, -1.0, -0.0]));
        assert_eq!(out.merges, None);
    }
}
