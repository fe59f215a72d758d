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

/// Calibration errors over [`BINS`] bins of equal width. Bins with fewer than [`MIN_BIN`] predictions
/// are not counted.
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
    /// all labels instead of its own, and a probability of exactly 1 is in no bin. It mainly measures
    /// the distance of the probabilities from ½, so it only serves to reproduce published numbers.
    /// `None` without bins.
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
