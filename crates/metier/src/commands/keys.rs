//! `metier keys`: who may ask the server.

use crate::cli::{KeyCreateArgs, KeyRevokeArgs, KeysArgs, KeysCommand, KeysListArgs};
use crate::exit;
use crate::state;
use anyhow::Result;
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use serve::{Key, NewKey, RETENTION_DAYS};
use std::process::ExitCode;

pub(super) fn run(args: &KeysArgs) -> Result<ExitCode> {
    match &args.command {
        KeysCommand::Create(args) => create(args),
        KeysCommand::List(args) => list(args),
        KeysCommand::Revoke(args) => revoke(args),
    }
}

fn create(args: &KeyCreateArgs) -> Result<ExitCode> {
    let new = NewKey {
        name: args.name.clone(),
        admin: args.admin,
        models: (!args.adapter.is_empty()).then(|| args.adapter.clone()),
        requests_per_minute: args.requests_per_minute,
        tokens_per_minute: args.tokens_per_minute,
        monthly_budget: args.monthly_budget,
        retention_days: args.store_contents.then(|| args.retention_days.unwrap_or(RETENTION_DAYS)),
        expires: args.expires.map(state::end),
    };
    let database = state::open(&args.state)?;
    let first = !database.has_keys()?;
    let (secret, key) = database.create_key(&new, state::now())?;
    if args.json {
        let mut shown = shown(&key);
        shown["key"] = secret.reveal().into();
        println!("{shown}");
        return Ok(exit::done());
    }
    println!("{}", secret.reveal());
    eprintln!(
        "This is the only time that it is shown; {} keeps its hash.",
        database.path().display()
    );
    if first {
        eprintln!("From now on every route of servers on this state asks for a key.");
    }
    Ok(exit::done())
}

fn list(args: &KeysListArgs) -> Result<ExitCode> {
    let keys = state::open(&args.state)?.keys()?;
    if args.json {
        println!("{}", Value::from(keys.iter().map(shown).collect::<Vec<_>>()));
        return Ok(exit::done());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "name",
        "begins",
        "status",
        "scope",
        "models",
        "requests/min",
        "tokens/min",
        "budget/month",
        "contents",
        "created",
        "until",
    ]);
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    for key in &keys {
        table.add_row([
            key.name.clone(),
            key.prefix.clone(),
            key.status(state::now()).into(),
            if key.admin { "admin" } else { "user" }.into(),
            key.models.as_ref().map_or_else(|| "all".into(), |names| names.join(", ")),
            or_dash(key.requests_per_minute.map(|n| n.to_string())),
            or_dash(key.tokens_per_minute.map(|n| n.to_string())),
            or_dash(key.monthly_budget.map(|n| n.to_string())),
            or_dash(key.retention_days.map(|days| format!("{days} days"))),
            state::day(key.created),
            or_dash(key.expires.map(|end| state::day(end.saturating_sub(1)))),
        ]);
    }
    println!("{table}");
    if keys.is_empty() {
        eprintln!("No keys: servers on this state are open to whoever reaches them.");
    }
    Ok(exit::done())
}

fn revoke(args: &KeyRevokeArgs) -> Result<ExitCode> {
    let key = state::open(&args.state)?.revoke_key(&args.key, state::now())?;
    match args.json {
        true => println!("{}", shown(&key)),
        false => println!("revoked {} ({})", key.name, key.prefix),
    }
    Ok(exit::done())
}

/// A key as JSON, without its number in the file.
fn shown(key: &Key) -> Value {
    let mut shown = json!(key);
    if let Some(fields) = shown.as_object_mut() {
        fields.shift_remove("id");
    }
    shown["status"] = key.status(state::now()).into();
    shown
}
