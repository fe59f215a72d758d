//! The metrics of one split: of the base model, of the trained model, and their comparison.

use serde::{Deserialize, Serialize};

use super::best_of::BestOf;
use super::clusters::Clusters;
use super::metric::Metric;
use super::model_metrics::ModelMetrics;
use super::scores::PairScore;
use crate::config::Score;
use crate::error::{Error, Result};

/// Metrics that compare the trained model with the base model on one split.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Fraction of pairs for which the trained model scores the chosen completion higher.
    pub accuracy: Option<Metric>,
    /// accuracy / base accuracy; `None` if the base accuracy is 0.
    pub ratio: Option<Metric>,
    /// 100·(accuracy − base accuracy), in percentage points.
    pub points: Option<Metric>,
    /// Mean θ = [logp_π(y⁺) − logp_π(y⁻)] − [logp_r(y⁺) − logp_r(y⁻)], in nats.
    pub margin_gain: Option<Metric>,
    /// exp(mean(log ppl_base(y⁺) − log ppl_π(y⁺))). A value below 1 means that the chosen text
    /// became less likely.
    pub perplexity_ratio: Option<Metric>,
    /// Mean increase of −log p(y⁺) per token, in nats: −log of the perplexity ratio. On unrelated
    /// data, it measures how much the model forgot.
    #[serde(default)]
    pub loss_change: Option<Metric>,
    /// Mean over pairs of KL(trained ‖ base) per token of y⁺, in nats. `None` unless `eval.kl` is
    /// true.
    #[serde(default)]
    pub kl: Option<Metric>,
}

/// Pairs of a split that also occur in the training data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// Number of pairs whose prompt is the prompt of a training pair.
    pub prompts: usize,
    /// Number of pairs whose prompt and completions are those of a training pair.
    pub pairs: usize,
    /// True if the pairs counted by `pairs` were not scored.
    pub excluded: bool,
}

/// The metrics of one split. A metric is `None` if it is not defined, for example because there are
/// no pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitSummary {
    /// Name of the split: `train`, `test`, `oos`, `rnd` or another name.
    pub split: String,
    /// Description of the data.
    pub data: String,
    /// Number of scored pairs.
    pub n: usize,
    /// Number of clusters of the scored pairs. `None` in summaries of older versions, whose
    /// intervals treat pairs as independent.
    #[serde(default)]
    pub clusters: Option<usize>,
    /// Number of scored pairs in the largest cluster.
    #[serde(default)]
    pub largest_cluster: Option<usize>,
    /// Number of distinct prompts of the scored pairs. If it is smaller than the number of
    /// clusters, pairs with the same prompt count as independent.
    #[serde(default)]
    pub prompts: Option<usize>,
    /// Number of scored pairs with an infinite or NaN score. The margins, the losses and the
    /// perplexity ratio exclude these pairs. In an accuracy, a NaN score counts as incorrect.
    pub not_finite: usize,
    /// Number of pairs that were not scored, for example because the prompt is too long or a
    /// completion is empty.
    #[serde(default)]
    pub dropped: usize,
    /// Number of scored pairs that were truncated to `train.max_length`.
    #[serde(default)]
    pub truncated: usize,
    /// Overlap with the training data. `None` for the training data itself, and if the training
    /// data is unknown.
    #[serde(default)]
    pub overlap: Option<Overlap>,
    /// Accuracy over rows, if some rows have several pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_of: Option<BestOf>,
    /// Fraction of pairs for which the base model scores the chosen completion higher.
    pub base_accuracy: Option<Metric>,
    /// Comparison of the trained model with the base model. `None` if only the base model was
    /// evaluated.
    pub change: Option<Change>,
    /// All metrics of the base model. `None` in summaries of older versions.
    #[serde(default)]
    pub base: Option<ModelMetrics>,
    /// All metrics of the trained model.
    #[serde(default)]
    pub trained: Option<ModelMetrics>,
}

impl SplitSummary {
    /// Computes the metrics of the base model only. `clusters` are those of the scored pairs.
    pub fn of_base(
        split: &str,
        data: &str,
        base: &[PairScore],
        clusters: &Clusters,
        score: Score,
    ) -> Self {
        let is_finite: Vec<bool> = base.iter().map(|s| s.is_finite(score)).collect();
        let metrics = ModelMetrics::of(base, &is_finite, clusters, score);
        Self::with(split, data, &is_finite, clusters, metrics)
    }

    /// Computes the metrics of a trained model compared with its base model. `base` and `policy`
    /// must be scores of the same pairs in the same order, and `clusters` the clusters of these
    /// pairs.
    ///
    /// # Errors
    /// Fails if `base`, `policy` and `clusters` belong to different pairs.
    pub fn compare(
        split: &str,
        data: &str,
        base: &[PairScore],
        policy: &[PairScore],
        clusters: &Clusters,
        score: Score,
    ) -> Result<Self> {
        let same = base.len() == policy.len() && base.len() == clusters.pairs();
        if !same || base.iter().zip(policy).any(|(b, p)| b.index != p.index) {
            return Err(Error::internal(format!(
                "the base model and the trained model scored different pairs of split `{split}`"
            )));
        }
        let is_finite: Vec<bool> = base
            .iter()
            .zip(policy)
            .map(|(b, p)| b.is_finite(score) && p.is_finite(score))
            .collect();
        let [before, after] =
            [base, policy].map(|s| ModelMetrics::of(s, &is_finite, clusters, score));
        let change = change(base, policy, &is_finite, clusters, score, &after);
        let summary = Self::with(split, data, &is_finite, clusters, before);
        Ok(Self { change: Some(change), trained: Some(after), ..summary })
    }

    fn with(
        split: &str,
        data: &str,
        is_finite: &[bool],
        clusters: &Clusters,
        base: ModelMetrics,
    ) -> Self {
        Self {
            split: split.to_owned(),
            data: data.to_owned(),
            n: is_finite.len(),
            clusters: Some(clusters.count()),
            largest_cluster: Some(clusters.largest()),
            prompts: None,
            not_finite: is_finite.iter().filter(|ok| !**ok).count(),
            dropped: 0,
            truncated: 0,
            overlap: None,
            best_of: None,
            base_accuracy: base.accuracy,
            change: None,
            base: Some(base),
            trained: None,
        }
    }
}

fn change(
    base: &[PairScore],
    policy: &[PairScore],
    is_finite: &[bool],
    clusters: &Clusters,
    score: Score,
    after: &ModelMetrics,
) -> Change {
    let [before, now] =
        [base, policy].map(|scores| scores.iter().map(|s| s.credit(score)).collect::<Vec<f64>>());
    let finite = |value: fn(&PairScore, &PairScore) -> f64| {
        let pairs = base.iter().zip(policy).zip(is_finite);
        clusters.mean(pairs.map(|((b, p), ok)| ok.then(|| value(b, p))))
    };
    let log_ratio = finite(|b, p| p.chosen.mean() - b.chosen.mean());
    Change {
        accuracy: after.accuracy,
        ratio: clusters.ratio(&now, &before),
        points: clusters.mean(now.iter().zip(&before).map(|(n, b)| Some(100.0 * (n - b)))),
        margin_gain: finite(|b, p| p.margin() - b.margin()),
        perplexity_ratio: log_ratio.map(|m| m.map(f64::exp)),
        loss_change: log_ratio.map(Metric::negated),
        kl: None,
    }
}
