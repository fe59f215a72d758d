//! Agreement of a model's probabilities with the frequency of the outcome.
//!
//! A pair has two orders. The prediction for an order is the probability that its first completion
//! is the chosen one, and the label says if it is. With a single order per pair, the label must be
//! random, because a constant label says nothing about small probabilities.

use serde::{Deserialize, Serialize};

/// Number of bins of equal width, as in GENIES.
pub const BINS: usize = 5;

/// Width of a bin.
const WIDTH: f64 = 0.2;

/// Number of predictions below which a bin is not counted, as in GENIES.
pub const MIN_BIN: usize = 20;

/// A predicted probability with its outcome.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Probability that the first completion is the chosen one, from 0 to 1.
    pub probability: f64,
    /// True if the first completion is the chosen one.
    pub label: bool,
}

/// Returns the predictions for both orders of each pair, from the probabilities of the chosen
/// completions. The result does not depend on a random order.
pub fn both_orders(chosen: &[f64]) -> Vec<Prediction> {
    chosen
        .iter()
        .flat_map(|&p| {
            [
                Prediction { probability: p, label: true },
                Prediction { probability: 1.0 - p, label: false },
            ]
        })
        .collect()
}

/// The predictions in a range of probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Number of predictions.
    pub count: usize,
    /// Mean predicted probability.
    pub probability: f64,
    /// Share of the predictions whose label is true.
    pub frequency: f64,
}

/// Calibration errors over [`BINS`] bins of equal width. Bins with fewer than [`MIN_BIN`]
/// predictions are not counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The counted bins, by increasing probability.
    pub bins: Vec<Bin>,
    /// Number of predictions that are not in a counted bin.
    pub not_counted: usize,
    /// Root of the mean over bins of (frequency − probability)². `None` without bins.
    pub rms: Option<f64>,
    /// Expected calibration error: mean over predictions in counted bins of
    /// |frequency − probability|. `None` without bins.
    pub expected: Option<f64>,
    /// Root mean square error as published by GENIES. Every bin is compared with the frequency of
    /// all labels instead of its own, and a probability of exactly 1 is in no bin. It mainly
    /// measures the distance of the probabilities from ½, so it only serves to reproduce published
    /// numbers. `None` without bins.
    pub published: Option<f64>,
}

impl Calibration {
    /// Computes the calibration errors. Returns `None` if a probability is not between 0 and 1.
    pub fn of(predictions: &[Prediction]) -> Option<Self> {
        if predictions.iter().any(|p| !(0.0..=1.0).contains(&p.probability)) {
            return None;
        }
        let bins = counted(predictions);
        let count = bins.iter().map(|b| b.count).sum::<usize>();
        let error = |b: &Bin| b.frequency - b.probability;
        let expected = bins.iter().map(|b| b.count as f64 * error(b).abs()).sum::<f64>();
        let below_one: Vec<Prediction> =
            predictions.iter().filter(|p| p.probability < 1.0).copied().collect();
        let all = predictions.iter().filter(|p| p.label).count() as f64 / predictions.len() as f64;
        Some(Self {
            rms: rms(bins.iter().map(error)),
            expected: (count > 0).then(|| expected / count as f64),
            published: rms(counted(&below_one).iter().map(|b| all - b.probability)),
            not_counted: predictions.len() - count,
            bins,
        })
    }
}

fn rms(errors: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let n = errors.len();
    (n > 0).then(|| (errors.map(|e| e * e).sum::<f64>() / n as f64).sqrt())
}

/// Returns the bins with at least [`MIN_BIN`] predictions. Bin b contains b/5 ≤ p < (b + 1)/5, and
/// the last bin also contains 1.
fn counted(predictions: &[Prediction]) -> Vec<Bin> {
    let mut sums = [(0_usize, 0.0, 0_usize); BINS];
    for p in predictions {
        let bin = (0..BINS).rev().find(|&b| p.probability >= b as f64 * WIDTH);
        let (count, probability, labels) = &mut sums[bin.unwrap_or(0)];
        *count += 1;
        *probability += p.probability;
        *labels += usize::from(p.label);
    }
    sums.iter()
        .filter(|(count, ..)| *count >= MIN_BIN)
        .map(|&(count, probability, labels)| Bin {
            count,
            probability: probability / count as f64,
            frequency: labels as f64 / count as f64,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` predictions of `probability`, of which `labels` are true.
    fn predictions(groups: &[(usize, f64, usize)]) -> Vec<Prediction> {
        groups
            .iter()
            .flat_map(|&(n, probability, labels)| {
                (0..n).map(move |i| Prediction { probability, label: i < labels })
            })
            .collect()
    }

    #[test]
    fn errors_equal_values_computed_with_numpy() {
        let groups = [
            (25, 0.1, 5),
            (20, 0.3, 8),
            (19, 0.5, 10),
            (30, 0.7, 18),
            (40, 0.9, 38),
            (20, 1.0, 20),
        ];
        let c = Calibration::of(&predictions(&groups)).expect("probabilities");
        let close = |a: Option<f64>, b: f64| assert!((a.expect("bins") - b).abs() < 1e-12, "{a:?}");
        // numpy.digitize with numpy.linspace(0, 1, 6); the bin of 0.5 has fewer than 20
        // predictions.
        assert_eq!(c.bins.iter().map(|b| b.count).collect::<Vec<_>>(), [25, 20, 30, 60]);
        assert_eq!(c.not_counted, 19);
        close(c.rms, 0.08819171036881965);
        close(c.expected, 0.07037037037037033);
        // The last bin has no probabilities of 1, and all bins use the frequency of all labels.
        close(c.published, 0.3469987943283177);
    }

    #[test]
    fn both_orders_of_a_pair_are_predictions() {
        let both = both_orders(&[0.75]);
        assert_eq!(both, predictions(&[(1, 0.75, 1), (1, 0.25, 0)]));
        // 60 % of the chosen completions have a probability of 0.9, and 40 % one of 0.1.
        let mut chosen = vec![0.9; 60];
        chosen.resize(100, 0.1);
        let c = Calibration::of(&both_orders(&chosen)).expect("probabilities");
        assert!((c.rms.expect("bins") - 0.3).abs() < 1e-12);
        assert!((c.published.expect("bins") - 0.4).abs() < 1e-12);
    }

    #[test]
    fn without_enough_predictions_there_is_no_error() {
        let c = Calibration::of(&predictions(&[(19, 0.5, 9)])).expect("probabilities");
        assert_eq!((c.rms, c.expected, c.published, c.not_counted), (None, None, None, 19));
        assert_eq!(Calibration::of(&[]).expect("probabilities").rms, None);
        assert_eq!(Calibration::of(&predictions(&[(1, 1.5, 0)])), None);
        assert_eq!(Calibration::of(&predictions(&[(1, f64::NAN, 0)])), None);
    }
}
