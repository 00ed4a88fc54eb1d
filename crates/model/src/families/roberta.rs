//! `roberta`: as BERT, with positions that begin behind the padding token's id (arXiv 1907.11692; Hugging
//! Face `RobertaModel`).

use super::EncoderSpec;
use crate::config::RawConfig;
use crate::encoder::EncoderConfig;
use crate::error::ModelError;

pub(crate) const SPEC: EncoderSpec =
    EncoderSpec { model_type: "roberta", prefix: "roberta.", resolve };

pub(super) fn resolve(raw: &RawConfig<'_>) -> Result<EncoderConfig, ModelError> {
    let padding = raw.token_ids("pad_token_id")?.first().copied().unwrap_or(1);
    EncoderConfig::read(raw)?.with_padding(padding, raw)
}
