//! `--format ollama`: a folder for `ollama create`: the model as a GGUF file, and a Modelfile with the
//! chat template in Go's template language, the stop texts and the licence.

use super::{Export, Format, Written, gguf};
use crate::licences;
use anyhow::{Context, Result, bail};
use std::path::Path;

pub(super) const FORMAT: Format = Format {
    name: "ollama",
    holds: "a whole model as a GGUF file, with a Modelfile for Ollama",
    of_adapter: false,
    write,
    usage,
};

const MODELFILE: &str = "Modelfile";
/// Largest licence file that goes into the Modelfile, bytes.
const LICENCE_BYTES: u64 = 1 << 20;

fn write(export: &Export<'_>, dir: &Path) -> Result<Written> {
    let file = gguf::file_name(export);
    // First: it is refused in a moment, where writing takes minutes.
    let modelfile = modelfile(export, &file)?;
    // The template writes the beginning-of-sequence token where it has one; Ollama must not add one.
    let written = gguf::write_file(export, &dir.join(file), Some(false))?;
    model::write_atomic(&dir.join(MODELFILE), modelfile.as_bytes())?;
    Ok(written)
}

/// FROM, TEMPLATE, PARAMETER stop and LICENSE.
fn modelfile(export: &Export<'_>, file: &str) -> Result<String> {
    let (base, template) = (&export.base, export.template());
    // Without TEMPLATE, Ollama takes the nearest of its own templates, or none at all, and says
    // nothing: the model would be asked what it was not trained to answer.
    let go = template.clone().at(::train::TRAINING_CLOCK).to_go(&base.tokenizer).context(
        "--format ollama\nhint: --format gguf keeps the chat template as it is, for llama.cpp (llama-server --jinja)",
    )?;
    let mut text = format!("# {}\nFROM ./{file}\n", crate::card::title(&export.args.out));
    for note in go.notes() {
        text.push_str(&format!("# Note: {note}.\n"));
        eprintln!("note: {note}");
    }
    text.push_str(&format!("TEMPLATE \"\"\"{}\"\"\"\n", go.source()));
    for id in template.stop_ids(&base.tokenizer) {
        let stop = base.tokenizer.token(id).with_context(|| format!("token {id}"))?;
        if stop.contains('"') || stop.contains('\n') {
            bail!("the stop token {stop:?} cannot be written into a Modelfile");
        }
        text.push_str(&format!("PARAMETER stop \"{stop}\"\n"));
    }
    text.push_str(&format!("LICENSE \"\"\"{}\"\"\"\n", licence(export)));
    Ok(text)
}

/// The base's licence file where it has one, else what is known of the licence.
fn licence(export: &Export<'_>) -> String {
    let small = |path: &std::path::PathBuf| {
        std::fs::metadata(path).is_ok_and(|meta| meta.len() <= LICENCE_BYTES)
    };
    let name = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        name.starts_with("license") || name.starts_with("licence") || name.starts_with("copying")
    };
    let files = export.licence_files();
    let text = files
        .iter()
        .filter(|path| name(path) && small(path))
        .find_map(|path| std::fs::read_to_string(path).ok())
        .filter(|text| !text.contains("\"\"\""));
    if let Some(text) = text {
        return text;
    }
    let stated = export.licence();
    let known = licences::find(&stated);
    let mut lines = vec![match known {
        Some(licence) => format!("The base model's licence: {}", licence.name),
        None => format!("The base model's licence: {stated}"),
    }];
    lines.extend(known.and_then(|l| l.notice).map(str::to_owned));
    lines.join("\n").replace("\"\"\"", "\"")
}

fn usage(export: &Export<'_>) -> Vec<(&'static str, String)> {
    let name = crate::card::title(&export.args.out).to_lowercase();
    let create = format!("ollama create {name} -f {MODELFILE}\nollama run {name}");
    let mut usage = vec![("Ollama, in this folder", create)];
    usage.extend(crate::card::gguf_usage(&gguf::file_name(export)));
    usage
}
