//! Low-rank adapters (LoRA, arXiv:2106.09685): y += scale · (x·Aᵀ)·Bᵀ, per row group of a ragged
//! batch, so that one forward serves many adapters. Rows without an adapter cost nothing.

use crate::blocks::{self, Rider};
use crate::matmul::{
    Panels, TILE_ROWS, matmul_at, matmul_before, matmul_dw_at, matmul_dx_at, matmul_dx_riders,
    matmul_riders, panels_of,
};
use crate::packed::PackedMatrix;
use crate::simd::Level;
use rayon::prelude::*;
use std::ops::Range;

/// The adapter of one row group for one linear layer `[N, K]`.
#[derive(Clone, Copy, Debug)]
pub struct LoraRef<'a> {
    /// A `[R, K]`.
    pub a: &'a PackedMatrix,
    /// B `[N, R]`.
    pub b: &'a PackedMatrix,
    /// Factor of the product: `lora_alpha / r`.
    pub scale: f32,
}

/// y `[T, N]` += scale · (x `[T, K]` · Aᵀ) · Bᵀ on the rows of each group. `groups` lists row
/// ranges with their adapters; rows in no group stay as they are, rows in several get each in turn.
///
/// # Panics
/// When a group's rows lie outside `y` or `x`, or its adapter's shapes do not fit `n` and `k`.
pub fn lora(y: &mut [f32], x: &[f32], groups: &[(Range<usize>, LoraRef)], n: usize, k: usize) {
    lora_at(Level::detect(), y, x, groups, n, k);
}

/// [`crate::matmul`] and [`lora`] in one: y `[T, N]` (+)= x `[T, K]` · Wᵀ, then the adapter of each
/// group on its rows. The bits are those of the two one after the other; over many rows it takes
/// less time, as x and y are passed over once.
///
/// # Panics
/// As [`crate::matmul`] and [`lora`].
pub fn matmul_lora(
    y: &mut [f32],
    x: &[f32],
    w: &PackedMatrix,
    t: usize,
    accumulate: bool,
    groups: &[(Range<usize>, LoraRef)],
) {
    matmul_lora_at(Level::detect(), y, x, w, t, accumulate, groups);
}

/// dx `[T, K]` (+)= dy `[T, N]` · W, then scale · (dy · B) · A of each group on its rows. Returns
/// scale · dy · B of each group, `[rows, R]`, for [`lora_grads`].
///
/// # Panics
/// As [`crate::matmul_dx`] and [`lora`].
pub fn matmul_dx_lora(
    dx: &mut [f32],
    dy: &[f32],
    w: &PackedMatrix,
    t: usize,
    accumulate: bool,
    groups: &[(Range<usize>, LoraRef)],
) -> Vec<Vec<f32>> {
    matmul_dx_lora_at(Level::detect(), dx, dy, w, t, accumulate, groups)
}

/// dx `[T, K]` += scale · (dy `[T, N]` · B) · A, for one group of `t` rows. Returns scale · dy · B,
/// `[T, R]`, for [`lora_grads`].
///
/// # Panics
/// When a slice's length does not fit `t` and the adapter's shapes.
pub fn lora_dx(dx: &mut [f32], dy: &[f32], t: usize, adapter: LoraRef) -> Vec<f32> {
    lora_dx_at(Level::detect(), dx, dy, t, adapter)
}

/// The gradients of an adapter over a group of `t` rows: da `[R, K]` += dhᵀ · x and db `[N, R]` +=
/// dyᵀ · scale · x·Aᵀ (both row-major), from dy `[T, N]`, x `[T, K]` and the dh `[T, R]` of
/// [`matmul_dx_lora`]. x·Aᵀ is computed again, which is cheaper than keeping it.
///
/// # Panics
/// When a slice's length does not fit `t` and the adapter's shapes.
pub fn lora_grads(
    da: &mut [f32],
    db: &mut [f32],
    dy: &[f32],
    dh: &[f32],
    x: &[f32],
    t: usize,
    adapter: LoraRef,
) {
    lora_grads_at(Level::detect(), da, db, dy, dh, x, t, adapter);
}

