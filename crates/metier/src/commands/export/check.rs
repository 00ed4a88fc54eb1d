//! How far what was written is from what was to be written: both models read the same tokens.

use super::Export;
use crate::cli::ExportArgs;
use crate::commands::data::read_options;
use crate::general_text;
use ::data::Example;
use ::train::{Divergence, Reader};
use anyhow::{Result, bail};
use model::{AdapterSet, Decoder, LoraAdapter};

/// Rows of logits held at once, of each model.
const LOGIT_ROWS: usize = 64;

/// What an export may differ by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Largest difference of a logit, as a share of the largest logit.
    pub(super) logits: f32,
    /// Difference of the mean loss, nats per token.
    pub(super) loss: f64,
    /// Mean Kullback-Leibler divergence of the predictions, nats.
    pub(super) kl: f64,
}

/// Token ids that both models read, and which of them are counted.
pub(super) struct Sample {
    /// Ids [T], and for each id whether foretelling it counts.
    rows: Vec<(Vec<u32>, Vec<bool>)>,
    /// For people.
    pub(super) what: String,
}

impl Sample {
    /// The rows of `--data` as evaluation has them, of which the answers count; without it a bundled
    /// text in the model's chat template, of which every token counts.
    pub(super) fn read(args: &ExportArgs, export: &Export<'_>) -> Result<Sample> {
        let template = export.template().clone().at(::train::TRAINING_CLOCK);
        let tokenizer = &export.base.tokenizer;
        let longest = export.base.decoder.config().max_position_embeddings;
        let mut rows = Vec::new();
        let mut what = general_text::BUNDLED.to_owned();
        if let Some(path) = &args.data {
            let mut examples: Vec<Example> = ::data::read(path, &read_options(&args.columns))?;
            examples.truncate(args.limit.unwrap_or(usize::MAX));
            for example in &examples {
                let rendered = template.render(tokenizer, &example.conversation, false)?;
                rows.push((rendered.ids, rendered.mask));
            }
            what = format!("the answers of {}", path.display());
        } else {
            for ids in general_text::bundled(export.template(), tokenizer, longest)? {
                rows.push((ids.clone(), vec![true; ids.len()]));
            }
        }
        let all = rows.len();
        rows.retain(|(ids, mask)| ids.len() <= longest && mask.iter().skip(1).any(|m| *m));
        if rows.is_empty() {
            bail!(
                "{what}: none of {all} rows can be compared: each is longer than {longest} tokens, or has no answer"
            );
        }
        if rows.len() < all {
            what = format!("{what} ({} of {all} rows; the others do not fit)", rows.len());
        }
        Ok(Sample { rows, what })
    }
}

/// A model, with or without an adapter.
pub(super) struct Side<'a> {
    decoder: &'a Decoder,
    adapters: AdapterSet,
    slot: Option<usize>,
}

impl<'a> Side<'a> {
    pub(super) fn new(decoder: &'a Decoder, adapter: Option<&LoraAdapter>) -> Result<Side<'a>> {
        let mut adapters = AdapterSet::new();
        let insert = |lora| adapters.insert("adapter", lora, decoder);
        let slot = adapter.map(insert).transpose()?;
        Ok(Side { decoder, adapters, slot })
    }

    fn reader(&self) -> Reader<'_> {
        Reader { decoder: self.decoder, adapters: &self.adapters, slot: self.slot }
    }
}

/// How far two models are apart.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Difference {
    /// Largest difference of a logit, as a share of the largest logit; NaN when one is not finite.
    pub(super) logits: f32,
    /// Mean loss of what was to be written, nats per counted token.
    pub(super) loss_before: f64,
    /// The same of what was written.
    pub(super) loss_after: f64,
    /// Mean KL(to be written || written) of the counted predictions, nats.
    pub(super) kl: f64,
    /// Tokens counted.
    pub(super) tokens: usize,
}

impl Difference {
    /// What is above its bound, in words.
    pub(super) fn beyond(&self, bounds: &Bounds) -> Option<String> {
        let loss = (self.loss_after - self.loss_before).abs();
        let found = [
            ("largest logit difference", f64::from(self.logits), f64::from(bounds.logits)),
            ("loss difference", loss, bounds.loss),
            ("KL divergence", self.kl, bounds.kl),
        ];
        // What is not a number is beyond every bound.
        let above = |found: &f64, allowed: &f64| found.is_nan() || found > allowed;
        let beyond = found.into_iter().find(|(_, found, allowed)| above(found, allowed));
        beyond.map(|(what, found, allowed)| format!("{what} {found:.2e}, allowed {allowed:.0e}"))
    }

