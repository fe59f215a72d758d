//! Computes the metrics of the evaluation table, with 95 % confidence intervals, from the scores of
//! pairs.
//!
//! This module uses neither models nor tensors. Tests can therefore compare every metric with a
//! value computed by hand.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::config::Score;
use crate::error::{Error, Result};

/// Number of bootstrap resamples.
pub const RESAMPLES: usize = 2000;

/// A model's score of one completion.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionScore {
    /// log p(y|x), in nats.
    pub logp_sum: f64,
    /// Number of tokens in y.
    pub tokens: usize,
}

impl CompletionScore {
    /// Mean log-probability per token, in nats; NaN for a completion without tokens.
    pub fn mean(&self) -> f64 {
        self.logp_sum / self.tokens as f64
    }

    fn score(&self, score: Score) -> f64 {
        match score {
            Score::Mean => self.mean(),
            Score::Sum => self.logp_sum,
        }
    }
}

/// A model's scores of the two completions of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairScore {
    /// Row number of the pair in its split, from 0.
    pub index: usize,
    /// Score of the chosen completion y⁺.
    pub chosen: CompletionScore,
    /// Score of the rejected completion y⁻.
    pub rejected: CompletionScore,
}

impl PairScore {
    /// Returns 1 if the chosen completion scores higher, ½ for a tie, and 0 if it scores lower or a
    /// score is NaN.
    fn right(&self, score: Score) -> f64 {
        match self.chosen.score(score).partial_cmp(&self.rejected.score(score)) {
            Some(std::cmp::Ordering::Greater) => 1.0,
            Some(std::cmp::Ordering::Equal) => 0.5,
            _ => 0.0,
        }
    }
}

/// A metric with its 95 % bootstrap confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The metric over all pairs.
    pub value: f64,
    /// Lower end of the interval: the 2.5th percentile of the resamples.
    pub low: f64,
    /// Upper end of the interval: the 97.5th percentile of the resamples.
    pub high: f64,
}

/// Metrics that compare the trained model with the base model on one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Fraction of pairs for which the trained model scores the chosen completion higher.
    pub accuracy: Option<Estimate>,
    /// accuracy / base accuracy; `None` if the base accuracy is 0.
    pub ratio: Option<Estimate>,
    /// 100·(accuracy − base accuracy), in percentage points.
    pub points: Option<Estimate>,
    /// Mean θ = [logp_π(y⁺) − logp_π(y⁻)] − [logp_r(y⁺) − logp_r(y⁻)], in nats.
    pub margin_gain: Option<Estimate>,
    /// exp(mean(log ppl_base(y⁺) − log ppl_π(y⁺))). A value below 1 means that the chosen text
    /// became less likely.
    pub perplexity_ratio: Option<Estimate>,
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
    /// Number of scored pairs with an infinite or NaN score. The margin gain and the perplexity
    /// ratio exclude these pairs. In an accuracy, a NaN score counts as incorrect.
    pub not_finite: usize,
    /// Number of pairs that were not scored, for example because the prompt is too long or a
    /// completion is empty.
    #[serde(default)]
    pub dropped: usize,
    /// Number of scored pairs that were truncated to `train.max_length`.
    #[serde(default)]
    pub truncated: usize,
    /// Fraction of pairs for which the base model scores the chosen completion higher.
    pub base_accuracy: Option<Estimate>,
    /// Comparison of the trained model with the base model. `None` if only the base model was
    /// evaluated.
    pub change: Option<Change>,
}

impl SplitSummary {
    /// Computes the metrics of the base model only.
    pub fn of_base(split: &str, data: &str, base: &[PairScore], score: Score, seed: u64) -> Self {
        let rows: Vec<Row> = base.iter().map(|b| Row::new(b, b, score)).collect();
        let metrics = Metrics::of(&rows, seed);
        Self::with(split, data, &rows, metrics.base, None)
    }

    /// Computes the metrics of a trained model compared with its base model. `base` and `policy`
    /// must be scores of the same pairs in the same order.
    ///
    /// # Errors
    /// Fails if `base` and `policy` are scores of different pairs.
    pub fn compare(
        split: &str,
        data: &str,
        base: &[PairScore],
        policy: &[PairScore],
        score: Score,
        seed: u64,
    ) -> Result<Self> {
        if base.len() != policy.len() || base.iter().zip(policy).any(|(b, p)| b.index != p.index) {
            return Err(Error::internal(format!(
                "the base model and the trained model scored different pairs of split `{split}`"
            )));
        }
        let rows: Vec<Row> = base.iter().zip(policy).map(|(b, p)| Row::new(b, p, score)).collect();
        let Metrics { base, change } = Metrics::of(&rows, seed);
        Ok(Self::with(split, data, &rows, base, Some(change)))
    }

    fn with(
        split: &str,
        data: &str,
        rows: &[Row],
        base_accuracy: Option<Estimate>,
        change: Option<Change>,
    ) -> Self {
        let not_finite = rows.iter().filter(|r| !r.finite).count();
        Self {
            split: split.to_owned(),
            data: data.to_owned(),
            n: rows.len(),
            not_finite,
            dropped: 0,
            truncated: 0,
            base_accuracy,
            change,
        }
    }
}

