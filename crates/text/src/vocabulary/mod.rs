//! Vocabularies that come in another form than `tokenizer.json`: each is read into one
//! [`Vocabulary`], and that is built into the same tokenizer that a `tokenizer.json` gives.

mod byte_pairs;
mod gguf;
pub(crate) mod pre_tokenizer;
mod ranks;
mod sentence_piece;
mod source;

pub use gguf::GgufVocabulary;
pub(crate) use source::Source;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{NFC, Precompiled, Prepend, Replace, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, decoders, normalizers,
};

use crate::error::{TextError, excerpt};
use crate::tokenizer::Settings;
use pre_tokenizer::PreTokenizer;

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// A vocabulary as plain data. The id of a token is its position.
pub(crate) struct Vocabulary {
    pub(crate) tokens: Vec<String>,
    /// As many as tokens.
    pub(crate) types: Vec<TokenType>,
    pub(crate) algorithm: Algorithm,
    /// The token for what cannot be spelt.
    pub(crate) unknown: Option<u32>,
}

/// What a token is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenType {
    /// A piece of text.
    Normal,
    /// Stands for what cannot be spelt, or fills a gap.
    Unknown,
    /// A place in the model's protocol; never spelt by text.
    Control,
    /// A piece of text that is found before anything else.
    UserDefined,
    /// Not in use.
    Unused,
    /// One byte of a character that has no token, spelt `<0x0A>`.
    Byte,
}

/// How text becomes tokens.
pub(crate) enum Algorithm {
    /// SentencePiece's byte pair encoding: of all neighbours whose joint text is a token, those
    /// with the highest score join first, the leftmost first among equals.
    ScoredPairs { scores: Vec<f32>, spelling: Spelling },
    /// SentencePiece's unigram model: the split with the highest sum of scores.
    Unigram { scores: Vec<f32>, spelling: Spelling },
    /// GPT-2's byte pair encoding on bytes: words are cut first, then pairs join in a fixed order.
    Bytes {
        /// Pairs in the order in which they join, each with the text of both.
        merges: Vec<(String, String)>,
        pre_tokenizer: &'static PreTokenizer,
        /// A word that is a token as a whole is not cut up and joined again.
        whole_words_first: bool,
    },
}

/// What SentencePiece does to a text before it looks for tokens.
#[derive(Default)]
pub(crate) struct Spelling {
    /// The text begins with a space, written or not.
    pub(crate) add_prefix: bool,
    /// Spaces at both ends go, and runs of them become one.
    pub(crate) collapse_spaces: bool,
    /// SentencePiece's compiled table of replacements; empty for none.
    pub(crate) charsmap: Vec<u8>,
}

impl Vocabulary {
    /// The tokenizer that spells with this vocabulary, its special and user-defined tokens set.
    ///
    /// # Errors
    /// What is wrong with the vocabulary, in words.
    pub(crate) fn build(self) -> Result<tokenizers::Tokenizer, String> {
        let said = |error: tokenizers::Error| error.to_string();
        self.check()?;
        let added = self.added_tokens();
        let Vocabulary { tokens, types, algorithm, unknown } = self;
        let ids = ids(&tokens)?;
        let has_all_bytes =
            (0..=u8::MAX).all(|byte| ids.contains_key(format!("<0x{byte:02X}>").as_str()));
        let has_words = matches!(algorithm, Algorithm::Bytes { .. });
        if unknown.is_none() && !has_all_bytes && !has_words {
            return Err("it has neither an unknown token nor one for each byte, so some text \
                        would be lost"
                .into());
        }
        let mut tokenizer = match algorithm {
            Algorithm::ScoredPairs { scores, spelling } => {
                let merges = merges_by_score(&tokens, &types, &scores, &ids)?;
                let mut builder = BPE::builder()
                    .vocab_and_merges(owned(&ids), merges)
                    .fuse_unk(true)
                    .byte_fallback(has_all_bytes);
                if let Some(id) = unknown {
                    builder = builder.unk_token(tokens[id as usize].clone());
                }
                spelling.tokenizer(builder.build().map_err(said)?)?
            }
            Algorithm::Unigram { scores, spelling } => {
                let unknown = unknown.map(|id| id as usize);
                let pieces = tokens.into_iter().zip(scores.into_iter().map(f64::from));
                let model =
                    Unigram::from(pieces.collect(), unknown, has_all_bytes).map_err(said)?;
                spelling.tokenizer(model)?
            }
            Algorithm::Bytes { merges, pre_tokenizer, whole_words_first } => {
                let missing =
                    byte_pairs::alphabet().find(|symbol| !ids.contains_key(symbol.as_str()));
                if let Some(symbol) = missing {
                    return Err(format!("it has no token {symbol:?}, so some text would be lost"));
                }
                let model = BPE::builder()
                    .vocab_and_merges(owned(&ids), merges)
                    .ignore_merges(whole_words_first)
                    .build()
                    .map_err(said)?;
                let mut tokenizer = tokenizers::Tokenizer::new(model);
                if pre_tokenizer.composes {
                    tokenizer.with_normalizer(Some(NFC)).map_err(said)?;
                }
                tokenizer.with_pre_tokenizer(Some(pre_tokenizer.build().map_err(said)?));
                tokenizer.with_decoder(Some(ByteLevel::new(true, true, true)));
                tokenizer
            }
        };
        tokenizer.add_tokens(added).map_err(said)?;
        Ok(tokenizer)
    }

