//! y = x·Wᵀ with quantised W, in integers: x is rounded to 8 bits, 32 values at a time, and meets
//! the codes of the weights as they are.
//!
//! For a part of 32 inputs, x ≈ dx·q with dx = max|x| / 127 and q from -127 to 127. A weight is
//! scale·(code - offset), or scale·code - minimum, so the part adds
//!
//! ```text
//! scale·dx·(Σ code·q - offset·Σ q)  -  minimum·dx·Σ q
//! ```
//!
//! to y, with both sums exact in integers. The error is that of rounding x: at most dx/2 · Σ|w| for
//! each part, which the tests hold the kernels to. Gradients take no such rounding: `matmul_dx`
//! unpacks the weights to f32 (the rounding counts as the identity, Bengio et al., arXiv
//! 1308.3432).
//!
//! Each output is one chain over the parts in order, starting from zero or from the old value, so
//! here, too, the result has the same bits for any thread count and number of other rows.
//!
//! With AVX2, sums of two products of a byte and a signed byte are had in 16 bits (`vpmaddubsw`),
//! and as many of these are added in 16 bits as surely fit. Signed codes would need their sign moved
//! to x for each row; where rows are many, codes and x are widened to 16 bits instead (`vpmaddwd`), and
//! tiles of four rows and sixteen outputs share what they read. With AVX-512 VNNI, sums of four come
//! in 32 bits (`vpdpbusd`).

use crate::formats::PART;
use crate::formats::lanes::{Layout, Places, QUADS, places};
use crate::matmul::{LINE, SERIAL_WORK, in_tasks};
use crate::packed::{PANEL, Quantised};
#[cfg(target_arch = "x86_64")]
use crate::simd::Steps;
use crate::simd::{
    Dots, DotsKernel, Kernel, Level, Simd, dispatch_at, dispatch_dots, has_steps, signed_offset,
};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
mod tiles;

/// Rows that meet a part of a panel while its codes are in registers. Their sums, 8 KiB, stay in
/// the first-level cache.
const BLOCK_ROWS: usize = 128;

/// Rows up to which weights pass by faster than memory brings them, so that they are asked for ahead.
const FEW_ROWS: usize = 4;
/// How far ahead, in bytes.
const AHEAD: usize = 4096;
/// Rows of a tile: their sums and what they meet fill the sixteen registers of AVX2.
const TILE_ROWS: usize = 4;

/// x `[T, K]` in 8 bits.
#[derive(Default)]
struct Activations {
    /// `[part][T][32]`, one byte each, or two where signed codes are widened.
    codes: Vec<i16>,
    /// `[part][T]`: dx.
    scales: Vec<f32>,
    /// `[part][T][groups]`: -offset·Σ q over each group of codes with a scale of its own.
    corrections: Vec<i32>,
    /// `[part][T][groups]`: dx·Σ q, where the format has minima.
    weighted: Vec<f32>,
}

thread_local! {
    /// Kept, because fresh memory would cost page faults.
    static ACTIVATIONS: Cell<Activations> = Cell::default();
}

/// y `[T, N]` = x `[T, K]` · Wᵀ, or y += when `accumulate`, with x in 8 bits. None of T, N and K is 0.
/// Memory that `next` names is asked for meanwhile: it is read right after.
pub(crate) fn matmul_at(
    level: Level,
    y: &mut [f32],
    x: &[f32],
    w: &Quantised,
    (t, n, k): (usize, usize, usize),
    accumulate: bool,
    next: &[&[u8]],
) {
    let layout = Layout::new(w.dtype);
    let wide = t >= TILE_ROWS && layout.has_signed_codes() && has_steps(level);
    let mut activations = ACTIVATIONS.take();
    activations.fill(level, x, t, k, &layout, wide);
    let product = Product {
        y: y.as_mut_ptr(),
        x: &activations,
        w,
        layout,
        t,
        n,
        parts: k / PART,
        accumulate,
        wide,
        next: Next::new(next),
    };
    in_tasks(t, n, k, |rows, panels| product.run(level, rows, panels));
    ACTIVATIONS.set(activations);
}

