//! Matrix products: y = x·Wᵀ, its two gradients, and the one micro-kernel behind all three.
//!
//! All three are C `[rows, columns]` (+)= A `[rows, depth]` · B `[depth, columns]`, where B comes
//! in panels of sixteen columns:
//!
//! | product       | C         | A    | B                           | depth |
//! |---------------|-----------|------|-----------------------------|-------|
//! | [`matmul`]    | y  [T, N] | x    | the packed panels           | K     |
//! | [`matmul_dx`] | dx [T, K] | dy   | the packed panels, turned   | N     |
//! | [`matmul_dw`] | dw [N, K] | dyᵀ  | x, sixteen columns at once  | T     |
//!
//! Every element of C is one chain of fused multiply-adds in the order of depth, starting from
//! zero or from the old value. Blocks only interrupt the chain (the value rests in C meanwhile), so
//! the result has the same bits for any tiling, thread count and number of other rows.
//!
//! Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication",
//! ACM TOMS 34(3), 2008: a block of B stays in the first cache while the rows pass by.

use crate::blocks::{self, Blocks, Rider};
use crate::formats::PART;
use crate::int8;
use crate::packed::{PANEL, PackedMatrix, Quantised, Storage};
use crate::simd::{Kernel, Level, Simd, dispatch_at, four};
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// y `[T, N]` = x `[T, K]` · Wᵀ, or y += when `accumulate`. W is `[N, K]`.
///
/// # Panics
/// When a slice's length does not fit `t` and the weight's shape.
pub fn matmul(y: &mut [f32], x: &[f32], w: &PackedMatrix, t: usize, accumulate: bool) {
    matmul_at(Level::detect(), y, x, w, t, accumulate);
}

/// dx `[T, K]` = dy `[T, N]` · W, or dx += when `accumulate`. W is `[N, K]`.
///
/// # Panics
/// When a slice's length does not fit `t` and the weight's shape.
pub fn matmul_dx(dx: &mut [f32], dy: &[f32], w: &PackedMatrix, t: usize, accumulate: bool) {
    matmul_dx_at(Level::detect(), dx, dy, w, t, accumulate);
}

/// dw `[N, K]` (row-major) += dy `[T, N]`ᵀ · x `[T, K]`.
///
/// # Panics
/// When a slice's length does not fit the shapes.
pub fn matmul_dw(dw: &mut [f32], dy: &[f32], x: &[f32], t: usize, n: usize, k: usize) {
    matmul_dw_at(Level::detect(), dw, dy, x, t, n, k);
}

pub(crate) fn matmul_at(
    level: Level,
    y: &mut [f32],
    x: &[f32],
    w: &PackedMatrix,
    t: usize,
    accumulate: bool,
) {
    matmul_before(level, y, x, w, t, accumulate, &[]);
}

/// [`matmul_at`] that asks for memory which is read next, where the product leaves time for it.
pub(crate) fn matmul_before(
    level: Level,
    y: &mut [f32],
    x: &[f32],
    w: &PackedMatrix,
    t: usize,
    accumulate: bool,
    next: &[&[u8]],
) {
    check("y", y, t, w.n);
    check("x", x, t, w.k);
    if w.in_integers()
        && let Storage::Quantised(q) = &w.storage
        && !x.is_empty()
        && !y.is_empty()
    {
        return int8::matmul_at(level, y, x, q, (t, w.n, w.k), accumulate, next);
    }
    matmul_riders(level, y, x, w, t, accumulate, Vec::new());
}

/// [`matmul_at`] with adapters on some rows: where [`blocks::pays`], and the weight is not multiplied
/// in integers.
pub(crate) fn matmul_riders(
    level: Level,
    y: &mut [f32],
    x: &[f32],
    w: &PackedMatrix,
    t: usize,
    accumulate: bool,
    riders: Vec<Rider<'_>>,
) {
    check("y", y, t, w.n);
    check("x", x, t, w.k);
    let a = Strided { start: x, row: w.k, depth: 1 };
    product(level, y, w.n, a, panels_of(w), t, w.k, accumulate, riders);
}

pub(crate) fn panels_of(w: &PackedMatrix) -> Panels<'_> {
    match &w.storage {
        Storage::F32(lanes) => Panels::F32(lanes.as_ptr().cast()),
        Storage::Bf16(lanes) => Panels::Bf16(lanes.as_ptr().cast()),
        Storage::Quantised(q) => Panels::Quantised(q),
    }
}

pub(crate) fn matmul_dx_at(
    level: Level,
    dx: &mut [f32],
    dy: &[f32],
    w: &PackedMatrix,
    t: usize,
    accumulate: bool,
) {
    matmul_dx_riders(level, dx, dy, w, t, accumulate, Vec::new());
}

/// [`matmul_dx_at`] with adapters on some rows: where [`blocks::pays`].
pub(crate) fn matmul_dx_riders(
    level: Level,
    dx: &mut [f32],
    dy: &[f32],
    w: &PackedMatrix,
    t: usize,
    accumulate: bool,
    riders: Vec<Rider<'_>>,
) {
    check("dx", dx, t, w.k);
    check("dy", dy, t, w.n);
    let a = Strided { start: dy, row: w.n, depth: 1 };
    product(level, dx, w.k, a, Panels::Turned(w), t, w.n, accumulate, riders);
}

pub(crate) fn matmul_dw_at(
    level: Level,
    dw: &mut [f32],
    dy: &[f32],
    x: &[f32],
    t: usize,
    n: usize,
    k: usize,
) {
    check("dw", dw, n, k);
    check("dy", dy, t, n);
    check("x", x, t, k);
    if k <= NARROW && n > k {
        // The other way round: few columns of x leave little to do for each value of dy, which
        // would be read from cache lines a row apart. A product of two values does not depend on
        // which comes first, so the bits are the same.
        let mut turned = vec![0.0; k * n];
        transpose_into(&mut turned, dw, n, k);
        let a = Strided { start: x, row: 1, depth: k };
        product(level, &mut turned, n, a, Panels::Rows(dy.as_ptr()), k, t, true, Vec::new());
        return transpose_into(dw, &turned, k, n);
    }
    let a = Strided { start: dy, row: 1, depth: n };
    product(level, dw, k, a, Panels::Rows(x.as_ptr()), n, t, true, Vec::new());
}

/// Columns below which a gradient of a weight is computed turned.
const NARROW: usize = 4 * PANEL;

/// to `[columns, rows]` = from `[rows, columns]`, turned.
fn transpose_into(to: &mut [f32], from: &[f32], rows: usize, columns: usize) {
    for r in 0..rows {
        for c in 0..columns {
            to[c * rows + r] = from[r * columns + c];
        }
    }
}

fn check(name: &str, slice: &[f32], rows: usize, columns: usize) {
    assert_eq!(
        slice.len(),
        rows * columns,
        "{name} is [{rows}, {columns}]: expected {} values, found {}",
        rows * columns,
        slice.len()
    );
}

/// y `[T, N]` = x `[T, K]` · Wᵀ with a row-major W `[N, K]`, by the definition.
pub fn reference_matmul(y: &mut [f32], x: &[f32], w: &[f32], t: usize, n: usize, k: usize) {
    for ti in 0..t {
        for ni in 0..n {
            y[ti * n + ni] = (0..k).map(|ki| x[ti * k + ki] * w[ni * k + ki]).sum();
        }
    }
}

/// dx `[T, K]` = dy `[T, N]` · W with a row-major W `[N, K]`, by the definition.
pub fn reference_matmul_dx(dx: &mut [f32], dy: &[f32], w: &[f32], t: usize, n: usize, k: usize) {
    for ti in 0..t {
        for ki in 0..k {
            dx[ti * k + ki] = (0..n).map(|ni| dy[ti * n + ni] * w[ni * k + ki]).sum();
        }
    }
}

