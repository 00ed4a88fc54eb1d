//! Times the adapters of a decoding step beside the base (Q8_0 or bf16): sixteen rows, up to sixteen
//! adapters of rank 16 in bf16, the shapes of SmolLM2-135M.
//! `cargo run --release -p kernels --example lora_bench [bf16]`
//!
//! Every layer has matrices of its own, so they come from memory as in a real step.

use half::bf16;
use kernels::{Dtype, LoraRef, PackedMatrix, in_pool, matmul_lora};
use std::time::Instant;

const LAYERS: usize = 30;
const ROWS: usize = 16;
const RANK: usize = 16;
/// (N, K) of a layer's matrices.
const SHAPES: [(usize, usize); 7] =
    [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];

fn main() {
    let dtype = match std::env::args().nth(1).as_deref() {
        None | Some("q8_0") => Dtype::Q8_0,
        Some("bf16") => Dtype::Bf16,
        Some(other) => panic!("found {other}, expected q8_0 or bf16"),
    };
    let base: Vec<Vec<PackedMatrix>> = (0..LAYERS)
        .map(|_| {
            SHAPES
                .iter()
                .map(|&(n, k)| {
                    let rows = |i: usize, out: &mut [f32]| {
                        out.iter_mut().enumerate().for_each(|(j, x)| *x = value(i * k + j));
                    };
                    PackedMatrix::from_rows(dtype, n, k, rows)
                })
                .collect()
        })
        .collect();
    let x: Vec<f32> = (0..ROWS * 1536).map(value).collect();
    let mut y = vec![0.0; ROWS * 1536];
    for adapters in [0, 1, 2, 4, 8, 16] {
        let packed: Vec<Vec<Vec<[PackedMatrix; 2]>>> = (0..adapters)
            .map(|_| (0..LAYERS).map(|_| SHAPES.map(pair).into_iter().collect()).collect())
            .collect();
        let mut step = || {
            for layer in 0..LAYERS {
                for (module, &(n, k)) in SHAPES.iter().enumerate() {
                    let (y, x) = (&mut y[..ROWS * n], &x[..ROWS * k]);
                    let each = ROWS / adapters.max(1);
                    let groups: Vec<_> = (packed.iter().enumerate())
                        .map(|(i, adapter)| {
                            let [a, b] = &adapter[layer][module];
                            (i * each..(i + 1) * each, LoraRef { a, b, scale: 0.5 })
                        })
                        .collect();
                    matmul_lora(y, x, &base[layer][module], ROWS, false, &groups);
                }
            }
        };
        let best = in_pool(|| {
            (0..20)
                .map(|_| {
                    let start = Instant::now();
                    step();
                    start.elapsed().as_secs_f64()
                })
                .fold(f64::INFINITY, f64::min)
        });
        println!("{adapters} adapters: {:.2} ms", best * 1e3);
    }
}

fn pair((n, k): (usize, usize)) -> [PackedMatrix; 2] {
    let values = |len: usize| -> Vec<bf16> { (0..len).map(|i| bf16::from_f32(value(i))).collect() };
    [
        PackedMatrix::from_bf16(&values(RANK * k), RANK, k),
        PackedMatrix::from_bf16(&values(n * RANK), n, RANK),
    ]
}

fn value(i: usize) -> f32 {
    ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0
}
