//! `metier pull`: a model from the Hugging Face Hub into the cache that other tools share.

use crate::cli::PullArgs;
use crate::exit;
use crate::hub::{self, HubId};
use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiError, ApiRepo};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use model::{DecoderConfig, EncoderConfig, ModelError, is_encoder};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn run(args: &PullArgs) -> Result<ExitCode> {
    let Some(id) = HubId::parse(&args.model) else {
        bail!(
            "{}: expected ORG/NAME or ORG/NAME@REVISION, as the Hub's address shows it",
            args.model
        );
    };
    let info = Info::ask(&id)?;
    let files = info.wanted(&args.file)?;
    let total: u64 = files.iter().map(|f| f.bytes()).sum();
    let licence = info.licence();
    eprintln!("{} at {}", id.name, info.sha);
    eprintln!("licence: {licence} (as the model's card states it)");
    eprintln!("{} files, {}", files.len(), HumanBytes(total));

    // All files from one commit, also when the branch moves meanwhile.
    let pinned = id.at(&info.sha);
    let repo = hub::api()?.repo(pinned.repo());
    let folder = pinned.folder();
    let snapshot = folder.join("snapshots").join(&info.sha);
    let bar = ProgressBar::new(total);
    bar.set_style(ProgressStyle::with_template(
        "{msg} {wide_bar:.cyan/dim} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
    )?);
    let mut done = 0;
    for file in &files {
        bar.set_message(file.rfilename.clone());
        let path = snapshot.join(&file.rfilename);
        if !std::fs::metadata(&path).is_ok_and(|m| m.len() == file.bytes()) {
            let progress = FileProgress { bar: bar.clone(), before: done, seen: 0 };
            repo.download_with_progress(&file.rfilename, progress)
                .map_err(|e| explain(e, &id, &file.rfilename))?;
            verify(&path, file)?;
        }
        done += file.bytes();
        bar.set_position(done);
        // Gigabytes of weights come after it: refuse a model that cannot run before they do.
        if file.rfilename == "config.json" {
            check_config(&snapshot)
                .context("this model cannot be used; its weights were not fetched")?;
        }
    }
    bar.finish_and_clear();
    hub::cache().repo(id.repo()).create_ref(&info.sha)?;
    if id.revision != info.sha {
        // The client keeps a reference for the revision it was asked for; a commit needs none.
        let _ = std::fs::remove_file(folder.join("refs").join(&info.sha));
    }
    if args.json {
        let names: Vec<&str> = files.iter().map(|f| f.rfilename.as_str()).collect();
        println!(
            "{}",
            serde_json::json!({"model": id.name, "revision": id.revision, "commit": info.sha,
                "path": snapshot, "license": licence, "files": names, "bytes": total})
        );
        return Ok(exit::done());
    }
    println!("{}", snapshot.display());
    if args.file.is_empty() {
        match is_encoder(&snapshot)? {
            true => eprintln!("next: metier embed --model {} < texts.txt", args.model),
            false => eprintln!("next: metier generate --model {} --prompt \"Hello\"", args.model),
        }
    }
    Ok(exit::done())
}

/// Whether the model whose config.json is in `dir` can be used.
fn check_config(dir: &Path) -> Result<(), ModelError> {
    match is_encoder(dir)? {
        true => EncoderConfig::load(dir).map(drop),
        false => DecoderConfig::load(dir).map(drop),
    }
}

/// What the Hub says about a model.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<RepoFile>,
    #[serde(default, rename = "cardData")]
    card: Option<serde_json::Value>,
}

/// A file of the repository.
#[derive(Deserialize)]
struct RepoFile {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

/// A large file's real digest and size.
#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl RepoFile {
    fn bytes(&self) -> u64 {
        self.lfs.as_ref().map(|l| l.size).or(self.size).unwrap_or(0)
    }
}

impl Info {
    fn ask(id: &HubId) -> Result<Info> {
        let repo: ApiRepo = hub::api()?.repo(id.repo());
        let mut response = repo
            .info_request()
            .query("blobs", "true")
            .call()
            .map_err(|e| explain(ApiError::from(Box::new(e)), id, "the list of files"))?;
        let text = response.body_mut().read_to_string().context("reading the Hub's answer")?;
        let info: Info = serde_json::from_str(&text).with_context(|| {
            format!("{}: the Hub's answer is not a model's description", id.name)
        })?;
        let commit = info.sha.len() == 40 && info.sha.bytes().all(|b| b.is_ascii_hexdigit());
        if !commit {
            bail!(
                "{}: the Hub names the commit \"{}\", expected 40 hexadecimal digits",
                id.name,
                info.sha
            );
        }
        for file in &info.siblings {
            hub::check_file_name(&file.rfilename)?;
        }
        Ok(info)
    }

