//! `metier data harvest`: from use to training data.

use crate::cli::DataHarvestArgs;
use crate::exit;
use crate::state;
use anyhow::{Result, bail};
use data::{Example, ReadOptions};
use serde_json::json;
use serve::HarvestOptions;
use std::process::ExitCode;

pub(super) fn run(args: &DataHarvestArgs) -> Result<ExitCode> {
    if let Some(rating) = args.min_rating
        && !(-1.0..=1.0).contains(&rating)
    {
        bail!("--min-rating is {rating}; expected a number from -1 to 1");
    }
    let test: Vec<Example> = match &args.test {
        Some(path) => data::read(path, &ReadOptions::default())?,
        None => Vec::new(),
    };
    let database = state::open(&args.state)?;
    let kept = database.kept(state::now())?;
    let options = HarvestOptions { adapter: args.adapter.clone(), min_rating: args.min_rating };
    let found = serve::harvest(&kept, database.path(), &options, &test)?;
    let lines: String = found.examples.iter().map(|e| e.to_json_line() + "\n").collect();
    model::write_atomic(&args.out, lines.as_bytes())?;
    if args.json {
        println!("{}", json!(found));
        return Ok(exit::done());
    }
    println!(
        "wrote {} examples, {} of them corrected, from {} kept requests to {}",
        found.taken,
        found.corrected,
        found.looked_at,
        args.out.display()
    );
    for (reason, count) in &found.left_out {
        println!("left out: {count} {reason}");
    }
    if args.test.is_none() {
        eprintln!("warning: without --test nothing keeps questions of your test set out");
    }
    if kept.is_empty() {
        eprintln!("No contents are kept: requests of keys made with --store-contents are.");
    }
    Ok(exit::done())
}
