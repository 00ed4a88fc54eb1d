//! The mixture of experts: a router gives each token to a few of E feed-forward blocks and sums
//! their outputs, weighted by its probabilities (arXiv 1701.06538, 2401.04088).
//!
//! Tokens are gathered by expert, so that each expert's matrices are read once for all its rows
//! and nothing is computed for experts that no token chose. A token's outputs are added in the
//! order of the experts, whatever else is in the batch.

use crate::config::ExpertsConfig;
use crate::linear::Module;
use kernels::{Activation, PackedMatrix};
use rayon::prelude::*;
use std::ops::Range;

/// One layer's experts.
pub(crate) struct Experts {
    pub(crate) config: ExpertsConfig,
    pub(crate) activation: Activation,
    /// [E, H]
    pub(crate) router: PackedMatrix,
    /// Gate, up and down of each expert.
    pub(crate) experts: Vec<[PackedMatrix; 3]>,
}

/// A matrix of the block: an expert's, or (None) the router's.
pub(crate) type ExpertMatrix = Option<(usize, Module)>;
/// Takes a matrix with the gradient of its output [rows, out], its input [rows, in] and the rows.
type AddGradient<'a> = dyn FnMut(ExpertMatrix, &[f32], &[f32], usize) + 'a;

/// What the forward computes; A = T·k assignments of tokens to experts, sorted by expert, then
/// token.
#[derive(Default)]
pub(crate) struct ExpertActivations {
    /// Router probabilities, [T, E].
    probs: Vec<f32>,
    /// Token of each assignment, [A].
    rows: Vec<usize>,
    /// Weight of each assignment, [A].
    weights: Vec<f32>,
    /// Assignments of each expert, [E].
    ranges: Vec<Range<usize>>,
    /// Assignments of each token, in the order of the experts, [T, k].
    of_row: Vec<usize>,
    /// [A, H]
    x: Vec<f32>,
    /// [A, I]
    gate: Vec<f32>,
    up: Vec<f32>,
    act: Vec<f32>,
    /// Outputs before they are weighted, [A, H].
    y: Vec<f32>,
}

impl Experts {
    /// y [T, H] = (or += where `accumulate`) the weighted outputs of the experts chosen for x [T, H].
    pub(crate) fn forward(
        &self,
        y: &mut [f32],
        x: &[f32],
        accumulate: bool,
        s: &mut ExpertActivations,
    ) {
        let h = self.router.k();
        let t = x.len() / h;
        self.route(x, t, s);
        gather(&mut s.x, x, &s.rows, h);
        let (a, i) = (s.rows.len(), self.config.intermediate_size);
        for buffer in [&mut s.gate, &mut s.up, &mut s.act] {
            buffer.resize(a * i, 0.0);
        }
        s.y.resize(a * h, 0.0);
        for (matrices, rows) in self.used(s) {
            let [gate, up, _] = matrices;
            let x = &s.x[times(&rows, h)];
            kernels::matmul(&mut s.gate[times(&rows, i)], x, gate, rows.len(), false);
            kernels::matmul(&mut s.up[times(&rows, i)], x, up, rows.len(), false);
        }
        kernels::gated(self.activation, &mut s.act, &s.gate, &s.up);
        for (matrices, rows) in self.used(s) {
            let act = &s.act[times(&rows, i)];
            kernels::matmul(&mut s.y[times(&rows, h)], act, &matrices[2], rows.len(), false);
        }
        let k = self.config.top_k;
        y.par_chunks_mut(h).zip(s.of_row.par_chunks(k)).for_each(|(y, chosen)| {
            if !accumulate {
                y.fill(0.0);
            }
            for &a in chosen {
                let from = &s.y[a * h..(a + 1) * h];
                y.iter_mut().zip(from).for_each(|(y, v)| *y += s.weights[a] * v);
            }
        });
    }

