//! The resolved plan of a training: every choice made, none left open.

use crate::error::TrainError;
use crate::objective::{LossType, Objective};
use crate::output::ReportTo;
use crate::schedule::SchedulerType;
use indexmap::IndexMap;
use model::{DecoderConfig, LoraConfig, LoraConfigError, TapeMode, Targets};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Learning rate of preference objectives with LoRA; a tenth of it in full fine-tuning (facts: Tinker's
/// hyperparameter rules for DPO with beta 0.1 and r 32).
pub const DEFAULT_PREFERENCE_LEARNING_RATE: f64 = 1e-5;
/// LoRA learning rate where the rule of `Family::lora_learning_rate` covers no family.
pub const DEFAULT_LORA_LEARNING_RATE: f64 = 2e-4;
/// Learning rate of full fine-tuning.
pub const DEFAULT_FULL_LEARNING_RATE: f64 = 5e-5;
/// Learning rate of pretraining from random weights.
pub const DEFAULT_PRETRAINING_LEARNING_RATE: f64 = 5e-4;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// An adapter (arXiv 2106.09685); the base is frozen.
    Lora,
    /// Every weight.
    Full,
}

/// How much one optimizer step sees; it is cut into micro-batches by
/// [`TrainPlan::micro_batch_tokens`], which does not change the result beyond rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSize {
    /// At most this many rows (Hugging Face: per_device_train_batch_size x
    /// gradient_accumulation_steps).
    Rows(usize),
    /// About this many tokens.
    Tokens(usize),
}

/// Type of saved weights or kept activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FloatDtype {
    /// As computed.
    #[default]
    Float32,
    /// Rounded to nearest even: half the size.
    Bfloat16,
}

/// On which general text it is measured what the training makes the base forget. In JSON and TOML: true,
/// false, or a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "GuardAsWritten", into = "GuardAsWritten")]
pub enum Guard {
    /// The caller's own: Metier has one built in.
    #[default]
    Bundled,
    /// None.
    Off,
    /// A file or folder of plain text or of conversations.
    Data(PathBuf),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, false or a path")]
enum GuardAsWritten {
    On(bool),
    Data(PathBuf),
}

impl From<GuardAsWritten> for Guard {
    fn from(written: GuardAsWritten) -> Guard {
        match written {
            GuardAsWritten::On(true) => Guard::Bundled,
            GuardAsWritten::On(false) => Guard::Off,
            GuardAsWritten::Data(path) => Guard::Data(path),
        }
    }
}

impl From<Guard> for GuardAsWritten {
    fn from(guard: Guard) -> GuardAsWritten {
        match guard {
            Guard::Bundled => GuardAsWritten::On(true),
            Guard::Off => GuardAsWritten::On(false),
            Guard::Data(path) => GuardAsWritten::Data(path),
        }
    }
}

/// Everything that decides a training. Field names follow Hugging Face's `TrainingArguments`,
/// TRL's `SFTConfig` and PEFT's `LoraConfig` where those have the field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPlan {
    /// What is trained.
    pub method: Method,
    /// What is minimised.
    pub objective: Objective,
    /// Where the result, the log and the checkpoints go.
    pub output_dir: PathBuf,
    /// Seed of initial adapter and shuffles; there is no other randomness.
    pub seed: u64,

    /// LoRA rank.
    pub r: usize,
    /// LoRA scale is lora_alpha / r.
    pub lora_alpha: f32,
    /// Probability with which an input of lora_A is zero in training.
    pub lora_dropout: f32,
    /// Which linear layers get LoRA: names, a pattern for full names, or "all-linear".
    pub target_modules: Targets,
    /// Linear layers that get none all the same.
    pub exclude_modules: Targets,
    /// Only these layers, counted from 0; all when empty.
    pub layers_to_transform: Vec<usize>,
    /// Another rank for some modules, by the end of their names or an expression for it.
    pub rank_pattern: IndexMap<String, usize>,
    /// Another alpha for some modules, in the same way.
    pub alpha_pattern: IndexMap<String, f32>,
    /// Scale by lora_alpha / sqrt(r) (arXiv 2312.03732).
    pub use_rslora: bool,
    /// Learn the lengths of rows apart from their directions (arXiv 2402.09353).
    pub use_dora: bool,
    /// LoRA+ (arXiv 2402.12354): learning rate of lora_B as a multiple of lora_A's. 1 is plain LoRA.
    pub loraplus_lr_ratio: f64,

