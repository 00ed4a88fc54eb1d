//! Products of many rows, and adapters that ride along.
//!
//! A is brought into the order in which tiles read it, once: that leaves the inner loop with constant
//! distances, and no rows of A that fall on the same cache sets. Then each task takes some panels
//! of B over all rows: a block of B that must be widened, turned or unpacked is made once, right
//! before its first use, and stays for the rows that follow. Between blocks of depth the sums of a
//! group of panels rest side by side, for the same reason as A's rows: rows of C lie a power of two
//! apart all too often, and would be fetched from beyond the second cache each time.
//!
//! A low-rank adapter adds scale · (A·I)·O to C, with I `[depth, r]` and O `[r, columns]`. A·I is
//! computed while the rows of A are at hand, and (A·I)·O continues the sums before they go to C: r
//! more steps of depth. One after the other, the two products of an adapter pass over A and twice over
//! C, which takes longer than their arithmetic. The bits are the same.

use crate::formats::PART;
use crate::matmul::{
    Ahead, BLOCK_DEPTH, BLOCK_ROWS, BlockOfB, Panels, Product, SERIAL_WORK, Stretch, Strided,
    TILE_ROWS, stretches,
};
use crate::packed::PANEL;
use crate::simd::{Kernel, Level, Simd, dispatch_at};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Depth that is in order at once: what a task keeps of B, GROUP · 4096 · 64 bytes, stays below 1 MiB
/// whatever the product (an output layer's gradient is as deep as its vocabulary).
pub(crate) const SLAB_DEPTH: usize = 16 * BLOCK_DEPTH;
/// Values of A in order at once: 16 MiB.
const A_VALUES: usize = 1 << 22;
/// Panels that a task takes at a time: their blocks of B, 4 · 16 KiB, and their sums, 192 · 4 · 64
/// bytes, fit a second-level cache of 512 KiB beside the block of A; each block of A that comes from
/// beyond is then used four times.
const GROUP: usize = 4;

/// Memory that products keep for themselves on so many threads, in bytes, at most.
pub fn buffer_bytes(threads: usize) -> usize {
    let of_thread = GROUP * SLAB_DEPTH * PANEL + BLOCK_ROWS * GROUP * PANEL;
    (A_VALUES + threads * of_thread) * size_of::<f32>()
}

/// Whether a product of this shape is worth the order.
pub(crate) fn pays(rows: usize, columns: usize, depth: usize) -> bool {
    rows > 2 * TILE_ROWS && columns.div_ceil(PANEL) >= 4 && depth >= 2 * PANEL
}

/// A low-rank adapter on some rows.
pub(crate) struct Rider<'a> {
    rows: Range<usize>,
    inner: Panels<'a>,
    outer: Panels<'a>,
    r: usize,
    scale: f32,
    /// Where row 0 of the product would have its result.
    h: *mut f32,
}

// SAFETY: what is pointed to is only read, but for the result, of which each task writes its own
// rows.
unsafe impl Sync for Rider<'_> {}
// SAFETY: as above.
unsafe impl Send for Rider<'_> {}

impl<'a> Rider<'a> {
    /// I `[depth, r]` is `inner`, O `[r, columns]` is `outer`; `h` receives scale · A·I, `[rows, r]`.
    pub(crate) fn new(
        rows: Range<usize>,
        inner: Panels<'a>,
        outer: Panels<'a>,
        r: usize,
        scale: f32,
        h: &'a mut [f32],
    ) -> Rider<'a> {
        assert_eq!(h.len(), rows.len() * r, "a row of results per row");
        let h = h.as_mut_ptr().wrapping_sub(rows.start * r);
        Rider { rows, inner, outer, r, scale, h }
    }
}

/// At most BLOCK_ROWS rows with the same rider, or none.
struct Block {
    rows: Range<usize>,
    rider: Option<usize>,
}

/// A product with its riders, cut into blocks of rows.
pub(crate) struct Blocks<'a> {
    product: Product<'a>,
    riders: Vec<Rider<'a>>,
    blocks: Vec<Block>,
    /// The widest rider.
    r: usize,
}

/// A stretch of depth of some blocks in order, and their adapters' results.
struct Ordered<'a> {
    blocks: &'a [Block],
    /// The first row.
    first: usize,
    slab: Range<usize>,
    /// `slab.len()` values per row.
    a: *mut f32,
    /// As many values per row as the widest rider has.
    h: *mut f32,
}

// SAFETY: while these are written, every task writes its own rows; then they are only read.
unsafe impl Sync for Ordered<'_> {}

/// What [`Ordered`] points to, of products that are done: kept because fresh ones would cost page
/// faults, and for all threads together, as any of them may begin the next product.
static ORDERED: Mutex<Vec<(Vec<f32>, Vec<f32>)>> = Mutex::new(Vec::new());

