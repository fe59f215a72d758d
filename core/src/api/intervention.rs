//! Interventions: what a step needs from the model, and the loss made of it.

use tch::Tensor;

use super::pairs::mean_of_counted;
use super::{Axis, Completions, Counted, ModelInfo, Pairs, Plugin, Pooling, Side, Site, Tap};
use crate::error::{Error, Result};

/// How a method sees the states at the run's taps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum States {
    /// Not at all.
    #[default]
    None,
    /// As one vector a completion.
    Pooled,
    /// As one vector a token of the whole sequence, prompt included, and pooled as well.
    PerToken,
}

/// Whose states make the preference directions d = pool(y⁺) − pool(y⁻) at the adapted modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Directions {
    /// The method needs none.
    #[default]
    None,
    /// The base model's.
    Reference,
    /// Those of the model as it is at this step; without a gradient.
    Policy,
}

/// What a method needs from the engine, which computes that and nothing more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Log-probabilities of the policy.
    pub logprobs: Completions,
    /// Log-probabilities of the reference, for the same completions as
    /// [`logprobs`](Self::logprobs).
    pub reference_logprobs: bool,
    /// log Σ_v p(v)² at every completion token, with the policy's log-probabilities.
    pub collision: bool,
    /// Policy and reference on the chosen sequence, each position against its own token:
    /// [`Pairs::sequence_nll`].
    pub sequence_nll: bool,
    /// KL(policy ‖ reference) at every completion token, with the policy's log-probabilities:
    /// [`TokenLogprobs::kl`]. Runs the reference at every step.
    ///
    /// [`TokenLogprobs::kl`]: super::TokenLogprobs::kl
    pub reference_kl: bool,
    /// States of the policy at the run's taps.
    pub states: States,
    /// States of this side only; `None`: of both.
    pub only: Option<Side>,
    /// States of the reference at the run's taps, seen as the policy's.
    pub reference_states: bool,
    /// Pooled states before the transform as well: [`TapStates::raw`](super::TapStates::raw).
    pub raw_states: bool,
    /// Preference directions at the adapted modules, for the two stages below.
    pub directions: Directions,
    /// Calls [`Intervention::output_grad`] inside the backward pass.
    pub output_grads: bool,
    /// Calls [`Intervention::parameter_grad`] after it.
    pub parameter_grads: bool,
    /// The gradient of the loss is zero where the policy equals the reference. The engine then adds
    /// a little noise to the adapter before the first step.
    pub flat_start: bool,
    /// Trains nothing: the run is its evaluation.
    pub evaluate_only: bool,
}

impl Needs {
    /// No need at all, for constants; the same as the default.
    pub const NONE: Self = Self {
        logprobs: Completions::None,
        reference_logprobs: false,
        collision: false,
        sequence_nll: false,
        reference_kl: false,
        states: States::None,
        only: None,
        reference_states: false,
        raw_states: false,
        directions: Directions::None,
        output_grads: false,
        parameter_grads: false,
        flat_start: false,
        evaluate_only: false,
    };

    /// The completions whose states the method reads.
    pub fn states_of(&self) -> Completions {
        match (self.states, self.only) {
            (States::None, _) => Completions::None,
            (_, Some(Side::Chosen)) => Completions::Chosen,
            (_, Some(Side::Rejected)) => Completions::Rejected,
            (_, None) => Completions::Both,
        }
    }

    /// Checks that the needs fit together.
    ///
    /// # Errors
    /// Fails if one of them only makes sense with another that is missing.
    pub fn check(&self) -> Result<()> {
        let wrong = |field: &str, with: &str| {
            Err(Error::internal(format!("the method's `Needs` have `{field}`, but not `{with}`")))
        };
        match self {
            Self { reference_kl: true, logprobs: Completions::None, .. } => {
                wrong("reference_kl", "logprobs")
            }
            Self { collision: true, logprobs: Completions::None, .. } => {
                wrong("collision", "logprobs")
            }
            Self { reference_logprobs: true, logprobs: Completions::None, .. } => {
                wrong("reference_logprobs", "logprobs")
            }
            Self { reference_states: true, states: States::None, .. } => {
                wrong("reference_states", "states")
            }
            Self { raw_states: true, states: States::None, .. } => wrong("raw_states", "states"),
            _ => Ok(()),
        }
    }