    /// Gradient of [`Experts::forward`]: dx [T, H] is overwritten. `grad` adds the gradients
    /// of matrices, where the base is trained.
    pub(crate) fn backward(
        &self,
        dx: &mut [f32],
        dy: &[f32],
        x: &[f32],
        s: &ExpertActivations,
        grad: &mut AddGradient<'_>,
    ) {
        let (h, i) = (self.router.k(), self.config.intermediate_size);
        let (e, k, t) = (self.config.num_experts, self.config.top_k, dy.len() / h);
        let a = s.rows.len();
        // Of each assignment: the gradient of its weight, then that of its output.
        let mut dout = Vec::new();
        gather(&mut dout, dy, &s.rows, h);
        let mut dweights = vec![0.0; a];
        dout.par_chunks_mut(h).zip(&mut dweights).enumerate().for_each(|(a, (dout, dweight))| {
            let y = &s.y[a * h..(a + 1) * h];
            *dweight = dout.iter().zip(y).map(|(d, y)| d * y).sum();
            dout.iter_mut().for_each(|d| *d *= s.weights[a]);
        });
        let mut dact = vec![0.0; a * i];
        for (matrices, rows) in self.used(s) {
            let dout = &dout[times(&rows, h)];
            kernels::matmul_dx(&mut dact[times(&rows, i)], dout, &matrices[2], rows.len(), false);
        }
        let (mut dgate, mut dup) = (vec![0.0; a * i], vec![0.0; a * i]);
        kernels::gated_backward(self.activation, &mut dgate, &mut dup, &dact, &s.gate, &s.up);
        let mut din = vec![0.0; a * h];
        for (matrices, rows) in self.used(s) {
            let din = &mut din[times(&rows, h)];
            let (dgate, dup) = (&dgate[times(&rows, i)], &dup[times(&rows, i)]);
            kernels::matmul_dx(din, dgate, &matrices[0], rows.len(), false);
            kernels::matmul_dx(din, dup, &matrices[1], rows.len(), true);
        }
        for (expert, rows) in s.ranges.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            let (wide, narrow) = (times(rows, h), times(rows, i));
            let mut add = |module, dy: &[f32], x: &[f32]| {
                grad(Some((expert, module)), dy, x, rows.len());
            };
            add(Module::Gate, &dgate[narrow.clone()], &s.x[wide.clone()]);
            add(Module::Up, &dup[narrow.clone()], &s.x[wide.clone()]);
            add(Module::Down, &dout[wide], &s.act[narrow]);
        }
        // The weights are the chosen probabilities, or their shares of the sum.
        let mut dprobs = vec![0.0; t * e];
        for row in 0..t {
            let chosen = &s.of_row[row * k..(row + 1) * k];
            let probs = &s.probs[row * e..(row + 1) * e];
            let expert = |a: usize| s.ranges.partition_point(|r| r.end <= a);
            let sum: f32 = chosen.iter().map(|&a| probs[expert(a)]).sum();
            let mean: f32 = chosen.iter().map(|&a| s.weights[a] * dweights[a]).sum();
            for &a in chosen {
                dprobs[row * e + expert(a)] = match self.config.normalized {
                    true => (dweights[a] - mean) / sum,
                    false => dweights[a],
                };
            }
        }
        let mut dlogits = vec![0.0; t * e];
        kernels::softmax_backward(&mut dlogits, &dprobs, &s.probs, e);
        kernels::matmul_dx(dx, &dlogits, &self.router, t, false);
        grad(None, &dlogits, x, t);
        dx.par_chunks_mut(h).zip(s.of_row.par_chunks(k)).for_each(|(dx, chosen)| {
            for &a in chosen {
                dx.iter_mut().zip(&din[a * h..(a + 1) * h]).for_each(|(d, v)| *d += v);
            }
        });
    }

    /// Chooses each token's experts: the k largest probabilities, of equal ones the first.
    fn route(&self, x: &[f32], t: usize, s: &mut ExpertActivations) {
        let (e, k) = (self.config.num_experts, self.config.top_k);
        s.probs.resize(t * e, 0.0);
        kernels::matmul(&mut s.probs, x, &self.router, t, false);
        kernels::softmax(&mut s.probs, e);
        let mut chosen = vec![0; t * k];
        chosen.par_chunks_mut(k).zip(s.probs.par_chunks(e)).for_each(|(chosen, probs)| {
            let mut order: Vec<usize> = (0..e).collect();
            order.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]).then(a.cmp(&b)));
            chosen.copy_from_slice(&order[..k]);
            chosen.sort_unstable();
        });
        let mut counts = vec![0; e];
        chosen.iter().for_each(|&expert| counts[expert] += 1);
        s.ranges.clear();
        let mut start = 0;
        for count in counts {
            s.ranges.push(start..start + count);
            start += count;
        }
        let mut next: Vec<usize> = s.ranges.iter().map(|r| r.start).collect();
        s.rows.resize(t * k, 0);
        s.weights.resize(t * k, 0.0);
        s.of_row.resize(t * k, 0);
        for row in 0..t {
            let probs = &s.probs[row * e..(row + 1) * e];
            let chosen = &chosen[row * k..(row + 1) * k];
            let sum: f32 = chosen.iter().map(|&expert| probs[expert]).sum();
            for (place, &expert) in chosen.iter().enumerate() {
                let a = next[expert];
                next[expert] += 1;
                s.rows[a] = row;
                s.weights[a] = probs[expert] / if self.config.normalized { sum } else { 1.0 };
                s.of_row[row * k + place] = a;
            }
        }
    }

    /// The experts that have rows, with their rows.
    fn used(&self, s: &ExpertActivations) -> Vec<(&[PackedMatrix; 3], Range<usize>)> {
        let pairs = self.experts.iter().zip(&s.ranges);
        pairs.filter(|(_, r)| !r.is_empty()).map(|(m, r)| (m, r.clone())).collect()
    }
}

fn gather(out: &mut Vec<f32>, x: &[f32], rows: &[usize], h: usize) {
    out.resize(rows.len() * h, 0.0);
    out.par_chunks_mut(h).zip(rows).for_each(|(out, row)| {
        out.copy_from_slice(&x[row * h..(row + 1) * h]);
    });
}

fn times(range: &Range<usize>, width: usize) -> Range<usize> {
    range.start * width..range.end * width
}
