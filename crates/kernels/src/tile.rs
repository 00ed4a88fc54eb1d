//! The register tile of attention: a few rows times one panel of 16 columns, kept in registers
//! while the inner dimension runs (the micro-kernel of Goto and van de Geijn, "Anatomy of
//! high-performance matrix multiplication", 2008).
//!
//! Every element of the tile is one chain of fused multiply-adds in the order of the inner
//! dimension. How many rows share the tile, and where the chain is interrupted by a store and
//! taken up again, does not change a bit of it.

use crate::simd::{Kernel, Simd};

/// Columns of a panel.
pub(crate) const PANEL: usize = 16;

/// C[rows, 16] (+)= A[rows, steps] · B[steps, 16], all by pointer and stride.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// First element of C; its rows are `c_row` apart.
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    /// First element of A; its rows are `a_row` apart, its columns `a_step`.
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    pub(crate) a_step: usize,
    /// First element of B; its rows of 16 are `b_step` apart.
    pub(crate) b: *const f32,
    pub(crate) b_step: usize,
    /// Where the rows of B lie in pages.
    pub(crate) paged: Option<Paged<'a>>,
    /// Inner dimension.
    pub(crate) steps: usize,
    /// Rows, as [`tile_rows`] gives them.
    pub(crate) rows: usize,
    /// Whether C is added to instead of overwritten.
    pub(crate) accumulate: bool,
}

/// Rows of B in pages of 16: `b` is then where the first row of page 0 would be.
#[derive(Clone, Copy)]
pub(crate) struct Paged<'a> {
    /// Distance between pages.
    pub(crate) stride: usize,
    /// The page of the first row of B, and those after it.
    pub(crate) pages: &'a [u32],
    /// Place of the first row of B in its page.
    pub(crate) slot: usize,
}

/// Rows of the next tile when `left` are to be done: as many as the registers hold.
#[inline(always)]
pub(crate) fn tile_rows<S: Simd>(left: usize) -> usize {
    match S::REGISTERS {
        false => left.min(1),
        true if S::LANES >= PANEL && left >= 12 => 12,
        true => left.min(6),
    }
}

/// Computes one tile.
///
/// # Safety
/// The level of `S` must be supported; the pointers must cover what the shape says; `rows` is what
/// [`tile_rows`] gives.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd>(t: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { S::call(t) }
}

// One copy of the unrolled tiles per level, called from everywhere: inlined at each of attention's
// call sites they cost minutes of compile time and gained nothing.
impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise to `tile`.
        unsafe { sized::<S>(self) }
    }
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn sized<S: Simd>(t: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        if !S::REGISTERS {
            fixed::<S, 1, 2>(t);
        } else if S::LANES >= PANEL {
            match t.rows {
                12 => fixed::<S, 12, 1>(t),
                6 => fixed::<S, 6, 1>(t),
                5 => fixed::<S, 5, 1>(t),
                4 => fixed::<S, 4, 1>(t),
                3 => fixed::<S, 3, 1>(t),
                2 => fixed::<S, 2, 1>(t),
                _ => fixed::<S, 1, 1>(t),
            }
        } else {
            match t.rows {
                6 => fixed::<S, 6, 2>(t),
                5 => fixed::<S, 5, 2>(t),
                4 => fixed::<S, 4, 2>(t),
                3 => fixed::<S, 3, 2>(t),
                2 => fixed::<S, 2, 2>(t),
                _ => fixed::<S, 1, 2>(t),
            }
        }
    }
}

/// # Safety
/// As [`tile`], with ROWS = t.rows and VECTORS · LANES = 16.
#[inline(always)]
unsafe fn fixed<S: Simd, const ROWS: usize, const VECTORS: usize>(t: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::zero(); VECTORS]; ROWS];
        if t.accumulate {
            for r in 0..ROWS {
                for v in 0..VECTORS {
                    sums[r][v] = S::load(t.c.add(r * t.c_row + v * S::LANES));
                }
            }
        }
        let mut a = t.a;
        let mut left = t.steps;
        let mut page = 0;
        while left > 0 {
            let (mut b, steps) = match t.paged {
                None => (t.b, left),
                Some(paged) => {
                    let slot = if page == 0 { paged.slot } else { 0 };
                    let start = paged.pages[page] as usize * paged.stride + slot * t.b_step;
                    (t.b.add(start), left.min(PANEL - slot))
                }
            };
            for _ in 0..steps {
                let mut columns = [S::zero(); VECTORS];
                for v in 0..VECTORS {
                    columns[v] = S::load(b.add(v * S::LANES));
                }
                for r in 0..ROWS {
                    let x = S::splat(*a.add(r * t.a_row));
                    for v in 0..VECTORS {
                        sums[r][v] = S::fma(x, columns[v], sums[r][v]);
                    }
                }
                // Wrapping: the last step may leave the allocation, and is not followed by a read.
                a = a.wrapping_add(t.a_step);
                b = b.wrapping_add(t.b_step);
            }
            left -= steps;
            page += 1;
        }
        for r in 0..ROWS {
            for v in 0..VECTORS {
                S::store(t.c.add(r * t.c_row + v * S::LANES), sums[r][v]);
            }
        }
    }
}
