//! `metier perplexity`: how well a model foretells a text, counted as llama.cpp's tool counts, so that
//! the two can be compared.

use crate::cli::PerplexityArgs;
use crate::exit;
use crate::progress;
use crate::resolve::{self, Adapter, Base};
use anyhow::{Context, Result, bail};
use model::{AdapterSet, Batch, Decoder, KvCache, KvDtype, LoraAdapter, Memory, Segment};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use text::{StreamDecoder, Tokenizer};

/// Window when none is asked for, as in llama.cpp.
const DEFAULT_CONTEXT: usize = 512;
/// A window of fewer tokens has none that counts.
const SHORTEST_CONTEXT: usize = 3;
/// Tokens that go through the model at once; a longer window goes in piece by piece.
const PIECE: usize = 512;
/// Rows of logits held at once.
const LOGIT_ROWS: usize = 64;

pub(super) fn run(args: &PerplexityArgs) -> Result<ExitCode> {
    let source = Source::read(args)?;
    let config = source.decoder.config();
    let longest = config.max_position_embeddings;
    let context = args.context.unwrap_or(DEFAULT_CONTEXT.min(longest));
    if !(SHORTEST_CONTEXT..=longest).contains(&context) {
        bail!(
            "--context {context}: expected {SHORTEST_CONTEXT} to {longest}, the context of this model"
        );
    }
    let windows = source.ids.len() / context;
    if windows == 0 {
        bail!(
            "{}: {} tokens, expected at least one window of {context}\n\
             hint: give a longer text, or lower --context",
            source.path.display(),
            source.ids.len()
        );
    }
    let started = Instant::now();
    let bar = progress::bar("perplexity", windows as u64);
    let mut reader = Reader::new(&source, context, args.kv_cache.dtype())?;
    let mut spelled = source.tokenizer.clone().map(Spelled::new);
    let mut sum = Sum::default();
    for ids in source.ids.chunks_exact(context) {
        let mut tokens = ids.to_vec();
        tokens[0] = source.begin.unwrap_or(tokens[0]);
        for loss in reader.losses(&tokens)? {
            if !loss.is_finite() {
                bail!("{}: the model's output is not finite", args.model);
            }
            sum.add(f64::from(loss));
        }
        if let Some(spelled) = &mut spelled {
            spelled.window(ids)?;
        }
        bar.inc(1);
        bar.set_message(format!("perplexity {:.4},", sum.perplexity()));
    }
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    let bits = sum.mean() / std::f64::consts::LN_2;
    let bytes = spelled.map(|s| s.bytes).filter(|n| *n > 0);
    let bits_per_byte = bytes.map(|bytes| bits * sum.count as f64 / bytes as f64);
    let left = source.ids.len() % context;
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "model": args.model, "perplexity": sum.perplexity(),
                "standard_error": sum.standard_error(), "nats_per_token": sum.mean(),
                "bits_per_byte": bits_per_byte, "context": context, "windows": windows,
                "counted_tokens": sum.count, "counted_bytes": bytes,
                "tokens": source.ids.len(), "left_out_tokens": left, "seconds": seconds,
            })
        );
        return Ok(exit::done());
    }
    let per_byte = bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
    println!(
        "perplexity {:.4} +/- {:.4}{per_byte}\n\
         {} tokens counted in {windows} windows of {context}; {left} at the end make no whole window",
        sum.perplexity(),
        sum.standard_error(),
        sum.count,
    );
    Ok(exit::done())
}

/// What is to be foretold, and by which model.
struct Source {
    decoder: Arc<Decoder>,
    adapter: Option<LoraAdapter>,
    path: PathBuf,
    ids: Vec<u32>,
    /// Takes the place of each window's first token.
    begin: Option<u32>,
    /// None when the ids came from outside.
    tokenizer: Option<Arc<Tokenizer>>,
}

impl Source {
    fn read(args: &PerplexityArgs) -> Result<Source> {
        match (&args.text, &args.ids) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("{}: cannot read it as UTF-8 text", path.display()))?;
                let base = Base::load(&args.model, args.weights)?;
                let adapter = match &args.adapter {
                    Some(dir) => Some(Adapter::load("adapter", dir, &base)?.lora),
                    None => None,
                };
                let Base { decoder, tokenizer, .. } = base;
                let begin = tokenizer.bos_id().filter(|_| tokenizer.add_bos());
                let mut ids: Vec<u32> = begin.into_iter().collect();
                ids.extend(tokenizer.encode(&text)?);
                let path = path.clone();
                Ok(Source { decoder, adapter, path, ids, begin, tokenizer: Some(tokenizer) })
            }
            (None, Some(path)) => {
                let ids = read_ids(path)?;
                let model = resolve::model_path(&args.model)?;
                let decoder =
                    resolve::load_decoder(&model, args.weights.dtype.unwrap_or_default())?;
                let vocab = decoder.config().vocab_size;
                if let Some(at) = ids.iter().position(|id| *id as usize >= vocab) {
                    bail!(
                        "{}: element {at} is {}, expected token ids below the vocabulary of {vocab}",
                        path.display(),
                        ids[at]
                    );
                }
                let load = |dir: &PathBuf| LoraAdapter::load(dir, &decoder);
                let adapter = args.adapter.as_ref().map(load).transpose()?;
                let (decoder, path) = (Arc::new(decoder), path.clone());
                Ok(Source { decoder, adapter, path, ids, begin: None, tokenizer: None })
            }
            (None, None) => unreachable!("clap requires one of them"),
        }
    }
}

