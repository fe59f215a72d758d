//! How long texts are: a few numbers, and a histogram.

use serde::Serialize;

/// Lengths of many texts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lengths {
    /// Half of them are at most this.
    pub p50: u64,
    /// Nine of ten are at most this.
    pub p90: u64,
    /// 99 of 100 are at most this.
    pub p99: u64,
    /// The longest.
    pub max: u64,
    /// The mean.
    pub mean: f64,
    /// How many are how long, in bins whose edges are powers of two, up to the longest.
    pub histogram: Vec<Bin>,
}

/// Texts of `from` to `to` units, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bin {
    /// The shortest.
    pub from: u64,
    /// The longest.
    pub to: u64,
    /// How many.
    pub count: usize,
}

impl Lengths {
    /// Of these lengths; all zeros where there are none.
    pub fn of(mut lengths: Vec<u64>) -> Self {
        lengths.sort_unstable();
        // The nearest rank: a length that occurs.
        let at = |share: f64| {
            lengths
                .get(((share * lengths.len() as f64).ceil() as usize).saturating_sub(1))
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
    fn bins_hold_every_length_once() {
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
