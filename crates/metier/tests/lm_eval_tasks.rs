//! Task files run on the bundled base give what lm-evaluation-harness gives through Transformers:
//! testdata/lm_eval/tasks_expected.json, made by scripts/check_lm_eval_tasks.py --write.

use engine::{Engine, EngineOptions};
use eval::{Task, TaskModel, TaskResult};
use model::{Decoder, LoadOptions};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use text::Tokenizer;

/// Largest difference of a log-likelihood.
const TOLERANCE: f64 = 1e-3;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A copy of a task file whose data is named from the root of the repository, where tests do not run.
fn task(dir: &Path, name: &str) -> Task {
    for file in std::fs::read_dir(root().join("testdata/lm_eval")).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_some_and(|e| e == "yaml") {
            let text = std::fs::read_to_string(&file).unwrap();
            let data = root().join("testdata/lm_eval/").display().to_string();
            let text = text.replace("testdata/lm_eval/", &data);
            std::fs::write(dir.join(file.file_name().unwrap()), text).unwrap();
        }
    }
    Task::read(&dir.join(format!("{name}.yaml")), None, None).unwrap()
}

fn run(name: &str) -> TaskResult {
    let dir = tempfile::tempdir().unwrap();
    let nano = root().join("assets/nano");
    let decoder = Arc::new(Decoder::load(&nano, &LoadOptions::default()).unwrap());
    let options = EngineOptions { num_blocks: 256, ..EngineOptions::default() };
    let mut engine = Engine::new(decoder, options).unwrap();
    let mut model = TaskModel {
        engine: &mut engine,
        tokenizer: Arc::new(Tokenizer::from_dir(&nano).unwrap()),
        adapter: None,
        stop_ids: Vec::new(),
    };
    task(dir.path(), name).run(&mut model, &mut |_, _| ()).unwrap()
}

fn check(name: &str) {
    let text = std::fs::read_to_string(root().join("testdata/lm_eval/tasks_expected.json"));
    let expected: Value = serde_json::from_str(&text.unwrap()).unwrap();
    let result = run(name);
    let expected = &expected[&result.task];
    let samples = expected["samples"].as_object().unwrap();
    assert_eq!(result.samples.len(), samples.len(), "{name}");
    for sample in &result.samples {
        let key = format!("{},{}", sample.doc_id, sample.filter);
        let (wanted, what) = (&samples[&key], format!("{name}: {key}"));
        assert_eq!(serde_json::to_value(&sample.arguments).unwrap(), wanted["arguments"], "{what}");
        if !wanted["filtered"].is_null() {
            assert_eq!(sample.filtered_resps, wanted["filtered"], "{what}");
        }
        let (found, wanted) = (&sample.resps, wanted["responses"].as_array().unwrap());
        for (found, wanted) in found.as_array().unwrap().iter().zip(wanted) {
            let Some(sum) = wanted[0].as_f64() else {
                assert_eq!(found, wanted, "{what}");
                continue;
            };
            let gap = (found[0].as_f64().unwrap() - sum).abs();
            assert!(gap <= TOLERANCE, "{what}: {found}, expected {wanted}");
            assert!(wanted[1].is_null() || found[1] == wanted[1], "{what}: {found}, {wanted}");
        }
    }
    let values = expected["values"].as_object().unwrap();
    assert_eq!(result.values.len() * 2, values.len(), "{name}: {:?}", result.values);
    for (key, found) in &result.values {
        let stderr = key.replacen(',', "_stderr,", 1);
        for (key, found) in [(key, Some(found.value)), (&stderr, found.stderr)] {
            let wanted = values[key].as_f64();
            let near = match (found, wanted) {
                (Some(found), Some(wanted)) => {
                    (found - wanted).abs() <= 1e-3 * wanted.abs().max(1.0)
                }
                (found, wanted) => found == wanted,
            };
            assert!(near, "{name}: {key} is {found:?}, expected {wanted:?}");
        }
    }
}

#[test]
fn multiple_choice_is_that_of_the_harness() {
    check("choice");
    check("fit");
}

#[test]
fn few_shot_examples_are_those_that_the_harness_draws() {
    check("shots_choice");
    check("first_choice");
}

#[test]
fn likelihoods_of_words_and_pages_are_those_of_the_harness() {
    check("last_word");
    check("pages");
}

#[test]
fn what_is_generated_and_made_of_it_is_that_of_the_harness() {
    check("continue");
    check("describe");
    check("sums");
}