/// dw `[N, K]` += dy `[T, N]`ᵀ · x `[T, K]`, by the definition.
pub fn reference_matmul_dw(dw: &mut [f32], dy: &[f32], x: &[f32], t: usize, n: usize, k: usize) {
    for ni in 0..n {
        for ki in 0..k {
            dw[ni * k + ki] += (0..t).map(|ti| dy[ti * n + ni] * x[ti * k + ki]).sum::<f32>();
        }
    }
}

/// Rows of C per tile. Six rows of two 8-lane vectors are twelve accumulators; with two vectors of
/// B and one broadcast that fills the sixteen registers of AVX2.
pub(crate) const TILE_ROWS: usize = 6;
/// Depth of a block of B: 256 · 64 bytes = 16 KiB, half of the first-level cache.
pub(crate) const BLOCK_DEPTH: usize = 256;
/// Rows of C per task: 192 · 256 · 4 bytes of A = 192 KiB, which stays in the second-level cache
/// while the task's panels pass by, and repays a panel that must first be widened or turned.
pub(crate) const BLOCK_ROWS: usize = 192;
/// Multiply-adds below which waking other threads costs more than it gains (some microseconds).
pub(crate) const SERIAL_WORK: usize = 1 << 16;

/// A: element (r, d) is `start[r * row + d * depth]`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) start: &'a [f32],
    pub(crate) row: usize,
    pub(crate) depth: usize,
}

/// B, sixteen columns at a time. The pointers reach as far as the product's shape says.
#[derive(Clone, Copy)]
pub(crate) enum Panels<'a> {
    /// `[panel][depth][16]`
    F32(*const f32),
    /// `[panel][depth][16]`
    Bf16(*const bf16),
    /// Quantised panels, unpacked a stretch at a time.
    Quantised(&'a Quantised),
    /// A packed `[N, K]` weight read as `[N, K]`: depth N, columns K.
    Turned(&'a PackedMatrix),
    /// Row-major `[depth, columns]`.
    Rows(*const f32),
}

/// One product C (+)= A·B as its tasks see it.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) c: *mut f32,
    pub(crate) a: Strided<'a>,
    pub(crate) b: Panels<'a>,
    pub(crate) columns: usize,
    pub(crate) depth: usize,
    pub(crate) accumulate: bool,
}

// SAFETY: A and B are only read, and every task writes its own elements of C.
unsafe impl Sync for Product<'_> {}
// SAFETY: as above.
unsafe impl Send for Product<'_> {}

fn product(
    level: Level,
    c: &mut [f32],
    columns: usize,
    a: Strided,
    b: Panels,
    rows: usize,
    depth: usize,
    accumulate: bool,
    riders: Vec<Rider<'_>>,
) {
    if c.is_empty() {
        return;
    }
    if depth == 0 {
        if !accumulate {
            c.fill(0.0);
        }
        return;
    }
    let product = Product { c: c.as_mut_ptr(), a, b, columns, depth, accumulate };
    if blocks::pays(rows, columns, depth) {
        return Blocks::new(product, rows, riders).run(level);
    }
    assert!(riders.is_empty(), "adapters ride on products of many rows");
    in_tasks(rows, columns, depth, |rows, panels| {
        dispatch_at(level, Task { product, rows, panels });
    });
}

/// Runs `task` over the rows and the panels of a product on all threads, at most BLOCK_ROWS rows at a
/// time.
pub(crate) fn in_tasks(
    rows: usize,
    columns: usize,
    depth: usize,
    task: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    let panels = columns.div_ceil(PANEL);
    let threads = rayon::current_num_threads();
    if threads == 1 || rows * columns * depth < SERIAL_WORK {
        for start in (0..rows).step_by(BLOCK_ROWS) {
            task(start..rows.min(start + BLOCK_ROWS), 0..panels);
        }
        return;
    }
    let (row_parts, panel_parts) = split(rows, panels, threads);
    (0..row_parts * panel_parts).into_par_iter().with_max_len(1).for_each(|i| {
        let rows = part(rows, row_parts, i / panel_parts, 1);
        let panels = part(panels, panel_parts, i % panel_parts, PANEL_STEP);
        task(rows, panels);
    });
}

/// Panels that a task takes at a time at best (one row of AVX2 vectors needs four for its eight
/// independent sums); the split respects it where it can.
const PANEL_STEP: usize = 4;

/// Into how many parts rows and panels are cut: about two tasks per thread at least, so that a
/// thread that was late costs less; by rows as long as they are many, then by panels, then by rows
/// again. More parts would repeat the packing of A and of B.
fn split(rows: usize, panels: usize, threads: usize) -> (usize, usize) {
    let wanted = 2 * threads;
    let row_parts = rows.div_ceil(BLOCK_ROWS);
    if row_parts >= wanted {
        // A multiple of the thread count: all threads end together.
        return (row_parts.next_multiple_of(threads), 1);
    }
    let steps = if panels >= wanted * PANEL_STEP { panels / PANEL_STEP } else { panels };
    let panel_parts = wanted.div_ceil(row_parts).min(steps);
    let row_parts = wanted.div_ceil(panel_parts).min(rows.div_ceil(TILE_ROWS)).max(row_parts);
    (row_parts, panel_parts)
}

/// Part `i` of `total` things cut into `parts` nearly equal ranges, which start at multiples of
/// `step` when there are at least `step` things per part.
fn part(total: usize, parts: usize, i: usize, step: usize) -> Range<usize> {
    let step = if total >= parts * step { step } else { 1 };
    let edge = |i: usize| {
        if i == parts { total } else { i * total / parts / step * step }
    };
    edge(i)..edge(i + 1)
}

/// The rows and panels of a product that one thread computes.
struct Task<'a> {
    product: Product<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
}

/// Where a task turns or widens its block of B: at most two panels.
#[repr(C, align(64))]
struct Scratch([MaybeUninit<f32>; 2 * BLOCK_DEPTH * PANEL]);

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Task { product, rows, panels } = self;
        let mut scratch = Scratch([MaybeUninit::uninit(); 2 * BLOCK_DEPTH * PANEL]);
        let scratch = scratch.0.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's contract: the processor supports S, rows and panels are inside the
        // product.
        unsafe { product.by_panels::<S>(rows, panels, scratch) }
    }
}

