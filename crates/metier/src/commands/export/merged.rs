//! `--format merged`: base and adapter in one model, bf16, in Hugging Face's form.

use super::check::Bounds;
use super::{Export, Format, Reloaded, Written};
use crate::resolve::load_decoder;
use anyhow::{Context, Result};
use model::{Merged, WeightDtype};
use std::path::Path;

pub(super) const FORMAT: Format = Format {
    name: "merged",
    holds: "a whole model in Hugging Face's form, bf16",
    of_adapter: false,
    write,
    usage,
};

/// bf16 has 8 bits of mantissa: each weight is off by 2^-9 of itself at most.
const BOUNDS: Bounds = Bounds { logits: 5e-2, loss: 1e-2, kl: 2e-3 };

fn write(export: &Export<'_>, dir: &Path) -> Result<Written> {
    let base = &export.base;
    let merged = Merged::new(&base.decoder, export.lora())?;
    merged.save(dir, WeightDtype::Bf16, export.args.max_shard_size)?;
    for file in train::tokenizer_files(&base.dir) {
        let to = dir.join(file.file_name().unwrap_or_default());
        std::fs::copy(&file, &to).with_context(|| to.display().to_string())?;
    }
    let template = dir.join(train::CHAT_TEMPLATE_FILE);
    model::write_atomic(&template, export.template().source().as_bytes())?;
    let reloaded = load_decoder(dir, WeightDtype::AsPublished)?;
    Ok(Written { reloaded: Reloaded::Model(Box::new(reloaded)), bounds: BOUNDS })
}

fn usage(export: &Export<'_>) -> Vec<(&'static str, String)> {
    crate::card::model_usage(&export.args.out)
}
