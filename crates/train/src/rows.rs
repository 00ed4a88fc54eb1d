//! From conversations and texts to rows of token ids, each id marked as learnt or not.

use crate::error::{TrainError, name_some};
use crate::forgetting::GeneralText;
use crate::plan::TrainPlan;
use data::{Answers, Document, Example, Preference};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use text::{ChatTemplate, Tokenizer};

/// One conversation or one window of text; of a pair, the prompt with one of its answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Which example it came from, for messages.
    pub id: String,
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each id, whether predicting it is learnt; the first one cannot be predicted.
    pub mask: Vec<bool>,
    /// Whether the answer is wanted; false only for rejected answers.
    pub wanted: bool,
}

impl Row {
    /// A row that is to be learnt.
    pub fn new(id: impl Into<String>, ids: Vec<u32>, mask: Vec<bool>) -> Row {
        Row { id: id.into(), ids, mask, wanted: true }
    }

    /// Tokens that go through the model: those up to the last learnt one, which is predicted but
    /// not read (nothing after it can change the loss). 0 when nothing is learnt.
    pub fn input_len(&self) -> usize {
        self.mask.iter().rposition(|&m| m).unwrap_or(0)
    }

    /// This row's prompt with the answer of `other`, at most `most` tokens.
    pub(crate) fn with_answer_of(&self, other: &Row, most: usize) -> Row {
        let start = |row: &Row| row.mask.iter().position(|&m| m).unwrap_or(row.ids.len());
        let (own, from) = (start(self), start(other));
        let mut ids = [&self.ids[..own], &other.ids[from..]].concat();
        let mut mask = [&self.mask[..own], &other.mask[from..]].concat();
        ids.truncate(most);
        mask.truncate(most);
        Row { id: self.id.clone(), ids, mask, wanted: self.wanted }
    }

    /// Targets of this row.
    pub fn supervised(&self) -> usize {
        self.mask.iter().skip(1).filter(|&&m| m).count()
    }
}

/// What became of the examples of one set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowReport {
    /// Usable rows.
    pub rows: usize,
    /// Left out because they are longer than max_length.
    pub too_long: usize,
    /// Left out because no token is learnt.
    pub unsupervised: usize,
    /// Tokens of the usable rows.
    pub tokens: usize,
    /// Targets of the usable rows.
    pub supervised_tokens: usize,
    /// Tokens of the longest usable row.
    pub longest: usize,
}

/// The rows of a training, checked: one for each example, or two that follow one another where a
/// chosen answer comes with a rejected one.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainData {
    /// Trained on.
    pub train: Vec<Row>,
    /// Only ever measured; may be empty.
    pub held_out: Vec<Row>,
    /// Bytes of the held-out text, for bits per byte; 0 for conversations.
    pub held_out_bytes: u64,
    /// Read before and after, to tell what was forgotten; nothing is learnt of it.
    pub general: GeneralText,
    /// About `train`.
    pub train_report: RowReport,
    /// About `held_out`.
    pub held_out_report: RowReport,
}

/// What a template that writes today's date writes into training text, in seconds since 1970: 26
/// July 2024, the date that the best known of such templates falls back to. A run must give the same
/// weights on every day, and a resumed one the same as one that was never stopped.
pub const TRAINING_CLOCK: u64 = 1_721_952_000;

impl TrainData {
    /// Renders conversations through the template, the only way text becomes training tokens, and
    /// checks every row as [`TrainData::from_rows`]. The template's clock stands at
    /// [`TRAINING_CLOCK`].
    ///
    /// # Errors
    /// Those of [`TrainData::from_rows`], and [`TrainError::Text`] naming the example that cannot
    /// be rendered.
    pub fn from_conversations(
        train: &[Example],
        held_out: &[Example],
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        plan: &TrainPlan,
    ) -> Result<TrainData, TrainError> {
        let template = template.clone().at(TRAINING_CLOCK);
        let render = |examples: &[Example]| -> Result<Vec<Row>, TrainError> {
            examples
                .par_iter()
                .map(|example| {
                    let rendered = template
                        .render(tokenizer, &example.conversation, false)
                        .map_err(|source| TrainError::Text { id: example.id.clone(), source })?;
                    Ok(Row::new(&example.id, rendered.ids, rendered.mask))
                })
                .collect()
        };
        let (train, held_out) = (render(train)?, render(held_out)?);
        let stop_ids = template.stop_ids(tokenizer);
        TrainData::from_rows(train, held_out, &stop_ids, tokenizer.bos_id(), plan)
    }

