//! What a run tells while it goes: to the caller's [`Observer`], and as JSON lines to the log.

use crate::forgetting::Forgetting;
use crate::plan::TrainPlan;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A measurement on the held-out rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean loss: per target in nats, or per example where answers are judged.
    pub loss: f64,
    /// Targets measured.
    pub tokens: u64,
    /// Summed loss in bits over the bytes of the held-out text; None for conversations.
    pub bits_per_byte: Option<f64>,
    /// How answers are rewarded; None where none are judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Rewards>,
}

/// What a preference objective makes of answers, means in TRL's names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rewards {
    /// Of chosen (wanted) answers; None where there was none.
    pub chosen: Option<f64>,
    /// Of rejected (unwanted) answers.
    pub rejected: Option<f64>,
    /// Chosen less rejected.
    pub margins: Option<f64>,
    /// Share of pairs whose chosen answer has the larger reward; None for single answers.
    pub accuracies: Option<f64>,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// First of all, and again when a run is resumed: what is to be done.
    Plan {
        /// Seconds since 1970.
        time: f64,
        /// Name of the base.
        base_name: String,
        /// The whole plan.
        plan: Box<TrainPlan>,
    },
    /// Before the first step.
    Start {
        /// Optimizer steps done by an earlier part of this run.
        step: u64,
        /// Steps of the whole run.
        total_steps: u64,
        /// Steps of one pass over the data.
        steps_per_epoch: u64,
        /// Rows trained on.
        rows: usize,
        /// Tokens of one pass over the data.
        tokens: usize,
        /// Rows held out.
        held_out_rows: usize,
        /// Parameters trained.
        trainable_parameters: usize,
    },
    /// An optimizer step was done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps of the whole run.
        total_steps: u64,
        /// Passes over the data done.
        epoch: f64,
        /// Mean loss of this step: per target in nats, or per example where answers are judged.
        loss: f64,
        /// Learning rate of this step.
        learning_rate: f64,
        /// Global norm before clipping.
        grad_norm: f64,
        /// Tokens that went through the model in this step.
        tokens: u64,
        /// Targets of this step.
        supervised_tokens: u64,
        /// Tokens per second of training since this process began.
        tokens_per_second: f64,
        /// Seconds of training so far, earlier parts included.
        seconds: f64,
        /// Seconds to the last step at the present pace.
        eta_seconds: f64,
        /// How the answers of this step were rewarded; None where none are judged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rewards: Option<Rewards>,
    },
    /// The held-out loss was measured.
    Evaluation {
        /// The measurement.
        #[serde(flatten)]
        held_out: HeldOut,
        /// Whether it is the lowest so far.
        best: bool,
    },
    /// The general text was read by the base and by what was trained.
    Guard(Forgetting),
    /// A checkpoint is on disk.
    Checkpoint {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// The run continues from a checkpoint.
    Resumed {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// Something the user should know and that does not stop the run.
    Warning {
        /// In words.
        message: String,
    },
    /// The result is on disk, or the run was interrupted.
    End {
        /// Steps done.
        step: u64,
        /// completed, time_limit or interrupted.
        status: crate::run::TrainStatus,
        /// Seconds of training, earlier parts included.
        seconds: f64,
        /// Three sentences: what happened, whether it learnt, what to try next.
        #[serde(default)]
        guidance: Vec<String>,
    },
}

impl Event {
    /// What is to be done, now.
    pub(crate) fn plan(plan: &TrainPlan, base_name: &str) -> Event {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Event::Plan {
            time: now.map_or(0.0, |age| age.as_secs_f64()),
            base_name: base_name.to_owned(),
            plan: Box::new(plan.clone()),
        }
    }
}

/// Follows a run, to draw a progress bar for instance. Any `FnMut(&Event)` will do.
pub trait Observer {
    /// Called after each event, every step included.
    fn event(&mut self, event: &Event);
}

impl<F: FnMut(&Event)> Observer for F {
    fn event(&mut self, event: &Event) {
        self(event);
    }
}
