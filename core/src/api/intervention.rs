//! Interventions: training objectives. Each declares the values it needs and computes a loss.

use tch::Tensor;

use super::pairs::mean_of_counted;
use super::{
    Axis, BlockEdit, Completions, Counted, ModelInfo, PairStates, Pairs, Plugin, Pooling, Side,
    Site, Statistics, Tap,
};
use crate::error::{Error, Result};

/// Selects the states that a method receives at the run's taps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum States {
    /// No states.
    #[default]
    None,
    /// One vector per completion.
    Pooled,
    /// One vector per token of the whole sequence, including the prompt, in addition to the pooled
    /// vector.
    PerToken,
}

/// Selects the model whose states define the preference directions d = pool(y⁺) − pool(y⁻) at the
/// adapted modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Directions {
    /// The method needs no directions.
    #[default]
    None,
    /// The reference.
    Reference,
    /// The policy at the current step. The directions carry no gradient.
    Policy,
}

/// The values that a method needs. The engine does not compute anything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Log-probabilities of the policy.
    pub logprobs: Completions,
    /// Log-probabilities of the reference, for the same completions as
    /// [`logprobs`](Self::logprobs).
    pub reference_logprobs: bool,
    /// log Σ_v p(v)² of the policy at every completion token. The method reads it with
    /// [`TokenLogprobs::collision`](super::TokenLogprobs::collision).
    pub collision: bool,
    /// −log p of each token in the chosen sequence, under the logits at the token's own position.
    /// Computed for the policy and for the reference. The method reads it with
    /// [`Pairs::sequence_nll`].
    pub sequence_nll: bool,
    /// The completions whose whole sequences are scored: log p of every token of prompt and
    /// completion after the first one, under the policy. Requires [`logprobs`](Self::logprobs). The
    /// method reads it with [`Pairs::sequence_logprobs`].
    pub sequence_logprobs: Completions,
    /// KL(policy ‖ reference) at every completion token. The method reads it with
    /// [`TokenLogprobs::kl`](super::TokenLogprobs::kl). To compute it, the engine runs the
    /// reference at every step.
    pub reference_kl: bool,
    /// States of the policy at the run's taps.
    pub states: States,
    /// Limits the states to one side; `None` for both sides.
    pub only: Option<Side>,
    /// States of the reference at the run's taps, in the same form as those of the policy.
    pub reference_states: bool,
    /// Adds the pooled states before the transform: [`TapStates::raw`](super::TapStates::raw).
    pub raw_states: bool,
    /// Preference directions at the adapted modules, for `output_grads` and `parameter_grads`.
    pub directions: Directions,
    /// If true, the engine calls [`Intervention::output_grad`] for each batch, so that the method
    /// can change gradients during the backward pass.
    pub output_grads: bool,
    /// If true, the engine calls [`Intervention::parameter_grad`] after the backward pass.
    pub parameter_grads: bool,
    /// Declares that the gradient of the loss is zero if the policy equals the reference. The
    /// engine then adds a little noise to the adapter before the first step.
    pub flat_start: bool,
    /// Declares that the loss of a pair depends on the other pairs of its micro-batch. The engine
    /// then never chooses the size of the micro-batches itself.
    pub depends_on_batch: bool,
    /// Declares that the method trains nothing, so that the run only evaluates.
    pub evaluate_only: bool,
    /// If true, the engine calls [`Intervention::fit`] before the first step, with the states of
    /// all training pairs at the method's tap.
    pub fit: bool,
    /// If true, an evaluation calls [`Intervention::preferences`], and computes the accuracy from
    /// these numbers instead of the log-probabilities. Requires [`fit`](Self::fit).
    pub preferences: bool,
}

impl Needs {
    /// Requests no values. This is the same as `Needs::default()`, but can be used in constants.
    pub const NONE: Self = Self {
        logprobs: Completions::None,
        reference_logprobs: false,
        collision: false,
        sequence_nll: false,
        sequence_logprobs: Completions::None,
        reference_kl: false,
        states: States::None,
        only: None,
        reference_states: false,
        raw_states: false,
        directions: Directions::None,
        output_grads: false,
        parameter_grads: false,
        flat_start: false,
        depends_on_batch: false,
        evaluate_only: false,
        fit: false,
        preferences: false,
    };

    /// The completions whose states the method needs.
    pub fn states_of(&self) -> Completions {
        match (self.states, self.only) {
            (States::None, _) => Completions::None,
            (_, Some(Side::Chosen)) => Completions::Chosen,
            (_, Some(Side::Rejected)) => Completions::Rejected,
            (_, None) => Completions::Both,
        }
    }

