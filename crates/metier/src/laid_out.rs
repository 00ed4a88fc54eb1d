//! Weights that a user had laid out on disk: where they are, and loading with them.

use crate::cli::StateArgs;
use crate::state;
use anyhow::{Context, Result};
use model::{Decoder, LoadOptions, ModelError, sha256_hex};
use std::path::{Path, PathBuf};

/// The model's own path, by which what is kept of it is found again, and the folder for it.
fn places(model: &Path, options: &LoadOptions) -> Result<(PathBuf, PathBuf)> {
    let model = model.canonicalize().with_context(|| model.display().to_string())?;
    let key = format!("{}\0{}", model.display(), options.dtype.name());
    let name = &sha256_hex(key.as_bytes())[..16];
    let dir = state::dir(&StateArgs::default())?.join("laid-out").join(name);
    Ok((model, dir))
}

/// The weights at `model`, mapped where they were laid out before, else read and converted.
pub(crate) fn load(model: &Path, options: &LoadOptions) -> Result<Decoder, ModelError> {
    // Without a folder for a user's data nothing was laid out.
    if let Ok((model, dir)) = places(model, options)
        && let Some(decoder) = Decoder::load_laid_out(&model, options, &dir)?
    {
        tracing::info!("weights mapped from {}", dir.display());
        return Ok(decoder);
    }
    Decoder::load(model, options)
}

/// Lays the weights at `model` out for later loads. Returns the folder and its bytes.
pub(crate) fn keep(model: &Path, options: &LoadOptions) -> Result<(PathBuf, u64)> {
    let (model, dir) = places(model, options)?;
    Decoder::load(&model, options)?.keep_laid_out(options, &dir)?;
    let mut bytes = 0;
    for entry in std::fs::read_dir(&dir)? {
        bytes += entry?.metadata()?.len();
    }
    Ok((dir, bytes))
}

/// Deletes what [`keep`] made. Returns its folder; None when there is none.
pub(crate) fn forget(model: &Path, options: &LoadOptions) -> Result<Option<PathBuf>> {
    let (_, dir) = places(model, options)?;
    if !dir.is_dir() {
        return Ok(None);
    }
    std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(Some(dir))
}
