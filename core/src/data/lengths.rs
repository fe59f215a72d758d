//! Length statistics: percentiles, mean and histogram.

use serde::Serialize;

/// Percentiles, mean and histogram of a list of lengths.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lengths {
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Maximum.
    pub max: u64,
    /// Mean.
    pub mean: f64,
    /// Histogram up to the maximum length. The bins start at 0 and at powers of two.
    pub histogram: Vec<Bin>,
}

/// A bin of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bin {
    /// Lower bound of the bin. It is part of the bin.
    pub from: u64,
    /// Upper bound of the bin. It is part of the bin.
    pub to: u64,
    /// Number of lengths in the bin.
    pub count: usize,
}

impl Lengths {
    /// Computes the statistics of `lengths`. If `lengths` is empty, all statistics are 0.
    pub fn of(mut lengths: Vec<u64>) -> Self {
        lengths.sort_unstable();
        // Use the nearest-rank method, so that a percentile is always one of the given lengths.
        let at = |fraction: f64| {
            lengths
                .get(((fraction * lengths.len() as f64).ceil() as usize).saturating_sub(1))
                .copied()
                .unwrap_or_default()
        };
        let max = lengths.last().copied().unwrap_or_default();
        let mut histogram: Vec<Bin> = Vec::new();
        for power in 0..=(u64::BITS - max.leading_zeros()) {
            let (from, to) = if power == 0 {
                (0, 0)
            } else {
                (1 << (power - 1), u64::MAX >> (u64::BITS - power))
            };
            let count =
                lengths.partition_point(|l| *l <= to) - lengths.partition_point(|l| *l < from);
            histogram.push(Bin { from, to, count });
        }
        let mean = lengths.iter().map(|l| *l as f64).sum::<f64>() / lengths.len().max(1) as f64;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), max, mean, histogram }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_counted_in_one_bin() {
        let l = Lengths::of(vec![0, 1, 2, 3, 3, 4, 7, 8]);
        let bins: Vec<_> = l.histogram.iter().map(|b| (b.from, b.to, b.count)).collect();
        assert_eq!(bins, [(0, 0, 1), (1, 1, 1), (2, 3, 3), (4, 7, 2), (8, 15, 1)]);
        assert_eq!((l.p50, l.p90, l.max, l.mean), (3, 8, 8, 3.5));
        let none = Lengths::of(vec![]);
        assert_eq!((none.p99, none.max, none.mean, none.histogram.len()), (0, 0, 0.0, 1));
        assert_eq!(
            Lengths::of(vec![u64::MAX]).histogram.last().map(|b| (b.to, b.count)),
            Some((u64::MAX, 1))
        );
    }

    #[test]
    fn percentiles_are_lengths_that_occur() {
        let l = Lengths::of((1..=100).collect());
        assert_eq!((l.p50, l.p90, l.p99, l.max), (50, 90, 99, 100));
    }
}
