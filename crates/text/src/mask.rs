//! Which tokens of a rendered conversation the model has to learn.

use crate::tokenizer::{Piece, Tokenizer};

/// Where an answer of the assistant stands in the rendered text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// The text before is what the model is given when it is asked for this answer.
    pub(crate) start: usize,
    /// Behind the answer, before the template closes the turn.
    pub(crate) end: usize,
}

/// For each piece, whether it belongs to an answer or to the end-of-turn token behind it. What the
/// template writes behind that token (a line end, mostly) is not learnt: generation has stopped.
pub(crate) fn loss_mask(
    tokenizer: &Tokenizer,
    text: &str,
    pieces: &[Piece],
    turns: &[Turn],
    turn_end: Option<u32>,
) -> Vec<bool> {
    let ends_turn =
        |piece: &Piece| Some(piece.id) == turn_end || tokenizer.stop_ids().contains(&piece.id);
    let is_blank = |piece: &Piece| {
        let covered = text.get(piece.start..piece.end).unwrap_or_default();
        covered.trim().is_empty() && !tokenizer.is_control(piece.id)
    };
    let mut mask = vec![false; pieces.len()];
    for turn in turns {
        let first = pieces.partition_point(|piece| piece.start < turn.start);
        let answer = pieces[first..].partition_point(|piece| piece.start < turn.end) + first;
        mask[first..answer].fill(true);
        // An end token that takes the space before it as its own is in the answer already.
        if pieces[first..answer].last().is_some_and(ends_turn) {
            continue;
        }
        let blank = pieces[answer..].iter().take_while(|piece| is_blank(piece)).count();
        if pieces.get(answer + blank).is_some_and(ends_turn) {
            mask[answer..=answer + blank].fill(true);
        }
    }
    mask
}
