//! AdamW (arXiv 1711.05101) on flat slices, with clipping by global norm.

use rayon::prelude::*;
use std::ops::Range;

/// Elements per task. Fixed, so that no result depends on the number of threads.
const CHUNK: usize = 16 << 10;

/// Optimizer state for P parameters: first and second moment, f32.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// First moment, [P].
    pub exp_avg: Vec<f32>,
    /// Second moment, [P].
    pub exp_avg_sq: Vec<f32>,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the corrected second moment.
    pub epsilon: f64,
    /// Decoupled weight decay where a group says so.
    pub weight_decay: f64,
    /// How which parameters are treated; what no group names stays as it is.
    pub groups: Vec<ParamGroup>,
}

/// Some parameters that an optimizer treats alike.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamGroup {
    /// Which.
    pub range: Range<usize>,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Their learning rate as a multiple of the step's.
    pub lr_ratio: f64,
}

impl AdamW {
    /// State of zeros for `count` parameters.
    pub fn new(
        count: usize,
        betas: (f64, f64),
        epsilon: f64,
        weight_decay: f64,
        groups: Vec<ParamGroup>,
    ) -> AdamW {
        AdamW {
            exp_avg: vec![0.0; count],
            exp_avg_sq: vec![0.0; count],
            beta1: betas.0,
            beta2: betas.1,
            epsilon,
            weight_decay,
            groups,
        }
    }

    /// One update of `params` [P] by `grads` [P] times `grad_scale`; `step` counts from 1. As
    /// `torch.optim.AdamW`: decay first, then the bias-corrected step.
    pub fn step(
        &mut self,
        params: &mut [f32],
        grads: &[f32],
        grad_scale: f64,
        learning_rate: f64,
        step: u64,
    ) {
        let correction = |beta: f64| 1.0 - beta.powi(step.min(i32::MAX as u64) as i32);
        for group in &self.groups {
            let rate = learning_rate * group.lr_ratio;
            let decay = if group.decay { self.weight_decay } else { 0.0 };
            let update = Update {
                keep: (1.0 - rate * decay) as f32,
                beta1: self.beta1 as f32,
                rest1: (1.0 - self.beta1) as f32,
                beta2: self.beta2 as f32,
                rest2: (1.0 - self.beta2) as f32,
                step_size: (rate / correction(self.beta1)) as f32,
                root_correction: (1.0 / correction(self.beta2).sqrt()) as f32,
                epsilon: self.epsilon as f32,
                grad_scale: grad_scale as f32,
            };
            let range = || group.range.clone();
            params[range()]
                .par_chunks_mut(CHUNK)
                .zip(self.exp_avg[range()].par_chunks_mut(CHUNK))
                .zip(self.exp_avg_sq[range()].par_chunks_mut(CHUNK))
                .zip(grads[range()].par_chunks(CHUNK))
                .for_each(|(((p, m), v), g)| update.apply(p, m, v, g));
        }
    }
}

/// Constants of one step.
struct Update {
    /// What decay leaves of a parameter.
    keep: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    step_size: f32,
    root_correction: f32,
    epsilon: f32,
    grad_scale: f32,
}

impl Update {
    /// Elementwise and without branches, so that the compiler makes vector code of it.
    fn apply(&self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.grad_scale;
            *m = self.beta1 * *m + self.rest1 * g;
            *v = self.beta2 * *v + self.rest2 * g * g;
            *p = *p * self.keep
                - self.step_size * *m / (v.sqrt() * self.root_correction + self.epsilon);
        }
    }
}

/// Euclidean norm of `grads`, summed in f64 over fixed chunks: the same bits on any number of
/// threads.
pub(crate) fn global_norm(grads: &[f32]) -> f64 {
    let sums: Vec<f64> = grads
        .par_chunks(CHUNK)
        .map(|chunk| {
            // Eight running sums, so that the additions do not wait for one another.
            let mut lanes = [0.0f64; 8];
            for eight in chunk.chunks(8) {
                for (lane, &g) in lanes.iter_mut().zip(eight) {
                    *lane += g as f64 * g as f64;
                }
            }
            lanes.iter().sum()
        })
        .collect();
    sums.iter().sum::<f64>().sqrt()
}

