//! Scores of single pairs.

use serde::{Deserialize, Serialize};

use crate::config::Score;
use crate::statistics::{ScoredPair, credit};

/// A model's score of one completion.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionScore {
    /// log p(y|x), in nats.
    pub logp_sum: f64,
    /// Number of tokens in y.
    pub tokens: usize,
    /// The score that the method itself gives to y; `None` if completions are scored by their
    /// log-probabilities, as for most methods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<f64>,
}

impl CompletionScore {
    /// Mean log-probability per token, in nats; NaN for a completion without tokens.
    pub fn mean(&self) -> f64 {
        self.logp_sum / self.tokens as f64
    }

    /// A completion that is scored by its log-probability.
    pub fn new(logp_sum: f64, tokens: usize) -> Self {
        Self { logp_sum, tokens, preference: None }
    }

    /// The mean or the sum of the log-probabilities, in nats, or the method's own score, if there
    /// is one.
    pub fn score(&self, score: Score) -> f64 {
        match (self.preference, score) {
            (Some(preference), _) => preference,
            (None, Score::Mean) => self.mean(),
            (None, Score::Sum) => self.logp_sum,
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
    pub(super) fn credit(&self, score: Score) -> f64 {
        credit(self.chosen.score(score), self.rejected.score(score))
    }

    /// log p(y⁺|x) − log p(y⁻|x), in nats.
    pub(super) fn margin(&self) -> f64 {
        self.chosen.logp_sum - self.rejected.logp_sum
    }

    /// The score of the chosen completion minus the score of the rejected completion. In nats,
    /// unless the method scores pairs itself.
    pub(super) fn difference(&self, score: Score) -> f64 {
        self.chosen.score(score) - self.rejected.score(score)
    }

    /// True if the log-probabilities and the scores of both completions are finite.
    pub(super) fn is_finite(&self, score: Score) -> bool {
        [self.chosen, self.rejected]
            .iter()
            .all(|y| y.logp_sum.is_finite() && y.score(score).is_finite())
            && self.chosen.mean().is_finite()
    }

    pub(super) fn scored(&self, score: Score) -> ScoredPair {
        ScoredPair {
            chosen: self.chosen.score(score),
            rejected: self.rejected.score(score),
            chosen_tokens: self.chosen.tokens,
            rejected_tokens: self.rejected.tokens,
        }
    }
}
