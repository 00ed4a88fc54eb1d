//! What a person should make of a run, in three sentences: what happened, whether it learnt, what
//! to try next; where general text is foretold clearly worse than before, that is said too. Rules of
//! thumb with their sources, never a judgement on quality: that is what a test set is for.

use crate::events::HeldOut;
use crate::forgetting::Forgetting;
use crate::run::TrainStatus;

/// Held-out loss that moved by less than this share has not moved.
const STILL: f64 = 0.02;
/// Share of clipped steps above which the learning rate is too high (healthy gradient norms are 0.1
/// to 10, with clipping as the exception: Axolotl's guide to stability).
const OFTEN_CLIPPED: f64 = 0.5;
/// Steps below which a run tells little (Tinker's hyperparameter rules: at least 100).
const FEW_STEPS: u64 = 100;
/// Rise of the loss on general text, nats per token, from which on something was forgotten, where the
/// interval excludes 0 as well: it makes the perplexity a tenth higher. A smaller one is what any
/// training does to a text that it was not about.
const FORGOTTEN: f64 = 0.1;
/// Share of left-out rows worth a word.
const MANY_DROPPED: f64 = 0.01;

/// What is known of a run at its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) status: Option<TrainStatus>,
    pub(crate) step: u64,
    pub(crate) epoch: f64,
    pub(crate) rows: usize,
    /// Rows left out.
    pub(crate) dropped: usize,
    /// Targets of one pass over the data.
    pub(crate) targets: usize,
    pub(crate) trainable: usize,
    pub(crate) learning_rate: f64,
    pub(crate) train_loss: f64,
    pub(crate) clipped_steps: u64,
    pub(crate) before: Option<HeldOut>,
    /// Every measurement after a step, in order.
    pub(crate) measured: Vec<HeldOut>,
    pub(crate) saves_best: bool,
    /// What it cost on general text, where that was measured.
    pub(crate) guard: Option<Forgetting>,
}

/// How the held-out loss went.
enum Course {
    Unknown,
    /// Never below where it began, by more than [`STILL`].
    NotLearnt,
    /// Lowest at this step, and clearly higher at the end.
    ByHeart(HeldOut),
    /// Lowest at the end, and still falling.
    Falling,
    Learnt,
}

impl Facts {
    fn course(&self) -> Course {
        let (Some(before), Some(last)) = (self.before, self.measured.last()) else {
            return Course::Unknown;
        };
        let lower = |a: &HeldOut, b: &HeldOut| a.loss.total_cmp(&b.loss);
        let best = self.measured.iter().min_by(|a, b| lower(a, b)).unwrap_or(last);
        if best.loss > before.loss * (1.0 - STILL) {
            Course::NotLearnt
        } else if last.loss > best.loss * (1.0 + STILL) {
            Course::ByHeart(*best)
        } else if let [.., earlier, _] = &self.measured[..]
            && last.loss < earlier.loss * (1.0 - STILL)
        {
            Course::Falling
        } else {
            Course::Learnt
        }
    }

    /// What it cost on general text, where that is clearly much.
    fn forgotten(&self) -> Option<&Forgetting> {
        self.guard.as_ref().filter(|found| {
            let sure = found.difference_interval.is_none_or(|[lo, _]| lo > 0.0);
            sure && found.rise() > FORGOTTEN
        })
    }

    /// The three sentences.
    pub(crate) fn sentences(&self) -> [String; 3] {
        [self.what_happened(), self.whether_it_learnt(), self.what_next()]
    }

    fn what_happened(&self) -> String {
        let ended = match self.status {
            Some(TrainStatus::EarlyStopped) => ", stopped early",
            Some(TrainStatus::TimeLimit) => ", stopped at the time limit",
            Some(TrainStatus::Interrupted) => ", interrupted",
            Some(TrainStatus::Completed) | None => "",
        };
        let held_out = match (self.before, self.measured.last()) {
            (Some(before), Some(last)) => {
                format!(": held-out loss {:.3} -> {:.3}", before.loss, last.loss)
            }
            _ => format!(": training loss {:.3} at the end", self.train_loss),
        };
        format!(
            "{} steps, {:.1} passes over {} rows{ended}{held_out}.",
            self.step, self.epoch, self.rows
        )
    }