    /// Renders judged answers through the template: of a pair the prompt with the chosen answer and
    /// the prompt with the rejected one; for KTO each answer on its own, wanted or not, also those of
    /// pairs. Of a prompt nothing is learnt (but see ORPO). Checked as [`TrainData::from_rows`].
    ///
    /// # Errors
    /// Those of [`TrainData::from_conversations`]; [`TrainError::Row`] naming an answer without its
    /// counterpart where the objective compares two.
    pub fn from_preferences(
        train: &[Preference],
        held_out: &[Preference],
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        plan: &TrainPlan,
    ) -> Result<TrainData, TrainError> {
        let template = template.clone().at(TRAINING_CLOCK);
        let pairs = plan.objective.rows_per_example() == 2;
        let render = |preferences: &[Preference]| -> Result<Vec<Row>, TrainError> {
            let rows: Vec<Vec<Row>> = preferences
                .par_iter()
                .map(|preference| {
                    let id = &preference.id;
                    let wanted = match &preference.answers {
                        Answers::Pair { .. } => vec![true, false],
                        Answers::Labelled { label, .. } if !pairs => vec![*label],
                        Answers::Labelled { .. } => {
                            return Err(TrainError::Row {
                                id: id.clone(),
                                problem: "one answer with a label, expected a chosen and a rejected one\n\
                                          hint: objective = \"kto\" learns from single answers"
                                    .into(),
                            });
                        }
                    };
                    let conversations = preference.conversations();
                    let rows = conversations.iter().zip(wanted).map(|(conversation, wanted)| {
                        let rendered = template
                            .render(tokenizer, conversation, false)
                            .map_err(|source| TrainError::Text { id: id.clone(), source })?;
                        Ok(Row { wanted, ..Row::new(id, rendered.ids, rendered.mask) })
                    });
                    rows.collect()
                })
                .collect::<Result<_, TrainError>>()?;
            Ok(rows.into_iter().flatten().collect())
        };
        let (train, held_out) = (render(train)?, render(held_out)?);
        let stop_ids = template.stop_ids(tokenizer);
        TrainData::from_rows(train, held_out, &stop_ids, tokenizer.bos_id(), plan)
    }

    /// Takes rendered rows and applies the guards of supervised fine-tuning. Examples with a row that
    /// is too long or has nothing to learn are left out and counted; a conversation is never cut,
    /// because the cut would take the answer. Pairs are two rows, the chosen answer first.
    ///
    /// # Errors
    /// [`TrainError::Row`] when a learnt part does not end in one of `stop_ids` (the model would
    /// never learn to stop) or `bos_id` occurs twice; [`TrainError::TooManyDropped`] above
    /// `max_dropped_share`; [`TrainError::NoData`].
    pub fn from_rows(
        train: Vec<Row>,
        held_out: Vec<Row>,
        stop_ids: &[u32],
        bos_id: Option<u32>,
        plan: &TrainPlan,
    ) -> Result<TrainData, TrainError> {
        for row in train.iter().chain(&held_out) {
            check_row(row, stop_ids, bos_id)?;
        }
        let (train, train_report) = keep_usable(train, plan)?;
        let (held_out, held_out_report) = keep_usable(held_out, plan)?;
        if train.is_empty() {
            return Err(TrainError::NoData("the training set is empty".into()));
        }
        let general = GeneralText::default();
        Ok(TrainData { train, held_out, held_out_bytes: 0, general, train_report, held_out_report })
    }

