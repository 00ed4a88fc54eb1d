//! Softmax regression over weighted words.

use super::Kind;
use super::tfidf::Vocabulary;
use indexmap::IndexSet;
use std::collections::VecDeque;

/// Inverse strength of the penalty, as in scikit-learn's `LogisticRegression(C=10)`: what cross-validation
/// chose on BANKING77 (docs/benchmarks/banking77_baseline.json).
const C: f64 = 10.0;
/// Where the largest slope of the mean loss is below this, it has converged.
const TOLERANCE: f64 = 1e-5;
const MOST_STEPS: usize = 500;
/// Steps that L-BFGS remembers.
const MEMORY: usize = 5;

/// The weights w that make C · Σ loss + |w|²/2 least, the intercepts without penalty, over TF-IDF of words
/// and pairs.
pub(super) static KIND: Kind = Kind {
    name: "linear",
    learn: |pairs| {
        let vocabulary = Vocabulary::learn(pairs.iter().map(|(question, _)| question.as_str()));
        let labels: IndexSet<String> = pairs.iter().map(|(_, answer)| answer.clone()).collect();
        let problem = Problem {
            rows: pairs.iter().map(|(question, _)| vocabulary.vector(question)).collect(),
            gold: pairs.iter().filter_map(|(_, answer)| labels.get_index_of(answer)).collect(),
            classes: labels.len(),
            terms: vocabulary.len(),
        };
        let weights = minimise(&problem);
        Box::new(move |question| {
            let scores = problem.scores(&vocabulary.vector(question), &weights);
            let mut best = 0;
            for (class, score) in scores.iter().enumerate() {
                if *score > scores[best] {
                    best = class;
                }
            }
            labels[best].clone()
        })
    },
};

/// Weights are [terms + 1, classes], the intercepts last.
struct Problem {
    rows: Vec<Vec<(usize, f64)>>,
    gold: Vec<usize>,
    classes: usize,
    terms: usize,
}

impl Problem {
    fn scores(&self, row: &[(usize, f64)], weights: &[f64]) -> Vec<f64> {
        let mut scores = weights[self.terms * self.classes..].to_vec();
        for &(term, value) in row {
            let of_term = &weights[term * self.classes..(term + 1) * self.classes];
            scores.iter_mut().zip(of_term).for_each(|(score, weight)| *score += value * weight);
        }
        scores
    }

    /// The objective over C · n, and its gradient.
    fn value(&self, weights: &[f64]) -> (f64, Vec<f64>) {
        let n = self.rows.len() as f64;
        let penalty = 1.0 / (C * n);
        let penalised = self.terms * self.classes;
        let mut gradient: Vec<f64> = weights.iter().map(|w| penalty * w).collect();
        gradient[penalised..].fill(0.0);
        let squares: f64 = weights[..penalised].iter().map(|w| w * w).sum();
        let mut loss = 0.5 * penalty * squares;
        for (row, &gold) in self.rows.iter().zip(&self.gold) {
            let mut scores = self.scores(row, weights);
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
            loss += (most + sum.ln() - scores[gold]) / n;
            scores.iter_mut().for_each(|score| *score = (*score - most).exp() / sum / n);
            scores[gold] -= 1.0 / n;
            for &(term, value) in row.iter().chain([&(self.terms, 1.0)]) {
                let of_term = &mut gradient[term * self.classes..(term + 1) * self.classes];
                of_term.iter_mut().zip(&scores).for_each(|(slope, error)| *slope += value * error);
            }
        }
        (loss, gradient)
    }
}

/// L-BFGS (doi 10.1007/BF01589116) with backtracking; the objective is convex, so that it ends at the one
/// minimum.
fn minimise(problem: &Problem) -> Vec<f64> {
    let mut weights = vec![0.0; (problem.terms + 1) * problem.classes];
    let (mut loss, mut gradient) = problem.value(&weights);
    let mut past: VecDeque<(Vec<f64>, Vec<f64>)> = VecDeque::new();
    for _ in 0..MOST_STEPS {
        if gradient.iter().all(|slope| slope.abs() < TOLERANCE) {
            break;
        }
        let direction = direction(&gradient, &past);
        let slope = dot(&direction, &gradient);
        let mut step = if past.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt() } else { 1.0 };
        let moved = loop {
            let there: Vec<f64> =
                weights.iter().zip(&direction).map(|(w, d)| w + step * d).collect();
            let (value, new) = problem.value(&there);
            if value <= loss + 1e-4 * step * slope {
                break Some((there, value, new));
            }
            step *= 0.5;
            if step < 1e-12 {
                break None;
            }
        };
        // No way down that floating point can tell: this is the minimum.
        let Some((there, value, new)) = moved else { break };
        let moved: Vec<f64> = there.iter().zip(&weights).map(|(a, b)| a - b).collect();
        let changed: Vec<f64> = new.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        if dot(&moved, &changed) > 0.0 {
            past.push_back((moved, changed));
            if past.len() > MEMORY {
                past.pop_front();
            }
        }
        (weights, loss, gradient) = (there, value, new);
    }
    weights
}

/// Downhill, bent by what the past steps showed of the curvature.
fn direction(gradient: &[f64], past: &VecDeque<(Vec<f64>, Vec<f64>)>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|slope| -slope).collect();
    let mut factors = Vec::with_capacity(past.len());
    for (moved, changed) in past.iter().rev() {
        let factor = dot(moved, &direction) / dot(moved, changed);
        add(&mut direction, -factor, changed);
        factors.push(factor);
    }
    if let Some((moved, changed)) = past.back() {
        let scale = dot(moved, changed) / dot(changed, changed);
        direction.iter_mut().for_each(|d| *d *= scale);
    }
    for ((moved, changed), factor) in past.iter().zip(factors.into_iter().rev()) {
        let back = dot(changed, &direction) / dot(moved, changed);
        add(&mut direction, factor - back, moved);
    }
    direction
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], factor: f64, what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += factor * what);
}
