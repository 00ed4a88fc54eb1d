//! Token ids to text, one at a time.

use std::sync::Arc;

use crate::error::TextError;
use crate::tokenizer::Tokenizer;

/// The sign that a byte-level decoder writes for bytes that are not (yet) a character.
const REPLACEMENT: char = '\u{FFFD}';

/// Decodes token ids as they come. A piece never ends inside a character, and all pieces together
/// are exactly [`Tokenizer::decode`] of all ids.
///
/// How a token reads depends on the tokens around it: the first word of a text loses its space, and
/// several tokens may share a character. So the decoder keeps a short window of recent tokens,
/// decodes it as a whole, and gives out what is new and settled.
#[derive(Clone)]
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    /// Recent ids that are not skipped in decoding. The first `context` of them are wholly given
    /// out and only there so that what follows them reads as it should.
    window: Vec<u32>,
    context: usize,
    /// The part of the window's text that was given out.
    given: String,
    /// The rest of it.
    held: String,
    /// Control tokens that are given out as they are spelt.
    kept: Vec<(u32, String)>,
}

impl StreamDecoder {
    /// A decoder at the beginning of a text.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer,
            window: Vec::new(),
            context: 0,
            given: String::new(),
            held: String::new(),
            kept: Vec::new(),
        }
    }

    /// The same decoder, which gives out those of `texts` that are control tokens instead of leaving
    /// them out: what marks a tool call is one in some vocabularies.
    #[must_use]
    pub fn keeping(mut self, texts: impl IntoIterator<Item = &'static str>) -> Self {
        for text in texts {
            if let Some(id) = self.tokenizer.token_id(text)
                && self.tokenizer.is_control(id)
            {
                self.kept.push((id, text.to_owned()));
            }
        }
        self
    }

    /// A decoder of what continues `prompt`: the first word keeps the space that parts it from the
    /// prompt's last one. After a prompt without text this is [`StreamDecoder::new`].
    ///
    /// # Errors
    /// [`TextError::Decode`] when the tokenizer's decoder fails.
    pub fn after(tokenizer: Arc<Tokenizer>, prompt: &[u32]) -> Result<Self, TextError> {
        let mut decoder = Self::new(tokenizer);
        // What a token reads like depends on few before it.
        for &id in &prompt[prompt.len().saturating_sub(16)..] {
            decoder.push(id)?;
        }
        Ok(decoder)
    }

    /// Takes the next id; returns the text that is settled by it, if any. Control tokens and ids
    /// outside the vocabulary have no text.
    ///
    /// # Errors
    /// [`TextError::Decode`] when the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TextError> {
        if let Some((_, text)) = self.kept.iter().find(|(kept, _)| *kept == id) {
            // What is behind a control token begins anew, as it does where the token is left out of
            // a prompt's text.
            let text = text.clone();
            return Ok(Some(self.finish() + &text));
        }
        if !self.tokenizer.has_text(id) {
            return Ok(None);
        }
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window)?;
        let Some(new) = text.strip_prefix(self.given.as_str()) else {
            // Only a decoder that rewrites the past gets here; what it means shows at the end.
            return Ok(None);
        };
        let settled = if self.tokenizer.is_byte_token(id) {
            // A run of byte tokens reads as one: as characters, or all as replacement signs.
            0
        } else {
            // A character begun in the last bytes shows as a single replacement sign.
            new.strip_suffix(REPLACEMENT).unwrap_or(new).len()
        };
        let (piece, held) = new.split_at(settled);
        self.held = held.to_owned();
        let piece = piece.to_owned();
        self.given.push_str(&piece);
        if self.held.is_empty() {
            self.forget()?;
        }
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// The text held back, once no more ids will come. The decoder is as new afterwards.
    pub fn finish(&mut self) -> String {
        self.window.clear();
        self.context = 0;
        self.given.clear();
        std::mem::take(&mut self.held)
    }

    /// Everything is given out: what was new becomes context, and the old context may go, if the
    /// rest can stand at the beginning in its place. A visible character there takes up whatever a
    /// decoder does to the beginning of a text (dropping a space).
    fn forget(&mut self) -> Result<(), TextError> {
        if self.context > 0 {
            let text = self.tokenizer.decode(&self.window[self.context..])?;
            if text.trim().is_empty() {
                return Ok(());
            }
            self.window.drain(..self.context);
            self.given = text;
        }
        self.context = self.window.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_window_stays_short() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano");
        let tokenizer = Arc::new(Tokenizer::from_dir(&dir).unwrap());
        let ids = tokenizer.encode(&"the end of a café,   日本\n\n".repeat(200)).unwrap();
        let mut decoder = StreamDecoder::new(Arc::clone(&tokenizer));
        for id in ids {
            decoder.push(id).unwrap();
            assert!(decoder.window.len() <= 12, "{} tokens", decoder.window.len());
        }
    }
}
