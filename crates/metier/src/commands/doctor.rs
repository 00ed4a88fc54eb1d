//! `metier doctor`: this machine, what fits on it, and how fast it will be.

use crate::assets;
use crate::cli::DoctorArgs;
use crate::exit;
use crate::hub;
use crate::machine::{self, ROOFLINE_BYTES, Roofline};
use crate::resolve::{NANO, model_dir};
use anyhow::Result;
use comfy_table::{Table, presets};
use indicatif::BinaryBytes;
use serde::Serialize;
use std::process::ExitCode;

/// Sizes of open models that a small firm would pick, in parameters.
const SIZES: [(&str, f64); 6] = [
    ("135M", 0.135e9),
    ("0.5B", 0.5e9),
    ("1B", 1.24e9),
    ("3B", 3.2e9),
    ("8B", 8.0e9),
    ("14B", 14.8e9),
];
/// Bytes of a weight as published (bf16).
const BF16: f64 = 2.0;
/// Room for program, KV cache and activations beside the weights, as a share of them.
const OVERHEAD: f64 = 0.15;

pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let machine = machine::detect();
    let available = machine::available_bytes();
    // Half of what is free at most: the check must not push a small machine into swapping.
    let bytes = match available {
        0 => ROOFLINE_BYTES,
        free => ROOFLINE_BYTES.min(free as usize / 2),
    };
    let roofline = Roofline::measure(bytes);
    let rows = rows(args, available as f64, &roofline)?;
    let problems = problems();
    if args.json {
        println!(
            "{}",
            serde_json::json!({"machine": machine, "available_bytes": available,
                "roofline": roofline, "models": rows, "problems": problems})
        );
    } else {
        println!(
            "processor     {}, {} cores, {} threads used",
            machine.cpu, machine.cores, machine.threads
        );
        println!("instructions  {}", machine.instructions);
        println!(
            "memory        {} free of {}",
            BinaryBytes(available),
            BinaryBytes(machine.memory_bytes)
        );
        println!(
            "measured      {:.1} GB/s read, {:.0} GFLOP/s in f32",
            roofline.bytes_per_second / 1e9,
            roofline.flops_per_second / 1e9
        );
        println!("hub cache     {}", hub::cache().path().display());
        println!("\nAt best, with weights in bf16 (`metier bench` measures what is reached):");
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "model",
            "memory",
            "fits",
            "decode tokens/s",
            "prefill tokens/s",
            "LoRA training tokens/s",
        ]);
        for row in &rows {
            let fits = match (available, row.fits) {
                (0, _) => "unknown",
                (_, true) => "yes",
                (_, false) => "no",
            };
            table.add_row([
                row.model.clone(),
                BinaryBytes(row.memory_bytes).to_string(),
                fits.to_owned(),
                format!("{:.1}", row.decode_tokens_per_second),
                format!("{:.0}", row.prefill_tokens_per_second),
                format!("{:.0}", row.train_tokens_per_second),
            ]);
        }
        println!("{table}");
        problems.iter().for_each(|p| println!("problem: {p}"));
    }
    Ok(if problems.is_empty() { exit::done() } else { ExitCode::from(exit::FAILED) })
}

/// What to expect of a model here: upper bounds from the measured roofline.
#[derive(Serialize)]
struct Row {
    model: String,
    memory_bytes: u64,
    fits: bool,
    decode_tokens_per_second: f64,
    prefill_tokens_per_second: f64,
    train_tokens_per_second: f64,
}

fn rows(args: &DoctorArgs, available: f64, roofline: &Roofline) -> Result<Vec<Row>> {
    let row = |model: String, parameters: f64, bytes: f64| Row {
        model,
        memory_bytes: (bytes * (1.0 + OVERHEAD)) as u64,
        fits: bytes * (1.0 + OVERHEAD) <= available,
        // Every weight is read once for a token ...
        decode_tokens_per_second: roofline.bytes_per_second / bytes,
        // ... and takes part in one multiply-add; a LoRA step does it again for the gradient of
        // the input.
        prefill_tokens_per_second: roofline.flops_per_second / (2.0 * parameters),
        train_tokens_per_second: roofline.flops_per_second / (4.0 * parameters),
    };
    if let Some(name) = &args.model {
        let summary = model::inspect(&model_dir(name)?)?;
        return Ok(vec![row(name.clone(), summary.parameters as f64, summary.bytes as f64)]);
    }
    Ok(SIZES.iter().map(|&(name, n)| row(name.to_owned(), n, n * BF16)).collect())
}

/// What would keep commands from working.
fn problems() -> Vec<String> {
    let unpacked = assets::unpack(NANO).and_then(|dir| Ok(model::inspect(&dir).map(|_| ())?));
    unpacked.err().map(|e| format!("the bundled model cannot be used: {e:#}")).into_iter().collect()
}
