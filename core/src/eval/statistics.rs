//! From scores of pairs to the figures of a table, each with its interval.
//!
//! Numbers in, numbers out: no model and no tensor, so that every figure can be worked out by hand
//! in a test.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::config::Score;
use crate::error::{Error, Result};

/// Resamples of the bootstrap.
pub const RESAMPLES: usize = 2000;

/// What a model says of one completion.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionScore {
    /// log p(y|x), in nats.
    pub logp_sum: f64,
    /// Tokens of y.
    pub tokens: usize,
}

impl CompletionScore {
    /// Mean log-probability of a token, in nats; NaN for a completion without tokens.
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

/// What a model says of one pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairScore {
    /// The place of the pair's row in its split, from 0.
    pub index: usize,
    /// y⁺.
    pub chosen: CompletionScore,
    /// y⁻.
    pub rejected: CompletionScore,
}

impl PairScore {
    /// 1 where the chosen completion scores higher, ½ for a tie, 0 otherwise and where a score is
    /// no number.
    fn right(&self, score: Score) -> f64 {
        match self.chosen.score(score).partial_cmp(&self.rejected.score(score)) {
            Some(std::cmp::Ordering::Greater) => 1.0,
            Some(std::cmp::Ordering::Equal) => 0.5,
            _ => 0.0,
        }
    }
}

/// A figure with its 95 % interval over resampled pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Over the pairs as they are.
    pub value: f64,
    /// 2.5th percentile.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
}

/// What training changed, on the pairs of one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Share of pairs that the trained model orders rightly.
    pub accuracy: Option<Estimate>,
    /// accuracy / base accuracy; none where the base orders no pair rightly.
    pub ratio: Option<Estimate>,
    /// 100·(accuracy − base accuracy), in percentage points.
    pub points: Option<Estimate>,
    /// Mean θ = [logp_π(y⁺) − logp_π(y⁻)] − [logp_r(y⁺) − logp_r(y⁻)], in nats.
    pub margin_gain: Option<Estimate>,
    /// exp(mean(log ppl_base(y⁺) − log ppl_π(y⁺))): below 1 the model got worse at the text itself.
    pub perplexity_ratio: Option<Estimate>,
}

/// The figures of one split. A figure that no pair supports is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitSummary {
    /// `train`, `test`, `oos`, `rnd`, or a name of its own.
    pub split: String,
    /// What it holds, for people.
    pub data: String,
    /// Pairs.
    pub n: usize,
    /// Pairs among them with a score that is no finite number: wrong in an accuracy, left out of
    /// the other figures.
    pub not_finite: usize,
    /// Pairs that were read but not scored, because the prompt is too long or a completion is
    /// empty.
    #[serde(default)]
    pub dropped: usize,
    /// Scored pairs that were cut to `train.max_length`.
    #[serde(default)]
    pub truncated: usize,
    /// Share of pairs that the base model orders rightly.
    pub base_accuracy: Option<Estimate>,
    /// Against it, the trained model; none where the base model alone is judged.
    pub change: Option<Change>,
}

impl SplitSummary {
    /// The base model alone.
    pub fn of_base(split: &str, data: &str, base: &[PairScore], score: Score, seed: u64) -> Self {
        let rows: Vec<Row> = base.iter().map(|b| Row::new(b, b, score)).collect();
        let figures = Figures::of(&rows, seed);
        Self::with(split, data, &rows, figures.base, None)
    }

    /// A trained model against its base, on the same pairs in the same order.
    ///
    /// # Errors
    /// Scores of different pairs.
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
                "the scores of split `{split}` are not of the same pairs for both models"
            )));
        }
        let rows: Vec<Row> = base.iter().zip(policy).map(|(b, p)| Row::new(b, p, score)).collect();
        let Figures { base, change } = Figures::of(&rows, seed);
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

/// What one pair adds to the sums.
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
        // log ppl = −mean logp, so the base's minus the policy's is the policy's mean minus the
        // base's.
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

/// Sums over pairs, from which each figure follows.
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
        // No base, no ratio: infinite or NaN, which `estimate` leaves out.
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

struct Figures {
    base: Option<Estimate>,
    change: Change,
}

