//! The final hidden states of a text become one embedding, as the steps that compute them go by.

use crate::error::EngineError;
use model::Pooling;
use std::ops::Range;

/// One sequence's embedding in the making.
pub(crate) struct Pooler {
    pooling: Pooling,
    /// Tokens of the text.
    len: usize,
    /// Sum of the states taken, [H]; empty before the first.
    sum: Vec<f64>,
    taken: usize,
    /// States before this position are taken or not wanted; a text that is run again after it lost its
    /// pages gives none of them twice.
    next: usize,
}

impl Pooler {
    pub(crate) fn new(pooling: Pooling, len: usize) -> Pooler {
        Pooler { pooling, len, sum: Vec::new(), taken: 0, next: 0 }
    }

    /// Of the tokens at positions `past..past + len`, those whose states are wanted, counted from the
    /// first of them.
    pub(crate) fn wanted(&self, past: usize, len: usize) -> Range<usize> {
        match self.pooling {
            Pooling::Mean => 0..len,
            Pooling::Cls if past == 0 => 0..1,
            Pooling::Last if past + len == self.len => len - 1..len,
            Pooling::Cls | Pooling::Last => 0..0,
        }
    }

    /// Whether tokens may stay uncomputed because their keys are there already.
    pub(crate) fn may_skip(&self) -> bool {
        self.pooling == Pooling::Last
    }

    /// Takes `states` [rows, H], those that [`Pooler::wanted`] says of the same tokens.
    ///
    /// # Errors
    /// [`EngineError::NonFinite`].
    pub(crate) fn take(
        &mut self,
        past: usize,
        len: usize,
        states: &[f32],
    ) -> Result<(), EngineError> {
        let wanted = self.wanted(past, len);
        if wanted.is_empty() {
            return Ok(());
        }
        let width = states.len() / wanted.len();
        self.sum.resize(width, 0.0);
        for (position, state) in (past + wanted.start..).zip(states.chunks_exact(width)) {
            if position < self.next {
                continue;
            }
            if !state.iter().all(|x| x.is_finite()) {
                return Err(EngineError::NonFinite { position });
            }
            self.sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
            self.taken += 1;
            self.next = position + 1;
        }
        Ok(())
    }

    /// The embedding [H], once all tokens have been run.
    pub(crate) fn finish(&self) -> Vec<f32> {
        self.sum.iter().map(|sum| (sum / self.taken as f64) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The embedding of states of two values that count up, run in steps of these lengths; None starts
    /// again.
    fn pooled(pooling: Pooling, steps: &[Option<usize>]) -> Vec<f32> {
        let mut pooler = Pooler::new(pooling, 5);
        let mut past = 0;
        for step in steps {
            let Some(len) = *step else {
                past = 0;
                continue;
            };
            let rows = pooler.wanted(past, len);
            let states = rows.flat_map(|row| [(past + row) as f32, 1.0]).collect::<Vec<_>>();
            pooler.take(past, len, &states).unwrap();
            past += len;
        }
        assert_eq!(past, 5);
        pooler.finish()
    }

    #[test]
    fn each_pooling_takes_its_states_once() {
        for (pooling, expected) in
            [(Pooling::Mean, [2.0, 1.0]), (Pooling::Cls, [0.0, 1.0]), (Pooling::Last, [4.0, 1.0])]
        {
            for steps in [&[5][..], &[2, 3], &[1, 1, 1, 1, 1]] {
                let steps: Vec<_> = steps.iter().copied().map(Some).collect();
                assert_eq!(pooled(pooling, &steps), expected, "{pooling:?} {steps:?}");
            }
            let preempted = [Some(3), None, Some(2), Some(3)];
            assert_eq!(pooled(pooling, &preempted), expected, "{pooling:?} preempted");
        }
    }

    #[test]
    fn a_broken_state_is_an_error() {
        let mut pooler = Pooler::new(Pooling::Mean, 2);
        let error = pooler.take(0, 2, &[1.0, f32::NAN]).unwrap_err();
        assert_eq!(error, EngineError::NonFinite { position: 1 });
    }
}
