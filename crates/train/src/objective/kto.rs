//! KTO (arXiv 2402.01306), as TRL's `KTOTrainer`: single answers, each wanted or not. Utility is
//! measured from a reference point z: how much likelier the policy makes answers to other prompts
//! of the same step, a constant for the gradient.

use super::dpo::LossType;
use super::{Answer, Judgement, sigmoid};
use crate::plan::TrainPlan;

pub(super) fn judge(plan: &TrainPlan, answer: Answer, wanted: bool, z: f64) -> Judgement {
    let (beta, ratio) = (plan.beta, answer.ratio());
    let z = if uses_kl(plan) { z } else { 0.0 };
    let value = sigmoid(beta * (ratio - z));
    let (loss, slope) = match wanted {
        true => (1.0 - value, -1.0),
        false => (value, 1.0),
    };
    let weight = if wanted { plan.desirable_weight } else { plan.undesirable_weight };
    Judgement {
        loss: weight * loss,
        slopes: [weight * slope * beta * value * (1.0 - value), 0.0],
        rewards: [beta * ratio, 0.0],
    }
}

/// Whether the loss needs the reference point.
pub(super) fn uses_kl(plan: &TrainPlan) -> bool {
    plan.losses().any(|(t, _)| t == LossType::Kto)
}
