//! Rotary position embedding (Su et al., arXiv:2104.09864) in the half-rotation convention of
//! Hugging Face Llama: element i of a head is paired with element i + half.

use crate::simd::{Kernel, Level, Simd, dispatch_at};
use crate::vector::{load_at, rows_per_task, store_at};
use rayon::prelude::*;

/// cos and sin of position · frequency, each [max_positions, half].
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    max_positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Fills the table for positions 0..max_positions; `inv_freq` has one frequency (radians per
    /// position) per pair, so D/2 of them when the whole head is rotated.
    ///
    /// The angle is rounded to f32 before its cosine is taken, as HF Transformers does.
    pub fn new(inv_freq: &[f32], max_positions: usize) -> Self {
        let half = inv_freq.len();
        let angles = (0..max_positions)
            .flat_map(|position| inv_freq.iter().map(move |f| f64::from(position as f32 * f)));
        let (sin, cos) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
        RopeTable { half, max_positions, cos, sin }
    }

    /// Positions 0..max_positions can be rotated.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// Pairs rotated per head.
    pub fn half(&self) -> usize {
        self.half
    }

    /// (cos, sin) of one position, [half] each.
    fn row(&self, position: u32) -> (&[f32], &[f32]) {
        let start = position as usize * self.half;
        (&self.cos[start..start + self.half], &self.sin[start..start + self.half])
    }
}

/// Rotates x[T, heads, D] in place; row t stands at `positions[t]`. The first 2·half elements of
/// each head are rotated; where that is less than D (partial rotary) the rest stays.
///
/// # Panics
/// When the lengths do not fit together or a position is not below the table's `max_positions`.
pub fn rope(x: &mut [f32], positions: &[u32], heads: usize, table: &RopeTable) {
    rope_at(Level::detect(), x, positions, heads, table, 1.0);
}

/// Gradient of [`rope`] in place on dx[T, heads, D]: the inverse rotation.
///
/// # Panics
/// As [`rope`].
pub fn rope_backward(dx: &mut [f32], positions: &[u32], heads: usize, table: &RopeTable) {
    rope_at(Level::detect(), dx, positions, heads, table, -1.0);
}

/// Plain [`rope`].
pub fn reference_rope(x: &mut [f32], positions: &[u32], heads: usize, table: &RopeTable) {
    reference_rotate(x, positions, heads, table, 1.0);
}

/// Plain [`rope_backward`].
pub fn reference_rope_backward(dx: &mut [f32], positions: &[u32], heads: usize, table: &RopeTable) {
    reference_rotate(dx, positions, heads, table, -1.0);
}

fn reference_rotate(
    x: &mut [f32],
    positions: &[u32],
    heads: usize,
    table: &RopeTable,
    direction: f32,
) {
    let head_dim = check(x, positions, heads, table);
    for (head, x) in x.chunks_exact_mut(head_dim.max(1)).enumerate() {
        let (cos, sin) = table.row(positions[head / heads]);
        for i in 0..table.half {
            let (a, b, sin) = (x[i], x[i + table.half], direction * sin[i]);
            x[i] = a * cos[i] - b * sin;
            x[i + table.half] = b * cos[i] + a * sin;
        }
    }
}

fn rope_at(
    level: Level,
    x: &mut [f32],
    positions: &[u32],
    heads: usize,
    table: &RopeTable,
    direction: f32,
) {
    let head_dim = check(x, positions, heads, table);
    if x.is_empty() {
        return;
    }
    let width = heads * head_dim;
    let rows = rows_per_task(width);
    x.par_chunks_mut(rows * width).zip(positions.par_chunks(rows)).for_each(|(x, positions)| {
        dispatch_at(level, Rotate { x, positions, heads, head_dim, table, direction })
    });
}