fn read_ids(path: &Path) -> Result<Vec<u32>> {
    let bytes = std::fs::read(path).with_context(|| format!("{}", path.display()))?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{}: expected a JSON array of token ids", path.display()))
}

/// The first token of a window of `len` that a loss is counted from: the first half is there to be
/// read only.
fn first_counted(len: usize) -> usize {
    len / 2
}

/// A model with pages for one window.
struct Reader<'a> {
    decoder: &'a Decoder,
    adapters: AdapterSet,
    slot: Option<usize>,
    cache: KvCache,
    pages: Vec<u32>,
}

impl Reader<'_> {
    fn new(source: &Source, context: usize, dtype: KvDtype) -> Result<Reader<'_>> {
        let config = source.decoder.config();
        let blocks = context.div_ceil(model::BLOCK_SIZE);
        let mut adapters = AdapterSet::new();
        let insert = |lora| adapters.insert("adapter", lora, &source.decoder);
        Ok(Reader {
            slot: source.adapter.as_ref().map(insert).transpose()?,
            decoder: &source.decoder,
            adapters,
            cache: KvCache::with_dtype(config, blocks, dtype),
            pages: (0..blocks as u32).collect(),
        })
    }

    /// Losses in nats of the tokens that count in the window `ids` [T]: of tokens T/2 + 1 .. T, each
    /// foretold from all before it, T - 1 - T/2 of them.
    fn losses(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut losses = Vec::with_capacity(ids.len() / 2);
        for start in (0..ids.len()).step_by(PIECE) {
            let end = (start + PIECE).min(ids.len());
            // The last token of the window foretells nothing that is in it.
            let rows = start.max(first_counted(ids.len()))..end.min(ids.len() - 1);
            let batch = Batch {
                tokens: ids[start..end].to_vec(),
                segments: vec![Segment {
                    len: end - start,
                    past: start,
                    pages: self.pages.clone(),
                    adapter: self.slot,
                    reach: ids.len(),
                    dropout: None,
                }],
                logit_rows: rows.clone().map(|row| row - start).collect(),
            };
            let memory = Memory::Cache(&mut self.cache);
            let hidden = self.decoder.forward(&batch, &self.adapters, memory)?;
            self.decoder.head_forward(&hidden, LOGIT_ROWS, &mut |chunk, logits| {
                let next = rows.start + chunk.start + 1;
                let targets = ids[next..next + chunk.len()].iter().map(|id| *id as i32);
                let at = losses.len();
                losses.resize(at + chunk.len(), 0.0);
                model::cross_entropy(logits, &targets.collect::<Vec<_>>(), &mut losses[at..]);
            });
        }
        Ok(losses)
    }
}

/// How many bytes of text the counted tokens spell. A character that is begun before the first of
/// them, or not ended by the last, counts where it ends.
struct Spelled {
    decoder: StreamDecoder,
    bytes: usize,
}

impl Spelled {
    fn new(tokenizer: Arc<Tokenizer>) -> Spelled {
        Spelled { decoder: StreamDecoder::new(tokenizer), bytes: 0 }
    }

    fn window(&mut self, ids: &[u32]) -> Result<()> {
        for (i, id) in ids.iter().enumerate() {
            let piece = self.decoder.push(*id)?;
            if i > first_counted(ids.len()) {
                self.bytes += piece.map_or(0, |piece| piece.len());
            }
        }
        Ok(())
    }
}

/// Losses in nats, added up.
#[derive(Default)]
struct Sum {
    count: usize,
    sum: f64,
    squares: f64,
}

impl Sum {
    fn add(&mut self, loss: f64) {
        self.count += 1;
        self.sum += loss;
        self.squares += loss * loss;
    }

    fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// Standard error of the perplexity, as if tokens were independent; 0 for a single token.
    fn standard_error(&self) -> f64 {
        let n = self.count as f64;
        let variance = (self.squares / n - self.mean().powi(2)).max(0.0);
        self.perplexity() * (variance / (n - 1.0).max(1.0)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_summed() {
        let mut sum = Sum::default();
        [1.0, 2.0, 3.0].iter().for_each(|x| sum.add(*x));
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(sum.perplexity(), 2f64.exp());
        // Variance 2/3, over n - 1 = 2.
        near(sum.standard_error(), 2f64.exp() * (1.0f64 / 3.0).sqrt());
        let mut one = Sum::default();
        one.add(4.0);
        assert_eq!((one.perplexity(), one.standard_error()), (4f64.exp(), 0.0));
    }
}
