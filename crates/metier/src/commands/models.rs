//! `metier models`: what is on this machine.

use crate::cli::{ModelsArgs, ModelsCommand};
use crate::exit;
use crate::hub::{self, HubId};
use crate::laid_out;
use crate::resolve::{NANO, license_of, model_path};
use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use indicatif::HumanBytes;
use model::{LoadOptions, ModelSummary, WeightDtype};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

pub(super) fn run(args: &ModelsArgs) -> Result<ExitCode> {
    match &args.command {
        None | Some(ModelsCommand::List) => list(args.json),
        Some(ModelsCommand::Show { model }) => show(model, args.json),
        Some(ModelsCommand::Prepare { model, weights, undo }) => {
            prepare(model, weights.dtype.unwrap_or_default(), *undo, args.json)
        }
        Some(ModelsCommand::Rm { model, yes }) => remove(model, *yes),
    }
}

fn list(as_json: bool) -> Result<ExitCode> {
    let mut names = vec![NANO.to_owned()];
    names.extend(hub::pulled().into_iter().map(|id| id.name));
    let rows: Vec<(String, Result<Value>)> =
        names.into_iter().map(|name| (name.clone(), describe(&name))).collect();
    if as_json {
        let rows: Vec<Value> = rows
            .into_iter()
            .map(|(name, row)| {
                row.unwrap_or_else(|e| json!({"name": name, "error": e.to_string()}))
            })
            .collect();
        println!("{}", Value::from(rows));
        return Ok(exit::done());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["model", "family", "parameters", "dtype", "size", "context", "licence"]);
    for (name, row) in &rows {
        match row {
            Ok(row) => table.add_row(
                [
                    "name",
                    "family",
                    "parameters_shown",
                    "dtype",
                    "size_shown",
                    "context_length",
                    "license",
                ]
                .map(|key| row[key].as_str().map_or(row[key].to_string(), str::to_owned)),
            ),
            // Datasets, other architectures, half-pulled models: here, but not usable.
            Err(error) => {
                let line = error.to_string();
                let line = line.lines().next().unwrap_or_default().to_owned();
                table.add_row([name.clone(), format!("not usable: {line}")])
            }
        };
    }
    println!("{table}");
    Ok(exit::done())
}

fn show(name: &str, as_json: bool) -> Result<ExitCode> {
    let row = describe(name)?;
    if as_json {
        println!("{row}");
        return Ok(exit::done());
    }
    for (label, key) in [
        ("model", "name"),
        ("family", "family"),
        ("parameters", "parameters_shown"),
        ("dtype", "dtype"),
        ("size", "size_shown"),
        ("context", "context_length"),
        ("licence", "license"),
        ("path", "path"),
    ] {
        let value = row[key].as_str().map_or(row[key].to_string(), str::to_owned);
        println!("{label:<11} {value}");
    }
    Ok(exit::done())
}

/// Lays a model out on disk, or deletes what was laid out.
fn prepare(name: &str, dtype: WeightDtype, undo: bool, as_json: bool) -> Result<ExitCode> {
    let path = model_path(name)?;
    let options = LoadOptions { dtype };
    if undo {
        let Some(dir) = laid_out::forget(&path, &options)? else {
            bail!("{name}: not laid out in this type\nhint: name the --dtype it was prepared with");
        };
        match as_json {
            true => println!("{}", json!({"name": name, "deleted": dir})),
            false => println!("deleted {}", dir.display()),
        }
        return Ok(exit::done());
    }
    eprintln!("laying out {name}");
    let (dir, bytes) = laid_out::keep(&path, &options)?;
    match as_json {
        true => println!("{}", json!({"name": name, "path": dir, "bytes": bytes})),
        false => println!("{} in {}", HumanBytes(bytes), dir.display()),
    }
    Ok(exit::done())
}

fn remove(name: &str, yes: bool) -> Result<ExitCode> {
    if name == NANO {
        bail!("{NANO} is part of this program and takes no room of its own");
    }
    let Some(id) = HubId::parse(name).filter(|id| id.folder().is_dir()) else {
        bail!(
            "{name}: not among the pulled models\nhint: `metier models` lists them; folders of your own are yours to delete"
        );
    };
    let folder = id.folder();
    if !yes {
        if !std::io::stdin().is_terminal() {
            bail!("{}: not deleted without --yes", folder.display());
        }
        eprint!("Delete {} (all revisions)? [y/N] ", folder.display());
        std::io::stderr().flush()?;
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        if !matches!(line.trim(), "y" | "Y" | "yes") {
            bail!("nothing was deleted");
        }
    }
    std::fs::remove_dir_all(&folder)?;
    println!("deleted {}", folder.display());
    Ok(exit::done())
}

/// One model's facts, from its configuration, the headers of its weight files and its card.
fn describe(name: &str) -> Result<Value> {
    let path = model_path(name)?;
    let summary = model::inspect(&path)?;
    Ok(row(name, &path, &summary))
}

fn row(name: &str, dir: &Path, summary: &ModelSummary) -> Value {
    let mut dtypes: Vec<(&String, &u64)> = summary.dtypes.iter().collect();
    dtypes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let dtypes: Vec<String> = dtypes.iter().map(|(name, _)| name.to_lowercase()).collect();
    json!({
        "name": name,
        "family": summary.family,
        "parameters": summary.parameters,
        "parameters_shown": count(summary.parameters),
        "dtype": dtypes.join(", "),
        "bytes": summary.bytes,
        "size_shown": HumanBytes(summary.bytes).to_string(),
        "context_length": summary.context_len,
        "license": license_of(dir),
        "path": dir,
    })
}

/// 4.2 M, 1.24 B.
fn count(parameters: u64) -> String {
    let n = parameters as f64;
    match parameters {
        0..=999_999 => format!("{:.0} K", n / 1e3),
        1_000_000..=999_999_999 => format!("{:.1} M", n / 1e6),
        _ => format!("{:.2} B", n / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn counts() {
        for (n, shown) in [(260_032, "260 K"), (4_196_608, "4.2 M"), (1_235_814_400, "1.24 B")] {
            assert_eq!(count(n), shown);
        }
    }
}