    fn check(&self) -> Result<(), String> {
        if self.tokens.is_empty() {
            return Err("it has no tokens".into());
        }
        if u32::try_from(self.tokens.len()).is_err() {
            return Err(format!("it has {} tokens, more than ids", self.tokens.len()));
        }
        let count = self.tokens.len();
        if self.types.len() != count {
            return Err(format!("it has {} token types for {count} tokens", self.types.len()));
        }
        if let Some(id) = self.unknown.filter(|id| *id as usize >= count) {
            return Err(format!("the unknown token is {id}, but it has {count} tokens"));
        }
        let scores = match &self.algorithm {
            Algorithm::ScoredPairs { scores, .. } | Algorithm::Unigram { scores, .. } => scores,
            Algorithm::Bytes { .. } => return Ok(()),
        };
        if scores.len() != count {
            return Err(format!("it has {} scores for {count} tokens", scores.len()));
        }
        match scores.iter().position(|score| !score.is_finite()) {
            None => Ok(()),
            Some(id) => Err(format!("the score of token {id} is {}, not finite", scores[id])),
        }
    }

    /// The tokens that are looked for before the text is cut.
    fn added_tokens(&self) -> Vec<AddedToken> {
        let prefixed = match &self.algorithm {
            Algorithm::ScoredPairs { spelling, .. } | Algorithm::Unigram { spelling, .. } => {
                spelling.add_prefix
            }
            Algorithm::Bytes { .. } => true,
        };
        let mut added = Vec::new();
        for (id, (token, kind)) in (0..).zip(self.tokens.iter().zip(&self.types)) {
            let control = *kind == TokenType::Control
                || (*kind == TokenType::Unknown && self.unknown == Some(id));
            // Converters fill gaps in the ids with such tokens, which nobody means.
            let filler = *token == format!("[PAD{id}]");
            let defined = *kind == TokenType::UserDefined && !filler;
            // Such a piece is looked for in the text as it is spelt, with the sign for a space. Not
            // where there is a prefix, which the library would put before the piece too; there it is
            // joined by its score.
            let spelt = token.contains(SPACE);
            if control || (defined && !(spelt && prefixed)) {
                let normalized = spelt && !control;
                added.push(AddedToken::from(token.clone(), control).normalized(normalized));
            }
        }
        added
    }
}