    /// In words, for `reprpo explain`.
    pub fn describe(&self) -> String {
        let mut words = Vec::new();
        match self.logprobs {
            Completions::None => {}
            Completions::Chosen => words.push("log-probabilities of the chosen completion"),
            Completions::Rejected => words.push("log-probabilities of the rejected completion"),
            Completions::Both => words.push("log-probabilities of both completions"),
        }
        if self.collision {
            words.push("the policy's collision probability at every completion token");
        }
        if self.reference_kl {
            words
                .push("the divergence from the reference at every completion token, at every step");
        }
        if self.sequence_nll {
            words.push("both models' likelihood of the whole chosen sequence");
        }
        match self.states {
            States::None => {}
            States::Pooled => words.push("pooled states at the taps"),
            States::PerToken => words.push("states of every token at the taps"),
        }
        match self.only {
            Some(Side::Chosen) => words.push("only the chosen completion's states"),
            Some(Side::Rejected) => words.push("only the rejected completion's states"),
            None => {}
        }
        if self.raw_states {
            words.push("pooled states before the transform");
        }
        let every = if self.states == States::PerToken {
            "the reference's states, at every step"
        } else {
            "the reference's states, once per pair"
        };
        match (self.reference_logprobs, self.reference_states) {
            (true, true) => {
                words.extend(["the reference's log-probabilities, once per pair", every])
            }
            (true, false) => words.push("the reference's log-probabilities, once per pair"),
            (false, true) => words.push(every),
            (false, false) => {}
        }
        match self.directions {
            Directions::None => {}
            Directions::Reference => words.push(
                "the reference's preference directions at the adapted modules, at every step",
            ),
            Directions::Policy => {
                words.push("the policy's preference directions at the adapted modules")
            }
        }
        if self.output_grads {
            words.push("gradient hooks at the outputs of the adapted modules");
        }
        if self.parameter_grads {
            words.push("the parameters' gradients before clipping");
        }
        if self.flat_start {
            words.push("a start slightly away from the reference, where its loss is flat");
        }
        if words.is_empty() { "nothing".to_owned() } else { words.join("; ") }
    }
}

/// An adapted module's output, as [`Intervention::output_grad`] is told of it before the backward
/// pass.
#[derive(Debug)]
pub struct OutputGrad {
    /// The module's output.
    pub site: Site,
    /// d of each pair at this place `[b out]`, float32. It is 0 for a pair whose two states are
    /// equal there, up to rounding.
    pub direction: Tensor,
    /// Which of the b pairs each row of the stream belongs to `[n]`, int64. No row belongs to two:
    /// with this stage a prompt is shared within a pair, never between pairs.
    pub owner: Tensor,
    /// How much one pair's loss counts in what is differentiated: 1 over the pairs of the optimiser
    /// step.
    pub weight: f64,
}

/// A map of the gradient `[n out]` at a module's output. It runs inside the backward pass, in
/// libtorch's thread.
pub type GradMap = Box<dyn FnMut(&Tensor) -> Result<Tensor> + Send>;

/// Where in a run a step stands.
#[derive(Clone, Copy, Debug)]
pub struct StepInfo {
    /// This optimiser step, from 0.
    pub step: usize,
    /// How many the run takes.
    pub steps: usize,
}

/// A loss and what to log with it.
#[derive(Debug)]
pub struct Loss {
    /// A scalar with a gradient: the mean over the given pairs, or over those of them that count.
    pub value: Tensor,
    /// Names as TRL gives them (`rewards/margins`) and means over the pairs. One of the engine's
    /// own names (`logps/chosen`) stands in the place of the engine's number.
    pub metrics: Vec<(String, Tensor)>,
    /// The pairs that count in the mean; `None` if all do.
    pub partial: Option<Partial>,
}

/// The pairs of a batch that count in its loss. The engine gives each of them the same weight,
/// however they are spread over the micro-batches of a step, and the run reports how many did not
/// count.
#[derive(Debug)]
pub struct Partial {
    /// 1 for a pair that counts and 0 for one that does not, `[b]`.
    pub counts: Tensor,
    /// The end of the sentence `each has …` in the warning about the other pairs, e.g.
    /// `no preference direction`.
    pub lacking: &'static str,
}

