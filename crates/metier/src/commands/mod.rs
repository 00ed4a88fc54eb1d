//! One file per command: wiring of the crates, no logic of its own.

mod bench;
mod chat;
mod data;
mod data_show;
mod demo;
mod doctor;
mod embed;
mod eval;
mod export;
mod generate;
mod harvest;
mod keys;
mod models;
mod opened;
mod perplexity;
mod prices;
mod prove;
mod pull;
mod review;
mod runs;
mod serve;
mod tasks;
mod tokenize;
mod train;
mod usage;
mod verify;
mod watch;

use crate::cli::Command;
use anyhow::Result;
use std::process::ExitCode;

pub(crate) use export::FORMATS as EXPORT_FORMATS;

/// Carries out a command.
pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Runs(args) => runs::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Prove(args) => prove::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Review(args) => review::run(&args),
        Command::Prices(command) => prices::run(&command),
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Keys(args) => keys::run(&args),
        Command::Usage(args) => usage::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    }
}
