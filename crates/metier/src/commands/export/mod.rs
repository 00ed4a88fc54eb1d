//! `metier export`: a model or an adapter in a form for other tools, checked by reading it back. One
//! format is one file here and one line in [`FORMATS`].

mod check;
mod gguf;
mod gguf_lora;
mod merged;
mod ollama;
mod peft;
mod staging;

use crate::card::{self, Card};
use crate::cli::{ExportArgs, WeightArgs};
use crate::exit;
use crate::licences;
use crate::resolve::{Adapter, Base};
use ::train::{MANIFEST_FILE, Manifest};
use anyhow::{Context, Result, bail};
use check::{Bounds, Difference, Sample, Side};
use model::{Decoder, LoraAdapter};
use staging::Staging;
use std::path::Path;
use std::process::ExitCode;
use text::ChatTemplate;

/// A format that can be written.
pub(crate) struct Format {
    /// What `--format` calls it.
    pub(crate) name: &'static str,
    /// What is written, for people.
    pub(crate) holds: &'static str,
    /// Whether it is about an adapter and nothing else.
    of_adapter: bool,
    /// Writes it into an empty folder and reads it back.
    write: fn(&Export<'_>, &Path) -> Result<Written>,
    /// How other tools take it.
    usage: fn(&Export<'_>) -> Vec<(&'static str, String)>,
}

/// Every format, one line each.
pub(crate) const FORMATS: &[Format] =
    &[peft::FORMAT, merged::FORMAT, gguf::FORMAT, gguf_lora::FORMAT, ollama::FORMAT];

/// What is to be written.
struct Export<'a> {
    args: &'a ExportArgs,
    base: Base,
    adapter: Option<Adapter>,
    /// Where the adapter comes from, where Metier trained it.
    manifest: Option<Manifest>,
}

impl Export<'_> {
    fn lora(&self) -> Option<&LoraAdapter> {
        self.adapter.as_ref().map(|a| &a.lora)
    }

    fn template(&self) -> &ChatTemplate {
        self.adapter.as_ref().map_or(&self.base.template, |a| &a.template)
    }

    /// Licence of the base: as its files state it, or as it was stated when the adapter was trained.
    fn licence(&self) -> String {
        let stated = self.base.license();
        match &self.manifest {
            Some(m) if stated.starts_with("unknown") && !m.base_licence.is_empty() => {
                m.base_licence.clone()
            }
            _ => stated,
        }
    }

    /// The base's own licence files, which must go where its weights go.
    fn licence_files(&self) -> Vec<std::path::PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(&self.base.dir)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
                let begins = ["license", "licence", "notice", "use_policy", "copying"];
                path.is_file() && begins.iter().any(|b| name.starts_with(b))
            })
            .collect();
        files.sort();
        files
    }
}

/// What was written, read back.
struct Written {
    reloaded: Reloaded,
    bounds: Bounds,
}

enum Reloaded {
    Adapter(Box<LoraAdapter>),
    Model(Box<Decoder>),
}

pub(super) fn run(args: &ExportArgs) -> Result<ExitCode> {
    let format = FORMATS.iter().find(|f| f.name == args.format).context("--format")?;
    if format.of_adapter && args.adapter.is_none() {
        bail!("--format {} writes an adapter\nhint: name it with --adapter", args.format);
    }
    if args.out.exists() {
        bail!("{}: already exists\nhint: choose another --out, or delete it", args.out.display());
    }
    let base = Base::load(&args.base, WeightArgs::default())?;
    let adapter = match &args.adapter {
        Some(dir) => Some(Adapter::load("adapter", dir, &base)?),
        None => None,
    };
    let manifest = args.adapter.as_ref().map(|dir| read_manifest(dir)).transpose()?.flatten();
    let export = Export { args, base, adapter, manifest };
    let sample = Sample::read(args, &export)?;
    let staging = Staging::new(&args.out)?;
    let written = (format.write)(&export, staging.dir())?;
    let difference = measure(&export, &written.reloaded, &sample)?;
    if let Some(problem) = difference.beyond(&written.bounds) {
        bail!("the exported model differs: {problem}; nothing was written");
    }
    // Files of a model that is written anew; an adapter's folder holds nothing of the base.
    if !format.of_adapter {
        copy_licences(&export, staging.dir())?;
    }
    write_card(&export, format, &difference, &sample, staging.dir())?;
    staging.publish(&args.out)?;
    print(args, format, &difference, &written.bounds, &sample);
    Ok(exit::done())
}

fn measure(export: &Export<'_>, reloaded: &Reloaded, sample: &Sample) -> Result<Difference> {
    let decoder = &export.base.decoder;
    let ours = Side::new(decoder, export.lora())?;
    let theirs = match reloaded {
        Reloaded::Adapter(lora) => Side::new(decoder, Some(lora))?,
        Reloaded::Model(decoder) => Side::new(decoder, None)?,
    };
    check::compare(&ours, &theirs, sample)
}

fn read_manifest(dir: &Path) -> Result<Option<Manifest>> {
    let path = dir.join(MANIFEST_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let manifest = serde_json::from_slice(&bytes)
        .with_context(|| format!("{}: not a manifest of Metier", path.display()))?;
    Ok(Some(manifest))
}

/// Licence files of the base, and the notice that its licence wants.
fn copy_licences(export: &Export<'_>, dir: &Path) -> Result<()> {
    let files = export.licence_files();
    for file in &files {
        let to = dir.join(file.file_name().unwrap_or_default());
        std::fs::copy(file, &to).with_context(|| to.display().to_string())?;
    }
    let there = |file: &std::path::PathBuf| {
        file.file_name().unwrap_or_default().to_string_lossy().to_lowercase().starts_with("notice")
    };
    let notice = licences::find(&export.licence()).and_then(|l| l.notice);
    if let Some(notice) = notice.filter(|_| !files.iter().any(there)) {
        model::write_atomic(&dir.join("Notice"), format!("{notice}\n").as_bytes())?;
    }
    Ok(())
}

fn write_card(
    export: &Export<'_>,
    format: &Format,
    difference: &Difference,
    sample: &Sample,
    dir: &Path,
) -> Result<()> {
    let card = Card {
        title: card::title(&export.args.out),
        what: format.holds,
        base_name: &export.base.name,
        base_licence: export.licence(),
        adapter: export.adapter.is_some(),
        manifest: export.manifest.as_ref(),
        usage: (format.usage)(export),
        checked: Some(difference.sentence(sample)),
    };
    model::write_atomic(&dir.join(card::FILE), card.render().as_bytes())?;
    Ok(())
}

fn print(
    args: &ExportArgs,
    format: &Format,
    difference: &Difference,
    bounds: &Bounds,
    sample: &Sample,
) {
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "out": args.out, "format": format.name, "compared_on": sample.what,
                "logit_difference": difference.logits, "allowed_logit_difference": bounds.logits,
                "loss_before": difference.loss_before, "loss_after": difference.loss_after,
                "allowed_loss_difference": bounds.loss,
                "kl": difference.kl, "allowed_kl": bounds.kl,
                "compared_tokens": difference.tokens,
            })
        );
        return;
    }
    println!("wrote {} ({})", args.out.display(), format.name);
    println!(
        "read back: largest logit difference {:.2e} of the largest logit (allowed {:.0e})",
        difference.logits, bounds.logits
    );
    println!(
        "on {}: loss {:.4} -> {:.4} nats per token (allowed difference {}), KL {:.2e} (allowed {:.0e}), {} tokens",
        sample.what,
        difference.loss_before,
        difference.loss_after,
        bounds.loss,
        difference.kl,
        bounds.kl,
        difference.tokens
    );
}