fn ordered() -> MutexGuard<'static, Vec<(Vec<f32>, Vec<f32>)>> {
    ORDERED.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// The blocks of B of a group of panels, and its sums; kept for the same reason.
    static GROUPS: Cell<(Vec<f32>, Vec<f32>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

fn reserve(values: &mut Vec<f32>, len: usize) {
    if values.len() < len {
        values.resize(len, 0.0);
    }
}

impl<'a> Blocks<'a> {
    /// `riders` are in the order of their rows, inside the product, and apart.
    pub(crate) fn new(product: Product<'a>, rows: usize, riders: Vec<Rider<'a>>) -> Blocks<'a> {
        let mut blocks = Vec::new();
        let mut cut = |rows: Range<usize>, rider| {
            blocks.extend(stretches(rows, BLOCK_ROWS).map(|rows| Block { rows, rider }));
        };
        let mut next = 0;
        for (i, rider) in riders.iter().enumerate() {
            cut(next..rider.rows.start, None);
            cut(rider.rows.clone(), Some(i));
            next = rider.rows.end;
        }
        cut(next..rows, None);
        let r = riders.iter().map(|rider| rider.r).max().unwrap_or(0);
        Blocks { product, riders, blocks, r }
    }

    /// Computes the product on all threads.
    pub(crate) fn run(&self, level: Level) {
        let rows = self.blocks.last().map_or(0, |b| b.rows.end);
        let work = rows * self.product.columns * self.product.depth;
        let threads = rayon::current_num_threads();
        let serial = threads == 1 || work < SERIAL_WORK;
        self.each_slab(|ordered| {
            let order = |i| dispatch_at(level, Order { blocks: self, ordered, block: i });
            let compute = |panels, blocks| {
                dispatch_at(level, Compute { blocks: self, ordered, panels, of: blocks });
            };
            let (count, panels) = (ordered.blocks.len(), self.product.columns.div_ceil(PANEL));
            if serial {
                (0..count).for_each(order);
                return compute(0..panels, 0..count);
            }
            (0..count).into_par_iter().with_max_len(1).for_each(order);
            let (panel_parts, row_parts) = split(panels, count, threads);
            (0..panel_parts * row_parts).into_par_iter().with_max_len(1).for_each(|i| {
                let part = |total, parts, i| i * total / parts..(i + 1) * total / parts;
                let panels = part(panels, panel_parts, i / row_parts);
                compute(panels, part(count, row_parts, i % row_parts));
            });
        });
    }

    /// Calls `work` for each stretch of depth of as many blocks as are in order at once.
    fn each_slab(&self, work: impl Fn(&Ordered<'_>)) {
        let depth = self.product.depth;
        let (mut a, mut h) = ordered().pop().unwrap_or_default();
        let most = (A_VALUES / depth.min(SLAB_DEPTH)).max(BLOCK_ROWS);
        let mut rest = &self.blocks[..];
        while let Some(start) = rest.first().map(|b| b.rows.start) {
            let fit = rest.iter().take_while(|b| b.rows.end - start <= most).count();
            let (blocks, later) = rest.split_at(fit.max(1));
            rest = later;
            let rows = blocks.last().map_or(start, |b| b.rows.end) - start;
            reserve(&mut a, rows * depth.min(SLAB_DEPTH));
            reserve(&mut h, rows * self.r);
            for slab in stretches(0..depth, SLAB_DEPTH) {
                let (a, h) = (a.as_mut_ptr(), h.as_mut_ptr());
                work(&Ordered { blocks, first: start, slab, a, h });
            }
        }
        ordered().push((a, h));
    }

    /// Brings block `i` into order, and computes what its rider reads of it.
    ///
    /// # Safety
    /// The processor supports `S`; no other task has the same block.
    #[inline(always)]
    unsafe fn order<S: Simd>(&self, ordered: &Ordered<'_>, i: usize) {
        let block = &ordered.blocks[i];
        let (rows, slab) = (&block.rows, &ordered.slab);
        // SAFETY: rows and depth are inside the product, and the buffers hold all rows of `ordered`.
        unsafe {
            for depth in block_depths(slab) {
                let to = ordered.a_of(rows, depth.start).cast_mut();
                let to = std::slice::from_raw_parts_mut(to, rows.len() * depth.len());
                self.product.a.pack(to, rows.clone(), depth);
            }
            let Some(rider) = block.rider.map(|i| &self.riders[i]) else { return };
            let inner = Product {
                c: rider.h,
                b: rider.inner,
                columns: rider.r,
                accumulate: false,
                ..self.product
            };
            let (mut b, sums) = GROUPS.take();
            reserve(&mut b, BLOCK_DEPTH * PANEL);
            for panel in 0..rider.r.div_ceil(PANEL) {
                for depth in block_depths(slab) {
                    let b = inner.block_of_b::<S>(panel, 1, depth.clone(), b.as_mut_ptr(), 0);
                    let stretch = Stretch {
                        rows: rows.clone(),
                        panel,
                        packed_a: ordered.a_of(rows, depth.start),
                        depth,
                        sums: std::ptr::null_mut(),
                        from_sums: false,
                        to_sums: false,
                        ahead: Ahead::NOTHING,
                    };
                    inner.tiles::<S, f32>(stretch, 1, b);
                }
            }
            GROUPS.set((b, sums));
            if slab.end < self.product.depth {
                return;
            }
            let h = rider.h.wrapping_add(rows.start * rider.r);
            let h = std::slice::from_raw_parts_mut(h, rows.len() * rider.r);
            h.iter_mut().for_each(|value| *value *= rider.scale);
            let to = ordered.h_of(rows, self.r).cast_mut();
            let to = std::slice::from_raw_parts_mut(to, rows.len() * rider.r);
            let result = Strided { start: h, row: rider.r, depth: 1 };
            result.pack(to, 0..rows.len(), 0..rider.r);
        }
    }

    /// Computes some panels of some blocks.
    ///
    /// # Safety
    /// The processor supports `S`; the blocks are in order; no other task has the same panels of
    /// the same blocks.
    #[inline(always)]
    unsafe fn compute<S: Simd>(
        &self,
        ordered: &Ordered<'_>,
        panels: Range<usize>,
        of: Range<usize>,
    ) {
        let slab = &ordered.slab;
        let full = self.product.columns / PANEL;
        let last = slab.end == self.product.depth;
        // Turned blocks are whole squares.
        let apart = slab.len().next_multiple_of(PART);
        let in_place = matches!(self.product.b, Panels::F32(_));
        let (mut b, mut sums) = GROUPS.take();
        let kept = if in_place { 0 } else { GROUP * apart * PANEL };
        reserve(&mut b, kept + 2 * self.r.next_multiple_of(PART) * PANEL);
        reserve(&mut sums, BLOCK_ROWS * GROUP * PANEL);
        for group in stretches(panels, GROUP) {
            for (i, block) in ordered.blocks[of.clone()].iter().enumerate() {
                let rows = &block.rows;
                let rider = block.rider.filter(|_| last).map(|i| &self.riders[i]);
                let stretch = |panel, depth, packed_a| Stretch {
                    rows: rows.clone(),
                    panel,
                    depth,
                    packed_a,
                    sums: std::ptr::null_mut(),
                    from_sums: true,
                    to_sums: true,
                    ahead: Ahead::NOTHING,
                };
                for depth in block_depths(slab) {
                    for (panel, count) in counts::<S>(&group, full) {
                        // SAFETY: panel and depth are inside the product, and depth is no longer
                        // than BLOCK_DEPTH and starts at a multiple of a part; the buffers are as
                        // large as all panels and rows of a group need.
                        unsafe {
                            let at = (panel - group.start) * apart + depth.start - slab.start;
                            let to = b.as_mut_ptr().wrapping_add(at * PANEL);
                            let a = ordered.a_of(rows, depth.start);
                            let mut stretch = stretch(panel, depth.clone(), a);
                            let place = (panel - group.start) * PANEL * rows.len();
                            stretch.sums = sums.as_mut_ptr().add(place);
                            stretch.from_sums = depth.start > slab.start;
                            stretch.to_sums = depth.end < slab.end || rider.is_some();
                            let b = if i == 0 || in_place {
                                if i == 0 {
                                    let depth = depth.clone();
                                    stretch.ahead = self.product.ahead(panel + count, count, depth);
                                }
                                self.product.block_of_b::<S>(panel, count, depth.clone(), to, apart)
                            } else {
                                BlockOfB { b: to.cast_const(), row: PANEL, panel: apart * PANEL }
                            };
                            self.product.tiles::<S, f32>(stretch, count, b);
                        }
                    }
                }
                let Some(rider) = rider else { continue };
                let outer = Product {
                    a: Strided { start: &[], row: 0, depth: 0 },
                    b: rider.outer,
                    depth: rider.r,
                    accumulate: true,
                    ..self.product
                };
                for (panel, count) in counts::<S>(&group, full) {
                    // SAFETY: as above; the end of b holds two panels of the widest rider.
                    unsafe {
                        let to = b.as_mut_ptr().add(kept);
                        let apart = rider.r.next_multiple_of(PART);
                        let b = outer.block_of_b::<S>(panel, count, 0..rider.r, to, apart);
                        let a = ordered.h_of(rows, self.r);
                        let mut stretch = stretch(panel, 0..rider.r, a);
                        let place = (panel - group.start) * PANEL * rows.len();
                        stretch.sums = sums.as_mut_ptr().add(place);
                        stretch.to_sums = false;
                        outer.tiles::<S, f32>(stretch, count, b);
                    }
                }
            }
        }
        GROUPS.set((b, sums));
    }
}

impl Ordered<'_> {
    /// Where the rows of a block are in order from a depth on.
    fn a_of(&self, rows: &Range<usize>, depth: usize) -> *const f32 {
        let before = (rows.start - self.first) * self.slab.len();
        self.a.wrapping_add(before + rows.len() * (depth - self.slab.start)).cast_const()
    }

    /// Where the results of a block's rider are in order.
    fn h_of(&self, rows: &Range<usize>, r: usize) -> *const f32 {
        self.h.wrapping_add((rows.start - self.first) * r).cast_const()
    }
}

