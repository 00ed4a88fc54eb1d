//! Who owns which page of the KV cache.

use model::BLOCK_SIZE;

/// The free list of the KV pages. A page is either here or in exactly one sequence's page table.
#[derive(Debug)]
pub(crate) struct BlockManager {
    /// Free page ids, used as a stack: pages just given back are warm in the processor's cache.
    free: Vec<u32>,
    /// Whether a page is lent out; guards against giving one back twice, which would silently mix
    /// two sequences' keys.
    lent: Vec<bool>,
}

impl BlockManager {
    /// All of `num_blocks` pages free.
    pub(crate) fn new(num_blocks: usize) -> BlockManager {
        BlockManager { free: (0..num_blocks as u32).rev().collect(), lent: vec![false; num_blocks] }
    }

    /// Pages needed for `tokens` tokens.
    pub(crate) fn blocks_for(tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_SIZE)
    }

    /// Pages in all.
    pub(crate) fn num_blocks(&self) -> usize {
        self.lent.len()
    }

    /// Pages that nobody holds.
    pub(crate) fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Lengthens the page table `pages` to cover `tokens` tokens. False, and nothing changed, when
    /// too few pages are free.
    #[must_use]
    pub(crate) fn grow(&mut self, pages: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = Self::blocks_for(tokens).saturating_sub(pages.len());
        if missing > self.free.len() {
            return false;
        }
        for page in self.free.split_off(self.free.len() - missing).into_iter().rev() {
            self.lent[page as usize] = true;
            pages.push(page);
        }
        true
    }

    /// Takes all pages of a sequence back and leaves its page table empty.
    pub(crate) fn release(&mut self, pages: &mut Vec<u32>) {
        for page in pages.drain(..).rev() {
            assert!(std::mem::take(&mut self.lent[page as usize]), "page {page} given back twice");
            self.free.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_by_whole_pages_and_takes_them_back() {
        let mut blocks = BlockManager::new(4);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(blocks.grow(&mut a, 17));
        assert_eq!(a, [0, 1]);
        assert!(blocks.grow(&mut a, 32), "already covered");
        assert_eq!(a.len(), 2);
        assert!(!blocks.grow(&mut b, 33), "three pages of two");
        assert!(b.is_empty(), "a refusal takes nothing");
        assert!(blocks.grow(&mut b, 32));
        assert_eq!(blocks.num_free(), 0);
        blocks.release(&mut a);
        assert!(a.is_empty());
        assert_eq!(blocks.num_free(), 2);
        assert!(blocks.grow(&mut b, 64));
        let mut all = b.clone();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3], "every page is owned once");
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn giving_back_twice_is_caught() {
        let mut blocks = BlockManager::new(2);
        let mut a = Vec::new();
        assert!(blocks.grow(&mut a, 1));
        let mut copy = a.clone();
        blocks.release(&mut a);
        blocks.release(&mut copy);
    }
}