/// Returns D.
fn check(x: &[f32], positions: &[u32], heads: usize, table: &RopeTable) -> usize {
    let slots = positions.len() * heads;
    if slots == 0 {
        assert!(x.is_empty(), "rope: {} values but no head to rotate", x.len());
        return 0;
    }
    let head_dim = x.len() / slots;
    assert!(
        head_dim * slots == x.len() && 2 * table.half <= head_dim,
        "rope: {} values are not [{}, {heads}, D] with D >= {}",
        x.len(),
        positions.len(),
        2 * table.half
    );
    for position in positions {
        assert!(
            (*position as usize) < table.max_positions,
            "rope: position {position} is not below {}",
            table.max_positions
        );
    }
    head_dim
}

struct Rotate<'a> {
    x: &'a mut [f32],
    positions: &'a [u32],
    heads: usize,
    head_dim: usize,
    table: &'a RopeTable,
    direction: f32,
}

impl Kernel for Rotate<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let half = self.table.half;
        let rows = self.x.chunks_exact_mut(self.heads * self.head_dim).zip(self.positions);
        for (row, position) in rows {
            let (cos, sin) = self.table.row(*position);
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

    fn table(half: usize, max_positions: usize) -> RopeTable {
        let inv_freq: Vec<f32> =
            (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
        RopeTable::new(&inv_freq, max_positions)
    }

    #[test]
    fn every_level_equals_the_reference() {
        for level in Level::available() {
            // The last case rotates only a part of the head.
            for (t, heads, half, d) in [(1, 1, 1, 2), (5, 3, 4, 8), (90, 5, 32, 64), (7, 2, 5, 16)]
            {
                let table = table(half, 300);
                let positions: Vec<u32> = (0..t as u32).map(|p| (p * 37) % 300).collect();
                let original = random(t * heads * d, 1);
                let (mut x, mut expected) = (original.clone(), original.clone());
                rope_at(level, &mut x, &positions, heads, &table, 1.0);
                reference_rope(&mut expected, &positions, heads, &table);
                assert_close(&x, &expected, 1e-6, "rotated");
                rope_at(level, &mut x, &positions, heads, &table, -1.0);
                reference_rope_backward(&mut expected, &positions, heads, &table);
                assert_close(&x, &expected, 1e-6, "rotated back");
                assert_close(&x, &original, 1e-5, "there and back");
            }
        }
    }

    #[test]
    fn known_rotation() {
        // One pair at one radian per position.
        let mut x = [1.0, 0.0];
        rope(&mut x, &[2], 1, &RopeTable::new(&[1.0], 3));
        assert_close(&x, &[2f32.cos(), 2f32.sin()], 1e-6, "two radians");
    }

    #[test]
    fn gradient_is_the_slope() {
        let (positions, heads, table) = ([0, 3, 250], 2, table(3, 300));
        let (x, dy) = (random(3 * 2 * 6, 1), random(3 * 2 * 6, 2));
        let mut dx = dy.clone();
        rope_backward(&mut dx, &positions, heads, &table);
        assert_gradient(&x, &dx, 1e-4, "dx", |x| {
            let mut y = x.to_vec();
            reference_rope(&mut y, &positions, heads, &table);
            inner(&y, &dy)
        });
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_batch() {
        let (t, heads, d, table) = (400, 3, 20, table(10, 400));
        let positions: Vec<u32> = (0..t as u32).collect();
        let x = random(t * heads * d, 1);
        let all = |threads| {
            with_threads(threads, || {
                let mut y = x.clone();
                rope(&mut y, &positions, heads, &table);
                y
            })
        };
        let one = all(1);
        assert_same_bits(&one, &all(3), "threads");
        let own = 399 * heads * d..400 * heads * d;
        let mut alone = x[own.clone()].to_vec();
        rope(&mut alone, &[399], heads, &table);
        assert_same_bits(&alone, &one[own], "row alone");
    }

    #[test]
    #[should_panic(expected = "position 4 is not below 4")]
    fn a_position_past_the_table_is_refused() {
        rope(&mut [0.0; 2], &[4], 1, &RopeTable::new(&[1.0], 4));
    }
}
