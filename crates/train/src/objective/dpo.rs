//! Direct preference optimisation (arXiv 2305.18290) and its variants, in TRL's form
//! (`DPOTrainer`, `loss_type`): a function of how much likelier the two answers became against the
//! reference, log π − log π_ref, the log-probability of an answer being the sum over its tokens.

use super::{Answer, Judgement, Nll, log_sigmoid, sigmoid};
use crate::plan::TrainPlan;
use serde::{Deserialize, Serialize};

/// A loss on pairs, or on single answers, in TRL's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// The paper's own: the pair's likelihood under Bradley and Terry.
    Sigmoid,
    /// The same on log-probabilities per token.
    SigmoidNorm,
    /// Hinge (SLiC, arXiv 2305.10425).
    Hinge,
    /// Squared distance from a margin of 1 / (2 beta), per token (IPO, arXiv 2310.12036).
    Ipo,
    /// Reverse KL to the preference (EXO, arXiv 2402.00856); needs label_smoothing.
    ExoPair,
    /// Noise contrastive alignment (arXiv 2402.05369).
    NcaPair,
    /// For labels of which a share label_smoothing is wrong (arXiv 2403.00409).
    Robust,
    /// Binary classifier on each answer (BCO, arXiv 2404.04656) without its reward shift.
    BcoPair,
    /// Self-play preference optimisation with certain labels (arXiv 2405.00675).
    SppoHard,
    /// Anchored: up with the chosen, down with the rejected (APO, arXiv 2408.06266).
    ApoZero,
    /// Anchored: down with both, more so with the rejected (APO).
    ApoDown,
    /// Next-token loss on the chosen answers, to be mixed in.
    Sft,
    /// KTO's own.
    Kto,
    /// APO-zero on single answers, for KTO's data.
    ApoZeroUnpaired,
}

impl LossType {
    /// The types that the objective `dpo` takes.
    pub(crate) const DPO: [LossType; 12] = [
        LossType::Sigmoid,
        LossType::SigmoidNorm,
        LossType::Hinge,
        LossType::Ipo,
        LossType::ExoPair,
        LossType::NcaPair,
        LossType::Robust,
        LossType::BcoPair,
        LossType::SppoHard,
        LossType::ApoZero,
        LossType::ApoDown,
        LossType::Sft,
    ];
    /// The types that the objective `kto` takes.
    pub(crate) const KTO: [LossType; 2] = [LossType::Kto, LossType::ApoZeroUnpaired];
}

pub(super) fn judge(plan: &TrainPlan, [chosen, rejected]: [Answer; 2]) -> Judgement {
    let mut sum = Judgement { rewards: [0.0; 2], ..Judgement::default() };
    for (loss_type, weight) in plan.losses() {
        let (loss, slopes) = one(loss_type, plan, chosen, rejected);
        sum.loss += weight * loss;
        for (sum, slope) in sum.slopes.iter_mut().zip(slopes) {
            *sum += weight * slope;
        }
    }
    sum.rewards = [plan.beta * chosen.ratio(), plan.beta * rejected.ratio()];
    sum
}

/// The loss and its derivatives by the two log-probabilities.
fn one(loss_type: LossType, plan: &TrainPlan, chosen: Answer, rejected: Answer) -> (f64, [f64; 2]) {
    let beta = plan.beta;
    let (c, r) = (chosen.ratio(), rejected.ratio());
    // A function of the difference alone: its value and its derivative.
    let of_difference = |(loss, slope): (f64, f64)| (loss, [slope, -slope]);
    let logistic = |x: f64| (-log_sigmoid(x), -sigmoid(-x));
    match loss_type {
        LossType::Sigmoid => {
            let (loss, slope) = logistic(beta * (c - r));
            of_difference((loss, beta * slope))
        }
        LossType::SigmoidNorm => {
            let (loss, slope) = logistic(beta * (c / chosen.tokens - r / rejected.tokens));
            (loss, [beta * slope / chosen.tokens, -beta * slope / rejected.tokens])
        }
        LossType::Hinge => {
            let gap = 1.0 - beta * (c - r);
            of_difference(if gap > 0.0 { (gap, -beta) } else { (0.0, 0.0) })
        }
        LossType::Ipo => {
            let off = c / chosen.tokens - r / rejected.tokens - 1.0 / (2.0 * beta);
            (off * off, [2.0 * off / chosen.tokens, -2.0 * off / rejected.tokens])
        }
        LossType::ExoPair => {
            let x = beta * (c - r);
            let (win, lose) = (sigmoid(x), sigmoid(-x));
            let (for_win, for_lose) = ((-plan.label_smoothing).ln_1p(), plan.label_smoothing.ln());
            let (a, b) = (log_sigmoid(x) - for_win, log_sigmoid(-x) - for_lose);
            // d/dx of win·a + lose·b; the logarithms' own derivatives cancel.
            of_difference((win * a + lose * b, beta * win * lose * (a - b)))
        }
        LossType::NcaPair => {
            let (c, r) = (beta * c, beta * r);
            let loss = -log_sigmoid(c) - 0.5 * log_sigmoid(-c) - 0.5 * log_sigmoid(-r);
            (loss, [beta * (0.5 * sigmoid(c) - sigmoid(-c)), beta * 0.5 * sigmoid(r)])
        }
        LossType::Robust => {
            let (x, e) = (beta * (c - r), plan.label_smoothing);
            let loss = (-(1.0 - e) * log_sigmoid(x) + e * log_sigmoid(-x)) / (1.0 - 2.0 * e);
            let slope = (-(1.0 - e) * sigmoid(-x) - e * sigmoid(x)) / (1.0 - 2.0 * e);
            of_difference((loss, beta * slope))
        }
        LossType::BcoPair => {
            let (c, r) = (beta * c, beta * r);
            let loss = -log_sigmoid(c) - log_sigmoid(-r);
            (loss, [-beta * sigmoid(-c), beta * sigmoid(r)])
        }
        LossType::SppoHard => {
            let (win, lose) = (c - 0.5 / beta, r + 0.5 / beta);
            (win * win + lose * lose, [2.0 * win, 2.0 * lose])
        }
        LossType::ApoZero => {
            let (c, r) = (sigmoid(beta * c), sigmoid(beta * r));
            (1.0 - c + r, [-beta * c * (1.0 - c), beta * r * (1.0 - r)])
        }
        LossType::ApoDown => {
            let (c, d) = (sigmoid(beta * c), sigmoid(beta * (c - r)));
            let (dc, dd) = (beta * c * (1.0 - c), beta * d * (1.0 - d));
            (c + 1.0 - d, [dc - dd, dd])
        }
        // Counted by token, beside: see `nll`.
        LossType::Sft | LossType::Kto | LossType::ApoZeroUnpaired => (0.0, [0.0; 2]),
    }
}

/// The next-token loss on chosen answers that is mixed in.
pub(super) fn nll(plan: &TrainPlan) -> Nll {
    let sft = plan.losses().filter(|(t, _)| *t == LossType::Sft);
    Nll { weight: sft.map(|(_, weight)| weight).sum(), whole: false }
}
