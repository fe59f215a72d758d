//! A preference pair as token ids.

use crate::api::Side;

/// A preference pair as token ids: the prompt `[p]` and the completions `[c]` and `[r]`. None of
/// them is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPair {
    /// Index of the pair among the pairs that were read, from 0. It is unique.
    pub index: usize,
    /// Index of the pair's row in the split's files, from 0. Several pairs may come from one row.
    pub row: usize,
    /// Ids of the prompt.
    pub prompt: Vec<i64>,
    /// Ids of the preferred completion.
    pub chosen: Vec<i64>,
    /// Ids of the other completion.
    pub rejected: Vec<i64>,
}

impl TokenPair {
    /// The completion on one side.
    pub fn completion(&self, side: Side) -> &[i64] {
        match side {
            Side::Chosen => &self.chosen,
            Side::Rejected => &self.rejected,
        }
    }

    /// Number of tokens of both sequences. The prompt counts twice, as in TRL.
    pub fn tokens(&self) -> usize {
        2 * self.prompt.len() + self.chosen.len() + self.rejected.len()
    }

    /// Number of tokens of the longer sequence, prompt included.
    pub fn longest(&self) -> usize {
        self.prompt.len() + self.chosen.len().max(self.rejected.len())
    }
}

/// A prompt tokenised on its own, as for generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Ids of the whole prompt.
    pub ids: Vec<i64>,
    /// Number of leading ids that are the same when the prompt is tokenised together with each
    /// completion. The pair's prompt consists of these.
    pub shared: usize,
}

impl Prompt {
    /// The ids at the end of the prompt that are not part of the pair's prompt, because a
    /// completion changes how the end is tokenised.
    pub fn left_out(&self) -> &[i64] {
        &self.ids[self.shared..]
    }
}
