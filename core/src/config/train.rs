//! The settings of the training loop. `reprpo config schema` prints the doc comments of the fields.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Batch;
use super::flag::{Flag, Group};

/// The learning-rate schedule after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Constant.
    Constant,
    /// Linear decrease to 0 at the last step.
    #[default]
    Linear,
    /// Half-cosine decrease to 0 at the last step.
    Cosine,
    /// Constant, then a linear decrease to 0 over the last fraction `decay` of the steps
    /// ("warmup-stable-decay").
    Wsd,
}

/// The model that the policy is compared with during training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceModel {
    /// The model that training starts from: the base model, with `init_adapter` if it is set. TRL
    /// does the same.
    #[default]
    Start,
    /// The base model, even if training starts from `init_adapter`.
    Base,
}

/// The metric used to compare validations. It is computed on the held-out pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BestMetric {
    /// The loss of the method; lower is better. If a method changes the weights of its loss terms
    /// during training, the weights of the last step are used, so that all values are comparable.
    #[default]
    Loss,
    /// The fraction of pairs whose chosen completion scores higher (`acc` in the evaluation's
    /// table). It only has a few distinct values, so ties are common.
    Accuracy,
    /// The mean increase of log p(chosen) − log p(rejected) since the start of training, in nats
    /// (`margin gain` in the evaluation's table).
    Margin,
    /// The mean log σ of the difference between the scores of the chosen and the rejected
    /// completion; higher is better. Unlike the accuracy, it has no ties, and unlike the margin, it
    /// does not grow with pairs that are already correct by far.
    #[serde(rename = "log_sigmoid")]
    LogSigmoid,
}

impl BestMetric {
    /// The metric's name as written in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            BestMetric::Loss => "loss",
            BestMetric::Accuracy => "accuracy",
            BestMetric::Margin => "margin",
            BestMetric::LogSigmoid => "log_sigmoid",
        }
    }
}

