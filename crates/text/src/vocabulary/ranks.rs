//! tiktoken's rank files: a line for each token, its bytes in base64 and its rank, which is its id.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::byte_pairs::letter;
use super::pre_tokenizer::{PreTokenizer, RANK_FILES};
use super::{Algorithm, MergeRoom, Read, TokenType, Vocabulary, read_file};
use crate::error::{TextError, excerpt};
use crate::tokenizer::{Settings, hex_sha256};

const EXPECTED: &str = "a rank file of tiktoken: a line for each token, base64 and rank";

pub(super) fn read(path: &Path, mut settings: Settings) -> Result<Read, TextError> {
    let invalid =
        |found: String| TextError::Invalid { path: path.to_owned(), found, expected: EXPECTED };
    let bytes = read_file(path, EXPECTED)?;
    let name = path.file_name().unwrap_or_default();
    let Some(file) = RANK_FILES.iter().find(|file| name == file.name) else {
        let known: Vec<&str> = RANK_FILES.iter().map(|file| file.name).collect();
        return Err(invalid(format!(
            "a rank file does not say how text is cut into words, and this one is not known by its \
             name (known are {}); hint: take the model's tokenizer.json",
            known.join(", ")
        )));
    };
    let pre_tokenizer = PreTokenizer::named(file.words).map_err(invalid)?;
    let ranks = parse(&bytes).map_err(invalid)?;
    if let Some(count) = file.ranks.filter(|count| *count != ranks.len()) {
        return Err(invalid(format!(
            "it has {} ranks, but the one that is known under this name has {count}; hint: take the \
             model's tokenizer.json",
            ranks.len()
        )));
    }
    let merges = merges(&ranks).map_err(invalid)?;
    let mut tokens: Vec<String> =
        ranks.iter().map(|token| token.iter().copied().map(letter).collect()).collect();
    let mut types = vec![TokenType::Normal; tokens.len()];
    // tokenizer_config.json adds them where it lists them.
    if settings.added.is_empty() {
        tokens.extend(file.all_controls());
        types.resize(tokens.len(), TokenType::Control);
        if !settings.knows_tokens {
            settings.name_token("eos_token", file.ends[0]);
            if let Some(begin) = file.begin {
                settings.name_token("bos_token", begin);
            }
        }
        if settings.eos_ids.is_empty() {
            let id = |end: &&str| file.controls.iter().position(|token| token == end);
            let ids = file.ends.iter().filter_map(id).map(|at| (ranks.len() + at) as u32);
            settings.eos_ids.extend(ids);
        }
    }
    settings.add_bos.get_or_insert(pre_tokenizer.adds_bos);
    // A word that is a token as a whole is looked up as such, whatever joins to it.
    let algorithm = Algorithm::Bytes { merges, pre_tokenizer, whole_words_first: true };
    Ok(Read {
        vocabulary: Vocabulary { tokens, types, algorithm, unknown: None },
        settings,
        path: path.to_owned(),
        sha256: hex_sha256(&bytes),
    })
}

/// The bytes of each token, in the order of the ranks, which must be 0, 1, 2 and so on.
fn parse(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("not UTF-8 ({error})"))?;
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let wrong = |what: String| format!("line {}: {what}", number + 1);
        let (token, rank) = line
            .split_once(' ')
            .ok_or_else(|| wrong(format!("{:?} has no rank", excerpt(line))))?;
        let token = STANDARD
            .decode(token)
            .map_err(|error| wrong(format!("{:?} is not base64 ({error})", excerpt(token))))?;
        if rank.parse() != Ok(tokens.len()) {
            return Err(wrong(format!("the rank is {:?}, not {}", excerpt(rank), tokens.len())));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// Pairs in the order that gives tiktoken's result: of all neighbours whose bytes together are a
/// token, those with the lowest rank join first.
///
/// # Errors
/// When there are too many for an honest file.
fn merges(ranks: &[Vec<u8>]) -> Result<Vec<(String, String)>, String> {
    let known: HashMap<&[u8], usize> =
        ranks.iter().enumerate().map(|(rank, token)| (token.as_slice(), rank)).collect();
    let spelt = |bytes: &[u8]| bytes.iter().copied().map(letter).collect::<String>();
    let mut merges = Vec::new();
    let mut room = MergeRoom::of(ranks.iter().map(Vec::len).sum());
    for token in ranks {
        for cut in 1..token.len() {
            let (left, right) = token.split_at(cut);
            if known.contains_key(left) && known.contains_key(right) {
                room.take(token.len())?;
                merges.push((spelt(left), spelt(right)));
            }
        }
    }
    Ok(merges)
}
