//! A model that embeds texts: an encoder, or a decoder whose hidden states are taken.

use crate::cli::{EmbeddingArgs, WeightArgs};
use crate::resolve::{self, Adapter, Base};
use crate::text_source;
use anyhow::{Context, Result, bail};
use engine::{Engine, EngineHandle, EngineOptions};
use model::{
    Decoder, Dimensions, EmbeddingForm, Encoder, LoadOptions, ModelError, Pooling, is_encoder,
};
use serve::{Digest, Host};
use std::path::Path;
use std::sync::Arc;
use text::Tokenizer;

/// Tokens in one step of an encoder, where its texts are not longer.
const ENCODER_STEP: usize = 512;

/// The model with its text side.
pub(crate) struct Embedder {
    /// Name for requests and reports.
    pub(crate) name: String,
    /// Its tokenizer.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// How its embeddings are made.
    pub(crate) form: EmbeddingForm,
    weights: Weights,
}

#[derive(Clone)]
enum Weights {
    Encoder(Arc<Encoder>),
    Decoder(Arc<Decoder>),
}

impl Embedder {
    /// Loads a model by name, as [`Base::load`] does, or an encoder's folder.
    pub(crate) fn load(name: &str, weights: WeightArgs, wishes: EmbeddingArgs) -> Result<Embedder> {
        if !names_encoder(name)? {
            return Embedder::of(&Base::load(name, weights)?, wishes);
        }
        let dir = resolve::model_path(name)?;
        let (tokenizer, _) = text_source::load(&dir)?;
        let options = LoadOptions { dtype: weights.dtype.unwrap_or_default() };
        let encoder = Encoder::load(&dir, &options)?;
        tokenizer.check_vocab(encoder.config().vocab_size)?;
        Ok(Embedder {
            name: resolve::short_name(name),
            tokenizer: Arc::new(tokenizer),
            form: form(&dir, false, wishes)?,
            weights: Weights::Encoder(Arc::new(encoder)),
        })
    }

    /// A decoder that is loaded already.
    pub(crate) fn of(base: &Base, wishes: EmbeddingArgs) -> Result<Embedder> {
        Ok(Embedder {
            name: base.short_name(),
            tokenizer: Arc::clone(&base.tokenizer),
            form: form(&base.dir, true, wishes)?,
            weights: Weights::Decoder(Arc::clone(&base.decoder)),
        })
    }

    /// H: values of a whole embedding.
    pub(crate) fn embedding_len(&self) -> usize {
        match &self.weights {
            Weights::Encoder(encoder) => encoder.config().hidden_size,
            Weights::Decoder(decoder) => decoder.config().hidden_size,
        }
    }

    /// Starts an engine of its own, with `adapter` in slot 0 and `kv_bytes` for a decoder's cache.
    pub(crate) fn spawn(
        &self,
        adapter: Option<&Adapter>,
        kv_bytes: usize,
        options: EngineOptions,
    ) -> Result<EngineHandle> {
        match &self.weights {
            Weights::Encoder(_) if adapter.is_some() => {
                bail!("{}: an encoder takes no adapters", self.name)
            }
            Weights::Encoder(encoder) => {
                let max_batch_tokens = encoder.config().max_tokens().max(ENCODER_STEP);
                // A page for what is left of each text's last one, and one that is kept free for it.
                let num_blocks =
                    max_batch_tokens.div_ceil(model::BLOCK_SIZE) + 2 * options.max_num_seqs;
                let options = EngineOptions { max_batch_tokens, num_blocks, ..options };
                let engine = Engine::encoding(Arc::clone(encoder), options)?;
                Ok(EngineHandle::spawn(engine)?)
            }
            Weights::Decoder(decoder) => {
                let num_blocks = resolve::num_blocks(decoder.config(), kv_bytes, &options);
                let options = EngineOptions { num_blocks, ..options };
                let mut engine = Engine::new(Arc::clone(decoder), options)?;
                if let Some(Adapter { name, lora, .. }) = adapter {
                    let added = engine.adapters_mut().insert(name, lora, decoder);
                    added.with_context(|| format!("loading the adapter \"{name}\""))?;
                }
                Ok(EngineHandle::spawn(engine)?)
            }
        }
    }

    /// What serves this model, over an engine of its own.
    pub(crate) fn host(&self, engine: EngineHandle, generates: bool) -> Host {
        Host {
            engine,
            tokenizer: Arc::clone(&self.tokenizer),
            generates,
            embedding: self.form.clone(),
            embedding_len: self.embedding_len(),
        }
    }

    /// The digest of its files, which takes a while to compute: a model of gigabytes answers before.
    pub(crate) fn digest(&self) -> Digest {
        let weights = self.weights.clone();
        Digest::later(move || {
            let digest: Result<&str, ModelError> = match &weights {
                Weights::Encoder(encoder) => encoder.digest(),
                Weights::Decoder(decoder) => decoder.digest(),
            };
            digest.map(str::to_owned).unwrap_or_else(|error| {
                tracing::error!("usage of a base is written without a digest: {error}");
                String::new()
            })
        })
    }
}

/// Whether the user's name for a model is that of an encoder's folder.
pub(crate) fn names_encoder(name: &str) -> Result<bool> {
    let path = resolve::model_path(name)?;
    Ok(path.is_dir() && is_encoder(&path)?)
}

/// How embeddings of the model in `path` are made: as its folder says, under the user's wishes. By
/// default a decoder's are its last token's state, an encoder's the mean of all.
fn form(path: &Path, causal: bool, wishes: EmbeddingArgs) -> Result<EmbeddingForm> {
    let default = if causal { Pooling::Last } else { Pooling::Mean };
    let mut form = match path.is_dir() {
        true => EmbeddingForm::read(path, default)?,
        false => EmbeddingForm::new(default),
    };
    form.pooling = wishes.pooling.unwrap_or(form.pooling);
    if wishes.matryoshka && form.dimensions == Dimensions::Whole {
        form.dimensions = Dimensions::Any;
    }
    if causal && form.pooling == Pooling::Cls {
        bail!(
            "{}: found the pooling cls, expected mean or last: the first token of a decoder sees none of \
             the others",
            path.display()
        );
    }
    Ok(form)
}
