//! Interventions: what a step needs from the model, and the loss made of it.

use tch::Tensor;

use super::{ModelInfo, Pairs, Plugin};
use crate::error::Result;

/// Which completions need log-probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Completions {
    /// None: no output head, and no layer past the deepest tap.
    #[default]
    None,
    /// The chosen one.
    Chosen,
    /// Both.
    Both,
}

/// What a method needs from the engine, which computes that and nothing more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Log-probabilities of the policy.
    pub logprobs: Completions,
    /// Log-probabilities of the reference, for the same completions as [`logprobs`](Self::logprobs).
    pub reference_logprobs: bool,
    /// Pooled states of the policy at the run's taps.
    pub states: bool,
    /// Pooled states of the reference at the run's taps.
    pub reference_states: bool,
}

impl Needs {
    /// In words, for `reprpo explain`.
    pub fn describe(&self) -> String {
        let mut words = Vec::new();
        match self.logprobs {
            Completions::None => {}
            Completions::Chosen => words.push("log-probabilities of the chosen completion"),
            Completions::Both => words.push("log-probabilities of both completions"),
        }
        if self.states {
            words.push("pooled states at the taps");
        }
        match (self.reference_logprobs, self.reference_states) {
            (true, true) => words.push("the reference's log-probabilities and states, once per pair"),
            (true, false) => words.push("the reference's log-probabilities, once per pair"),
            (false, true) => words.push("the reference's states, once per pair"),
            (false, false) => {}
        }
        if words.is_empty() { "nothing".to_owned() } else { words.join("; ") }
    }
}

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
    /// A scalar with a gradient: the mean over the pairs that were given.
    pub value: Tensor,
    /// Names as TRL gives them (`rewards/margins`) and means over the pairs.
    pub metrics: Vec<(String, Tensor)>,
}

impl Loss {
    /// A loss with nothing to log but itself.
    pub fn new(value: Tensor) -> Self {
        Self { value, metrics: Vec::new() }
    }

    /// Logs the mean of `value` (any shape) under `name`.
    #[must_use]
    pub fn metric(mut self, name: &str, value: &Tensor) -> Self {
        self.metrics.push((name.to_owned(), value.detach().mean(tch::Kind::Float)));
        self
    }
}

/// A training objective on preference pairs.
pub trait Intervention: Send {
    /// What [`loss`](Self::loss) will find in its [`Pairs`].
    fn needs(&self) -> Needs;

    /// The loss of these pairs, as a mean over them.
    ///
    /// # Errors
    /// Where the pairs do not hold what the method needs.
    fn loss(&mut self, pairs: &Pairs, step: StepInfo) -> Result<Loss>;
}

/// How an [`Intervention`] is made from its configuration.
pub trait InterventionPlugin: Plugin {
    /// Checks the configuration and makes the method.
    ///
    /// # Errors
    /// A value out of range, or a model it cannot work on.
    fn build(config: Self::Config, model: &ModelInfo) -> Result<Box<dyn Intervention>>;
}
