//! `metier prices`: what rented models and machines cost, and newer tables of it.

use crate::cli::{PricesCommand, PricesListArgs, PricesUpdateArgs};
use crate::exit;
use crate::price_store::{self, DEFAULT_URL};
use crate::state;
use ::eval::PriceTable;
use anyhow::Result;
use comfy_table::{Table, presets};
use serde_json::json;
use std::process::ExitCode;

pub(super) fn run(command: &PricesCommand) -> Result<ExitCode> {
    match command {
        PricesCommand::Update(args) => update(args),
        PricesCommand::List(args) => list(args),
    }
}

fn day(given: Option<time::Date>) -> String {
    given.map_or_else(|| state::day(state::now()), |day| day.to_string())
}

fn update(args: &PricesUpdateArgs) -> Result<ExitCode> {
    let from = args.from.as_deref().unwrap_or(DEFAULT_URL);
    let entry = price_store::update(&state::dir(&args.state)?, from, &day(args.date))?;
    match args.json {
        true => println!("{}", serde_json::to_string(&entry)?),
        false => println!(
            "{} prices of models and {} of machines, of {}, from {} (SHA-256 {})",
            entry.models, entry.machines, entry.read, entry.source, entry.sha256
        ),
    }
    Ok(exit::done())
}

fn list(args: &PricesListArgs) -> Result<ExitCode> {
    let kept = price_store::newest(&state::dir(&args.state)?)?;
    let (mut table, mut from) = (PriceTable::shipped()?, None);
    if let Some(kept) = kept {
        table = table.updated(kept.table);
        from = Some(kept.entry);
    }
    let date = day(args.date);
    let mut table = table.on(&date);
    let wanted = |provider: &str, name: &str| {
        args.part.as_ref().is_none_or(|part| format!("{provider}/{name}").contains(part))
    };
    table.tokens.retain(|price| wanted(&price.provider, &price.model));
    table.machines.retain(|price| wanted(&price.provider, &price.machine));
    if args.json {
        let found = json!({
            "date": date, "table": from, "models": table.tokens, "machines": table.machines
        });
        println!("{found}");
        return Ok(exit::done());
    }
    match &from {
        Some(entry) => {
            println!("prices of {date}; table of {} from {}", entry.read, entry.source)
        }
        None => println!("prices of {date}; the table that comes with metier"),
    }
    let mut shown = Table::new();
    shown.load_style(presets::NOTHING);
    shown.set_header(["name", "input", "cached", "output", "", "read", "source"]);
    for price in &table.tokens {
        let cached = price.rates.cached.map_or("-".to_owned(), |amount| amount.to_string());
        shown.add_row([
            price.name(),
            price.rates.input.to_string(),
            cached,
            price.rates.output.to_string(),
            format!("{}/Mtok", price.currency),
            price.read.clone(),
            price.source.clone(),
        ]);
    }
    for price in &table.machines {
        let [provider, machine] = [&price.provider, &price.machine];
        shown.add_row([
            format!("{provider}/{machine}"),
            price.per_hour.to_string(),
            "-".to_owned(),
            "-".to_owned(),
            format!("{}/h", price.currency),
            price.read.clone(),
            price.source.clone(),
        ]);
    }
    println!("{shown}");
    Ok(exit::done())
}
