//! One sequence's choice of its next token.

use crate::sequence::SamplingParams;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Chooses tokens for one sequence. It owns the sequence's random numbers, so that what else is
/// in the batch cannot change the text.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    top_k: usize,
    rng: Pcg64,
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Its natural log probability under the model itself: before temperature, top_k and top_p.
    pub logprob: f32,
}

impl Sampler {
    /// A sampler at the start of its random numbers. `params` are within their ranges.
    pub fn new(params: &SamplingParams) -> Sampler {
        Sampler {
            temperature: f64::from(params.temperature),
            top_p: f64::from(params.top_p),
            top_k: params.top_k,
            rng: Pcg64::seed_from_u64(params.seed),
        }
    }

    /// Chooses from `logits` [V]. None when there is no logit or one is not a finite number.
    /// Draws one random number per call at a temperature above 0, none at 0.
    pub fn sample(&mut self, logits: &[f32]) -> Option<Sampled> {
        let best = argmax(logits)?;
        let max = f64::from(logits[best]);
        let token = if self.temperature == 0.0 {
            best
        } else {
            let weight = |logit: f32| ((f64::from(logit) - max) / self.temperature).exp();
            let unit = (self.rng.next_u64() >> 11) as f64 * (-53f64).exp2();
            if self.top_k == 0 && self.top_p >= 1.0 {
                let total: f64 = logits.iter().map(|&l| weight(l)).sum();
                pick(logits.iter().enumerate().map(|(id, &l)| (id, weight(l))), unit * total, best)
            } else {
                let kept = self.nucleus(logits, &weight);
                let total: f64 = kept.iter().map(|&(_, w)| w).sum();
                pick(kept.into_iter(), unit * total, best)
            }
        };
        let log_total = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln();
        let logprob = (f64::from(logits[token]) - max - log_total) as f32;
        Some(Sampled { token: token as u32, logprob })
    }

    /// The most likely tokens with their weights, most likely first: at most `top_k`, and of those
    /// no more than reach the share `top_p`; at least one.
    fn nucleus(&self, logits: &[f32], weight: &dyn Fn(f32) -> f64) -> Vec<(usize, f64)> {
        // A heap costs O(V) to build and O(log V) for each token kept; usually few are.
        let mut heap: BinaryHeap<Candidate> =
            logits.iter().enumerate().map(|(id, &logit)| Candidate { logit, id }).collect();
        let most = if self.top_k == 0 { logits.len() } else { self.top_k.min(logits.len()) };
        let top: f64 = if most == logits.len() {
            logits.iter().map(|&l| weight(l)).sum()
        } else {
            // top_p is a share of what top_k leaves, as in Hugging Face's chain of warpers.
            let mut sorted = heap.clone();
            (0..most).filter_map(|_| sorted.pop()).map(|c| weight(c.logit)).sum()
        };
        let mut kept = Vec::new();
        let mut sum = 0.0;
        while kept.len() < most && (kept.is_empty() || sum < self.top_p * top) {
            let Some(candidate) = heap.pop() else { break };
            let w = weight(candidate.logit);
            sum += w;
            kept.push((candidate.id, w));
        }
        kept
    }
}

/// Index of the largest logit, the first of equals; None when one is not finite or none is there.
fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best = 0;
    let mut finite = !logits.is_empty();
    for (i, &logit) in logits.iter().enumerate() {
        finite &= logit.is_finite();
        if logit > logits[best] {
            best = i;
        }
    }
    finite.then_some(best)
}

/// The first candidate at which the running sum of weights exceeds `target`; `fallback` when
/// rounding keeps the sum at or below it.
fn pick(candidates: impl Iterator<Item = (usize, f64)>, target: f64, fallback: usize) -> usize {
    let mut sum = 0.0;
    let mut last = fallback;
    for (id, weight) in candidates {
        if weight > 0.0 {
            sum += weight;
            last = id;
            if sum > target {
                return id;
            }
        }
    }
    last
}

