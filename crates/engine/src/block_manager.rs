//! Who holds which page of the KV cache, and what the pages that nobody holds still know.

use model::BLOCK_SIZE;
use std::collections::{BTreeMap, HashMap};

/// The pages of the KV cache. A page is free, held by one or more sequences, or idle: nobody holds
/// it, but it still has the keys and values of a full block of tokens, which a later sequence that
/// begins with the same tokens takes over. Idle pages are given away again when no free one is left,
/// the one that was held longest ago first.
///
/// What a page knows is found by the exact tokens, never by a hash of them alone, and by all that
/// came before: a block's name says its 16 tokens and the block in front of it, the first block's
/// says the [`Root`]. Two adapters, or two versions of one, never share a page.
#[derive(Debug)]
pub(crate) struct BlockManager {
    /// Free page ids, used as a stack: pages just given back are warm in the processor's cache.
    free: Vec<u32>,
    pages: Vec<Page>,
    /// Full blocks by name.
    known: HashMap<Name, u32>,
    /// Pages that nobody holds, by when the last one let go of them.
    idle: BTreeMap<u64, u32>,
    /// Blocks named so far; their numbers are never used again.
    blocks: u64,
    /// Times that an idle page was left.
    clock: u64,
    /// Whether blocks are remembered at all.
    remember: bool,
}

