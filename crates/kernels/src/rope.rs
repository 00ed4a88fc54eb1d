//! Rotary position embedding (Su et al., arXiv:2104.09864) in the half-rotation convention of
//! Hugging Face Llama: element i of a head is paired with element i + half.

use crate::simd::{Kernel, Level, Simd, dispatch_at};
use crate::vector::{load_at, rows_per_task, store_at};
use rayon::prelude::*;

/// cos and sin for the rows of one batch, each [T, half]. Made for a batch rather than for a whole
/// context, so that memory follows the tokens at hand and not a number in a file.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The frequencies that a row is rotated with.
#[derive(Clone, Copy, Debug)]
pub struct RopeRow<'a> {
    /// Place of the row in its sequence.
    pub position: u32,
    /// Radians per position of each pair, [half].
    pub inv_freq: &'a [f32],
    /// cos and sin are multiplied by this (1 but for extended contexts, arXiv:2309.00071).
    pub factor: f32,
}

impl RopeTable {
    /// The table of `rows`, each with `half` frequencies: D/2 of them when the whole head is
    /// rotated.
    ///
    /// The angle is rounded to f32 before its cosine is taken, as HF Transformers does.
    ///
    /// # Panics
    /// When a row has another number of frequencies.
    pub fn new(half: usize, rows: &[RopeRow<'_>]) -> Self {
        let mut table = RopeTable {
            half,
            cos: vec![0.0; rows.len() * half],
            sin: vec![0.0; rows.len() * half],
        };
        if half == 0 {
            return table;
        }
        // A sine costs some tens of multiplications.
        let each = rows_per_task(half * 16);
        table
            .cos
            .par_chunks_mut(each * half)
            .zip(table.sin.par_chunks_mut(each * half))
            .zip(rows.par_chunks(each))
            .for_each(|((cos, sin), rows)| {
                let out = cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half));
                for ((cos, sin), row) in out.zip(rows) {
                    assert_eq!(row.inv_freq.len(), half, "rope: frequencies of a row");
                    for i in 0..half {
                        let angle = f64::from(row.position as f32 * row.inv_freq[i]);
                        cos[i] = angle.cos() as f32 * row.factor;
                        sin[i] = angle.sin() as f32 * row.factor;
                    }
                }
            });
        table
    }

    /// Pairs rotated per head.
    pub fn half(&self) -> usize {
        self.half
    }

    /// Rows that can be rotated: T.
    pub fn rows(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// (cos, sin) from row `row` on.
    #[inline(always)]
    fn starting_at(&self, row: usize) -> (&[f32], &[f32]) {
        (&self.cos[row * self.half..], &self.sin[row * self.half..])
    }
}

/// Rotates x[T, heads, D] in place, row t by row t of `table`. The first 2·half elements of each
/// head are rotated; where that is less than D (partial rotary) the rest stays.
///
/// # Panics
/// When the lengths do not fit together.
pub fn rope(x: &mut [f32], heads: usize, table: &RopeTable) {
    rope_at(Level::detect(), x, heads, table, 1.0);
}

/// Gradient of [`rope`] in place on dx[T, heads, D]: the rotation transposed.
///
/// # Panics
/// As [`rope`].
pub fn rope_backward(dx: &mut [f32], heads: usize, table: &RopeTable) {
    rope_at(Level::detect(), dx, heads, table, -1.0);
}

/// Plain [`rope`].
pub fn reference_rope(x: &mut [f32], heads: usize, table: &RopeTable) {
    reference_rotate(x, heads, table, 1.0);
}

/// Plain [`rope_backward`].
pub fn reference_rope_backward(dx: &mut [f32], heads: usize, table: &RopeTable) {
    reference_rotate(dx, heads, table, -1.0);
}

fn reference_rotate(x: &mut [f32], heads: usize, table: &RopeTable, direction: f32) {
    let head_dim = check(x, heads, table);
    for (head, x) in x.chunks_exact_mut(head_dim.max(1)).enumerate() {
        let (cos, sin) = table.starting_at(head / heads);
        for i in 0..table.half {
            let (a, b, sin) = (x[i], x[i + table.half], direction * sin[i]);
            x[i] = a * cos[i] - b * sin;
            x[i + table.half] = b * cos[i] + a * sin;
        }
    }
}

fn rope_at(level: Level, x: &mut [f32], heads: usize, table: &RopeTable, direction: f32) {
    let head_dim = check(x, heads, table);
    if x.is_empty() || table.half == 0 {
        return;
    }
    let width = heads * head_dim;
    let rows = rows_per_task(width);
    x.par_chunks_mut(rows * width).enumerate().for_each(|(task, x)| {
        let (cos, sin) = table.starting_at(task * rows);
        let rotate = Rotate { x, cos, sin, half: table.half, heads, head_dim, direction };
        dispatch_at(level, rotate)
    });
}

