//! Training: supervised fine-tuning and pretraining, with LoRA or of all weights.
//!
//! Read [`run`](run()) first: one loop, from packed rows through `Decoder::forward` and
//! `Decoder::backward` to the optimizer, held-out loss and checkpoint. What a run does is written
//! in its [`TrainPlan`] and nowhere else; the same plan, data and base give the same bytes, also
//! when the run was killed and resumed on the way.
//!
//! The traps of fine-tuning are errors here: see [`TrainError`] for the list.

mod checkpoint;
mod divergence;
mod error;
mod events;
mod forgetting;
mod guard;
mod guidance;
mod manifest;
mod memory;
mod objective;
mod optimizer;
mod output;
mod pack;
mod plan;
mod reference;
mod rows;
mod run;
mod schedule;
mod tensorboard;
mod trainable;

pub use divergence::{Divergence, Reader};
pub use error::TrainError;
pub use events::{Event, HeldOut, Observer, Rewards};
pub use forgetting::{Forgetting, GeneralText, Piece};
pub use manifest::{CHAT_TEMPLATE_FILE, MANIFEST_FILE, Manifest, Provenance};
pub use memory::{MemoryEstimate, estimate, steps_per_epoch};
pub use objective::{LossType, Objective};
pub use optimizer::AdamW;
pub use output::{LOG_FILE, ReportTo, is_running, tokenizer_files};
pub use plan::{
    DEFAULT_FULL_LEARNING_RATE, DEFAULT_LORA_LEARNING_RATE, DEFAULT_PREFERENCE_LEARNING_RATE,
    DEFAULT_PRETRAINING_LEARNING_RATE, FloatDtype, Guard, Method, StepSize, TrainPlan,
};
pub use rows::{Row, RowReport, TRAINING_CLOCK, TrainData};
pub use run::{Job, TrainOutcome, TrainStatus, run, run_together};
pub use schedule::{Schedule, SchedulerType};
pub use tensorboard::{Scalar, TENSORBOARD_FILE, read_scalars};