    /// Checks that the fields are consistent.
    ///
    /// # Errors
    /// Fails if a field is set without another field that it requires.
    pub fn check(&self) -> Result<()> {
        let wrong = |field: &str, with: &str| {
            Err(Error::internal(format!("the method's `Needs` set `{field}`, but not `{with}`")))
        };
        match self {
            Self { reference_kl: true, logprobs: Completions::None, .. } => {
                wrong("reference_kl", "logprobs")
            }
            Self { collision: true, logprobs: Completions::None, .. } => {
                wrong("collision", "logprobs")
            }
            Self { sequence_logprobs, logprobs: Completions::None, .. }
                if sequence_logprobs.any() =>
            {
                wrong("sequence_logprobs", "logprobs")
            }
            Self { reference_logprobs: true, logprobs: Completions::None, .. } => {
                wrong("reference_logprobs", "logprobs")
            }
            Self { reference_states: true, states: States::None, .. } => {
                wrong("reference_states", "states")
            }
            Self { raw_states: true, states: States::None, .. } => wrong("raw_states", "states"),
            Self { preferences: true, fit: false, .. } => wrong("preferences", "fit"),
            _ => Ok(()),
        }
    }

    /// Describes the needs in words, for `reprpo explain`.
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
            words.push(
                "the KL divergence from the reference at every completion token, at every step",
            );
        }
        match self.sequence_logprobs {
            Completions::None => {}
            Completions::Chosen => words.push("log-probabilities of the whole chosen sequence"),
            Completions::Rejected => words.push("log-probabilities of the whole rejected sequence"),
            Completions::Both => words.push("log-probabilities of both whole sequences"),
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
            words.push(
                "noise on the initial adapter, because the loss has no gradient at the reference",
            );
        }
        if self.depends_on_batch {
            words.push("a fixed size of the micro-batches");
        }
        if self.fit {
            words.push(
                "the base model's pooled states of all training pairs, before the first step",
            );
        }
        if self.preferences {
            words.push("the model's pooled states of each pair in an evaluation");
        }
        if words.is_empty() { "nothing".to_owned() } else { words.join("; ") }
    }
}

/// The arguments of [`Intervention::output_grad`], for the output of one adapted module.
#[derive(Debug)]
pub struct OutputGrad {
    /// The module's output.
    pub site: Site,
    /// Preference direction d of each pair at this output, `[b out]`, float32. It is 0 if the two
    /// states of a pair are equal up to rounding.
    pub direction: Tensor,
    /// For each row of the token stream, the index of its pair (0 to b − 1), `[n]`, int64. With
    /// [`Needs::output_grads`], only the two completions of a pair may share a prompt. Every row
    /// therefore belongs to exactly one pair.
    pub owner: Tensor,
    /// Weight of one pair in the loss of the optimiser step: 1 / number of pairs in the step.
    pub weight: f64,
    /// The optimiser step.
    pub step: StepInfo,
}

/// The arguments of [`Intervention::parameter_grad`], for one adapter parameter.
#[derive(Debug)]
pub struct ParameterGrad<'a> {
    /// The input or the output of the parameter's module, depending on the axis.
    pub site: &'a Site,
    /// The axis of the parameter that lies in the space of `site`.
    pub axis: Axis,
    /// Mean of the preference directions d at `site`, `[w]`. The mean is over the pairs of the step
    /// whose two states differ there. It is 0 if no pair's states differ, or if the directions
    /// cancel.
    pub direction: &'a Tensor,
    /// The optimiser step.
    pub step: StepInfo,
}

/// Maps the gradient at the output of a module to its replacement. The shape of both gradients is
/// `[n out]`. The function runs during the backward pass, on libtorch's autograd thread.
pub type GradMap = Box<dyn FnMut(&Tensor) -> Result<Tensor> + Send>;

/// The position of an optimiser step in the run.
#[derive(Clone, Copy, Debug)]
pub struct StepInfo {
    /// Index of the step, counted from 0.
    pub step: usize,
    /// Number of steps in the run.
    pub steps: usize,
    /// The seed of the run, `train.seed`. Random numbers that must stay the same in all steps have
    /// to be derived from it.
    pub seed: u64,
}

/// A loss and the metrics to log with it.
#[derive(Debug)]
pub struct Loss {
    /// The loss, a differentiable scalar. It is the mean over all pairs of the batch. If `partial`
    /// is set, it is the mean over the pairs that count.
    pub value: Tensor,
    /// Names and values of the metrics. Each value is a mean over the pairs. The names follow TRL,
    /// e.g. `rewards/margins`. A metric of the method replaces the engine's metric of the same
    /// name, such as `logps/chosen`.
    pub metrics: Vec<(String, Tensor)>,
    /// The pairs that count in the mean; `None` if all of them count.
    pub partial: Option<Partial>,
}

/// The pairs of a batch that count in its loss.
///
/// The engine gives each of these pairs the same weight, regardless of its micro-batch. The run
/// reports how many pairs did not count.
#[derive(Debug)]
pub struct Partial {
    /// One number per pair, `[b]`: 1 if the pair counts, 0 if it does not.
    pub counts: Tensor,
    /// Completes "each has …" in the warning about the pairs that do not count. For example,
    /// `no preference direction`.
    pub lacking: &'static str,
}

impl Loss {
    /// A loss without metrics, over all pairs of the batch.
    pub fn new(value: Tensor) -> Self {
        Self { value, metrics: Vec::new(), partial: None }
    }