/// Numbers of 16 bits that hold the codes of a part of one row.
#[inline(always)]
const fn code_words(wide: bool) -> usize {
    if wide { PART } else { PART / 2 }
}

impl Activations {
    fn fill(&mut self, level: Level, x: &[f32], t: usize, k: usize, layout: &Layout, wide: bool) {
        let (parts, groups) = (k / PART, layout.groups());
        let offset = match layout.has_signed_codes() {
            true => signed_offset(level),
            false => layout.offset as i32,
        };
        let words = code_words(wide);
        self.codes.resize(parts * t * words, 0);
        self.scales.resize(parts * t, 0.0);
        self.corrections.resize(parts * t * groups, 0);
        self.weighted.resize(parts * t * groups, 0.0);
        // Without an offset and minima there is nothing to correct, and `weighted` is not used.
        let summed = offset != 0 || layout.has_minima();
        if !summed {
            self.corrections.fill(0);
        }
        let codes = self.codes.par_chunks_mut(t * words);
        let scales = self.scales.par_chunks_mut(t);
        let corrections = self.corrections.par_chunks_mut(t * groups);
        let weighted = self.weighted.par_chunks_mut(t * groups);
        // A thread woken for less than this would come too late.
        let least = SERIAL_WORK.div_ceil(t * PART);
        codes.zip(scales).zip(corrections).zip(weighted).enumerate().with_min_len(least).for_each(
            |(part, (((codes, scales), corrections), weighted))| {
                let x = &x[part * PART..];
                let sums = summed.then_some(Sum { offset, groups, corrections, weighted });
                dispatch_at(level, Round { x, k, codes, wide, scales, sums });
            },
        );
    }
}

/// Rounds one part of every row.
struct Round<'a> {
    /// From the first value of the part; rows are `k` apart.
    x: &'a [f32],
    k: usize,
    codes: &'a mut [i16],
    wide: bool,
    scales: &'a mut [f32],
    sums: Option<Sum<'a>>,
}

/// What a part of every row adds up to.
struct Sum<'a> {
    offset: i32,
    groups: usize,
    corrections: &'a mut [i32],
    weighted: &'a mut [f32],
}

impl Sum<'_> {
    #[inline(always)]
    fn add(&mut self, row: usize, codes: &[i8; PART], scale: f32) {
        for (g, group) in codes.chunks(PART / self.groups).enumerate() {
            let sum: i32 = group.iter().map(|&q| q as i32).sum();
            self.corrections[row * self.groups + g] = -self.offset * sum;
            self.weighted[row * self.groups + g] = scale * sum as f32;
        }
    }
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let words = code_words(self.wide);
        let rows = self.codes.chunks_exact_mut(words).zip(self.scales).enumerate();
        for (r, (to, scale)) in rows {
            let x: &[f32; PART] = self.x[r * self.k..].first_chunk().expect("x is [T, K]");
            let mut codes = [0; PART];
            *scale = round(x, &mut codes);
            match self.wide {
                true => to.iter_mut().zip(codes).for_each(|(to, code)| *to = code.into()),
                false => bytemuck::cast_slice_mut(to).copy_from_slice(&codes),
            }
            if let Some(sums) = &mut self.sums {
                sums.add(r, &codes, *scale);
            }
        }
    }
}

/// Rounds 32 values to codes and gives their scale: NaN where a value is not finite, so that it
/// shows in every output, and 0 where all are (nearly) 0.
#[inline(always)]
fn round(x: &[f32; PART], codes: &mut [i8; PART]) -> f32 {
    let (mut largest, mut bad) = ([0.0f32; 8], [0.0f32; 8]);
    for x in x.as_chunks::<8>().0 {
        for i in 0..8 {
            let size = x[i].abs();
            largest[i] = if size > largest[i] { size } else { largest[i] };
            // Infinity and NaN make this NaN.
            bad[i] += x[i] * 0.0;
        }
    }
    let largest = largest.into_iter().fold(0.0, f32::max);
    let bad: f32 = bad.into_iter().sum();
    // Below this, 127/max is beyond f32, and such numbers add nothing to any sum.
    let inverse = if largest > 1e-35 { 127.0 / largest } else { 0.0 };
    for (code, x) in codes.iter_mut().zip(x) {
        // 1.5·2^23 leaves the nearest integer in the low bits (ties to even).
        *code = (x * inverse + 12_582_912.0).to_bits() as i8;
    }
    if inverse == 0.0 { bad } else { largest / 127.0 + bad }
}

