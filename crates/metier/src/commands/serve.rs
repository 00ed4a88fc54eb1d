//! `metier serve`: base and adapters behind an OpenAI-compatible API.

use crate::cli::{EmbeddingArgs, ServeArgs};
use crate::config::ConfigFile;
use crate::embedder::{Embedder, names_encoder};
use crate::exit;
use crate::gate;
use crate::resolve::{self, Adapter, Base, NANO};
use crate::state;
use anyhow::{Context, Result, anyhow, bail};
use engine::{EngineHandle, EngineOptions};
use indexmap::IndexMap;
use serve::{
    LoadAdapter, Proven, Reloader, RequireVerdict, ServePlan, ServedModel, Server, Store, TlsFiles,
};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use text::ChatTemplate;

/// Memory for the keys and values of a decoder that is there for embeddings alone.
const EMBEDDING_KV_BYTES: usize = 128 << 20;

pub(super) fn run(args: &ServeArgs) -> Result<ExitCode> {
    let settings = Settings::of(args);
    let config = settings.read()?;
    let plan = settings.plan(&config)?;
    let _spans = serve::export_spans().map_err(anyhow::Error::msg)?;
    // Before the model is loaded: what cannot be written to is better known at once.
    let state_dir = state::dir(&args.state)?;
    let store = Store::open(&state_dir)?;
    let start = config.serve_start()?;
    let mut typed = IndexMap::new();
    for spec in &args.adapter {
        let Some((name, dir)) =
            spec.split_once('=').filter(|(n, d)| !n.is_empty() && !d.is_empty())
        else {
            bail!("--adapter {spec}: expected NAME=FOLDER, such as tickets=out/tickets");
        };
        if typed.insert(name.to_owned(), PathBuf::from(dir)).is_some() {
            bail!("--adapter {spec}: this name is given twice");
        }
    }
    let mut adapters = start.adapters;
    adapters.extend(typed);
    let pins = [&args.pin[..], &start.pin].concat();
    if let Some(pin) = pins.iter().find(|pin| !adapters.contains_key(*pin)) {
        bail!("--pin {pin}: no adapter has this name; expected that of an --adapter");
    }
    let embedding_model = args.embedding_model.as_ref().or(start.embedding_model.as_ref());
    let draft_model = args.draft_model.as_ref().or(start.draft_model.as_ref());
    let kv_cache = args.kv_cache.or_of_file(start.kv_cache_dtype.as_deref());
    let kv_cache = kv_cache.map_err(|error| anyhow!("[serve] kv_cache_dtype: {error}"))?;
    let name = args.model.as_deref().or(config.base.model.as_deref()).unwrap_or(NANO);
    let guesses = args.num_speculative_tokens.or(start.num_speculative_tokens);
    let defaults = EngineOptions::default();
    let options = EngineOptions {
        kv_cache_dtype: kv_cache.dtype(),
        max_num_seqs: args.max_num_seqs.or(start.max_num_seqs).unwrap_or(32),
        prefix_caching: !args.no_prefix_caching && start.enable_prefix_caching.unwrap_or(true),
        num_speculative_tokens: guesses.unwrap_or(defaults.num_speculative_tokens),
        ..defaults
    };
    // The wishes are for the model that is there for embeddings, if there is one.
    let wishes = EmbeddingArgs { pooling: plan.pooling, matryoshka: plan.matryoshka };
    let (of_base, of_other) = match embedding_model {
        None => (wishes, EmbeddingArgs::default()),
        Some(_) => (EmbeddingArgs::default(), wishes),
    };
    let kv_bytes = args.kv_cache_mib.or(start.kv_cache_mib).unwrap_or(512) << 20;
    let mut digests = Vec::new();
    let server = if names_encoder(name)? {
        if let Some((name, _)) = adapters.first() {
            bail!("--adapter {name}: the base is an encoder, which takes none");
        }
        if let Some(name) = draft_model {
            bail!("--draft-model {name}: the base is an encoder, for which nothing is guessed");
        }
        let embedder = Embedder::load(name, args.weights, of_base)?;
        let served = for_embeddings(&embedder);
        digests.push((served.name.clone(), served.digest.clone()));
        let host = embedder.host(embedder.spawn(None, kv_bytes, options)?, false);
        Server::new(plan.clone(), host, vec![served], store)?
    } else {
        let base = Arc::new(Base::load(name, args.weights)?);
        let embedder = Embedder::of(&base, of_base)?;
        let served = ServedModel {
            name: base.short_name(),
            adapter: None,
            template: base.template.clone(),
            stop_ids: base.template.stop_ids(&base.tokenizer),
            digest: embedder.digest(),
        };
        digests.push((served.name.clone(), served.digest.clone()));
        let (mut engine, _) = resolve::engine(&base, &[], kv_bytes, options)?;
        if let Some(name) = draft_model {
            let draft = resolve::draft_model(name, &base, engine.options())?;
            engine = engine.with_drafter(draft);
        }
        let host = embedder.host(EngineHandle::spawn(engine)?, true);
        Server::new(plan.clone(), host, vec![served], store)?
            .with_loader(loader(base, plan.require_verdict))
    };
    let server = match embedding_model {
        None => server,
        Some(name) => {
            let embedder = Embedder::load(name, args.weights, of_other)?;
            let served = for_embeddings(&embedder);
            digests.push((served.name.clone(), served.digest.clone()));
            let host = embedder.host(embedder.spawn(None, EMBEDDING_KV_BYTES, options)?, false);
            server.with_embedder(host, served)?
        }
    };
    let mut names: Vec<String> = digests.iter().map(|(name, _)| name.clone()).collect();
    names.extend(adapters.keys().cloned());

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        for (name, dir) in adapters {
            let pinned = pins.contains(&name);
            server.add_adapter(&name, &dir, pinned).await?;
        }
        let listener = plan.bind().await.with_context(|| {
            format!(
                "cannot listen on {}:{}\nhint: choose another --port (0 takes a free one)",
                plan.host, plan.port
            )
        })?;
        let address = listener.local_addr()?;
        // Adapters have asked for it, or nobody yet. Not on the runtime, whose end would wait for it.
        std::thread::spawn(move || digests.iter().for_each(|(_, digest)| _ = digest.get()));
        let scheme = if plan.tls.is_some() { "https" } else { "http" };
        println!("serving {} on {scheme}://{address}/v1", names.join(", "));
        if !plan.host.is_loopback() {
            warn_of_strangers(&plan, &address.to_string(), state::open(&args.state)?.has_keys()?);
        }
        eprintln!(
            "Keys and usage: {}. Ctrl-C stops after the running answers.",
            state_dir.display()
        );
        let reloading = tokio::spawn(reload_at_hangup(server.reloader(), settings));
        server.run(listener, stop_signal()).await?;
        reloading.abort();
        Ok::<(), anyhow::Error>(())
    })?;
    Ok(exit::done())
}

