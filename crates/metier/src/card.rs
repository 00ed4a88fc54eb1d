//! The model card: README.md in the Hub's form, with what the manifest knows and what the licence of
//! the base asks for.

use crate::hub::HubId;
use crate::licences;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use train::{Forgetting, HeldOut, Manifest};

/// Name of the card in a model's folder.
pub(crate) const FILE: &str = "README.md";

/// What a card tells.
pub(crate) struct Card<'a> {
    /// Name of the model.
    pub(crate) title: String,
    /// What the folder holds.
    pub(crate) what: &'a str,
    /// The base as the user named it.
    pub(crate) base_name: &'a str,
    /// Its licence, as it states it.
    pub(crate) base_licence: String,
    /// Whether an adapter is in it, or is it.
    pub(crate) adapter: bool,
    /// How it was trained, where Metier trained it.
    pub(crate) manifest: Option<&'a Manifest>,
    /// Tools, and how each loads it.
    pub(crate) usage: Vec<(&'static str, String)>,
    /// What reading it back gave.
    pub(crate) checked: Option<String>,
}

impl Card<'_> {
    /// The card's text.
    pub(crate) fn render(&self) -> String {
        let mut out = self.front_matter();
        let _ = write!(out, "# {}\n\nThis is {}", self.title, self.what);
        let base = short(self.base_name);
        out.push_str(&match (self.adapter, self.manifest) {
            (_, Some(m)) => format!(": {base}, adapted with Metier {}.\n", m.metier_version),
            (true, None) => format!(": {base}, adapted elsewhere, written by Metier.\n"),
            (false, None) => format!(": {base}, written by Metier.\n"),
        });
        if let Some(manifest) = self.manifest {
            training(&mut out, manifest);
        }
        out.push_str("\n## How to load it\n");
        for (tool, code) in &self.usage {
            let _ = write!(out, "\n{tool}:\n\n```\n{code}\n```\n");
        }
        if let Some(checked) = &self.checked {
            let _ = write!(out, "\n## Checked\n\n{checked}\n");
        }
        self.licence(&mut out);
        out
    }

    fn front_matter(&self) -> String {
        // A string of JSON is one of YAML.
        let quoted = |text: &str| json!(text).to_string();
        let mut out = String::from("---\n");
        match licences::find(&self.base_licence) {
            Some(licence) => {
                let _ = writeln!(out, "license: {}", licence.id);
            }
            None => {
                let _ = writeln!(out, "license: other\nlicense_name: {}", quoted(&self.stated()));
            }
        }
        let _ = writeln!(out, "base_model: {}", quoted(&short(self.base_name)));
        let library = match self.what {
            what if what.contains("PEFT") => "peft",
            what if what.contains("GGUF") => "gguf",
            _ => "transformers",
        };
        let _ = writeln!(out, "library_name: {library}\npipeline_tag: text-generation");
        let data = self.manifest.map_or(&[][..], |m| &m.data_files);
        if !data.is_empty() {
            out.push_str("datasets:\n");
            data.iter().for_each(|file| {
                let _ = writeln!(out, "- {}", quoted(&file_name(file)));
            });
        }
        out.push_str("tags:\n- metier\n");
        if self.adapter {
            out.push_str("- lora\n");
        }
        out.push_str("---\n\n");
        out
    }

    fn stated(&self) -> String {
        let stated = self.base_licence.trim();
        if stated.is_empty() || stated.starts_with("unknown") {
            "unknown".to_owned()
        } else {
            stated.to_owned()
        }
    }

    fn licence(&self, out: &mut String) {
        out.push_str("\n## Licence\n\n");
        let base = short(self.base_name);
        match (licences::find(&self.base_licence), self.stated().as_str()) {
            (Some(licence), _) => {
                let _ = writeln!(
                    out,
                    "The base, {base}, is under the {}. Who passes on a model adapted from it:\n",
                    licence.name
                );
                if licence.obligations.is_empty() {
                    out.push_str("- need do nothing that the licence asks for.\n");
                }
                for obligation in licence.obligations {
                    let _ = writeln!(out, "- {obligation}");
                }
                if let Some(prefix) = licence.name_prefix
                    && !self.title.starts_with(prefix)
                {
                    let _ = writeln!(
                        out,
                        "\nThis folder is named {:?}: publish the model under a name that begins with {prefix:?}.",
                        self.title
                    );
                }
                out.push_str("\nThis list is a reminder; the text of the licence decides.\n");
            }
            (None, "unknown") => {
                let _ = writeln!(
                    out,
                    "The licence of the base, {base}, is unknown: its files do not state one. Find out what it \
                     asks for before you use this model or pass it on."
                );
            }
            (None, stated) => {
                let _ = writeln!(
                    out,
                    "The base, {base}, states the licence {stated:?}, whose obligations are not known here. \
                     Read it before you use this model or pass it on."
                );
            }
        }
        let data = self.manifest.map_or(&[][..], |m| &m.data_licences);
        match (self.manifest, data) {
            (Some(_), []) => out.push_str(
                "\nThe licence of the training data is unknown: it was not stated when training.\n",
            ),
            (Some(_), data) => {
                let _ = writeln!(out, "\nTraining data: {}.", data.join(", "));
            }
            (None, _) => {}
        }
        if let Some(writers) = self.manifest.map(|m| &m.generated_by).filter(|w| !w.is_empty()) {
            let _ = writeln!(
                out,
                "\nThe training data was written by {}: the provider's terms of use on training models with its \
                 output apply.",
                writers.join(", ")
            );
        }
    }
}