/// One product as its tasks see it.
#[derive(Clone, Copy)]
struct Product<'a> {
    y: *mut f32,
    x: &'a Activations,
    w: &'a Quantised,
    layout: Layout,
    t: usize,
    n: usize,
    parts: usize,
    accumulate: bool,
    /// Whether codes of x take two bytes; then the product goes in tiles.
    wide: bool,
    next: Next<'a>,
}

// SAFETY: x and w are only read, and every task writes its own elements of y.
unsafe impl Sync for Product<'_> {}
// SAFETY: as above.
unsafe impl Send for Product<'_> {}

impl Product<'_> {
    /// The parts of a panel of the weight.
    fn places(&self, panel: usize) -> impl Iterator<Item = Places> {
        // SAFETY: a panel has `parts` parts.
        unsafe { places(self.layout, self.w.panel(panel).as_ptr(), 0..self.parts) }
    }

    fn run(&self, level: Level, rows: Range<usize>, panels: Range<usize>) {
        let mut sums = Sums([[0.0; PANEL]; BLOCK_ROWS]);
        for start in rows.clone().step_by(BLOCK_ROWS) {
            let rows = start..rows.end.min(start + BLOCK_ROWS);
            for panel in panels.clone() {
                let sums = &mut sums.0[..rows.len()];
                let (column, width) = (panel * PANEL, (self.n - panel * PANEL).min(PANEL));
                // SAFETY: rows and columns are inside y, and no other task has them.
                let y = |r: usize| unsafe { self.y.add((rows.start + r) * self.n + column) };
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = [0.0; PANEL];
                    if self.accumulate {
                        // SAFETY: see y.
                        unsafe { copy_panel(y(r), sums.as_mut_ptr(), width) };
                    }
                }
                let block = Block { product: *self, panel, row: rows.start, sums };
                dispatch_dots(level, block, self.wide);
                for (r, sums) in sums.iter().enumerate() {
                    // SAFETY: see y.
                    unsafe { copy_panel(sums.as_ptr(), y(r), width) };
                }
            }
        }
    }

    /// Where a part of x starts, from row `row` on.
    ///
    /// # Safety
    /// `row` is a row of x, `part` a part.
    #[inline(always)]
    unsafe fn rows(&self, part: usize, row: usize, groups: usize) -> Rows {
        let at = part * self.t + row;
        // SAFETY: the caller's contract.
        unsafe {
            Rows {
                codes: self.x.codes.as_ptr().add(at * (PART / 2)).cast(),
                scales: self.x.scales.as_ptr().add(at),
                corrections: self.x.corrections.as_ptr().add(at * groups),
                weighted: self.x.weighted.as_ptr().add(at * groups),
            }
        }
    }
}

/// Copies `width` values, a panel's at most.
///
/// # Safety
/// Both pointers cover them, and do not overlap.
#[inline(always)]
unsafe fn copy_panel(from: *const f32, to: *mut f32, width: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        // Nearly always a whole panel, for which no function is called.
        match width {
            PANEL => from.copy_to_nonoverlapping(to, PANEL),
            _ => from.copy_to_nonoverlapping(to, width),
        }
    }
}

/// Memory that is read after a product. With many rows a product waits for arithmetic, not for
/// memory, so what comes next can be on its way.
#[derive(Clone, Copy)]
struct Next<'a> {
    pieces: &'a [&'a [u8]],
    /// Cache lines of all pieces together.
    lines: usize,
}

