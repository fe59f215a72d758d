//! The settings of the evaluation. `reprpo config schema` prints the doc comments of the fields.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::flag::{Flag, Group};

/// The score that is used to compare two completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// Mean log-probability of the completion's tokens.
    #[default]
    Mean,
    /// Log-probability of the whole completion.
    Sum,
}

/// How to handle pairs of a held-out split that also occur in the training data, with the same
/// prompt and the same completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OverlapRule {
    /// Does not score them, because the model was trained on them.
    #[default]
    Exclude,
    /// Scores them like all other pairs.
    Keep,
}

/// The settings of the evaluation, which compares the trained model with the base model on each
/// split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Evaluate after training.
    #[schemars(extend("flags" = [
        Flag::switch(Group::Evaluation, "no-eval", "false").help("Skip the evaluation after \
            training."),
    ]))]
    pub enabled: bool,
    /// Maximum number of pairs to score, from the start of each split; none = all pairs.
    pub max_pairs: Option<usize>,
    /// The score that is used to compare two completions.
    pub score: Score,
    /// Splits to score, written as in `train.split`; none = all splits of the data set.
    #[schemars(extend("flags" = [
        Flag::new(Group::Data, "SPLIT").named("split").help(
            "Splits or parts of splits to score, e.g. `train`, `train[:750]` or `train[10%:20%]`, \
             joined with `+`. Defaults to all splits.",
        ),
    ]))]
    pub splits: Option<Vec<String>>,
    /// More data to score, in addition to `splits`: a list of `DATASET`, `DATASET#SPLIT` or
    /// `NAME=DATASET#SPLIT`. `DATASET` is written as for `--dataset`, and can be followed by fields
    /// of the data set: `DATASET?FIELD=VALUE&FIELD=VALUE`. The split defaults to `test`. Each entry
    /// is a row of the table.
    #[schemars(extend("flags" = [
        Flag::new(Group::Evaluation, "DATA").named("shift").repeated().help(
            "Also score other data: `DATASET`, `DATASET#SPLIT` or `NAME=DATASET#SPLIT`, e.g. \
             `genies:us_history` or `law=pairs.jsonl#train[:100]`; may be repeated.",
        ),
    ]))]
    pub shifts: Vec<String>,
    /// Suite of shifts to score: a name of `reprpo list suites`, or a TOML file. The suite selects
    /// the shifts of the data set that the run trains on. They replace the splits `oos` and `rnd`.
    #[schemars(extend("flags" = [
        Flag::new(Group::Evaluation, "NAME|FILE").help(
            "Score the shifts that a suite lists for the data set: a name of `reprpo list suites`, \
             or a TOML file.",
        ),
    ]))]
    pub suite: Option<String>,
    /// Instruction for the model, as a control that needs no training. The trained model reads it
    /// before each prompt, and the base model does not: as the system message of a conversation (or
    /// before the first user message, if the chat template has no system messages), or as a
    /// paragraph before a plain prompt. The completions that are scored stay the same.
    pub instruction: Option<String>,
    /// Maximum number of tokens in one forward pass.
    pub tokens: usize,
    /// How to handle pairs of a held-out split that also occur in the training data. Pairs of the
    /// training split itself are always scored.
    pub overlap: OverlapRule,
    /// Compute KL(trained ‖ base) on the chosen completions. This runs the base model once more, so
    /// an evaluation whose base scores are cached takes about twice as long.
    pub kl: bool,
    /// Number of completions to generate before and after training, as a check that the model still
    /// writes coherent text; 0 = none. Sweeps generate none by default.
    pub completions: usize,
    /// Measure how far training moved the hidden states along and across the preference vector, for
    /// `eval/states.json` and the report; none = only if the method reads states.
    pub states: Option<bool>,
    /// Maximum number of tokens in each of these completions.
    pub completion_tokens: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            max_pairs: Some(100),
            score: Score::Mean,
            splits: None,
            shifts: Vec::new(),
            suite: None,
            instruction: None,
            tokens: 2048,
            overlap: OverlapRule::default(),
            kl: false,
            completions: 2,
            states: None,
            completion_tokens: 48,
        }
    }
}