impl Product<'_> {
    /// Few rows, or few panels. Few rows: B is read once, straight from where it lies, several
    /// panels at a time so that enough independent sums are under way; quantised panels are
    /// unpacked into as little scratch as stays in the first cache, so that their bytes, too, are
    /// read once.
    ///
    /// # Safety
    /// The rows and the panels lie inside the product; scratch holds two panels of BLOCK_DEPTH; the
    /// processor supports `S`.
    #[inline(always)]
    unsafe fn by_panels<S: Simd>(
        &self,
        rows: Range<usize>,
        panels: Range<usize>,
        scratch: *mut f32,
    ) {
        let few = rows.len() <= 2 * TILE_ROWS;
        let quantised = matches!(self.b, Panels::Quantised(_));
        let direct = match self.b {
            Panels::F32(_) => true,
            Panels::Bf16(_) => few,
            Panels::Quantised(_) | Panels::Turned(_) | Panels::Rows(_) => false,
        };
        let vectors = S::LANES / 8;
        let group = match rows.len() {
            1 if direct || quantised => 4 * vectors,
            2 if direct || quantised => 2 * vectors,
            _ => vectors,
        };
        let full = self.columns / PANEL;
        let block_depth = match (direct, quantised) {
            (true, _) if few => 4 * BLOCK_DEPTH,
            (_, true) if few => BLOCK_DEPTH / group,
            _ => BLOCK_DEPTH,
        };
        for depth_start in (0..self.depth).step_by(block_depth) {
            let depth = depth_start..self.depth.min(depth_start + block_depth);
            let mut panel = panels.start;
            while panel < panels.end {
                let mut count = group;
                while count > (panels.end.min(full) - panel.min(full)).max(1) {
                    count /= 2;
                }
                let stretch = Stretch {
                    rows: rows.clone(),
                    panel,
                    depth: depth.clone(),
                    packed_a: std::ptr::null(),
                    sums: std::ptr::null_mut(),
                    from_sums: false,
                    to_sums: false,
                    ahead: Ahead::NOTHING,
                };
                // SAFETY: the panels and the depth are inside the product; scratch holds two
                // panels of BLOCK_DEPTH, and where it is used there are no more and blocks are no
                // deeper.
                unsafe {
                    match self.b {
                        Panels::Bf16(b) if few => {
                            let b = b.add((panel * self.depth + depth.start) * PANEL);
                            let b = BlockOfB { b, row: PANEL, panel: self.depth * PANEL };
                            self.tiles::<S, bf16>(stretch, count, b);
                        }
                        // Copying pays when many rows pass by: the rows of B lie far apart and may
                        // fall on the same cache sets.
                        Panels::Rows(b) if few && panel < full => {
                            let b = b.add(depth.start * self.columns + panel * PANEL);
                            let b = BlockOfB { b, row: self.columns, panel: PANEL };
                            self.tiles::<S, f32>(stretch, count, b);
                        }
                        _ => {
                            let apart = if quantised { block_depth } else { BLOCK_DEPTH };
                            let b =
                                self.block_of_b::<S>(panel, count, depth.clone(), scratch, apart);
                            self.tiles::<S, f32>(stretch, count, b);
                        }
                    }
                }
                panel += count;
            }
        }
    }

    /// What [`Product::block_of_b`] will read for these panels. Quantised panels take so long to
    /// unpack that the processor has fetched them by itself; rows are too many pieces to gain.
    pub(crate) fn ahead(&self, panel: usize, count: usize, depth: Range<usize>) -> Ahead {
        let start = (panel * self.depth + depth.start) * PANEL;
        let packed = |at: *const u8, row: usize| Ahead {
            start: at,
            len: depth.len() * row,
            apart: self.depth * row,
            pieces: count,
            done: 0,
        };
        // Turned, sixteen rows of depth are one piece of a panel.
        let turned = |at: *const u8, row: usize| Ahead {
            start: at
                .wrapping_add((depth.start * self.columns + panel * PANEL * PANEL) * row / PANEL),
            len: count * PANEL * row,
            apart: self.columns * row,
            pieces: depth.len().div_ceil(PANEL),
            done: 0,
        };
        const F32: usize = size_of::<[f32; PANEL]>();
        const BF16: usize = size_of::<[bf16; PANEL]>();
        match self.b {
            Panels::F32(b) => packed(b.wrapping_add(start).cast(), F32),
            Panels::Bf16(b) => packed(b.wrapping_add(start).cast(), BF16),
            Panels::Turned(w) => match &w.storage {
                Storage::F32(lanes) => turned(lanes.as_ptr().cast(), F32),
                Storage::Bf16(lanes) => turned(lanes.as_ptr().cast(), BF16),
                Storage::Quantised(_) => Ahead::NOTHING,
            },
            Panels::Rows(_) | Panels::Quantised(_) => Ahead::NOTHING,
        }
    }

    /// The block of B of `count` panels as f32, `[depth][16]` each: where it lies if it can be used
    /// in place, else in scratch, the panels `apart` rows of sixteen from each other.
    ///
    /// # Safety
    /// The panels and the depth, which starts at a multiple of [`PART`], lie inside the product;
    /// unless B is f32 panels, scratch holds `count` panels of `apart` rows and depth is no longer;
    /// the processor supports `S`.
    #[inline(always)]
    pub(crate) unsafe fn block_of_b<S: Simd>(
        &self,
        panel: usize,
        count: usize,
        depth: Range<usize>,
        scratch: *mut f32,
        apart: usize,
    ) -> BlockOfB<f32> {
        let len = depth.len();
        let whole = self.depth * PANEL;
        let at = panel * whole + depth.start * PANEL;
        for i in 0..count {
            let to = scratch.wrapping_add(i * apart * PANEL);
            // SAFETY: the caller's contract.
            unsafe {
                match self.b {
                    Panels::F32(b) => return BlockOfB { b: b.add(at), row: PANEL, panel: whole },
                    Panels::Bf16(b) => widen::<S>(to, b.add(at + i * whole), len * PANEL),
                    Panels::Quantised(q) => {
                        S::call(q.unpack_panel(panel + i, depth.start, len, to));
                    }
                    Panels::Turned(w) => turn::<S>(to, w, panel + i, depth.clone()),
                    Panels::Rows(b) => {
                        let column = (panel + i) * PANEL;
                        let from = b.add(depth.start * self.columns + column);
                        let width = (self.columns - column).min(PANEL);
                        gather::<S>(to, from, width, self.columns, len);
                    }
                }
            }
        }
        BlockOfB { b: scratch.cast_const(), row: PANEL, panel: apart * PANEL }
    }
}

/// Memory that is needed soon: `pieces` of `len` bytes, `apart` bytes from each other. Only asked
/// for, so it may reach past what there is.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    start: *const u8,
    len: usize,
    apart: usize,
    pieces: usize,
    /// Bytes of the first piece that were asked for.
    done: usize,
}

impl Ahead {
    pub(crate) const NOTHING: Ahead =
        Ahead { start: std::ptr::null(), len: 0, apart: 0, pieces: 0, done: 0 };

    /// Cache lines in all.
    fn lines(&self) -> usize {
        self.len.div_ceil(LINE) * self.pieces
    }

