//! What a grammar asks of a sequence. The engine knows nothing of grammars but this.

use std::fmt;
use std::sync::Arc;

/// A grammar that many sequences can begin.
pub trait Grammar: Send + Sync {
    /// The state before the first token of an answer.
    fn start(&self) -> Box<dyn Constraint>;
}

/// One sequence's place in its grammar.
pub trait Constraint: Send {
    /// Puts the tokens that may follow into `allowed`, which is empty.
    ///
    /// # Errors
    /// A sentence for the caller when the grammar cannot go on, for instance because its work is
    /// beyond a bound. It ends this sequence alone; so does a panic.
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String>;
    /// Moves on behind `token`, which was allowed and ends nothing.
    ///
    /// # Errors
    /// As [`Constraint::allowed`].
    fn accept(&mut self, token: u32) -> Result<(), String>;
    /// Whether the answer may end here.
    fn may_end(&mut self) -> bool;
    /// Whether it must: nothing may follow.
    fn must_end(&mut self) -> bool;
}

/// A shared [`Grammar`]; two are equal when they are the same one.
#[derive(Clone)]
pub struct GrammarRef(pub Arc<dyn Grammar>);

impl fmt::Debug for GrammarRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrammarRef")
    }
}

impl PartialEq for GrammarRef {
    fn eq(&self, other: &GrammarRef) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A set of token ids, one bit for each of V.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSet {
    words: Vec<u32>,
}

impl TokenSet {
    /// None of `vocab_size` tokens.
    pub fn new(vocab_size: usize) -> TokenSet {
        TokenSet { words: vec![0; vocab_size.div_ceil(32)] }
    }

    /// Takes every token out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Puts a token in; ids beyond the vocabulary are left out.
    pub fn insert(&mut self, token: u32) {
        if let Some(word) = self.words.get_mut(token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }

    /// Whether a token is in.
    pub fn contains(&self, token: u32) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// The bits, token `t` in bit `t % 32` of word `t / 32`, [ceil(V / 32)].
    pub fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_set_holds_its_tokens() {
        let mut set = TokenSet::new(40);
        assert!(set.is_empty());
        for token in [0, 31, 32, 39, 1000] {
            set.insert(token);
        }
        let found: Vec<u32> = (0..200).filter(|&t| set.contains(t)).collect();
        assert_eq!(found, [0, 31, 32, 39]);
        set.clear();
        assert!(set.is_empty());
    }
}
