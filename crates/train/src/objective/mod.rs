//! What a training minimises, one file each.

mod sft;

use crate::pack::MicroBatch;
use model::{AdapterSet, Decoder, Grads, ModelError, Tape};
use serde::{Deserialize, Serialize};

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Next-token loss on the answers of conversations.
    Sft,
    /// Next-token loss on every token of texts (pretraining).
    Text,
}

/// The model as a step sees it.
pub(crate) struct Learner<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) adapters: &'a AdapterSet,
    pub(crate) tape: &'a mut Tape,
}

impl Objective {
    /// Adds the gradient of `weight` times the summed loss of `micro` to `grads`; returns the loss
    /// of every target in nats.
    pub(crate) fn backward(
        self,
        learner: Learner<'_>,
        micro: &MicroBatch,
        weight: f32,
        grads: &mut Grads,
    ) -> Result<Vec<f32>, ModelError> {
        match self {
            Objective::Sft | Objective::Text => sft::backward(learner, micro, weight, grads),
        }
    }

    /// The loss of every target in nats, without gradients.
    pub(crate) fn loss(
        self,
        learner: Learner<'_>,
        micro: &MicroBatch,
    ) -> Result<Vec<f32>, ModelError> {
        match self {
            Objective::Sft | Objective::Text => sft::loss(learner, micro),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::AdamW;
    use crate::pack::micro_batches;
    use crate::plan::tests::config;
    use crate::rows::Row;
    use model::{LoraAdapter, LoraConfig, TapeMode};
    use safetensors::SafeTensors;
    use std::fs;
    use std::path::Path;

    /// A decoder with weights large enough that rows, and what they attend to, matter.
    fn decoder() -> Decoder {
        let mut decoder = Decoder::init(&config(), 7);
        let scaled: Vec<f32> = decoder.params().iter().map(|x| x * 8.0).collect();
        decoder.set_params(&scaled).unwrap();
        decoder
    }

    fn rows() -> Vec<Row> {
        (0..8)
            .map(|i| {
                let len = 3 + 5 * i;
                let ids: Vec<u32> = (0..len).map(|p| ((p * 13 + i * 7) % 60 + 3) as u32).collect();
                let mask = (0..len).map(|p| p > i && p % 4 != 1 || p == len - 1).collect();
                Row { id: format!("row {i}"), ids, mask }
            })
            .collect()
    }

    fn adapters(decoder: &Decoder) -> (AdapterSet, usize, usize) {
        let lora = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
        let mut adapter = LoraAdapter::init(&lora, decoder.config(), 1).unwrap();
        // B away from zero, so that gradients reach A.
        for (i, x) in adapter.params.iter_mut().enumerate() {
            *x += 0.05 * ((i % 11) as f32 - 5.0) / 5.0;
        }
        let mut set = AdapterSet::new();
        let slot = set.insert("a", &adapter, decoder.config()).unwrap();
        (set, slot, adapter.param_count())
    }

    /// Losses by row and gradient, with the rows packed into micro-batches of `budget` tokens.
    fn gradient(budget: usize, full: bool) -> (Vec<Vec<f32>>, Vec<f32>) {
        let (decoder, rows) = (decoder(), rows());
        let (set, slot, count) = adapters(&decoder);
        let mut grads =
            if full { Grads::full(decoder.param_count()) } else { Grads::for_adapter(slot, count) };
        let mut tape = Tape::new(decoder.config(), TapeMode::Recompute);
        let chosen: Vec<usize> = (0..rows.len()).collect();
        let micros = micro_batches(&rows, &chosen, budget, (!full).then_some(slot));
        assert_eq!(micros.len() == rows.len(), budget == 1);
        let targets: usize = rows.iter().map(Row::supervised).sum();
        let mut by_row = vec![Vec::new(); rows.len()];
        for micro in &micros {
            let learner = Learner { decoder: &decoder, adapters: &set, tape: &mut tape };
            let losses =
                Objective::Sft.backward(learner, micro, 1.0 / targets as f32, &mut grads).unwrap();
            let learner = Learner { decoder: &decoder, adapters: &set, tape: &mut tape };
            assert_eq!(Objective::Sft.loss(learner, micro).unwrap(), losses);
            for (row, range) in &micro.rows {
                by_row[*row] = losses[range.clone()].to_vec();
            }
        }
        let flat = if full { grads.full.take() } else { grads.adapters[slot].take() };
        (by_row, flat.unwrap())
    }

    #[test]
    fn packed_losses_equal_separate_losses() {
        let (packed, _) = gradient(10_000, false);
        let (separate, _) = gradient(1, false);
        assert_eq!(packed, separate);
        assert!(packed.iter().flatten().all(|&l| l > 0.0));
    }

    #[test]
    fn accumulated_gradient_equals_the_whole() {
        for full in [false, true] {
            let (_, whole) = gradient(10_000, full);
            let largest = whole.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            assert!(largest > 0.0);
            for budget in [1, 60] {
                let (_, parts) = gradient(budget, full);
                for (w, p) in whole.iter().zip(&parts) {
                    assert!((w - p).abs() <= 1e-6 * largest.max(1.0), "{w} and {p} of {largest}");
                }
            }
        }
    }

    /// Ten AdamW steps on an adapter against PEFT and PyTorch (`testdata`, made by `scripts/`).
    #[test]
    fn lora_follows_peft() {
        let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
        let dir = testdata.join("llama_tiny");
        let decoder = Decoder::load(&dir, &model::LoadOptions::default()).unwrap();
        let init =
            fs::read(testdata.join("llama_tiny_adapter_init/adapter_model.safetensors")).unwrap();
        let init = SafeTensors::deserialize(&init).unwrap();
        let lora = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
        let mut adapter = LoraAdapter::init(&lora, decoder.config(), 0).unwrap();
        for module in adapter.modules().to_vec() {
            for (side, range) in [("A", module.a), ("B", module.b)] {
                let name = format!("base_model.model.{}.lora_{side}.weight", module.name);
                let view = init.tensor(&name).unwrap();
                let values =
                    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                adapter.params[range].iter_mut().zip(values).for_each(|(p, v)| *p = v);
            }
        }
        let golden = fs::read(dir.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let ints = |name: String| -> Vec<i32> {
            let view = golden.tensor(&name).unwrap();
            view.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let rows: Vec<Row> = (0..3)
            .map(|i| {
                let (ids, targets) = (ints(format!("ids.{i}")), ints(format!("targets.{i}")));
                let learnt = targets[..ids.len() - 1].iter().map(|&t| t >= 0);
                let mask = std::iter::once(false).chain(learnt).collect();
                Row { id: i.to_string(), ids: ids.iter().map(|&id| id as u32).collect(), mask }
            })
            .collect();
        let facts: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.join("golden.json")).unwrap()).unwrap();
        let facts = &facts["lora_adamw"];

        let mut set = AdapterSet::new();
        let slot = set.insert("a", &adapter, decoder.config()).unwrap();
        let mut tape = Tape::new(decoder.config(), TapeMode::Keep);
        let micros = micro_batches(&rows, &[0, 1, 2], 10_000, Some(slot));
        let micro = &micros[0];
        let count = adapter.param_count();
        let mut adam = AdamW::new(count, (0.9, 0.999), 1e-8, 0.0, vec![]);
        for (i, expected) in facts["losses"].as_array().unwrap().iter().enumerate() {
            let mut grads = Grads::for_adapter(slot, count);
            let learner = Learner { decoder: &decoder, adapters: &set, tape: &mut tape };
            let weight = 1.0 / micro.targets.len() as f32;
            let losses = Objective::Sft.backward(learner, micro, weight, &mut grads).unwrap();
            let found = losses.iter().map(|&l| l as f64).sum::<f64>() / losses.len() as f64;
            let expected = expected.as_f64().unwrap();
            assert!((found - expected).abs() < 1e-3 * expected, "step {i}: {found}, {expected}");
            let rate = facts["lr"].as_f64().unwrap();
            let gradient = grads.adapters[slot].as_ref().unwrap();
            adam.step(&mut adapter.params, gradient, 1.0, rate, i as u64 + 1);
            set.refresh(slot, &adapter);
        }
    }
}