    /// For the model card.
    pub(super) fn sentence(&self, sample: &Sample) -> String {
        format!(
            "After writing, the files were read back and compared with the model in memory: largest logit \
             difference {:.1e} of the largest logit; on {} ({} tokens) the loss goes from {:.4} to {:.4} nats \
             per token, KL {:.1e}.",
            self.logits, sample.what, self.tokens, self.loss_before, self.loss_after, self.kl
        )
    }
}

/// Reads the sample, and a fixed sequence that walks the vocabulary for the logits alone, with both.
pub(super) fn compare(ours: &Side<'_>, theirs: &Side<'_>, sample: &Sample) -> Result<Difference> {
    let config = ours.decoder.config();
    let len = config.max_position_embeddings.min(64);
    let walk: Vec<u32> = (0..len).map(|i| (i * 7919 % config.vocab_size) as u32).collect();
    let (ours, theirs) = (ours.reader(), theirs.reader());
    let mut sums = Sums::default();
    sums.add(ours, theirs, &walk, &vec![false; len])?;
    for (ids, mask) in &sample.rows {
        sums.add(ours, theirs, ids, mask)?;
    }
    let counted = sums.counted;
    let n = counted.tokens as f64;
    Ok(Difference {
        logits: sums.difference / sums.largest.max(f32::MIN_POSITIVE),
        loss_before: counted.losses[0] / n,
        loss_after: counted.losses[1] / n,
        kl: counted.kl / n,
        tokens: counted.tokens,
    })
}

#[derive(Default)]
struct Sums {
    difference: f32,
    largest: f32,
    counted: Divergence,
}

impl Sums {
    /// Where `mask` has nothing, all positions are compared and none is counted.
    fn add(
        &mut self,
        ours: Reader<'_>,
        theirs: Reader<'_>,
        ids: &[u32],
        mask: &[bool],
    ) -> Result<()> {
        let counted: Vec<usize> = (1..ids.len()).filter(|i| mask[*i]).collect();
        // The row before a token foretells it.
        let rows: Vec<usize> = match counted.is_empty() {
            true => (0..ids.len()).collect(),
            false => counted.iter().map(|i| i - 1).collect(),
        };
        let hidden = [ours.hidden(ids, &rows)?, theirs.hidden(ids, &rows)?];
        let vocab = ours.decoder.config().vocab_size;
        for start in (0..rows.len()).step_by(LOGIT_ROWS) {
            let chunk = start..rows.len().min(start + LOGIT_ROWS);
            let a = ours.logits(&hidden[0], chunk.clone());
            let b = theirs.logits(&hidden[1], chunk.clone());
            for (i, (a, b)) in a.chunks_exact(vocab).zip(b.chunks_exact(vocab)).enumerate() {
                for (a, b) in a.iter().zip(b) {
                    let difference = (a - b).abs();
                    self.largest = self.largest.max(a.abs());
                    // A maximum passes over what is no number.
                    let difference = if difference.is_nan() { f32::INFINITY } else { difference };
                    self.difference = self.difference.max(difference);
                }
                if let Some(at) = counted.get(chunk.start + i) {
                    self.counted.add(&Divergence::of(a, b, ids[*at] as usize));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_beyond_every_bound() {
        let bounds = Bounds { logits: 1.0, loss: 1.0, kl: 1.0 };
        let good = Difference::default();
        assert!(good.beyond(&bounds).is_none());
        let check = |difference: Difference, expected: &str| {
            let found = difference.beyond(&bounds).unwrap();
            assert!(found.starts_with(expected), "{found}");
        };
        check(Difference { logits: f32::NAN, ..good }, "largest logit difference");
        check(Difference { loss_after: f64::NAN, ..good }, "loss difference");
        check(Difference { loss_after: -2.0, ..good }, "loss difference 2.00e0, allowed 1e0");
        check(Difference { kl: f64::INFINITY, ..good }, "KL divergence");
    }
}
