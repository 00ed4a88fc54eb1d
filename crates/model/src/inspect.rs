//! What a model folder or GGUF file holds, from its configuration and the headers of its weights
//! alone.

use crate::config::DecoderConfig;
use crate::encoder::{EncoderConfig, is_encoder};
use crate::error::ModelError;
use crate::families;
use crate::gguf::GgufFile;
use crate::weights::{parse, shards};
use kernels::MappedFile;
use std::collections::BTreeMap;
use std::path::Path;

/// A model without its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSummary {
    /// Its family, as `model_type` names it.
    pub family: &'static str,
    /// Whether it is an encoder, which only makes embeddings.
    pub is_encoder: bool,
    /// Longest context, tokens.
    pub context_len: usize,
    /// Parameters stored.
    pub parameters: u64,
    /// Bytes of the weight files.
    pub bytes: u64,
    /// Parameters by type as stored, in the file's spelling (`BF16`, `Q4_K`).
    pub dtypes: BTreeMap<String, u64>,
}

/// Reads the configuration and the headers of the folder or GGUF file `path`; no weight is touched.
///
/// # Errors
/// [`ModelError`] for what [`crate::Decoder::load`], or [`crate::Encoder::load`], would refuse in config
/// or headers; whether names and shapes fit is not looked at.
pub fn inspect(path: &Path) -> Result<ModelSummary, ModelError> {
    if path.is_file() {
        let file = GgufFile::open(path)?;
        let bytes = path.metadata().map_err(|e| ModelError::io(path, e))?.len();
        let mut summary = ModelSummary::decoder(&families::gguf::config(&file)?.0);
        summary.bytes = bytes;
        file.tensors().for_each(|t| summary.add(t.shape, t.ggml_type.name()));
        return Ok(summary);
    }
    let mut summary = match is_encoder(path)? {
        true => ModelSummary::encoder(&EncoderConfig::load(path)?),
        false => ModelSummary::decoder(&DecoderConfig::load(path)?),
    };
    for name in shards(path)?.names {
        let path = path.join(name);
        let map = MappedFile::open(&path).map_err(|e| ModelError::io(&path, e))?;
        summary.bytes += map.len() as u64;
        for (_, view) in parse(&path, &map)?.iter() {
            summary.add(view.shape(), &format!("{:?}", view.dtype()));
        }
    }
    Ok(summary)
}

impl ModelSummary {
    fn decoder(config: &DecoderConfig) -> ModelSummary {
        ModelSummary {
            family: config.family.name(),
            is_encoder: false,
            context_len: config.max_position_embeddings,
            parameters: 0,
            bytes: 0,
            dtypes: BTreeMap::new(),
        }
    }

    fn encoder(config: &EncoderConfig) -> ModelSummary {
        ModelSummary {
            family: config.family,
            is_encoder: true,
            context_len: config.max_tokens(),
            parameters: 0,
            bytes: 0,
            dtypes: BTreeMap::new(),
        }
    }

    fn add(&mut self, shape: &[usize], dtype: &str) {
        let count: u64 = shape.iter().map(|&d| d as u64).product();
        self.parameters += count;
        *self.dtypes.entry(dtype.to_owned()).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_equal_the_loaded_model() {
        let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
        for (name, dtype) in [("llama_tiny", "F32"), ("llama_tiny_tied_bf16", "BF16")] {
            let dir = testdata.join(name);
            let summary = inspect(&dir).unwrap();
            let decoder = crate::Decoder::load(&dir, &crate::LoadOptions::default()).unwrap();
            assert_eq!(summary.parameters, decoder.param_count() as u64);
            assert_eq!(summary.dtypes, BTreeMap::from([(dtype.to_owned(), summary.parameters)]));
            assert!(summary.bytes > summary.parameters);
            assert!(!summary.is_encoder);
        }
        let encoder = inspect(&testdata.join("encoders/xlm_roberta")).unwrap();
        assert_eq!((encoder.family, encoder.is_encoder), ("xlm-roberta", true));
        assert_eq!(encoder.context_len, 40);
    }
}
