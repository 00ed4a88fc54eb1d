//! Guesses at what comes next, which one forward checks all at once.

/// Longest repeated stretch that is looked for, tokens.
const LONGEST: usize = 4;
/// Shortest; a single token that came before says too little.
const SHORTEST: usize = 2;
/// Only so many tokens are looked back, so that a step's cost does not grow with the context.
const LOOK_BACK: usize = 4096;

/// What followed the last time that the sequence's last tokens stood in it, at most `most` tokens:
/// prompt lookup (the idea of arXiv 2304.04487). Answers that quote their prompt are full of such
/// stretches. Empty when there is none.
pub(crate) fn prompt_lookup(tokens: &[u32], most: usize) -> &[u32] {
    let recent = &tokens[tokens.len().saturating_sub(LOOK_BACK)..];
    for len in (SHORTEST..=LONGEST).rev() {
        if recent.len() <= len || most == 0 {
            continue;
        }
        let (before, tail) = recent.split_at(recent.len() - len);
        // The latest earlier place; it may overlap the tail, which is how a loop is guessed.
        let place = (0..before.len()).rev().find(|&i| recent[i..i + len] == *tail);
        if let Some(place) = place {
            let follows = &recent[place + len..];
            return &follows[..follows.len().min(most)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_longest_repetition_is_continued() {
        assert_eq!(prompt_lookup(&[1, 2, 3, 4, 5, 1, 2], 3), [3, 4, 5]);
        assert_eq!(prompt_lookup(&[1, 2, 3, 4, 5, 1, 2], 1), [3]);
        assert_eq!(prompt_lookup(&[1, 2, 9, 1, 2, 8, 1, 2], 2), [8, 1], "the latest place");
        assert_eq!(
            prompt_lookup(&[7, 1, 2, 9, 3, 1, 2, 8, 7, 1, 2], 1),
            [9],
            "the longest stretch"
        );
        assert_eq!(prompt_lookup(&[1, 2, 3], 4), [0u32; 0]);
        assert_eq!(prompt_lookup(&[5, 1, 2, 5], 4), [0u32; 0], "one token is too little");
        assert_eq!(prompt_lookup(&[6, 6, 6], 4), [6], "a loop");
        assert_eq!(prompt_lookup(&[], 4), [0u32; 0]);
        assert_eq!(prompt_lookup(&[1, 2, 3, 1, 2], 0), [0u32; 0]);
    }
}