/// Settings of the plan that a card shows, by their names.
const SETTINGS: [&str; 20] = [
    "method",
    "objective",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "beta",
    "loss_type",
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "step_size",
    "max_length",
    "seed",
];

fn training(out: &mut String, m: &Manifest) {
    out.push_str("\n## How it was trained\n\n| | |\n|---|---|\n");
    let plan = serde_json::to_value(&m.plan).unwrap_or_default();
    let judges = !matches!(plan["objective"].as_str(), Some("sft" | "text"));
    let by_steps = plan["max_steps"] != 0;
    let adapts = plan["method"] != "full";
    for key in SETTINGS {
        let applies = match key {
            "beta" | "loss_type" => judges,
            "num_train_epochs" => !by_steps,
            "max_steps" => by_steps,
            "r" | "lora_alpha" | "lora_dropout" | "target_modules" => adapts,
            _ => true,
        };
        if !applies {
            continue;
        }
        // What is off, or does not apply, says nothing.
        let value = match plan.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => continue,
            Some(Value::Array(list)) if list.is_empty() => continue,
            Some(Value::Object(map)) if map.is_empty() => continue,
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(list)) => {
                let text = |v: &Value| v.as_str().map_or(v.to_string(), str::to_owned);
                list.iter().map(text).collect::<Vec<_>>().join(", ")
            }
            Some(Value::Number(n)) if n.is_f64() => {
                let short = n.as_f64().and_then(|x| format!("{x:.4e}").parse::<f64>().ok());
                short.map_or_else(|| n.to_string(), |x| x.to_string())
            }
            Some(other) => other.to_string(),
        };
        let _ = writeln!(out, "| {key} | {} |", value.replace('|', "\\|"));
    }
    let _ = writeln!(
        out,
        "| steps done | {} |\n| tokens read | {} |\n| tokens learnt | {} |\n| seconds | {:.0} |",
        m.steps, m.tokens, m.supervised_tokens, m.seconds
    );
    out.push_str("\n| held-out loss | step | loss |\n|---|---|---|\n");
    let mut row = |name: &str, held_out: &Option<HeldOut>| {
        if let Some(h) = held_out {
            let _ = writeln!(out, "| {name} | {} | {:.4} |", h.step, h.loss);
        }
    };
    row("before", &m.held_out_before);
    row("after", &m.held_out);
    row("lowest", &m.best);
    if m.held_out.is_none() {
        out.push_str("| not measured: no rows were held out | | |\n");
    }
    let _ = writeln!(out, "\nThe weights are those of step {}.", m.saved_step);
    if let Some(guard) = &m.guard {
        let _ = writeln!(
            out,
            "\nWhat it costs in general ability, on a text that has nothing to do with the task: {}.",
            // Where a file lies is nobody's business.
            Forgetting { text: file_name(&guard.text), ..guard.clone() }.sentence()
        );
    }
    out.push_str("\n## Where it comes from\n\n| | SHA-256 |\n|---|---|\n");
    let files: Vec<String> = m.data_files.iter().map(|f| file_name(f)).collect();
    for (what, digest) in [
        (format!("data as token ids ({})", files.join(", ")), &m.data_sha256),
        ("base, configuration and weights".to_owned(), &m.base_sha256),
        ("tokenizer".to_owned(), &m.tokenizer_sha256),
        ("chat template".to_owned(), &m.chat_template_sha256),
        ("settings".to_owned(), &m.plan_sha256),
    ] {
        if !digest.is_empty() {
            let _ = writeln!(out, "| {} | `{digest}` |", what.replace('|', "\\|"));
        }
    }
}

