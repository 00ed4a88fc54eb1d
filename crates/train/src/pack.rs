//! Which rows each step sees, and how they are packed into ragged micro-batches.

use crate::plan::{StepSize, TrainPlan};
use crate::rows::Row;
use model::{Batch, Segment};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::ops::Range;

/// Rows packed side by side, each its own segment: no attention between them, positions from 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MicroBatch {
    /// What the model sees; logit rows only where there is a target.
    pub(crate) batch: Batch,
    /// Next token for each logit row.
    pub(crate) targets: Vec<i32>,
    /// For each target, whether it belongs to an answer; prompts are targets in some objectives.
    pub(crate) in_answer: Vec<bool>,
    /// The examples, in the order of their segments.
    pub(crate) examples: Vec<Packed>,
}

/// One example in a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Packed {
    /// Which of the runs that share the batch it belongs to.
    pub(crate) lane: usize,
    /// Its index in the run's data.
    pub(crate) index: usize,
    /// Targets of each of its rows.
    pub(crate) rows: Vec<Range<usize>>,
}

/// What one run puts into a step.
pub(crate) struct Share<'a> {
    pub(crate) lane: usize,
    /// All rows of its data.
    pub(crate) rows: &'a [Row],
    /// Rows of one example, which stay in one micro-batch.
    pub(crate) per_example: usize,
    /// The examples of this step.
    pub(crate) chosen: &'a [usize],
    pub(crate) adapter: Option<usize>,
    /// Decides what dropout drops, together with the row; None drops nothing.
    pub(crate) dropout: Option<u64>,
    /// Whether the prompt of an example's first row is learnt too.
    pub(crate) whole: bool,
}

/// Packs the examples of all runs into micro-batches of at most `budget` tokens (a larger example
/// goes alone): run by run, the longest first, so that trouble with memory shows at once.
///
/// Each run's rows come in an order that does not depend on where batches end or what else is in
/// them, and gradients are sums in that order: a run learns the same, to the bit, whatever the budget
/// and the company.
pub(crate) fn micro_batches(shares: &[Share<'_>], budget: usize) -> Vec<MicroBatch> {
    let mut batches: Vec<MicroBatch> = Vec::new();
    for share in shares {
        let mut sized: Vec<(usize, usize)> =
            share.chosen.iter().map(|&i| (share.len(i), i)).collect();
        sized.retain(|(len, _)| *len > 0);
        // Stable, so that the shuffle decides among examples of one length.
        sized.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
        for (len, index) in sized {
            let room = |b: &&mut MicroBatch| b.batch.tokens.len() + len <= budget;
            match batches.last_mut().filter(room) {
                Some(batch) => share.pack(index, batch),
                None => {
                    let mut batch = MicroBatch::default();
                    share.pack(index, &mut batch);
                    batches.push(batch);
                }
            }
        }
    }
    batches
}

impl MicroBatch {
    /// Tokens of each example that go through the model.
    pub(crate) fn example_tokens(&self) -> impl Iterator<Item = usize> {
        let mut segments = self.batch.segments.iter();
        self.examples
            .iter()
            .map(move |example| segments.by_ref().take(example.rows.len()).map(|s| s.len).sum())
    }
}

impl Share<'_> {
    fn rows_of(&self, index: usize) -> &[Row] {
        &self.rows[index * self.per_example..(index + 1) * self.per_example]
    }

    /// Tokens of an example that go through the model.
    fn len(&self, index: usize) -> usize {
        self.rows_of(index).iter().map(Row::input_len).sum()
    }

    fn pack(&self, index: usize, into: &mut MicroBatch) {
        let mut rows = Vec::new();
        for (n, row) in self.rows_of(index).iter().enumerate() {
            let (len, start) = (row.input_len(), into.batch.tokens.len());
            into.batch.tokens.extend(&row.ids[..len]);
            let number = (index * self.per_example + n) as u64;
            into.batch.segments.push(Segment {
                len,
                adapter: self.adapter,
                dropout: self.dropout.map(|key| key ^ number.wrapping_mul(GOLDEN)),
                ..Segment::default()
            });
            let first_target = into.targets.len();
            for i in 0..len {
                // The hidden state at i predicts the id at i + 1.
                let learnt = row.mask[i + 1];
                if learnt || (self.whole && n == 0) {
                    into.batch.logit_rows.push(start + i);
                    into.targets.push(row.ids[i + 1] as i32);
                    into.in_answer.push(learnt);
                }
            }
            rows.push(first_target..into.targets.len());
        }
        into.examples.push(Packed { lane: self.lane, index, rows });
    }
}

/// 2^64 over the golden ratio: its multiples keep neighbouring numbers apart.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// What decides the dropout of step `step`, counted from 1.
pub(crate) fn dropout_key(seed: u64, step: u64) -> u64 {
    Pcg64::seed_from_u64(seed.wrapping_mul(GOLDEN) ^ step).next_u64()
}