    /// Cuts documents into blocks of about `held_out_block_bytes` at paragraph ends, holds out
    /// those whose hash falls below `held_out_share`, and cuts each block's tokens into windows
    /// of `max_length`.
    ///
    /// A block starts with BOS where the tokenizer adds one; the last block of a document ends
    /// with EOS. Windows overlap by one token, so that every token but a block's first is
    /// predicted exactly once. Whether a block is held out depends on its text alone: equal
    /// blocks always fall on the same side, and another seed holds out the same ones. When no
    /// block falls below the share, the one with the lowest hash is held out.
    ///
    /// # Errors
    /// [`TrainError::Text`] naming the document; [`TrainError::NoData`].
    pub fn from_text(
        documents: &[Document],
        tokenizer: &Tokenizer,
        plan: &TrainPlan,
    ) -> Result<TrainData, TrainError> {
        let mut blocks: Vec<Block<'_>> =
            documents.iter().flat_map(|d| cut_blocks(d, plan.held_out_block_bytes)).collect();
        hold_out(&mut blocks, plan.held_out_share);
        let windows = windows(&blocks, tokenizer, plan)?;
        let held_out_bytes =
            blocks.iter().filter(|b| b.held_out).map(|b| b.text.len() as u64).sum();
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        for (block, rows) in blocks.iter().zip(windows) {
            if block.held_out { held_out.extend(rows) } else { train.extend(rows) }
        }
        if train.is_empty() {
            return Err(TrainError::NoData(
                "the texts are empty, or all of them were held out\n\
                 hint: give more text or a smaller held_out_share"
                    .into(),
            ));
        }
        let (train_report, held_out_report) = (report(&train), report(&held_out));
        let general = GeneralText::default();
        Ok(TrainData { train, held_out, held_out_bytes, general, train_report, held_out_report })
    }

    /// Texts as rows to be learnt whole, beside conversations: windows as in [`TrainData::from_text`], none
    /// held out. See [`TrainData::add_text`].
    ///
    /// # Errors
    /// [`TrainError::Text`] naming the document.
    pub fn text_rows(
        documents: &[Document],
        tokenizer: &Tokenizer,
        plan: &TrainPlan,
    ) -> Result<Vec<Row>, TrainError> {
        let blocks: Vec<Block<'_>> =
            documents.iter().flat_map(|d| cut_blocks(d, plan.held_out_block_bytes)).collect();
        Ok(windows(&blocks, tokenizer, plan)?.into_iter().flatten().collect())
    }

    /// Adds rows of [`TrainData::text_rows`] to what is trained on.
    pub fn add_text(&mut self, rows: Vec<Row>) {
        self.train.extend(rows);
        let RowReport { too_long, unsupervised, .. } = self.train_report;
        self.train_report = RowReport { too_long, unsupervised, ..report(&self.train) };
    }

    /// SHA-256 over all rows, by ids and masks in order.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        for (set, rows) in [&self.train, &self.held_out].into_iter().enumerate() {
            hasher.update([set as u8]);
            hasher.update((rows.len() as u64).to_le_bytes());
            for row in rows {
                hasher.update((row.ids.len() as u64).to_le_bytes());
                for id in &row.ids {
                    hasher.update(id.to_le_bytes());
                }
                let mask: Vec<u8> = row.mask.iter().map(|&m| m as u8).collect();
                hasher.update(mask);
                // Only where it differs from what it was before there were judged answers.
                if !row.wanted {
                    hasher.update(b"unwanted");
                }
            }
        }
        hex(&hasher.finalize())
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn check_row(row: &Row, stop_ids: &[u32], bos_id: Option<u32>) -> Result<(), TrainError> {
    let bad = |problem: String| Err(TrainError::Row { id: row.id.clone(), problem });
    if row.ids.len() != row.mask.len() {
        return bad(format!("{} token ids, {} mask entries", row.ids.len(), row.mask.len()));
    }
    let bos_count = row.ids.iter().filter(|&&id| Some(id) == bos_id).count();
    // Where one token opens and closes a text, the closing ones are no second opening.
    if bos_count > 1 && !bos_id.is_some_and(|id| stop_ids.contains(&id)) {
        return bad(format!(
            "the start-of-text token {} occurs {bos_count} times, expected at most once\n\
             hint: the chat template writes it already, or the text contains it",
            bos_id.unwrap_or_default()
        ));
    }
    for (i, &id) in row.ids.iter().enumerate() {
        let ends_here = row.mask[i] && !row.mask.get(i + 1).copied().unwrap_or(false);
        if ends_here && !stop_ids.contains(&id) {
            return bad(format!(
                "the learnt part that ends at token {i} ends with token {id}, expected one of the stop \
                 tokens {stop_ids:?}: the model would never learn to stop\n\
                 hint: the chat template must write an end-of-turn token after every answer, and \
                 the tokenizer or generation_config.json must name it as end token"
            ));
        }
    }
    Ok(())
}