    /// How strongly answers are held near the reference (DPO, KTO), or how much they count (ORPO,
    /// SimPO).
    pub beta: f64,
    /// Losses of DPO or KTO; several are added with their `loss_weights`.
    pub loss_type: Vec<LossType>,
    /// Weight of each loss type; all 1 when empty.
    pub loss_weights: Vec<f64>,
    /// Share of labels taken to be wrong (loss types robust and exo_pair, SimPO).
    pub label_smoothing: f64,
    /// SimPO's margin between chosen and rejected answers.
    pub simpo_gamma: f64,
    /// KTO's weight of wanted answers.
    pub desirable_weight: f64,
    /// KTO's weight of unwanted answers.
    pub undesirable_weight: f64,

    /// Peak learning rate.
    pub learning_rate: f64,
    /// Its course after warm-up.
    pub lr_scheduler_type: SchedulerType,
    /// Steps of linear warm-up; 0 leaves it to `warmup_ratio`.
    pub warmup_steps: u64,
    /// Share of all steps that warms up, when `warmup_steps` is 0.
    pub warmup_ratio: f64,
    /// Lowest learning rate after warm-up, as a share of the peak.
    pub min_lr_ratio: f64,

    /// Gradients are scaled down to this global norm; 0 leaves them as they are.
    pub max_grad_norm: f64,
    /// Decoupled weight decay; on matrices only in full fine-tuning, on all of the adapter in LoRA.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_epsilon: f64,

    /// Passes over the data, fractions allowed, when `max_steps` is 0.
    pub num_train_epochs: f64,
    /// Optimizer steps; 0 leaves it to `num_train_epochs`.
    pub max_steps: u64,
    /// Stops after the step that passes this many seconds of training; 0 is no limit. The
    /// learning rate follows the steps all the same.
    pub max_seconds: u64,

    /// Longest row in tokens. Longer conversations are left out and counted; text is cut into
    /// windows of this length.
    pub max_length: usize,
    /// What one optimizer step sees.
    pub step_size: StepSize,
    /// Tokens that go through the model at once: more is faster, and needs more memory. A longer
    /// row goes alone.
    pub micro_batch_tokens: usize,
    /// Keep only layer inputs for the backward and compute the rest again: far less memory for
    /// about a third more arithmetic.
    pub gradient_checkpointing: bool,
    /// Type of the activations that are kept where gradient_checkpointing is off. bfloat16 takes a
    /// third of the memory, rounds what gradients are computed from, and nothing in the forward.
    #[serde(default)]
    pub activation_dtype: FloatDtype,
    /// Largest share of rows that may be unusable (too long, nothing supervised).
    pub max_dropped_share: f64,
    /// Text only: share of the blocks that is held out.
    pub held_out_share: f64,
    /// Text only: documents are cut into blocks of about this many bytes, the unit of holding out.
    pub held_out_block_bytes: usize,

    /// A log line every so many steps, at least 1.
    pub logging_steps: u64,
    /// Held-out loss every so many steps; 0 is before and after only.
    pub eval_steps: u64,
    /// A checkpoint every so many steps; 0 is only when interrupted.
    pub save_steps: u64,
    /// Checkpoints kept; 0 keeps all. At least 2 leaves one to fall back to.
    pub save_total_limit: usize,
    /// Save the weights of the lowest held-out loss instead of the last ones.
    pub load_best_model_at_end: bool,
    /// Stop after so many measurements of the held-out loss without a new lowest one; 0 never does.
    pub early_stopping_patience: u64,
    /// Type of saved weights in full fine-tuning; adapters are always f32.
    pub save_dtype: FloatDtype,
    /// On which text forgetting is measured.
    #[serde(default)]
    pub guard: Guard,
    /// Where the numbers of the run go beside its log.
    #[serde(default)]
    pub report_to: Vec<ReportTo>,
}