    /// A loss over the pairs that count. `value` is the mean over these pairs, from
    /// [`Counted::mean`]. For `lacking`, see [`Partial::lacking`].
    pub fn over(value: Tensor, pairs: &Counted, lacking: &'static str) -> Self {
        Self {
            partial: Some(Partial { counts: pairs.counts.shallow_clone(), lacking }),
            ..Self::new(value)
        }
    }

    /// Adds the metric `name`, the mean of `value`. `value` may have any shape. If the shape is
    /// `[b]`, with one number per pair, the mean only includes the pairs that count.
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

/// A description of the run, for [`Intervention::validate`].
#[derive(Debug)]
pub struct RunInfo<'a> {
    /// Architecture and dimensions of the model.
    pub model: &'a ModelInfo,
    /// Sites of the run's taps; empty if the method needs no states.
    pub sites: &'a [Site],
    /// How the states of a completion's tokens are pooled into one vector.
    pub pooling: Pooling,
    /// True if every transform is linear.
    pub linear_transforms: bool,
    /// True if every transform preserves lengths and angles.
    pub orthogonal_transforms: bool,
    /// Number of pairs to train on.
    pub pairs: usize,
    /// Number of optimiser steps.
    pub steps: usize,
}

/// A training objective on preference pairs.
pub trait Intervention: Send {
    /// The values that [`loss`](Self::loss) reads from its [`Pairs`], and the optional methods of
    /// this trait that the engine must call.
    fn needs(&self) -> Needs;

    /// A tap with the method's own sites. If this returns a tap, the run must not set `tap`. `None`
    /// to use the run's tap.
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

    /// Computes statistics of the training data, such as a mean difference. `states` are those of
    /// the reference: of the base model, or of the adapter that training starts from. Only called
    /// if [`Needs::fit`] is set, once before the first step. A resumed run reads the statistics
    /// from its folder.
    ///
    /// # Errors
    /// Fails if the statistics are not defined for these states.
    fn fit(&self, _states: &PairStates) -> Result<Statistics> {
        Err(Error::internal("the method needs statistics, but does not implement `fit`"))
    }

    /// Receives the statistics that [`fit`](Self::fit) returned, in this or in an earlier process.
    /// Called before all functions below.
    ///
    /// # Errors
    /// Fails if a value is missing or has a wrong shape.
    fn set_statistics(&mut self, _statistics: &Statistics) -> Result<()> {
        Ok(())
    }

    /// Edits of the residual stream, in addition to the adapter. Called once, before the first
    /// step.
    ///
    /// # Errors
    /// Fails if an edit is not defined for these statistics.
    fn edits(&self) -> Result<Vec<BlockEdit>> {
        Ok(Vec::new())
    }

    /// Returns the method's own scores of both completions of each pair, `[pairs 2]`: the chosen
    /// ones in column 0, the rejected ones in column 1. The better completion has the higher score.
    /// Only called if [`Needs::preferences`] is set.
    ///
    /// # Errors
    /// Fails if the shapes do not match.
    fn preferences(&self, _states: &PairStates) -> Result<Tensor> {
        Err(Error::internal("the method needs preferences, but does not implement `preferences`"))
    }

    /// Computes the mean loss of the given pairs.
    ///
    /// Validation during training calls this function without gradients, on a separate instance of
    /// the method. The instance used for training does not change.
    ///
    /// # Errors
    /// Fails if `pairs` lacks a value that the method reads.
    fn loss(&mut self, pairs: &Pairs, step: StepInfo) -> Result<Loss>;

    /// Returns a function that changes the gradient at the output of one adapted module. Called for
    /// each batch, but only if [`Needs::output_grads`] is set. With `train.checkpointing`, it is
    /// called again when the block runs again, and only that function is used.
    ///
    /// # Errors
    /// Fails if the method does not support this module. The default implementation always fails.
    fn output_grad(&self, at: OutputGrad) -> Result<GradMap> {
        Err(Error::internal(format!(
            "the method needs the gradient at `{}`, but does not implement `output_grad`",
            at.site
        )))
    }

    /// Returns the replacement for `grad`, the gradient of one adapter parameter over the whole
    /// optimiser step. Only called if [`Needs::parameter_grads`] is set, and only for parameters
    /// with an [`Axis`].
    ///
    /// # Errors
    /// Fails if the shapes do not match, or if memory runs out.
    fn parameter_grad(&self, grad: &Tensor, at: ParameterGrad<'_>) -> Result<Tensor> {
        let _ = at;
        Ok(grad.shallow_clone())
    }
}

/// A configuration that builds an [`Intervention`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not implement `InterventionPlugin`",
    label = "write `impl InterventionPlugin for {Self}`"
)]
pub trait InterventionPlugin: Plugin {
    /// Checks the configuration and builds the method.
    ///
    /// # Errors
    /// Fails if a value is out of range, or if the method does not support the model.
    fn build(self, model: &ModelInfo) -> Result<Box<dyn Intervention>>;
}
