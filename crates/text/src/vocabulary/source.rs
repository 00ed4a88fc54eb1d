//! Which file of a model folder the tokenizer is read from.

use std::path::{Path, PathBuf};

use super::{Read, byte_pairs, ranks, sentence_piece};
use crate::error::TextError;
use crate::tokenizer::Settings;

/// A vocabulary in another form than `tokenizer.json`.
pub(crate) enum Source {
    /// SentencePiece's protocol buffer.
    SentencePiece(PathBuf),
    /// tiktoken's ranks.
    Ranks(PathBuf),
    /// A byte-level vocabulary and its merges.
    BytePairs(PathBuf, PathBuf),
}

/// Byte-level vocabularies with their merges: in Transformers' names and in GPT-2's own.
const PAIRS: [(&str, &str); 2] = [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")];

impl Source {
    /// `None` when the folder has a `tokenizer.json`, which always wins, or no tokenizer at all;
    /// else the first of the others in the order of [`Tokenizer::from_dir`](crate::Tokenizer).
    ///
    /// # Errors
    /// When there are several files of one kind and no way to choose.
    pub(crate) fn find(dir: &Path) -> Result<Option<Source>, TextError> {
        if dir.join("tokenizer.json").is_file() {
            return Ok(None);
        }
        let model = dir.join("tokenizer.model");
        if model.is_file() {
            return Ok(Some(Source::SentencePiece(model)));
        }
        if let Some(model) = only(dir, "a SentencePiece model", is_model)? {
            return Ok(Some(Source::SentencePiece(model)));
        }
        if let Some(ranks) = only(dir, "a rank file", |name| name.ends_with(".tiktoken"))? {
            return Ok(Some(Source::Ranks(ranks)));
        }
        let pairs = PAIRS.iter().map(|(vocab, merges)| (dir.join(vocab), dir.join(merges)));
        let mut complete = pairs.filter(|(vocab, merges)| vocab.is_file() && merges.is_file());
        if let Some((vocab, merges)) = complete.next() {
            return Ok(Some(Source::BytePairs(vocab, merges)));
        }
        let original = dir.join("original/tokenizer.model");
        Ok(original.is_file().then_some(Source::SentencePiece(original)))
    }

    /// The files that the vocabulary is in.
    pub(crate) fn files(self) -> Vec<PathBuf> {
        match self {
            Source::SentencePiece(path) | Source::Ranks(path) => vec![path],
            Source::BytePairs(vocab, merges) => vec![vocab, merges],
        }
    }

    /// Reads the vocabulary. `settings` is what the files around it say, `class` the
    /// `tokenizer_class` among that.
    ///
    /// # Errors
    /// [`TextError::Read`] and [`TextError::Invalid`].
    pub(crate) fn read(&self, class: Option<&str>, settings: Settings) -> Result<Read, TextError> {
        match self {
            Source::SentencePiece(path) => sentence_piece::read(path, settings),
            Source::Ranks(path) => ranks::read(path, settings),
            Source::BytePairs(vocab, merges) => byte_pairs::read(vocab, merges, class, settings),
        }
    }
}

/// `tokenizer.model.v3`, `mistral.model` and so on.
fn is_model(name: &str) -> bool {
    let plain = match name.rsplit_once(".v") {
        Some((front, version)) if version.bytes().all(|byte| byte.is_ascii_digit()) => front,
        _ => name,
    };
    plain.ends_with(".model")
}

/// The only file of the folder whose name fits.
fn only(
    dir: &Path,
    what: &'static str,
    fits: impl Fn(&str) -> bool,
) -> Result<Option<PathBuf>, TextError> {
    // A folder that cannot be listed shows when tokenizer.json is opened.
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(None) };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| fits(name))
        .collect();
    names.sort();
    match names.as_slice() {
        [] => Ok(None),
        [name] => Ok(Some(dir.join(name))),
        several => Err(TextError::Invalid {
            path: dir.to_owned(),
            found: format!("{} files that could be {what}: {}", several.len(), several.join(", ")),
            expected: "one tokenizer; hint: keep the right one only",
        }),
    }
}
