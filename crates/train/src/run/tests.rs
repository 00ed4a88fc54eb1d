//! One step of every preference objective against TRL's trainers, on what
//! `scripts/make_golden_objectives.py` makes.

use super::*;
use crate::objective::Objective;
use crate::plan::StepSize;
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::Path;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = file.tensor(name).unwrap();
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn row(index: usize, prompt: &Value, answer: &Value, wanted: bool) -> Row {
    let (prompt, answer) = (ids(prompt), ids(answer));
    let mask = [vec![false; prompt.len()], vec![true; answer.len()]].concat();
    Row { wanted, ..Row::new(format!("example {index}"), [prompt, answer].concat(), mask) }
}

fn rows(facts: &Value, objective: Objective) -> Vec<Row> {
    let kind = if objective == Objective::Kto { "singles" } else { "pairs" };
    let examples = facts[kind].as_array().unwrap().iter().enumerate();
    let rows = examples.flat_map(|(i, e)| match objective {
        Objective::Kto => {
            vec![row(i, &e["prompt"], &e["completion"], e["label"].as_bool().unwrap())]
        }
        _ => vec![
            row(i, &e["prompt"], &e["chosen"], true),
            row(i, &e["prompt"], &e["rejected"], false),
        ],
    });
    rows.collect()
}

#[test]
fn preference_objectives_follow_trl() {
    let base = testdata().join("llama_tiny");
    let facts = std::fs::read(testdata().join("objectives/golden.json")).unwrap();
    let facts: Value = serde_json::from_slice(&facts).unwrap();
    let golden = std::fs::read(testdata().join("objectives/golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let policy =
        std::fs::read(testdata().join("llama_tiny_adapter/adapter_model.safetensors")).unwrap();
    let policy = SafeTensors::deserialize(&policy).unwrap();
    let cases = facts["objectives"].as_object().unwrap();
    assert!(cases.len() >= 18);
    for (name, case) in cases {
        let mut decoder = Decoder::load(&base, &model::LoadOptions::default()).unwrap();
        let objective: Objective = serde_json::from_value(case["objective"].clone()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let defaults = TrainPlan {
            output_dir: dir.path().to_owned(),
            r: 4,
            lora_alpha: 8.0,
            step_size: StepSize::Rows(5),
            // Some cases in one batch, some in several.
            micro_batch_tokens: if name.len() % 2 == 0 { 30 } else { 1000 },
            max_grad_norm: 0.0,
            eval_steps: 0,
            save_steps: 0,
            ..TrainPlan::new(Method::Lora, objective, decoder.config())
        };
        let mut plan = serde_json::to_value(defaults).unwrap();
        for (key, value) in case["settings"].as_object().unwrap() {
            plan[key] = value.clone();
        }
        let plan: TrainPlan = serde_json::from_value(plan).unwrap();
        plan.validate(decoder.config()).unwrap();
        let data =
            TrainData::from_rows(rows(&facts, objective), vec![], &[2], Some(1), &plan).unwrap();
        let provenance = Provenance::default();
        let job = Job { plan: &plan, data: &data, provenance: &provenance };
        let mut step = None;
        let mut observer = |event: &Event| {
            if let Event::Step { loss, rewards, .. } = event {
                step = Some((*loss, rewards.unwrap()));
            }
        };
        let (mut adapters, mut grads) = (AdapterSet::new(), Grads::default());
        let lane =
            Lane::open(0, job, &decoder, false, &mut observer, &mut adapters, &mut grads).unwrap();
        let tape = Tape::new(decoder.config(), plan.tape_mode());
        let mut group = Group { decoder: &mut decoder, adapters, tape, grads, lanes: vec![lane] };
        // The order of the examples is the golden's own: KTO crosses neighbours.
        group.lanes[0].sampler = Sampler::in_order(&data.train, &plan);
        let modules = group.lanes[0].trainable.modules().to_vec();
        for m in &modules {
            for (end, range) in [("A", &m.a), ("B", &m.b)] {
                let tensor = format!("base_model.model.{}.lora_{end}.weight", m.name);
                let values = floats(&policy, &tensor);
                group.lanes[0].trainable.params_mut()[range.clone()].copy_from_slice(&values);
            }
        }
        let never = AtomicBool::new(false);
        group.start(false, &never).unwrap();
        assert!(group.step(&never).unwrap());
        let gradient = group.grads.adapters[0].clone().unwrap();
        drop(group);
        let (loss, rewards) = step.unwrap();
        let near = |found: f64, expected: f64, what: &str| {
            assert!(
                (found - expected).abs() <= 2e-4 * expected.abs().max(0.1),
                "{name}: {what} is {found}, TRL's {expected}"
            );
        };
        near(loss, case["loss"].as_f64().unwrap(), "the loss");
        for (key, found) in [
            ("rewards/chosen", rewards.chosen),
            ("rewards/rejected", rewards.rejected),
            ("rewards/margins", rewards.margins),
            ("rewards/accuracies", rewards.accuracies),
        ] {
            if let Some(expected) = case["metrics"][key].as_f64() {
                near(found.unwrap(), expected, key);
            }
        }
        for m in &modules {
            for (end, range) in [("A", &m.a), ("B", &m.b)] {
                let tensor = format!("{name}.base_model.model.{}.lora_{end}.weight", m.name);
                let expected = floats(&golden, &tensor);
                let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                assert!(largest > 0.0, "{tensor}");
                for (f, e) in gradient[range.clone()].iter().zip(&expected) {
                    assert!((f - e).abs() <= 1e-3 * largest, "{tensor}: {f}, TRL's {e}");
                }
            }
        }
    }
}
