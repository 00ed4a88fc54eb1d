//! The model that a training starts from.

use crate::cli::TrainArgs;
use crate::config::ConfigFile;
use crate::resolve::{NANO, load_decoder, load_text, model_path};
use ::train::Method;
use anyhow::{Context, Result, bail};
use model::{Decoder, DecoderConfig, WeightDtype};
use std::path::PathBuf;
use text::{ChatTemplate, Tokenizer};

/// The model that training starts from.
pub(super) struct Start {
    pub(super) name: String,
    /// Folder of its tokenizer.
    pub(super) dir: PathBuf,
    pub(super) decoder: Decoder,
    pub(super) tokenizer: std::sync::Arc<Tokenizer>,
    pub(super) template: ChatTemplate,
    /// Whether it begins from random weights, which know nothing that could be forgotten.
    pub(super) random: bool,
}

impl Start {
    pub(super) fn load(args: &TrainArgs, file: &ConfigFile) -> Result<Start> {
        if args.base.is_none()
            && let Some(shape) = &file.base.init
        {
            let Some(dir) = &file.base.tokenizer else {
                bail!(
                    "[base] init needs [base] tokenizer: the folder with the new model's tokenizer.json"
                );
            };
            let bytes = std::fs::read(shape)
                .with_context(|| format!("{}: cannot read it", shape.display()))?;
            let config = DecoderConfig::from_json(&bytes, shape)?;
            let (tokenizer, template) = load_text(dir, &config)?;
            // The seed of the initial weights is fixed; [train] seed orders the data.
            let decoder = Decoder::init(&config, 1);
            return Ok(Start {
                name: shape.display().to_string(),
                dir: dir.clone(),
                decoder,
                tokenizer,
                template,
                random: true,
            });
        }
        let name = args
            .base
            .clone()
            .or_else(|| file.base.model.clone())
            .unwrap_or_else(|| NANO.to_owned());
        let dir = model_path(&name)?;
        let full = file.method()? == Some(Method::Full);
        let dtype = match (args.weights.dtype, full) {
            (None | Some(WeightDtype::F32), true) => WeightDtype::F32,
            (Some(_), true) => {
                bail!(
                    "--dtype: full fine-tuning holds every weight in f32\nhint: LoRA trains on a base in any type"
                );
            }
            (dtype, false) => dtype.unwrap_or_default(),
        };
        let decoder = load_decoder(&dir, dtype)?;
        let (tokenizer, template) = load_text(&dir, decoder.config())?;
        Ok(Start { name, dir, decoder, tokenizer, template, random: false })
    }
}
