//! Every recipe says what the program understands; those whose data is in this repository train, learn,
//! and leave a folder that loads again.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Recipes that must be able to run from this repository alone; others may come to this.
const TASKS: [&str; 6] = [
    "classification",
    "continued-pretraining",
    "extraction",
    "preferences",
    "question-answering",
    "style",
];
/// Enough to see the held-out loss fall.
const STEPS: &str = "10";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn metier(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_metier")).args(arguments).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "metier {}: {shown}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// A recipe as written.
struct Recipe {
    name: String,
    path: PathBuf,
    table: toml::Table,
}

impl Recipe {
    fn all() -> Vec<Recipe> {
        let mut recipes: Vec<Recipe> = fs::read_dir(repository().join("recipes"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "toml"))
            .map(|path| {
                let text = fs::read_to_string(&path).unwrap();
                let table = text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                Recipe { name, path, table }
            })
            .collect();
        recipes.sort_by(|a, b| a.name.cmp(&b.name));
        recipes
    }

    fn key(&self, section: &str, key: &str) -> Option<&toml::Value> {
        self.table.get(section)?.get(key)
    }

    /// Files and folders that a key of `[data]` names.
    fn paths(&self, key: &str) -> Vec<PathBuf> {
        let path = |value: &toml::Value| {
            let named = value.get("path").unwrap_or(value).as_str().expect("a path").to_owned();
            self.path.parent().unwrap().join(named)
        };
        match self.key("data", key) {
            None => Vec::new(),
            Some(toml::Value::Array(several)) => several.iter().map(path).collect(),
            Some(one) => vec![path(one)],
        }
    }

    /// Whether everything that it needs is in this repository, and is not made by another command.
    fn stands_alone(&self) -> bool {
        let root = repository();
        let ours = |path: &PathBuf| {
            let found = path.canonicalize().ok().filter(|p| p.starts_with(&root));
            found.is_some_and(|p| !p.starts_with(root.join("out")))
        };
        let model = self.key("base", "model").and_then(toml::Value::as_str);
        model == Some("nano")
            && ["train", "valid", "test", "text"].iter().all(|key| self.paths(key).iter().all(ours))
    }
}

#[test]
fn recipes_whose_data_is_here_train_and_learn() {
    let recipes: Vec<Recipe> = Recipe::all().into_iter().filter(Recipe::stands_alone).collect();
    let names: Vec<&str> = recipes.iter().map(|recipe| recipe.name.as_str()).collect();
    for task in TASKS {
        assert!(names.contains(&task), "recipes/{task}.toml does not stand alone: {names:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    for recipe in &recipes {
        let name = &recipe.name;
        let out = dir.path().join(name);
        let out = out.to_str().unwrap();
        let config = recipe.path.to_str().unwrap();
        let told =
            metier(&["train", "--config", config, "--out", out, "--max-steps", STEPS, "--json"]);
        let events: Vec<Value> =
            told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |kind: &str| -> Vec<&Value> {
            events.iter().filter(|event| event["event"] == kind).collect()
        };
        let end = of("end")[0];
        assert_eq!(end["status"], "completed", "{name}: {end}");
        assert_eq!(end["guidance"].as_array().unwrap().len(), 3, "{name}: {end}");
        assert!(of("warning").is_empty(), "{name}: {:?}", of("warning"));
        let losses: Vec<f64> =
            of("evaluation").iter().map(|event| event["loss"].as_f64().unwrap()).collect();
        let (before, after) = (losses[0], losses[losses.len() - 1]);
        eprintln!("{name}: held-out loss {before:.4} -> {after:.4}");
        assert!(losses.len() >= 2 && after < 0.99 * before, "{name}: {losses:?}");
        loads_again(recipe, out);
    }
}

/// What a recipe leaves is a model that answers: the rows of its own test where it has one.
fn loads_again(recipe: &Recipe, out: &str) {
    let full = recipe.key("train", "method").and_then(toml::Value::as_str) == Some("full");
    let model = match full {
        true => vec!["--model", out],
        false => vec!["--model", "nano", "--adapter", out],
    };
    match recipe.paths("test").first() {
        Some(test) => {
            let few = ["--data", test.to_str().unwrap(), "--limit", "4", "--max-tokens", "8"];
            let told = metier(&[&["eval", "--json"], &model[..], &few].concat());
            let result: Value = serde_json::from_str(&told).unwrap();
            assert_eq!(result["metrics"]["exact_match"]["n"], 4, "{}", recipe.name);
            assert_eq!(result["failed"], 0, "{}", recipe.name);
        }
        None => {
            let few = ["--prompt", "The", "--max-tokens", "4", "--temperature", "0", "--json"];
            let told = metier(&[&["generate"], &model[..], &few].concat());
            let result: Value = serde_json::from_str(&told).unwrap();
            assert!(result["text"].is_string(), "{}: {told}", recipe.name);
        }
    }
}

/// Rows in the place of what a recipe reads from elsewhere; nothing of its other settings changes.
#[test]
fn recipes_with_data_from_elsewhere_are_understood() {
    let (root, dir) = (repository(), tempfile::tempdir().unwrap());
    let elsewhere: Vec<Recipe> =
        Recipe::all().into_iter().filter(|recipe| !recipe.stands_alone()).collect();
    assert!(!elsewhere.is_empty());
    for recipe in &elsewhere {
        eprintln!("{}: its own data SKIPPED, understood with other rows", recipe.name);
        let mut table = recipe.table.clone();
        let data = table["data"].as_table_mut().unwrap();
        let column = |key: &str, usual: &str| match recipe.key("data", key) {
            Some(name) => name.as_str().unwrap().to_owned(),
            None => usual.to_owned(),
        };
        let (prompt, completion) =
            (column("prompt_column", "prompt"), column("completion_column", "completion"));
        let rows: String = (0..40)
            .map(|i| {
                let mut row = serde_json::Map::new();
                row.insert(prompt.clone(), format!("pump {i} is loud").into());
                row.insert(completion.clone(), format!("pump {i}").into());
                for key in ["group_column"] {
                    if let Some(name) = recipe.key("data", key) {
                        row.insert(name.as_str().unwrap().to_owned(), format!("{i}").into());
                    }
                }
                format!("{}\n", Value::Object(row))
            })
            .collect();
        let file = dir.path().join("rows.jsonl");
        fs::write(&file, rows).unwrap();
        let file = file.to_str().unwrap().to_owned();
        if data.contains_key("text") {
            let ours = root.join("recipes/data/reports/1-january.txt");
            data.insert("text".into(), vec![ours.to_str().unwrap()].into());
        } else {
            data.insert("train".into(), vec![file].into());
        }
        data.remove("valid");
        data.remove("test");
        data.insert("valid_fraction".into(), 0.2.into());
        let base = table["base"].as_table_mut().unwrap();
        if base.contains_key("model") {
            base.insert("model".into(), "nano".into());
        }
        for key in ["init", "tokenizer"] {
            if let Some(path) = base.get(key).and_then(toml::Value::as_str) {
                let path = root.join("recipes").join(path).canonicalize().unwrap();
                base.insert(key.into(), path.to_str().unwrap().into());
            }
        }
        let config = dir.path().join(format!("{}.toml", recipe.name));
        fs::write(&config, table.to_string()).unwrap();
        metier(&["train", "--config", config.to_str().unwrap(), "--dry-run"]);
    }
}

/// A score on rows that were learnt proves nothing, and a recipe is copied with its data.
#[test]
fn no_test_of_a_recipe_leaks() {
    let mut checked = 0;
    for recipe in Recipe::all().iter().filter(|recipe| recipe.stands_alone()) {
        let test = ["test", "valid"].iter().flat_map(|key| recipe.paths(key)).next();
        let (Some(train), Some(test)) = (recipe.paths("train").first().cloned(), test) else {
            continue;
        };
        let (train, test) = (train.to_str().unwrap(), test.to_str().unwrap());
        let mut check = vec!["data", "check", train, "--test", test, "--json"];
        if recipe.key("train", "objective").is_some() {
            // Leaks are looked for between conversations: prompts with the better answers.
            check.extend(["--completion-column", "chosen"]);
        }
        let report: Value = serde_json::from_str(&metier(&check)).unwrap();
        let leaks = &report["leaks"][0]["report"];
        for kind in ["exact", "normalised", "near"] {
            assert_eq!(leaks[kind], 0, "{}: {kind}", recipe.name);
        }
        checked += 1;
    }
    assert!(checked >= 5, "{checked}");
}
