//! How a run trains. The doc comments are the documentation that `reprpo config schema` prints.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::flag::{Flag, Group};

/// How the learning rate moves after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls in a line to 0 at the last step.
    #[default]
    Linear,
    /// Falls along half a cosine to 0.
    Cosine,
    /// Warm-up, stable, decay: stays, and falls in a line over the share `decay` at the end.
    Wsd,
}

/// What the policy is compared with while it is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceModel {
    /// The model as training finds it: the base, with `init_adapter` where one is given, as TRL has
    /// it.
    #[default]
    Start,
    /// The base model, whatever training starts from.
    Base,
}

/// The value on the held-out pairs by which validations are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BestMetric {
    /// The method's own loss, of which the lowest value is the best. If the method weighs its terms
    /// by the step, they have the weights of the last step, so that all values can be compared.
    #[default]
    Loss,
    /// The share of pairs whose chosen completion scores higher, as `acc` in the evaluation's
    /// table. It has few different values, so that many validations are equal.
    Accuracy,
    /// The mean growth of log p(chosen) − log p(rejected) over the start of training, in nats, as
    /// `margin gain` in the evaluation's table.
    Margin,
}

impl BestMetric {
    /// Its name, as it is written in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            BestMetric::Loss => "loss",
            BestMetric::Accuracy => "accuracy",
            BestMetric::Margin => "margin",
        }
    }
}

/// How the run trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Peak learning rate of the adapter. The chosen intervention can bring its own default, and
    /// the chosen adapter can multiply the default by a factor.
    pub lr: f64,
    /// How the learning rate moves after the warm-up.
    pub schedule: Schedule,
    /// Linear warm-up: a share of all steps where below 1, else a number of steps.
    pub warmup: f64,
    /// Share of all steps over which `wsd` decays; the other schedules do not read it.
    pub decay: f64,
    /// Pairs in a micro-batch.
    pub batch: usize,
    /// Micro-batches in an optimiser step.
    pub accumulate: usize,
    /// Passes over the training pairs; may be a fraction.
    pub epochs: f64,
    /// Largest global norm of the gradient; 0 = no clipping.
    pub clip: f64,
    /// Decoupled weight decay of AdamW, per unit of learning rate.
    pub weight_decay: f64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's addition to the denominator.
    pub eps: f64,
    /// Draw the pairs in a new random order every epoch.
    pub shuffle: bool,
    /// Most tokens of prompt and completion together.
    #[schemars(extend("flags" = [Flag::new(Group::Data, "N")]))]
    pub max_length: usize,
    /// Most tokens of the prompt, the last ones are kept; none = as `max_length` leaves it.
    pub max_prompt_length: Option<usize>,
    /// The split to train on, or a part of one: `train[:750]`, `train[10%:20%]`, `train[-100:]`,
    /// several with `+`.
    #[schemars(extend("flags" = [Flag::new(Group::Data, "SPLIT")]))]
    pub split: String,
    /// Train on the first so many pairs; none = all. Pairs that `validate_every` holds out are read
    /// in addition, if the split has more; otherwise they are taken from these.
    pub max_pairs: Option<usize>,
    /// Seed of initial values, order and dropout.
    #[schemars(extend("flags" = [Flag::new(Group::Training, "N").hyphens()]))]
    pub seed: u64,
    /// Train the transform's own parameters together with the adapter.
    pub transform: bool,
    /// Peak learning rate of the transform; none = `lr`.
    pub transform_lr: Option<f64>,
    /// One transform for all taps, which then need the same width, instead of one each.
    pub share_transform: bool,
    /// What the policy is compared with.
    pub reference: ReferenceModel,
    /// Optimiser steps between two checkpoints; none = only when interrupted.
    pub checkpoint_every: Option<usize>,
    /// Optimiser steps between two validations on pairs of `split` that are held out from training;
    /// another one follows the last step; none = no validation, and all pairs are trained on.
    pub validate_every: Option<usize>,
    /// Pairs to hold out, drawn by `seed`. Pairs with the same prompt are held out together; none =
    /// a tenth of the training pairs, at most 64, and fewer if prompts have several pairs.
    pub validation_pairs: Option<usize>,
    /// Write the adapter and the transforms of the best validated step instead of those of the last
    /// step. Needs `validate_every`.
    pub keep_best: bool,
    /// The value by which `keep_best` and `patience` compare validations. Of equal values, the
    /// earlier one is the best.
    pub best_metric: BestMetric,
    /// Stop training after so many validations in a row without a new best value. The schedule of
    /// the learning rate does not change. Needs `validate_every`; none = train to the last step.
    pub patience: Option<usize>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            lr: 5e-4,
            schedule: Schedule::Linear,
            warmup: 0.03,
            decay: 0.15,
            batch: 4,
            accumulate: 2,
            epochs: 1.0,
            clip: 1.0,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            shuffle: true,
            max_length: 512,
            max_prompt_length: None,
            split: "train".to_owned(),
            max_pairs: None,
            seed: 0,
            transform: true,
            transform_lr: None,
            share_transform: false,
            reference: ReferenceModel::default(),
            checkpoint_every: None,
            validate_every: None,
            validation_pairs: None,
            keep_best: false,
            best_metric: BestMetric::default(),
            patience: None,
        }
    }
}
