//! `metier serve`: base and adapters behind an OpenAI-compatible API.

use crate::cli::ServeArgs;
use crate::exit;
use crate::resolve::{self, Adapter, Base};
use anyhow::{Context, Result, bail};
use engine::{EngineHandle, EngineOptions};
use serve::{ServePlan, ServedModel, Server};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

pub(super) fn run(args: &ServeArgs) -> Result<ExitCode> {
    let host = args.host.parse().with_context(|| {
        format!("--host {}: expected an IP address such as 127.0.0.1", args.host)
    })?;
    let base = Base::load(&args.model, args.weights)?;
    let mut adapters = Vec::new();
    for spec in &args.adapter {
        let Some((name, dir)) =
            spec.split_once('=').filter(|(n, d)| !n.is_empty() && !d.is_empty())
        else {
            bail!("--adapter {spec}: expected NAME=FOLDER, such as tickets=out/tickets");
        };
        adapters.push(Adapter::load(name, Path::new(dir), &base)?);
    }
    let borrowed: Vec<&Adapter> = adapters.iter().collect();
    let options = EngineOptions {
        max_num_seqs: args.max_num_seqs,
        prefix_caching: !args.no_prefix_caching,
        num_speculative_tokens: args.num_speculative_tokens,
        ..EngineOptions::default()
    };
    let (engine, slots) = resolve::engine(&base, &borrowed, args.kv_cache_mib << 20, options)?;

    let mut models = vec![ServedModel {
        name: base.short_name(),
        adapter: None,
        template: base.template.clone(),
        stop_ids: base.template.stop_ids(&base.tokenizer),
    }];
    for (adapter, slot) in adapters.iter().zip(slots) {
        models.push(ServedModel {
            name: adapter.name.clone(),
            adapter: Some(slot),
            template: adapter.template.clone(),
            stop_ids: adapter.template.stop_ids(&base.tokenizer),
        });
    }
    let names: Vec<String> = models.iter().map(|m| m.name.clone()).collect();
    let plan = ServePlan { host, port: args.port, ..ServePlan::default() };
    let handle = EngineHandle::spawn(engine)?;
    let server = Server::new(plan.clone(), handle, Arc::clone(&base.tokenizer), models)?;

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
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
