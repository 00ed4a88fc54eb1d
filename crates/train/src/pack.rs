//! Which rows each step sees, and how they are packed into ragged micro-batches.

use crate::plan::{StepSize, TrainPlan};
use crate::rows::Row;
use model::{Batch, Segment};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::ops::Range;

/// Micro-batches that stay open for a smaller row while packing.
const OPEN_BINS: usize = 64;

/// Rows packed side by side, each its own segment: no attention between them, positions from 0.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MicroBatch {
    /// What the model sees; logit rows only where there is a target.
    pub(crate) batch: Batch,
    /// Next token for each logit row.
    pub(crate) targets: Vec<i32>,
    /// Index of each row, and its part of `targets`.
    pub(crate) rows: Vec<(usize, Range<usize>)>,
}

/// Packs the chosen rows into micro-batches of at most `budget` tokens (a longer row goes alone):
/// longest first, each into the first that has room, so the largest comes first and trouble with
/// memory shows at once.
pub(crate) fn micro_batches(
    rows: &[Row],
    chosen: &[usize],
    budget: usize,
    adapter: Option<usize>,
) -> Vec<MicroBatch> {
    let mut sized: Vec<(usize, usize)> =
        chosen.iter().map(|&i| (rows[i].input_len(), i)).filter(|(len, _)| *len > 0).collect();
    // Stable, so that the shuffle decides among rows of one length.
    sized.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    let shortest = sized.last().map_or(0, |(len, _)| *len);
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // Bins with room left: (bin, room).
    let mut open: Vec<(usize, usize)> = Vec::new();
    for (len, index) in sized {
        match open.iter().position(|(_, room)| *room >= len) {
            Some(at) => {
                bins[open[at].0].push(index);
                open[at].1 -= len;
                if open[at].1 < shortest {
                    open.remove(at);
                }
            }
            None => {
                bins.push(vec![index]);
                let room = budget.saturating_sub(len);
                if room >= shortest {
                    open.push((bins.len() - 1, room));
                }
                if open.len() > OPEN_BINS {
                    open.remove(0);
                }
            }
        }
    }
    bins.iter().map(|bin| pack(rows, bin, adapter)).collect()
}

fn pack(rows: &[Row], bin: &[usize], adapter: Option<usize>) -> MicroBatch {
    let mut packed = MicroBatch { batch: Batch::default(), targets: Vec::new(), rows: Vec::new() };
    for &index in bin {
        let row = &rows[index];
        let (len, start) = (row.input_len(), packed.batch.tokens.len());
        packed.batch.tokens.extend(&row.ids[..len]);
        packed.batch.segments.push(Segment { len, adapter, ..Segment::default() });
        let first_target = packed.targets.len();
        for i in 0..len {
            // The hidden state at i predicts the id at i + 1.
            if row.mask[i + 1] {
                packed.batch.logit_rows.push(start + i);
                packed.targets.push(row.ids[i + 1] as i32);
            }
        }
        packed.rows.push((index, first_target..packed.targets.len()));
    }
    packed
}

/// Deals the rows of every epoch into steps. A function of seed and epoch alone, so a resumed run
/// continues with the very rows that come next.
pub(crate) struct Sampler<'a> {
    rows: &'a [Row],
    seed: u64,
    step_size: StepSize,
    steps_per_epoch: u64,
    /// Epoch whose order is at hand, and that order.
    order: (u64, Vec<usize>),
    /// Where each step of that epoch starts in `order`, and its end.
    bounds: Vec<usize>,
}

impl<'a> Sampler<'a> {
    pub(crate) fn new(rows: &'a [Row], plan: &TrainPlan) -> Sampler<'a> {
        let steps = match plan.step_size {
            StepSize::Rows(most) => rows.len().div_ceil(most),
            StepSize::Tokens(about) => {
                rows.iter().map(Row::input_len).sum::<usize>().div_ceil(about).min(rows.len())
            }
        };
        let mut sampler = Sampler {
            rows,
            seed: plan.seed,
            step_size: plan.step_size,
            steps_per_epoch: steps.max(1) as u64,
            order: (0, Vec::new()),
            bounds: Vec::new(),
        };
        sampler.deal(0);
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

    /// Rows of step `step`, counted from 0 over all epochs.
    pub(crate) fn step(&mut self, step: u64) -> &[usize] {
        let (epoch, within) = (step / self.steps_per_epoch, step % self.steps_per_epoch);
        if self.order.0 != epoch {
            self.deal(epoch);
        }
        let within = within as usize;
        &self.order.1[self.bounds[within]..self.bounds[within + 1]]
    }

    fn deal(&mut self, epoch: u64) {
        let mut order: Vec<usize> = (0..self.rows.len()).collect();
        shuffle(&mut order, self.seed, epoch);
        if epoch == 0 {
            // The longest row goes into the first step: if memory does not suffice, it shows now.
            let longest = (0..order.len())
                .rev()
                .max_by_key(|&i| self.rows[order[i]].input_len())
                .unwrap_or(0);
            if !order.is_empty() {
                order.swap(0, longest);
            }
        }
        self.bounds = match self.step_size {
            StepSize::Rows(_) => even_bounds(order.len(), self.steps_per_epoch as usize),
            StepSize::Tokens(_) => {
                let lens: Vec<usize> = order.iter().map(|&i| self.rows[i].input_len()).collect();
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
    // The odd constant (2^64 / golden ratio) keeps the streams of neighbouring seeds apart.
    let mut rng =
        Pcg64::seed_from_u64(seed ^ epoch.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
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
        Row { id: id.to_string(), ids, mask }
    }

    #[test]
    fn targets_are_the_next_tokens() {
        // Learnt: ids at 2, 3 and 5; what follows 5 is not even read.
        let mask = vec![true, false, true, true, false, true, false, false];
        let packed =
            micro_batches(&[row(1, mask), row(2, vec![false, true])], &[0, 1], 100, Some(3));
        assert_eq!(packed.len(), 1);
        let packed = &packed[0];
        assert_eq!(packed.batch.tokens, [100, 101, 102, 103, 104, 200]);
        assert_eq!(packed.batch.logit_rows, [1, 2, 4, 5]);
        assert_eq!(packed.targets, [102, 103, 105, 201]);
        assert_eq!(packed.rows, [(0, 0..3), (1, 3..4)]);
        assert!(packed.batch.segments.iter().all(|s| s.past == 0 && s.adapter == Some(3)));
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
            let packed = micro_batches(&rows, &chosen, budget, None);
            let mut seen: Vec<usize> =
                packed.iter().flat_map(|m| m.rows.iter().map(|(i, _)| *i)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, chosen);
            for m in &packed {
                prop_assert!(m.batch.tokens.len() <= budget || m.rows.len() == 1);
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