/// The settings of the training loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Peak learning rate of the adapter. The chosen intervention can declare a different default,
    /// and the chosen adapter can multiply the default by a factor.
    pub lr: f64,
    /// The learning-rate schedule after the warm-up.
    pub schedule: Schedule,
    /// Length of the linear warm-up: a fraction of all steps if less than 1, otherwise a number of
    /// steps.
    pub warmup: f64,
    /// Fraction of all steps over which `wsd` decays. Other schedules ignore it.
    pub decay: f64,
    /// Number of pairs in a micro-batch, or `auto` for the largest number that fits into memory.
    /// With `auto`, a step has 4 · `accumulate` pairs. The run measures how many of them fit at
    /// once, and chooses both numbers. The result stays the same up to rounding. The run's
    /// `config.toml` contains the numbers.
    pub batch: Batch,
    /// Number of micro-batches in an optimiser step.
    pub accumulate: usize,
    /// Number of processes that a step is planned for: it has `batch` · `accumulate` · `ranks`
    /// pairs. By default, the number of processes that torchrun or srun started. A run that is
    /// resumed with another number of processes keeps its steps.
    pub ranks: usize,
    /// Keep only the inputs of the model's blocks for the backward pass, which then computes each
    /// block again (activation checkpointing). This needs much less memory, takes about a third
    /// longer, and gives the same results.
    pub checkpointing: bool,
    /// Number of passes over the training pairs; can be a fraction.
    pub epochs: f64,
    /// Maximum global norm of the gradient; 0 = no clipping.
    pub clip: f64,
    /// Decoupled weight decay of AdamW, per unit of learning rate.
    pub weight_decay: f64,
    /// AdamW's β₁, the decay of the first moment.
    pub beta1: f64,
    /// AdamW's β₂, the decay of the second moment.
    pub beta2: f64,
    /// AdamW's ε, which is added to the denominator.
    pub eps: f64,
    /// Shuffle the pairs again in every epoch.
    pub shuffle: bool,
    /// Put pairs with the same prompt into the same micro-batch, as far as possible. The prompt is
    /// then only computed once, but the gradients of the step are more correlated.
    pub group_by_prompt: bool,
    /// Maximum number of tokens in prompt and completion together.
    #[schemars(extend("flags" = [Flag::new(Group::Data, "N")]))]
    pub max_length: usize,
    /// Maximum number of tokens in the prompt. A longer prompt is truncated at the start; none =
    /// only limited by `max_length`.
    pub max_prompt_length: Option<usize>,
    /// The split to train on, or a part of a split, e.g. `train[:750]`, `train[10%:20%]` or
    /// `train[-100:]`. Several parts can be joined with `+`.
    #[schemars(extend("flags" = [Flag::new(Group::Data, "SPLIT")]))]
    pub split: String,
    /// Maximum number of pairs to train on, from the start of the split; none = all pairs.
    /// Validation pairs do not count towards this limit if the split has enough pairs for both.
    pub max_pairs: Option<usize>,
    /// Fraction of the training pairs whose chosen and rejected completions are swapped, as a
    /// control. With 0.5, the labels contain no information. Each pair is swapped with this
    /// probability, which depends only on `seed` and on the pair's position in the split. Held-out
    /// pairs and the evaluation keep the true labels.
    pub swap_labels: f64,
    /// Seed for initial values, pair order and dropout.
    #[schemars(extend("flags" = [Flag::new(Group::Training, "N").hyphens()]))]
    pub seed: u64,
    /// Train the transform's parameters together with the adapter.
    pub transform: bool,
    /// Peak learning rate of the transform; none = `lr`.
    pub transform_lr: Option<f64>,
    /// Use the same transform for all taps instead of one for each tap. All taps must have the same
    /// width.
    pub share_transform: bool,
    /// The model that the policy is compared with.
    pub reference: ReferenceModel,
    /// Compute the metrics that are only logged (`logps/*`, `logits/*`, `entropy`,
    /// `mean_token_accuracy`) at every n-th step, and at the first and last step.
    pub metrics_every: usize,
    /// Number of optimiser steps between checkpoints; none = only save a checkpoint when
    /// interrupted.
    pub checkpoint_every: Option<usize>,
    /// Also write the metrics to `tb/` in the run's folder, as events for TensorBoard.
    pub tensorboard: bool,
    /// Number of optimiser steps between validations, which use held-out pairs of `split`. The last
    /// step is always followed by a validation; none = no validation, train on all pairs.
    pub validate_every: Option<usize>,
    /// Number of pairs to hold out, drawn with `seed`. Pairs with the same prompt stay together;
    /// none = a tenth of the training pairs, at most 64, or fewer if that would separate pairs with
    /// the same prompt.
    pub validation_pairs: Option<usize>,
    /// Save the adapter and transforms of the best validation instead of the last step. Requires
    /// `validate_every`.
    pub keep_best: bool,
    /// The metric that `keep_best` and `patience` use to compare validations. Ties go to the
    /// earliest validation.
    pub best_metric: BestMetric,
    /// Stop training after this many validations in a row without a new best value. The
    /// learning-rate schedule does not change. Requires `validate_every`; none = train to the last
    /// step.
    pub patience: Option<usize>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            lr: 5e-4,
            schedule: Schedule::Linear,
            warmup: 0.03,
            decay: 0.15,
            batch: Batch::default(),
            accumulate: 2,
            ranks: 1,
            checkpointing: false,
            epochs: 1.0,
            clip: 1.0,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            shuffle: true,
            group_by_prompt: false,
            max_length: 512,
            max_prompt_length: None,
            split: "train".to_owned(),
            max_pairs: None,
            swap_labels: 0.0,
            seed: 0,
            transform: true,
            transform_lr: None,
            share_transform: false,
            reference: ReferenceModel::default(),
            metrics_every: 1,
            checkpoint_every: None,
            tensorboard: false,
            validate_every: None,
            validation_pairs: None,
            keep_best: false,
            best_metric: BestMetric::default(),
            patience: None,
        }
    }
}

impl TrainConfig {
    /// Number of pairs in an optimiser step.
    pub fn step_pairs(&self) -> usize {
        self.batch.pairs() * self.accumulate * self.ranks
    }

    /// True if the metrics that are only logged are computed at step `step`, counted from 0, of
    /// `steps`.
    pub fn logs_metrics(&self, step: usize, steps: usize) -> bool {
        step == 0 || step + 1 == steps || (step + 1).is_multiple_of(self.metrics_every)
    }
}
