//! Cross entropy of rows of logits: loss = log Σ e^x - x[target], with the largest logit taken out
//! of the exponentials.

use crate::simd::{Kernel, Level, Simd, dispatch_at};
use crate::vector::{exp_in_place, max, scale};
use rayon::prelude::*;

/// Target of a row that counts for nothing: zero loss, zero gradient.
pub const IGNORE_INDEX: i32 = -100;

/// losses[C] of logits[C,V], in nats; 0 for rows whose target is [`IGNORE_INDEX`]. A NaN among the
/// logits of any other row makes its loss NaN.
///
/// # Panics
/// When `losses` and `targets` differ in length, `logits` is not C rows, or a target is neither
/// [`IGNORE_INDEX`] nor in 0..V. Callers check outside data before they come here.
pub fn cross_entropy(logits: &[f32], targets: &[i32], losses: &mut [f32]) {
    cross_entropy_at(Level::detect(), logits, targets, losses);
}

/// As [`cross_entropy`], and replaces logits[C,V] by their gradient weight·(softmax - onehot);
/// rows with [`IGNORE_INDEX`] become zero. The losses are not weighted.
///
/// # Panics
/// As [`cross_entropy`].
pub fn cross_entropy_backward_inplace(
    logits: &mut [f32],
    targets: &[i32],
    weight: f32,
    losses: &mut [f32],
) {
    cross_entropy_backward_at(Level::detect(), logits, targets, weight, losses);
}

/// Plain [`cross_entropy`].
pub fn reference_cross_entropy(logits: &[f32], targets: &[i32], losses: &mut [f32]) {
    let v = vocabulary(logits.len(), targets, losses.len());
    for (row, target) in targets.iter().enumerate() {
        let x = &logits[row * v..(row + 1) * v];
        losses[row] = match class(*target) {
            None => 0.0,
            Some(target) => (reference_log_sum_exp(x) - f64::from(x[target])) as f32,
        };
    }
}

/// Plain [`cross_entropy_backward_inplace`].
pub fn reference_cross_entropy_backward_inplace(
    logits: &mut [f32],
    targets: &[i32],
    weight: f32,
    losses: &mut [f32],
) {
    reference_cross_entropy(logits, targets, losses);
    let v = vocabulary(logits.len(), targets, losses.len());
    for (row, target) in targets.iter().enumerate() {
        let x = &mut logits[row * v..(row + 1) * v];
        let Some(target) = class(*target) else {
            x.fill(0.0);
            continue;
        };
        let log_sum = reference_log_sum_exp(x);
        for (i, x) in x.iter_mut().enumerate() {
            let p = (f64::from(*x) - log_sum).exp();
            *x = (f64::from(weight) * (p - f64::from(u8::from(i == target)))) as f32;
        }
    }
}

fn reference_log_sum_exp(x: &[f32]) -> f64 {
    let largest = f64::from(x.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v)));
    x.iter().map(|v| (f64::from(*v) - largest).exp()).sum::<f64>().ln() + largest
}

fn cross_entropy_at(level: Level, logits: &[f32], targets: &[i32], losses: &mut [f32]) {
    let v = vocabulary(logits.len(), targets, losses.len());
    losses.par_iter_mut().zip(targets.par_iter()).enumerate().for_each(|(row, (loss, target))| {
        *loss = match class(*target) {
            None => 0.0,
            Some(target) => {
                let x = &logits[row * v..(row + 1) * v];
                dispatch_at(level, Forward { x, target })
            }
        };
    });
}

fn cross_entropy_backward_at(
    level: Level,
    logits: &mut [f32],
    targets: &[i32],
    weight: f32,
    losses: &mut [f32],
) {
    let v = vocabulary(logits.len(), targets, losses.len());
    if targets.is_empty() {
        return;
    }
    logits.par_chunks_exact_mut(v).zip(losses.par_iter_mut()).zip(targets.par_iter()).for_each(
        |((x, loss), target)| match class(*target) {
            None => {
                x.fill(0.0);
                *loss = 0.0;
            }
            Some(target) => *loss = dispatch_at(level, Backward { x, target, weight }),
        },
    );
}

/// None for an ignored row.
fn class(target: i32) -> Option<usize> {
    // `vocabulary` has refused every other negative value.
    usize::try_from(target).ok()
}

/// V, after checking that everything fits.
fn vocabulary(logits: usize, targets: &[i32], losses: usize) -> usize {
    let c = targets.len();
    assert_eq!(losses, c, "cross_entropy: {losses} losses for {c} targets");
    if c == 0 {
        assert_eq!(logits, 0, "cross_entropy: {logits} logits for no target");
        return 0;
    }
    let v = logits / c;
    assert!(v > 0 && v * c == logits, "cross_entropy: {logits} logits are not {c} equal rows");
    for target in targets {
        assert!(
            *target == IGNORE_INDEX || class(*target).is_some_and(|t| t < v),
            "cross_entropy: target {target} is neither {IGNORE_INDEX} nor in 0..{v}"
        );
    }
    v
}

/// Loss of one row.
struct Forward<'a> {
    x: &'a [f32],
    target: usize,
}

impl Kernel for Forward<'_> {
    type Output = f32;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // The logits stay: exponentials go to a small buffer, in the stretches that
        // `exp_in_place` sums by, so that this loss equals the backward's to the bit.
        const STRETCH: usize = 1024;
        let n = self.x.len();
        let mut buffer = [0.0_f32; STRETCH];
        // SAFETY: every access stays inside x or the buffer.
        unsafe {
            let largest = max::<S>(self.x.as_ptr(), n);
            let mut sum = 0.0;
            for stretch in self.x.chunks(STRETCH) {
                buffer[..stretch.len()].copy_from_slice(stretch);
                sum += exp_in_place::<S>(buffer.as_mut_ptr(), stretch.len(), largest);
            }
            loss(sum, self.x[self.target], largest)
        }
    }
}