impl<'a> Next<'a> {
    fn new(pieces: &'a [&'a [u8]]) -> Self {
        Next { pieces, lines: pieces.iter().map(|piece| piece.len().div_ceil(LINE)).sum() }
    }

    /// Share `i` of `of` equal ones: where each cache line starts.
    fn share(self, i: usize, of: usize) -> impl Iterator<Item = *const u8> + use<'a> {
        let (start, end) = (i * self.lines / of, (i + 1) * self.lines / of);
        let mut pieces = self.pieces.iter().copied();
        let (mut piece, mut skipped): (&[u8], _) = (&[], start);
        (start..end).map(move |_| {
            while skipped * LINE >= piece.len() {
                skipped -= piece.len().div_ceil(LINE);
                piece = pieces.next().expect("the lines are those of the pieces");
            }
            skipped += 1;
            piece[(skipped - 1) * LINE..].as_ptr()
        })
    }
}

#[repr(C, align(64))]
struct Sums([[f32; PANEL]; BLOCK_ROWS]);

/// Where the numbers of some rows and one part of x start.
struct Rows {
    codes: *const i8,
    scales: *const f32,
    corrections: *const i32,
    weighted: *const f32,
}

/// Some rows and one panel.
struct Block<'a, 'b> {
    product: Product<'a>,
    panel: usize,
    /// First row.
    row: usize,
    /// One for each row.
    sums: &'b mut [[f32; PANEL]],
}

impl Block<'_, '_> {
    /// # Safety
    /// As [`DotsKernel::run`]; the codes of the format are as the parameters say: bits in low and
    /// high words, whether they go through a table, scales per part, whether there are minima.
    #[inline(always)]
    unsafe fn coded<
        S: Dots,
        const LOW: usize,
        const HIGH: usize,
        const TABLE: bool,
        const GROUPS: usize,
        const MINIMA: bool,
    >(
        self,
    ) {
        let Block { product, panel, row: first, sums } = self;
        let quads = QUADS / GROUPS;
        let few = sums.len() <= FEW_ROWS;
        let (mut wanted, each) = product.wanted(panel, first);
        // SAFETY: every offset is inside the panel's part, x or the sums.
        unsafe {
            for (part, places) in product.places(panel).enumerate() {
                let rows = product.rows(part, first, GROUPS);
                if few {
                    for line in (0..product.layout.part_bytes()).step_by(LINE) {
                        S::prefetch(places.ahead(AHEAD + line));
                    }
                }
                wanted.by_ref().take(each).for_each(|line| S::prefetch(line));
                for lane in (0..PANEL).step_by(S::LANES) {
                    let codes = product.codes::<S, LOW, HIGH, TABLE>(&places, lane);
                    let scales = places.scales::<S>(product.layout, lane);
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let to = sums.as_mut_ptr().add(lane);
                        let mut sum = S::load(to);
                        let dx = S::splat(*rows.scales.add(r));
                        for g in 0..GROUPS {
                            let (scale, add) = scales[g];
                            let start = S::splat_int(*rows.corrections.add(r * GROUPS + g));
                            let codes = &codes[g * quads..(g + 1) * quads];
                            let q = rows.codes.add(r * PART + g * quads * 4);
                            let dot = match (TABLE, LOW + HIGH) {
                                (true, _) | (_, 8) => S::dot_signed(start, codes, q),
                                (_, bits) => S::dot(start, codes, q, bits),
                            };
                            sum = S::fma(S::mul(scale, dx), S::float(dot), sum);
                            if MINIMA {
                                let weighted = *rows.weighted.add(r * GROUPS + g);
                                sum = S::fma(add, S::splat(weighted), sum);
                            }
                        }
                        S::store(to, sum);
                    }
                }
            }
        }
    }
}