/// The blocks of depth of a slab, nearly equal and starting at multiples of a part.
fn block_depths(slab: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let blocks = slab.len().div_ceil(BLOCK_DEPTH);
    stretches(slab.clone(), slab.len().div_ceil(blocks).next_multiple_of(PART))
}

/// The panels of a group that a tile takes at once: two where registers are sixteen lanes wide.
#[inline(always)]
fn counts<S: Simd>(group: &Range<usize>, full: usize) -> impl Iterator<Item = (usize, usize)> {
    let (mut panel, end) = (group.start, group.end);
    std::iter::from_fn(move || {
        let first = panel;
        let pair = S::LANES == 16 && panel + 2 <= end.min(full);
        panel += if pair { 2 } else { 1 };
        (first < end).then_some((first, panel - first))
    })
}

/// Into how many parts panels and blocks of rows are cut: a multiple of the thread count, so that
/// all end together, and by rows only where the panels are too few, as each part makes its blocks of B.
fn split(panels: usize, blocks: usize, threads: usize) -> (usize, usize) {
    let panel_parts = panels.div_ceil(GROUP).next_multiple_of(threads).min(panels);
    let row_parts = (2 * threads).div_ceil(panel_parts).min(blocks);
    (panel_parts, row_parts)
}

/// See [`Blocks::order`].
struct Order<'a> {
    blocks: &'a Blocks<'a>,
    ordered: &'a Ordered<'a>,
    block: usize,
}