/// Deals the examples of every epoch into steps. A function of seed and epoch alone, so a resumed run
/// continues with the very rows that come next.
pub(crate) struct Sampler {
    /// Tokens of each example.
    lens: Vec<usize>,
    seed: u64,
    step_size: StepSize,
    steps_per_epoch: u64,
    /// Epoch whose order is at hand, and that order.
    order: (u64, Vec<usize>),
    /// Where each step of that epoch starts in `order`, and its end.
    bounds: Vec<usize>,
}

impl Sampler {
    pub(crate) fn new(rows: &[Row], plan: &TrainPlan) -> Sampler {
        let examples = rows.chunks_exact(plan.objective.rows_per_example());
        let lens: Vec<usize> = examples.map(|rows| rows.iter().map(Row::input_len).sum()).collect();
        let steps = match plan.step_size {
            StepSize::Rows(most) => lens.len().div_ceil(most),
            StepSize::Tokens(about) => lens.iter().sum::<usize>().div_ceil(about).min(lens.len()),
        };
        let mut sampler = Sampler {
            lens,
            seed: plan.seed,
            step_size: plan.step_size,
            steps_per_epoch: steps.max(1) as u64,
            order: (0, Vec::new()),
            bounds: Vec::new(),
        };
        sampler.deal(0);
        sampler
    }

    /// One that deals the examples of the first epoch as they come.
    #[cfg(test)]
    pub(crate) fn in_order(rows: &[Row], plan: &TrainPlan) -> Sampler {
        let mut sampler = Sampler::new(rows, plan);
        sampler.order.1.sort_unstable();
        sampler
    }

    pub(crate) fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// All steps of the plan.
    pub(crate) fn total_steps(&self, plan: &TrainPlan) -> u64 {
        match plan.max_steps {
            0 => ((plan.num_train_epochs * self.steps_per_epoch as f64).ceil() as u64).max(1),
            steps => steps,
        }
    }

    /// Examples of step `step`, counted from 0 over all epochs.
    pub(crate) fn step(&mut self, step: u64) -> &[usize] {
        let (epoch, within) = (step / self.steps_per_epoch, step % self.steps_per_epoch);
        if self.order.0 != epoch {
            self.deal(epoch);
        }
        let within = within as usize;
        &self.order.1[self.bounds[within]..self.bounds[within + 1]]
    }

    fn deal(&mut self, epoch: u64) {
        let mut order: Vec<usize> = (0..self.lens.len()).collect();
        shuffle(&mut order, self.seed, epoch);
        if epoch == 0 {
            // The longest example goes into the first step: if memory does not suffice, it shows now.
            let longest = (0..order.len()).rev().max_by_key(|&i| self.lens[order[i]]).unwrap_or(0);
            if !order.is_empty() {
                order.swap(0, longest);
            }
        }
        self.bounds = match self.step_size {
            StepSize::Rows(_) => even_bounds(order.len(), self.steps_per_epoch as usize),
            StepSize::Tokens(_) => {
                let lens: Vec<usize> = order.iter().map(|&i| self.lens[i]).collect();
                token_bounds(&lens, self.steps_per_epoch as usize)
            }
        };
        self.order = (epoch, order);
    }
}

/// `parts + 1` bounds that deal `count` rows evenly, so that no step is a small rest with a noisy
/// gradient.
fn even_bounds(count: usize, parts: usize) -> Vec<usize> {
    (0..=parts).map(|i| i * count / parts).collect()
}

/// `parts + 1` bounds at even shares of the tokens, every part with at least one row; needs
/// `parts` <= rows.
fn token_bounds(lens: &[usize], parts: usize) -> Vec<usize> {
    let total: u128 = lens.iter().map(|&l| l as u128).sum();
    let mut bounds = vec![0];
    let (mut row, mut sum) = (0usize, 0u128);
    for part in 1..parts {
        let goal = total * part as u128 / parts as u128;
        let (at_least, at_most) = (bounds[part - 1] + 1, lens.len() - (parts - part));
        while row < at_most && (row < at_least || sum + (lens[row] as u128) / 2 < goal) {
            sum += lens[row] as u128;
            row += 1;
        }
        bounds.push(row);
    }
    bounds.push(lens.len());
    bounds
}

