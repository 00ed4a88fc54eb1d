//! `--format gguf-lora`: the adapter alone, for llama.cpp's `--lora`.

use super::check::Bounds;
use super::{Export, Format, Reloaded, Written};
use anyhow::{Context, Result};
use model::LoraAdapter;
use std::path::Path;

pub(super) const FORMAT: Format = Format {
    name: "gguf-lora",
    holds: "a LoRA adapter as a GGUF file",
    of_adapter: true,
    write,
    usage,
};

const FILE: &str = "adapter.gguf";
/// The same numbers, in the same type.
const BOUNDS: Bounds = Bounds { logits: 1e-5, loss: 1e-5, kl: 1e-6 };

fn write(export: &Export<'_>, dir: &Path) -> Result<Written> {
    let (base, lora) = (&export.base, export.lora().context("--adapter")?);
    let path = dir.join(FILE);
    let config = base.decoder.config();
    lora.save_gguf(&path, config, super::gguf::general(&base.short_name()))?;
    let reloaded = LoraAdapter::load_gguf(&path, lora, config)?;
    Ok(Written { reloaded: Reloaded::Adapter(Box::new(reloaded)), bounds: BOUNDS })
}

fn usage(export: &Export<'_>) -> Vec<(&'static str, String)> {
    let base = crate::card::short(&export.base.name);
    vec![(
        "llama.cpp",
        format!(
            "llama-cli -m BASE.gguf --lora {FILE} --jinja -cnv\n\
             # BASE.gguf: metier export --base {base} --format gguf --dtype q8_0 --out base"
        ),
    )]
}
