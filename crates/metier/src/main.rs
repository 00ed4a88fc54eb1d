//! `metier`: adapt, prove and serve open language models. The binary is thin: the command line as
//! typed ([`cli`]), resolved into plans ([`config`]), carried out by [`commands`].

mod assets;
mod card;
mod cli;
mod commands;
mod config;
mod embedder;
mod exit;
mod findings;
mod gate;
mod general_text;
mod hub;
mod laid_out;
mod licences;
mod machine;
mod price_store;
mod progress;
mod prove_plan;
mod resolve;
mod sealed;
mod state;
mod text_source;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    kernels::limit_arenas();
    let cli = cli::Cli::parse();
    init_logging(cli.verbose);
    survive_full_files();
    end_with_the_reader();
    if let Some(threads) = cli.threads {
        model::set_num_threads(threads);
    }
    match commands::run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            exit::print_error(&error);
            ExitCode::from(exit::FAILED)
        }
    }
}

/// A file that outgrows the limit for files (`ulimit -f`) is an error of the write, told with the file's
/// name, and does not end the program without a word, as the signal for it would.
fn survive_full_files() {
    #[cfg(unix)]
    if let Err(error) = signal_hook::flag::register(
        signal_hook::consts::SIGXFSZ,
        std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)),
    ) {
        tracing::warn!("files that outgrow `ulimit -f` will end the program: {error}");
    }
}

/// Whoever wants the beginning alone (`metier ... | head`) closes the pipe, and `println!` panics on that. The
/// program ends without a word instead, with the code of one that the signal for it ended. The signal itself
/// stays ignored: it would end a server whose client goes away.
fn end_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload_as_str().unwrap_or_default();
        if said.starts_with("failed printing to std") && said.contains("Broken pipe") {
            std::process::exit(exit::READER_GONE);
        }
        usual(panic);
    }));
}

/// Warnings by default, `-v` for what happens, `-vv` for details; `METIER_LOG` overrides. Always on
/// standard error, so that standard output stays the command's result. `METIER_LOG_FORMAT=json` writes
/// one JSON object on each line, for programs that collect logs.
fn init_logging(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("METIER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match std::env::var_os("METIER_LOG_FORMAT").is_some_and(|format| format == "json") {
        true => logging.json().flatten_event(true).init(),
        false => logging.init(),
    }
}
