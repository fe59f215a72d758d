//! Metrics of one model on one split.

use serde::{Deserialize, Serialize};

use super::clusters::Clusters;
use super::metric::Metric;
use super::scores::PairScore;
use crate::config::Score;
use crate::statistics::{AccuracyByLength, Calibration, accuracy_by_length, both_orders};

/// Metrics of one model on one split. A metric is `None` if it is not defined, for example because
/// there are no pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelMetrics {
    /// Fraction of pairs whose chosen completion has the higher score. A tie counts one half.
    pub accuracy: Option<Metric>,
    /// Mean log p(y⁺) − log p(y⁻), in nats.
    pub margin: Option<Metric>,
    /// Mean log σ(s⁺ − s⁻), in nats, where s⁺ and s⁻ are the scores of the completions (see
    /// `eval.score`) and σ is the logistic function. 0 is the best possible value, and −log 2 means
    /// that both completions score the same. `None` if a score is not finite.
    pub mean_log_sigmoid: Option<Metric>,
    /// Mean over pairs of −log p(y⁺) per token, in nats: the loss on the chosen text.
    pub chosen_loss: Option<Metric>,
    /// The accuracy by which of the two completions is longer.
    pub accuracy_by_length: AccuracyByLength,
    /// Calibration of σ(s⁺ − s⁻) as the probability that y⁺ is the chosen completion, over both
    /// orders of each pair. `None` if a score is not finite.
    pub calibration: Option<Calibration>,
}

impl ModelMetrics {
    /// Computes the metrics from the scores of the pairs. `is_finite` is false for pairs that the
    /// margin and the loss exclude.
    pub(super) fn of(
        scores: &[PairScore],
        is_finite: &[bool],
        clusters: &Clusters,
        score: Score,
    ) -> Self {
        let finite = |value: fn(&PairScore) -> f64| {
            clusters.mean(scores.iter().zip(is_finite).map(|(s, ok)| ok.then(|| value(s))))
        };
        let differences: Vec<f64> = scores.iter().map(|s| s.difference(score)).collect();
        let all_finite = differences.iter().all(|d| d.is_finite());
        let probabilities: Vec<f64> =
            differences.iter().map(|d| 1.0 / (1.0 + (-d).exp())).collect();
        let scored: Vec<_> = scores.iter().map(|s| s.scored(score)).collect();
        Self {
            accuracy: clusters.share(scores.iter().map(|s| s.credit(score))),
            margin: finite(PairScore::margin),
            mean_log_sigmoid: clusters.mean(differences.iter().map(|d| Some(log_sigmoid(*d)))),
            chosen_loss: finite(|s| -s.chosen.mean()),
            accuracy_by_length: accuracy_by_length(&scored),
            calibration: Calibration::of(&both_orders(&probabilities)).filter(|_| all_finite),
        }
    }
}

/// Mean log σ(s⁺ − s⁻) over pairs, in nats; see [`ModelMetrics::mean_log_sigmoid`]. Returns `None`
/// without pairs, or if a score is not finite.
pub fn mean_log_sigmoid(scores: &[PairScore], score: Score) -> Option<f64> {
    let sum: f64 = scores.iter().map(|s| log_sigmoid(s.difference(score))).sum();
    Some(sum / scores.len() as f64).filter(|mean| mean.is_finite())
}

/// log σ(x) = −log(1 + e^(−x)), without overflow.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}