impl TrainPlan {
    /// The defaults for a base of this shape: LoRA with r = 32, alpha = 64 on all linear layers
    /// and the learning rate of the family's rule (facts in `Family::lora_learning_rate`), or
    /// [`DEFAULT_LORA_LEARNING_RATE`] where no rule was fitted.
    pub fn new(method: Method, objective: Objective, config: &DecoderConfig) -> TrainPlan {
        let lora = LoraConfig::default();
        let text = objective == Objective::Text;
        TrainPlan {
            method,
            objective,
            output_dir: PathBuf::from("out"),
            seed: 0,
            r: lora.r,
            lora_alpha: lora.lora_alpha,
            lora_dropout: 0.0,
            target_modules: Targets::all_linear(),
            exclude_modules: lora.exclude_modules,
            layers_to_transform: Vec::new(),
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            use_rslora: false,
            use_dora: false,
            loraplus_lr_ratio: 1.0,
            // SimPO's answers count per token, which takes a larger one (its paper, section 4).
            beta: if objective == Objective::Simpo { 2.0 } else { 0.1 },
            loss_type: objective.loss_types().first().copied().into_iter().collect(),
            loss_weights: Vec::new(),
            label_smoothing: 0.0,
            simpo_gamma: 0.5,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            learning_rate: match (method, text) {
                _ if objective.is_preference() => match method {
                    Method::Lora => DEFAULT_PREFERENCE_LEARNING_RATE,
                    Method::Full => DEFAULT_PREFERENCE_LEARNING_RATE / 10.0,
                },
                (Method::Lora, _) => config
                    .family
                    .lora_learning_rate(config.hidden_size)
                    .unwrap_or(DEFAULT_LORA_LEARNING_RATE),
                (Method::Full, false) => DEFAULT_FULL_LEARNING_RATE,
                (Method::Full, true) => DEFAULT_PRETRAINING_LEARNING_RATE,
            },
            lr_scheduler_type: if text { SchedulerType::Cosine } else { SchedulerType::Linear },
            warmup_steps: 0,
            warmup_ratio: 0.03,
            min_lr_ratio: 0.0,
            max_grad_norm: 1.0,
            weight_decay: if method == Method::Lora { 0.0 } else { 0.01 },
            adam_beta1: 0.9,
            adam_beta2: if text { 0.95 } else { 0.999 },
            adam_epsilon: 1e-8,
            num_train_epochs: if text || objective.is_preference() { 1.0 } else { 3.0 },
            max_steps: 0,
            max_seconds: 0,
            max_length: config.max_position_embeddings.min(1024),
            step_size: if text { StepSize::Tokens(16_384) } else { StepSize::Rows(16) },
            micro_batch_tokens: 2048,
            gradient_checkpointing: true,
            activation_dtype: FloatDtype::Float32,
            max_dropped_share: 0.05,
            held_out_share: 0.01,
            held_out_block_bytes: 64 << 10,
            logging_steps: 1,
            eval_steps: 100,
            save_steps: 100,
            save_total_limit: 2,
            load_best_model_at_end: true,
            early_stopping_patience: 0,
            save_dtype: FloatDtype::Float32,
            guard: Guard::default(),
            report_to: Vec::new(),
        }
    }

