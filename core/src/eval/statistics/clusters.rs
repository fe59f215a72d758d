//! The clusters of the scored pairs, and means over pairs with intervals over clusters.

use std::collections::HashMap;
use std::hash::Hash;

use super::metric::Metric;
use crate::statistics::{Estimate, Table};

/// The clusters of the pairs of a split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clusters {
    /// The cluster of each pair, numbered from 0 in the order of their first pairs.
    of_pairs: Vec<usize>,
    /// Number of pairs in each cluster.
    sizes: Vec<usize>,
}

impl Clusters {
    /// Numbers the clusters of pairs, given the name of each pair's cluster.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self::numbered(names)
    }

    fn numbered<K: Hash + Eq>(keys: impl IntoIterator<Item = K>) -> Self {
        let mut numbers = HashMap::new();
        let mut clusters = Self::default();
        for key in keys {
            let number = *numbers.entry(key).or_insert(clusters.sizes.len());
            if number == clusters.sizes.len() {
                clusters.sizes.push(0);
            }
            clusters.sizes[number] += 1;
            clusters.of_pairs.push(number);
        }
        clusters
    }

    /// Puts each of `n` pairs into a cluster of its own.
    pub fn of_single_pairs(n: usize) -> Self {
        Self { of_pairs: (0..n).collect(), sizes: vec![1; n] }
    }

    /// The clusters of some of the pairs, given by their positions.
    pub(super) fn of_some(&self, pairs: &[usize]) -> Self {
        Self::numbered(pairs.iter().map(|pair| self.of_pairs[*pair]))
    }

    /// Number of clusters.
    pub fn count(&self) -> usize {
        self.sizes.len()
    }

    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.of_pairs.len()
    }

    /// Number of pairs in the largest cluster; 0 without pairs.
    pub fn largest(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or_default()
    }

    /// The mean of `values`, one per pair. Pairs with the value `None` are left out. Returns `None`
    /// if there are no values, or if a value is not finite.
    pub fn mean(&self, values: impl IntoIterator<Item = Option<f64>>) -> Option<Metric> {
        let (table, mean) = self.table(values)?;
        Some(Metric { value: mean, ..Metric::of(&Estimate::of(&table)) })
    }

    /// The mean of values between 0 and 1, one per pair. Returns `None` in the same cases as
    /// [`mean`](Self::mean), or if a value is not between 0 and 1.
    pub fn share(&self, values: impl IntoIterator<Item = f64>) -> Option<Metric> {
        let (table, mean) = self.table(values.into_iter().map(Some))?;
        Some(Metric { value: mean, ..Metric::of(&Estimate::of_share(&table)?) })
    }

    /// The sum of `numerators` divided by the sum of `denominators`, with one of each per pair.
    /// Returns `None` if the ratio is not finite.
    ///
    /// The interval uses the first-order expansion R + (Σx − RΣy)/Σy of the ratio R (the delta
    /// method): it is the interval for the mean of R + (x − Ry)/ȳ.
    pub fn ratio(&self, numerators: &[f64], denominators: &[f64]) -> Option<Metric> {
        let mean = denominators.iter().sum::<f64>() / denominators.len() as f64;
        let ratio = numerators.iter().sum::<f64>() / denominators.iter().sum::<f64>();
        if !ratio.is_finite() {
            return None;
        }
        let pairs = numerators.iter().zip(denominators);
        let linear = self.mean(pairs.map(|(x, y)| Some(ratio + (x - ratio * y) / mean)))?;
        Some(Metric { value: ratio, ..linear })
    }

    /// Returns the sum of the values in each cluster, and the mean of all values. The mean divides
    /// their total by their number, so a mean of zeros and ones is rounded only once.
    fn table(&self, values: impl IntoIterator<Item = Option<f64>>) -> Option<(Table, f64)> {
        let (mut sizes, mut sums) = (vec![0; self.sizes.len()], vec![0.0; self.sizes.len()]);
        for (cluster, value) in self.of_pairs.iter().zip(values) {
            if let Some(value) = value {
                sizes[*cluster] += 1;
                sums[*cluster] += value;
            }
        }
        let mean = sums.iter().sum::<f64>() / sizes.iter().sum::<usize>() as f64;
        // Clusters whose pairs are all left out do not exist.
        let sums: Vec<Vec<f64>> = sums
            .into_iter()
            .zip(&sizes)
            .filter(|(_, size)| **size > 0)
            .map(|(sum, _)| vec![sum])
            .collect();
        sizes.retain(|size| *size > 0);
        Some((Table::from_sums(&sizes, &sums).ok()?, mean))
    }
}