impl Loss {
    /// A loss with nothing to log but itself.
    pub fn new(value: Tensor) -> Self {
        Self { value, metrics: Vec::new(), partial: None }
    }

    /// A loss that is the mean over the pairs that count, as [`Counted::mean`] computes it.
    /// `lacking` is as in [`Partial::lacking`].
    pub fn over(value: Tensor, pairs: &Counted, lacking: &'static str) -> Self {
        Self {
            partial: Some(Partial { counts: pairs.counts.shallow_clone(), lacking }),
            ..Self::new(value)
        }
    }

    /// Logs the mean of `value` (any shape) under `name`. If only some pairs count, a `value` with
    /// one number per pair `[b]` is averaged over those pairs.
    #[must_use]
    pub fn metric(mut self, name: &str, value: &Tensor) -> Self {
        let value = value.detach();
        let mean = match &self.partial {
            Some(partial) if partial.counts.size() == value.size() => {
                mean_of_counted(&value, &partial.counts, tch::Kind::Float)
            }
            _ => value.mean(tch::Kind::Float),
        };
        self.metrics.push((name.to_owned(), mean));
        self
    }
}

/// The run that a method is part of, for [`Intervention::validate`].
#[derive(Debug)]
pub struct RunInfo<'a> {
    /// The shape of the model.
    pub model: &'a ModelInfo,
    /// Where the run reads states; empty if the method needs none.
    pub sites: &'a [Site],
    /// How the tokens of a completion become one vector.
    pub pooling: Pooling,
    /// True if every transform is linear.
    pub linear_transforms: bool,
    /// True if every transform keeps lengths and angles.
    pub orthogonal_transforms: bool,
    /// Number of pairs to train on.
    pub pairs: usize,
    /// Number of optimiser steps.
    pub steps: usize,
}

/// A training objective on preference pairs.
pub trait Intervention: Send {
    /// What [`loss`](Self::loss) will find in its [`Pairs`].
    fn needs(&self) -> Needs;

    /// The taps of a method that chooses its own places; `None` for the run's tap. A user who sets
    /// `tap` for a method that has its own gets an error.
    fn tap(&self) -> Option<Box<dyn Tap>> {
        None
    }

    /// Checks the method against the rest of the run, before anything is trained or written.
    /// Returns warnings for the user.
    ///
    /// # Errors
    /// Fails if the method cannot work in this run.
    fn validate(&self, _run: &RunInfo<'_>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// The loss of these pairs, as a mean over them. A validation during training calls it on a new
    /// instance of the method, without gradients, so that it cannot change the state of the one
    /// that is trained with.
    ///
    /// # Errors
    /// Where the pairs do not hold what the method needs.
    fn loss(&mut self, pairs: &Pairs, step: StepInfo) -> Result<Loss>;

    /// The map of the gradient at one adapted module's output, for one batch. Asked for where
    /// [`Needs::output_grads`] says so.
    ///
    /// # Errors
    /// Where the method cannot work at this place.
    fn output_grad(&self, at: OutputGrad) -> Result<GradMap> {
        Err(Error::internal(format!(
            "the method asked for the gradient at `{}`, but does not say what to do with it",
            at.site
        )))
    }

    /// The gradient to take in place of `grad`, that of one adapter parameter over the whole
    /// optimiser step. `direction` `[w]` is the mean of d, in the space that `axis` runs over, over
    /// the pairs of the step whose states differ there. It is 0 if no pair's states differ, or if
    /// the directions cancel. Asked for where [`Needs::parameter_grads`] says so, of parameters
    /// that have an [`Axis`].
    ///
    /// # Errors
    /// What libtorch says.
    fn parameter_grad(&self, grad: &Tensor, axis: Axis, direction: &Tensor) -> Result<Tensor> {
        let _ = (axis, direction);
        Ok(grad.shallow_clone())
    }
}

/// A configuration that makes an [`Intervention`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how it is built",
    label = "write `impl InterventionPlugin for {Self}`"
)]
pub trait InterventionPlugin: Plugin {
    /// Checks the configuration and makes the method.
    ///
    /// # Errors
    /// A value out of range, or a model it cannot work on.
    fn build(self, model: &ModelInfo) -> Result<Box<dyn Intervention>>;
}
