//! What a model folder holds, from config.json and the headers of its weight files alone.

use crate::config::DecoderConfig;
use crate::error::ModelError;
use crate::weights::{parse, shard_names};
use kernels::MappedFile;
use std::collections::BTreeMap;
use std::path::Path;

/// A model without its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSummary {
    /// Its shape.
    pub config: DecoderConfig,
    /// Parameters stored.
    pub parameters: u64,
    /// Bytes of the weight files.
    pub bytes: u64,
    /// Parameters by type as stored, in safetensors' spelling (`BF16`).
    pub dtypes: BTreeMap<String, u64>,
}

/// Reads config.json and the headers in `dir`; no weight is touched.
///
/// # Errors
/// [`ModelError`] for what [`crate::Decoder::load`] would refuse in config or headers; whether
/// names and shapes fit is not looked at.
pub fn inspect(dir: &Path) -> Result<ModelSummary, ModelError> {
    let config = DecoderConfig::load(dir)?;
    let mut summary = ModelSummary { config, parameters: 0, bytes: 0, dtypes: BTreeMap::new() };
    for name in shard_names(dir)? {
        let path = dir.join(name);
        let map = MappedFile::open(&path).map_err(|e| ModelError::io(&path, e))?;
        summary.bytes += map.len() as u64;
        for (_, view) in parse(&path, &map)?.iter() {
            let count: u64 = view.shape().iter().map(|&d| d as u64).product();
            summary.parameters += count;
            *summary.dtypes.entry(format!("{:?}", view.dtype())).or_default() += count;
        }
    }
    Ok(summary)
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
        }
    }
}