impl Kernel for Order<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's contract.
        unsafe { self.blocks.order::<S>(self.ordered, self.block) }
    }
}

/// See [`Blocks::compute`].
struct Compute<'a> {
    blocks: &'a Blocks<'a>,
    ordered: &'a Ordered<'a>,
    panels: Range<usize>,
    of: Range<usize>,
}

impl Kernel for Compute<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's contract.
        unsafe { self.blocks.compute::<S>(self.ordered, self.panels, self.of) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Computes the product at a level that the processor need not have a name for.
    ///
    /// # Safety
    /// The product's pointers cover its shape; the processor supports `S`.
    pub(crate) unsafe fn run<S: Simd>(product: Product<'_>, rows: usize, riders: Vec<Rider<'_>>) {
        let blocks = Blocks::new(product, rows, riders);
        blocks.each_slab(|ordered| {
            // SAFETY: the caller's contract; everything happens one after the other.
            unsafe {
                (0..ordered.blocks.len()).for_each(|i| blocks.order::<S>(ordered, i));
                let panels = 0..product.columns.div_ceil(PANEL);
                blocks.compute::<S>(ordered, panels, 0..ordered.blocks.len());
            }
        });
    }

    #[test]
    fn the_split_leaves_no_part_empty() {
        for panels in [4, 5, 12, 36, 300, 3000] {
            for blocks in [1, 2, 11, 100] {
                for threads in [2, 3, 16, 64] {
                    let (panel_parts, row_parts) = split(panels, blocks, threads);
                    assert!((1..=panels).contains(&panel_parts));
                    assert!((1..=blocks).contains(&row_parts));
                    let possible = (panels * blocks).min(threads);
                    assert!(panel_parts * row_parts >= possible, "{panels} {blocks} {threads}");
                }
            }
        }
    }

    #[test]
    fn depths_cover_a_slab_in_whole_parts() {
        for slab in [0..1, 0..256, 0..300, 0..576, 4096..4100, 0..4096] {
            let mut next = slab.start;
            for depth in block_depths(&slab) {
                assert!(depth.start == next && depth.len() <= BLOCK_DEPTH && !depth.is_empty());
                assert_eq!(depth.start % PART, 0);
                next = depth.end;
            }
            assert_eq!(next, slab.end);
        }
    }
}