/// The values that one pair adds to [`Sums`].
struct Row {
    base: f64,
    policy: f64,
    theta: f64,
    log_ppl: f64,
    finite: bool,
}

impl Row {
    fn new(base: &PairScore, policy: &PairScore, score: Score) -> Self {
        let margin = |p: &PairScore| p.chosen.logp_sum - p.rejected.logp_sum;
        let theta = margin(policy) - margin(base);
        // log ppl_base − log ppl_π, where log ppl is the negative of `mean`.
        let log_ppl = policy.chosen.mean() - base.chosen.mean();
        let scores = [base.chosen, base.rejected, policy.chosen, policy.rejected];
        let finite = theta.is_finite()
            && log_ppl.is_finite()
            && scores.iter().all(|s| s.score(score).is_finite());
        let zero_unless_finite = |v| if finite { v } else { 0.0 };
        Self {
            base: base.right(score),
            policy: policy.right(score),
            theta: zero_unless_finite(theta),
            log_ppl: zero_unless_finite(log_ppl),
            finite,
        }
    }
}

/// Sums over pairs. All metrics are computed from these sums.
#[derive(Clone, Copy, Default)]
struct Sums {
    n: f64,
    finite: f64,
    base: f64,
    policy: f64,
    theta: f64,
    log_ppl: f64,
}

impl Sums {
    fn add(&mut self, row: &Row) {
        self.n += 1.0;
        self.finite += f64::from(u8::from(row.finite));
        self.base += row.base;
        self.policy += row.policy;
        self.theta += row.theta;
        self.log_ppl += row.log_ppl;
    }

    fn base(&self) -> f64 {
        self.base / self.n
    }
    fn accuracy(&self) -> f64 {
        self.policy / self.n
    }
    fn ratio(&self) -> f64 {
        // If the base accuracy is 0, the ratio is infinite or NaN. `estimate` then returns `None`.
        self.policy / self.base
    }
    fn points(&self) -> f64 {
        100.0 * (self.policy - self.base) / self.n
    }
    fn margin_gain(&self) -> f64 {
        self.theta / self.finite
    }
    fn perplexity_ratio(&self) -> f64 {
        (self.log_ppl / self.finite).exp()
    }
}

struct Metrics {
    base: Option<Estimate>,
    change: Change,
}

impl Metrics {
    fn of(rows: &[Row], seed: u64) -> Self {
        let sums = |indices: &mut dyn Iterator<Item = usize>| {
            let mut sums = Sums::default();
            indices.for_each(|i| sums.add(&rows[i]));
            sums
        };
        let all = sums(&mut (0..rows.len()));
        // Use the same resamples for both models and all metrics: the comparison of the models is
        // paired.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let resamples = if rows.is_empty() { 0 } else { RESAMPLES };
        let drawn: Vec<Sums> = (0..resamples)
            .map(|_| sums(&mut (0..rows.len()).map(|_| rng.random_range(0..rows.len()))))
            .collect();
        let estimate =
            |metric: fn(&Sums) -> f64| estimate(metric(&all), drawn.iter().map(metric).collect());
        Self {
            base: estimate(Sums::base),
            change: Change {
                accuracy: estimate(Sums::accuracy),
                ratio: estimate(Sums::ratio),
                points: estimate(Sums::points),
                margin_gain: estimate(Sums::margin_gain),
                perplexity_ratio: estimate(Sums::perplexity_ratio),
            },
        }
    }
}

/// Returns `value` with its confidence interval: the 2.5th and 97.5th percentiles of `resampled`.
/// Returns `None` if the value is not finite.
fn estimate(value: f64, mut resampled: Vec<f64>) -> Option<Estimate> {
    if !value.is_finite() {
        return None;
    }
    resampled.retain(|v| v.is_finite());
    resampled.sort_by(f64::total_cmp);
    Some(Estimate {
        value,
        low: quantile(&resampled, 0.025).unwrap_or(value),
        high: quantile(&resampled, 0.975).unwrap_or(value),
    })
}

