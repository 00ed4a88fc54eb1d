//! The learning rate of each step.

use serde::{Deserialize, Serialize};

/// Course of the learning rate after warm-up, in Hugging Face's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// Straight down to the lowest rate.
    Linear,
    /// Half a cosine down to the lowest rate.
    Cosine,
    /// Stays at the peak.
    Constant,
}

/// Learning rate by step.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Course after warm-up.
    pub kind: SchedulerType,
    /// Peak learning rate.
    pub peak: f64,
    /// Lowest rate as a share of the peak.
    pub min_ratio: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// All steps.
    pub total_steps: u64,
}

impl Schedule {
    /// Learning rate of step `step`, counted from 0.
    ///
    /// Warm-up step s of W has the share (s + 1) / (W + 1) of the peak: Hugging Face starts at 0,
    /// which spends the first step on nothing (and would hide a lora_B that cannot move). After
    /// warm-up the values are Hugging Face's: the rate reaches its lowest value one step after
    /// the last.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        let rest = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / rest as f64).min(1.0);
        let share = match self.kind {
            SchedulerType::Linear => 1.0 - progress,
            SchedulerType::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            SchedulerType::Constant => return self.peak,
        };
        self.peak * (self.min_ratio + (1.0 - self.min_ratio) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: SchedulerType, warmup_steps: u64, total_steps: u64, min_ratio: f64) -> Vec<f64> {
        let schedule = Schedule { kind, peak: 2.0, min_ratio, warmup_steps, total_steps };
        (0..total_steps).map(|s| schedule.learning_rate(s)).collect()
    }

    fn check(found: Vec<f64>, expected: &[f64]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 1e-12, "found {found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn values() {
        check(rates(SchedulerType::Linear, 0, 4, 0.0), &[2.0, 1.5, 1.0, 0.5]);
        check(rates(SchedulerType::Linear, 1, 5, 0.0), &[1.0, 2.0, 1.5, 1.0, 0.5]);
        check(rates(SchedulerType::Linear, 0, 4, 0.5), &[2.0, 1.75, 1.5, 1.25]);
        let root = 0.5f64.sqrt();
        check(rates(SchedulerType::Cosine, 0, 4, 0.0), &[2.0, 1.0 + root, 1.0, 1.0 - root]);
        check(rates(SchedulerType::Constant, 3, 5, 0.1), &[0.5, 1.0, 1.5, 2.0, 2.0]);
    }

    #[test]
    fn stays_at_its_lowest_past_the_end() {
        let schedule = Schedule {
            kind: SchedulerType::Cosine,
            peak: 1.0,
            min_ratio: 0.1,
            warmup_steps: 2,
            total_steps: 10,
        };
        assert!((schedule.learning_rate(10) - 0.1).abs() < 1e-12);
        assert!((schedule.learning_rate(99) - 0.1).abs() < 1e-12);
    }
}
