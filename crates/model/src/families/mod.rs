//! The families of models, one file each, in one table. No other module names a family.

mod bert;
mod gemma2;
mod gemma3;
pub(crate) mod gguf;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod roberta;
pub(crate) mod rope;
mod smollm3;
mod xlm_roberta;

use crate::config::{DecoderConfig, RawConfig};
use crate::encoder::EncoderConfig;
use crate::error::ModelError;

/// A supported family; its rules are in its [`FamilySpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family(usize);

/// What a family's file states.
pub(crate) struct FamilySpec {
    /// `model_type` in config.json.
    pub(crate) model_type: &'static str,
    /// Class name that Hugging Face's config.json lists under `architectures`.
    pub(crate) architecture: &'static str,
    /// Turns config.json into a [`DecoderConfig`], refusing what it does not understand.
    pub(crate) resolve: fn(&RawConfig<'_>, Family) -> Result<DecoderConfig, ModelError>,
    /// Tensors that published files carry and that the forward does not need, by name suffix.
    pub(crate) ignored_tensors: &'static [&'static str],
    /// Exponent P of the LoRA learning-rate rule 5e-5 * 10 * (2000/H)^P, where it was fitted for
    /// this family (Tinker cookbook, after Schulman et al., "LoRA Without Regret", 2025).
    pub(crate) lora_lr_exponent: Option<f64>,
}

/// THE table: a new family is a new file and one line here.
const FAMILIES: &[FamilySpec] = &[
    gemma2::SPEC,
    gemma3::SPEC,
    granite::SPEC,
    llama::SPEC,
    mistral::SPEC,
    mixtral::SPEC,
    olmo2::SPEC,
    phi3::SPEC,
    qwen2::SPEC,
    qwen3::SPEC,
    qwen3_moe::SPEC,
    smollm3::SPEC,
];

/// What the file of a family of encoders states.
pub(crate) struct EncoderSpec {
    /// `model_type` in config.json.
    pub(crate) model_type: &'static str,
    /// What stands before the names of tensors where the model was saved with a head on it.
    pub(crate) prefix: &'static str,
    /// Turns config.json into an [`EncoderConfig`], refusing what it does not understand.
    pub(crate) resolve: fn(&RawConfig<'_>) -> Result<EncoderConfig, ModelError>,
}

/// THE table of encoders: a new family is a new file and one line here.
pub(crate) const ENCODERS: &[EncoderSpec] = &[bert::SPEC, roberta::SPEC, xlm_roberta::SPEC];

/// The family of encoders whose `model_type` is `name`.
pub(crate) fn encoder(name: &str) -> Option<&'static EncoderSpec> {
    ENCODERS.iter().find(|f| f.model_type == name)
}

/// Top-level fields that do not change what a forward computes: bookkeeping, initialisation,
/// dropout (which is off), and what generation or other tasks take from a configuration.
pub(crate) const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "dtype",
    "embd_pdrop",
    "finetuning_task",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "is_matryoshka",
    "keys_to_ignore_at_inference",
    "label2id",
    "matryoshka_dimensions",
    "max_length",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "rope_interleaved",
    "router_aux_loss_coef",
    "sep_token_id",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

impl Family {
    pub(crate) fn spec(self) -> &'static FamilySpec {
        &FAMILIES[self.0]
    }

    /// Every supported family.
    pub fn all() -> impl Iterator<Item = Family> {
        (0..FAMILIES.len()).map(Family)
    }

    /// `model_type` as Hugging Face spells it.
    pub fn name(self) -> &'static str {
        self.spec().model_type
    }

    /// Whether PEFT fills in `target_modules` by itself, with the query and value projections.
    pub(crate) fn has_default_lora_targets(self) -> bool {
        HAVE_DEFAULT_LORA_TARGETS.contains(&self.name())
    }

    /// Learning rate of the LoRA rule for hidden size H, where the rule covers this family
    /// (see the source at the exponent's field); None elsewhere.
    pub fn lora_learning_rate(self, hidden_size: usize) -> Option<f64> {
        self.spec().lora_lr_exponent.map(|p| 5e-5 * 10.0 * (2000.0 / hidden_size as f64).powf(p))
    }
}

/// Facts: peft `utils/constants.py`.
const HAVE_DEFAULT_LORA_TARGETS: &[&str] =
    &["llama", "mistral", "mixtral", "gemma2", "gemma3_text", "qwen2", "qwen3"];

/// The family whose `model_type` is `name`.
pub(crate) fn by_model_type(name: &str) -> Option<Family> {
    FAMILIES.iter().position(|f| f.model_type == name).map(Family)
}

/// Every supported `model_type`.
pub(crate) fn names() -> Vec<&'static str> {
    FAMILIES.iter().map(|f| f.model_type).collect()
}
