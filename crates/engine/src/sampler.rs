//! One sequence's choice of its next token.

use crate::constraint::TokenSet;
use crate::params::SamplingParams;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// Chooses tokens for one sequence. It owns the sequence's random numbers, so that what else is
/// in the batch cannot change the text.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    /// How often the answer has each token; kept only where a penalty wants it.
    generated: HashMap<u32, u32>,
    /// Tokens of prompt and answer; kept only where `repetition_penalty` wants them.
    seen: HashSet<u32>,
    rng: Pcg64,
    /// Changed logits of the step, [V]; empty while nothing changes them.
    changed: Vec<f32>,
    /// Weights of the step, [V].
    weights: Vec<f64>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// What the model itself thought of it, where the parameters ask for that.
    pub logprobs: Option<TokenLogprobs>,
}

/// Natural log probabilities under the model itself: before penalties, bias, grammar, temperature
/// and whatever else shapes the choice.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token concerned.
    pub token: u32,
    /// Its log probability.
    pub logprob: f32,
    /// How many tokens are more likely.
    pub rank: usize,
    /// The most likely tokens with theirs, most likely first, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Of `token` under `logits` [V], which are finite, with the `top` most likely ones beside it.
    pub fn new(logits: &[f32], token: u32, top: usize) -> TokenLogprobs {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        let of = |logit: f32| (f64::from(logit) - f64::from(max) - sum.ln()) as f32;
        let chosen = logits[token as usize];
        TokenLogprobs {
            token,
            logprob: of(chosen),
            rank: logits.iter().filter(|&&l| l > chosen).count(),
            top: most_likely(logits, top).into_iter().map(|(id, l)| (id as u32, of(l))).collect(),
        }
    }
}

impl Sampler {
    /// A sampler at the start of its random numbers, for an answer to `prompt`. `params` are within
    /// their ranges.
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Sampler {
        let seen = match params.repetition_penalty == 1.0 {
            true => HashSet::new(),
            false => prompt.iter().copied().collect(),
        };
        Sampler {
            params: params.clone(),
            generated: HashMap::new(),
            seen,
            rng: Pcg64::seed_from_u64(params.seed),
            changed: Vec::new(),
            weights: Vec::new(),
        }
    }

    /// Chooses from `logits` [V], of `allowed` where a grammar says which. None when there is no
    /// logit, one is not a finite number, or none is allowed. Draws one random number per call at a
    /// temperature above 0, none at 0.
    pub fn sample(&mut self, logits: &[f32], allowed: Option<&TokenSet>) -> Option<Sampled> {
        if logits.is_empty() || !logits.iter().all(|l| l.is_finite()) {
            return None;
        }
        let mut changed = std::mem::take(&mut self.changed);
        let shaped = self.shape(logits, allowed, &mut changed);
        let token = self.choose(shaped);
        self.changed = changed;
        let token = token? as u32;
        if self.params.presence_penalty != 0.0 || self.params.frequency_penalty != 0.0 {
            *self.generated.entry(token).or_default() += 1;
        }
        if self.params.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
        let logprobs = self.params.logprobs.map(|top| TokenLogprobs::new(logits, token, top));
        Some(Sampled { token, logprobs })
    }