fn warn_of_strangers(plan: &ServePlan, address: &str, keys: bool) {
    if !keys {
        eprintln!(
            "warning: anyone who reaches {address} can use these models; `metier keys create` makes a key \
             and closes them to all others, at once"
        );
    }
    if plan.tls.is_none() {
        eprintln!(
            "warning: what goes to and from {address} can be read on the way, keys too; give --tls-cert and \
             --tls-key, or put a proxy with TLS in front"
        );
    }
}

/// What is needed to resolve the plan again.
struct Settings {
    config: Option<PathBuf>,
    host: Option<String>,
    port: Option<u16>,
    tls: Option<TlsFiles>,
    adapter_dirs: Vec<PathBuf>,
    max_loaded_adapters: Option<u32>,
    adapter_memory_mib: Option<u32>,
    embedding: EmbeddingArgs,
}

impl Settings {
    fn of(args: &ServeArgs) -> Settings {
        let files = args.tls_cert.clone().zip(args.tls_key.clone());
        Settings {
            config: args.config.clone(),
            host: args.host.clone(),
            port: args.port,
            tls: files.map(|(cert, key)| TlsFiles { cert, key }),
            adapter_dirs: args.adapter_dir.clone(),
            max_loaded_adapters: args.max_loaded_adapters,
            adapter_memory_mib: args.adapter_memory_mib,
            embedding: args.embedding,
        }
    }

