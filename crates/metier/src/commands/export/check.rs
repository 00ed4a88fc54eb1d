//! How far what was written is from what was to be written: both models read the same tokens.

use super::Export;
use crate::cli::ExportArgs;
use crate::commands::data::read_options;
use ::data::Example;
use anyhow::{Result, bail};
use model::{AdapterSet, Batch, Decoder, KvCache, LoraAdapter, Memory, Segment};
use std::ops::Range;
use text::{Conversation, Message};

/// Read where the user names no data: conversations of both languages of the bundled base, in plain
/// words, each up to where an answer is asked for.
const CONVERSATIONS: &[&[&str]] = &[
    &[
        "Hello! Which days are you open this week?",
        "We are open from Monday to Friday, nine to five, and on Saturday until noon.",
        "Thank you. Can I come by on Saturday at eleven with an old washing machine?",
    ],
    &[
        "Bonjour, ma chaudière fuit depuis ce matin et il y a de l'eau dans la cave.",
        "Coupez d'abord l'arrivée d'eau, puis l'électricité de la cave. Un technicien peut passer à 14 h 30.",
        "C'est fait. Faut-il aussi fermer le gaz ?",
    ],
    &[
        "Write the order as JSON: two pumps, type P-40, to be delivered on 3 March.",
        "{\"item\": \"pump\", \"type\": \"P-40\", \"count\": 2, \"date\": \"03-03\"}",
        "And one more filter, type F-7.",
    ],
    &[
        "Summarise in one sentence: The lift on the second floor has been out of order since Tuesday. A \
       spare part was ordered and should arrive on Friday; until then the stairs at the back are open.",
    ],
];

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
        let mut rows = Vec::new();
        let mut what = "the bundled text".to_owned();
        if let Some(path) = &args.data {
            let mut examples: Vec<Example> = ::data::read(path, &read_options(&args.columns))?;
            examples.truncate(args.limit.unwrap_or(usize::MAX));
            for example in &examples {
                let rendered = template.render(tokenizer, &example.conversation, false)?;
                rows.push((rendered.ids, rendered.mask));
            }
            what = format!("the answers of {}", path.display());
        } else {
            for turns in CONVERSATIONS {
                let roles = ["user", "assistant"].into_iter().cycle();
                let messages = roles.zip(*turns).map(|(role, text)| Message::new(role, *text));
                let conversation = Conversation::new(messages.collect());
                let ids = template.render(tokenizer, &conversation, true)?.ids;
                let mask = vec![true; ids.len()];
                rows.push((ids, mask));
            }
        }
        let longest = export.base.decoder.config().max_position_embeddings;
        let all = rows.len();
        for (ids, mask) in rows.iter_mut().filter(|_| args.data.is_none()) {
            // A tiny context still reads the beginning.
            ids.truncate(longest);
            mask.truncate(longest);
        }
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

    /// Final hidden rows [rows, H] of `ids` at `rows`.
    fn hidden(&self, ids: &[u32], rows: &[usize]) -> Result<Vec<f32>> {
        let config = self.decoder.config();
        let blocks = ids.len().div_ceil(model::BLOCK_SIZE);
        let mut cache = KvCache::new(config, blocks);
        let batch = Batch {
            tokens: ids.to_vec(),
            segments: vec![Segment {
                len: ids.len(),
                pages: (0..blocks as u32).collect(),
                adapter: self.slot,
                ..Segment::default()
            }],
            logit_rows: rows.to_vec(),
        };
        Ok(self.decoder.forward(&batch, &self.adapters, Memory::Cache(&mut cache))?)
    }

    fn logits(&self, hidden: &[f32], rows: Range<usize>) -> Vec<f32> {
        let h = self.decoder.config().hidden_size;
        self.decoder.logits(&hidden[rows.start * h..rows.end * h])
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
    let mut sums = Sums::default();
    sums.add(ours, theirs, &walk, &vec![false; len])?;
    for (ids, mask) in &sample.rows {
        sums.add(ours, theirs, ids, mask)?;
    }
    let n = sums.tokens as f64;
    Ok(Difference {
        logits: sums.difference / sums.largest.max(f32::MIN_POSITIVE),
        loss_before: sums.losses[0] / n,
        loss_after: sums.losses[1] / n,
        kl: sums.kl / n,
        tokens: sums.tokens,
    })
}

#[derive(Default)]
struct Sums {
    difference: f32,
    largest: f32,
    losses: [f64; 2],
    kl: f64,
    tokens: usize,
}

impl Sums {
    /// Where `mask` has nothing, all positions are compared and none is counted.
    fn add(
        &mut self,
        ours: &Side<'_>,
        theirs: &Side<'_>,
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
                    self.count(a, b, ids[*at] as usize);
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, a: &[f32], b: &[f32], target: usize) {
        let (norm_a, norm_b) = (log_sum(a), log_sum(b));
        self.losses[0] += norm_a - f64::from(a[target]);
        self.losses[1] += norm_b - f64::from(b[target]);
        for (a, b) in a.iter().zip(b) {
            let (log_a, log_b) = (f64::from(*a) - norm_a, f64::from(*b) - norm_b);
            self.kl += log_a.exp() * (log_a - log_b);
        }
        self.tokens += 1;
    }
}

/// ln of the sum of e to each logit.
fn log_sum(logits: &[f32]) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_and_loss() {
        let mut sums = Sums::default();
        // Probabilities 1/2, 1/2 against 1/4, 3/4.
        let logits = |p: [f64; 2]| p.map(|p| p.ln() as f32);
        sums.count(&logits([0.5, 0.5]), &logits([0.25, 0.75]), 1);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        near(sums.losses[0], 2f64.ln());
        near(sums.losses[1], (4.0f64 / 3.0).ln());
        near(sums.kl, 0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln());
    }

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
