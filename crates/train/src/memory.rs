//! How much memory a training will take, before it starts: sums of what the loop allocates, buffer
//! by buffer. `metier bench train` holds the sum against the measured peak.

use crate::objective::logits_floats;
use crate::pack::Sampler;
use crate::plan::{Method, TrainPlan};
use crate::rows::{Row, TrainData};
use model::{Decoder, LoraAdapter, Tape};
use serde::Serialize;

const F32: usize = size_of::<f32>();

/// Bytes of a training by what they are for, beside the loaded base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// Trained parameters: values, copies for the kernels, gradients, optimizer state, best weights.
    pub trainable: usize,
    /// What forward and backward keep of the largest micro-batch.
    pub activations: usize,
    /// Logits at once, and the hidden rows that they are made of.
    pub logits: usize,
    /// Token rows.
    pub data: usize,
    /// Buffers of the kernels.
    pub kernels: usize,
}

impl MemoryEstimate {
    /// All of it, in bytes.
    pub fn total(&self) -> usize {
        self.trainable + self.activations + self.logits + self.data + self.kernels
    }
}

/// Optimizer steps of one pass over the training rows.
pub fn steps_per_epoch(plan: &TrainPlan, rows: &[Row]) -> u64 {
    Sampler::new(rows, plan).steps_per_epoch()
}

/// What `plan` will allocate to train on `data` with the loaded `decoder`.
pub fn estimate(plan: &TrainPlan, decoder: &Decoder, data: &TrainData) -> MemoryEstimate {
    let config = decoder.config();
    let per_example = plan.objective.rows_per_example();
    let sizes = |rows: &[Row]| -> (usize, usize) {
        let tokens = |rows: &[Row]| rows.iter().map(Row::input_len).sum::<usize>();
        let longest = rows.chunks(per_example).map(tokens).max().unwrap_or(0);
        (longest, tokens(rows))
    };
    let (longest, all) = sizes(&data.train);
    let (held_longest, held_all) = sizes(&data.held_out);
    // A step of the longest example and others of mean length.
    let steps = Sampler::new(&data.train, plan).steps_per_epoch() as usize;
    let step = (all / steps.max(1)).max(longest);
    let largest = |longest: usize, all: usize| plan.micro_batch_tokens.min(all).max(longest);
    let tokens = largest(longest, step).max(largest(held_longest, held_all));
    let share = |rows: &[Row]| -> f64 {
        let targets: usize = rows.iter().map(Row::supervised).sum();
        let tokens: usize = rows.iter().map(Row::input_len).sum();
        targets as f64 / tokens.max(1) as f64
    };
    let nll = plan.objective.nll(plan);
    let share = if nll.whole { 1.0 } else { share(&data.train).max(share(&data.held_out)) };
    let targets = (share * tokens as f64).ceil() as usize;
    let segments = tokens.div_ceil(longest.max(1)).max(1);
    let trainable = match plan.method {
        Method::Full => {
            let count = decoder.param_count();
            // Values, gradient, two moments and the untrained values; the base itself turns into f32.
            let becomes = (count * F32).saturating_sub(decoder.weight_bytes());
            let best = usize::from(plan.load_best_model_at_end && !data.held_out.is_empty());
            count * F32 * (5 + best) + becomes
        }
        Method::Lora => LoraAdapter::count(&plan.lora_config(), config).map_or(0, |count| {
            let best = usize::from(plan.load_best_model_at_end && !data.held_out.is_empty());
            count.params * F32 * (5 + best) + count.packed_bytes
        }),
    };
    let h = config.hidden_size;
    MemoryEstimate {
        trainable,
        activations: Tape::bytes(config, plan.tape_mode(), tokens, segments),
        logits: (logits_floats(config.vocab_size).min(targets * config.vocab_size)
            + 5 * targets * h)
            * F32,
        data: (all + held_all) * 5,
        kernels: model::buffer_bytes(rayon::current_num_threads()),
    }
}
