//! The vocabulary in a GGUF file's metadata (`tokenizer.ggml.*`).

use std::path::Path;

use sha2::{Digest, Sha256};

use super::byte_pairs::parse_merges;
use super::pre_tokenizer::PreTokenizer;
use super::{Algorithm, Read, Spelling, TokenType, Vocabulary};
use crate::error::{TextError, excerpt};
use crate::tokenizer::{Settings, hex};

/// The values of `tokenizer.ggml.*` as they are in the file, checked by
/// [`Tokenizer::from_gguf`](crate::Tokenizer::from_gguf).
#[derive(Clone, Copy, Debug, Default)]
pub struct GgufVocabulary<'a> {
    /// `model`: the kind of vocabulary.
    pub model: &'a str,
    /// `pre`: how byte-level kinds cut text into words.
    pub pre: Option<&'a str>,
    /// `tokens`: the id of a token is its position.
    pub tokens: &'a [String],
    /// `scores`, as many as tokens.
    pub scores: Option<&'a [f32]>,
    /// `token_type`, as many as tokens: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
    /// 6 byte.
    pub token_types: Option<&'a [i32]>,
    /// `merges`: pairs with a space between.
    pub merges: Option<&'a [String]>,
    /// `bos_token_id`.
    pub bos_id: Option<u32>,
    /// `eos_token_id`.
    pub eos_id: Option<u32>,
    /// `unknown_token_id`.
    pub unknown_id: Option<u32>,
    /// `padding_token_id`.
    pub padding_id: Option<u32>,
    /// `eot_token_id` and `eom_token_id`: further ends of an answer.
    pub end_ids: [Option<u32>; 2],
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `remove_extra_whitespaces`.
    pub remove_extra_whitespaces: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<&'a str>,
}

impl GgufVocabulary<'_> {
    pub(crate) fn read(&self, path: &Path) -> Result<Read, TextError> {
        let invalid = |found: String| TextError::Invalid {
            path: path.to_owned(),
            found,
            expected: "a tokenizer in tokenizer.ggml.*",
        };
        let mut settings = Settings { knows_tokens: true, ..Settings::default() };
        let vocabulary = self.vocabulary(&mut settings).map_err(invalid)?;
        let count = self.tokens.len();
        for (name, key, id) in [
            ("bos_token", "bos_token_id", self.bos_id),
            ("eos_token", "eos_token_id", self.eos_id),
            ("unk_token", "unknown_token_id", self.unknown_id),
            ("pad_token", "padding_token_id", self.padding_id),
            ("", "eot_token_id", self.end_ids[0]),
            ("", "eom_token_id", self.end_ids[1]),
        ] {
            let Some(id) = id else { continue };
            let Some(token) = self.tokens.get(id as usize) else {
                return Err(invalid(format!("{key} is {id}, but there are {count} tokens")));
            };
            match name {
                "" => settings.eos_ids.push(id),
                name => settings.name_token(name, token),
            }
        }
        Ok(Read { vocabulary, settings, path: path.to_owned(), sha256: self.sha256() })
    }

    fn vocabulary(&self, settings: &mut Settings) -> Result<Vocabulary, String> {
        settings.add_bos = self.add_bos;
        let count = self.tokens.len();
        let types = match self.token_types {
            None => vec![TokenType::Normal; count],
            Some(types) => types
                .iter()
                .enumerate()
                .map(|(id, kind)| token_type(*kind).ok_or(format!("token_type[{id}] is {kind}")))
                .collect::<Result<_, _>>()?,
        };
        let (algorithm, unknown) = match self.model {
            "llama" => {
                let spelling = Spelling {
                    add_prefix: self.add_space_prefix.unwrap_or(true),
                    collapse_spaces: self.remove_extra_whitespaces.unwrap_or(false),
                    charsmap: Vec::new(),
                };
                let scores = self.scores.ok_or("it has no scores")?.to_vec();
                settings.add_bos.get_or_insert(true);
                // The key is often left out; 0 is the kind's own default.
                let unknown = self.unknown_id.unwrap_or(0);
                (Algorithm::ScoredPairs { scores, spelling }, Some(unknown))
            }
            "gpt2" => {
                let name = self.pre.ok_or(
                    "tokenizer.ggml.pre is missing, so it is not known how text is cut into \
                     words; hint: convert the model again with a current converter",
                )?;
                let pre_tokenizer = PreTokenizer::named(name)?;
                let known: std::collections::HashSet<&str> =
                    self.tokens.iter().map(String::as_str).collect();
                let lines = self.merges.ok_or("it has no merges")?.iter().map(String::as_str);
                let merges = parse_merges(lines, |token| known.contains(token), "merges")?;
                settings.add_bos.get_or_insert(pre_tokenizer.adds_bos);
                let whole_words_first = pre_tokenizer.whole_words_first;
                (Algorithm::Bytes { merges, pre_tokenizer, whole_words_first }, None)
            }
            other => {
                return Err(format!(
                    "its kind (tokenizer.ggml.model) is {:?}; known are llama and gpt2",
                    excerpt(other)
                ));
            }
        };
        Ok(Vocabulary { tokens: self.tokens.to_vec(), types, algorithm, unknown })
    }

    /// A digest of everything that decides how text is spelt.
    fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        // Each list begins with its length and each text ends with a byte that UTF-8 never has, so
        // that no two vocabularies have the same bytes.
        let text = |hasher: &mut Sha256, text: &str| {
            hasher.update(text.as_bytes());
            hasher.update([0xff]);
        };
        text(&mut hasher, self.model);
        text(&mut hasher, self.pre.unwrap_or_default());
        for list in [self.tokens, self.merges.unwrap_or_default()] {
            hasher.update((list.len() as u64).to_le_bytes());
            list.iter().for_each(|item| text(&mut hasher, item));
        }
        for score in self.scores.unwrap_or_default() {
            hasher.update(score.to_le_bytes());
        }
        for kind in self.token_types.unwrap_or_default() {
            hasher.update(kind.to_le_bytes());
        }
        let flags = [self.add_bos, self.add_space_prefix, self.remove_extra_whitespaces];
        let ids = [self.bos_id, self.eos_id, self.unknown_id, self.padding_id];
        text(&mut hasher, &format!("{flags:?}{ids:?}{:?}", self.end_ids));
        hex(&hasher.finalize())
    }
}

fn token_type(kind: i32) -> Option<TokenType> {
    Some(match kind {
        1 => TokenType::Normal,
        2 => TokenType::Unknown,
        3 => TokenType::Control,
        4 => TokenType::UserDefined,
        5 => TokenType::Unused,
        6 => TokenType::Byte,
        _ => return None,
    })
}
