//! Times attention forward and backward: 4 segments of 512 tokens, 4 query heads over 2 key/value
//! heads of 64. `cargo run --release -p kernels --example attention_bench`
//!
//! A multiply-add counts two operations, and only pairs of query and key that the causal mask lets
//! through count: 4·D per pair forward (scores, values), 10·D backward (scores anew, dP, dQ, dK,
//! dV).
//!
//! Decoding is timed with pages that stay in a cache, and, as it is done, over as many layers as do not.

use kernels::{
    AttnRule, AttnSegment, BLOCK_SIZE, KvDtype, KvPages, KvStore, attention, attention_backward,
    write_kv,
};
use std::time::Instant;

fn main() {
    let (count, length, q_heads, kv_heads, d) = (4, 512, 4, 2, 64);
    let tokens = count * length;
    let values =
        |n: usize, step: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * step).sin()).collect() };
    let q = values(tokens * q_heads * d, 0.37);
    let dout = values(tokens * q_heads * d, 0.53);
    let k = values(tokens * kv_heads * d, 0.71);
    let v = values(tokens * kv_heads * d, 0.91);
    let page_ids: Vec<u32> = (0..tokens.div_ceil(BLOCK_SIZE) as u32).collect();
    let segments: Vec<AttnSegment> = page_ids
        .chunks(length / BLOCK_SIZE)
        .enumerate()
        .map(|(i, pages)| AttnSegment { rows: i * length..(i + 1) * length, past: 0, pages })
        .collect();
    let pairs = (count * q_heads * length * (length + 1) / 2) as f64;

    let one: Vec<AttnSegment> = segments
        .iter()
        .enumerate()
        .map(|(i, s)| AttnSegment { rows: i..i + 1, past: length - 1, pages: s.pages })
        .collect();
    let rule = AttnRule::full(0.125);
    for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Q8] {
        let mut k_pages = KvStore::new(dtype, tokens * kv_heads * d, d);
        let mut v_pages = k_pages.clone();
        report(&format!("{dtype:?} write_kv"), None, || {
            write_kv(&mut k_pages, &mut v_pages, &k, &v, &segments, kv_heads, d);
        });
        let pages = KvPages { k: &k_pages, v: &v_pages, kv_heads, head_dim: d };
        let mut out = vec![0.0; q.len()];
        report(&format!("{dtype:?} forward"), Some(pairs * 4.0 * d as f64), || {
            attention(&mut out, &q, pages, &segments, q_heads, rule);
        });
        let (first, out) = (&q[..count * q_heads * d], &mut out[..count * q_heads * d]);
        let operations = count * q_heads * length * 4 * d;
        report(&format!("{dtype:?} decode"), Some(operations as f64), || {
            attention(out, first, pages, &one, q_heads, rule);
        });
        let layers = vec![(k_pages.clone(), v_pages.clone()); 64];
        report(&format!("{dtype:?} decode, 64 layers"), Some(64.0 * operations as f64), || {
            for (k, v) in &layers {
                let pages = KvPages { k, v, kv_heads, head_dim: d };
                attention(out, first, pages, &one, q_heads, rule);
            }
        });
        if dtype == KvDtype::F32 {
            let (mut dq, mut dk, mut dv) =
                (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; k.len()]);
            report("F32 backward", Some(pairs * 10.0 * d as f64), || {
                let (dq, dk, dv) = (&mut dq, &mut dk, &mut dv);
                attention_backward(dq, dk, dv, &dout, &q, pages, &segments, q_heads, rule);
            });
        }
    }
}

/// Prints the best of some runs: the others were disturbed.
fn report(what: &str, operations: Option<f64>, mut run: impl FnMut()) {
    run();
    let best = (0..30)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    let rate = operations.map_or(String::new(), |n| format!(", {:.1} GFLOP/s", n / best / 1e9));
    println!("{what}: {:.3} ms{rate}", best * 1e3);
}