fn matmul_lora_at(
    level: Level,
    y: &mut [f32],
    x: &[f32],
    w: &PackedMatrix,
    t: usize,
    accumulate: bool,
    groups: &[(Range<usize>, LoraRef)],
) {
    let (n, k) = (w.n(), w.k());
    groups.iter().for_each(|(_, lora)| check(lora, n, k));
    let rides = !w.in_integers() && ride(groups, t, n, k);
    let (riding, rest): (Vec<_>, Vec<_>) =
        groups.iter().cloned().partition(|(rows, _)| rides && rows.len() > FEW_ROWS);
    if riding.is_empty() {
        let next: Vec<&[u8]> =
            (rest.iter()).flat_map(|(_, lora)| [lora.a.laid_out(), lora.b.laid_out()]).collect();
        matmul_before(level, y, x, w, t, accumulate, &next);
    } else {
        let mut inner = results(&riding);
        let riders = riders(&riding, &mut inner, |lora| (panels_of(lora.a), panels_of(lora.b)));
        matmul_riders(level, y, x, w, t, accumulate, riders);
    }
    lora_at(level, y, x, &rest, n, k);
}

fn matmul_dx_lora_at(
    level: Level,
    dx: &mut [f32],
    dy: &[f32],
    w: &PackedMatrix,
    t: usize,
    accumulate: bool,
    groups: &[(Range<usize>, LoraRef)],
) -> Vec<Vec<f32>> {
    let (n, k) = (w.n(), w.k());
    groups.iter().for_each(|(_, lora)| check(lora, n, k));
    if !ride(groups, t, k, n) {
        matmul_dx_at(level, dx, dy, w, t, accumulate);
        let each = groups.iter().map(|(rows, lora)| {
            let dx = &mut dx[rows.start * k..rows.end * k];
            lora_dx_at(level, dx, &dy[rows.start * n..rows.end * n], rows.len(), *lora)
        });
        return each.collect();
    }
    let mut inner = results(groups);
    let riders =
        riders(groups, &mut inner, |lora| (Panels::Turned(lora.b), Panels::Turned(lora.a)));
    matmul_dx_riders(level, dx, dy, w, t, accumulate, riders);
    inner
}

fn lora_dx_at(level: Level, dx: &mut [f32], dy: &[f32], t: usize, adapter: LoraRef) -> Vec<f32> {
    let mut dh = vec![0.0; t * adapter.a.n()];
    matmul_dx_at(level, &mut dh, dy, adapter.b, t, false);
    dh.iter_mut().for_each(|value| *value *= adapter.scale);
    matmul_dx_at(level, dx, &dh, adapter.a, t, true);
    dh
}

/// Whether adapters can ride along on a product of `t` rows.
fn ride(groups: &[(Range<usize>, LoraRef)], t: usize, columns: usize, depth: usize) -> bool {
    !groups.is_empty()
        && blocks::pays(t, columns, depth)
        && groups.iter().all(|(_, lora)| lora.a.n() > 0)
        && ordered(groups)
}

/// So few rows of an adapter ride badly: they fill no tiles, and their turn comes with each block of the
/// product. They are added behind it.
const FEW_ROWS: usize = 2 * TILE_ROWS;

/// Whether the groups are in order and apart.
fn ordered(groups: &[(Range<usize>, LoraRef)]) -> bool {
    groups.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start)
}