/// Loss of one row; the row becomes its gradient.
struct Backward<'a> {
    x: &'a mut [f32],
    target: usize,
    weight: f32,
}

impl Kernel for Backward<'_> {
    type Output = f32;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let n = self.x.len();
        let x = self.x.as_mut_ptr();
        // SAFETY: x covers n values and target < n (see vocabulary).
        unsafe {
            let largest = max::<S>(x, n);
            let at_target = *x.add(self.target);
            let sum = exp_in_place::<S>(x, n, largest);
            let factor = (f64::from(self.weight) / sum) as f32;
            scale::<S>(x, n, factor);
            *x.add(self.target) -= self.weight;
            loss(sum, at_target, largest)
        }
    }
}

/// log Σ e^(x - largest) - (x[target] - largest): the large parts cancel before the rounding.
#[inline(always)]
fn loss(sum: f64, at_target: f32, largest: f32) -> f32 {
    (sum.ln() - (f64::from(at_target) - f64::from(largest))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::testing::*;

    fn case(c: usize, v: usize) -> (Vec<f32>, Vec<i32>) {
        let logits = random(c * v, 1).iter().map(|x| x * 12.0).collect();
        let targets = (0..c)
            .map(|row| if row % 3 == 2 { IGNORE_INDEX } else { (row * 7 % v) as i32 })
            .collect();
        (logits, targets)
    }

    #[test]
    fn every_level_equals_the_reference() {
        for level in Level::available() {
            for (c, v) in [(0, 0), (1, 1), (3, 2), (4, 17), (9, 1023), (5, 1024), (7, 5003)] {
                let (logits, targets) = if c == 0 { (vec![], vec![]) } else { case(c, v) };
                let (mut losses, mut expected) = (vec![9.0; c], vec![0.0; c]);
                cross_entropy_at(level, &logits, &targets, &mut losses);
                reference_cross_entropy(&logits, &targets, &mut expected);
                assert_close(&losses, &expected, 1e-6, "losses");
                let (mut d, mut d_ref) = (logits.clone(), logits);
                let mut again = vec![9.0; c];
                cross_entropy_backward_at(level, &mut d, &targets, 0.3, &mut again);
                assert_same_bits(&again, &losses, "losses of forward and backward");
                let weight = 0.3;
                reference_cross_entropy_backward_inplace(&mut d_ref, &targets, weight, &mut again);
                assert_close(&d, &d_ref, 1e-6, "dlogits");
            }
        }
    }

    #[test]
    fn gradient_is_the_slope() {
        let (c, v, weight) = (3, 6, 0.5);
        let logits = random(c * v, 1);
        let targets = [4, IGNORE_INDEX, 0];
        let (mut d, mut losses) = (logits.clone(), vec![0.0; c]);
        cross_entropy_backward_inplace(&mut d, &targets, weight, &mut losses);
        assert_gradient(&logits, &d, 1e-3, "dlogits", |x| {
            let mut losses = vec![0.0; c];
            reference_cross_entropy(x, &targets, &mut losses);
            f64::from(weight) * losses.iter().map(|l| f64::from(*l)).sum::<f64>()
        });
    }

    #[test]
    fn ignored_rows_are_zero_even_when_broken() {
        let mut logits = [f32::NAN, 1.0, 2.0, 3.0];
        let mut losses = [9.0; 2];
        cross_entropy(&logits, &[IGNORE_INDEX, 0], &mut losses);
        assert_eq!(losses[0], 0.0);
        cross_entropy_backward_inplace(&mut logits, &[IGNORE_INDEX, 0], 1.0, &mut losses);
        assert_eq!((losses[0], &logits[..2]), (0.0, &[0.0, 0.0][..]));
    }

    #[test]
    fn nan_is_not_hidden_and_large_logits_do_not_overflow() {
        for place in 0..20 {
            let mut logits = random(20, 1);
            logits[place] = f32::NAN;
            let mut losses = [0.0];
            cross_entropy(&logits, &[3], &mut losses);
            assert!(losses[0].is_nan(), "NaN at {place}");
        }
        let mut losses = [0.0];
        cross_entropy(&[3e38, -3e38, 3e38], &[0], &mut losses);
        assert_close(&losses, &[2f32.ln()], 1e-6, "large");
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_batch() {
        let (c, v) = (40, 777);
        let (logits, targets) = case(c, v);
        let all = |threads| {
            with_threads(threads, || {
                let (mut d, mut losses) = (logits.clone(), vec![0.0; c]);
                cross_entropy_backward_inplace(&mut d, &targets, 0.1, &mut losses);
                (d, losses)
            })
        };
        let (one, three) = (all(1), all(3));
        assert_same_bits(&one.0, &three.0, "dlogits");
        assert_same_bits(&one.1, &three.1, "losses");
        let own = 31 * v..32 * v;
        let (mut d, mut loss) = (logits[own.clone()].to_vec(), [0.0]);
        cross_entropy_backward_inplace(&mut d, &targets[31..32], 0.1, &mut loss);
        assert_same_bits(&d, &one.0[own], "row alone");
        assert_same_bits(&loss, &one.1[31..32], "loss alone");
    }

    #[test]
    #[should_panic(expected = "target 3 is neither -100 nor in 0..3")]
    fn a_target_past_the_vocabulary_is_refused() {
        cross_entropy(&[0.0; 3], &[3], &mut [0.0]);
    }

    #[test]
    #[should_panic(expected = "target -1 is neither -100 nor in 0..3")]
    fn a_negative_target_is_refused() {
        cross_entropy(&[0.0; 3], &[-1], &mut [0.0]);
    }
}