fn keep_usable(rows: Vec<Row>, plan: &TrainPlan) -> Result<(Vec<Row>, RowReport), TrainError> {
    let per_example = plan.objective.rows_per_example();
    assert!(rows.len().is_multiple_of(per_example), "{} rows of pairs", rows.len());
    let total = rows.len() / per_example;
    let (mut too_long, mut unsupervised, mut dropped) = (0, 0, Vec::new());
    let mut kept = Vec::with_capacity(rows.len());
    let mut rows = rows.into_iter();
    loop {
        let example: Vec<Row> = rows.by_ref().take(per_example).collect();
        if example.is_empty() {
            break;
        }
        if example.iter().any(|row| row.ids.len() > plan.max_length) {
            too_long += 1;
            dropped.push(example[0].id.clone());
        } else if example.iter().any(|row| row.supervised() == 0) {
            unsupervised += 1;
            dropped.push(example[0].id.clone());
        } else {
            kept.extend(example);
        }
    }
    let share = dropped.len() as f64 / total.max(1) as f64;
    if share > plan.max_dropped_share {
        return Err(TrainError::TooManyDropped {
            dropped: dropped.len(),
            total,
            percent: share * 100.0,
            allowed: plan.max_dropped_share * 100.0,
            why: format!(
                "{too_long} longer than max_length = {}, {unsupervised} without an answer to learn",
                plan.max_length
            ),
            examples: name_some(&dropped),
            hint: if too_long >= unsupervised {
                "raise max_length (up to the base's context) or shorten the examples"
            } else {
                "every example needs an assistant message with text"
            }
            .into(),
        });
    }
    let report = RowReport { too_long, unsupervised, ..report(&kept) };
    Ok((kept, report))
}

fn report(rows: &[Row]) -> RowReport {
    RowReport {
        rows: rows.len(),
        too_long: 0,
        unsupervised: 0,
        tokens: rows.iter().map(|r| r.ids.len()).sum(),
        supervised_tokens: rows.iter().map(Row::supervised).sum(),
        longest: rows.iter().map(|r| r.ids.len()).max().unwrap_or(0),
    }
}

/// A piece of a document.
struct Block<'a> {
    id: String,
    text: &'a str,
    /// Whether the document ends here.
    last: bool,
    held_out: bool,
}

/// The windows of each block.
fn windows(
    blocks: &[Block<'_>],
    tokenizer: &Tokenizer,
    plan: &TrainPlan,
) -> Result<Vec<Vec<Row>>, TrainError> {
    let bos = tokenizer.bos_id().filter(|_| tokenizer.add_bos());
    blocks
        .par_iter()
        .map(|block| {
            let mut stream: Vec<u32> = bos.into_iter().collect();
            let encoded = tokenizer
                .encode(block.text)
                .map_err(|source| TrainError::Text { id: block.id.clone(), source })?;
            stream.extend(encoded);
            stream.extend(tokenizer.eos_id().filter(|_| block.last));
            Ok(cut_windows(&block.id, &stream, plan.max_length))
        })
        .collect()
}

fn cut_blocks(document: &Document, block_bytes: usize) -> Vec<Block<'_>> {
    let text = &document.text;
    let mut blocks = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let rest = &text[start..];
        let len = if rest.len() <= block_bytes { rest.len() } else { cut_at(rest, block_bytes) };
        blocks.push(Block {
            id: format!("{}@{start}", document.id),
            text: &rest[..len],
            last: len == rest.len(),
            held_out: false,
        });
        start += len;
    }
    blocks
}