impl Spelling {
    fn tokenizer(self, model: impl Into<ModelWrapper>) -> Result<tokenizers::Tokenizer, String> {
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        let replace = |pattern: ReplacePattern, content: &str| {
            Replace::new(pattern, content).map_err(|error| error.to_string())
        };
        let mut steps: Vec<NormalizerWrapper> = Vec::new();
        if !self.charsmap.is_empty() {
            let table = Precompiled::from(&self.charsmap)
                .map_err(|error| format!("its table of replacements is broken ({error})"))?;
            steps.push(table.into());
        }
        if self.collapse_spaces {
            steps.push(replace(ReplacePattern::Regex("^ +| +$".into()), "")?.into());
            steps.push(replace(ReplacePattern::Regex(" {2,}".into()), " ")?.into());
        }
        if self.add_prefix {
            steps.push(Prepend::new(SPACE.into()).into());
        }
        steps.push(replace(ReplacePattern::String(" ".into()), SPACE)?.into());
        tokenizer
            .with_normalizer(Some(normalizers::Sequence::new(steps)))
            .map_err(|error| error.to_string())?;

        let mut steps: Vec<DecoderWrapper> = vec![
            replace(ReplacePattern::String(SPACE.into()), " ")?.into(),
            decoders::byte_fallback::ByteFallback::new().into(),
            decoders::fuse::Fuse::new().into(),
        ];
        if self.add_prefix {
            steps.push(decoders::strip::Strip::new(' ', 1, 0).into());
        }
        tokenizer.with_decoder(Some(decoders::sequence::Sequence::new(steps)));
        Ok(tokenizer)
    }
}

/// Merges that give the result of SentencePiece's byte pair encoding: every way to join two tokens
/// to a third, the third's score deciding the order.
fn merges_by_score(
    tokens: &[String],
    types: &[TokenType],
    scores: &[f32],
    ids: &HashMap<&str, u32>,
) -> Result<Vec<(String, String)>, String> {
    let spells = |id: u32| matches!(types[id as usize], TokenType::Normal | TokenType::UserDefined);
    let mut merges = Vec::new();
    let mut room = MergeRoom::of(tokens.iter().map(String::len).sum());
    for (id, token) in (0..).zip(tokens).filter(|(id, _)| spells(*id)) {
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            let known = |part: &str| ids.get(part).is_some_and(|id| spells(*id));
            if known(left) && known(right) {
                room.take(token.len())?;
                merges.push((id, left.to_owned(), right.to_owned()));
            }
        }
    }
    // Stable: cuts further left first among those of one token.
    merges.sort_by(|(left, ..), (right, ..)| {
        scores[*right as usize].total_cmp(&scores[*left as usize])
    });
    Ok(merges.into_iter().map(|(_, left, right)| (left, right)).collect())
}

/// How much text the merges that are found for a vocabulary may take. A token can be cut in as many
/// ways as it has characters, so a file with `a`, `aa`, `aaa` and so on asks for far more memory than
/// it has bytes; in vocabularies in use the merges are a few times the tokens.
struct MergeRoom(usize);

impl MergeRoom {
    /// For tokens of `bytes` bytes together.
    fn of(bytes: usize) -> MergeRoom {
        MergeRoom(32 * bytes + (1 << 20))
    }

    /// Takes `bytes` away.
    ///
    /// # Errors
    /// When nothing is left.
    fn take(&mut self, bytes: usize) -> Result<(), String> {
        match self.0.checked_sub(bytes) {
            Some(left) => self.0 = left,
            None => return Err("its tokens can be joined in too many ways".into()),
        }
        Ok(())
    }
}

fn ids(tokens: &[String]) -> Result<HashMap<&str, u32>, String> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in (0..).zip(tokens) {
        if let Some(other) = ids.insert(token.as_str(), id) {
            return Err(format!("tokens {other} and {id} are both {:?}", excerpt(token)));
        }
    }
    Ok(ids)
}

fn owned(ids: &HashMap<&str, u32>) -> tokenizers::models::bpe::Vocab {
    ids.iter().map(|(token, id)| ((*token).to_owned(), *id)).collect()
}

/// A vocabulary read from files, and what else they say.
pub(crate) struct Read {
    pub(crate) vocabulary: Vocabulary,
    pub(crate) settings: Settings,
    /// The file to name in messages.
    pub(crate) path: PathBuf,
    pub(crate) sha256: String,
}

/// Reads a file of which `expected` is known.
fn read_file(path: &Path, expected: &'static str) -> Result<Vec<u8>, TextError> {
    std::fs::read(path).map_err(|source| TextError::Read {
        path: path.to_owned(),
        expected,
        source,
    })
}