    /// The logits after penalties, bias and grammar: themselves where none applies, otherwise in
    /// `changed`, with negative infinity where a token must not be chosen.
    fn shape<'a>(
        &self,
        logits: &'a [f32],
        allowed: Option<&TokenSet>,
        changed: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let params = &self.params;
        if self.seen.is_empty()
            && self.generated.is_empty()
            && params.logit_bias.is_empty()
            && allowed.is_none()
        {
            return logits;
        }
        changed.clear();
        changed.extend_from_slice(logits);
        for &token in &self.seen {
            if let Some(logit) = changed.get_mut(token as usize) {
                let penalty = params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        for (&token, &count) in &self.generated {
            changed[token as usize] -=
                params.presence_penalty + count as f32 * params.frequency_penalty;
        }
        for &(token, bias) in &params.logit_bias {
            changed[token as usize] += bias;
        }
        // A huge penalty may leave the finite numbers; the order of tokens is what counts.
        changed.iter_mut().for_each(|l| *l = l.clamp(f32::MIN, f32::MAX));
        if let Some(allowed) = allowed {
            for (token, logit) in changed.iter_mut().enumerate() {
                if !allowed.contains(token as u32) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        changed
    }

    fn choose(&mut self, logits: &[f32]) -> Option<usize> {
        let best = argmax(logits)?;
        let params = &self.params;
        if params.temperature == 0.0 {
            return Some(best);
        }
        let (temperature, max) = (f64::from(params.temperature), f64::from(logits[best]));
        let unit = (self.rng.next_u64() >> 11) as f64 * (-53f64).exp2();
        let weight = |logit: f32| ((f64::from(logit) - max) / temperature).exp();
        if params.top_k == 0 && params.top_p >= 1.0 && params.typical_p >= 1.0 {
            // In the order of ids: no sorting, and every token stays.
            let least = f64::from(params.min_p);
            self.weights.clear();
            self.weights.extend(logits.iter().map(|&l| weight(l)).map(|w| match w >= least {
                true => w,
                false => 0.0,
            }));
            let total: f64 = self.weights.iter().sum();
            return Some(pick(self.weights.iter().copied().enumerate(), unit * total, best));
        }
        let mut kept = self.nucleus(logits, &weight);
        // The most likely token has the weight 1.
        kept.retain(|&(_, w)| w >= f64::from(params.min_p));
        if params.typical_p < 1.0 {
            keep_typical(&mut kept, f64::from(params.typical_p));
        }
        let total: f64 = kept.iter().map(|&(_, w)| w).sum();
        Some(pick(kept.into_iter(), unit * total, best))
    }

    /// The most likely tokens with their weights, most likely first: at most `top_k`, and of those
    /// no more than reach the share `top_p`; at least one.
    fn nucleus(&self, logits: &[f32], weight: &dyn Fn(f32) -> f64) -> Vec<(usize, f64)> {
        let SamplingParams { top_k, top_p, .. } = self.params;
        // A heap costs O(V) to build and O(log V) for each token kept; usually few are.
        let mut heap = candidates(logits);
        let most = if top_k == 0 { logits.len() } else { top_k.min(logits.len()) };
        let top: f64 = if most == logits.len() {
            logits.iter().map(|&l| weight(l)).sum()
        } else {
            // top_p is a share of what top_k leaves, as in Hugging Face's chain of warpers.
            most_likely(logits, most).into_iter().map(|(_, l)| weight(l)).sum()
        };
        let mut kept = Vec::new();
        let mut sum = 0.0;
        while kept.len() < most && (kept.is_empty() || sum < f64::from(top_p) * top) {
            let Some(candidate) = heap.pop() else { break };
            let w = weight(candidate.logit);
            sum += w;
            kept.push((candidate.id, w));
        }
        kept
    }
}

/// Keeps of `kept` (most likely first) the tokens whose surprise is nearest to the entropy, as many
/// as reach the share `typical_p`, at least one.
fn keep_typical(kept: &mut Vec<(usize, f64)>, typical_p: f64) {
    kept.retain(|&(_, w)| w > 0.0);
    let total: f64 = kept.iter().map(|&(_, w)| w).sum();
    let surprise = |w: f64| -(w / total).ln();
    let entropy: f64 = kept.iter().map(|&(_, w)| w / total * surprise(w)).sum();
    // Stable: of two as near, the more likely one stays.
    kept.sort_by(|a, b| {
        let far = |w: f64| (surprise(w) - entropy).abs();
        far(a.1).total_cmp(&far(b.1))
    });
    let mut sum = 0.0;
    let mut count = 0;
    while count < kept.len() && (count == 0 || sum < typical_p * total) {
        sum += kept[count].1;
        count += 1;
    }
    kept.truncate(count);
}

/// The `count` largest logits with their ids, largest first, of equals the lower id first.
fn most_likely(logits: &[f32], count: usize) -> Vec<(usize, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut heap = candidates(logits);
    (0..count).filter_map(|_| heap.pop()).map(|c| (c.id, c.logit)).collect()
}

fn candidates(logits: &[f32]) -> BinaryHeap<Candidate> {
    logits.iter().enumerate().map(|(id, &logit)| Candidate { logit, id }).collect()
}

/// Index of the largest logit, the first of equals; None when none is above negative infinity.
pub(crate) fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    (logits[best] > f32::NEG_INFINITY).then_some(best)
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

/// Ordered by logit, of equals the lower id is greater. Logits are no NaN.
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

    fn with(change: impl Fn(&mut SamplingParams)) -> Sampler {
        let mut params = SamplingParams::default();
        change(&mut params);
        Sampler::new(&params, &[])
    }

    fn sampler(temperature: f32, top_p: f32, top_k: usize, seed: u64) -> Sampler {
        with(|p| {
            *p = SamplingParams { temperature, top_p, top_k, seed, ..SamplingParams::default() };
        })
    }

    fn one(s: &mut Sampler, logits: &[f32]) -> u32 {
        s.sample(logits, None).unwrap().token
    }

    /// Shares of each token over `n` draws.
    fn shares(mut s: Sampler, logits: &[f32], n: usize) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..n {
            counts[one(&mut s, logits) as usize] += 1.0 / n as f64;
        }
        counts
    }

    fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
        let e: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|v| v / sum).collect()
    }

    /// Logits of 0.5, 0.25, 0.125, 0.125.
    fn halves() -> Vec<f32> {
        [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect()
    }

    /// The tokens that 4,000 draws of `s` find.
    fn found(s: Sampler, logits: &[f32]) -> Vec<usize> {
        let seen = shares(s, logits, 4_000);
        (0..logits.len()).filter(|&t| seen[t] > 0.0).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        assert_eq!(one(&mut sampler(0.0, 1.0, 0, 1), &[1.0, 3.0, 3.0, -2.0]), 1);
        assert_eq!(one(&mut sampler(0.0, 1.0, 0, 1), &[-0.0, 0.0]), 0);
        assert_eq!(one(&mut sampler(1.0, 1.0, 1, 1), &[2.0, 3.0, 3.0]), 1, "top_k 1");
    }

    #[test]
    fn log_probabilities_are_the_model_s_own() {
        let logits = [1.0, 3.0, 2.0, -2.0];
        let mut s = with(|p| {
            p.logprobs = Some(2);
            p.logit_bias = vec![(0, 100.0)];
        });
        let found = s.sample(&logits, None).unwrap().logprobs.unwrap();
        assert_eq!((found.token, found.rank), (0, 2), "chosen by its bias");
        let p = softmax(&logits, 1.0);
        let expected = [(1u32, p[1].ln()), (2, p[2].ln())];
        assert!((f64::from(found.logprob) - p[0].ln()).abs() < 1e-6);
        for (f, e) in found.top.iter().zip(expected) {
            assert!(f.0 == e.0 && (f64::from(f.1) - e.1).abs() < 1e-6, "{found:?}");
        }
        assert_eq!(found.top.len(), 2);
        assert_eq!(with(|_| {}).sample(&logits, None).unwrap().logprobs, None);
        // More are asked for than there are.
        assert_eq!(TokenLogprobs::new(&[0.0, 0.0], 1, 20).top.len(), 2);
    }

    #[test]
    fn broken_logits_are_refused_wherever_they_stand() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..3 {
                for temperature in [0.0, 1.0] {
                    let mut logits = [0.5, 1.0, -1.0];
                    logits[at] = bad;
                    assert_eq!(sampler(temperature, 0.9, 2, 1).sample(&logits, None), None);
                }
            }
        }
        assert_eq!(sampler(0.0, 1.0, 0, 1).sample(&[], None), None);
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
        for (top_p, expected) in [(0.4, 1), (0.6, 2), (0.74, 2), (0.8, 3), (0.999, 4)] {
            let kept = found(sampler(1.0, top_p, 0, 3), &halves());
            assert_eq!(kept, (0..expected).collect::<Vec<_>>(), "top_p {top_p}");
        }
        // top_k 2 leaves 2/3 and 1/3: 0.6 of that is reached by the first alone.
        assert_eq!(found(sampler(1.0, 0.6, 2, 3), &halves()), [0]);
    }

    #[test]
    fn min_p_is_a_share_of_the_most_likely() {
        for (min_p, expected) in [(0.2, 4), (0.3, 2), (0.6, 1), (1.0, 1)] {
            for top_k in [0, 4] {
                let s = with(|p| (p.temperature, p.min_p, p.top_k) = (1.0, min_p, top_k));
                assert_eq!(found(s, &halves()).len(), expected, "min_p {min_p}, top_k {top_k}");
            }
        }
    }

    #[test]
    fn typical_p_keeps_what_is_as_surprising_as_expected() {
        // The entropy of 0.5, 0.25, 0.125, 0.125 is 1.75 bits: 0.25 (2 bits) is nearest, then 0.5
        // (1 bit), then the others (3 bits).
        for (typical_p, expected) in
            [(0.2, vec![1]), (0.3, vec![0, 1]), (0.7, vec![0, 1]), (0.8, vec![0, 1, 2])]
        {
            let s = with(|p| (p.temperature, p.typical_p) = (1.0, typical_p));
            assert_eq!(found(s, &halves()), expected, "typical_p {typical_p}");
        }
    }

    #[test]
    fn penalties_count_what_was_said() {
        // Presence: once a token is out, the other wins until both are.
        let logits = [1.0, 0.9, 0.0];
        let mut s = with(|p| p.presence_penalty = 0.5);
        let said: Vec<u32> = (0..4).map(|_| one(&mut s, &logits)).collect();
        assert_eq!(said, [0, 1, 0, 0], "0.5 and 0.4 against 0 after the first two");
        // Frequency: it grows with every time.
        let mut s = with(|p| p.frequency_penalty = 0.4);
        let said: Vec<u32> = (0..6).map(|_| one(&mut s, &logits)).collect();
        assert_eq!(said, [0, 1, 0, 1, 0, 1]);
        // Repetition: the prompt counts, and negative logits become more negative.
        let repeated = |prompt: &[u32], logits: &[f32]| {
            let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
            one(&mut Sampler::new(&params, prompt), logits)
        };
        assert_eq!(repeated(&[], &[1.0, 0.6]), 0);
        assert_eq!(repeated(&[0], &[1.0, 0.6]), 1);
        assert_eq!(repeated(&[0], &[-1.0, -1.5]), 1);
        // A token of the prompt that the vocabulary lacks is nobody's.
        assert_eq!(repeated(&[9], &[1.0, 0.6]), 0);
    }

    #[test]
    fn bias_and_grammar_bound_the_choice() {
        let logits = [2.0, 1.0, 0.0];
        assert_eq!(one(&mut with(|p| p.logit_bias = vec![(2, 5.0)]), &logits), 2);
        assert_eq!(
            found(with(|p| (p.temperature, p.logit_bias) = (1.0, vec![(0, -100.0)])), &logits),
            [1, 2]
        );
        let mut allowed = TokenSet::new(3);
        assert_eq!(with(|_| {}).sample(&logits, Some(&allowed)), None, "nothing is allowed");
        allowed.insert(1);
        for temperature in [0.0, 1.0] {
            for top_k in [0, 2] {
                let mut s = with(|p| (p.temperature, p.top_k) = (temperature, top_k));
                assert!((0..50).all(|_| s.sample(&logits, Some(&allowed)).unwrap().token == 1));
            }
        }
    }

    #[test]
    fn extreme_temperatures_stay_finite() {
        for temperature in [1e-30, 1e30] {
            assert!(one(&mut sampler(temperature, 1.0, 0, 5), &[f32::MAX, f32::MIN, 0.0]) < 3);
        }
        assert_eq!(one(&mut sampler(1e-30, 1.0, 0, 5), &[1.0, 1.1, 0.0]), 1);
        let mut s = with(|p| (p.logprobs, p.repetition_penalty) = (Some(1), 1e30));
        for _ in 0..3 {
            let found = s.sample(&[f32::MAX, f32::MIN, 0.0], None).unwrap();
            assert!(!found.logprobs.unwrap().logprob.is_nan());
        }
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
                let x = one(&mut a, &logits);
                prop_assert_eq!(x, one(&mut b, &logits));
                let above = logits.iter().filter(|&&l| l > logits[x as usize]).count();
                prop_assert!(top_k == 0 || above < top_k);
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
