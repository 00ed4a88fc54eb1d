//! Writes an adapter as Metier exports it, and Metier's logits with it, for
//! `scripts/check_peft_adapter.py` to compare with PEFT's.
//!
//! `cargo run --release -p model --example peft_logits -- BASE ADAPTER OUT` writes `OUT/adapter/` and
//! `OUT/logits.json`; then `python scripts/check_peft_adapter.py BASE OUT/adapter OUT/logits.json`.

use model::{
    AdapterSet, Batch, Decoder, LoadOptions, LoraAdapter, Memory, Segment, Tape, TapeMode,
};
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [base, adapter, out] = &args[..] else {
        return Err("usage: peft_logits BASE ADAPTER OUT".into());
    };
    let decoder = Decoder::load(base, &LoadOptions::default())?;
    let loaded = LoraAdapter::load(adapter, &decoder)?;
    loaded.save(&out.join("adapter"), &base.to_string_lossy(), decoder.digest()?, &[])?;
    let exported = LoraAdapter::load(&out.join("adapter"), &decoder)?;
    let mut adapters = AdapterSet::new();
    let slot = adapters.insert("adapter", &exported, &decoder)?;
    let vocab = decoder.config().vocab_size;
    let mut tape = Tape::new(decoder.config(), TapeMode::Recompute);
    let (mut ids, mut logits) = (Vec::new(), Vec::new());
    for (len, stride) in [(7, 3), (23, 11), (60, 29)] {
        let tokens: Vec<u32> = (0..len).map(|i| ((i * stride + 5) % vocab) as u32).collect();
        let batch = Batch {
            tokens: tokens.clone(),
            segments: vec![Segment { len, adapter: Some(slot), ..Segment::default() }],
            logit_rows: (0..len).collect(),
        };
        let hidden = decoder.forward(&batch, &adapters, Memory::Tape(&mut tape))?;
        let rows: Vec<Vec<f32>> =
            decoder.logits(&hidden).chunks_exact(vocab).map(<[f32]>::to_vec).collect();
        ids.push(tokens);
        logits.push(rows);
    }
    let json = serde_json::json!({ "ids": ids, "logits": logits });
    model::write_atomic(&out.join("logits.json"), json.to_string().as_bytes())?;
    Ok(())
}