/// Name of a model that is written to `out`.
pub(crate) fn title(out: &Path) -> String {
    let name = std::path::absolute(out).ok().and_then(|p| p.file_name().map(|n| n.to_owned()));
    name.map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}

/// How an adapter in `dir` is loaded, seen from beside the folder.
pub(crate) fn adapter_usage(base: &str, dir: &Path) -> Vec<(&'static str, String)> {
    let (base, name) = (short(base), title(dir));
    let dir = &name;
    vec![
        (
            "PEFT",
            format!(
                "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\
                 base = AutoModelForCausalLM.from_pretrained({base:?})\nmodel = PeftModel.from_pretrained(base, \"{dir}\")"
            ),
        ),
        ("vLLM", format!("vllm serve {base} --enable-lora --lora-modules {name}={dir}")),
        (
            "llama.cpp",
            format!(
                "metier export --base {base} --adapter {dir} --format gguf-lora --out {name}-gguf-lora\n\
                 llama-cli -m BASE.gguf --lora {name}-gguf-lora/adapter.gguf --jinja -cnv"
            ),
        ),
        (
            "Ollama (takes whole models)",
            format!(
                "metier export --base {base} --adapter {dir} --format ollama --out {name}-ollama\n\
                 cd {name}-ollama && ollama create {name} -f Modelfile"
            ),
        ),
        ("Metier", format!("metier serve --model {base} --adapter {name}={dir}")),
    ]
}

/// How a whole model in Hugging Face's form is loaded, seen from beside the folder.
pub(crate) fn model_usage(dir: &Path) -> Vec<(&'static str, String)> {
    let name = title(dir);
    let dir = &name;
    vec![
        (
            "Transformers",
            format!(
                "from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained(\"{dir}\")"
            ),
        ),
        ("vLLM", format!("vllm serve {dir}")),
        (
            "llama.cpp",
            format!("metier export --base {dir} --format gguf --dtype q8_0 --out {name}-gguf"),
        ),
        (
            "Ollama",
            format!("metier export --base {dir} --format ollama --dtype q8_0 --out {name}-ollama"),
        ),
        ("Metier", format!("metier serve --model {dir}")),
    ]
}

/// How a GGUF file is loaded, seen from its folder.
pub(crate) fn gguf_usage(file: &str) -> Vec<(&'static str, String)> {
    vec![
        ("llama.cpp", format!("llama-server -m {file} --jinja\nllama-cli -m {file} --jinja -cnv")),
        ("Metier", format!("metier serve --model {file}")),
    ]
}

/// The Hub's name of a model, or the last part of a path: where a folder lies is nobody's business.
pub(crate) fn short(base: &str) -> String {
    match HubId::parse(base) {
        Some(id) if !Path::new(base).exists() => id.name,
        _ => file_name(base),
    }
}

fn file_name(path: &str) -> String {
    let name = Path::new(path).file_name();
    name.map_or_else(|| path.to_owned(), |n| n.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(title: &str, base: &str, licence: &str) -> String {
        let card = Card {
            title: title.to_owned(),
            what: "a whole model in Hugging Face's form, bf16",
            base_name: base,
            base_licence: licence.to_owned(),
            adapter: true,
            manifest: None,
            usage: model_usage(Path::new("out/x")),
            checked: None,
        };
        card.render()
    }

    #[test]
    fn obligations_are_named() {
        let check = |title: &str, licence: &str, expected: &[&str], absent: &[&str]| {
            let text = card(title, "org/base", licence);
            expected.iter().for_each(|e| assert!(text.contains(e), "{e} is not in\n{text}"));
            absent.iter().for_each(|a| assert!(!text.contains(a), "{a} is in\n{text}"));
        };
        check("x", "apache-2.0", &["license: apache-2.0\n", "Apache License 2.0"], &["other"]);
        check(
            "tickets",
            "llama3.2",
            &[
                "license: llama3.2",
                "Built with Llama",
                "begins with \"Llama\"",
                "named \"tickets\"",
            ],
            &[],
        );
        check("Llama-tickets", "llama3.2", &["Built with Llama"], &["This folder is named"]);
        check("x", "gemma", &["Gemma Terms of Use", "use restrictions"], &[]);
        check("x", "", &["license: other", "\"unknown\"", "Find out"], &[]);
        check("x", "some-own-licence", &["license_name: \"some-own-licence\"", "Read it"], &[]);
    }

    #[test]
    fn folders_of_the_user_are_not_told() {
        let text = card("x", "/home/somebody/secret/base-7b", "mit");
        assert!(text.contains("base_model: \"base-7b\"") && !text.contains("somebody"), "{text}");
        assert!(card("x", "org/base", "mit").contains("base_model: \"org/base\""));
    }
}