    /// Asks for the next cache line, if one is left.
    ///
    /// # Safety
    /// The processor supports `S`.
    #[inline(always)]
    unsafe fn fetch_line<S: Simd>(&mut self) {
        if self.pieces == 0 {
            return;
        }
        // SAFETY: the caller's contract; any address may be asked for.
        unsafe { S::prefetch(self.start.wrapping_add(self.done)) };
        self.done += LINE;
        if self.done >= self.len {
            (self.start, self.done) = (self.start.wrapping_add(self.apart), 0);
            self.pieces -= 1;
        }
    }
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Where a block of B lies: its first value, and how far rows and panels are apart.
#[derive(Clone, Copy)]
pub(crate) struct BlockOfB<E> {
    pub(crate) b: *const E,
    pub(crate) row: usize,
    pub(crate) panel: usize,
}

/// A range in pieces of `len`; the last may be shorter.
pub(crate) fn stretches(range: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(len).map(move |start| start..end.min(start + len))
}

/// Cuts rows into tiles of nearly equal height (seven rows are 4 + 3, as a single row would be
/// slow) and gives each tile's first row and height.
#[inline(always)]
fn tiles_of(rows: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let tiles = rows.len().div_ceil(TILE_ROWS);
    let mut row = rows.start;
    (0..tiles).map(move |i| {
        let first = row;
        let height = (rows.end - row).div_ceil(tiles - i);
        row += height;
        (first, height)
    })
}

/// Widens `len` bf16 values (a multiple of sixteen).
///
/// # Safety
/// Both pointers cover `len` values; the processor supports `S`.
#[inline(always)]
pub(crate) unsafe fn widen<S: Simd>(to: *mut f32, from: *const bf16, len: usize) {
    for i in (0..len).step_by(S::LANES) {
        // SAFETY: i + LANES <= len, as LANES divides sixteen.
        unsafe { S::store(to.add(i), S::load_bf16(from.add(i))) };
    }
}

/// Copies `depth` rows of `width` <= 16 values, `stride` apart, to rows of 16, padded with zeros.
///
/// # Safety
/// `from` covers the rows, `to` covers `16 * depth` values; the processor supports `S`.
#[inline(always)]
unsafe fn gather<S: Simd>(
    to: *mut f32,
    from: *const f32,
    width: usize,
    stride: usize,
    depth: usize,
) {
    for d in 0..depth {
        // SAFETY: row d is inside both.
        unsafe {
            let (to, from) = (to.add(d * PANEL), from.add(d * stride));
            if width == PANEL {
                for i in (0..PANEL).step_by(S::LANES) {
                    S::store(to.add(i), S::load(from.add(i)));
                }
            } else {
                for i in 0..PANEL {
                    *to.add(i) = if i < width { *from.add(i) } else { 0.0 };
                }
            }
        }
    }
}

/// Panel `panel` (sixteen inputs k) of a weight read as `[N, K]`: for each output n in `depth`, the
/// sixteen weights, padded with zeros past K.
///
/// # Safety
/// `depth` starts at a multiple of sixteen and ends inside N; `to` covers it, rounded up to
/// sixteen; the processor supports `S`.
#[inline(always)]
unsafe fn turn<S: Simd>(to: *mut f32, w: &PackedMatrix, panel: usize, depth: Range<usize>) {
    let first = panel * PANEL;
    let width = (w.k - first).min(PANEL);
    for (i, source) in (depth.start / PANEL..depth.end.div_ceil(PANEL)).enumerate() {
        let start = source * w.k + first;
        // SAFETY: `to` covers whole groups of sixteen rows, by the contract.
        let to = unsafe { &mut *to.add(i * PANEL * PANEL).cast::<[[f32; PANEL]; PANEL]>() };
        let mut square = [[0.0f32; PANEL]; PANEL];
        match &w.storage {
            Storage::F32(lanes) => {
                for (row, lanes) in square.iter_mut().zip(&lanes[start..start + width]) {
                    *row = lanes.0;
                }
            }
            Storage::Bf16(lanes) => {
                for (row, lanes) in square.iter_mut().zip(&lanes[start..start + width]) {
                    // SAFETY: both are sixteen values.
                    unsafe { widen::<S>(row.as_mut_ptr(), lanes.0.as_ptr(), PANEL) };
                }
            }
            Storage::Quantised(q) => {
                // A part is two panels wide: each of them takes its half.
                let mut part = [[0.0f32; PANEL]; PART];
                let start = first / PART * PART;
                let to = part.as_mut_ptr().cast();
                // SAFETY: a quantised K is a multiple of 32, so the part is inside the panel.
                unsafe { S::call(q.unpack_panel(source, start, PART, to)) };
                square.copy_from_slice(&part[first - start..][..PANEL]);
            }
        }
        transpose(to, &square);
    }
}

/// to[j][i] = from[i][j]
#[inline(always)]
fn transpose(to: &mut [[f32; PANEL]; PANEL], from: &[[f32; PANEL]; PANEL]) {
    for i in (0..PANEL).step_by(4) {
        for j in (0..PANEL).step_by(4) {
            // By four times four: the compiler finds no vectors in the plain loop, and it took an
            // eighth of matmul_dx.
            // SAFETY: every load and store is inside its row of sixteen.
            unsafe {
                let rows = std::array::from_fn(|r| four::load(from[i + r].as_ptr().add(j)));
                for (r, row) in four::transpose(rows).into_iter().enumerate() {
                    four::store(to[j + r].as_mut_ptr().add(i), row);
                }
            }
        }
    }
}

/// `[depth][H]` from H rows: element (d, r) is `from[r * row + d * step]`.
///
/// # Safety
/// `from` covers H rows and the depth, which is `to.len() / H`.
#[inline(always)]
pub(crate) unsafe fn interleave<const H: usize>(
    to: &mut [f32],
    from: *const f32,
    row: usize,
    step: usize,
) {
    let depth = to.len() / H;
    let mut done = 0;
    // Four steps of depth of four rows at once: one value after another took a tenth of a product
    // of few columns. Where four do not divide the rows, the last four take some a second time.
    if step == 1 && H >= 4 {
        while done + 4 <= depth {
            for row_of_four in (0..H).step_by(4).map(|first| first.min(H - 4)) {
                // SAFETY: four values of each of four rows are read, and written to their places.
                unsafe {
                    let from = from.add(row_of_four * row + done);
                    let rows = std::array::from_fn(|r| four::load(from.add(r * row)));
                    let to = to.as_mut_ptr().add(done * H + row_of_four);
                    for (i, row) in four::transpose(rows).into_iter().enumerate() {
                        four::store(to.add(i * H), row);
                    }
                }
            }
            done += 4;
        }
    }
    for d in done..depth {
        let to = &mut to[d * H..(d + 1) * H];
        // SAFETY: the caller's contract.
        unsafe {
            let from = from.add(d * step);
            if row == 1 {
                to.copy_from_slice(&from.cast::<[f32; H]>().read());
            } else {
                for (r, to) in to.iter_mut().enumerate() {
                    *to = *from.add(r * row);
                }
            }
        }
    }
}

impl Strided<'_> {
    /// Copies a block of A: tile after tile, each `[depth][height]`.
    ///
    /// # Safety
    /// The rows and the depth lie inside A; `to` holds them.
    #[inline(always)]
    pub(crate) unsafe fn pack(&self, to: &mut [f32], rows: Range<usize>, depth: Range<usize>) {
        let mut to = to;
        for (row, height) in tiles_of(rows) {
            let (tile, rest) = to.split_at_mut(height * depth.len());
            // SAFETY: the caller's contract.
            unsafe {
                let from = self.start.as_ptr().add(row * self.row + depth.start * self.depth);
                match height {
                    6 => interleave::<6>(tile, from, self.row, self.depth),
                    5 => interleave::<5>(tile, from, self.row, self.depth),
                    4 => interleave::<4>(tile, from, self.row, self.depth),
                    3 => interleave::<3>(tile, from, self.row, self.depth),
                    2 => interleave::<2>(tile, from, self.row, self.depth),
                    _ => interleave::<1>(tile, from, self.row, self.depth),
                }
            }
            to = rest;
        }
    }
}

/// Some rows of C, where a group of panels starts, and a stretch of depth.
pub(crate) struct Stretch {
    pub(crate) rows: Range<usize>,
    pub(crate) panel: usize,
    pub(crate) depth: Range<usize>,
    /// The rows and depth of A as [`Product::pack_a`] lays them out, or null.
    pub(crate) packed_a: *const f32,
    /// The block of B that is needed next.
    pub(crate) ahead: Ahead,
    /// Where sums rest that are not in C yet, `[row][16 · panels]`; whether they start from there
    /// and whether they go there.
    pub(crate) sums: *mut f32,
    pub(crate) from_sums: bool,
    pub(crate) to_sums: bool,
}

impl Product<'_> {
    /// Runs tiles over all rows of a stretch of `count` panels that meet the block `b`.
    ///
    /// # Safety
    /// The stretch lies inside the product, `b` and what the stretch points to cover it; the
    /// processor supports `S`.
    #[inline(always)]
    pub(crate) unsafe fn tiles<S: Simd, E: Element>(
        &self,
        stretch: Stretch,
        count: usize,
        b: BlockOfB<E>,
    ) {
        // SAFETY: the caller's contract.
        unsafe { S::call(Strip { product: *self, stretch, count, b }) }
    }
}