impl Figures {
    fn of(rows: &[Row], seed: u64) -> Self {
        let sums = |indices: &mut dyn Iterator<Item = usize>| {
            let mut sums = Sums::default();
            indices.for_each(|i| sums.add(&rows[i]));
            sums
        };
        let all = sums(&mut (0..rows.len()));
        // One set of resamples for both models and all figures: differences are between the same
        // pairs.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let resamples = if rows.is_empty() { 0 } else { RESAMPLES };
        let drawn: Vec<Sums> = (0..resamples)
            .map(|_| sums(&mut (0..rows.len()).map(|_| rng.random_range(0..rows.len()))))
            .collect();
        let estimate =
            |figure: fn(&Sums) -> f64| estimate(figure(&all), drawn.iter().map(figure).collect());
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

/// The value with the 2.5th and 97.5th percentile of `resampled`; none where the value is no
/// number.
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

/// The q-quantile of sorted values, between neighbours in a line.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let place = q * sorted.len().checked_sub(1)? as f64;
    let (below, share) = (place.floor() as usize, place.fract());
    let (a, b) = (sorted[below], sorted[(below + 1).min(sorted.len() - 1)]);
    Some(a + (b - a) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(index: usize, chosen: (f64, usize), rejected: (f64, usize)) -> PairScore {
        let of = |(logp_sum, tokens)| CompletionScore { logp_sum, tokens };
        PairScore { index, chosen: of(chosen), rejected: of(rejected) }
    }

    fn value(e: Option<Estimate>) -> f64 {
        e.expect("a figure").value
    }

    /// Means of the base: −2 vs −3 (right), −4 vs −2 (wrong), −1 vs −1 (tie), −3 vs −2 (wrong).
    fn base() -> Vec<PairScore> {
        vec![
            pair(0, (-4.0, 2), (-9.0, 3)),
            pair(1, (-8.0, 2), (-4.0, 2)),
            pair(2, (-3.0, 3), (-2.0, 2)),
            pair(3, (-6.0, 2), (-4.0, 2)),
        ]
    }

    /// All four right; log ppl of y⁺ falls by 0.5, 3, 0.5 and 2.
    fn policy() -> Vec<PairScore> {
        vec![
            pair(0, (-3.0, 2), (-9.0, 3)),
            pair(1, (-2.0, 2), (-5.0, 2)),
            pair(2, (-1.5, 3), (-4.0, 2)),
            pair(3, (-2.0, 2), (-4.0, 2)),
        ]
    }

    #[test]
    fn the_figures_are_those_worked_out_by_hand() {
        let s = SplitSummary::compare("test", "math", &base(), &policy(), Score::Mean, 0)
            .expect("same pairs");
        let c = s.change.expect("two models");
        assert_eq!((s.n, s.not_finite), (4, 0));
        assert_eq!(value(s.base_accuracy), 1.5 / 4.0);
        assert_eq!(value(c.accuracy), 1.0);
        assert!((value(c.ratio) - 4.0 / 1.5).abs() < 1e-12);
        assert_eq!(value(c.points), 62.5);
        // θ: (−3+9)−(−4+9)=1, (−2+5)−(−8+4)=7, (−1.5+4)−(−3+2)=3.5, (−2+4)−(−6+4)=4.
        assert_eq!(value(c.margin_gain), 15.5 / 4.0);
        assert!((value(c.perplexity_ratio) - (6.0_f64 / 4.0).exp()).abs() < 1e-12);
    }

    #[test]
    fn the_sum_favours_short_completions() {
        // By the sum the tie of pair 2 is lost, −3 against −2.
        let s = SplitSummary::of_base("test", "", &base(), Score::Sum, 0);
        assert_eq!(value(s.base_accuracy), 0.25);
        assert_eq!(s.change, None);
    }

    #[test]
    fn intervals_hold_their_value_and_repeat_with_the_seed() {
        let of = |seed| {
            SplitSummary::compare("test", "", &base(), &policy(), Score::Mean, seed)
                .expect("same pairs")
        };
        assert_eq!(of(3), of(3));
        let c = of(3).change.expect("two models");
        for e in [c.accuracy, c.ratio, c.points, c.margin_gain, c.perplexity_ratio]
            .map(|e| e.expect("a figure"))
        {
            assert!(e.low <= e.value && e.value <= e.high, "{e:?}");
        }
    }

    #[test]
    fn the_interval_of_a_share_is_near_the_normal_one() {
        let scores: Vec<PairScore> =
            (0..400).map(|i| pair(i, (if i < 240 { -1.0 } else { -3.0 }, 1), (-2.0, 1))).collect();
        let e = SplitSummary::of_base("test", "", &scores, Score::Mean, 1)
            .base_accuracy
            .expect("a figure");
        let half = 1.96 * (0.6_f64 * 0.4 / 400.0).sqrt();
        assert!(
            (e.low - (0.6 - half)).abs() < 0.008 && (e.high - (0.6 + half)).abs() < 0.008,
            "{e:?}"
        );
    }

    #[test]
    fn a_base_that_is_never_right_gives_no_ratio() {
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
    fn a_score_that_is_no_number_counts_as_wrong_and_is_told() {
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
    fn no_pairs_give_no_figures() {
        let s = SplitSummary::compare("test", "", &[], &[], Score::Mean, 0).expect("same pairs");
        assert_eq!((s.n, s.base_accuracy, s.change.expect("two models").points), (0, None, None));
    }

    #[test]
    fn scores_of_other_pairs_are_refused() {
        let e =
            SplitSummary::compare("oos", "", &base(), &policy()[1..], Score::Mean, 0).unwrap_err();
        assert_eq!(
            e.message(),
            "the scores of split `oos` are not of the same pairs for both models"
        );
    }
}
