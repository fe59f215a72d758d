//! Accuracy over rows with several pairs, such as one chosen and several rejected answers.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::clusters::Clusters;
use super::metric::Metric;
use super::scores::PairScore;
use crate::config::Score;

/// The share of rows in which the chosen answer scores higher than every rejected one (best of N).
///
/// The credit of a row is the lowest credit of its pairs: 1 if the chosen answer scores highest, ½
/// if it shares the highest score, and 0 if a rejected answer scores higher or a score is NaN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestOf {
    /// Number of rows.
    pub rows: usize,
    /// Smallest number of pairs in a row.
    pub fewest_pairs: usize,
    /// Largest number of pairs in a row.
    pub most_pairs: usize,
    /// Share of rows for the base model.
    pub base: Option<Metric>,
    /// Share of rows for the trained model; `None` if only the base model was evaluated.
    pub trained: Option<Metric>,
    /// 100·(trained − base), in percentage points.
    pub points: Option<Metric>,
}

impl BestOf {
    /// Computes the share of rows from the scores of pairs. Pairs with the same row number form a
    /// row. Rows in `incomplete` are left out, because some of their pairs were not scored. Returns
    /// `None` if no row has several pairs.
    pub fn of(
        base: &[PairScore],
        trained: Option<&[PairScore]>,
        clusters: &Clusters,
        incomplete: &HashSet<usize>,
        score: Score,
    ) -> Option<Self> {
        let mut rows: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, pair) in base.iter().enumerate() {
            if !incomplete.contains(&pair.index) {
                rows.entry(pair.index).or_default().push(i);
            }
        }
        let sizes = || rows.values().map(Vec::len);
        let (fewest_pairs, most_pairs) = (sizes().min()?, sizes().max()?);
        if most_pairs < 2 {
            return None;
        }
        let firsts: Vec<usize> = rows.values().map(|pairs| pairs[0]).collect();
        let clusters = clusters.of_some(&firsts);
        let credits = |scores: &[PairScore]| -> Vec<f64> {
            let lowest = |pairs: &Vec<usize>| {
                pairs.iter().map(|i| scores[*i].credit(score)).fold(1.0, f64::min)
            };
            rows.values().map(lowest).collect()
        };
        let before = credits(base);
        let after = trained.map(credits);
        let points = after.as_ref().and_then(|after| {
            clusters.mean(after.iter().zip(&before).map(|(a, b)| Some(100.0 * (a - b))))
        });
        Some(Self {
            rows: rows.len(),
            fewest_pairs,
            most_pairs,
            base: clusters.share(before),
            trained: after.and_then(|after| clusters.share(after)),
            points,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::statistics::CompletionScore;

    /// A pair of a row whose completions have one token each.
    fn pair(row: usize, chosen: f64, rejected: f64) -> PairScore {
        let of = |logp_sum: f64| CompletionScore::new(logp_sum, 1);
        PairScore { index: row, chosen: of(chosen), rejected: of(rejected) }
    }

    fn best_of(
        base: &[PairScore],
        trained: Option<&[PairScore]>,
        incomplete: &[usize],
    ) -> Option<BestOf> {
        let clusters = Clusters::of_single_pairs(base.len());
        let incomplete = incomplete.iter().copied().collect();
        BestOf::of(base, trained, &clusters, &incomplete, Score::Mean)
    }

    #[test]
    fn the_chosen_answer_must_score_higher_than_every_rejected_one() {
        let base = [
            // All three rejected answers score lower.
            pair(0, -1.0, -2.0),
            pair(0, -1.0, -3.0),
            pair(0, -1.0, -4.0),
            // One of three scores higher.
            pair(1, -1.0, -2.0),
            pair(1, -1.0, -0.5),
            pair(1, -1.0, -3.0),
            // A tie with the best rejected answer counts one half.
            pair(4, -1.0, -1.0),
            pair(4, -1.0, -3.0),
            // A tie, and a higher score.
            pair(7, -1.0, -1.0),
            pair(7, -1.0, -0.1),
        ];
        let found = best_of(&base, None, &[]).expect("rows with several pairs");
        assert_eq!((found.rows, found.fewest_pairs, found.most_pairs), (4, 2, 3));
        assert_eq!(found.base.expect("a share").value, (1.0 + 0.0 + 0.5 + 0.0) / 4.0);
        assert!(found.trained.is_none() && found.points.is_none());
        // Pairwise, 6 + 2·½ of the 10 pairs are right.
        let pairwise: f64 = base.iter().map(|p| p.credit(Score::Mean)).sum();
        assert_eq!(pairwise, 7.0);
    }

    #[test]
    fn the_trained_model_is_compared_on_the_same_rows() {
        let base =
            [pair(0, -1.0, -2.0), pair(0, -1.0, -0.5), pair(1, -1.0, 0.0), pair(1, -1.0, 0.0)];
        let trained =
            [pair(0, -1.0, -2.0), pair(0, -1.0, -1.5), pair(1, -1.0, -1.0), pair(1, -1.0, -2.0)];
        let found = best_of(&base, Some(&trained), &[]).expect("rows");
        assert_eq!(found.base.expect("a share").value, 0.0);
        assert_eq!(found.trained.expect("a share").value, 0.75);
        assert_eq!(found.points.expect("points").value, 75.0);
    }

    #[test]
    fn incomplete_rows_and_nan_do_not_count_as_right() {
        let base = [pair(0, -1.0, -2.0), pair(0, -1.0, -2.0), pair(1, -1.0, -2.0)];
        assert_eq!(best_of(&base, None, &[1]).expect("a row").rows, 1);
        assert_eq!(best_of(&base, None, &[]).expect("rows").fewest_pairs, 1);
        assert_eq!(best_of(&base[1..], None, &[]), None, "no row has several pairs");
        assert_eq!(best_of(&base, None, &[0, 1]), None);
        let nan = [pair(0, -1.0, -2.0), pair(0, -1.0, f64::NAN)];
        assert_eq!(best_of(&nan, None, &[]).expect("a row").base.expect("a share").value, 0.0);
    }
}
