//! Chores of the repository that are not part of the product: `cargo run -p xtask -- CHORE ...`.

mod nano_tokenizer;
mod recipe_data;
mod sample_trade;
mod tidy;

use std::process::ExitCode;

/// A chore: its name, what it does, and its entry, which gets the words after the name.
type Chore = (&'static str, &'static str, fn(&[String]) -> anyhow::Result<()>);

/// Every chore, one line each.
const CHORES: &[Chore] = &[
    ("nano-tokenizer", "train the tokenizer of metier-nano from a corpus", nano_tokenizer::run),
    ("recipe-data", "write the data of the recipes to recipes/data", recipe_data::run),
    ("sample-trade", "write the bundled sample trade to assets/trade", sample_trade::run),
    ("tidy", "check the house rules: imports, unsafe, family names", tidy::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted = arguments.first().map(String::as_str).unwrap_or_default();
    let Some((_, _, run)) = CHORES.iter().find(|(name, ..)| *name == wanted) else {
        eprintln!("usage: cargo run -p xtask -- CHORE [ARGUMENTS]");
        for (name, purpose, _) in CHORES {
            eprintln!("  {name:<18} {purpose}");
        }
        return ExitCode::from(2);
    };
    match run(&arguments[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
