//! `xlm-roberta`: RoBERTa over many languages, the same computation (arXiv 1911.02116; Hugging Face
//! `XLMRobertaModel`). Also what was published in its form: multilingual E5, BGE-M3.

use super::EncoderSpec;
use super::roberta::resolve;

pub(crate) const SPEC: EncoderSpec =
    EncoderSpec { model_type: "xlm-roberta", prefix: "roberta.", resolve };
