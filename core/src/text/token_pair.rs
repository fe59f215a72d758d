//! A preference pair as token ids.

use crate::api::Side;

/// A preference pair as ids: the prompt `[p]`, and the two completions that continue it `[c]`,
/// `[r]`, none of them empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPair {
    /// Its number among the pairs that were read, from 0. No two pairs share one.
    pub index: usize,
    /// The place of its row in the split's files, from 0. Pairs that come from one row share it.
    pub row: usize,
    /// What both continue.
    pub prompt: Vec<i64>,
    /// The preferred completion.
    pub chosen: Vec<i64>,
    /// The other one.
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

    /// Tokens of both sequences, the prompt counted twice, as TRL counts them.
    pub fn tokens(&self) -> usize {
        2 * self.prompt.len() + self.chosen.len() + self.rejected.len()
    }

    /// Tokens of the longer sequence.
    pub fn longest(&self) -> usize {
        self.prompt.len() + self.chosen.len().max(self.rejected.len())
    }
}

/// The ids of a prompt on its own, as a model is asked to continue it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// All of them.
    pub ids: Vec<i64>,
    /// How many of them are also there before both completions. A pair's prompt ends behind these.
    pub shared: usize,
}

impl Prompt {
    /// The end that is left out of the pair, because a completion changes its tokens.
    pub fn left_out(&self) -> &[i64] {
        &self.ids[self.shared..]
    }
}