    /// The files that a model needs, config.json first and the weights last; or the named ones.
    fn wanted(&self, named: &[String]) -> Result<Vec<&RepoFile>> {
        if !named.is_empty() {
            let find = |name: &String| {
                let file = self.siblings.iter().find(|f| f.rfilename == *name);
                file.with_context(|| format!("{name}: no such file in this repository"))
            };
            return named.iter().map(find).collect();
        }
        let has = |name: &str| self.siblings.iter().any(|f| f.rfilename == name);
        let published = has("model.safetensors") || has("model.safetensors.index.json");
        let mut files: Vec<&RepoFile> =
            self.siblings.iter().filter(|f| is_wanted(&f.rfilename, published)).collect();
        let is_weights = |f: &&RepoFile| f.rfilename.ends_with(".safetensors");
        if !has("config.json") || !files.iter().any(is_weights) {
            let gguf: Vec<&str> = self
                .siblings
                .iter()
                .map(|f| f.rfilename.as_str())
                .filter(|n| n.ends_with(".gguf"))
                .collect();
            let hint = match gguf.is_empty() {
                true => "choose a repository with config.json and *.safetensors (pickled .bin files are never opened)".to_owned(),
                false => format!("pick one of its GGUF files with --file: {}", gguf.join(", ")),
            };
            bail!("this repository holds no model in safetensors\nhint: {hint}");
        }
        files.sort_by_key(|f| (f.rfilename != "config.json", is_weights(f), f.rfilename.clone()));
        Ok(files)
    }

    fn licence(&self) -> String {
        let field = |name: &str| self.card.as_ref()?.get(name)?.as_str().map(str::to_owned);
        match (field("license"), field("license_name").or(field("license_link"))) {
            (Some(id), Some(name)) if id == "other" => name,
            (Some(id), _) => id,
            (None, _) => "not stated: ask its makers before you use it".to_owned(),
        }
    }
}

/// Config, tokenizer, template, card, and safetensors weights at the root, and what is said of
/// embeddings. Where the weights are
/// published under Hugging Face's names, others (consolidated.safetensors) are the same again.
fn is_wanted(name: &str, published: bool) -> bool {
    const TEXT: [&str; 12] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "README.md",
    ];
    const EMBEDDINGS: [&str; 4] = [
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
    ];
    let weights = name.ends_with(".safetensors") && (!published || name.starts_with("model"));
    let root = !name.contains('/');
    let licence = name.to_ascii_uppercase().starts_with("LICENSE");
    let index = name == "model.safetensors.index.json";
    let root = root
        && (TEXT.contains(&name) || weights || index || licence || name.ends_with(".tiktoken"));
    root || EMBEDDINGS.contains(&name)
}

/// Moves one bar over all files.
struct FileProgress {
    bar: ProgressBar,
    before: u64,
    seen: u64,
}

impl Progress for FileProgress {
    fn init(&mut self, _size: usize, _name: &str) {
        self.seen = 0;
    }
    fn update(&mut self, size: usize) {
        self.seen += size as u64;
        self.bar.set_position(self.before + self.seen);
    }
    fn finish(&mut self) {}
}

/// Compares what arrived with what the Hub announced; a wrong file is deleted, so that the next
/// pull fetches it anew.
fn verify(path: &Path, file: &RepoFile) -> Result<()> {
    let wrong = |what: String| -> Result<()> {
        if let Ok(blob) = std::fs::canonicalize(path) {
            let _ = std::fs::remove_file(blob);
        }
        let _ = std::fs::remove_file(path);
        bail!("{}: {what}; it was deleted\nhint: pull again", file.rfilename)
    };
    let mut reader = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let length = reader.metadata()?.len();
    if length != file.bytes() {
        return wrong(format!("{length} bytes arrived, the Hub announced {}", file.bytes()));
    }
    let Some(lfs) = &file.lfs else { return Ok(()) };
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    let found: String = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if found != lfs.sha256 {
        return wrong(format!("its SHA-256 is {found}, the Hub announced {}", lfs.sha256));
    }
    Ok(())
}

/// The Hub's refusals in words that say what to do.
fn explain(error: ApiError, id: &HubId, what: &str) -> anyhow::Error {
    let status = match &error {
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        _ => None,
    };
    let name = &id.name;
    match status {
        Some(401 | 403) => anyhow!(
            "{name}: the Hub does not give {what} to you: the model is gated or private, or the name is wrong\n\
             hint: open https://huggingface.co/{name}, accept its terms, then put an access token into HF_TOKEN \
             (or run `hf auth login`)"
        ),
        Some(404) => anyhow!(
            "{name}@{}: the Hub has no {what} there\nhint: check the name and the revision at https://huggingface.co/{name}",
            id.revision
        ),
        Some(429) => anyhow!(
            "{name}: the Hub asks to wait (too many requests)\nhint: pull again in some minutes; it goes on where it stopped"
        ),
        _ => anyhow!(error).context(format!(
            "{name}: {what} could not be fetched\nhint: pull again; it goes on where it stopped"
        )),
    }
}