/// Returns D.
fn check(x: &[f32], heads: usize, table: &RopeTable) -> usize {
    if table.half == 0 {
        return 0;
    }
    let slots = table.rows() * heads;
    if slots == 0 {
        assert!(x.is_empty(), "rope: {} values but no head to rotate", x.len());
        return 0;
    }
    let head_dim = x.len() / slots;
    assert!(
        head_dim * slots == x.len() && 2 * table.half <= head_dim,
        "rope: {} values are not [{}, {heads}, D] with D >= {}",
        x.len(),
        table.rows(),
        2 * table.half
    );
    head_dim
}

struct Rotate<'a> {
    x: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
    heads: usize,
    head_dim: usize,
    direction: f32,
}

impl Kernel for Rotate<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let half = self.half;
        let rows = self.x.chunks_exact_mut(self.heads * self.head_dim);
        let table = self.cos.chunks_exact(half).zip(self.sin.chunks_exact(half));
        for (row, (cos, sin)) in rows.zip(table) {
            let (cos, sin) = (cos.as_ptr(), sin.as_ptr());
            for head in row.chunks_exact_mut(self.head_dim) {
                // SAFETY: cos and sin cover half values, the head at least 2·half (see check).
                unsafe {
                    let first = head.as_mut_ptr();
                    let second = first.add(half);
                    let direction = S::splat(self.direction);
                    let mut i = 0;
                    while i < half {
                        let c = load_at::<S>(cos, i, half, 0.0);
                        let s = S::mul(direction, load_at::<S>(sin, i, half, 0.0));
                        let a = load_at::<S>(first, i, half, 0.0);
                        let b = load_at::<S>(second, i, half, 0.0);
                        store_at::<S>(first, i, half, S::sub(S::mul(a, c), S::mul(b, s)));
                        store_at::<S>(second, i, half, S::add(S::mul(b, c), S::mul(a, s)));
                        i += S::LANES;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::testing::*;

    /// Plain frequencies at `positions`, cos and sin times `factor`.
    fn table(half: usize, positions: &[u32], factor: f32) -> RopeTable {
        let inv_freq: Vec<f32> =
            (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
        let row = |&position| RopeRow { position, inv_freq: &inv_freq, factor };
        RopeTable::new(half, &positions.iter().map(row).collect::<Vec<_>>())
    }

    #[test]
    fn every_level_equals_the_reference() {
        for level in Level::available() {
            // The last case rotates only a part of the head.
            for (t, heads, half, d) in [(1, 1, 1, 2), (5, 3, 4, 8), (90, 5, 32, 64), (7, 2, 5, 16)]
            {
                let positions: Vec<u32> = (0..t as u32).map(|p| (p * 37) % 300).collect();
                let table = table(half, &positions, 1.0);
                let original = random(t * heads * d, 1);
                let (mut x, mut expected) = (original.clone(), original.clone());
                rope_at(level, &mut x, heads, &table, 1.0);
                reference_rope(&mut expected, heads, &table);
                assert_close(&x, &expected, 1e-6, "rotated");
                rope_at(level, &mut x, heads, &table, -1.0);
                reference_rope_backward(&mut expected, heads, &table);
                assert_close(&x, &expected, 1e-6, "rotated back");
                assert_close(&x, &original, 1e-5, "there and back");
            }
        }
    }

    #[test]
    fn known_rotation() {
        // One pair at one radian per position.
        let mut x = [1.0, 0.0];
        rope(&mut x, 1, &table(1, &[2], 1.5));
        assert_close(&x, &[1.5 * 2f32.cos(), 1.5 * 2f32.sin()], 1e-6, "two radians, times 1.5");
    }

    #[test]
    fn gradient_is_the_slope() {
        let (heads, table) = (2, table(3, &[0, 3, 250], 1.25));
        let (x, dy) = (random(3 * 2 * 6, 1), random(3 * 2 * 6, 2));
        let mut dx = dy.clone();
        rope_backward(&mut dx, heads, &table);
        assert_gradient(&x, &dx, 1e-4, "dx", |x| {
            let mut y = x.to_vec();
            reference_rope(&mut y, heads, &table);
            inner(&y, &dy)
        });
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_batch() {
        let (t, heads, d) = (400, 3, 20);
        let positions: Vec<u32> = (0..t as u32).collect();
        let x = random(t * heads * d, 1);
        let all = |threads| {
            with_threads(threads, || {
                let mut y = x.clone();
                rope(&mut y, heads, &table(10, &positions, 1.0));
                y
            })
        };
        let one = all(1);
        assert_same_bits(&one, &all(3), "threads");
        let own = 399 * heads * d..400 * heads * d;
        let mut alone = x[own.clone()].to_vec();
        rope(&mut alone, heads, &table(10, &[399], 1.0));
        assert_same_bits(&alone, &one[own], "row alone");
    }

    #[test]
    #[should_panic(expected = "are not [2, 1, D]")]
    fn a_table_of_other_rows_is_refused() {
        rope(&mut [0.0; 3], 1, &table(1, &[4, 5], 1.0));
    }
}
