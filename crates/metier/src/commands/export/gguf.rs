//! `--format gguf`: base and adapter in one file for llama.cpp, tokenizer and chat template with it.

use super::check::Bounds;
use super::{Export, Format, Reloaded, Written};
use crate::licences;
use crate::resolve::load_decoder;
use anyhow::{Context, Result, bail};
use model::gguf::{Array, GGUF_DTYPES, Value};
use model::{GgufFile, Merged, WeightDtype};
use std::path::Path;

pub(super) const FORMAT: Format =
    Format { name: "gguf", holds: "a whole model as a GGUF file", of_adapter: false, write, usage };

/// What the rounding of each format does to small models, times a few. A wrong conversion is off by the
/// size of the logits themselves.
const BOUNDS: [(&str, Bounds); 6] = [
    ("f32", Bounds { logits: 1e-5, loss: 1e-5, kl: 1e-6 }),
    ("f16", Bounds { logits: 1e-2, loss: 5e-3, kl: 5e-4 }),
    ("q8_0", Bounds { logits: 1e-1, loss: 3e-2, kl: 1e-2 }),
    ("q6_k", Bounds { logits: 2e-1, loss: 5e-2, kl: 3e-2 }),
    ("q4_k", Bounds { logits: 6e-1, loss: 3e-1, kl: 3e-1 }),
    ("q4_0", Bounds { logits: 6e-1, loss: 5e-1, kl: 5e-1 }),
];

fn write(export: &Export<'_>, dir: &Path) -> Result<Written> {
    write_file(export, &dir.join(file_name(export)), None)
}

/// Name of the file in the folder.
pub(super) fn file_name(export: &Export<'_>) -> String {
    format!("model-{}.gguf", export.args.dtype)
}

/// Writes the file and reads it back, tokens included. `add_bos` says whether whoever turns text into
/// tokens puts the beginning-of-sequence token in front; None leaves it to the tokenizer.
pub(super) fn write_file(
    export: &Export<'_>,
    path: &Path,
    add_bos: Option<bool>,
) -> Result<Written> {
    let (args, base) = (export.args, &export.base);
    let (dtype, _) = *GGUF_DTYPES
        .iter()
        .find(|(dtype, _)| dtype.name() == args.dtype)
        .with_context(|| format!("--dtype {}: not a format of GGUF files", args.dtype))?;
    let bounds = BOUNDS.iter().find(|(name, _)| *name == args.dtype);
    let bounds = bounds.with_context(|| format!("--dtype {}", args.dtype))?.1;
    let tokens = base.tokenizer.to_gguf(base.decoder.config().vocab_size)?;
    let mut entries = general(&base.short_name());
    let licence = export.licence();
    if !licence.starts_with("unknown") {
        let id = licences::find(&licence).map_or(licence, |l| l.id.to_owned());
        entries.push(("general.license".into(), Value::String(id)));
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
    add("ggml.add_bos_token", Some(Value::Bool(add_bos.unwrap_or(tokens.add_bos))));
    add("ggml.add_space_prefix", tokens.add_space_prefix.map(Value::Bool));
    add("chat_template", Some(Value::String(export.template().source().to_owned())));
    Merged::new(&base.decoder, export.lora())?.save_gguf(path, dtype, entries)?;
    let file = GgufFile::open(path)?;
    let read: &[String] = file.require("tokenizer.ggml.tokens")?;
    if read != tokens.tokens {
        bail!("{}: the tokens read back are not those written", path.display());
    }
    let reloaded = load_decoder(path, WeightDtype::AsPublished)?;
    Ok(Written { reloaded: Reloaded::Model(Box::new(reloaded)), bounds })
}

/// What a file says about itself.
pub(super) fn general(name: &str) -> Vec<(String, Value)> {
    vec![("general.name".to_owned(), Value::String(name.to_owned()))]
}

fn usage(export: &Export<'_>) -> Vec<(&'static str, String)> {
    crate::card::gguf_usage(&file_name(export))
}
