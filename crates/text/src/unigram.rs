//! SentencePiece's unigram model without the pieces that are no text.
//!
//! SentencePiece never finds a control, unknown or byte piece in text, however it is spelt: they are
//! not in the table that it searches (`unigram_model.cc`). The tokenizers library puts all of them
//! into that table, so that `</s>` or `<0x41>` typed by anyone would become the piece itself.

use std::collections::HashSet;

use tokenizers::models::unigram::Unigram;
use tokenizers::{Model, Token};

/// Finds the same pieces as SentencePiece does, with the ids of the vocabulary that it was made
/// from.
#[derive(Clone)]
pub(crate) struct SpeltUnigram {
    model: Unigram,
    unknown: u32,
    /// Ids of the byte pieces, [256], where unknown characters become bytes.
    bytes: Option<Vec<Option<u32>>>,
}

impl SpeltUnigram {
    /// `None` where the vocabulary has no unknown piece, which this model needs.
    pub(crate) fn new(of: &Unigram, controls: &HashSet<u32>) -> Option<SpeltUnigram> {
        let file = serde_json::to_value(of).ok()?;
        let unknown: u32 = file["unk_id"].as_u64()?.try_into().ok()?;
        let spell = of.byte_fallback();
        let bytes = (0..=u8::MAX).map(|byte| of.token_to_id(&byte_piece(byte))).collect();
        let bytes: Option<Vec<Option<u32>>> = spell.then_some(bytes);
        let is_byte = |id: u32| bytes.as_ref().is_some_and(|bytes| bytes.contains(&Some(id)));
        // The place in the list is the id, so a piece that is no text stays, under a name of
        // characters that Unicode never assigns.
        let hide = |id: u32| id == unknown || controls.contains(&id) || is_byte(id);
        let pieces = file["vocab"].as_array()?.iter().zip(0u32..).map(|(piece, id)| {
            let text = match hide(id) {
                true => format!("\u{FFFF}\u{FFFE}{id}"),
                false => piece[0].as_str().map(str::to_owned)?,
            };
            Some((text, piece[1].as_f64()?))
        });
        let pieces = pieces.collect::<Option<Vec<(String, f64)>>>()?;
        let model = Unigram::from(pieces, Some(unknown as usize), false).ok()?;
        Some(SpeltUnigram { model, unknown, bytes })
    }

    pub(crate) fn tokenize(&self, text: &str) -> tokenizers::Result<Vec<Token>> {
        let tokens = self.model.tokenize(text)?;
        let Some(bytes) = &self.bytes else { return Ok(tokens) };
        let mut spelt = Vec::with_capacity(tokens.len());
        for token in tokens {
            let ids = || token.value.bytes().map(|byte| bytes[usize::from(byte)]).collect();
            let ids: Option<Vec<u32>> = if token.id == self.unknown { ids() } else { None };
            match ids {
                Some(ids) => spelt.extend(
                    ids.into_iter()
                        .zip(token.value.bytes())
                        .map(|(id, byte)| Token::new(id, byte_piece(byte), token.offsets)),
                ),
                None => spelt.push(token),
            }
        }
        Ok(spelt)
    }
}

fn byte_piece(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_is_found_in_text() {
        let mut pieces = vec![("<unk>".to_owned(), 0.0), ("</s>".to_owned(), 0.0)];
        pieces.extend((0..=u8::MAX).map(|byte| (byte_piece(byte), 0.0)));
        pieces.extend("</sunk0x41>".chars().map(|c| (c.to_string(), -9.0)).take(4));
        pieces.push(("ab".to_owned(), -2.0));
        for fallback in [true, false] {
            let model = Unigram::from(pieces.clone(), Some(0), fallback).unwrap();
            let spelt = SpeltUnigram::new(&model, &HashSet::from([0, 1])).unwrap();
            let ids = |text: &str| -> Vec<u32> {
                spelt.tokenize(text).unwrap().iter().map(|token| token.id).collect()
            };
            // <, /, s are 258 to 261; what has no piece is bytes or unknown.
            let end = if fallback { 2 + u32::from(b'>') } else { 0 };
            assert_eq!(ids("</s>"), [258, 259, 260, end]);
            assert_eq!(ids("ab"), [262]);
            let letter = if fallback { vec![2 + 0xc3, 2 + 0xa9] } else { vec![0] };
            assert_eq!(ids("é"), letter);
        }
        assert!(
            SpeltUnigram::new(&Unigram::default(), &HashSet::new()).is_none_or(|s| s.unknown == 0)
        );
    }
}
