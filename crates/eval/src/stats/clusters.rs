//! Examples that share a source (a document, a customer) say less than as many independent ones.

use super::{StatsError, mean, variance};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What the clusters do to the error of a mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterError {
    /// Number of clusters C.
    pub clusters: usize,
    /// n² / Σ n_c²: as many clusters of equal size would weigh the same. At most `clusters`.
    pub effective_clusters: f64,
    /// Standard error of the mean, √(C/(C-1) · Σ_c (Σ_i (x_i - mean))²) / n: the cluster-robust error with
    /// the correction for few clusters (arXiv 2411.00640; the form of inspect_ai's `stderr(cluster=...)`).
    pub standard_error: f64,
    /// Standard error by leaving out one cluster at a time, √((C-1)/C · Σ_c (mean without c - mean)²)
    /// (CR3 of MacKinnon and White 1985, doi 10.1016/0304-4076(85)90158-7). With clusters of unequal size
    /// it is the larger and the more honest one; intervals are made with it.
    pub jackknife_error: f64,
    /// Variance of the mean over that of as many independent examples, by `jackknife_error`; at least 1.
    /// n / design_effect independent examples would say as much.
    pub design_effect: f64,
}

/// Numbers of the clusters of examples, from the groups they name: examples of one group share a number,
/// one without a group stands alone. Empty when no two examples share a group, which is to say that all
/// are independent.
pub fn clusters_of<'a>(groups: impl Iterator<Item = Option<&'a str>>) -> Vec<usize> {
    let mut known: HashMap<&str, usize> = HashMap::new();
    let mut next = 0;
    let mut fresh = || {
        next += 1;
        next - 1
    };
    let mut count = 0;
    let numbers: Vec<usize> = groups
        .inspect(|_| count += 1)
        .map(|group| match group {
            Some(group) => *known.entry(group).or_insert_with(&mut fresh),
            None => fresh(),
        })
        .collect();
    if next == count { Vec::new() } else { numbers }
}

/// The clusters of the examples at these places: empty when no two of them share one; None when they are
/// all of a single cluster, one observation of which nothing can be told.
pub(crate) fn clusters_at(clusters: &[usize], places: &[usize]) -> Option<Vec<usize>> {
    if clusters.is_empty() {
        return Some(Vec::new());
    }
    let chosen: Vec<usize> = places.iter().map(|&place| clusters[place]).collect();
    let different: std::collections::HashSet<usize> = chosen.iter().copied().collect();
    match different.len() {
        0 | 1 => None,
        many if many == chosen.len() => Some(Vec::new()),
        _ => Some(chosen),
    }
}

/// The cluster-robust error of the mean of `values`, which belong to the clusters of those numbers.
///
/// # Errors
/// [`StatsError::Unpaired`] for another number of clusters than values; [`StatsError::Clusters`] for fewer
/// than two clusters, which leave nothing to compare.
pub fn cluster_error(values: &[f64], clusters: &[usize]) -> Result<ClusterError, StatsError> {
    let sums = ClusterSums::new(values, clusters)?;
    let (n, count) = (values.len() as f64, sums.0.len() as f64);
    let overall = mean(values);
    let robust: f64 = sums.0.iter().map(|&(size, sum)| (sum - size * overall).powi(2)).sum();
    let total: f64 = values.iter().sum();
    let left_out = |&(size, sum): &(f64, f64)| ((total - sum) / (n - size) - overall).powi(2);
    let jackknife: f64 = sums.0.iter().map(left_out).sum();
    let standard_error = (count / (count - 1.0) * robust).sqrt() / n;
    let jackknife_error = ((count - 1.0) / count * jackknife).sqrt();
    let independent = variance(values) / n;
    let design_effect = if independent > 0.0 {
        (jackknife_error.powi(2) / independent).max(1.0)
    } else {
        n / count
    };
    Ok(ClusterError {
        clusters: sums.0.len(),
        effective_clusters: n * n / sums.0.iter().map(|(size, _)| size * size).sum::<f64>(),
        standard_error,
        jackknife_error,
        design_effect,
    })
}

/// Size and sum of each cluster, in order of first appearance.
pub(super) struct ClusterSums(pub(super) Vec<(f64, f64)>);

impl ClusterSums {
    pub(super) fn new(values: &[f64], clusters: &[usize]) -> Result<ClusterSums, StatsError> {
        if values.len() != clusters.len() {
            return Err(StatsError::Unpaired { a: values.len(), b: clusters.len() });
        }
        let mut places: HashMap<usize, usize> = HashMap::new();
        let mut sums: Vec<(f64, f64)> = Vec::new();
        for (&value, cluster) in values.iter().zip(clusters) {
            let place = *places.entry(*cluster).or_insert_with(|| {
                sums.push((0.0, 0.0));
                sums.len() - 1
            });
            sums[place].0 += 1.0;
            sums[place].1 += value;
        }
        if sums.len() < 2 {
            return Err(StatsError::Clusters { found: sums.len() });
        }
        Ok(ClusterSums(sums))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_become_numbers_and_strangers_stand_alone() {
        let of = |groups: &[Option<&'static str>]| clusters_of(groups.iter().copied());
        assert_eq!(of(&[Some("a"), None, Some("b"), Some("a"), None]), [0, 1, 2, 0, 3]);
        // Nobody shares anything.
        assert!(of(&[Some("a"), None, Some("b")]).is_empty());
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn clusters_of_one_are_independent_examples() {
        let values = [0.0, 1.0, 1.0, 0.5, 0.25];
        let error = cluster_error(&values, &[0, 1, 2, 3, 4]).unwrap();
        let plain = (variance(&values) / 5.0).sqrt();
        assert!((error.standard_error - plain).abs() < 1e-12);
        assert!((error.jackknife_error - plain).abs() < 1e-12);
        assert!((error.design_effect - 1.0).abs() < 1e-9 && error.effective_clusters == 5.0);
    }

    #[test]
    fn copies_count_once() {
        // Ten examples, each four times: the error is that of ten, the design effect about four.
        let once: Vec<f64> = (0..10).map(|i| f64::from(i % 3) / 2.0).collect();
        let values: Vec<f64> = once.iter().flat_map(|&v| [v; 4]).collect();
        let clusters: Vec<usize> = (0..40).map(|i| i / 4).collect();
        let error = cluster_error(&values, &clusters).unwrap();
        assert!((error.standard_error - (variance(&once) / 10.0).sqrt()).abs() < 1e-12);
        assert!((error.design_effect - 4.0).abs() < 0.4, "{error:?}");
    }

    #[test]
    fn one_cluster_is_no_sample() {
        assert_eq!(cluster_error(&[1.0, 0.0], &[3, 3]), Err(StatsError::Clusters { found: 1 }));
        assert!(matches!(cluster_error(&[1.0], &[]), Err(StatsError::Unpaired { .. })));
    }
}
