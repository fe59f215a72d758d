//! How a run is judged. The doc comments are the documentation that `reprpo config schema` prints.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::flag::{Flag, Group};

/// What two completions are compared by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// Mean log-probability of a completion token.
    #[default]
    Mean,
    /// Log-probability of the whole completion.
    Sum,
}

/// How the run is judged, against the base model and per split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Evaluate after training.
    #[schemars(extend("flags" = [
        Flag::switch(Group::Output, "no-eval", "false").help("Train without judging the result."),
    ]))]
    pub enabled: bool,
    /// Score the first so many pairs of each split; none = all.
    pub max_pairs: Option<usize>,
    /// What two completions are compared by.
    pub score: Score,
    /// Which splits, or parts of them as in `train.split`; none = all that the data set has.
    #[schemars(extend("flags" = [
        Flag::new(Group::Data, "SPLIT").named("split").help(
            "What of it to score, instead of every split: `train`, `train[:750]`, \
                `train[10%:20%]`, several \
             with `+`.",
        ),
    ]))]
    pub splits: Option<Vec<String>>,
    /// Most tokens in one forward pass.
    pub tokens: usize,
    /// Let the model continue so many prompts, before and after training, to hear whether it still
    /// speaks; 0 = none. A sweep has none where this is not set.
    pub completions: usize,
    /// Most tokens of such a completion.
    pub completion_tokens: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            max_pairs: Some(100),
            score: Score::Mean,
            splits: None,
            tokens: 2048,
            completions: 2,
            completion_tokens: 48,
        }
    }
}