/// See [`Product::tiles`].
struct Strip<'a, E> {
    product: Product<'a>,
    stretch: Stretch,
    count: usize,
    b: BlockOfB<E>,
}

// Run through `Simd::call`: one copy of the unrolled tiles per level and element. Inlined into the
// loops of a task they took the compiler minutes, and gained nothing; called tile by tile they cost
// a fifth of a product, for what is handed over lies in memory.
impl<E: Element> Kernel for Strip<'_, E> {
    type Output = ();

    /// # Safety
    /// As for [`Product::tiles`].
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Strip { product, stretch, count, b } = self;
        let Stretch { rows, panel, depth, packed_a, sums, from_sums, to_sums, mut ahead } = stretch;
        let ahead_per_tile = ahead.lines().div_ceil(rows.len().div_ceil(TILE_ROWS));
        let column = panel * PANEL;
        // Groups end before a panel that is not full, so this is a group of one.
        let width = product.columns - column;
        let ragged = width < PANEL;
        // The last panel reaches past C's columns: let the tiles work on a copy.
        let mut copy = [0.0f32; TILE_ROWS * PANEL];
        let first = rows.start;
        for (row, height) in tiles_of(rows) {
            // SAFETY: row, column and depth are inside the product.
            unsafe {
                let c = product.c.wrapping_add(row * product.columns + column);
                let a = product.a.start.as_ptr();
                let mut tile = Tile {
                    from: c.cast_const(),
                    from_row: product.columns,
                    from_zero: depth.start == 0 && !product.accumulate,
                    c,
                    c_row: product.columns,
                    a: a.wrapping_add(row * product.a.row + depth.start * product.a.depth),
                    a_row: product.a.row,
                    a_depth: product.a.depth,
                    b: b.b,
                    b_row: b.row,
                    b_panel: b.panel,
                    depth: depth.len(),
                };
                let mut dense = !packed_a.is_null();
                if dense {
                    tile.a = packed_a.add((row - first) * depth.len());
                    // Too small for tiles of its own kind.
                    if height < LEAST_DENSE {
                        (tile.a_row, tile.a_depth, dense) = (1, height, false);
                    }
                }
                if ragged && !from_sums {
                    for r in 0..height {
                        for j in 0..width {
                            copy[r * PANEL + j] = *c.add(r * product.columns + j);
                        }
                    }
                    (tile.from, tile.from_row) = (copy.as_ptr(), PANEL);
                }
                if ragged && !to_sums {
                    (tile.c, tile.c_row) = (copy.as_mut_ptr(), PANEL);
                }
                let resting = sums.wrapping_add((row - first) * count * PANEL);
                if from_sums {
                    (tile.from, tile.from_row) = (resting.cast_const(), count * PANEL);
                }
                if to_sums {
                    (tile.c, tile.c_row) = (resting, count * PANEL);
                }
                for _ in 0..ahead_per_tile {
                    ahead.fetch_line::<S>();
                }
                tile.shaped::<S>(height, count, dense);
                if ragged && !to_sums {
                    for r in 0..height {
                        for j in 0..width {
                            *c.add(r * product.columns + j) = copy[r * PANEL + j];
                        }
                    }
                }
            }
        }
    }
}

/// A value of B: f32, or bf16 widened on the way into the register.
pub(crate) trait Element: Copy {
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::F {
        // SAFETY: the caller's pointer covers LANES values.
        unsafe { S::load(p) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const bf16) -> S::F {
        // SAFETY: the caller's pointer covers LANES values.
        unsafe { S::load_bf16(p) }
    }
}

/// A piece of C that fits the registers: up to six rows of one panel, or fewer rows of more.
#[derive(Clone, Copy)]
struct Tile<E> {
    /// Where the sums start, unless at zero.
    from: *const f32,
    from_row: usize,
    from_zero: bool,
    c: *mut f32,
    c_row: usize,
    a: *const f32,
    a_row: usize,
    a_depth: usize,
    b: *const E,
    b_row: usize,
    b_panel: usize,
    depth: usize,
}

/// Rows from which on a tile of packed A has constant distances.
const LEAST_DENSE: usize = 4;

impl<E: Element> Tile<E> {
    /// Computes a tile of `height` rows and `panels` panels. `dense`: A is `[depth][height]` and rows
    /// of B are sixteen apart, whatever the fields say.
    ///
    /// # Safety
    /// The pointers cover `height` rows, `panels` panels and the depth; the processor supports `S`.
    #[inline(always)]
    unsafe fn shaped<S: Simd>(self, height: usize, panels: usize, dense: bool) {
        let tile = self;
        // SAFETY: the caller's contract.
        unsafe {
            if !S::REGISTERS {
                return tile.one_by_one::<S>(height, panels, dense);
            }
            match (height, panels, dense) {
                (4, 1, true) => tile.compute::<S, 4, 1, true>(),
                (5, 1, true) => tile.compute::<S, 5, 1, true>(),
                (6, 1, true) => tile.compute::<S, 6, 1, true>(),
                (1, 1, false) => tile.compute::<S, 1, 1, false>(),
                (2, 1, false) => tile.compute::<S, 2, 1, false>(),
                (3, 1, false) => tile.compute::<S, 3, 1, false>(),
                (4, 1, false) => tile.compute::<S, 4, 1, false>(),
                (5, 1, false) => tile.compute::<S, 5, 1, false>(),
                (6, 1, false) => tile.compute::<S, 6, 1, false>(),
                (1, 2, false) => tile.compute::<S, 1, 2, false>(),
                (2, 2, false) => tile.compute::<S, 2, 2, false>(),
                (1, 4, false) => tile.compute::<S, 1, 4, false>(),
                // Only sixteen-lane registers hold these.
                (4, 2, true) if S::LANES == 16 => tile.compute::<S, 4, 2, true>(),
                (5, 2, true) if S::LANES == 16 => tile.compute::<S, 5, 2, true>(),
                (6, 2, true) if S::LANES == 16 => tile.compute::<S, 6, 2, true>(),
                (3, 2, false) if S::LANES == 16 => tile.compute::<S, 3, 2, false>(),
                (4, 2, false) if S::LANES == 16 => tile.compute::<S, 4, 2, false>(),
                (5, 2, false) if S::LANES == 16 => tile.compute::<S, 5, 2, false>(),
                (6, 2, false) if S::LANES == 16 => tile.compute::<S, 6, 2, false>(),
                (2, 4, false) if S::LANES == 16 => tile.compute::<S, 2, 4, false>(),
                (1, 8, false) if S::LANES == 16 => tile.compute::<S, 1, 8, false>(),
                _ => unreachable!("no tile of {height} rows and {panels} panels"),
            }
        }
    }

    /// The same elements, row by row and panel by panel: for levels whose vectors are arrays.
    ///
    /// # Safety
    /// As for [`Tile::shaped`].
    #[inline(always)]
    unsafe fn one_by_one<S: Simd>(self, height: usize, panels: usize, dense: bool) {
        let (a_row, a_depth, b_row) =
            if dense { (1, height, PANEL) } else { (self.a_row, self.a_depth, self.b_row) };
        for r in 0..height {
            for p in 0..panels {
                // SAFETY: row r and panel p are inside what the caller covers.
                unsafe {
                    let from = self.from.add(r * self.from_row + p * PANEL);
                    let c = self.c.add(r * self.c_row + p * PANEL);
                    let (a, b) = (self.a.add(r * a_row), self.b.add(p * self.b_panel));
                    Tile { from, c, a, b, a_depth, b_row, ..self }.compute::<S, 1, 1, false>();
                }
            }
        }
    }

