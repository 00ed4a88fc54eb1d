//! `metier usage`: what was served, and what it cost.

use crate::cli::{UsageArgs, UsageGroup};
use crate::config::ConfigFile;
use crate::exit;
use crate::state;
use anyhow::Result;
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use serve::{Prices, UsageBy, UsageRow};
use std::process::ExitCode;

pub(super) fn run(args: &UsageArgs) -> Result<ExitCode> {
    let prices = match &args.config {
        Some(path) => ConfigFile::read(path)?.prices()?,
        None => None,
    };
    let by = match args.by {
        UsageGroup::Key => UsageBy::Key,
        UsageGroup::Adapter => UsageBy::Adapter,
        UsageGroup::Day => UsageBy::Day,
    };
    let (from, to) = (args.from.map_or(0, state::begin), args.to.map_or(u64::MAX, state::end));
    let rows = state::open(&args.state)?.usage(by, from, to)?;
    match args.json {
        true => println!("{}", as_json(&rows, prices.as_ref())),
        false => print(args.by, &rows, prices.as_ref()),
    }
    Ok(exit::done())
}

fn cost(row: &UsageRow, prices: &Prices) -> f64 {
    prices.cost(row.prompt_tokens, row.cached_tokens, row.completion_tokens)
}

fn as_json(rows: &[UsageRow], prices: Option<&Prices>) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let mut shown = json!(row);
            shown["cost"] = json!(prices.map(|p| cost(row, p)));
            shown
        })
        .collect();
    json!({"rows": rows, "prices": prices})
}

fn print(by: UsageGroup, rows: &[UsageRow], prices: Option<&Prices>) {
    let (group, detail) = match by {
        UsageGroup::Key => ("key", "begins"),
        UsageGroup::Adapter => ("adapter", "digest"),
        UsageGroup::Day => ("day", ""),
    };
    let mut header: Vec<String> = [
        group,
        detail,
        "requests",
        "cancelled",
        "failed",
        "prompt",
        "cached",
        "answer",
        "queue",
        "first token",
        "total",
    ]
    .map(str::to_owned)
    .into();
    header.extend(prices.map(|p| format!("cost {}", p.currency)));
    let seconds = |value: Option<f64>| value.map_or_else(|| "-".into(), |s| format!("{s:.3} s"));
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for row in rows {
        let mut cells = vec![
            row.group.clone(),
            row.detail.chars().take(12).collect(),
            row.requests.to_string(),
            row.cancelled.to_string(),
            row.failed.to_string(),
            row.prompt_tokens.to_string(),
            row.cached_tokens.to_string(),
            row.completion_tokens.to_string(),
            seconds(row.mean_queue_seconds),
            seconds(row.mean_first_token_seconds),
            seconds(Some(row.mean_total_seconds)),
        ];
        cells.extend(prices.map(|p| format!("{:.4}", cost(row, p))));
        table.add_row(cells);
    }
    println!("{table}");
    if rows.is_empty() {
        eprintln!("Nothing was served in that time.");
    }
}