/// Ordered by logit, of equals the lower id is greater. Logits are finite.
#[derive(Clone, Copy)]
struct Candidate {
    logit: f32,
    id: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Candidate) -> Ordering {
        self.logit.total_cmp(&other.logit).then(other.id.cmp(&self.id))
    }
}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Candidate {
    fn eq(&self, other: &Candidate) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Candidate {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampler(temperature: f32, top_p: f32, top_k: usize, seed: u64) -> Sampler {
        Sampler::new(&SamplingParams {
            temperature,
            top_p,
            top_k,
            seed,
            ..SamplingParams::default()
        })
    }

    /// Shares of each token over `n` draws.
    fn shares(mut s: Sampler, logits: &[f32], n: usize) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..n {
            counts[s.sample(logits).unwrap().token as usize] += 1.0 / n as f64;
        }
        counts
    }

    fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
        let e: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|v| v / sum).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        let s = sampler(0.0, 1.0, 0, 1).sample(&[1.0, 3.0, 3.0, -2.0]).unwrap();
        assert_eq!(s.token, 1);
        let expected = (3f64.exp() / (1f64.exp() + 2.0 * 3f64.exp() + (-2f64).exp())).ln();
        assert!((f64::from(s.logprob) - expected).abs() < 1e-6);
        assert_eq!(sampler(0.0, 1.0, 0, 1).sample(&[-0.0, 0.0]).unwrap().token, 0);
        assert_eq!(sampler(1.0, 1.0, 1, 1).sample(&[2.0, 3.0, 3.0]).unwrap().token, 1, "top_k 1");
    }

    #[test]
    fn broken_logits_are_refused_wherever_they_stand() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..3 {
                for temperature in [0.0, 1.0] {
                    let mut logits = [0.5, 1.0, -1.0];
                    logits[at] = bad;
                    assert_eq!(sampler(temperature, 0.9, 2, 1).sample(&logits), None);
                }
            }
        }
        assert_eq!(sampler(0.0, 1.0, 0, 1).sample(&[]), None);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [1.0, 0.0, 2.0, -1.0];
        // 40,000 draws: five standard errors of a share are below 0.0125.
        for temperature in [0.5, 1.0, 2.0] {
            let seen = shares(sampler(temperature, 1.0, 0, 7), &logits, 40_000);
            for (s, e) in seen.iter().zip(softmax(&logits, f64::from(temperature))) {
                assert!((s - e).abs() < 0.0125, "T={temperature}: {seen:?}");
            }
        }
        let seen = shares(sampler(1.0, 1.0, 2, 7), &logits, 40_000);
        let p = 2f64.exp() / (2f64.exp() + 1f64.exp());
        assert!((seen[2] - p).abs() < 0.0125 && (seen[0] - (1.0 - p)).abs() < 0.0125, "{seen:?}");
        assert_eq!((seen[1], seen[3]), (0.0, 0.0), "top_k keeps two");
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        // probabilities 0.5, 0.25, 0.125, 0.125
        let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
        for (top_p, expected) in [(0.4, 1), (0.6, 2), (0.74, 2), (0.8, 3), (0.999, 4)] {
            let seen = shares(sampler(1.0, top_p, 0, 3), &logits, 4_000);
            let kept = seen.iter().filter(|&&s| s > 0.0).count();
            assert_eq!(kept, expected, "top_p {top_p}: {seen:?}");
            assert!(seen[..expected].iter().all(|&s| s > 0.0), "of equals the lower id stays");
        }
        // top_k 2 leaves 2/3 and 1/3: 0.6 of that is reached by the first alone.
        let seen = shares(sampler(1.0, 0.6, 2, 3), &logits, 1_000);
        assert!(seen[1..].iter().all(|&s| s == 0.0), "{seen:?}");
    }

    #[test]
    fn extreme_temperatures_stay_finite() {
        for temperature in [1e-30, 1e30] {
            let s = sampler(temperature, 1.0, 0, 5).sample(&[f32::MAX, f32::MIN, 0.0]).unwrap();
            assert!(s.token < 3 && !s.logprob.is_nan());
        }
        assert_eq!(sampler(1e-30, 1.0, 0, 5).sample(&[1.0, 1.1, 0.0]).unwrap().token, 1);
    }

    proptest! {
        #[test]
        fn same_seed_same_tokens_and_never_outside_the_kept(
            logits in prop::collection::vec(-8f32..8.0, 1..60),
            temperature in 0.1f32..3.0, top_p in 0.05f32..=1.0, top_k in 0usize..70, seed: u64,
        ) {
            let mut a = sampler(temperature, top_p, top_k, seed);
            let mut b = a.clone();
            for _ in 0..20 {
                let x = a.sample(&logits).unwrap();
                prop_assert_eq!(x, b.sample(&logits).unwrap());
                let above = logits.iter().filter(|&&l| l > logits[x.token as usize]).count();
                prop_assert!(top_k == 0 || above < top_k);
                prop_assert!(x.logprob <= 0.0);
                // The tokens above it alone do not reach top_p of everything kept by top_k.
                let p = softmax(&logits, f64::from(temperature));
                let mut sorted = p.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let most = if top_k == 0 { p.len() } else { top_k.min(p.len()) };
                let whole: f64 = sorted[..most].iter().sum();
                let before: f64 = sorted[..above].iter().sum();
                prop_assert!(before <= f64::from(top_p) * whole + 1e-9);
            }
        }
    }
}