/// What keys and values depend on beside the tokens before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Root {
    /// See [`crate::Runner::adapter_generation`].
    pub(crate) generation: u64,
    /// Whether the sequence is long enough that positions are rotated otherwise (see
    /// [`crate::Runner::recompute_beyond`]).
    pub(crate) long: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Before {
    Root(Root),
    Block(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name {
    before: Before,
    tokens: [u32; BLOCK_SIZE],
}

#[derive(Clone, Debug, Default)]
struct Page {
    /// Page tables that name it.
    holders: u32,
    /// The full block that it is known to hold, and that block's number.
    block: Option<(Name, u64)>,
    /// Its place in `idle` while nobody holds it.
    idle_since: u64,
}

impl BlockManager {
    /// All of `num_blocks` pages free; full ones are remembered when `remember` says so.
    pub(crate) fn new(num_blocks: usize, remember: bool) -> BlockManager {
        BlockManager {
            free: (0..num_blocks as u32).rev().collect(),
            pages: vec![Page::default(); num_blocks],
            known: HashMap::new(),
            idle: BTreeMap::new(),
            blocks: 0,
            clock: 0,
            remember,
        }
    }

    /// Pages needed for `tokens` tokens.
    pub(crate) fn blocks_for(tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_SIZE)
    }

    /// Pages in all.
    pub(crate) fn num_blocks(&self) -> usize {
        self.pages.len()
    }

    /// Pages that nobody holds, idle ones included.
    pub(crate) fn num_free(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Pages that nobody holds but that still know a block.
    pub(crate) fn num_idle(&self) -> usize {
        self.idle.len()
    }

    /// Lengthens the page table `pages` to cover `tokens` tokens. False, and nothing changed, when
    /// too few pages are free.
    #[must_use]
    pub(crate) fn grow(&mut self, pages: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = Self::blocks_for(tokens).saturating_sub(pages.len());
        if missing > self.num_free() {
            return false;
        }
        for _ in 0..missing {
            let Some(page) = self.take() else { return false };
            pages.push(page);
        }
        true
    }

    /// A page for a new holder: a free one, or the longest idle one, which forgets its block.
    fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.idle.pop_first()?;
                let (name, _) = self.pages[page as usize].block.take()?;
                self.known.remove(&name);
                page
            }
        };
        self.pages[page as usize].holders = 1;
        Some(page)
    }

    /// The pages that hold the beginning of `tokens`, whole blocks of them, in order; nothing is
    /// taken yet.
    pub(crate) fn find(&self, root: Root, tokens: &[u32]) -> Vec<u32> {
        let mut before = Before::Root(root);
        let mut found = Vec::new();
        for tokens in tokens.as_chunks().0 {
            let Some(&page) = self.known.get(&Name { before, tokens: *tokens }) else { break };
            let Some((_, number)) = self.pages[page as usize].block else { break };
            before = Before::Block(number);
            found.push(page);
        }
        found
    }

    /// Of `pages`, which [`BlockManager::find`] found, those that nobody holds.
    pub(crate) fn idle_among(&self, pages: &[u32]) -> usize {
        pages.iter().filter(|&&page| self.pages[page as usize].holders == 0).count()
    }

    /// Takes pages that [`BlockManager::find`] found for one more holder.
    pub(crate) fn hold(&mut self, pages: &[u32]) {
        for &page in pages {
            let page = &mut self.pages[page as usize];
            if page.holders == 0 {
                self.idle.remove(&page.idle_since);
            }
            page.holders += 1;
        }
    }

    /// Remembers the blocks of `tokens` that are full, `tokens` being the computed beginning of a
    /// sequence with the page table `pages`. Where another sequence has computed the same block its
    /// page is taken over, and the own one, which holds the same bits, is given back.
    pub(crate) fn remember(&mut self, root: Root, tokens: &[u32], pages: &mut [u32]) {
        if !self.remember {
            return;
        }
        // Blocks become full in order, so the known ones are at the front.
        let full = tokens.len() / BLOCK_SIZE;
        let known = pages[..full].partition_point(|&p| self.pages[p as usize].block.is_some());
        let mut before = match known.checked_sub(1).map(|last| pages[last] as usize) {
            None => Before::Root(root),
            Some(page) => match self.pages[page].block {
                Some((_, number)) => Before::Block(number),
                None => return,
            },
        };
        let blocks = tokens.as_chunks().0.iter().zip(pages).skip(known);
        for (tokens, page) in blocks {
            let name = Name { before, tokens: *tokens };
            if let Some(&twin) = self.known.get(&name) {
                self.hold(&[twin]);
                self.let_go(*page);
                *page = twin;
            } else {
                self.blocks += 1;
                self.pages[*page as usize].block = Some((name, self.blocks));
                self.known.insert(name, *page);
            }
            match self.pages[*page as usize].block {
                Some((_, number)) => before = Before::Block(number),
                None => return,
            }
        }
    }

    /// Takes all pages of a sequence back and leaves its page table empty.
    pub(crate) fn release(&mut self, pages: &mut Vec<u32>) {
        // The last block first: of blocks that are idle together, those that stand on others must be
        // given away before these.
        for page in pages.drain(..).rev() {
            self.let_go(page);
        }
    }

    fn let_go(&mut self, id: u32) {
        let page = &mut self.pages[id as usize];
        // Giving one back twice would silently mix two sequences' keys.
        assert!(page.holders > 0, "page {id} given back twice");
        page.holders -= 1;
        if page.holders > 0 {
            return;
        }
        if page.block.is_some() {
            self.clock += 1;
            page.idle_since = self.clock;
            self.idle.insert(self.clock, id);
        } else {
            self.free.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOT: Root = Root { generation: 0, long: false };

    #[test]
    fn grows_by_whole_pages_and_takes_them_back() {
        let mut blocks = BlockManager::new(4, true);
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
        let mut blocks = BlockManager::new(2, true);
        let mut a = Vec::new();
        assert!(blocks.grow(&mut a, 1));
        let mut copy = a.clone();
        blocks.release(&mut a);
        blocks.release(&mut copy);
    }

    /// Holds pages for `tokens`, taking over what is known, and remembers their full blocks.
    fn run(blocks: &mut BlockManager, root: Root, tokens: &[u32]) -> (Vec<u32>, usize) {
        let mut pages = blocks.find(root, tokens);
        let found = pages.len();
        blocks.hold(&pages);
        assert!(blocks.grow(&mut pages, tokens.len()));
        blocks.remember(root, tokens, &mut pages);
        (pages, found)
    }

    #[test]
    fn a_beginning_is_found_by_its_tokens_and_its_root() {
        let mut blocks = BlockManager::new(20, true);
        let tokens: Vec<u32> = (0..50).collect();
        let (mut first, found) = run(&mut blocks, ROOT, &tokens);
        assert_eq!((first.len(), found), (4, 0));
        let (mut again, found) = run(&mut blocks, ROOT, &tokens);
        assert_eq!(found, 3, "whole blocks only");
        assert_eq!(again[..3], first[..3], "held by both");
        assert_ne!(again[3], first[3]);
        // The same tokens behind another beginning are another block.
        let mut other = tokens.clone();
        other[3] = 99;
        assert_eq!(blocks.find(ROOT, &other), [0u32; 0]);
        other[3] = 3;
        other[20] = 99;
        assert_eq!(blocks.find(ROOT, &other).len(), 1);
        for root in [Root { generation: 1, ..ROOT }, Root { long: true, ..ROOT }] {
            assert_eq!(blocks.find(root, &tokens), [0u32; 0]);
        }
        assert_eq!(blocks.num_free(), 15);
        blocks.release(&mut first);
        assert_eq!(blocks.num_free(), 16, "three are still held");
        blocks.release(&mut again);
        assert_eq!((blocks.num_free(), blocks.num_idle()), (20, 3));
        assert_eq!(blocks.find(ROOT, &tokens).len(), 3, "idle pages are found");
    }

    #[test]
    fn the_same_block_computed_twice_is_kept_once() {
        let mut blocks = BlockManager::new(8, true);
        let tokens: Vec<u32> = (0..32).collect();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(blocks.grow(&mut a, 32) && blocks.grow(&mut b, 32));
        blocks.remember(ROOT, &tokens[..16], &mut a);
        blocks.remember(ROOT, &tokens, &mut b);
        assert_eq!(a[0], b[0]);
        assert_eq!(blocks.num_free(), 5);
        blocks.remember(ROOT, &tokens, &mut a);
        assert_eq!(a, b);
        blocks.release(&mut a);
        blocks.release(&mut b);
        assert_eq!(blocks.num_free(), 8);
    }

    #[test]
    fn the_longest_idle_page_is_given_away_from_its_end() {
        let mut blocks = BlockManager::new(4, true);
        let (old, new): (Vec<u32>, Vec<u32>) = ((0..32).collect(), (100..132).collect());
        for tokens in [&old, &new] {
            let (mut pages, _) = run(&mut blocks, ROOT, tokens);
            blocks.release(&mut pages);
        }
        assert_eq!((blocks.num_free(), blocks.num_idle()), (4, 4));
        let mut pages = Vec::new();
        assert!(blocks.grow(&mut pages, 16));
        assert_eq!(blocks.find(ROOT, &old).len(), 1, "its end went first");
        assert_eq!(blocks.find(ROOT, &new).len(), 2);
    }

    #[test]
    fn nothing_is_remembered_unless_asked_for() {
        let mut blocks = BlockManager::new(4, false);
        let tokens: Vec<u32> = (0..32).collect();
        let (mut pages, _) = run(&mut blocks, ROOT, &tokens);
        assert_eq!(blocks.find(ROOT, &tokens), [0u32; 0]);
        blocks.release(&mut pages);
        assert_eq!(blocks.num_idle(), 0);
    }

    proptest! {
        /// Random sequences over few tokens come and go: every page is free, idle or held, and what
        /// is found holds exactly the tokens asked for.
        #[test]
        fn pages_are_conserved_and_hold_what_their_name_says(
            work in prop::collection::vec((0u64..3, 0u32..3, 1usize..70, 0usize..6), 1..60),
            num_blocks in 5usize..20,
        ) {
            let mut blocks = BlockManager::new(num_blocks, true);
            // What was written into each page: (root, tokens up to the block's end).
            let mut written: HashMap<u32, (Root, Vec<u32>)> = HashMap::new();
            let mut held: Vec<Vec<u32>> = Vec::new();
            for (generation, kind, len, drop) in work {
                let root = Root { generation, long: kind == 2 };
                let tokens: Vec<u32> = (0..len as u32).map(|i| i % (kind + 1)).collect();
                let mut pages = blocks.find(root, &tokens);
                for (i, page) in pages.iter().enumerate() {
                    let end = (i + 1) * BLOCK_SIZE;
                    prop_assert_eq!(&written[page], &(root, tokens[..end].to_vec()));
                }
                blocks.hold(&pages);
                let known = pages.len();
                if blocks.grow(&mut pages, len) {
                    for (i, &page) in pages.iter().enumerate().skip(known) {
                        let end = ((i + 1) * BLOCK_SIZE).min(len);
                        written.insert(page, (root, tokens[..end].to_vec()));
                    }
                    blocks.remember(root, &tokens, &mut pages);
                    held.push(pages);
                } else {
                    blocks.release(&mut pages);
                }
                if drop < held.len() {
                    blocks.release(&mut held.swap_remove(drop));
                }
                let mut distinct: Vec<u32> = held.iter().flatten().copied().collect();
                distinct.sort_unstable();
                distinct.dedup();
                prop_assert_eq!(blocks.num_free() + distinct.len(), num_blocks);
            }
            held.iter_mut().for_each(|pages| blocks.release(pages));
            prop_assert_eq!(blocks.num_free(), num_blocks);
        }
    }
}
