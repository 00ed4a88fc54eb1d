//! `metier export`: an adapter in a form for other tools, checked by reading it back.

use crate::cli::ExportArgs;
use crate::exit;
use crate::resolve::{Adapter, Base};
use anyhow::{Context, Result, bail};
use model::{
    AdapterSet, Batch, Decoder, KvCache, LoadOptions, LoraAdapter, Memory, Segment, WeightDtype,
};
use std::path::Path;
use std::process::ExitCode;

/// Largest logit difference allowed, relative to the largest logit: f32 files must agree almost
/// exactly; a merged model is rounded to bf16 (8 bits of mantissa, error below 2^-9 per weight).
const PEFT_BOUND: f32 = 1e-5;
const MERGED_BOUND: f32 = 5e-2;

pub(super) fn run(args: &ExportArgs) -> Result<ExitCode> {
    let base = Base::load(&args.base)?;
    let adapter = Adapter::load("adapter", &args.adapter, &base)?;
    if args.out.exists() {
        bail!("{}: already exists\nhint: choose another --out, or delete it", args.out.display());
    }
    // Built beside and renamed, so that nothing half-made or wrong is ever left at --out.
    let parent = args.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).with_context(|| format!("{}", parent.display()))?;
    let beside = tempfile::tempdir_in(parent).with_context(|| format!("{}", parent.display()))?;
    let dir = beside.path().join("export");
    let reference = probe(&base.decoder, Some(&adapter.lora))?;
    let (ours, bound) = match args.format.as_str() {
        "peft" => {
            adapter.lora.save(&dir, &base.name, base.decoder.digest()?, &[])?;
            let reloaded = LoraAdapter::load(&dir, &base.decoder)?;
            (probe(&base.decoder, Some(&reloaded))?, PEFT_BOUND)
        }
        _ => {
            let merged = base.decoder.merge(&adapter.lora)?;
            merged.save(&dir, WeightDtype::Bf16)?;
            for file in train::tokenizer_files(&base.dir) {
                std::fs::copy(&file, dir.join(file.file_name().unwrap_or_default()))?;
            }
            let reloaded = Decoder::load(&dir, &LoadOptions::default())?;
            (probe(&reloaded, None)?, MERGED_BOUND)
        }
    };
    model::write_atomic(
        &dir.join(train::CHAT_TEMPLATE_FILE),
        adapter.template.source().as_bytes(),
    )?;
    let scale = reference.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    let difference =
        reference.iter().zip(&ours).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale;
    if difference.is_nan() || difference > bound {
        bail!(
            "the exported model differs: largest logit difference {difference:.2e}, allowed {bound:.0e}; nothing was written"
        );
    }
    std::fs::rename(&dir, &args.out).with_context(|| format!("{}", args.out.display()))?;
    println!(
        "wrote {} ({}); read back: largest logit difference {difference:.2e} of the largest logit (allowed {bound:.0e})",
        args.out.display(),
        args.format
    );
    Ok(exit::done())
}

/// Logits of a fixed sequence that walks the vocabulary.
fn probe(decoder: &Decoder, adapter: Option<&LoraAdapter>) -> Result<Vec<f32>> {
    let config = decoder.config();
    let len = config.max_position_embeddings.min(64);
    let mut adapters = AdapterSet::new();
    let slot = adapter.map(|a| adapters.insert("adapter", a, config)).transpose()?;
    let blocks = len.div_ceil(model::BLOCK_SIZE);
    let mut cache = KvCache::new(config, blocks);
    let batch = Batch {
        tokens: (0..len).map(|i| (i * 7919 % config.vocab_size) as u32).collect(),
        segments: vec![Segment {
            len,
            pages: (0..blocks as u32).collect(),
            adapter: slot,
            ..Segment::default()
        }],
        logit_rows: (0..len).collect(),
    };
    let hidden = decoder.forward(&batch, &adapters, Memory::Cache(&mut cache))?;
    Ok(decoder.logits(&hidden))
}