/// Factor that brings a gradient of norm `norm` down to `max_norm`, as torch's
/// `clip_grad_norm_`; 1 when it is within, or when `max_norm` is 0.
pub(crate) fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The textbook loop in f64.
    fn reference(
        params: &mut [f64],
        grads: &[Vec<f32>],
        betas: (f64, f64),
        eps: f64,
        decay: f64,
        decayed: &[Range<usize>],
        rate: f64,
    ) {
        let (mut m, mut v) = (vec![0.0; params.len()], vec![0.0; params.len()]);
        for (t, g) in grads.iter().enumerate() {
            let t = t as i32 + 1;
            for i in 0..params.len() {
                let g = g[i] as f64;
                if decayed.iter().any(|r| r.contains(&i)) {
                    params[i] -= rate * decay * params[i];
                }
                m[i] = betas.0 * m[i] + (1.0 - betas.0) * g;
                v[i] = betas.1 * v[i] + (1.0 - betas.1) * g * g;
                let m_hat = m[i] / (1.0 - betas.0.powi(t));
                let v_hat: f64 = v[i] / (1.0 - betas.1.powi(t));
                params[i] -= rate * m_hat / (v_hat.sqrt() + eps);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn equals_the_f64_reference(
            params in prop::collection::vec(-2.0f32..2.0, 40),
            grads in prop::collection::vec(prop::collection::vec(-3.0f32..3.0, 40), 1..20),
            decay in 0.0f64..0.3,
            rate in 1e-5f64..1e-1,
            beta2 in 0.9f64..0.9999,
        ) {
            let decayed = vec![0..10, 25..40];
            let group = |range, decay| ParamGroup { range, decay, lr_ratio: 1.0 };
            let groups = vec![group(0..10, true), group(10..25, false), group(25..40, true)];
            let mut adam = AdamW::new(40, (0.9, beta2), 1e-8, decay, groups.clone());
            let mut found = params.clone();
            for (t, g) in grads.iter().enumerate() {
                adam.step(&mut found, g, 1.0, rate, t as u64 + 1);
            }
            let mut expected: Vec<f64> = params.iter().map(|&x| x as f64).collect();
            reference(&mut expected, &grads, (0.9, beta2), 1e-8, decay, &decayed, rate);
            for (f, e) in found.iter().zip(&expected) {
                // Twenty steps, each moves by at most about rate, with f32 rounding.
                prop_assert!((*f as f64 - e).abs() < 1e-4 * rate * 20.0 + 4e-6, "{f} and {e}");
            }
        }
    }

    #[test]
    fn long_slices_and_thread_counts_agree() {
        let count = 3 * CHUNK + 17;
        let grads: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut adam = AdamW::new(
                    count,
                    (0.9, 0.999),
                    1e-8,
                    0.1,
                    [0..5, 5..count / 2, count / 2..count]
                        .map(|range| ParamGroup { decay: range.start > 0, range, lr_ratio: 1.0 })
                        .to_vec(),
                );
                let mut params = vec![0.5; count];
                for t in 1..4 {
                    adam.step(&mut params, &grads, 0.3, 1e-2, t);
                }
                (params, global_norm(&grads).to_bits())
            })
        };
        assert_eq!(run(1), run(3));
        let exact = grads.iter().map(|&g| g as f64 * g as f64).sum::<f64>().sqrt();
        assert!((global_norm(&grads) - exact).abs() < 1e-9 * exact);
    }

    #[test]
    fn a_group_learns_at_its_own_rate_and_nothing_else_moves() {
        let step = |groups: Vec<ParamGroup>, rate: f64| {
            let mut adam = AdamW::new(6, (0.9, 0.999), 1e-8, 0.1, groups);
            let mut params = vec![1.0f32; 6];
            adam.step(&mut params, &[0.5, -1.0, 2.0, 0.1, 3.0, 1.0], 1.0, rate, 1);
            params
        };
        let group = |range, lr_ratio| ParamGroup { range, decay: true, lr_ratio };
        let both = step(vec![group(0..2, 1.0), group(2..5, 16.0)], 1e-2);
        assert_eq!(both[..2], step(vec![group(0..6, 1.0)], 1e-2)[..2]);
        assert_eq!(both[2..5], step(vec![group(0..6, 1.0)], 16e-2)[2..5]);
        assert_eq!(both[5], 1.0);
    }

    #[test]
    fn clipping() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(123.0, 0.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
    }
}
