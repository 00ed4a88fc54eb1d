//! From what the user named to what runs: models, adapters, engines.

use crate::cli::WeightArgs;
use crate::hub::HubId;
use crate::{assets, laid_out, text_source};
use anyhow::{Context, Result, bail};
use engine::{DraftModel, Engine, EngineOptions};
use model::{
    Decoder, DecoderConfig, KvCache, LoadOptions, LoraAdapter, PackedAdapter, WeightDtype,
};
use serve::{LoadedAdapter, Proven};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use text::{ChatTemplate, Tokenizer};

/// The name of the bundled base.
pub(crate) const NANO: &str = "nano";

/// A base model with its text side.
pub(crate) struct Base {
    /// As the user named it.
    pub(crate) name: String,
    /// Where its files are.
    pub(crate) dir: PathBuf,
    /// The weights.
    pub(crate) decoder: Arc<Decoder>,
    /// Its tokenizer.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Its chat template, or the plain one.
    pub(crate) template: ChatTemplate,
}

impl Base {
    /// Loads a base by name: a folder, a GGUF file, or `nano`; its weights are held as `weights`
    /// says.
    pub(crate) fn load(name: &str, weights: WeightArgs) -> Result<Base> {
        let dir = model_path(name)?;
        // Side by side: a vocabulary of 128,000 pieces takes about as long as a gigabyte of weights.
        let (decoder, text) = std::thread::scope(|scope| {
            let text = scope.spawn(|| text_source::load(&dir));
            let decoder = load_decoder(&dir, weights.dtype.unwrap_or_default());
            (decoder, text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let decoder = decoder?;
        let (tokenizer, template) = fit_text(text?, decoder.config())?;
        Ok(Base { name: name.to_owned(), dir, decoder: Arc::new(decoder), tokenizer, template })
    }

    /// Name for requests and reports: the last part of a path.
    pub(crate) fn short_name(&self) -> String {
        short_name(&self.name)
    }

    /// Licence as the model's card states it.
    pub(crate) fn license(&self) -> String {
        license_of(&self.dir)
    }
}

/// The last part of a model's path, or its whole name.
pub(crate) fn short_name(name: &str) -> String {
    Path::new(name)
        .file_name()
        .map_or_else(|| name.to_owned(), |n| n.to_string_lossy().into_owned())
}

/// Where a model is: the folder, or the GGUF file, that the user named.
pub(crate) fn model_path(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if name != NANO && path.is_file() && path.extension().is_some_and(|end| end == "gguf") {
        return Ok(path);
    }
    model_dir(name)
}

/// The folder of a model as the user named it.
pub(crate) fn model_dir(name: &str) -> Result<PathBuf> {
    // A folder that happens to have this name is reached as ./nano.
    if name == NANO {
        return assets::unpack(NANO);
    }
    let dir = PathBuf::from(name);
    if dir.is_dir() {
        return Ok(dir);
    }
    if dir.is_file() {
        bail!(
            "{name}: expected a model folder, found a file\nhint: give the folder with config.json, tokenizer.json and *.safetensors"
        );
    }
    let Some(id) = HubId::parse(name) else {
        bail!(
            "{name}: no such model\nhint: give a folder with config.json, tokenizer.json and *.safetensors, a model of \
             the Hugging Face Hub as ORG/NAME, or \"{NANO}\" for the bundled one"
        );
    };
    id.snapshot().with_context(|| {
        format!("{name}: no such folder, and not pulled yet\nhint: `metier pull {name}` fetches it from the Hugging Face Hub")
    })
}

/// Tokenizer and chat template of a model (see [`text_source::load`]), checked against its
/// vocabulary.
pub(crate) fn load_text(
    model: &Path,
    config: &DecoderConfig,
) -> Result<(Arc<Tokenizer>, ChatTemplate)> {
    fit_text(text_source::load(model)?, config)
}

fn fit_text(
    (mut tokenizer, template): (Tokenizer, Option<ChatTemplate>),
    config: &DecoderConfig,
) -> Result<(Arc<Tokenizer>, ChatTemplate)> {
    tokenizer.check_vocab(config.vocab_size)?;
    let template = template.unwrap_or_else(ChatTemplate::plain);
    if let Some(id) = template.turn_end(&tokenizer) {
        tokenizer.add_stop_id(id);
    }
    Ok((Arc::new(tokenizer), template))
}

/// An adapter with the template it was trained with.
pub(crate) struct Adapter {
    /// Name for requests and reports.
    pub(crate) name: String,
    /// The parameters.
    pub(crate) lora: LoraAdapter,
    /// The template stored with it, or the base's.
    pub(crate) template: ChatTemplate,
}

impl Adapter {
    /// Loads an adapter folder for `base`.
    pub(crate) fn load(name: &str, dir: &Path, base: &Base) -> Result<Adapter> {
        if !dir.is_dir() {
            bail!(
                "{}: no such adapter folder\nhint: it is what `metier train --out` wrote",
                dir.display()
            );
        }
        check_manifest(dir, base)?;
        let lora = LoraAdapter::load(dir, &base.decoder)?;
        let template = match dir.join(train::CHAT_TEMPLATE_FILE).is_file() {
            true => ChatTemplate::from_dir(dir)?.unwrap_or_else(|| base.template.clone()),
            false => base.template.clone(),
        };
        Ok(Adapter { name: name.to_owned(), lora, template })
    }

    /// The adapter in the form that is served, after a probe that it acts, with what is known of its worth.
    pub(crate) fn to_serve(&self, base: &Base, proven: Proven) -> Result<LoadedAdapter> {
        let packed = PackedAdapter::new(&self.name, &self.lora, &base.decoder)?;
        Ok(LoadedAdapter {
            packed: packed.probe(&base.decoder)?,
            digest: self.lora.digest(),
            template: self.template.clone(),
            stop_ids: self.template.stop_ids(&base.tokenizer),
            proven,
        })
    }
}

/// The manifest in the folder of an adapter; None where Metier did not train it.
pub(crate) fn manifest(dir: &Path) -> Result<Option<train::Manifest>> {
    /// Manifests are a few kilobytes; their plan holds no lists without end.
    const MOST_BYTES: u64 = 16 << 20;
    let path = dir.join(train::MANIFEST_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let size = std::fs::metadata(&path).with_context(|| path.display().to_string())?.len();
    if size > MOST_BYTES {
        bail!("{}: found {size} bytes, expected at most {MOST_BYTES}", path.display());
    }
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let manifest = serde_json::from_slice(&text)
        .with_context(|| format!("{}: not a manifest of Metier", path.display()))?;
    Ok(Some(manifest))
}

/// An adapter that Metier trained names the base and the tokenizer it was trained with.
fn check_manifest(dir: &Path, base: &Base) -> Result<()> {
    let Some(manifest) = manifest(dir)? else { return Ok(()) };
    if manifest.tokenizer_sha256 != base.tokenizer.sha256() {
        bail!(
            "adapter {}: was trained with another tokenizer than {} has\n\
             hint: use the base it was trained on ({})",
            dir.display(),
            base.name,
            manifest.base_name
        );
    }
    let ours = base.decoder.digest()?;
    if !manifest.base_sha256.is_empty() && manifest.base_sha256 != ours {
        bail!(
            "adapter {}: was trained on another base: its manifest names {}, {} has {}\n\
             hint: use the base it was trained on ({})",
            dir.display(),
            manifest.base_sha256,
            base.name,
            ours,
            manifest.base_name
        );
    }
    Ok(())
}

/// A context that any model must be able to hold, whatever room the cache is given, tokens.
const ORDINARY_CONTEXT: usize = 8192;

/// Pages of a cache of `kv_bytes` at most.
pub(crate) fn num_blocks(
    config: &DecoderConfig,
    kv_bytes: usize,
    options: &EngineOptions,
) -> usize {
    let per_block = KvCache::bytes_per_block(config, options.kv_cache_dtype);
    // One sequence of the full context fits, where that is a context of ordinary length: the pages of
    // a very long one, which config.json only claims, would not be there when they are needed.
    let whole = config.max_position_embeddings.div_ceil(model::BLOCK_SIZE) + 1;
    let least = whole.min(ORDINARY_CONTEXT / model::BLOCK_SIZE + 1);
    let most = whole * options.max_num_seqs;
    (kv_bytes / per_block).clamp(least, most)
}

/// An engine on `base` with `adapters` in slots, and `kv_bytes` for its cache at most: as `options` say
/// but for their number of pages.
pub(crate) fn engine(
    base: &Base,
    adapters: &[&Adapter],
    kv_bytes: usize,
    options: EngineOptions,
) -> Result<(Engine, Vec<usize>)> {
    let num_blocks = num_blocks(base.decoder.config(), kv_bytes, &options);
    let options = EngineOptions { num_blocks, ..options };
    let mut engine = Engine::new(Arc::clone(&base.decoder), options)?;
    let mut slots = Vec::new();
    for adapter in adapters {
        slots.push(
            engine
                .adapters_mut()
                .insert(&adapter.name, &adapter.lora, &base.decoder)
                .with_context(|| format!("loading the adapter \"{}\"", adapter.name))?,
        );
    }
    Ok((engine, slots))
}

/// The model `name` as one that guesses for `base`, with as many pages as its engine has.
pub(crate) fn draft_model(name: &str, base: &Base, options: EngineOptions) -> Result<DraftModel> {
    let draft = Base::load(name, WeightArgs::default())
        .with_context(|| format!("loading the draft model {name}"))?;
    let (ours, its) = (&base.tokenizer, &draft.tokenizer);
    let differs = |id: &u32| {
        let (one, other) = (ours.token(*id), its.token(*id));
        one.is_some() && other.is_some() && one != other
    };
    if let Some(id) = (0..=ours.max_id().min(its.max_id())).find(differs) {
        bail!(
            "--draft-model {name}: token {id} is {:?} in it and {:?} in {}; it must have the same \
             tokenizer\nhint: take a smaller model of the same family",
            its.token(id).unwrap_or_default(),
            ours.token(id).unwrap_or_default(),
            base.name
        );
    }
    Ok(DraftModel::new(draft.decoder, options.num_blocks, options.kv_cache_dtype))
}

/// The licence that the model folder's card (`README.md`) states.
pub(crate) fn license_of(dir: &Path) -> String {
    data::license_of(dir)
        .unwrap_or_else(|| "unknown (the model folder has no card that states it)".into())
}

/// Loads weights and says, where the user asked for a type or it is no plain one, how they are held:
/// a matrix whose rows are not whole blocks of a format stays as published.
pub(crate) fn load_decoder(path: &Path, dtype: WeightDtype) -> Result<Decoder> {
    let decoder = laid_out::load(path, &LoadOptions { dtype })?;
    let held = decoder.held();
    let total: usize = held.iter().map(|(_, count)| count).sum();
    let asked = dtype != WeightDtype::AsPublished;
    if asked || held.iter().any(|(dtype, _)| dtype.is_quantised()) {
        let parts: Vec<String> = held
            .iter()
            .map(|(dtype, n)| {
                format!("{} {:.0}%", dtype.name(), 100.0 * *n as f64 / total.max(1) as f64)
            })
            .collect();
        let mib = decoder.weight_bytes() as f64 / f64::from(1 << 20);
        let line = format!("weights in memory: {} ({mib:.1} MiB)", parts.join(", "));
        match asked {
            true => eprintln!("{line}"),
            false => tracing::info!("{line}"),
        }
    }
    Ok(decoder)
}
