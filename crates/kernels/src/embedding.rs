//! Token embedding: a gather of table rows, and its backward, a scatter-add.

use crate::packed::PackedMatrix;
use crate::vector::{SharedOutput, rows_per_task};
use rayon::prelude::*;

/// out[T,H] = row `ids[t]` of `table` [V,H] for each t.
///
/// # Panics
/// When `out` is not [T,H] or an id is not below V.
pub fn embedding(out: &mut [f32], ids: &[u32], table: &PackedMatrix) {
    let h = table.k();
    check(out.len(), ids, h, table.n());
    if out.is_empty() {
        return;
    }
    let rows = rows_per_task(h);
    out.par_chunks_mut(rows * h).zip(ids.par_chunks(rows)).for_each(|(out, ids)| {
        for (out, id) in out.chunks_exact_mut(h).zip(ids) {
            table.row(*id as usize, out);
        }
    });
}

/// dtable[V,H] (row-major) += dout[T,H], row t into row `ids[t]`.
///
/// Split over columns: each element is added to in the order of t, whatever the threads.
///
/// # Panics
/// When `dout` is not [T,H], `dtable` is not whole rows of `h`, or an id is not below V.
pub fn embedding_backward(dtable: &mut [f32], ids: &[u32], dout: &[f32], h: usize) {
    assert!(
        if h == 0 { dtable.is_empty() } else { dtable.len().is_multiple_of(h) },
        "embedding: dtable of {} values is not whole rows of {h}",
        dtable.len()
    );
    check(dout.len(), ids, h, dtable.len() / h.max(1));
    let columns = 128;
    let out = SharedOutput::new(dtable);
    (0..h.div_ceil(columns)).into_par_iter().for_each(|block| {
        let start = block * columns;
        let width = columns.min(h - start);
        for (id, dout) in ids.iter().zip(dout.chunks_exact(h)) {
            // SAFETY: id < V and start + width <= h (see check), so the slice lies in dtable; no
            // other task touches these columns, and the slice ends before the next one is made.
            let row =
                unsafe { std::slice::from_raw_parts_mut(out.at(*id as usize * h + start), width) };
            for (sum, d) in row.iter_mut().zip(&dout[start..start + width]) {
                *sum += d;
            }
        }
    });
}

/// Plain [`embedding`], from a row-major table [V,H].
pub fn reference_embedding(out: &mut [f32], ids: &[u32], table: &[f32], h: usize) {
    for (out, id) in out.chunks_exact_mut(h.max(1)).zip(ids) {
        out.copy_from_slice(&table[*id as usize * h..(*id as usize + 1) * h]);
    }
}

/// Plain [`embedding_backward`].
pub fn reference_embedding_backward(dtable: &mut [f32], ids: &[u32], dout: &[f32], h: usize) {
    for (id, dout) in ids.iter().zip(dout.chunks_exact(h.max(1))) {
        for i in 0..h {
            dtable[*id as usize * h + i] += dout[i];
        }
    }
}

fn check(rows: usize, ids: &[u32], h: usize, v: usize) {
    assert_eq!(rows, ids.len() * h, "embedding: {rows} values are not [{}, {h}]", ids.len());
    for id in ids {
        assert!((*id as usize) < v, "embedding: id {id} is not below {v}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::testing::*;
    use half::bf16;

    #[test]
    fn gather_equals_the_reference() {
        for (v, h, t) in [(1, 1, 3), (7, 5, 4), (33, 64, 10), (50, 130, 300)] {
            let ids: Vec<u32> = (0..t as u32).map(|i| i * 5 % v as u32).collect();
            let table = random(v * h, 1);
            let (mut out, mut expected) = (vec![0.0; t * h], vec![0.0; t * h]);
            embedding(&mut out, &ids, &PackedMatrix::from_f32(&table, v, h));
            reference_embedding(&mut expected, &ids, &table, h);
            assert_same_bits(&out, &expected, "f32");

            let narrow: Vec<bf16> = table.iter().map(|x| bf16::from_f32(*x)).collect();
            let widened: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
            embedding(&mut out, &ids, &PackedMatrix::from_bf16(&narrow, v, h));
            reference_embedding(&mut expected, &ids, &widened, h);
            assert_same_bits(&out, &expected, "bf16");
        }
    }

    #[test]
    fn scatter_equals_the_reference_with_any_threads() {
        for (v, h, t) in [(1, 1, 3), (7, 5, 4), (3, 300, 50)] {
            // Few ids, many rows: every id repeats.
            let ids: Vec<u32> = (0..t as u32).map(|i| i * i % v as u32).collect();
            let dout = random(t * h, 2);
            let mut expected = random(v * h, 3);
            let start = expected.clone();
            reference_embedding_backward(&mut expected, &ids, &dout, h);
            for threads in [1, 3] {
                let mut found = start.clone();
                with_threads(threads, || embedding_backward(&mut found, &ids, &dout, h));
                assert_same_bits(&found, &expected, "dtable");
            }
        }
    }

    #[test]
    fn gradient_is_the_slope() {
        let (v, h, ids) = (4, 3, [2, 0, 2]);
        let (table, dout) = (random(v * h, 1), random(3 * h, 2));
        let mut dtable = vec![0.0; v * h];
        embedding_backward(&mut dtable, &ids, &dout, h);
        assert_gradient(&table, &dtable, 1e-3, "dtable", |table| {
            let mut out = vec![0.0; 3 * h];
            embedding(&mut out, &ids, &PackedMatrix::from_f32(table, v, h));
            inner(&out, &dout)
        });
    }

    #[test]
    #[should_panic(expected = "id 4 is not below 4")]
    fn an_id_past_the_table_is_refused() {
        embedding_backward(&mut [0.0; 8], &[4], &[0.0; 2], 2);
    }
}
