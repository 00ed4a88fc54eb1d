//! Streaming decode gives the same text as decoding at once, in whole characters.

mod common;

use std::sync::{Arc, LazyLock};

use common::{every_kind, nano, shared};
use proptest::prelude::*;
use text::{StreamDecoder, Tokenizer};

/// Decodes one id at a time; the pieces, with what `finish` gave as the last.
fn stream(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> Vec<String> {
    let mut decoder = StreamDecoder::new(Arc::clone(tokenizer));
    let mut pieces: Vec<String> = ids.iter().filter_map(|id| decoder.push(*id).unwrap()).collect();
    pieces.push(decoder.finish());
    pieces
}

static TOKENIZERS: LazyLock<Vec<(&str, Arc<Tokenizer>)>> = LazyLock::new(|| {
    let mut all: Vec<_> =
        every_kind().into_iter().map(|(name, _, tokenizer)| (name, Arc::new(tokenizer))).collect();
    all.push(("nano", Arc::new(Tokenizer::from_dir(&nano()).unwrap())));
    for (name, path) in
        [("stories260K", "models/stories260K/hf"), ("Phi-3", "tokenizers/phi-3-mini")]
    {
        if let Some(dir) = shared(path) {
            all.push((name, Arc::new(Tokenizer::from_dir(&dir).unwrap())));
        }
    }
    all
});

#[test]
fn characters_come_whole_and_as_soon_as_they_can() {
    for (name, tokenizer) in &*TOKENIZERS {
        let text = "the café 😀 is\n  日本 end";
        let ids = tokenizer.encode(text).unwrap();
        let pieces = stream(tokenizer, &ids);
        assert_eq!(pieces.concat(), text, "{name}");
        assert!(!pieces.concat().contains('\u{FFFD}'));
        assert!(pieces.iter().any(|piece| piece.contains('😀')), "{name}: {pieces:?}");
        assert_eq!(pieces.last().unwrap(), "", "{name}: nothing is left over");
    }
    // Every token that ends a character gives it out at once.
    let (_, _, byte_level) = every_kind().swap_remove(0);
    let byte_level = Arc::new(byte_level);
    let ids = byte_level.encode("aé😀").unwrap();
    assert_eq!(stream(&byte_level, &ids), ["a", "é", "😀", ""]);
}

#[test]
fn control_tokens_have_no_text() {
    let tokenizer = &Arc::new(Tokenizer::from_dir(&nano()).unwrap());
    let mut ids = tokenizer.encode("one two").unwrap();
    ids.insert(1, 6);
    ids.insert(0, 1);
    ids.push(999_999);
    assert_eq!(stream(tokenizer, &ids).concat(), "one two");
}

#[test]
fn an_unfinished_character_is_shown_as_such_at_the_end() {
    let (_, _, tokenizer) = every_kind().swap_remove(0);
    let tokenizer = &Arc::new(tokenizer);
    let ids = tokenizer.encode("a😀").unwrap();
    let pieces = stream(tokenizer, &ids[..ids.len() - 1]);
    assert_eq!(pieces, ["a", "\u{FFFD}"]);
}

proptest! {
    #[test]
    fn pieces_are_the_whole(choices in prop::collection::vec((any::<prop::sample::Index>(), 0..4), 0..40)) {
        for (name, tokenizer) in &*TOKENIZERS {
            let count = tokenizer.max_id() as usize + 1;
            // Mostly from the first few hundred ids, where bytes and control tokens are.
            let ids: Vec<u32> = choices
                .iter()
                .map(|(index, near)| index.index(if *near > 0 { count.min(300) } else { count }) as u32)
                .collect();
            let pieces = stream(tokenizer, &ids);
            prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids).unwrap(), "{} {:?}", name, ids);
        }
    }
}
