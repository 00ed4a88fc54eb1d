//! What a training minimises, one file each.
//!
//! Every objective is a function of the log-probabilities of answers (sums over their tokens) and a
//! next-token loss, so its gradient is a weight for the cross-entropy of each target. Logits exist
//! only where a target is and never more than a chunk of them at a time: [targets, V] would be the
//! largest buffer of all.

mod dpo;
mod kto;
mod orpo;
mod sft;
mod simpo;

use crate::pack::MicroBatch;
use crate::plan::TrainPlan;
use model::{AdapterSet, Decoder, Grads, Memory, ModelError, Tape};
use serde::{Deserialize, Serialize};

pub use dpo::LossType;

/// Logits held at once, in floats (64 MB): with less, a head of 128,000 outputs is read and turned for
/// so few rows that this takes a quarter of its time.
const LOGIT_FLOATS: usize = 16 << 20;

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Next-token loss on the answers of conversations.
    Sft,
    /// Next-token loss on every token of texts (pretraining).
    Text,
    /// Pairs of a chosen and a rejected answer, against the base (arXiv 2305.18290).
    Dpo,
    /// Pairs, without a reference, together with next-token loss (arXiv 2403.07691).
    Orpo,
    /// Single answers, each wanted or not, against the base (arXiv 2402.01306).
    Kto,
    /// Pairs, without a reference, by log-probability per token (arXiv 2405.14734).
    Simpo,
}

impl Objective {
    /// Rows of one example: two where a chosen answer comes with a rejected one.
    pub fn rows_per_example(self) -> usize {
        match self {
            Objective::Dpo | Objective::Orpo | Objective::Simpo => 2,
            Objective::Sft | Objective::Text | Objective::Kto => 1,
        }
    }

    /// Whether it learns from judged answers.
    pub fn is_preference(self) -> bool {
        !matches!(self, Objective::Sft | Objective::Text)
    }

    /// Whether it compares with the base's own log-probabilities.
    pub(crate) fn needs_reference(self) -> bool {
        matches!(self, Objective::Dpo | Objective::Kto)
    }

    /// Whether a step needs log-probabilities of answers to other prompts (KTO's reference point).
    pub(crate) fn needs_kl(self, plan: &TrainPlan) -> bool {
        self == Objective::Kto && kto::uses_kl(plan)
    }

    /// The loss types it takes; none where it has only one.
    pub(crate) fn loss_types(self) -> &'static [LossType] {
        match self {
            Objective::Dpo => &LossType::DPO,
            Objective::Kto => &LossType::KTO,
            Objective::Sft | Objective::Text | Objective::Orpo | Objective::Simpo => &[],
        }
    }

    /// Its next-token part, on every row or, of pairs, on the chosen one.
    pub(crate) fn nll(self, plan: &TrainPlan) -> Nll {
        match self {
            Objective::Sft | Objective::Text => sft::NLL,
            Objective::Orpo => orpo::NLL,
            Objective::Dpo => dpo::nll(plan),
            Objective::Kto | Objective::Simpo => Nll { weight: 0.0, whole: false },
        }
    }

    /// Its part that judges answers; None where there is none. `wanted` and `z` are KTO's label and
    /// reference point.
    pub(crate) fn judge(
        self,
        plan: &TrainPlan,
        answers: &[Answer],
        wanted: bool,
        z: f64,
    ) -> Option<Judgement> {
        match (self, answers) {
            (Objective::Dpo, &[chosen, rejected]) => Some(dpo::judge(plan, [chosen, rejected])),
            (Objective::Orpo, &[chosen, rejected]) => Some(orpo::judge(plan, [chosen, rejected])),
            (Objective::Simpo, &[chosen, rejected]) => Some(simpo::judge(plan, [chosen, rejected])),
            (Objective::Kto, &[answer]) => Some(kto::judge(plan, answer, wanted, z)),
            _ => None,
        }
    }
}

/// A next-token part: its weight, and whether prompts are learnt too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Nll {
    pub(crate) weight: f64,
    pub(crate) whole: bool,
}

/// One answer: its log-probability under the policy and the reference, nats, and its length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) logp: f64,
    pub(crate) reference: f64,
    pub(crate) tokens: f64,
}

impl Answer {
    /// How much likelier the policy makes it.
    fn ratio(self) -> f64 {
        self.logp - self.reference
    }
}

/// What an objective makes of one example: the loss, its derivative by the log-probability of each
/// answer, and the reward that each answer has in its eyes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Judgement {
    pub(crate) loss: f64,
    pub(crate) slopes: [f64; 2],
    pub(crate) rewards: [f64; 2],
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

fn log_sigmoid(x: f64) -> f64 {
    if x >= 0.0 { -(-x).exp().ln_1p() } else { x - x.exp().ln_1p() }
}

/// The model as a step sees it.
pub(crate) struct Learner<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) adapters: &'a AdapterSet,
    pub(crate) tape: &'a mut Tape,
}

