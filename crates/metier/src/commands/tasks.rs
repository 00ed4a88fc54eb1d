//! `metier eval --tasks`: task files of lm-evaluation-harness.

use super::eval::{adapted, engine};
use crate::cli::EvalArgs;
use crate::exit;
use crate::progress;
use crate::resolve::Base;
use ::eval::{Task, TaskModel, TaskResult};
use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

pub(super) fn run(args: &EvalArgs) -> Result<ExitCode> {
    let mut tasks = Vec::new();
    for path in task_files(&args.tasks)? {
        // Every file is checked before the model is loaded.
        let task = Task::read(&path, args.limit, args.num_fewshot)?;
        if tasks.iter().any(|other: &Task| other.name() == task.name()) {
            bail!("{}: two tasks are called {:?}", path.display(), task.name());
        }
        tasks.push(task);
    }
    let base = Base::load(&args.model, args.weights)?;
    let adapter = adapted(args.adapter.as_ref(), &base)?;
    let (mut engine, slot) = engine(&base, adapter.as_ref(), args.kv_cache.dtype())?;
    let mut model = TaskModel {
        engine: &mut engine,
        tokenizer: Arc::clone(&base.tokenizer),
        adapter: slot,
        stop_ids: Vec::new(),
    };
    let mut results = Vec::new();
    for task in &tasks {
        let mut bar = progress::Counted::default();
        let report = &mut |done, total| bar.set(task.name(), done, total);
        results.push(task.run(&mut model, report)?);
    }
    if let Some(path) = &args.answers {
        write_samples(&results, path)?;
    }
    if args.json {
        println!("{}", as_json(args, &results));
    } else {
        print(&results);
    }
    Ok(exit::done())
}

/// The files named, and of folders the .yaml files that are tasks.
fn task_files(named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in named {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
        let mut found = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()
            .with_context(|| path.display().to_string())?;
        found.retain(|file| file.extension().is_some_and(|e| e == "yaml" || e == "yml"));
        if found.is_empty() {
            bail!("{}: found no .yaml file, expected task files", path.display());
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

/// The shape of lm-evaluation-harness's own results, with what an arm must share with another beside it.
fn as_json(args: &EvalArgs, results: &[TaskResult]) -> Value {
    let mut values = Map::new();
    let mut details = Map::new();
    for result in results {
        let mut of_task = Map::new();
        for (name, value) in &result.values {
            let stderr = name.replacen(',', "_stderr,", 1);
            of_task.insert(name.clone(), json!(value.value));
            of_task.insert(stderr, json!(value.stderr));
        }
        values.insert(result.task.clone(), Value::Object(of_task));
        details.insert(result.task.clone(), json!(result));
    }
    json!({
        "model": args.model,
        "adapter": args.adapter,
        "results": values,
        "tasks": details,
    })
}

fn print(results: &[TaskResult]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["task", "metric", "value", "standard error", "n", "shots"]);
    for result in results {
        for (name, value) in &result.values {
            table.add_row([
                result.task.clone(),
                name.clone(),
                format!("{:.4}", value.value),
                value.stderr.map_or("-".to_owned(), |stderr| format!("{stderr:.4}")),
                result.n.to_string(),
                result.num_fewshot.to_string(),
            ]);
        }
    }
    println!("{table}");
    for result in results {
        let first = result.first_token.as_deref().unwrap_or("none");
        let failed = match result.failed {
            0 => String::new(),
            n => format!(", {n} failed"),
        };
        let seconds = progress::clock(result.seconds);
        println!("{}: {seconds}, first token {first}{failed}", result.task);
    }
}

/// One JSON object per document and filter, in the names of `--log_samples`.
fn write_samples(results: &[TaskResult], path: &Path) -> Result<()> {
    let mut lines = String::new();
    for result in results {
        for sample in &result.samples {
            let mut line = serde_json::to_value(sample)?;
            line["task"] = json!(result.task);
            lines.push_str(&line.to_string());
            lines.push('\n');
        }
    }
    Ok(model::write_atomic(path, lines.as_bytes())?)
}
