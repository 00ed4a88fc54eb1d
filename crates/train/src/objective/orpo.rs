//! ORPO (arXiv 2403.07691), as TRL's `ORPOTrainer`: next-token loss on the chosen row, prompt
//! included, and beta times the log of how much likelier, as odds, the chosen answer is. Answers
//! count by their log-probability per token, without a reference.

use super::{Answer, Judgement, Nll, log_sigmoid, sigmoid};
use crate::plan::TrainPlan;

pub(super) const NLL: Nll = Nll { weight: 1.0, whole: true };

pub(super) fn judge(plan: &TrainPlan, [chosen, rejected]: [Answer; 2]) -> Judgement {
    let mean = [chosen, rejected].map(|a| a.logp / a.tokens);
    // log(1 - p) for p = e^mean, as a sum of logarithms that keeps its digits for p near 0 and 1.
    let other = mean
        .map(|m| if m > -std::f64::consts::LN_2 { (-m.exp_m1()).ln() } else { (-m.exp()).ln_1p() });
    let odds = mean[0] - mean[1] - (other[0] - other[1]);
    let slope = -plan.beta * sigmoid(-odds);
    // d odds / d mean = 1 + p / (1 - p) = 1 / (1 - p)
    let steep = mean.map(|m| -1.0 / m.exp_m1());
    Judgement {
        loss: -plan.beta * log_sigmoid(odds),
        slopes: [slope * steep[0] / chosen.tokens, -slope * steep[1] / rejected.tokens],
        rewards: mean.map(|m| plan.beta * m),
    }
}