/// Fisher and Yates, with a draw that is the same on every machine.
fn shuffle(order: &mut [usize], seed: u64, epoch: u64) {
    let mut rng = Pcg64::seed_from_u64(seed ^ epoch.wrapping_add(1).wrapping_mul(GOLDEN));
    for i in (1..order.len()).rev() {
        let j = ((rng.next_u64() as u128 * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(id: usize, mask: Vec<bool>) -> Row {
        let ids = (0..mask.len() as u32).map(|i| i + id as u32 * 100).collect();
        Row::new(id.to_string(), ids, mask)
    }

    #[test]
    fn targets_are_the_next_tokens() {
        // Learnt: ids at 2, 3 and 5; what follows 5 is not even read.
        let mask = vec![true, false, true, true, false, true, false, false];
        let rows = [row(1, mask), row(2, vec![false, true])];
        let packed = micro_batches(&[Share { adapter: Some(3), ..share(&rows, &[0, 1]) }], 100);
        assert_eq!(packed.len(), 1);
        let packed = &packed[0];
        assert_eq!(packed.batch.tokens, [100, 101, 102, 103, 104, 200]);
        assert_eq!(packed.batch.logit_rows, [1, 2, 4, 5]);
        assert_eq!(packed.targets, [102, 103, 105, 201]);
        let example = |index, targets| Packed { lane: 0, index, rows: vec![targets] };
        assert_eq!(packed.examples, [example(0, 0..3), example(1, 3..4)]);
        assert_eq!(packed.example_tokens().collect::<Vec<_>>(), [5, 1]);
        assert!(packed.in_answer.iter().all(|&a| a));
        assert!(packed.batch.segments.iter().all(|s| s.past == 0 && s.adapter == Some(3)));
    }

    fn share<'a>(rows: &'a [Row], chosen: &'a [usize]) -> Share<'a> {
        Share { lane: 0, rows, per_example: 1, chosen, adapter: None, dropout: None, whole: false }
    }

    #[test]
    fn pairs_stay_together_and_only_the_chosen_prompt_is_learnt() {
        let rows: Vec<Row> = (0..4).map(|i| row(i, vec![false, false, true, true])).collect();
        let pairs = Share { per_example: 2, whole: true, ..share(&rows, &[1, 0]) };
        let packed = micro_batches(&[pairs], 6);
        assert_eq!(packed.len(), 2);
        for (packed, index) in packed.iter().zip([1, 0]) {
            assert_eq!(packed.examples, [Packed { lane: 0, index, rows: vec![0..3, 3..5] }]);
            assert_eq!(packed.in_answer, [false, true, true, true, true]);
        }
    }

    #[test]
    fn dropout_keys_differ_by_row_step_and_seed_only() {
        let rows: Vec<Row> = (0..3).map(|i| row(i, vec![false, true])).collect();
        let keys = |chosen: &[usize], seed, step| -> Vec<u64> {
            let share = Share { dropout: Some(dropout_key(seed, step)), ..share(&rows, chosen) };
            let packed = micro_batches(&[share], 2);
            packed.iter().flat_map(|m| m.batch.segments.iter()).filter_map(|s| s.dropout).collect()
        };
        let all = keys(&[0, 1, 2], 4, 1);
        assert_eq!(all.len(), 3);
        assert_eq!(keys(&[2], 4, 1), all[2..]);
        for other in [keys(&[0, 1, 2], 4, 2), keys(&[0, 1, 2], 5, 1)] {
            assert!(other.iter().all(|key| !all.contains(key)));
        }
    }

    fn some_rows() -> impl Strategy<Value = Vec<Row>> {
        prop::collection::vec(2usize..40, 1..60).prop_map(|lens| {
            lens.iter().enumerate().map(|(i, &len)| row(i, vec![true; len])).collect()
        })
    }

    proptest! {
        #[test]
        fn every_row_is_packed_once(rows in some_rows(), budget in 1usize..100) {
            let chosen: Vec<usize> = (0..rows.len()).collect();
            let packed = micro_batches(&[share(&rows, &chosen)], budget);
            let mut seen: Vec<usize> =
                packed.iter().flat_map(|m| m.examples.iter().map(|e| e.index)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, chosen);
            for m in &packed {
                prop_assert!(m.batch.tokens.len() <= budget || m.examples.len() == 1);
            }
            let longest = rows.iter().map(Row::input_len).max().unwrap();
            prop_assert_eq!(packed[0].batch.segments[0].len, longest);
        }

        #[test]
        fn an_epoch_deals_every_row_once(
            rows in some_rows(), size in 1usize..90, by_tokens: bool, epoch in 0u64..3, seed: u64,
        ) {
            let mut plan = crate::plan::tests::plan();
            plan.seed = seed;
            plan.step_size = if by_tokens { StepSize::Tokens(size) } else { StepSize::Rows(size) };
            let mut sampler = Sampler::new(&rows, &plan);
            let per_epoch = sampler.steps_per_epoch();
            let mut seen = Vec::new();
            for step in epoch * per_epoch..(epoch + 1) * per_epoch {
                let chosen = sampler.step(step).to_vec();
                prop_assert!(!chosen.is_empty());
                if !by_tokens {
                    prop_assert!(chosen.len() <= size);
                }
                seen.extend(chosen);
            }
            if epoch == 0 {
                let longest = rows.iter().map(Row::input_len).max().unwrap();
                prop_assert_eq!(rows[seen[0]].input_len(), longest);
            }
            // The same again, from a sampler that starts in the middle.
            let mut resumed = Sampler::new(&rows, &plan);
            let last = (epoch + 1) * per_epoch - 1;
            prop_assert_eq!(resumed.step(last).to_vec(), sampler.step(last).to_vec());
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..rows.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn epochs_and_seeds_shuffle_differently() {
        let orders: Vec<Vec<usize>> = [(0, 0), (0, 1), (1, 0), (1, 1)]
            .iter()
            .map(|&(seed, epoch)| {
                let mut order: Vec<usize> = (0..50).collect();
                shuffle(&mut order, seed, epoch);
                order
            })
            .collect();
        for (i, a) in orders.iter().enumerate() {
            assert!(orders[i + 1..].iter().all(|b| a != b));
        }
    }
}