/// Computes the q-quantile of sorted values with linear interpolation. Returns `None` if there are
/// no values.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let place = q * sorted.len().checked_sub(1)? as f64;
    let (below, fraction) = (place.floor() as usize, place.fract());
    let (a, b) = (sorted[below], sorted[(below + 1).min(sorted.len() - 1)]);
    Some(a + (b - a) * fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(index: usize, chosen: (f64, usize), rejected: (f64, usize)) -> PairScore {
        let of = |(logp_sum, tokens)| CompletionScore { logp_sum, tokens };
        PairScore { index, chosen: of(chosen), rejected: of(rejected) }
    }

    fn value(e: Option<Estimate>) -> f64 {
        e.expect("a metric").value
    }

    /// Four pairs. Mean log-probabilities per token of y⁺ and y⁻: −2 and −3 (correct), −4 and −2
    /// (incorrect), −1 and −1 (a tie), −3 and −2 (incorrect).
    fn base() -> Vec<PairScore> {
        vec![
            pair(0, (-4.0, 2), (-9.0, 3)),
            pair(1, (-8.0, 2), (-4.0, 2)),
            pair(2, (-3.0, 3), (-2.0, 2)),
            pair(3, (-6.0, 2), (-4.0, 2)),
        ]
    }

    /// All four pairs are correct. The log perplexity of y⁺ falls by 0.5, 3, 0.5 and 2.
    fn policy() -> Vec<PairScore> {
        vec![
            pair(0, (-3.0, 2), (-9.0, 3)),
            pair(1, (-2.0, 2), (-5.0, 2)),
            pair(2, (-1.5, 3), (-4.0, 2)),
            pair(3, (-2.0, 2), (-4.0, 2)),
        ]
    }

    #[test]
    fn the_figures_equal_values_computed_by_hand() {
        let s = SplitSummary::compare("test", "math", &base(), &policy(), Score::Mean, 0)
            .expect("same pairs");
        let c = s.change.expect("two models");
        assert_eq!((s.n, s.not_finite), (4, 0));
        assert_eq!(value(s.base_accuracy), 1.5 / 4.0);
        assert_eq!(value(c.accuracy), 1.0);
        assert!((value(c.ratio) - 4.0 / 1.5).abs() < 1e-12);
        assert_eq!(value(c.points), 62.5);
        // θ of the four pairs: (−3+9)−(−4+9)=1, (−2+5)−(−8+4)=7, (−1.5+4)−(−3+2)=3.5 and
        // (−2+4)−(−6+4)=4. Their sum is 15.5.
        assert_eq!(value(c.margin_gain), 15.5 / 4.0);
        assert!((value(c.perplexity_ratio) - (6.0_f64 / 4.0).exp()).abs() < 1e-12);
    }

    #[test]
    fn the_sum_favours_short_completions() {
        // With the sum as score, pair 2 is incorrect (−3 vs −2) instead of a tie.
        let s = SplitSummary::of_base("test", "", &base(), Score::Sum, 0);
        assert_eq!(value(s.base_accuracy), 0.25);
        assert_eq!(s.change, None);
    }

    #[test]
    fn intervals_contain_the_value_and_are_reproducible() {
        let of = |seed| {
            SplitSummary::compare("test", "", &base(), &policy(), Score::Mean, seed)
                .expect("same pairs")
        };
        assert_eq!(of(3), of(3));
        let c = of(3).change.expect("two models");
        for e in [c.accuracy, c.ratio, c.points, c.margin_gain, c.perplexity_ratio]
            .map(|e| e.expect("a metric"))
        {
            assert!(e.low <= e.value && e.value <= e.high, "{e:?}");
        }
    }

    #[test]
    fn the_interval_of_a_share_is_close_to_the_normal_approximation() {
        let scores: Vec<PairScore> =
            (0..400).map(|i| pair(i, (if i < 240 { -1.0 } else { -3.0 }, 1), (-2.0, 1))).collect();
        let e = SplitSummary::of_base("test", "", &scores, Score::Mean, 1)
            .base_accuracy
            .expect("a metric");
        let half = 1.96 * (0.6_f64 * 0.4 / 400.0).sqrt();
        assert!(
            (e.low - (0.6 - half)).abs() < 0.008 && (e.high - (0.6 + half)).abs() < 0.008,
            "{e:?}"
        );
    }

    #[test]
    fn there_is_no_ratio_if_the_base_model_is_never_correct() {
        let wrong: Vec<PairScore> = (0..3).map(|i| pair(i, (-3.0, 1), (-1.0, 1))).collect();
        let right: Vec<PairScore> = (0..3).map(|i| pair(i, (-1.0, 1), (-3.0, 1))).collect();
        let c = SplitSummary::compare("test", "", &wrong, &right, Score::Mean, 0)
            .expect("same pairs")
            .change
            .expect("two models");
        assert_eq!(c.ratio, None);
        assert_eq!(value(c.points), 100.0);
    }

    #[test]
    fn a_score_that_is_not_finite_counts_as_incorrect_and_is_reported() {
        let mut broken = policy();
        broken[1].chosen.logp_sum = f64::NAN;
        broken[2].rejected.tokens = 0;
        broken[2].rejected.logp_sum = 0.0;
        let s = SplitSummary::compare("test", "", &base(), &broken, Score::Mean, 0)
            .expect("same pairs");
        let c = s.change.expect("two models");
        assert_eq!(s.not_finite, 2);
        assert_eq!(value(c.accuracy), 0.5);
        assert_eq!(value(c.margin_gain), 2.5);
    }

    #[test]
    fn without_pairs_there_are_no_figures() {
        let s = SplitSummary::compare("test", "", &[], &[], Score::Mean, 0).expect("same pairs");
        assert_eq!((s.n, s.base_accuracy, s.change.expect("two models").points), (0, None, None));
    }

    #[test]
    fn scores_of_different_pairs_are_refused() {
        let e =
            SplitSummary::compare("oos", "", &base(), &policy()[1..], Score::Mean, 0).unwrap_err();
        assert_eq!(
            e.message(),
            "the base model and the trained model scored different pairs of split `oos`"
        );
    }
}
