//! A preference pair as token ids.

use crate::api::Side;

/// A preference pair as token ids: the prompt `[p]`, the chosen completion `[c]` and the rejected
/// completion `[r]`. All three are non-empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPair {
    /// Unique index of the pair among all pairs that were read, starting from 0.
    pub index: usize,
    /// Index of the pair's row in the files of the split, starting from 0. A row may contain
    /// several pairs.
    pub row: usize,
    /// Ids of the prompt.
    pub prompt: Vec<i64>,
    /// Ids of the chosen completion.
    pub chosen: Vec<i64>,
    /// Ids of the rejected completion.
    pub rejected: Vec<i64>,
}

impl TokenPair {
    /// A pair whose prompt and completions have one token each.
    #[cfg(test)]
    pub(crate) fn short(index: usize) -> Self {
        Self { index, row: index, prompt: vec![1], chosen: vec![2], rejected: vec![3] }
    }

    /// Ids of the chosen or the rejected completion.
    pub fn completion(&self, side: Side) -> &[i64] {
        match side {
            Side::Chosen => &self.chosen,
            Side::Rejected => &self.rejected,
        }
    }

    /// Total number of tokens of the two sequences. As in TRL, the prompt counts twice, because it
    /// is part of both.
    pub fn tokens(&self) -> usize {
        2 * self.prompt.len() + self.chosen.len() + self.rejected.len()
    }

    /// Length of the longer sequence in tokens, including the prompt.
    pub fn longest(&self) -> usize {
        self.prompt.len() + self.chosen.len().max(self.rejected.len())
    }
}

/// A prompt tokenised without a completion, as for generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Ids of the whole prompt.
    pub ids: Vec<i64>,
    /// Number of leading ids that do not change when a completion is appended. These ids form the
    /// pair's prompt.
    pub shared: usize,
}

impl Prompt {
    /// The trailing ids, which change when a completion is appended. The pair's prompt does not
    /// contain them.
    pub fn left_out(&self) -> &[i64] {
        &self.ids[self.shared..]
    }
}