    fn whether_it_learnt(&self) -> String {
        let learnt = self.on_held_out();
        let Some(found) = self.forgotten() else { return learnt };
        let learnt = learnt.trim_end_matches('.');
        format!(
            "{learnt}; it also forgot: the loss on general text rose from {:.3} to {:.3}.",
            found.loss_before, found.loss_after
        )
    }

    fn on_held_out(&self) -> String {
        match self.course() {
            Course::Unknown => {
                "No rows were held out, so nothing tells whether it learnt more than \
                                what it was shown."
                    .into()
            }
            Course::NotLearnt => {
                "It did not learn: the loss on rows that it was not shown hardly moved.".into()
            }
            Course::ByHeart(best) => {
                let saved = if self.saves_best { "; those weights were saved" } else { "" };
                format!(
                    "It learnt until step {} (held-out loss {:.3}) and then by heart what it was \
                     shown{saved}.",
                    best.step, best.loss
                )
            }
            Course::Falling => "It learnt, and was still learning when it ended.".into(),
            Course::Learnt => "It learnt, and the held-out loss has levelled out.".into(),
        }
    }

    fn what_next(&self) -> String {
        let clipped = self.clipped_steps as f64 > OFTEN_CLIPPED * self.step.max(1) as f64;
        let dropped = self.dropped as f64 > MANY_DROPPED * (self.rows + self.dropped) as f64;
        let rate = self.learning_rate;
        match self.course() {
            Course::Unknown => "Hold some rows out: [data] valid or valid_fraction.".into(),
            _ if dropped => format!(
                "{} rows were left out as too long or without an answer: raise max_length or look at \
                 them with metier data show.",
                self.dropped
            ),
            Course::NotLearnt | Course::ByHeart(_) if clipped => format!(
                "Most steps were clipped at max_grad_norm: try learning_rate = {:.1e}.",
                rate / 3.0
            ),
            // Steps so large that even general text suffers overshoot.
            Course::NotLearnt if self.forgotten().is_some() => {
                format!("The steps are too large: try learning_rate = {:.1e}.", rate / 5.0)
            }
            Course::NotLearnt if self.step < FEW_STEPS => format!(
                "{} steps are few: try more passes (num_train_epochs), or smaller steps (step_size).",
                self.step
            ),
            Course::NotLearnt => format!(
                "Try learning_rate = {:.1e}, and look at a few rows with metier data show: is the \
                 answer learnt, and does it follow from the question?",
                rate * 5.0
            ),
            Course::ByHeart(_) | Course::Falling | Course::Learnt if self.forgotten().is_some() => {
                let more = match self.course() {
                    Course::ByHeart(_) => ", and fewer passes",
                    _ => "",
                };
                format!(
                    "If general ability matters, mix replay into the data (general conversations, a tenth \
                     to a fifth of the rows, as one more source of [data] train), or try learning_rate = \
                     {:.1e}{more}.",
                    rate / 3.0
                )
            }
            Course::ByHeart(_) if self.trainable > 10 * self.targets => format!(
                "{} parameters learn from {} tokens: a smaller r will do, or more rows.",
                self.trainable, self.targets
            ),
            Course::ByHeart(_) => {
                "More or more varied rows would help most; fewer passes or lora_dropout = 0.05 hold \
                 back learning by heart."
                    .into()
            }
            Course::Falling => "Try more passes (num_train_epochs), then measure on your test set.".into(),
            Course::Learnt => "Measure it on your test set: metier eval.".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(step: u64, loss: f64) -> HeldOut {
        HeldOut { step, loss, tokens: 10, bits_per_byte: None, rewards: None }
    }

    fn facts(before: f64, measured: &[f64]) -> Facts {
        let measured: Vec<HeldOut> =
            measured.iter().enumerate().map(|(i, &l)| held(50 * (i as u64 + 1), l)).collect();
        Facts {
            status: Some(TrainStatus::Completed),
            step: measured.last().map_or(200, |h| h.step),
            epoch: 3.0,
            rows: 400,
            targets: 4000,
            trainable: 30_000,
            learning_rate: 3e-4,
            before: Some(held(0, before)),
            measured,
            saves_best: true,
            ..Facts::default()
        }
    }

    #[test]
    fn each_course_is_told_apart() {
        for (facts, learnt, next) in [
            (facts(2.0, &[1.0, 0.5, 0.498]), "It learnt, and the held-out loss has", "metier eval"),
            (facts(2.0, &[1.5, 1.2, 0.9]), "still learning", "more passes"),
            (facts(2.0, &[1.99, 1.98, 1.985]), "did not learn", "learning_rate = 1.5e-3"),
            (facts(2.0, &[2.4]), "did not learn", "50 steps are few"),
            (facts(2.0, &[0.8, 0.6, 0.9]), "until step 100 (held-out loss 0.600)", "varied rows"),
            (Facts { measured: vec![], ..facts(2.0, &[]) }, "nothing tells", "Hold some rows out"),
        ] {
            let [happened, found, advice] = facts.sentences();
            assert!(happened.contains("3.0 passes over 400 rows"), "{happened}");
            assert!(found.contains(learnt), "{found}");
            assert!(advice.contains(next), "{advice}");
        }
    }

    fn guard(before: f64, after: f64, interval: Option<[f64; 2]>) -> Option<Forgetting> {
        Some(Forgetting {
            text: "a text".into(),
            step: 100,
            tokens: 1000,
            pieces: 10,
            loss_before: before,
            loss_after: after,
            difference_interval: interval,
            bits_per_byte_before: None,
            bits_per_byte_after: None,
            kl: 0.1,
            kl_tokens: 1000,
        })
    }

    #[test]
    fn forgetting_is_said_where_it_is_clear() {
        let learnt = facts(2.0, &[1.0, 0.5, 0.498]);
        let with = |guard| Facts { guard, ..learnt.clone() };
        let told = with(guard(3.0, 3.5, Some([0.4, 0.6]))).sentences();
        assert!(
            told[1]
                .starts_with("It learnt, and the held-out loss has levelled out; it also forgot")
        );
        assert!(told[1].ends_with("rose from 3.000 to 3.500."), "{}", told[1]);
        assert!(told[2].contains("replay") && told[2].contains("1.0e-4"), "{}", told[2]);
        // Too little, not sure, or better than before: nothing is said.
        for guard in [
            guard(3.0, 3.05, Some([0.04, 0.06])),
            guard(3.0, 3.5, Some([-0.1, 1.1])),
            guard(3.0, 2.5, Some([-0.6, -0.4])),
        ] {
            assert_eq!(with(guard).sentences(), learnt.sentences());
        }
        // Not learnt and forgotten: larger steps would be bad advice.
        let broken = Facts { guard: guard(3.0, 6.0, None), ..facts(2.0, &[2.4, 2.9, 3.1]) };
        assert!(broken.sentences()[2].contains("learning_rate = 6.0e-5"));
        let by_heart = Facts { guard: guard(3.0, 3.6, None), ..facts(2.0, &[0.8, 0.6, 0.9]) };
        assert!(by_heart.sentences()[2].ends_with("and fewer passes."));
    }

    #[test]
    fn trouble_comes_before_praise() {
        let good = facts(2.0, &[1.0, 0.5, 0.498]);
        let dropped = Facts { dropped: 30, ..good.clone() };
        assert!(dropped.sentences()[2].contains("30 rows were left out"));
        let clipped = Facts { clipped_steps: 120, ..facts(2.0, &[1.99, 2.1, 2.3]) };
        assert!(clipped.sentences()[2].contains("learning_rate = 1.0e-4"));
        let large = Facts { trainable: 1_000_000, ..facts(2.0, &[0.8, 0.6, 0.9]) };
        assert!(large.sentences()[2].contains("a smaller r will do"));
        let early = Facts { status: Some(TrainStatus::EarlyStopped), ..good };
        assert!(early.sentences()[0].contains("stopped early"));
    }
}
