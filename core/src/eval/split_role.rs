//! How a split relates to the training data.

use serde::Serialize;

/// The relation of a split to the training data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitRole {
    /// The training data.
    Train,
    /// Other pairs of the same distribution.
    Test,
    /// Shifted data.
    Shift,
    /// Unrelated data.
    Unrelated,
}

impl SplitRole {
    /// Returns the role of the split with this name: `train`, `test`, `rnd`, or a part of one of
    /// them such as `train[:100]`. Every other split is a shift.
    pub fn of(split: &str) -> Self {
        let name = split.split(['[', '+']).next().unwrap_or(split);
        match name {
            "train" => Self::Train,
            "test" => Self::Test,
            "rnd" => Self::Unrelated,
            _ => Self::Shift,
        }
    }

    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "training data",
            Self::Test => "same distribution",
            Self::Shift => "shift",
            Self::Unrelated => "unrelated",
        }
    }
}
