//! Ten AdamW steps against the losses that PyTorch and Hugging Face Transformers gave
//! (`testdata/llama_tiny`, made by `scripts/make_golden_llama.py`).

use model::{Decoder, LoadOptions};
use safetensors::SafeTensors;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use train::*;

#[test]
fn full_fine_tuning_follows_pytorch() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/llama_tiny");
    let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let ints = |name: String| -> Vec<i32> {
        let view = golden.tensor(&name).unwrap();
        view.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let rows: Vec<Row> = (0..3)
        .map(|i| {
            let (ids, targets) = (ints(format!("ids.{i}")), ints(format!("targets.{i}")));
            let mut mask = vec![false];
            mask.extend(targets[..ids.len() - 1].iter().map(|&t| t >= 0));
            let ids = ids.iter().map(|&id| id as u32).collect();
            Row::new(i.to_string(), ids, mask)
        })
        .collect();
    let facts: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    let expected: Vec<f64> = facts["full_adamw"]["losses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_f64().unwrap())
        .collect();

    let mut decoder = Decoder::load(&dir, &LoadOptions::default()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let plan = TrainPlan {
        output_dir: out.path().to_owned(),
        learning_rate: facts["full_adamw"]["lr"].as_f64().unwrap(),
        lr_scheduler_type: SchedulerType::Constant,
        warmup_ratio: 0.0,
        weight_decay: 0.0,
        max_grad_norm: 0.0,
        max_steps: 10,
        // Three micro-batches, so that the accumulation is compared too.
        micro_batch_tokens: 1,
        ..TrainPlan::new(Method::Full, Objective::Sft, decoder.config())
    };
    let data = TrainData {
        general: GeneralText::default(),
        train: rows.clone(),
        held_out: rows,
        held_out_bytes: 0,
        train_report: RowReport::default(),
        held_out_report: RowReport::default(),
    };
    let mut found = Vec::new();
    let mut observer = |event: &Event| {
        if let Event::Step { loss, .. } = event {
            found.push(*loss);
        }
    };
    let cancel = AtomicBool::new(false);
    let provenance = Provenance::default();
    let outcome =
        run(&plan, &mut decoder, &data, &provenance, false, &mut observer, &cancel).unwrap();
    found.push(outcome.held_out.unwrap().loss);
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(&expected) {
        assert!((f - e).abs() < 1e-3 * e, "found {found:?}\nexpected {expected:?}");
    }
}
