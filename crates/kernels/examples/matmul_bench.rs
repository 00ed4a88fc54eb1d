//! Speed of the matrix products: GFLOP/s for the shapes of a small model, and the bandwidth at
//! which decoding one token streams weights. Run with
//! `cargo run --release -p kernels --example matmul_bench`, with names of formats after ` -- ` to
//! measure only these.

use half::bf16;
use kernels::{Dtype, PackedMatrix, matmul, matmul_dw, matmul_dx};
use std::hint::black_box;
use std::time::Instant;

fn main() {
    println!("instruction set: {}", kernels::Level::detect().name());
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        match pool {
            Ok(pool) => pool.install(|| measure(threads)),
            Err(error) => eprintln!("cannot start {threads} threads: {error}"),
        }
    }
}

fn measure(threads: usize) {
    println!("\nthreads {threads}: GFLOP/s at T=2048 and T=64, GB/s of weights at T=1");
    println!(
        "{:>6} {:>6} {:>5} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "N", "K", "dtype", "forward", "dx", "dw", "fwd T64", "fwd T4", "T1 GB/s"
    );
    for (n, k) in [(256, 256), (704, 256), (256, 704), (4096, 256), (2048, 2048), (8, 256)] {
        let t = 2048;
        let weight = values(n * k);
        let narrow: Vec<bf16> = weight.iter().map(|&v| bf16::from_f32(v)).collect();
        let (x, dy) = (values(t * k), values(t * n));
        let (mut y, mut dx, mut dw) = (vec![0.0; t * n], vec![0.0; t * k], vec![0.0; n * k]);
        let flop = |t: usize| (2 * t * n * k) as f64;
        let rows = |i: usize, values: &mut [f32]| values.copy_from_slice(&weight[i * k..][..k]);
        let mut weights = vec![
            ("f32", PackedMatrix::from_f32(&weight, n, k)),
            ("bf16", PackedMatrix::from_bf16(&narrow, n, k)),
        ];
        for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K, Dtype::Q6K, Dtype::Nf4] {
            if dtype.row_bytes(k).is_some() {
                weights.push((dtype.name(), PackedMatrix::from_rows(dtype, n, k, rows)));
            }
        }
        let asked: Vec<String> = std::env::args().skip(1).collect();
        weights.retain(|(name, _)| asked.is_empty() || asked.iter().any(|a| a == name));
        for (name, w) in weights {
            let forward = seconds(|| matmul(&mut y, &x, &w, t, false));
            let back = seconds(|| matmul_dx(&mut dx, &dy, &w, t, false));
            let weights = seconds(|| matmul_dw(&mut dw, &dy, &x, t, n, k));
            let some = seconds(|| matmul(&mut y[..64 * n], &x[..64 * k], &w, 64, false));
            let few = seconds(|| matmul(&mut y[..4 * n], &x[..4 * k], &w, 4, false));
            let one = seconds(|| matmul(&mut y[..n], &x[..k], &w, 1, false));
            println!(
                "{n:>6} {k:>6} {name:>5} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1}",
                flop(t) / forward / 1e9,
                flop(t) / back / 1e9,
                flop(t) / weights / 1e9,
                flop(64) / some / 1e9,
                flop(4) / few / 1e9,
                w.bytes() as f64 / one / 1e9,
            );
        }
        black_box((&y, &dx, &dw));
    }
}

/// The best time of several runs: other work on the machine only ever adds.
fn seconds(mut run: impl FnMut()) -> f64 {
    run();
    let mut best = f64::INFINITY;
    let start = Instant::now();
    let mut runs = 0;
    while runs < 3 || start.elapsed().as_millis() < 100 {
        let once = Instant::now();
        run();
        best = best.min(once.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn values(len: usize) -> Vec<f32> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}
