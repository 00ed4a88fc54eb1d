//! `--format peft`: the adapter alone, in the form that every reader of plain LoRA adapters takes.

use super::check::Bounds;
use super::{Export, Format, Reloaded, Written};
use anyhow::{Context, Result};
use model::{LoraAdapter, PORTABLE_RANKS};
use std::path::Path;

pub(super) const FORMAT: Format = Format {
    name: "peft",
    holds: "a LoRA adapter in PEFT's format",
    of_adapter: true,
    write,
    usage,
};

/// The same numbers, in the same type.
const BOUNDS: Bounds = Bounds { logits: 1e-5, loss: 1e-5, kl: 1e-6 };

fn write(export: &Export<'_>, dir: &Path) -> Result<Written> {
    let (base, lora) = (&export.base, export.lora().context("--adapter")?);
    lora.portable(&PORTABLE_RANKS).save(dir, &base.name, base.decoder.digest()?, &[])?;
    let template = dir.join(train::CHAT_TEMPLATE_FILE);
    model::write_atomic(&template, export.template().source().as_bytes())?;
    if let Some(manifest) = &export.manifest {
        let json = serde_json::to_vec_pretty(manifest)?;
        model::write_atomic(&dir.join(train::MANIFEST_FILE), &json)?;
    }
    let reloaded = LoraAdapter::load(dir, &base.decoder)?;
    Ok(Written { reloaded: Reloaded::Adapter(Box::new(reloaded)), bounds: BOUNDS })
}

fn usage(export: &Export<'_>) -> Vec<(&'static str, String)> {
    crate::card::adapter_usage(&export.base.name, &export.args.out)
}
