//! Tiles of rows and outputs for signed codes, in 16 bits.

use super::{Block, TILE_ROWS};
use crate::formats::PART;
use crate::formats::lanes::QUADS;
use crate::packed::PANEL;
use crate::simd::Steps;
use std::hint::black_box;
use std::mem::MaybeUninit;

/// Vectors of a tile.
const TILE_VECTORS: usize = 2;

/// The codes of a part as a tile meets them: two inputs at a time, `[step][vector]`.
#[repr(C, align(64))]
struct TileCodes<I>([[MaybeUninit<I>; TILE_VECTORS]; 2 * QUADS]);

impl Block<'_, '_> {
    /// Signed codes with one scale per part, in tiles.
    ///
    /// # Safety
    /// As [`Block::coded`], without the parameters that are the same for all of these; x is wide.
    #[inline(always)]
    pub(super) unsafe fn tiled<S: Steps, const LOW: usize, const TABLE: bool>(self) {
        const { assert!(S::LANES * TILE_VECTORS == PANEL) };
        let Block { product, panel, row: first, sums } = self;
        let (mut wanted, each) = product.wanted(panel, first);
        let mut steps = TileCodes([[MaybeUninit::uninit(); TILE_VECTORS]; 2 * QUADS]);
        // SAFETY: every offset is inside the panel's part, x or the sums.
        unsafe {
            for (part, places) in product.places(panel).enumerate() {
                wanted.by_ref().take(each).for_each(|line| S::prefetch(line));
                let mut scales = [S::zero(); TILE_VECTORS];
                for v in 0..TILE_VECTORS {
                    let lane = v * S::LANES;
                    scales[v] = places.scales::<S>(product.layout, lane)[0].0;
                    let codes = product.codes::<S, LOW, 0, TABLE>(&places, lane);
                    for (quad, codes) in codes.into_iter().enumerate() {
                        let [low, high] = S::widen(codes);
                        steps.0[2 * quad][v].write(low);
                        steps.0[2 * quad + 1][v].write(high);
                    }
                }
                // The compiler must not keep them in registers, of which there are too few.
                let steps = black_box(steps.0.as_ptr().cast::<[S::I; TILE_VECTORS]>());
                for (tile, sums) in sums.chunks_mut(TILE_ROWS).enumerate() {
                    let at = part * product.t + first + tile * TILE_ROWS;
                    let x = (
                        product.x.codes.as_ptr().add(at * PART),
                        product.x.scales.as_ptr().add(at),
                    );
                    match sums.len() {
                        1 => add_tile::<S, 1>(steps, scales, x, sums),
                        2 => add_tile::<S, 2>(steps, scales, x, sums),
                        3 => add_tile::<S, 3>(steps, scales, x, sums),
                        _ => add_tile::<S, TILE_ROWS>(steps, scales, x, sums),
                    }
                }
            }
        }
    }
}

/// Adds what one part of `ROWS` rows and one panel add up to.
///
/// # Safety
/// As [`Block::tiled`]; there are so many rows.
#[inline(always)]
unsafe fn add_tile<S: Steps, const ROWS: usize>(
    steps: *const [S::I; TILE_VECTORS],
    scales: [S::F; TILE_VECTORS],
    (x, dx): (*const i16, *const f32),
    sums: &mut [[f32; PANEL]],
) {
    let sums: &mut [_; ROWS] = sums.as_mut_array().expect("so many rows");
    // SAFETY: the caller's contract.
    unsafe {
        let mut dots = [[S::splat_int(0); TILE_VECTORS]; ROWS];
        for step in 0..2 * QUADS {
            let codes = *steps.add(step);
            for r in 0..ROWS {
                let q = x.add(r * PART + step * 2);
                for v in 0..TILE_VECTORS {
                    dots[r][v] = S::dot_wide(dots[r][v], codes[v], q);
                }
            }
        }
        for r in 0..ROWS {
            let dx = S::splat(*dx.add(r));
            for v in 0..TILE_VECTORS {
                let to = sums[r].as_mut_ptr().add(v * S::LANES);
                let dot = S::float(dots[r][v]);
                S::store(to, S::fma(S::mul(scales[v], dx), dot, S::load(to)));
            }
        }
    }
}
