//! Where a trained model comes from: stored beside it, so that it is served with the template it
//! was trained with and can be made again.

use crate::events::HeldOut;
use crate::forgetting::Forgetting;
use crate::plan::TrainPlan;
use crate::run::TrainStatus;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Name of the manifest in the output folder.
pub const MANIFEST_FILE: &str = "metier_manifest.json";
/// Name of the chat template in the output folder, as Hugging Face names it.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// What the caller knows about base and data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Name of the base, as the user gave it.
    pub base_name: String,
    /// Its licence; empty when unknown.
    pub base_licence: String,
    /// Names of the data files.
    pub data_files: Vec<String>,
    /// Their licences.
    pub data_licences: Vec<String>,
    /// Models that wrote the data, as the user states.
    #[serde(default)]
    pub generated_by: Vec<String>,
    /// SHA-256 of test files whose questions were left out of training.
    #[serde(default)]
    pub kept_apart: Vec<String>,
    /// SHA-256 of the tokenizer.
    pub tokenizer_sha256: String,
    /// Source of the chat template; empty when there is none (pretraining).
    pub chat_template: String,
    /// Files copied beside a fully trained model (an adapter needs the base's anyway): see [`crate::tokenizer_files`].
    #[serde(skip)]
    pub copied_files: Vec<PathBuf>,
}

/// `metier_manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this file's form.
    pub schema_version: u32,
    /// Version of the program that trained.
    pub metier_version: String,
    /// Name of the base.
    pub base_name: String,
    /// Digest of the base's configuration and weights.
    pub base_sha256: String,
    /// Licence of the base; empty when unknown.
    pub base_licence: String,
    /// Names of the data files.
    pub data_files: Vec<String>,
    /// Licences of the data.
    pub data_licences: Vec<String>,
    /// Models that wrote the data, as the user stated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generated_by: Vec<String>,
    /// SHA-256 of test files of which no question was trained on, not exactly, not after normalising, not nearly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_apart: Vec<String>,
    /// Digest of the token rows, trained on and held out.
    pub data_sha256: String,
    /// Digest of the tokenizer.
    pub tokenizer_sha256: String,
    /// Digest of [`CHAT_TEMPLATE_FILE`]; empty when there is none.
    pub chat_template_sha256: String,
    /// Digest of what in the plan decides the weights.
    pub plan_sha256: String,
    /// The whole plan.
    pub plan: TrainPlan,
    /// How the run ended.
    pub status: TrainStatus,
    /// Optimizer steps done.
    pub steps: u64,
    /// Step whose weights were saved.
    pub saved_step: u64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Targets learnt from.
    pub supervised_tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Loss of the last step.
    pub train_loss: f64,
    /// Held-out loss of the base.
    pub held_out_before: Option<HeldOut>,
    /// Held-out loss at the end.
    pub held_out: Option<HeldOut>,
    /// Lowest held-out loss on the way.
    pub best: Option<HeldOut>,
    /// What it cost in general ability; None when it was not measured.
    #[serde(default)]
    pub guard: Option<Forgetting>,
}
