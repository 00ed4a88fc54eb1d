//! Next-token cross-entropy, with logits only where a target is and never more than a chunk of
//! them at a time: [targets, V] would be the largest buffer of all.

use super::Learner;
use crate::pack::MicroBatch;
use model::{Grads, Memory, ModelError};

/// Logits held at once, in floats (16 MB).
const LOGIT_FLOATS: usize = 4 << 20;

pub(super) fn backward(
    learner: Learner<'_>,
    micro: &MicroBatch,
    weight: f32,
    grads: &mut Grads,
) -> Result<Vec<f32>, ModelError> {
    let Learner { decoder, adapters, tape } = learner;
    let mut losses = vec![0.0; micro.targets.len()];
    let hidden = decoder.forward(&micro.batch, adapters, Memory::Tape(tape))?;
    let chunk = chunk(decoder.config().vocab_size);
    let dhidden = decoder.head_backward(&hidden, chunk, grads, &mut |rows, logits| {
        let (targets, losses) = (&micro.targets[rows.clone()], &mut losses[rows]);
        model::cross_entropy_backward_inplace(logits, targets, weight, losses);
    });
    decoder.backward(&micro.batch, adapters, tape, &dhidden, grads)?;
    Ok(losses)
}

pub(super) fn loss(learner: Learner<'_>, micro: &MicroBatch) -> Result<Vec<f32>, ModelError> {
    let Learner { decoder, adapters, tape } = learner;
    let mut losses = vec![0.0; micro.targets.len()];
    let hidden = decoder.forward(&micro.batch, adapters, Memory::Tape(tape))?;
    let chunk = chunk(decoder.config().vocab_size);
    decoder.head_forward(&hidden, chunk, &mut |rows, logits| {
        model::cross_entropy(logits, &micro.targets[rows.clone()], &mut losses[rows]);
    });
    Ok(losses)
}

fn chunk(vocab_size: usize) -> usize {
    (LOGIT_FLOATS / vocab_size).clamp(16, 1024)
}