    /// # Safety
    /// As for [`Tile::shaped`], with its height and panels.
    #[inline(always)]
    unsafe fn compute<S: Simd, const ROWS: usize, const PANELS: usize, const DENSE: bool>(&self) {
        // Two vectors per panel, or one; the second is then never touched and vanishes.
        let vectors = PANEL / S::LANES;
        let (a_row, a_depth, b_row) =
            if DENSE { (1, ROWS, PANEL) } else { (self.a_row, self.a_depth, self.b_row) };
        // SAFETY: the caller's contract; the loops below stay inside what it covers.
        unsafe {
            let mut sums = [[[S::zero(); 2]; PANELS]; ROWS];
            if !self.from_zero {
                for r in 0..ROWS {
                    for p in 0..PANELS {
                        for v in 0..vectors {
                            let at = r * self.from_row + p * PANEL + v * S::LANES;
                            sums[r][p][v] = S::load(self.from.add(at));
                        }
                    }
                }
            }
            let (mut a, mut b) = (self.a, self.b);
            macro_rules! step {
                () => {
                    let mut values = [[S::zero(); 2]; PANELS];
                    for p in 0..PANELS {
                        for v in 0..vectors {
                            values[p][v] = E::load::<S>(b.add(p * self.b_panel + v * S::LANES));
                        }
                    }
                    for r in 0..ROWS {
                        let x = S::splat(*a.add(r * a_row));
                        for p in 0..PANELS {
                            for v in 0..vectors {
                                sums[r][p][v] = S::fma(x, values[p][v], sums[r][p][v]);
                            }
                        }
                    }
                    // The last step may leave the arrays; the address is then not read.
                    a = a.wrapping_add(a_depth);
                    b = b.wrapping_add(b_row);
                };
            }
            let mut left = self.depth;
            // Constant distances let several steps share one turn of the loop.
            if DENSE {
                while left >= 4 {
                    step!();
                    step!();
                    step!();
                    step!();
                    left -= 4;
                }
            }
            for _ in 0..left {
                step!();
            }
            for r in 0..ROWS {
                for p in 0..PANELS {
                    for v in 0..vectors {
                        let at = r * self.c_row + p * PANEL + v * S::LANES;
                        S::store(self.c.add(at), sums[r][p][v]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::formats::Dtype;
    use crate::formats::lanes::UnpackPanel;

    /// Pseudo-random values in (-1, 1), exact in bf16 (seven bits).
    pub(crate) fn values(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 24) as f32 - 127.5).trunc() / 128.0
            })
            .collect()
    }

    pub(crate) fn packed(w: &[f32], n: usize, k: usize) -> [PackedMatrix; 2] {
        let narrow: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
        [PackedMatrix::from_f32(w, n, k), PackedMatrix::from_bf16(&narrow, n, k)]
    }

    /// Weights of every quantised format, any codes with small scales, and their values.
    pub(crate) fn quantised(n: usize, k: usize) -> Vec<(Vec<f32>, PackedMatrix)> {
        let formats = Dtype::all().filter(|d| d.is_quantised());
        formats
            .map(|dtype| {
                let row_bytes = dtype.row_bytes(k).unwrap();
                let mut state = dtype as u32;
                let mut byte = || {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // No exponent can reach infinity.
                    (state >> 24) as u8 & 0x3b
                };
                let bytes: Vec<u8> = (0..n * row_bytes).map(|_| byte()).collect();
                let mut values = vec![0.0; n * k];
                dtype.unpack(&bytes, &mut values);
                let row = |i: usize| &bytes[i * row_bytes..(i + 1) * row_bytes];
                (values, PackedMatrix::from_bytes(dtype, n, k, row))
            })
            .collect()
    }

    #[test]
    fn quantised_products_match_their_reference() {
        for level in Level::available() {
            // Ragged panels, more than one block of depth, more than one group of panels.
            for (n, k) in [(5, 256), (150, 512), (80, 768)] {
                for (w, packed) in quantised(n, k) {
                    for t in [1, 2, 5, 13, 64] {
                        let (x, dy) = (values(t * k, 2), values(t * n, 3));
                        let (mut y, mut dx) = (vec![0.0; t * n], vec![0.0; t * k]);
                        reference_matmul(&mut y, &x, &w, t, n, k);
                        reference_matmul_dx(&mut dx, &dy, &w, t, n, k);
                        let what = format!("{level:?} {:?} [{n}, {k}] T={t}", packed.dtype());
                        if !packed.in_integers() {
                            let mut found = vec![0.0; t * n];
                            matmul_at(level, &mut found, &x, &packed, t, false);
                            assert_near(&found, &y, &format!("y, {what}"));
                        }
                        let mut found = vec![0.0; t * k];
                        matmul_dx_at(level, &mut found, &dy, &packed, t, false);
                        assert_near(&found, &dx, &format!("dx, {what}"));
                    }
                }
            }
        }
    }

    #[test]
    fn quantised_products_have_the_bits_of_products_with_their_values() {
        let (t, n, k) = (17, 70, 512);
        let (x, dy) = (values(t * k, 2), values(t * n, 3));
        for level in Level::available() {
            for (w, packed) in quantised(n, k) {
                let plain = PackedMatrix::from_f32(&w, n, k);
                for rows in [1, 2, 3, t] {
                    let product = |w: &PackedMatrix| {
                        let (mut y, mut dx) = (vec![0.0; rows * n], vec![0.0; rows * k]);
                        if !packed.in_integers() {
                            matmul_at(level, &mut y, &x[..rows * k], w, rows, false);
                        }
                        matmul_dx_at(level, &mut dx, &dy[..rows * n], w, rows, false);
                        (bits(&y), bits(&dx))
                    };
                    let what = format!("{level:?} {:?} T={rows}", packed.dtype());
                    assert!(product(&packed) == product(&plain), "{what}");
                }
            }
        }
    }

    #[track_caller]
    pub(crate) fn assert_near(found: &[f32], expected: &[f32], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!((f - e).abs() <= 2e-6 * scale, "{what}: element {i} is {f}, expected {e}");
        }
    }

    pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    const ROWS: [usize; 9] = [0, 1, 2, 3, 5, 6, 7, 13, 64];
    /// Whole panels, ragged panels, one column, more than one block of depth, no depth.
    const SHAPES: [(usize, usize); 12] = [
        (16, 16),
        (1, 1),
        (8, 24),
        (17, 5),
        (64, 33),
        (48, 300),
        (150, 31),
        (37, 1100),
        (5, 520),
        (100, 70),
        (0, 3),
        (3, 0),
    ];

    #[test]
    fn all_products_match_their_reference() {
        for level in Level::available() {
            for (n, k) in SHAPES {
                let w = values(n * k, 1);
                for (t, accumulate) in ROWS.iter().flat_map(|&t| [(t, false), (t, true)]) {
                    let (x, dy) = (values(t * k, 2), values(t * n, 3));
                    let mut y = vec![0.0; t * n];
                    let mut dx = vec![0.0; t * k];
                    reference_matmul(&mut y, &x, &w, t, n, k);
                    reference_matmul_dx(&mut dx, &dy, &w, t, n, k);
                    let (old_y, old_dx) = (values(t * n, 4), values(t * k, 5));
                    if accumulate {
                        y.iter_mut().zip(&old_y).for_each(|(y, old)| *y += old);
                        dx.iter_mut().zip(&old_dx).for_each(|(dx, old)| *dx += old);
                    }
                    for w in packed(&w, n, k) {
                        let what = format!("{level:?} {:?} [{n}, {k}] T={t}", w.dtype());
                        let mut found = old_y.clone();
                        matmul_at(level, &mut found, &x, &w, t, accumulate);
                        assert_near(&found, &y, &format!("y, {what}"));
                        let mut found = old_dx.clone();
                        matmul_dx_at(level, &mut found, &dy, &w, t, accumulate);
                        assert_near(&found, &dx, &format!("dx, {what}"));
                    }
                    let mut dw = values(n * k, 6);
                    let mut found = dw.clone();
                    reference_matmul_dw(&mut dw, &dy, &x, t, n, k);
                    matmul_dw_at(level, &mut found, &dy, &x, t, n, k);
                    assert_near(&found, &dw, &format!("dw, {level:?} [{n}, {k}] T={t}"));
                }
            }
        }
    }

    #[test]
    fn many_rows_have_the_bits_of_each_alone_beyond_a_slab_of_depth() {
        let (t, long, short) = (29, blocks::SLAB_DEPTH + BLOCK_DEPTH + 40, 300);
        for level in Level::available() {
            for (n, k) in [(short, long), (long, short)] {
                let (x, dy) = (values(t * k, 2), values(t * n, 3));
                for w in packed(&values(n * k, 1), n, k) {
                    for accumulate in [false, true] {
                        let (mut y, mut dx) = (values(t * n, 4), values(t * k, 5));
                        let (mut each_y, mut each_dx) = (y.clone(), dx.clone());
                        matmul_at(level, &mut y, &x, &w, t, accumulate);
                        matmul_dx_at(level, &mut dx, &dy, &w, t, accumulate);
                        for row in 0..t {
                            let (x, dy) = (&x[row * k..][..k], &dy[row * n..][..n]);
                            matmul_at(level, &mut each_y[row * n..][..n], x, &w, 1, accumulate);
                            let dx = &mut each_dx[row * k..][..k];
                            matmul_dx_at(level, dx, dy, &w, 1, accumulate);
                        }
                        let what = format!("{level:?} {:?} [{n}, {k}] {accumulate}", w.dtype());
                        assert!(bits(&y) == bits(&each_y), "y, {what}");
                        assert!(bits(&dx) == bits(&each_dx), "dx, {what}");
                    }
                }
            }
        }
    }

    #[test]
    fn dw_over_many_rows_matches_its_reference() {
        // More rows than one block of depth, few and many outputs.
        for level in Level::available() {
            for (t, n, k) in [(700, 8, 40), (513, 40, 17), (300, 13, 16), (300, 45, 130)] {
                let (x, dy) = (values(t * k, 2), values(t * n, 3));
                let (mut dw, mut found) = (vec![0.0; n * k], vec![0.0; n * k]);
                reference_matmul_dw(&mut dw, &dy, &x, t, n, k);
                matmul_dw_at(level, &mut found, &dy, &x, t, n, k);
                assert_near(&found, &dw, &format!("{level:?} T={t} [{n}, {k}]"));
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_any_batch() {
        // Large enough that the batches are split over threads and over blocks of depth; thirds
        // make every sum inexact, so that another order would show.
        for (n, k) in [(150, 1100), (64, 400), (1030, 290), (150, 512)] {
            let w: Vec<f32> = values(n * k, 1).iter().map(|v| v / 3.0).collect();
            let t = 37;
            let x: Vec<f32> = values(t * k, 2).iter().map(|v| v / 7.0).collect();
            let dy: Vec<f32> = values(t * n, 3).iter().map(|v| v / 7.0).collect();
            for level in Level::available() {
                let mut weights = packed(&w, n, k).to_vec();
                if k.is_multiple_of(256) {
                    weights.extend(quantised(n, k).into_iter().map(|(_, w)| w));
                }
                for w in weights {
                    let (mut y, mut dx) = (vec![0.0; t * n], vec![0.0; t * k]);
                    matmul_at(level, &mut y, &x, &w, t, false);
                    matmul_dx_at(level, &mut dx, &dy, &w, t, false);
                    for size in [1, 2, 3, 4, 12, 13] {
                        for start in [0, 5, 24] {
                            let rows = start..start + size;
                            let of = |columns: usize| rows.start * columns..rows.end * columns;
                            let mut part = vec![0.0; size * n];
                            matmul_at(level, &mut part, &x[of(k)], &w, size, false);
                            assert_eq!(bits(&part), bits(&y[of(n)]), "{level:?} y, rows {rows:?}");
                            let mut part = vec![0.0; size * k];
                            matmul_dx_at(level, &mut part, &dy[of(n)], &w, size, false);
                            assert_eq!(
                                bits(&part),
                                bits(&dx[of(k)]),
                                "{level:?} dx, rows {rows:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut all = Vec::new();
                for (t, n, k) in
                    [(37, 150, 256), (1, 1030, 300), (1, 1030, 256), (500, 48, 64), (700, 24, 30)]
                {
                    let w: Vec<f32> = values(n * k, 1).iter().map(|v| v / 3.0).collect();
                    let x: Vec<f32> = values(t * k, 2).iter().map(|v| v / 7.0).collect();
                    let dy: Vec<f32> = values(t * n, 3).iter().map(|v| v / 7.0).collect();
                    let mut weights = packed(&w, n, k).to_vec();
                    if k.is_multiple_of(256) {
                        weights.extend(quantised(n, k).into_iter().map(|(_, w)| w));
                    }
                    for w in weights {
                        let (mut y, mut dx) = (values(t * n, 4), values(t * k, 5));
                        matmul(&mut y, &x, &w, t, true);
                        matmul_dx(&mut dx, &dy, &w, t, true);
                        all.extend(bits(&y));
                        all.extend(bits(&dx));
                    }
                    let mut dw = values(n * k, 6);
                    matmul_dw(&mut dw, &dy, &x, t, n, k);
                    all.extend(bits(&dw));
                }
                all
            })
        };
        let one = run(1);
        assert!(run(3) == one, "three threads differ from one");
        assert!(run(8) == one, "eight threads differ from one");
    }

    #[test]
    fn gradients_match_finite_differences() {
        // loss = sum(y * g), so dy = g. The loss is linear in x and in w: a large step is exact
        // but for rounding.
        let (t, n, k) = (5, 19, 13);
        let (x, w, g) = (values(t * k, 1), values(n * k, 2), values(t * n, 3));
        let loss = |x: &[f32], w: &[f32]| -> f64 {
            let mut y = vec![0.0; t * n];
            matmul(&mut y, x, &PackedMatrix::from_f32(w, n, k), t, false);
            y.iter().zip(&g).map(|(&y, &g)| y as f64 * g as f64).sum()
        };
        let mut dx = vec![0.0; t * k];
        let mut dw = vec![0.0; n * k];
        matmul_dx(&mut dx, &g, &PackedMatrix::from_f32(&w, n, k), t, false);
        matmul_dw(&mut dw, &g, &x, t, n, k);
        assert_near(&dx, &differences(&x, |x| loss(x, &w)), "dx");
        assert_near(&dw, &differences(&w, |w| loss(&x, w)), "dw");
    }

    /// Central differences of `loss` at `point`, with a step of a half.
    pub(crate) fn differences(point: &[f32], loss: impl Fn(&[f32]) -> f64) -> Vec<f32> {
        (0..point.len())
            .map(|i| {
                let at = |step: f32| {
                    let mut moved = point.to_vec();
                    moved[i] += step;
                    loss(&moved)
                };
                (at(0.5) - at(-0.5)) as f32
            })
            .collect()
    }

    /// Sixteen lanes in plain Rust, with the arithmetic of `Level::Portable`: the tiles that
    /// AVX-512 uses, on any machine.
    #[derive(Clone, Copy)]
    struct Sixteen;

    impl Simd for Sixteen {
        const LANES: usize = 16;
        // It stands for AVX-512, so it takes AVX-512's tiles.
        const REGISTERS: bool = true;
        type F = [f32; 16];
        unsafe fn prefetch(_: *const u8) {}
        unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: plain Rust needs no processor feature.
            unsafe { kernel.run::<Sixteen>() }
        }
        unsafe fn zero() -> [f32; 16] {
            [0.0; 16]
        }
        unsafe fn splat(x: f32) -> [f32; 16] {
            [x; 16]
        }
        unsafe fn load(p: *const f32) -> [f32; 16] {
            // SAFETY: the caller's pointer covers sixteen values.
            unsafe { p.cast::<[f32; 16]>().read_unaligned() }
        }
        unsafe fn store(p: *mut f32, v: [f32; 16]) {
            // SAFETY: the caller's pointer covers sixteen values.
            unsafe { p.cast::<[f32; 16]>().write_unaligned(v) }
        }
        unsafe fn load_bf16(p: *const bf16) -> [f32; 16] {
            // SAFETY: the caller's pointer covers sixteen values.
            unsafe { p.cast::<[bf16; 16]>().read_unaligned() }.map(bf16::to_f32)
        }
        unsafe fn fma(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
        // The products use nothing of the arithmetic below.
        unsafe fn add(_: [f32; 16], _: [f32; 16]) -> [f32; 16] {
            unreachable!()
        }
        unsafe fn sub(_: [f32; 16], _: [f32; 16]) -> [f32; 16] {
            unreachable!()
        }
        unsafe fn mul(_: [f32; 16], _: [f32; 16]) -> [f32; 16] {
            unreachable!()
        }
        unsafe fn div(_: [f32; 16], _: [f32; 16]) -> [f32; 16] {
            unreachable!()
        }
        unsafe fn max(_: [f32; 16], _: [f32; 16]) -> [f32; 16] {
            unreachable!()
        }
        unsafe fn min(_: [f32; 16], _: [f32; 16]) -> [f32; 16] {
            unreachable!()
        }
        unsafe fn sum(_: [f32; 16]) -> f32 {
            unreachable!()
        }
        unsafe fn reduce_max(_: [f32; 16]) -> f32 {
            unreachable!()
        }
        unsafe fn round(_: [f32; 16]) -> [f32; 16] {
            unreachable!()
        }
        unsafe fn pow2(_: [f32; 16]) -> [f32; 16] {
            unreachable!()
        }
        unsafe fn unpack(stretch: UnpackPanel) {
            // SAFETY: the caller's promise.
            unsafe { stretch.plain() }
        }
    }

    #[test]
    fn sixteen_lanes_give_the_bits_of_eight() {
        let run = |c: &mut [f32], columns: usize, a: Strided, b: Panels, depth: usize| {
            let product = Product { c: c.as_mut_ptr(), a, b, columns, depth, accumulate: true };
            let (rows, panels) = (0..c.len() / columns, 0..columns.div_ceil(PANEL));
            // SAFETY: the shapes below fit one another; plain Rust needs no processor feature.
            unsafe {
                if blocks::pays(rows.len(), columns, depth) {
                    blocks::tests::run::<Sixteen>(product, rows.len(), Vec::new());
                } else {
                    Task { product, rows, panels }.run::<Sixteen>();
                }
            }
        };
        for (n, k) in [(16, 16), (8, 24), (37, 300), (150, 31), (240, 70), (240, 256)] {
            for t in [1, 2, 3, 4, 5, 6, 7, 12, 13, 64] {
                let (x, dy) = (values(t * k, 2), values(t * n, 3));
                let mut weights = packed(&values(n * k, 1), n, k).to_vec();
                if k.is_multiple_of(256) {
                    weights.extend(quantised(n, k).into_iter().map(|(_, w)| w));
                }
                for w in weights {
                    let (mut y, mut dx) = (values(t * n, 4), values(t * k, 5));
                    let (mut wide_y, mut wide_dx) = (y.clone(), dx.clone());
                    if !w.in_integers() {
                        matmul_at(Level::Portable, &mut y, &x, &w, t, true);
                        let a = Strided { start: &x, row: k, depth: 1 };
                        run(&mut wide_y, n, a, panels_of(&w), k);
                        assert_eq!(bits(&wide_y), bits(&y), "y [{n}, {k}] T={t}");
                    }
                    matmul_dx_at(Level::Portable, &mut dx, &dy, &w, t, true);
                    let a = Strided { start: &dy, row: n, depth: 1 };
                    run(&mut wide_dx, k, a, Panels::Turned(&w), n);
                    assert_eq!(bits(&wide_dx), bits(&dx), "dx [{n}, {k}] T={t}");
                }
                let mut dw = values(n * k, 6);
                let mut wide_dw = dw.clone();
                matmul_dw_at(Level::Portable, &mut dw, &dy, &x, t, n, k);
                let a = Strided { start: &dy, row: 1, depth: n };
                run(&mut wide_dw, k, a, Panels::Rows(x.as_ptr()), t);
                assert_eq!(bits(&wide_dw), bits(&dw), "dw [{n}, {k}] T={t}");
            }
        }
    }

    #[test]
    fn adapters_ride_on_sixteen_lanes_with_the_bits_of_eight() {
        let (t, n, k) = (37, 150, 300);
        let (x, old) = (values(t * k, 1), values(t * n, 2));
        for r in [5, 16, 40] {
            let a = PackedMatrix::from_f32(&values(r * k, 3), r, k);
            let b = PackedMatrix::from_f32(&values(n * r, 4), n, r);
            for w in packed(&values(n * k, 5), n, k) {
                let run = |wide: bool| {
                    let (mut y, mut h) = (old.clone(), vec![0.0; (t - 5) * r]);
                    let panels = (panels_of(&a), panels_of(&b));
                    let riders = vec![Rider::new(2..t - 3, panels.0, panels.1, r, 0.3, &mut h)];
                    if wide {
                        let a = Strided { start: &x, row: k, depth: 1 };
                        let (c, b, accumulate) = (y.as_mut_ptr(), panels_of(&w), true);
                        let product = Product { c, a, b, columns: n, depth: k, accumulate };
                        // SAFETY: the shapes fit one another; plain Rust needs no processor feature.
                        unsafe { blocks::tests::run::<Sixteen>(product, t, riders) };
                    } else {
                        matmul_riders(Level::Portable, &mut y, &x, &w, t, true, riders);
                    }
                    (bits(&y), bits(&h))
                };
                assert!(run(true) == run(false), "R={r} {:?}", w.dtype());
            }
        }
    }

    #[test]
    fn the_split_covers_every_element_once() {
        for rows in [1, 5, 6, 7, 64, 191, 200, 2048, 10_000] {
            for panels in [1, 2, 4, 15, 16, 33, 300] {
                for threads in [2, 3, 16, 64] {
                    let (row_parts, panel_parts) = split(rows, panels, threads);
                    let mut next = 0;
                    for i in 0..row_parts {
                        let part = part(rows, row_parts, i, 1);
                        assert_eq!(part.start, next);
                        next = part.end;
                    }
                    assert_eq!(next, rows);
                    let mut next = 0;
                    for i in 0..panel_parts {
                        let part = part(panels, panel_parts, i, PANEL_STEP);
                        assert!(part.start == next && !part.is_empty());
                        next = part.end;
                    }
                    assert_eq!(next, panels);
                    let tasks = row_parts * panel_parts;
                    let possible = (rows.div_ceil(TILE_ROWS) * panels).min(threads);
                    assert!(tasks >= possible, "{rows} {panels} {threads}: {tasks} tasks");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "x is [2, 3]: expected 6 values, found 5")]
    fn a_wrong_length_is_refused() {
        let w = PackedMatrix::from_f32(&[0.0; 12], 4, 3);
        matmul(&mut [0.0; 8], &[0.0; 5], &w, 2, false);
    }
}
