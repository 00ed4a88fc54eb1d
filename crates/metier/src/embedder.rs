//! A model that embeds texts: an encoder, or a decoder whose hidden states are taken.

use crate::cli::{EmbeddingArgs, WeightArgs};
use crate::resolve::{self, Adapter, Base};
use crate::text_source;
use anyhow::{Context, Result, bail};
use engine::{Engine, EngineHandle, EngineOptions, Event, EventReceiver, SequenceRequest};
use model::{
    Decoder, Dimensions, EmbeddingForm, Encoder, LoadOptions, ModelError, Pooling, is_encoder,
};
use serve::{Digest, Host};
use std::path::Path;
use std::sync::Arc;
use text::Tokenizer;

/// Tokens in one step of an encoder, where its texts are not longer.
const ENCODER_STEP: usize = 512;
/// Texts in the engine at a time.
pub(crate) const AT_ONCE: usize = 64;
/// Memory for a decoder's keys and values.
pub(crate) const KV_BYTES: usize = 256 << 20;

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

    /// Hands a text to an engine of [`Embedder::spawn`], with the adapter in slot 0 where it is `adapted`.
    pub(crate) fn submit(
        &self,
        engine: &EngineHandle,
        text: &str,
        adapted: bool,
    ) -> Result<EventReceiver> {
        self.submit_tokens(engine, self.tokenizer.encode_whole(text)?, adapted)
    }

    fn submit_tokens(
        &self,
        engine: &EngineHandle,
        prompt: Vec<u32>,
        adapted: bool,
    ) -> Result<EventReceiver> {
        if let Some(most) = self.form.max_tokens.filter(|most| prompt.len() > *most) {
            bail!("found {} tokens, expected at most {most}", prompt.len());
        }
        Ok(engine.submit_blocking(SequenceRequest {
            prompt,
            adapter: adapted.then_some(0),
            pooling: Some(self.form.pooling),
            ..SequenceRequest::default()
        })?)
    }

    /// Waits for the embedding of a text that was handed over.
    pub(crate) fn received(
        &self,
        receiver: &EventReceiver,
        dimensions: Option<usize>,
    ) -> Result<Vec<f32>> {
        loop {
            match receiver.recv() {
                Some(Event::Embedding { embedding, .. }) => {
                    return Ok(self.form.finish(embedding, dimensions));
                }
                Some(Event::Failed { error, .. }) => return Err(error.into()),
                Some(_) => {}
                None => bail!("the engine has stopped"),
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

/// An embedding model on an engine of its own, for whole lists of texts.
pub(crate) struct Texts {
    embedder: Embedder,
    engine: EngineHandle,
}

impl Texts {
    /// Loads a model by name, as [`Embedder::load`] does.
    pub(crate) fn load(name: &str) -> Result<Texts> {
        let embedder = Embedder::load(name, WeightArgs::default(), EmbeddingArgs::default())?;
        let engine = embedder.spawn(None, KV_BYTES, EngineOptions::default())?;
        Ok(Texts { embedder, engine })
    }

    /// SHA-256 of the model.
    pub(crate) fn digest(&self) -> String {
        self.embedder.digest().get().to_owned()
    }

    /// One vector for each text. Of a text longer than the model reads, its longest beginning counts, as
    /// sentence-transformers has it; how many there were is said on standard error.
    pub(crate) fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut cut = 0;
        for some in texts.chunks(AT_ONCE) {
            let mut waiting = Vec::with_capacity(some.len());
            for text in some {
                let (tokens, whole) = self.tokens(text)?;
                cut += usize::from(!whole);
                waiting.push(self.embedder.submit_tokens(&self.engine, tokens, false)?);
            }
            for receiver in &waiting {
                vectors.push(self.embedder.received(receiver, None)?);
            }
        }
        if cut > 0 {
            tracing::warn!(
                "{cut} texts are longer than {} reads; their beginnings count",
                self.embedder.name
            );
        }
        Ok(vectors)
    }

    /// The tokens of a text, or of its longest beginning that fits; and whether it fits whole.
    fn tokens(&self, text: &str) -> Result<(Vec<u32>, bool)> {
        let most = self.engine.limits().max_len();
        let most = self.embedder.form.max_tokens.map_or(most, |form| form.min(most));
        let mut end = text.len();
        loop {
            let tokens = self.embedder.tokenizer.encode_whole(&text[..end])?;
            if tokens.len() <= most || end == 0 {
                return Ok((tokens, end == text.len()));
            }
            // A guess by proportion, which is soon short enough.
            end = text.floor_char_boundary((end * most / tokens.len()).min(end - 1));
        }
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
