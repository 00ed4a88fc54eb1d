//! Time of the parts of a training step: forward, head and backward, for each way to keep
//! activations. For work on the kernels; `metier bench train` measures whole steps.
//!
//! `cargo run --release -p model --example step_bench -- MODEL [ROWS [LENGTH [RANK]]]`

use model::{
    AdapterSet, Batch, Decoder, Grads, LoadOptions, LoraAdapter, LoraConfig, Memory, Segment, Tape,
    TapeMode,
};
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let model = args.first().ok_or("usage: step_bench MODEL [ROWS [LENGTH [RANK]]]")?;
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse());
    let (rows, length, r) = (number(1, 4)?, number(2, 512)?, number(3, 16)?);
    let decoder = Decoder::load(&PathBuf::from(model), &LoadOptions::default())?;
    let config = LoraConfig { r, ..LoraConfig::default() };
    let adapter = LoraAdapter::init(&config, &decoder, 1)?;
    let mut adapters = AdapterSet::new();
    let slot = adapters.insert("adapter", &adapter, &decoder)?;
    let vocab = decoder.config().vocab_size;
    let batch = Batch {
        tokens: (0..rows * length).map(|i| ((i * 7919) % vocab) as u32).collect(),
        segments: vec![Segment { len: length, adapter: Some(slot), ..Segment::default() }; rows],
        logit_rows: (0..rows * length).collect(),
    };
    let targets: Vec<i32> = batch.tokens.iter().map(|&t| (t as i32 + 1) % vocab as i32).collect();
    for mode in [TapeMode::Recompute, TapeMode::KeepBf16, TapeMode::Keep] {
        let mut tape = Tape::new(decoder.config(), mode);
        let mut grads = Grads::for_adapter(slot, adapter.params.len());
        // The first step warms up.
        for step in 0..2 {
            let start = Instant::now();
            let hidden = decoder.forward(&batch, &adapters, Memory::Tape(&mut tape))?;
            let forward = start.elapsed().as_secs_f64();
            let mut losses = vec![0.0; targets.len()];
            let dhidden = decoder.head_backward(&hidden, 128, &mut grads, &mut |rows, logits| {
                let weight = 1.0 / targets.len() as f32;
                let losses = &mut losses[rows.clone()];
                model::cross_entropy_backward_inplace(logits, &targets[rows], weight, losses);
            });
            let head = start.elapsed().as_secs_f64() - forward;
            decoder.backward(&batch, &adapters, &mut tape, &dhidden, &mut grads)?;
            let all = start.elapsed().as_secs_f64();
            if step > 0 {
                println!(
                    "{mode:?}: forward {forward:.2} s, head {head:.2} s, backward {:.2} s: {:.1} tokens/s",
                    all - forward - head,
                    (rows * length) as f64 / all,
                );
            }
        }
    }
    Ok(())
}
