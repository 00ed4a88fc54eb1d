//! SimPO (arXiv 2405.14734), as TRL's `CPOTrainer` with `loss_type="simpo"` and `cpo_alpha=0`: the
//! pair's likelihood from log-probabilities per token, with a margin and without a reference.

use super::{Answer, Judgement, log_sigmoid, sigmoid};
use crate::plan::TrainPlan;

pub(super) fn judge(plan: &TrainPlan, [chosen, rejected]: [Answer; 2]) -> Judgement {
    let (beta, e) = (plan.beta, plan.label_smoothing);
    let rewards = [chosen, rejected].map(|a| beta * a.logp / a.tokens);
    let x = rewards[0] - rewards[1] - plan.simpo_gamma;
    let slope = beta * (-(1.0 - e) * sigmoid(-x) + e * sigmoid(x));
    Judgement {
        loss: -(1.0 - e) * log_sigmoid(x) - e * log_sigmoid(-x),
        slopes: [slope / chosen.tokens, -slope / rejected.tokens],
        rewards,
    }
}