impl Product<'_> {
    /// The memory of [`Product::next`] that a panel asks for, with the first rows that it meets, and how
    /// much of it with each part.
    #[inline(always)]
    fn wanted(&self, panel: usize, first_row: usize) -> (impl Iterator<Item = *const u8>, usize) {
        let panels = self.n.div_ceil(PANEL);
        let next = if first_row == 0 { self.next } else { Next::new(&[]) };
        let each = next.lines.div_ceil(panels).div_ceil(self.parts);
        (next.share(panel, panels), each)
    }

    /// The codes of a part, signed ones as [`Dots::signed_codes`] gives them.
    ///
    /// # Safety
    /// As [`Block::coded`].
    #[inline(always)]
    unsafe fn codes<S: Dots, const LOW: usize, const HIGH: usize, const TABLE: bool>(
        &self,
        places: &Places,
        lane: usize,
    ) -> [S::I; QUADS] {
        let table = self.layout.integer_table();
        // SAFETY: the caller's contract.
        unsafe {
            let mut codes = places.codes::<S, LOW, HIGH>(lane);
            for codes in &mut codes {
                if TABLE {
                    *codes = S::lookup_bytes(table.as_ptr(), *codes);
                }
                if TABLE || LOW == 8 {
                    *codes = S::signed_codes(*codes);
                }
            }
            codes
        }
    }
}

