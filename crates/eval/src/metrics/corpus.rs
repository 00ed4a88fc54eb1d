//! Values of all answers together, for metrics whose value is not the mean of their scores.

use crate::candidate::Answer;
use crate::item::EvalItem;
use crate::stats::{Interval, PairedOptions};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Numbers of an example and its answer.
pub type Parts = dyn Fn(&EvalItem, &Answer) -> Result<Vec<f64>, String> + Send + Sync;

/// How the value of a test set is made: numbers of each example, which are added up over all of them,
/// and a value of the sums. Resampling examples is then adding up again.
pub struct Corpus {
    /// The numbers of an example and its answer, as many for each; the reason when what they need is
    /// not known.
    pub parts: &'static Parts,
    /// The value of the sums.
    pub value: fn(&[f64]) -> f64,
}

/// How much the values of two candidates on the same examples differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CorpusDifference {
    /// Value of b minus value of a.
    pub difference: f64,
    /// 95 % interval of it: percentile bootstrap over examples, the same ones on both sides.
    pub ci95: Interval,
    /// Two-sided p-value of "there is no difference": approximate randomisation, which swaps the two
    /// answers to an example with probability 1/2.
    pub p_value: f64,
}

/// The numbers of an example by a function of (answer, reference); a failed answer is an empty text.
pub(super) fn of_texts(
    item: &EvalItem,
    answer: &Answer,
    statistics: fn(&str, &str) -> Vec<f64>,
) -> Vec<f64> {
    let text = if answer.error.is_some() { "" } else { &answer.text };
    statistics(text, &item.reference)
}

impl Corpus {
    /// The value of examples with these parts, with its 95 % interval (percentile bootstrap). The
    /// interval of a single example is its value.
    pub(crate) fn summary(&self, parts: &[Vec<f64>], options: &PairedOptions) -> (f64, Interval) {
        let value = (self.value)(&sum(parts.iter()));
        let mut rng = Pcg64Mcg::seed_from_u64(options.seed);
        let replicate = |_| (self.value)(&sum(resample(parts.len(), &mut rng).map(|i| &parts[i])));
        let replicates = (0..options.resamples).map(replicate).collect();
        (value, percentiles(replicates))
    }

    /// How much the value of `b` differs from that of `a`.
    pub(crate) fn compare(
        &self,
        a: &[Vec<f64>],
        b: &[Vec<f64>],
        options: &PairedOptions,
    ) -> CorpusDifference {
        let gap = |a: &[f64], b: &[f64]| (self.value)(b) - (self.value)(a);
        let difference = gap(&sum(a.iter()), &sum(b.iter()));
        let mut rng = Pcg64Mcg::seed_from_u64(options.seed);
        let replicate = |_| {
            let chosen: Vec<usize> = resample(a.len(), &mut rng).collect();
            gap(&sum(chosen.iter().map(|&i| &a[i])), &sum(chosen.iter().map(|&i| &b[i])))
        };
        let ci95 = percentiles((0..options.resamples).map(replicate).collect());
        let swapped = |_: usize| {
            let swaps: Vec<bool> = (0..a.len()).map(|_| rng.next_u32() >> 31 == 1).collect();
            let side = |this: &[Vec<f64>], that: &[Vec<f64>]| {
                sum((0..this.len()).map(|i| if swaps[i] { &that[i] } else { &this[i] }))
            };
            gap(&side(a, b), &side(b, a))
        };
        let as_far = (0..options.resamples)
            .map(swapped)
            .filter(|d| d.abs() >= difference.abs() - 1e-12)
            .count();
        let p_value = (1 + as_far) as f64 / (1 + options.resamples) as f64;
        CorpusDifference { difference, ci95, p_value }
    }
}

/// n places drawn with replacement from 0..n.
fn resample(n: usize, rng: &mut Pcg64Mcg) -> impl Iterator<Item = usize> {
    (0..n).map(move |_| ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize)
}

/// Numbers added up, place by place.
pub(crate) fn sum<'a>(parts: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let mut sums: Vec<f64> = Vec::new();
    for part in parts {
        sums.resize(part.len(), 0.0);
        for (sum, number) in sums.iter_mut().zip(part) {
            *sum += number;
        }
    }
    sums
}

fn percentiles(mut replicates: Vec<f64>) -> Interval {
    replicates.sort_by(f64::total_cmp);
    let last = replicates.len().saturating_sub(1) as f64;
    let at = |share: f64| replicates.get((share * last).round() as usize).copied();
    Interval { lo: at(0.025).unwrap_or(f64::NAN), hi: at(0.975).unwrap_or(f64::NAN) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEAN: Corpus =
        Corpus { parts: &|_, _| Ok(vec![0.0, 1.0]), value: |sums| sums[0] / sums[1] };

    fn parts(values: &[f64]) -> Vec<Vec<f64>> {
        values.iter().map(|&v| vec![v, 1.0]).collect()
    }

    #[test]
    fn a_mean_made_of_sums_has_the_interval_of_a_mean() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 10 < 3)).collect();
        let options = PairedOptions { resamples: 2000, seed: 1, ..PairedOptions::default() };
        let (value, interval) = MEAN.summary(&parts(&values), &options);
        assert!((value - 0.3).abs() < 1e-12);
        // 0.3 ± 1.96 · √(0.3·0.7/400) = 0.3 ± 0.0449
        assert!((interval.lo - 0.2551).abs() < 0.005 && (interval.hi - 0.3449).abs() < 0.005);
        assert_eq!(MEAN.summary(&parts(&values), &options).1, interval);
    }

    #[test]
    fn differences_are_paired() {
        let options = PairedOptions { resamples: 2000, seed: 1, ..PairedOptions::default() };
        let a: Vec<f64> = (0..100).map(|i| f64::from(i % 2)).collect();
        let same = MEAN.compare(&parts(&a), &parts(&a), &options);
        assert_eq!((same.difference, same.p_value), (0.0, 1.0));
        assert_eq!(same.ci95, Interval { lo: 0.0, hi: 0.0 });
        let b: Vec<f64> =
            a.iter().enumerate().map(|(i, v)| if i < 20 { 1.0 } else { *v }).collect();
        let better = MEAN.compare(&parts(&a), &parts(&b), &options);
        assert!((better.difference - 0.1).abs() < 1e-12 && better.ci95.lo > 0.03);
        // Ten swaps that all fall to one side or all to the other: 2/1024.
        assert!((0.0..0.01).contains(&better.p_value), "{}", better.p_value);
    }
}
