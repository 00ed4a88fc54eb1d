//! SentencePiece's `tokenizer.model`: a protocol buffer (`sentencepiece_model.proto`) with the
//! pieces, their scores, and how text is spelt before it is cut.

use std::path::Path;

use prost::Message;

use super::{Algorithm, Read, Spelling, TokenType, Vocabulary, ranks, read_file};
use crate::error::TextError;
use crate::tokenizer::{Settings, hex_sha256};

const EXPECTED: &str = "a SentencePiece model";

/// The fields of `ModelProto` that are used here; prost skips the others.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

/// `SentencePiece`.
#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

/// `TrainerSpec`.
#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24", default = "false")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(int32, optional, tag = "40", default = "0")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41", default = "1")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42", default = "2")]
    eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43", default = "-1")]
    pad_id: Option<i32>,
}

/// `NormalizerSpec`.
#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

pub(super) fn read(path: &Path, mut settings: Settings) -> Result<Read, TextError> {
    let invalid =
        |found: String| TextError::Invalid { path: path.to_owned(), found, expected: EXPECTED };
    let bytes = read_file(path, EXPECTED)?;
    // A protocol buffer begins with a small number; Llama 3 ships ranks under this name.
    if bytes.first().is_some_and(u8::is_ascii_graphic) {
        return ranks::read(path, settings);
    }
    let model = Model::decode(bytes.as_slice())
        .map_err(|error| invalid(format!("not a protocol buffer ({error})")))?;
    let trainer = model.trainer.unwrap_or_default();
    let normalizer = model.normalizer.unwrap_or_default();
    if trainer.treat_whitespace_as_suffix() {
        return Err(invalid("it puts the space behind a word, which is not supported".into()));
    }
    if !normalizer.escape_whitespaces() {
        return Err(invalid("it keeps spaces as they are, which is not supported".into()));
    }
    let mut vocabulary = Vocabulary {
        tokens: Vec::with_capacity(model.pieces.len()),
        types: Vec::with_capacity(model.pieces.len()),
        algorithm: Algorithm::Unigram { scores: Vec::new(), spelling: Spelling::default() },
        unknown: None,
    };
    let mut scores = Vec::with_capacity(model.pieces.len());
    for (id, piece) in model.pieces.into_iter().enumerate() {
        vocabulary.types.push(match piece.kind() {
            1 => TokenType::Normal,
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            // SentencePiece joins to such a piece and then cuts it up again.
            5 => {
                return Err(invalid(format!("piece {id} is switched off, which is not supported")));
            }
            6 => TokenType::Byte,
            kind => return Err(invalid(format!("piece {id} has the type {kind}"))),
        });
        scores.push(piece.score());
        vocabulary.tokens.push(piece.piece.unwrap_or_default());
    }
    let spelling = Spelling {
        add_prefix: normalizer.add_dummy_prefix(),
        collapse_spaces: normalizer.remove_extra_whitespaces(),
        charsmap: normalizer.precompiled_charsmap.clone().unwrap_or_default(),
    };
    vocabulary.algorithm = match trainer.model_type() {
        1 => Algorithm::Unigram { scores, spelling },
        2 => Algorithm::ScoredPairs { scores, spelling },
        other => {
            return Err(invalid(format!("its kind is {other}, expected 1 (unigram) or 2 (BPE)")));
        }
    };
    let token = |id: i32| {
        let id = usize::try_from(id).ok()?;
        vocabulary.tokens.get(id).cloned()
    };
    if !settings.knows_tokens {
        for (name, id) in [
            ("bos_token", trainer.bos_id()),
            ("eos_token", trainer.eos_id()),
            ("unk_token", trainer.unk_id()),
            ("pad_token", trainer.pad_id()),
        ] {
            if let Some(token) = token(id) {
                settings.name_token(name, &token);
            }
        }
    }
    // The file does not say; the families that use these files do.
    settings.add_bos.get_or_insert(true);
    vocabulary.unknown = u32::try_from(trainer.unk_id()).ok();
    Ok(Read { vocabulary, settings, path: path.to_owned(), sha256: hex_sha256(&bytes) })
}
