//! `metier serve`: base and adapters behind an OpenAI-compatible API.

use crate::cli::ServeArgs;
use crate::exit;
use crate::resolve::{self, Adapter, Base};
use anyhow::{Context, Result, bail};
use engine::{EngineHandle, EngineOptions};
use serve::{LoadAdapter, ServePlan, ServedModel, Server};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

pub(super) fn run(args: &ServeArgs) -> Result<ExitCode> {
    let host = args.host.parse().with_context(|| {
        format!("--host {}: expected an IP address such as 127.0.0.1", args.host)
    })?;
    let mut adapters = Vec::new();
    for spec in &args.adapter {
        let Some((name, dir)) =
            spec.split_once('=').filter(|(n, d)| !n.is_empty() && !d.is_empty())
        else {
            bail!("--adapter {spec}: expected NAME=FOLDER, such as tickets=out/tickets");
        };
        adapters.push((name, Path::new(dir)));
    }
    if let Some(pin) = args.pin.iter().find(|pin| adapters.iter().all(|(name, _)| name != pin)) {
        bail!("--pin {pin}: no --adapter has this name");
    }
    let base = Arc::new(Base::load(&args.model, args.weights)?);
    let options = EngineOptions {
        max_num_seqs: args.max_num_seqs,
        prefix_caching: !args.no_prefix_caching,
        num_speculative_tokens: args.num_speculative_tokens,
        ..EngineOptions::default()
    };
    let (engine, _) = resolve::engine(&base, &[], args.kv_cache_mib << 20, options)?;
    let plan = ServePlan {
        host,
        port: args.port,
        adapter_dirs: args.adapter_dir.clone(),
        max_loaded_adapters: args.max_loaded_adapters as usize,
        max_adapter_bytes: (args.adapter_memory_mib as usize) << 20,
        ..ServePlan::default()
    };
    let served = ServedModel {
        name: base.short_name(),
        adapter: None,
        template: base.template.clone(),
        stop_ids: base.template.stop_ids(&base.tokenizer),
    };
    let mut names = vec![served.name.clone()];
    names.extend(adapters.iter().map(|(name, _)| (*name).to_owned()));
    let handle = EngineHandle::spawn(engine)?;
    let server = Server::new(plan.clone(), handle, Arc::clone(&base.tokenizer), vec![served])?
        .with_loader(loader(base));

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        for (name, dir) in adapters {
            let pinned = args.pin.iter().any(|pin| pin == name);
            server.add_adapter(name, dir, pinned).await?;
        }
        let listener = plan.bind().await.with_context(|| {
            format!(
                "cannot listen on {}:{}\nhint: choose another --port (0 takes a free one)",
                plan.host, plan.port
            )
        })?;
        let address = listener.local_addr()?;
        println!("serving {} on http://{address}/v1", names.join(", "));
        if !host.is_loopback() {
            eprintln!(
                "warning: anyone who reaches {address} can use these models; there are no keys yet"
            );
        }
        eprintln!("Ctrl-C stops after the running answers.");
        server.run(listener, stop_signal()).await?;
        Ok::<(), anyhow::Error>(())
    })?;
    Ok(exit::done())
}

/// Reads adapters for `base`.
fn loader(base: Arc<Base>) -> Arc<LoadAdapter> {
    Arc::new(move |name, folder, max_bytes| {
        let load = || {
            // The file is at least half of what it takes in memory.
            let file = folder.join("adapter_model.safetensors");
            let size = std::fs::metadata(&file).map_or(0, |m| m.len());
            if size > max_bytes as u64 {
                bail!("{}: found {size} bytes, expected at most {max_bytes}", file.display());
            }
            Adapter::load(name, folder, &base)?.to_serve(&base)
        };
        load().map_err(|error| format!("{error:#}"))
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