impl Learner<'_> {
    /// The cross-entropy of every target in nats, without gradients.
    pub(crate) fn losses(&mut self, micro: &MicroBatch) -> Result<Vec<f32>, ModelError> {
        let hidden = self.forward(micro)?;
        Ok(self.losses_of(&hidden, micro))
    }

    /// Adds the gradient of Σ weight · cross-entropy over the targets of `micro` to `grads`; returns
    /// the cross-entropy of every target. `weigh` sets the weights; it sees the cross-entropies
    /// where it says that it `needs` them, which costs a second pass through the head.
    pub(crate) fn backward(
        &mut self,
        micro: &MicroBatch,
        needs: bool,
        weigh: impl FnOnce(&[f32]) -> Vec<f32>,
        grads: &mut Grads,
    ) -> Result<Vec<f32>, ModelError> {
        let hidden = self.forward(micro)?;
        let before = if needs { self.losses_of(&hidden, micro) } else { Vec::new() };
        let weights = weigh(&before);
        let mut losses = vec![0.0; micro.targets.len()];
        let chunk = self.chunk();
        let v = self.decoder.config().vocab_size;
        let dhidden = self.decoder.head_backward(&hidden, chunk, grads, &mut |rows, logits| {
            // Runs of one weight; as a rule those of one answer.
            let mut start = rows.start;
            while start < rows.end {
                let weight = weights[start];
                let end =
                    start + weights[start..rows.end].iter().take_while(|w| **w == weight).count();
                let logits = &mut logits[(start - rows.start) * v..(end - rows.start) * v];
                let (targets, losses) = (&micro.targets[start..end], &mut losses[start..end]);
                model::cross_entropy_backward_inplace(logits, targets, weight, losses);
                start = end;
            }
        });
        self.decoder.backward(&micro.batch, self.adapters, self.tape, &dhidden, grads)?;
        Ok(losses)
    }

    fn forward(&mut self, micro: &MicroBatch) -> Result<Vec<f32>, ModelError> {
        self.decoder.forward(&micro.batch, self.adapters, Memory::Tape(self.tape))
    }

    fn losses_of(&self, hidden: &[f32], micro: &MicroBatch) -> Vec<f32> {
        let mut losses = vec![0.0; micro.targets.len()];
        self.decoder.head_forward(hidden, self.chunk(), &mut |rows, logits| {
            model::cross_entropy(logits, &micro.targets[rows.clone()], &mut losses[rows]);
        });
        losses
    }

    fn chunk(&self) -> usize {
        chunk(self.decoder.config().vocab_size)
    }
}

/// Rows of logits at once.
fn chunk(vocab_size: usize) -> usize {
    (LOGIT_FLOATS / vocab_size).clamp(16, 1024)
}

/// Logits held at once, in floats.
pub(crate) fn logits_floats(vocab_size: usize) -> usize {
    chunk(vocab_size) * vocab_size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::{AdamW, ParamGroup};
    use crate::pack::{Share, micro_batches};
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
                Row::new(format!("row {i}"), ids, mask)
            })
            .collect()
    }

    fn share<'a>(rows: &'a [Row], chosen: &'a [usize], adapter: Option<usize>) -> Share<'a> {
        Share { lane: 0, rows, per_example: 1, chosen, adapter, dropout: None, whole: false }
    }

    fn adapters(decoder: &Decoder) -> (AdapterSet, usize, usize) {
        let lora = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
        let mut adapter = LoraAdapter::init(&lora, decoder, 1).unwrap();
        // B away from zero, so that gradients reach A.
        for (i, x) in adapter.params.iter_mut().enumerate() {
            *x += 0.05 * ((i % 11) as f32 - 5.0) / 5.0;
        }
        let mut set = AdapterSet::new();
        let slot = set.insert("a", &adapter, decoder).unwrap();
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
        let micros = micro_batches(&[share(&rows, &chosen, (!full).then_some(slot))], budget);
        assert_eq!(micros.len() == rows.len(), budget == 1);
        let targets: usize = rows.iter().map(Row::supervised).sum();
        let mut by_row = vec![Vec::new(); rows.len()];
        for micro in &micros {
            let mut learner = Learner { decoder: &decoder, adapters: &set, tape: &mut tape };
            let weights = vec![1.0 / targets as f32; micro.targets.len()];
            let losses = learner.backward(micro, false, |_| weights, &mut grads).unwrap();
            assert_eq!(learner.losses(micro).unwrap(), losses);
            for example in &micro.examples {
                by_row[example.index] = losses[example.rows[0].clone()].to_vec();
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
                // An adapter's gradient is one sum in the order of the rows, wherever it is cut.
                assert!(full || parts == whole);
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
        let mut adapter = LoraAdapter::init(&lora, &decoder, 0).unwrap();
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
                Row::new(i.to_string(), ids.iter().map(|&id| id as u32).collect(), mask)
            })
            .collect();
        let facts: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.join("golden.json")).unwrap()).unwrap();
        let facts = &facts["lora_adamw"];

        let mut set = AdapterSet::new();
        let slot = set.insert("a", &adapter, &decoder).unwrap();
        let mut tape = Tape::new(decoder.config(), TapeMode::Keep);
        let micros = micro_batches(&[share(&rows, &[0, 1, 2], Some(slot))], 10_000);
        let micro = &micros[0];
        let count = adapter.param_count();
        let all = ParamGroup { range: 0..count, decay: false, lr_ratio: 1.0 };
        let mut adam = AdamW::new(count, (0.9, 0.999), 1e-8, 0.0, vec![all]);
        for (i, expected) in facts["losses"].as_array().unwrap().iter().enumerate() {
            let mut grads = Grads::for_adapter(slot, count);
            let mut learner = Learner { decoder: &decoder, adapters: &set, tape: &mut tape };
            let weights = vec![1.0 / micro.targets.len() as f32; micro.targets.len()];
            let losses = learner.backward(micro, false, |_| weights, &mut grads).unwrap();
            let found = losses.iter().map(|&l| l as f64).sum::<f64>() / losses.len() as f64;
            let expected = expected.as_f64().unwrap();
            assert!((found - expected).abs() < 1e-3 * expected, "step {i}: {found}, {expected}");
            let rate = facts["lr"].as_f64().unwrap();
            let gradient = grads.adapters[slot].as_ref().unwrap();
            adam.step(&mut adapter.params, gradient, 1.0, rate, i as u64 + 1);
            set.refresh(slot, &adapter, &decoder);
        }
    }
}
