//! Accuracy of a model's ranking of the two completions.

use serde::{Deserialize, Serialize};

/// Scores and lengths of the two completions of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredPair {
    /// Score of the chosen completion, for example its mean log-probability per token.
    pub chosen: f64,
    /// Score of the rejected completion.
    pub rejected: f64,
    /// Number of tokens of the chosen completion.
    pub chosen_tokens: usize,
    /// Number of tokens of the rejected completion.
    pub rejected_tokens: usize,
}

/// Returns 1 if the chosen completion scores higher, ½ for a tie, and 0 if it scores lower or a
/// score is NaN.
pub fn credit(chosen: f64, rejected: f64) -> f64 {
    match chosen.partial_cmp(&rejected) {
        Some(std::cmp::Ordering::Greater) => 1.0,
        Some(std::cmp::Ordering::Equal) => 0.5,
        _ => 0.0,
    }
}

/// Comparison of the lengths of the two completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lengths {
    /// The chosen completion has more tokens.
    ChosenLonger,
    /// The rejected completion has more tokens.
    RejectedLonger,
    /// Both have the same number of tokens.
    Equal,
}

impl ScoredPair {
    /// The pair's contribution to an accuracy: 1, ½ for a tie, or 0. See [`credit`].
    pub fn credit(&self) -> f64 {
        credit(self.chosen, self.rejected)
    }

    /// Compares the lengths of the two completions.
    pub fn lengths(&self) -> Lengths {
        match self.chosen_tokens.cmp(&self.rejected_tokens) {
            std::cmp::Ordering::Greater => Lengths::ChosenLonger,
            std::cmp::Ordering::Less => Lengths::RejectedLonger,
            std::cmp::Ordering::Equal => Lengths::Equal,
        }
    }
}

/// Accuracy over a group of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Number of pairs.
    pub pairs: usize,
    /// Their accuracy, from 0 to 1; ties count ½. `None` without pairs.
    pub accuracy: Option<f64>,
}

/// Accuracy over all pairs, and over the pairs with a longer, shorter or equally long chosen
/// completion.
///
/// A model that prefers long completions has a high accuracy in the first group and a low accuracy
/// in the second group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccuracyByLength {
    /// All pairs.
    pub all: Share,
    /// Pairs whose chosen completion has more tokens.
    pub chosen_longer: Share,
    /// Pairs whose rejected completion has more tokens.
    pub rejected_longer: Share,
    /// Pairs whose completions have the same number of tokens.
    pub equal: Share,
}

/// Computes the accuracy over all pairs and by the lengths of their completions.
pub fn accuracy_by_length(pairs: &[ScoredPair]) -> AccuracyByLength {
    let share = |group: Option<Lengths>| {
        let credits: Vec<f64> = pairs
            .iter()
            .filter(|p| group.is_none_or(|g| p.lengths() == g))
            .map(ScoredPair::credit)
            .collect();
        let accuracy =
            (!credits.is_empty()).then(|| credits.iter().sum::<f64>() / credits.len() as f64);
        Share { pairs: credits.len(), accuracy }
    };
    AccuracyByLength {
        all: share(None),
        chosen_longer: share(Some(Lengths::ChosenLonger)),
        rejected_longer: share(Some(Lengths::RejectedLonger)),
        equal: share(Some(Lengths::Equal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(chosen: (f64, usize), rejected: (f64, usize)) -> ScoredPair {
        ScoredPair {
            chosen: chosen.0,
            rejected: rejected.0,
            chosen_tokens: chosen.1,
            rejected_tokens: rejected.1,
        }
    }

    #[test]
    fn a_tie_counts_half_and_nan_counts_as_incorrect() {
        assert_eq!(credit(-1.0, -2.0), 1.0);
        assert_eq!(credit(-1.0, -1.0), 0.5);
        assert_eq!(credit(-2.0, -1.0), 0.0);
        assert_eq!(credit(f64::NAN, -1.0), 0.0);
        assert_eq!(credit(-1.0, f64::NAN), 0.0);
        assert_eq!(credit(f64::NEG_INFINITY, f64::NEG_INFINITY), 0.5);
    }

    #[test]
    fn the_accuracy_is_split_by_the_longer_completion() {
        let split = accuracy_by_length(&[
            pair((-1.0, 9), (-2.0, 3)),
            pair((-1.0, 9), (-1.0, 3)),
            pair((-3.0, 2), (-2.0, 3)),
            pair((-3.0, 4), (-4.0, 3)),
        ]);
        assert_eq!(split.all, Share { pairs: 4, accuracy: Some(0.625) });
        assert_eq!(split.chosen_longer.accuracy, Some(2.5 / 3.0));
        assert_eq!(split.rejected_longer, Share { pairs: 1, accuracy: Some(0.0) });
        assert_eq!(split.equal, Share { pairs: 0, accuracy: None });
    }
}
