//! How many tokens a set has: what training costs, and which rows do not fit.

use serde::{Deserialize, Serialize};
use text::{ChatTemplate, Tokenizer};

use crate::error::DataError;
use crate::example::{Example, Origin};

/// Tokens of a set, as the training sees them: rendered through the chat template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenStats {
    /// Rows of the set.
    pub rows: usize,
    /// All tokens.
    pub total: u64,
    /// Tokens that are learnt: the answers and the tokens that end them.
    pub supervised: u64,
    /// Tokens of the shortest row; this and the next four are 0 for an empty set.
    pub min: usize,
    /// Tokens of the row in the middle (nearest rank, the lower of two).
    pub median: usize,
    /// 95 of 100 rows have at most this many tokens (nearest rank).
    pub p95: usize,
    /// Tokens of the longest row.
    pub max: usize,
    /// Mean tokens of a row.
    pub mean: f64,
    /// The limit that `over_limit` counts against.
    pub limit: usize,
    /// Rows with more tokens than the limit; training leaves them out.
    pub over_limit: usize,
    /// Where the first rows over the limit are.
    pub over_limit_at: Vec<Origin>,
    /// Rows in which no token is learnt.
    pub without_supervised: usize,
}

/// How many places `over_limit_at` names.
const LISTED: usize = 20;

/// Renders every example and counts its tokens against `limit` (the base's context, or the longest
/// row of the training plan).
///
/// # Errors
/// [`DataError::Tokens`] naming the first example that cannot be rendered.
pub fn token_stats(
    examples: &[Example],
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    limit: usize,
) -> Result<TokenStats, DataError> {
    let mut lengths = Vec::with_capacity(examples.len());
    for example in examples {
        let rendered =
            template.render(tokenizer, &example.conversation, false).map_err(|source| {
                let Origin { file, line } = &example.origin;
                DataError::Tokens { path: file.clone(), line: *line, source }
            })?;
        let supervised = rendered.mask.iter().filter(|&&learnt| learnt).count();
        lengths.push((rendered.ids.len(), supervised));
    }
    Ok(summary(&lengths, examples, limit))
}

/// The statistics of rows with these (tokens, learnt tokens).
fn summary(lengths: &[(usize, usize)], examples: &[Example], limit: usize) -> TokenStats {
    let mut sorted: Vec<usize> = lengths.iter().map(|&(tokens, _)| tokens).collect();
    sorted.sort_unstable();
    // Nearest rank: the smallest value with at least this share of the values at or below it.
    let percentile = |percent: usize| match (sorted.len() * percent).div_ceil(100) {
        0 => sorted.first().copied().unwrap_or(0),
        rank => sorted[rank - 1],
    };
    let total: u64 = sorted.iter().map(|&n| n as u64).sum();
    let over = lengths.iter().zip(examples).filter(|((tokens, _), _)| *tokens > limit);
    TokenStats {
        rows: lengths.len(),
        total,
        supervised: lengths.iter().map(|&(_, learnt)| learnt as u64).sum(),
        min: percentile(0),
        median: percentile(50),
        p95: percentile(95),
        max: percentile(100),
        mean: if lengths.is_empty() { 0.0 } else { total as f64 / lengths.len() as f64 },
        limit,
        over_limit: over.clone().count(),
        over_limit_at: over.take(LISTED).map(|(_, e)| e.origin.clone()).collect(),
        without_supervised: lengths.iter().filter(|&&(_, learnt)| learnt == 0).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::tests::example;

    #[test]
    fn counts_of_known_lengths() {
        let examples: Vec<_> = (1..=20).map(|i| example(i, "q", "a")).collect();
        let lengths: Vec<_> = (1..=20).rev().map(|n| (n, n / 2)).collect();
        let stats = summary(&lengths, &examples, 18);
        assert_eq!((stats.rows, stats.total, stats.supervised), (20, 210, 100));
        assert_eq!((stats.min, stats.median, stats.p95, stats.max), (1, 10, 19, 20));
        assert_eq!((stats.mean, stats.over_limit, stats.without_supervised), (10.5, 2, 1));
        let lines: Vec<_> = stats.over_limit_at.iter().map(|o| o.line).collect();
        assert_eq!(lines, [1, 2]);
    }

    #[test]
    fn one_row_and_none() {
        let stats = summary(&[(7, 3)], &[example(1, "q", "a")], 7);
        assert_eq!(
            (stats.min, stats.median, stats.p95, stats.max, stats.over_limit),
            (7, 7, 7, 7, 0)
        );
        let stats = summary(&[], &[], 7);
        assert_eq!((stats.rows, stats.max, stats.mean), (0, 0, 0.0));
    }
}
