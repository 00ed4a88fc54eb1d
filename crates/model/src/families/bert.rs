//! `bert`: learned positions from 0, token types, norms behind the blocks (arXiv 1810.04805; Hugging Face
//! `BertModel`). Also what was published in its form: MiniLM, BGE, GTE, E5.

use super::EncoderSpec;
use crate::config::RawConfig;
use crate::encoder::EncoderConfig;
use crate::error::ModelError;

pub(crate) const SPEC: EncoderSpec = EncoderSpec { model_type: "bert", prefix: "bert.", resolve };

fn resolve(raw: &RawConfig<'_>) -> Result<EncoderConfig, ModelError> {
    EncoderConfig::read(raw)
}