impl DotsKernel for Block<'_, '_> {
    #[inline(always)]
    unsafe fn run<S: Dots>(self) {
        let layout = self.product.layout;
        let minima = layout.has_minima();
        // SAFETY: the caller's contract; the parameters are those of the format.
        unsafe {
            match (layout.low, layout.high, layout.table.is_some(), layout.groups(), minima) {
                (8, 0, false, 1, false) => self.coded::<S, 8, 0, false, 1, false>(),
                (4, 0, false, 1, false) => self.coded::<S, 4, 0, false, 1, false>(),
                (4, 0, false, 1, true) => self.coded::<S, 4, 0, false, 1, true>(),
                (4, 0, true, 1, false) => self.coded::<S, 4, 0, true, 1, false>(),
                (4, 1, false, 1, false) => self.coded::<S, 4, 1, false, 1, false>(),
                (4, 1, false, 1, true) => self.coded::<S, 4, 1, false, 1, true>(),
                (4, 2, false, 2, false) => self.coded::<S, 4, 2, false, 2, false>(),
                (2, 0, false, 2, true) => self.coded::<S, 2, 0, false, 2, true>(),
                (2, 1, false, 2, false) => self.coded::<S, 2, 1, false, 2, false>(),
                _ => unreachable!("no format has such codes"),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn steps<S: Steps>(self) {
        let layout = self.product.layout;
        // SAFETY: as above.
        unsafe {
            match (layout.low, layout.high, layout.table.is_some(), layout.groups()) {
                (8, 0, false, 1) => self.tiled::<S, 8, false>(),
                (4, 0, true, 1) => self.tiled::<S, 4, true>(),
                _ => unreachable!("no other format has signed codes"),
            }
        }
    }

    fn plain(self) {
        let Block { product, panel, row: first, sums } = self;
        let layout = product.layout;
        let groups = layout.groups();
        let size = PART / groups;
        for (part, places) in product.places(panel).enumerate() {
            // SAFETY: the part is one of the panel's.
            let (codes, scales) =
                unsafe { (places.plain_codes(layout), places.plain_scales(layout)) };
            for (r, sums) in sums.iter_mut().enumerate() {
                for (g, scales) in scales.iter().enumerate().take(groups) {
                    // SAFETY: the rows and parts are those of x; a group has `size` codes.
                    let (dx, start, weighted, q) = unsafe {
                        let row = product.rows(part, first + r, groups);
                        let q = std::slice::from_raw_parts(row.codes.add(g * size), size);
                        (*row.scales, *row.corrections.add(g), *row.weighted.add(g), q)
                    };
                    let mut dots = [start; PANEL];
                    for (codes, &q) in codes[g * size..].iter().zip(q) {
                        for (dot, &code) in dots.iter_mut().zip(codes) {
                            *dot += code as i32 * q as i32;
                        }
                    }
                    for lane in 0..PANEL {
                        let (scale, add) = scales[lane];
                        sums[lane] += scale * dx * dots[lane] as f32;
                        if layout.has_minima() {
                            sums[lane] += add * weighted;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::reference_matmul;
    use crate::matmul::tests::{quantised, values};
    use crate::packed::{PackedMatrix, Storage};

    fn integers(n: usize, k: usize) -> impl Iterator<Item = (Vec<f32>, PackedMatrix)> {
        quantised(n, k)
            .into_iter()
            .filter(|(_, w)| matches!(&w.storage, Storage::Quantised(q) if q.has_integers()))
    }

    fn product(level: Level, x: &[f32], w: &PackedMatrix, y: &mut [f32], accumulate: bool) {
        let Storage::Quantised(q) = &w.storage else { unreachable!("only quantised weights") };
        matmul_at(level, y, x, q, (y.len() / w.n(), w.n(), w.k()), accumulate, &[]);
    }

    #[test]
    fn the_shares_of_what_comes_next_are_its_cache_lines_each_once() {
        let memory = [0u8; 1000];
        let pieces =
            [&memory[..0], &memory[..65], &memory[100..100], &memory[200..264], &memory[300..1000]];
        let next = Next::new(&pieces);
        let lines = pieces.iter().flat_map(|piece| piece.chunks(LINE).map(<[u8]>::as_ptr));
        let lines: Vec<_> = lines.collect();
        assert_eq!(next.lines, lines.len());
        for of in [1, 2, 5, 14, 40] {
            let shares: Vec<_> = (0..of).flat_map(|i| next.share(i, of)).collect();
            assert_eq!(shares, lines, "{of} shares");
        }
        assert_eq!(Next::new(&[]).share(0, 3).count(), 0);
    }

    #[test]
    fn every_format_but_nf4_is_multiplied_in_integers() {
        let names: Vec<_> = integers(1, 256).map(|(_, w)| w.dtype().name()).collect();
        assert_eq!(names.len(), 12, "{names:?}");
        assert!(!names.contains(&"nf4"));
    }

    #[test]
    fn the_error_is_that_of_rounding_x() {
        for (n, k) in [(5, 256), (40, 768), (16, 512)] {
            for (w, packed) in integers(n, k) {
                for t in [1, 2, 5, 130] {
                    let x: Vec<f32> = values(t * k, 2).iter().map(|v| v / 3.0).collect();
                    let old = values(t * n, 4);
                    let mut exact = vec![0.0; t * n];
                    reference_matmul(&mut exact, &x, &w, t, n, k);
                    for level in Level::available() {
                        let mut found = vec![f32::NAN; t * n];
                        product(level, &x, &packed, &mut found, false);
                        let mut added = old.clone();
                        product(level, &x, &packed, &mut added, true);
                        for i in 0..t * n {
                            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                            let parts = x.as_chunks::<PART>().0.iter().zip(w.as_chunks::<PART>().0);
                            let (mut bound, mut size) = (0.0, old[i].abs());
                            for (x, w) in parts {
                                let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                                let sum: f32 = w.iter().map(|w| w.abs()).sum();
                                bound += largest / 127.0 / 2.0 * sum;
                                size += largest * sum;
                            }
                            let what =
                                format!("{level:?} {} [{n}, {k}] {i}", packed.dtype().name());
                            // Beside it, the rounding of sums in f32; with minima these are larger
                            // than their result.
                            let float = 1e-5 * size + 1e-5;
                            let error = (found[i] - exact[i]).abs();
                            assert!(error <= bound + float, "{what}: {error}, bound {bound}");
                            let error = (added[i] - old[i] - exact[i]).abs();
                            assert!(error <= bound + float, "{what}: {error}, bound {bound}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn integers_are_exact_at_every_level() {
        // Integer x of magnitude 127 needs no rounding: then only sums in f32 have an error.
        let (t, n, k) = (3, 20, 512);
        let x: Vec<f32> = values(t * k, 9).iter().map(|v| (v * 128.0).round()).collect();
        let mut x: Vec<f32> = x.iter().map(|v| v.clamp(-127.0, 127.0)).collect();
        x.chunks_mut(PART).enumerate().for_each(|(i, part)| part[i % PART] = 127.0);
        for (w, packed) in integers(n, k) {
            let mut exact = vec![0.0; t * n];
            reference_matmul(&mut exact, &x, &w, t, n, k);
            for level in Level::available() {
                let mut found = vec![0.0; t * n];
                product(level, &x, &packed, &mut found, false);
                for (i, (f, e)) in found.iter().zip(&exact).enumerate() {
                    let row = x[i / n * k..][..k].iter().zip(&w[i % n * k..][..k]);
                    let size: f32 = row.map(|(x, w)| (x * w).abs()).sum();
                    let what = format!("{level:?} {}", packed.dtype().name());
                    assert!((f - e).abs() <= 3e-6 * size, "{what}: {f}, expected {e} of {size}");
                }
            }
        }
    }

    #[test]
    fn the_largest_codes_do_not_overflow() {
        // Every bit of every code is one, and q is 127 or -127 all over.
        let (n, k) = (16, 256);
        for dtype in crate::Dtype::all().filter(|d| d.is_quantised()) {
            for sign in [1.0, -1.0] {
                let row_bytes = dtype.row_bytes(k).unwrap();
                let mut bytes = vec![0xff; n * row_bytes];
                for (value, code) in [(0xffu8, 0x2c), (0x80, 0x2c)] {
                    // Scales, wherever they stand, must be finite: clear the exponents' high bits
                    // in each block's first and last four bytes.
                    bytes.fill(value);
                    for block in bytes.chunks_mut(dtype.block_bytes()) {
                        let len = block.len();
                        for i in [1, 3, len - 1, len - 3] {
                            block[i] = code;
                        }
                    }
                    let mut w = vec![0.0; n * k];
                    dtype.unpack(&bytes, &mut w);
                    let row = |i: usize| &bytes[i * row_bytes..(i + 1) * row_bytes];
                    let packed = PackedMatrix::from_bytes(dtype, n, k, row);
                    let Storage::Quantised(q) = &packed.storage else { unreachable!() };
                    if !q.has_integers() {
                        continue;
                    }
                    let x = vec![sign * 127.0; k];
                    let mut exact = vec![0.0; n];
                    reference_matmul(&mut exact, &x, &w, 1, n, k);
                    for level in Level::available() {
                        let mut found = vec![0.0; n];
                        product(level, &x, &packed, &mut found, false);
                        for (i, (f, e)) in found.iter().zip(&exact).enumerate() {
                            let size: f32 = w[i * k..][..k].iter().map(|w| 127.0 * w.abs()).sum();
                            let what = format!("{level:?} {}", dtype.name());
                            assert!((f - e).abs() <= 1e-5 * size, "{what}: {f}, expected {e}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows_and_stays_in_its_row() {
        let (t, n, k) = (3, 20, 256);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = values(t * k, 3);
            x[k + 77] = bad;
            for (_, w) in integers(n, k) {
                for level in Level::available() {
                    let mut y = vec![0.0; t * n];
                    product(level, &x, &w, &mut y, false);
                    assert!(y[n..2 * n].iter().all(|y| y.is_nan()), "{level:?} {bad}");
                    let mut others = y[..n].iter().chain(&y[2 * n..]);
                    assert!(others.all(|y| y.is_finite()), "{level:?} {bad}");
                }
            }
        }
    }

    #[test]
    fn zeros_and_the_smallest_and_largest_values_are_rounded_well() {
        let mut codes = [1; PART];
        assert_eq!((round(&[0.0; PART], &mut codes), codes), (0.0, [0; PART]));
        for size in [1e-38, 1e-30, 1.0, 3e38] {
            let x = std::array::from_fn(|i| if i % 2 == 0 { size } else { -size / 3.0 });
            let scale = round(&x, &mut codes);
            for (x, code) in x.iter().zip(codes) {
                let error = (scale * code as f32 - x).abs();
                assert!(
                    error <= size / 127.0 * 0.5001 || size < 1e-35,
                    "{x}: {code} times {scale}"
                );
            }
        }
    }
}