/// The groups as riders, with the panels of what reads the rows and of what writes them.
fn riders<'a>(
    groups: &[(Range<usize>, LoraRef<'a>)],
    inner: &'a mut [Vec<f32>],
    panels: impl Fn(&LoraRef<'a>) -> (Panels<'a>, Panels<'a>),
) -> Vec<Rider<'a>> {
    let rider = |((rows, lora), h): (&(Range<usize>, LoraRef<'a>), &'a mut Vec<f32>)| {
        let (inner, outer) = panels(lora);
        Rider::new(rows.clone(), inner, outer, lora.a.n(), lora.scale, h)
    };
    groups.iter().zip(inner).map(rider).collect()
}

/// Room for a row of R values per row of each group.
fn results(groups: &[(Range<usize>, LoraRef)]) -> Vec<Vec<f32>> {
    groups.iter().map(|(rows, lora)| vec![0.0; rows.len() * lora.a.n()]).collect()
}

fn lora_at(
    level: Level,
    y: &mut [f32],
    x: &[f32],
    groups: &[(Range<usize>, LoraRef)],
    n: usize,
    k: usize,
) {
    // Many small groups (decoding with many adapters): one task each. That needs every group's
    // own piece of y, so the groups must be in order and apart.
    if groups.len() < 2 || !ordered(groups) {
        for (rows, adapter) in groups {
            let (y, x) = (&mut y[rows.start * n..rows.end * n], &x[rows.start * k..rows.end * k]);
            add_group(level, y, x, rows.len(), adapter, n, k);
        }
        return;
    }
    let mut rest = y;
    let mut offset = 0;
    let mut pieces = Vec::with_capacity(groups.len());
    for (rows, adapter) in groups {
        let (piece, tail) = rest[(rows.start - offset) * n..].split_at_mut(rows.len() * n);
        pieces.push((piece, rows, adapter));
        (rest, offset) = (tail, rows.end);
    }
    pieces.into_par_iter().for_each(|(y, rows, adapter)| {
        add_group(level, y, &x[rows.start * k..rows.end * k], rows.len(), adapter, n, k);
    });
}

fn add_group(
    level: Level,
    y: &mut [f32],
    x: &[f32],
    t: usize,
    adapter: &LoraRef,
    n: usize,
    k: usize,
) {
    check(adapter, n, k);
    let h = scaled_inner(level, x, t, adapter);
    matmul_at(level, y, &h, adapter.b, t, true);
}

/// scale · x·Aᵀ, `[T, R]`.
fn scaled_inner(level: Level, x: &[f32], t: usize, adapter: &LoraRef) -> Vec<f32> {
    let mut h = vec![0.0; t * adapter.a.n()];
    matmul_at(level, &mut h, x, adapter.a, t, false);
    for value in &mut h {
        *value *= adapter.scale;
    }
    h
}

fn lora_grads_at(
    level: Level,
    da: &mut [f32],
    db: &mut [f32],
    dy: &[f32],
    dh: &[f32],
    x: &[f32],
    t: usize,
    adapter: LoraRef,
) {
    let (n, r, k) = (adapter.b.n(), adapter.a.n(), adapter.a.k());
    check(&adapter, n, k);
    let h = scaled_inner(level, x, t, &adapter);
    matmul_dw_at(level, db, dy, &h, t, n, r);
    matmul_dw_at(level, da, dh, x, t, r, k);
}

fn check(adapter: &LoraRef, n: usize, k: usize) {
    let (a, b) = (adapter.a, adapter.b);
    assert!(
        a.k() == k && b.n() == n && a.n() == b.k(),
        "an adapter of a [{n}, {k}] weight needs A [R, {k}] and B [{n}, R], found A [{}, {}] and \
         B [{}, {}]",
        a.n(),
        a.k(),
        b.n(),
        b.k()
    );
}

/// [`lora`] by the definition, for one group and row-major A `[R, K]` and B `[N, R]`.
pub fn reference_lora(
    y: &mut [f32],
    x: &[f32],
    a: &[f32],
    b: &[f32],
    scale: f32,
    t: usize,
    n: usize,
    r: usize,
    k: usize,
) {
    for ti in 0..t {
        for ri in 0..r {
            let h: f32 = (0..k).map(|ki| x[ti * k + ki] * a[ri * k + ki]).sum();
            for ni in 0..n {
                y[ti * n + ni] += scale * h * b[ni * r + ri];
            }
        }
    }
}

/// The gradients of [`lora`] by the definition, with row-major A `[R, K]` and B `[N, R]`.
pub fn reference_lora_backward(
    dx: &mut [f32],
    da: &mut [f32],
    db: &mut [f32],
    dy: &[f32],
    x: &[f32],
    a: &[f32],
    b: &[f32],
    scale: f32,
    t: usize,
    n: usize,
    r: usize,
    k: usize,
) {
    for ti in 0..t {
        for ri in 0..r {
            let h: f32 = (0..k).map(|ki| x[ti * k + ki] * a[ri * k + ki]).sum();
            let dh: f32 = (0..n).map(|ni| dy[ti * n + ni] * b[ni * r + ri]).sum();
            for ni in 0..n {
                db[ni * r + ri] += scale * dy[ti * n + ni] * h;
            }
            for ki in 0..k {
                da[ri * k + ki] += scale * dh * x[ti * k + ki];
                dx[ti * k + ki] += scale * dh * a[ri * k + ki];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::{assert_near, bits, differences, packed, values};

    #[test]
    fn groups_match_the_reference_and_other_rows_stay() {
        let (t, n, k) = (40, 37, 29);
        let x = values(t * k, 1);
        for level in Level::available() {
            for (r1, r2) in [(1, 8), (4, 16), (17, 3)] {
                let (a1, b1) = (values(r1 * k, 2), values(n * r1, 3));
                let (a2, b2) = (values(r2 * k, 4), values(n * r2, 5));
                let mut expected = values(t * n, 6);
                let found = expected.clone();
                // Rows 0..3 and 20..25 have no adapter; one group is empty.
                for (rows, a, b, scale, r) in [
                    (3..9, &a1, &b1, 2.0, r1),
                    (9..20, &a2, &b2, 0.5, r2),
                    (25..40, &a1, &b1, 2.0, r1),
                ] {
                    let y = &mut expected[rows.start * n..rows.end * n];
                    let x = &x[rows.start * k..rows.end * k];
                    reference_lora(y, x, a, b, scale, rows.len(), n, r, k);
                }
                for ((a1, b1), (a2, b2)) in packed(&a1, r1, k)
                    .iter()
                    .zip(&packed(&b1, n, r1))
                    .zip(packed(&a2, r2, k).iter().zip(&packed(&b2, n, r2)))
                {
                    let one = LoraRef { a: a1, b: b1, scale: 2.0 };
                    let two = LoraRef { a: a2, b: b2, scale: 0.5 };
                    let groups = [(3..9, one), (9..20, two), (22..22, two), (25..40, one)];
                    let mut y = found.clone();
                    lora_at(level, &mut y, &x, &groups, n, k);
                    assert_near(&y, &expected, &format!("{level:?} R={r1},{r2}"));
                    // The same groups in another order take the other way through.
                    let turned: Vec<_> = groups.iter().rev().cloned().collect();
                    let mut other = found.clone();
                    lora_at(level, &mut other, &x, &turned, n, k);
                    assert_eq!(other, y);
                    // Group by group gives the same bits as all at once.
                    let mut single = found.clone();
                    for group in &groups {
                        lora_at(level, &mut single, &x, std::slice::from_ref(group), n, k);
                    }
                    assert_eq!(single, y);
                    for row in (0..3).chain(20..25) {
                        assert_eq!(y[row * n..(row + 1) * n], found[row * n..(row + 1) * n]);
                    }
                }
            }
        }
    }

    #[test]
    fn backward_matches_its_reference_and_accumulates() {
        for level in Level::available() {
            for (t, n, r, k) in [(0, 5, 2, 3), (1, 16, 8, 16), (13, 37, 5, 29), (300, 24, 8, 33)] {
                let (x, dy) = (values(t * k, 1), values(t * n, 2));
                let (a, b) = (values(r * k, 3), values(n * r, 4));
                let mut expected = [values(t * k, 5), values(r * k, 6), values(n * r, 7)];
                let mut found = expected.clone();
                let [dx, da, db] = &mut expected;
                reference_lora_backward(dx, da, db, &dy, &x, &a, &b, 0.25, t, n, r, k);
                let (a, b) = (PackedMatrix::from_f32(&a, r, k), PackedMatrix::from_f32(&b, n, r));
                let adapter = LoraRef { a: &a, b: &b, scale: 0.25 };
                let [dx, da, db] = &mut found;
                let zero = PackedMatrix::from_f32(&vec![0.0; n * k], n, k);
                let dh = matmul_dx_lora_at(level, dx, &dy, &zero, t, true, &[(0..t, adapter)]);
                lora_grads_at(level, da, db, &dy, &dh[0], &x, t, adapter);
                for (i, name) in ["dx", "da", "db"].iter().enumerate() {
                    let what = format!("{name} {level:?} T={t} N={n} R={r} K={k}");
                    assert_near(&found[i], &expected[i], &what);
                }
            }
        }
    }

    #[test]
    fn riding_along_has_the_bits_of_one_after_the_other() {
        // More than one block of rows and of depth, and more than one slab of depth; ragged panels,
        // ranks below, at and above a panel; rows without an adapter, groups of a few rows and of none.
        let deep = blocks::SLAB_DEPTH + 40;
        let shapes = [
            (230, 70, 300),
            (230, 300, 70),
            (13, 64, 64),
            (5, 80, 40),
            (40, 64, deep),
            (40, deep, 64),
        ];
        for (t, n, k) in shapes {
            let third = |len, seed| values(len, seed).iter().map(|v| v / 3.0).collect::<Vec<f32>>();
            let (x, dy) = (third(t * k, 1), third(t * n, 2));
            for (r1, r2) in [(1, 8), (16, 33)] {
                let a1 = PackedMatrix::from_f32(&third(r1 * k, 3), r1, k);
                let b1 = PackedMatrix::from_f32(&third(n * r1, 4), n, r1);
                let a2 = PackedMatrix::from_f32(&third(r2 * k, 5), r2, k);
                let b2 = PackedMatrix::from_f32(&third(n * r2, 6), n, r2);
                let one = LoraRef { a: &a1, b: &b1, scale: 2.0 };
                let two = LoraRef { a: &a2, b: &b2, scale: 0.3 };
                let groups = [(1..3, one), (3..3, two), (3..t - 1, two)];
                for w in packed(&third(n * k, 7), n, k) {
                    for level in Level::available() {
                        for accumulate in [false, true] {
                            let mut y = third(t * n, 8);
                            let mut apart = y.clone();
                            matmul_lora_at(level, &mut y, &x, &w, t, accumulate, &groups);
                            matmul_at(level, &mut apart, &x, &w, t, accumulate);
                            lora_at(level, &mut apart, &x, &groups, n, k);
                            let what = format!("{level:?} [{n}, {k}] T={t} R={r1},{r2}");
                            assert!(bits(&y) == bits(&apart), "y, {what}");

                            let mut dx = third(t * k, 9);
                            let mut apart = dx.clone();
                            let dh =
                                matmul_dx_lora_at(level, &mut dx, &dy, &w, t, accumulate, &groups);
                            matmul_dx_at(level, &mut apart, &dy, &w, t, accumulate);
                            for ((rows, lora), dh) in groups.iter().zip(&dh) {
                                let (dx, dy) = (
                                    &mut apart[rows.start * k..rows.end * k],
                                    &dy[rows.start * n..rows.end * n],
                                );
                                let h = lora_dx_at(level, dx, dy, rows.len(), *lora);
                                assert!(bits(&h) == bits(dh), "dh, {what}");
                            }
                            assert!(bits(&dx) == bits(&apart), "dx, {what}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let (t, n, r, k, scale) = (5, 18, 3, 11, 1.5);
        let (x, g) = (values(t * k, 1), values(t * n, 2));
        let (a, b) = (values(r * k, 3), values(n * r, 4));
        let loss = |x: &[f32], a: &[f32], b: &[f32]| -> f64 {
            let (a, b) = (PackedMatrix::from_f32(a, r, k), PackedMatrix::from_f32(b, n, r));
            let mut y = vec![0.0; t * n];
            let adapter = LoraRef { a: &a, b: &b, scale };
            lora(&mut y, x, &[(0..t, adapter)], n, k);
            y.iter().zip(&g).map(|(&y, &g)| y as f64 * g as f64).sum()
        };
        let (mut dx, mut da, mut db) = (vec![0.0; t * k], vec![0.0; r * k], vec![0.0; n * r]);
        {
            let (a, b) = (PackedMatrix::from_f32(&a, r, k), PackedMatrix::from_f32(&b, n, r));
            let adapter = LoraRef { a: &a, b: &b, scale };
            let zero = PackedMatrix::from_f32(&vec![0.0; n * k], n, k);
            let dh = matmul_dx_lora(&mut dx, &g, &zero, t, false, &[(0..t, adapter)]);
            lora_grads(&mut da, &mut db, &g, &dh[0], &x, t, adapter);
        }
        assert_near(&dx, &differences(&x, |x| loss(x, &a, &b)), "dx");
        assert_near(&da, &differences(&a, |a| loss(&x, a, &b)), "da");
        assert_near(&db, &differences(&b, |b| loss(&x, &a, b)), "db");
    }

    #[test]
    #[should_panic(expected = "an adapter of a [4, 3] weight needs A [R, 3] and B [4, R]")]
    fn an_adapter_of_another_layer_is_refused() {
        let (a, b) =
            (PackedMatrix::from_f32(&[0.0; 6], 2, 3), PackedMatrix::from_f32(&[0.0; 4], 4, 1));
        let adapter = LoraRef { a: &a, b: &b, scale: 1.0 };
        lora(&mut [0.0; 4], &[0.0; 3], &[(0..1, adapter)], 4, 3);
    }
}