/// Where to cut `text` at or before `most` bytes: after a paragraph, else a line, else a word,
/// each only in the second half; else anywhere between two characters.
fn cut_at(text: &str, most: usize) -> usize {
    let end = text.floor_char_boundary(most);
    ["\n\n", "\n", " "]
        .iter()
        .filter_map(|mark| text[..end].rfind(mark).map(|at| at + mark.len()))
        .find(|&at| at > most / 2)
        .or_else(|| Some(end).filter(|&end| end > 0))
        .unwrap_or_else(|| text.ceil_char_boundary(most))
}

fn hold_out(blocks: &mut [Block<'_>], share: f64) {
    if share == 0.0 || blocks.len() < 2 {
        return;
    }
    let mut lowest = (f64::INFINITY, 0);
    for (i, block) in blocks.iter_mut().enumerate() {
        let hash = Sha256::digest(block.text.as_bytes());
        let head: [u8; 8] = hash[..8].try_into().expect("a digest has 32 bytes");
        let place = u64::from_be_bytes(head) as f64 / 2f64.powi(64);
        block.held_out = place < share;
        if place < lowest.0 {
            lowest = (place, i);
        }
    }
    if !blocks.iter().any(|b| b.held_out) {
        blocks[lowest.1].held_out = true;
    }
}

fn cut_windows(id: &str, stream: &[u32], max_length: usize) -> Vec<Row> {
    let stride = max_length - 1;
    (0..stream.len().saturating_sub(1).div_ceil(stride))
        .map(|w| {
            let ids = stream[w * stride..(w * stride + max_length).min(stream.len())].to_vec();
            let mask = vec![true; ids.len()];
            Row::new(format!("{id}+{}", w * stride), ids, mask)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_cover_the_text(text in "([a-zé\u{1F600} ]{0,9}\n{0,2}){0,40}", most in 1usize..80) {
            let document = Document { id: "d".into(), text };
            let blocks = cut_blocks(&document, most);
            let joined: String = blocks.iter().map(|b| b.text).collect();
            prop_assert_eq!(&joined, &document.text);
            prop_assert!(blocks.iter().all(|b| !b.text.is_empty() && b.text.len() <= most.max(4)));
            prop_assert_eq!(blocks.iter().filter(|b| b.last).count(), blocks.len().min(1));
        }

        #[test]
        fn windows_predict_every_token_once(len in 0usize..60, max_length in 2usize..20) {
            let stream: Vec<u32> = (0..len as u32).collect();
            let rows = cut_windows("d", &stream, max_length);
            let predicted: Vec<u32> = rows.iter().flat_map(|r| r.ids[1..].to_vec()).collect();
            prop_assert_eq!(predicted, stream.get(1..).unwrap_or_default().to_vec());
            prop_assert!(rows.iter().all(|r| r.ids.len() <= max_length && r.supervised() > 0));
        }
    }

    #[test]
    fn held_out_share_is_kept_and_needs_no_seed() {
        let text: String = (0..2000).map(|i| format!("paragraph number {i}\n\n")).collect();
        let document = Document { id: "d".into(), text };
        let chosen = |share: f64| -> Vec<bool> {
            let mut blocks = cut_blocks(&document, 40);
            hold_out(&mut blocks, share);
            blocks.iter().map(|b| b.held_out).collect()
        };
        let fifth = chosen(0.2);
        let count = fifth.iter().filter(|&&h| h).count() as f64 / fifth.len() as f64;
        assert!((0.15..0.25).contains(&count), "{count}");
        // A larger share only adds blocks.
        assert!(fifth.iter().zip(chosen(0.5)).all(|(a, b)| !a || b));
        assert_eq!(chosen(1e-12).iter().filter(|&&h| h).count(), 1);
        assert_eq!(chosen(0.0).iter().filter(|&&h| h).count(), 0);
    }
}
