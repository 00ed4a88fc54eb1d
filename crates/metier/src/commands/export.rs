//! `metier export`: a model or an adapter in a form for other tools, checked by reading it back.

use crate::cli::{ExportArgs, WeightArgs};
use crate::exit;
use crate::resolve::{Adapter, Base, load_decoder};
use anyhow::{Context, Result, bail};
use model::gguf::{Array, GGUF_DTYPES, Value};
use model::{
    AdapterSet, Batch, Decoder, GgufFile, KvCache, LoraAdapter, Memory, Segment, WeightDtype,
};
use std::path::Path;
use std::process::ExitCode;
use text::ChatTemplate;

/// Largest logit difference allowed, relative to the largest logit: f32 files must agree almost
/// exactly; a merged model is rounded to bf16 (8 bits of mantissa, error below 2^-9 per weight).
const PEFT_BOUND: f32 = 1e-5;
const MERGED_BOUND: f32 = 5e-2;
/// The same for the formats of a GGUF file: what their rounding does to small models, times a few. A
/// wrong conversion is off by the size of the logits themselves.
const GGUF_BOUNDS: [(&str, f32); 6] =
    [("f32", 1e-5), ("f16", 2e-2), ("q8_0", 1e-1), ("q6_k", 2e-1), ("q4_k", 6e-1), ("q4_0", 6e-1)];

pub(super) fn run(args: &ExportArgs) -> Result<ExitCode> {
    if matches!(args.format.as_str(), "peft" | "gguf-lora") && args.adapter.is_none() {
        bail!("--format {} writes an adapter\nhint: name it with --adapter", args.format);
    }
    let base = Base::load(&args.base, WeightArgs::default())?;
    let adapter = match &args.adapter {
        Some(dir) => Some(Adapter::load("adapter", dir, &base)?),
        None => None,
    };
    if args.out.exists() {
        bail!("{}: already exists\nhint: choose another --out, or delete it", args.out.display());
    }
    // Built beside and renamed, so that nothing half-made or wrong is ever left at --out.
    let parent = args.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).with_context(|| format!("{}", parent.display()))?;
    let beside = tempfile::tempdir_in(parent).with_context(|| format!("{}", parent.display()))?;
    let dir = beside.path().join("export");
    std::fs::create_dir(&dir).with_context(|| format!("{}", dir.display()))?;
    let lora = adapter.as_ref().map(|a| &a.lora);
    let template = adapter.as_ref().map_or(&base.template, |a| &a.template);
    let (ours, bound) = match (args.format.as_str(), lora) {
        ("peft", Some(lora)) => {
            lora.save(&dir, &base.name, base.decoder.digest()?, &[])?;
            let reloaded = LoraAdapter::load(&dir, &base.decoder)?;
            (probe(&base.decoder, Some(&reloaded))?, PEFT_BOUND)
        }
        ("gguf-lora", Some(lora)) => {
            let path = dir.join("adapter.gguf");
            lora.save_gguf(&path, base.decoder.config(), general(&base.short_name()))?;
            let reloaded = LoraAdapter::load_gguf(&path, lora, base.decoder.config())?;
            (probe(&base.decoder, Some(&reloaded))?, PEFT_BOUND)
        }
        ("gguf", lora) => {
            let merged = lora.map(|lora| base.decoder.merge(lora)).transpose()?;
            let (path, bound) = write_gguf(args, &base, merged.as_ref(), template, &dir)?;
            (probe(&load_decoder(&path, WeightDtype::AsPublished)?, None)?, bound)
        }
        (_, lora) => {
            let merged = lora.map(|lora| base.decoder.merge(lora)).transpose()?;
            merged.as_ref().unwrap_or(&base.decoder).save(&dir, WeightDtype::Bf16)?;
            for file in train::tokenizer_files(&base.dir) {
                std::fs::copy(&file, dir.join(file.file_name().unwrap_or_default()))?;
            }
            (probe(&load_decoder(&dir, WeightDtype::AsPublished)?, None)?, MERGED_BOUND)
        }
    };
    if matches!(args.format.as_str(), "peft" | "merged") {
        let path = dir.join(train::CHAT_TEMPLATE_FILE);
        model::write_atomic(&path, template.source().as_bytes())?;
    }
    let reference = probe(&base.decoder, lora)?;
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

/// Writes `merged`, or the base itself, as one GGUF file with tokenizer and chat template, and checks
/// that the file's tokenizer is there to the last token.
fn write_gguf(
    args: &ExportArgs,
    base: &Base,
    merged: Option<&Decoder>,
    template: &ChatTemplate,
    dir: &Path,
) -> Result<(std::path::PathBuf, f32)> {
    let (dtype, _) = *GGUF_DTYPES
        .iter()
        .find(|(dtype, _)| dtype.name() == args.dtype)
        .with_context(|| format!("--dtype {}: not a format of GGUF files", args.dtype))?;
    let bound = GGUF_BOUNDS.iter().find(|(name, _)| *name == args.dtype);
    let bound = bound.with_context(|| format!("--dtype {}", args.dtype))?.1;
    let model = merged.unwrap_or(&base.decoder);
    let rows = model.config().vocab_size;
    let tokens = base.tokenizer.to_gguf(rows)?;
    let mut entries = general(&base.short_name());
    let license = base.license();
    if !license.starts_with("unknown") {
        entries.push(("general.license".into(), Value::String(license)));
    }
    let mut add = |key: &str, value: Option<Value>| {
        entries.extend(value.map(|value| (format!("tokenizer.{key}"), value)));
    };
    let id = |id: Option<u32>| id.map(Value::U32);
    add("ggml.model", Some(Value::String(tokens.model.into())));
    add("ggml.pre", Some(Value::String(tokens.pre.into())));
    add("ggml.tokens", Some(Value::Array(Array::String(tokens.tokens.clone()))));
    add("ggml.scores", tokens.scores.map(|x| Value::Array(Array::F32(x))));
    add("ggml.token_type", Some(Value::Array(Array::I32(tokens.types))));
    add("ggml.merges", tokens.merges.map(|x| Value::Array(Array::String(x))));
    add("ggml.bos_token_id", id(tokens.bos_id));
    add("ggml.eos_token_id", id(tokens.eos_id));
    add("ggml.eot_token_id", id(tokens.eot_id));
    add("ggml.unknown_token_id", id(tokens.unknown_id));
    add("ggml.add_bos_token", Some(Value::Bool(tokens.add_bos)));
    add("ggml.add_space_prefix", tokens.add_space_prefix.map(Value::Bool));
    add("chat_template", Some(Value::String(template.source().to_owned())));
    let path = dir.join(format!("model-{}.gguf", args.dtype));
    model.save_gguf(&path, dtype, entries)?;
    let file = GgufFile::open(&path)?;
    let read: &[String] = file.require("tokenizer.ggml.tokens")?;
    if read != tokens.tokens {
        bail!("{}: the tokens read back are not those written", path.display());
    }
    Ok((path, bound))
}

/// What a file says about itself.
fn general(name: &str) -> Vec<(String, Value)> {
    vec![("general.name".to_owned(), Value::String(name.to_owned()))]
}

/// Logits of a fixed sequence that walks the vocabulary.
fn probe(decoder: &Decoder, adapter: Option<&LoraAdapter>) -> Result<Vec<f32>> {
    let config = decoder.config();
    let len = config.max_position_embeddings.min(64);
    let mut adapters = AdapterSet::new();
    let slot = adapter.map(|a| adapters.insert("adapter", a, decoder)).transpose()?;
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