    fn read(&self) -> Result<ConfigFile> {
        self.config.as_deref().map_or_else(|| Ok(ConfigFile::default()), ConfigFile::read)
    }

    /// The config file's plan with the flags over it.
    fn plan(&self, config: &ConfigFile) -> Result<ServePlan> {
        let mut plan = config.serve_plan()?;
        if let Some(host) = &self.host {
            plan.host = host.parse().with_context(|| {
                format!("--host {host}: expected an IP address such as 127.0.0.1")
            })?;
        }
        plan.port = self.port.unwrap_or(plan.port);
        plan.tls = self.tls.clone().or(plan.tls);
        if !self.adapter_dirs.is_empty() {
            plan.adapter_dirs.clone_from(&self.adapter_dirs);
        }
        if let Some(most) = self.max_loaded_adapters {
            plan.max_loaded_adapters = most as usize;
        }
        if let Some(mib) = self.adapter_memory_mib {
            plan.max_adapter_bytes = (mib as usize) << 20;
        }
        plan.pooling = self.embedding.pooling.or(plan.pooling);
        plan.matryoshka |= self.embedding.matryoshka;
        Ok(plan)
    }
}

/// Reads settings and certificates again at every SIGHUP; with something wrong in them, the old ones
/// stay.
async fn reload_at_hangup(reloader: Reloader, settings: Settings) {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
        while hangup.recv().await.is_some() {
            let reloaded = settings
                .read()
                .and_then(|config| settings.plan(&config))
                .and_then(|plan| Ok(reloader.reload(plan)?));
            match reloaded {
                Ok(()) => eprintln!("settings read again"),
                Err(error) => {
                    eprintln!("settings stay as they were:");
                    exit::print_error(&error);
                }
            }
        }
    }
    #[cfg(not(unix))]
    drop((reloader, settings));
}

/// A base that is served for its embeddings alone.
fn for_embeddings(embedder: &Embedder) -> ServedModel {
    ServedModel {
        name: embedder.name.clone(),
        adapter: None,
        // It answers no conversation.
        template: ChatTemplate::plain(),
        stop_ids: Vec::new(),
        digest: embedder.digest(),
    }
}

/// Reads adapters for `base`.
fn loader(base: Arc<Base>, require_verdict: RequireVerdict) -> Arc<LoadAdapter> {
    Arc::new(move |name, folder, max_bytes| {
        let load = || {
            // The file is at least half of what it takes in memory.
            let file = folder.join("adapter_model.safetensors");
            let size = std::fs::metadata(&file).map_or(0, |m| m.len());
            if size > max_bytes as u64 {
                bail!("{}: found {size} bytes, expected at most {max_bytes}", file.display());
            }
            let adapter = Adapter::load(name, folder, &base)?;
            let proven = ask_for_verdict(&adapter, folder, &base, require_verdict)?;
            adapter.to_serve(&base, proven)
        };
        load().map_err(|error| format!("{error:#}"))
    })
}

/// Whether an adapter carries a verdict of "worth it", where the plan asks for one: refuses or marks those
/// that do not.
fn ask_for_verdict(
    adapter: &Adapter,
    folder: &Path,
    base: &Base,
    require: RequireVerdict,
) -> Result<Proven> {
    if require == RequireVerdict::Off {
        return Ok(Proven::NotAsked);
    }
    let template = model::sha256_hex(adapter.template.source().as_bytes());
    let missing = gate::missing(folder, &adapter.lora.digest(), base.decoder.digest()?, &template);
    Ok(match (missing, require) {
        (None, _) => Proven::Yes,
        (Some(reason), RequireVerdict::Refuse) => {
            bail!("{}: is not proven: {reason}\n{}", folder.display(), gate::HINT)
        }
        (Some(reason), _) => {
            tracing::warn!(
                "the adapter {} is served though it is not proven: {reason}",
                adapter.name
            );
            Proven::No(reason)
        }
    })
}

/// Resolves at Ctrl-C or, on Unix, SIGTERM.
async fn stop_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}
