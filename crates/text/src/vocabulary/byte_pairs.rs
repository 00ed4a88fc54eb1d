//! GPT-2's vocabularies: bytes written as letters, and the pair of files that lists them
//! (`encoder.json` and `vocab.bpe`, or in Transformers' names `vocab.json` and `merges.txt`).

use std::path::Path;

use serde_json::Value;

use super::pre_tokenizer::PreTokenizer;
use super::{Algorithm, Read, TokenType, Vocabulary, read_file};
use crate::error::{TextError, excerpt};
use crate::tokenizer::{Settings, hex_sha256};

/// What GPT-2's tokenizer ends and separates texts with.
const END_OF_TEXT: &str = "<|endoftext|>";

/// The letter that a byte is written as: itself where it is printable, else the next one from
/// U+0100 on (`bytes_to_unicode` in GPT-2's encoder.py).
pub(super) fn letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|byte| !printable(*byte)).count() as u32;
    char::from_u32(0x100 + rank).expect("U+0100 to U+0143 are characters")
}

/// The letters of all bytes.
pub(super) fn alphabet() -> impl Iterator<Item = String> {
    (0..=u8::MAX).map(|byte| letter(byte).to_string())
}

/// Pairs from lines of the form `left right`, each of which must join two tokens to a third.
///
/// # Errors
/// The line that does not, with `place` before its number.
pub(super) fn parse_merges<'a>(
    lines: impl Iterator<Item = &'a str>,
    ids: impl Fn(&str) -> bool,
    place: &str,
) -> Result<Vec<(String, String)>, String> {
    let mut merges = Vec::new();
    for (index, line) in lines.enumerate() {
        let Some((left, right)) = line.split_once(' ') else {
            return Err(format!("{place}[{index}] is {:?}, not a pair of tokens", excerpt(line)));
        };
        for part in [left, right, &format!("{left}{right}")] {
            if !ids(part) {
                return Err(format!(
                    "{place}[{index}] needs the token {:?}, which is not in the vocabulary",
                    excerpt(part)
                ));
            }
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

/// Reads the pair of files. `class` is the `tokenizer_class` of `tokenizer_config.json`.
pub(super) fn read(
    vocab_path: &Path,
    merges_path: &Path,
    class: Option<&str>,
    mut settings: Settings,
) -> Result<Read, TextError> {
    let invalid = |path: &Path, found: String| TextError::Invalid {
        path: path.to_owned(),
        found,
        expected: "a byte-level vocabulary with its merges",
    };
    let vocab_bytes = read_file(vocab_path, "a vocabulary: a JSON object of tokens and ids")?;
    let merges_bytes = read_file(merges_path, "merges: one pair of tokens a line")?;
    let pre_tokenizer = match class {
        Some(class) => PreTokenizer::of_class(class),
        None if vocab_path.ends_with("encoder.json") => PreTokenizer::named("gpt-2"),
        None => Err("no tokenizer_config.json with a tokenizer_class says how to cut words".into()),
    }
    .map_err(|found| invalid(vocab_path, found))?;

    let vocab: serde_json::Map<String, Value> = serde_json::from_slice(&vocab_bytes)
        .map_err(|error| invalid(vocab_path, format!("not a JSON object ({error})")))?;
    let mut tokens = vec![None; vocab.len()];
    for (token, id) in &vocab {
        let place = id.as_u64().and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        match place {
            Some(place @ None) => *place = Some(token.clone()),
            Some(Some(other)) => {
                let found = format!("{other:?} and {token:?} have the same id {id}");
                return Err(invalid(vocab_path, found));
            }
            None => {
                let found =
                    format!("{token:?} has the id {id}, but there are {} tokens", vocab.len());
                return Err(invalid(vocab_path, found));
            }
        }
    }
    // As many distinct ids below the number of tokens as tokens: none is left out.
    let tokens: Vec<String> = tokens.into_iter().flatten().collect();

    let text = std::str::from_utf8(&merges_bytes)
        .map_err(|error| invalid(merges_path, format!("not UTF-8 ({error})")))?;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
    let merges = parse_merges(lines, |token| vocab.contains_key(token), "merge")
        .map_err(|found| invalid(merges_path, found))?;

    let end = vocab.get(END_OF_TEXT).and_then(Value::as_u64);
    let types = (0..tokens.len() as u64)
        .map(|id| if Some(id) == end { TokenType::Control } else { TokenType::Normal })
        .collect();
    if end.is_some() && !settings.knows_tokens {
        settings.name_token("bos_token", END_OF_TEXT);
        settings.name_token("eos_token", END_OF_TEXT);
    }
    settings.add_bos.get_or_insert(pre_tokenizer.adds_bos);
    let algorithm = Algorithm::Bytes {
        merges,
        pre_tokenizer,
        whole_words_first: pre_tokenizer.whole_words_first,
    };
    Ok(Read {
        vocabulary: Vocabulary { tokens, types, algorithm, unknown: None },
        settings,
        path: vocab_path.to_owned(),
        sha256: hex_sha256(&[vocab_bytes, merges_bytes].concat()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_the_library_s() {
        let library: std::collections::HashSet<String> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
                .into_iter()
                .map(String::from)
                .collect();
        assert_eq!(alphabet().collect::<std::collections::HashSet<_>>(), library);
        assert_eq!((letter(b' '), letter(b'\n'), letter(b'a')), ('Ġ', 'Ċ', 'a'));
    }
}