    /// Refuses values that cannot be honoured with a base of this shape.
    ///
    /// # Errors
    /// [`TrainError::Plan`] naming the first such field, its value and what is allowed.
    pub fn validate(&self, config: &DecoderConfig) -> Result<(), TrainError> {
        let bad = |field, found: &dyn ToString, expected: &str| {
            Err(TrainError::plan(field, found.to_string(), expected))
        };
        if self.method == Method::Lora {
            let positive = self.lora_alpha > 0.0 && self.alpha_pattern.values().all(|a| *a > 0.0);
            if !positive {
                return bad("lora_alpha", &self.lora_alpha, "a positive number");
            }
            let refused = |e: LoraConfigError| TrainError::plan(e.field, e.found, &e.expected);
            self.lora_config().validate(config).map_err(refused)?;
        }
        self.validate_objective()?;
        for (field, value) in [
            ("learning_rate", self.learning_rate),
            ("adam_epsilon", self.adam_epsilon),
            ("loraplus_lr_ratio", self.loraplus_lr_ratio),
            ("beta", self.beta),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return bad(field, &value, "a positive number");
            }
        }
        for (field, value) in
            [("max_grad_norm", self.max_grad_norm), ("weight_decay", self.weight_decay)]
        {
            if !(value.is_finite() && value >= 0.0) {
                return bad(field, &value, "0 or a positive number");
            }
        }
        for (field, value) in [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)] {
            if !(0.0..1.0).contains(&value) {
                return bad(field, &value, "from 0 to below 1");
            }
        }
        for (field, value) in [
            ("warmup_ratio", self.warmup_ratio),
            ("min_lr_ratio", self.min_lr_ratio),
            ("max_dropped_share", self.max_dropped_share),
            ("held_out_share", self.held_out_share),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return bad(field, &value, "a share from 0 to 1");
            }
        }
        let epochs_count = self.num_train_epochs.is_finite() && self.num_train_epochs > 0.0;
        if self.max_steps == 0 && !(epochs_count && self.num_train_epochs <= 1e6) {
            return bad(
                "num_train_epochs",
                &self.num_train_epochs,
                "above 0 and at most 1,000,000",
            );
        }
        if self.max_length < 2 || self.max_length > config.max_position_embeddings {
            let most = format!("2 to the base's context of {}", config.max_position_embeddings);
            return bad("max_length", &self.max_length, &most);
        }
        if self.gradient_checkpointing && self.activation_dtype != FloatDtype::Float32 {
            let expected = "float32, or gradient_checkpointing = false: nothing is kept otherwise";
            return bad("activation_dtype", &"bfloat16", expected);
        }
        let (StepSize::Rows(size) | StepSize::Tokens(size)) = self.step_size;
        for (field, value) in [
            ("step_size", size),
            ("micro_batch_tokens", self.micro_batch_tokens),
            ("held_out_block_bytes", self.held_out_block_bytes),
            ("logging_steps", usize::try_from(self.logging_steps).unwrap_or(usize::MAX)),
        ] {
            if value == 0 {
                return bad(field, &value, "at least 1");
            }
        }
        Ok(())
    }

    /// The LoRA part, as the model takes it.
    pub fn lora_config(&self) -> LoraConfig {
        LoraConfig {
            r: self.r,
            lora_alpha: self.lora_alpha,
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            layers_pattern: Vec::new(),
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            lora_dropout: self.lora_dropout,
        }
    }

    /// The losses of a preference objective that has several, with their weights.
    pub(crate) fn losses(&self) -> impl Iterator<Item = (LossType, f64)> {
        let weights = self.loss_weights.iter().copied().chain(std::iter::repeat(1.0));
        self.loss_type.iter().copied().zip(weights)
    }

    fn validate_objective(&self) -> Result<(), TrainError> {
        let bad =
            |field, found: String, expected: &str| Err(TrainError::plan(field, found, expected));
        let known = self.objective.loss_types();
        let shown = |types: &[LossType]| serde_json::to_string(types).expect("plain names");
        let fits = self.loss_type.iter().all(|t| known.contains(t));
        if !fits || self.loss_type.is_empty() != known.is_empty() {
            let expected = match known {
                [] => "an empty list: this objective has one loss only".to_owned(),
                known => format!("some of {}", shown(known)),
            };
            return bad("loss_type", shown(&self.loss_type), &expected);
        }
        let weights = &self.loss_weights;
        if !(weights.is_empty() || weights.len() == self.loss_type.len())
            || weights.iter().any(|w| !(w.is_finite() && *w >= 0.0))
        {
            let expected = "one number from 0 on for each loss_type, or none";
            return bad("loss_weights", format!("{weights:?}"), expected);
        }
        let smoothing = self.label_smoothing;
        let needed = self.loss_type.contains(&LossType::ExoPair);
        if !(0.0..0.5).contains(&smoothing) || (needed && smoothing == 0.0) {
            let expected = if needed {
                "above 0 (1e-3 is usual with exo_pair) and below 0.5"
            } else {
                "from 0 to below 0.5"
            };
            return bad("label_smoothing", smoothing.to_string(), expected);
        }
        for (field, value) in [
            ("simpo_gamma", self.simpo_gamma),
            ("desirable_weight", self.desirable_weight),
            ("undesirable_weight", self.undesirable_weight),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return bad(field, value.to_string(), "0 or a positive number");
            }
        }
        if self.objective == Objective::Kto && matches!(self.step_size, StepSize::Rows(0 | 1)) {
            let expected = "at least 2 rows: KTO compares answers across the examples of a step";
            return bad("step_size", "1 row".into(), expected);
        }
        Ok(())
    }

    /// SHA-256 of what decides the weights. Where the run writes, how often it logs and saves,
    /// and its time limit are left out: a resumed run may change those.
    pub fn digest(&self) -> String {
        model::sha256_hex(&serde_json::to_vec(&self.deciding()).expect("a plan is plain JSON"))
    }

    /// One line per field that decides the weights and differs from `other`.
    pub(crate) fn differences(&self, other: &TrainPlan) -> Vec<String> {
        let (ours, theirs) = (self.deciding(), other.deciding());
        let shown = |v: Option<&serde_json::Value>| v.map_or("nothing".into(), |v| v.to_string());
        ours.iter()
            .filter(|(key, value)| theirs.get(key.as_str()) != Some(value))
            .map(|(key, value)| format!("{key}: found {}, now {value}", shown(theirs.get(key))))
            .collect()
    }

    pub(crate) fn tape_mode(&self) -> TapeMode {
        match (self.gradient_checkpointing, self.activation_dtype) {
            (true, _) => TapeMode::Recompute,
            (false, FloatDtype::Float32) => TapeMode::Keep,
            (false, FloatDtype::Bfloat16) => TapeMode::KeepBf16,
        }
    }

    fn deciding(&self) -> serde_json::Map<String, serde_json::Value> {
        let Ok(serde_json::Value::Object(mut map)) = serde_json::to_value(self) else {
            unreachable!("a plan is a JSON object")
        };
        for free in [
            "output_dir",
            "max_seconds",
            "logging_steps",
            "save_steps",
            "save_total_limit",
            "save_dtype",
            "guard",
            "report_to",
        ] {
            map.shift_remove(free);
        }
        map
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;

    pub(crate) fn config() -> DecoderConfig {
        let bytes = include_bytes!("../tests/fixtures/config.json");
        DecoderConfig::from_json(bytes, Path::new("fixture")).unwrap()
    }

    pub(crate) fn plan() -> TrainPlan {
        TrainPlan { max_length: 64, ..TrainPlan::new(Method::Lora, Objective::Sft, &config()) }
    }

    #[test]
    fn json_round_trip() {
        for (method, objective) in [(Method::Lora, Objective::Sft), (Method::Full, Objective::Text)]
        {
            let plan = TrainPlan::new(method, objective, &config());
            let json = serde_json::to_string_pretty(&plan).unwrap();
            assert_eq!(serde_json::from_str::<TrainPlan>(&json).unwrap(), plan);
            assert!(!json.contains("null"), "a plan leaves nothing open: {json}");
        }
        for (guard, written) in [
            (Guard::Bundled, "true"),
            (Guard::Off, "false"),
            (Guard::Data("a.txt".into()), "\"a.txt\""),
        ] {
            assert_eq!(serde_json::to_string(&guard).unwrap(), written);
            assert_eq!(serde_json::from_str::<Guard>(written).unwrap(), guard);
        }
        let typo = serde_json::to_string(&plan()).unwrap().replace("\"seed\"", "\"sead\"");
        assert!(serde_json::from_str::<TrainPlan>(&typo).unwrap_err().to_string().contains("sead"));
    }

    #[test]
    fn defaults() {
        let plan = plan();
        plan.validate(&config()).unwrap();
        assert_eq!((plan.r, plan.lora_alpha, plan.weight_decay), (32, 64.0, 0.0));
        assert_eq!(plan.target_modules, Targets::all_linear());
        // 5e-5 * 10 * (2000 / 32) ^ 0.781
        assert!((plan.learning_rate - 0.012_632).abs() < 1e-5, "{}", plan.learning_rate);
        let full = TrainPlan::new(Method::Full, Objective::Sft, &config());
        assert_eq!(full.learning_rate, DEFAULT_FULL_LEARNING_RATE);
    }

    #[test]
    fn refuses_what_it_cannot_honour() {
        type Change = fn(&mut TrainPlan);
        let cases: &[(&str, Change)] = &[
            ("lora_dropout", |p| p.lora_dropout = 1.0),
            ("r", |p| p.r = 0),
            ("lora_alpha", |p| p.lora_alpha = f32::NAN),
            ("target_modules", |p| p.target_modules = ["lm_head"].into_iter().collect()),
            ("target_modules", |p| p.target_modules = Targets::Names(vec![])),
            ("target_modules", |p| p.target_modules = Targets::Pattern("(".into())),
            ("exclude_modules", |p| p.exclude_modules = Targets::Pattern("[".into())),
            ("layers_to_transform", |p| {
                p.layers_to_transform = vec![0];
                p.target_modules = Targets::Pattern(".*q_proj".into());
            }),
            ("rank_pattern", |p| p.rank_pattern = [("nothing".into(), 4)].into()),
            ("rank_pattern", |p| p.rank_pattern = [("q_proj".into(), 0)].into()),
            ("alpha_pattern", |p| p.alpha_pattern = [("(".into(), 4.0)].into()),
            ("lora_dropout", |p| (p.lora_dropout, p.use_dora) = (0.1, true)),
            ("loraplus_lr_ratio", |p| p.loraplus_lr_ratio = 0.0),
            ("loss_type", |p| p.loss_type = vec![LossType::Hinge]),
            ("loss_type", |p| (p.objective, p.loss_type) = (Objective::Kto, vec![LossType::Ipo])),
            ("loss_type", |p| p.objective = Objective::Dpo),
            ("loss_weights", |p| p.loss_weights = vec![1.0]),
            ("label_smoothing", |p| p.label_smoothing = 0.5),
            ("label_smoothing", |p| {
                (p.objective, p.loss_type) = (Objective::Dpo, vec![LossType::ExoPair]);
            }),
            ("beta", |p| p.beta = 0.0),
            ("step_size", |p| {
                (p.objective, p.loss_type) = (Objective::Kto, vec![LossType::Kto]);
                p.step_size = StepSize::Rows(1);
            }),
            ("learning_rate", |p| p.learning_rate = 0.0),
            ("max_grad_norm", |p| p.max_grad_norm = -1.0),
            ("adam_beta2", |p| p.adam_beta2 = 1.0),
            ("warmup_ratio", |p| p.warmup_ratio = 1.5),
            ("num_train_epochs", |p| p.num_train_epochs = f64::INFINITY),
            ("max_length", |p| p.max_length = 65),
            ("step_size", |p| p.step_size = StepSize::Rows(0)),
            ("micro_batch_tokens", |p| p.micro_batch_tokens = 0),
            ("logging_steps", |p| p.logging_steps = 0),
        ];
        for &(field, change) in cases {
            let mut plan = plan();
            change(&mut plan);
            let error = plan.validate(&config()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: found")), "{field}: {error}");
        }
    }

    #[test]
    fn digest_is_of_what_decides_the_weights() {
        let mut other = plan();
        other.output_dir = "elsewhere".into();
        other.max_seconds = 5;
        other.save_steps = 7;
        other.guard = Guard::Data("other.txt".into());
        assert_eq!(plan().digest(), other.digest());
        other.seed = 3;
        assert_ne!(plan().digest(), other.digest());
        assert_eq!(other.differences(&plan()), ["seed: found 0, now 3"]);
    }
}
