//! What a method is given of a batch: pooled states and log-probabilities per pair, never the model.

use tch::{Kind, Tensor};

use super::Site;
use crate::error::{Error, Result};

/// The same thing for the chosen and the rejected completion.
#[derive(Debug)]
pub struct Sides {
    /// Of y⁺.
    pub chosen: Tensor,
    /// Of y⁻.
    pub rejected: Tensor,
}

/// The pooled, transformed states of one tap: p⁺, p⁻ and r⁺, r⁻ of the method reference, each `[b h]`.
#[derive(Debug)]
pub struct TapStates {
    /// Where they were read.
    pub site: Site,
    /// p⁺ and p⁻, with the adapter on.
    pub policy: Sides,
    reference: Option<Sides>,
}

impl TapStates {
    /// States of the policy, and of the reference where the method asked for them.
    pub fn new(site: Site, policy: Sides, reference: Option<Sides>) -> Self {
        Self { site, policy, reference }
    }

    /// r⁺ and r⁻, with the adapter off. They carry a gradient only into a transform's own parameters.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for them.
    pub fn reference(&self) -> Result<&Sides> {
        self.reference.as_ref().ok_or_else(|| missing("reference states", "reference_states"))
    }
}

/// Log-probabilities of the completion tokens of b completions, end to end.
#[derive(Debug)]
pub struct TokenLogprobs {
    /// log p(token | what stands before it), `[m]` with m = all completion tokens.
    pub per_token: Tensor,
    /// Which of the b completions each token belongs to, `[m]` int64, ascending.
    pub owner: Tensor,
    /// Completion tokens of each, `[b]`, as numbers of the same kind as `per_token`.
    pub tokens: Tensor,
}

impl TokenLogprobs {
    /// logp(y|x) = Σ over completion tokens, `[b]`.
    pub fn sum(&self) -> Tensor {
        self.tokens.zeros_like().index_add(0, &self.owner, &self.per_token)
    }

    /// The mean over completion tokens, `[b]`.
    pub fn mean(&self) -> Tensor {
        self.sum() / &self.tokens
    }
}

/// Log-probabilities of a batch.
#[derive(Debug)]
pub struct Logprobs {
    /// Of the chosen completions.
    pub chosen: TokenLogprobs,
    rejected: Option<TokenLogprobs>,
}

impl Logprobs {
    /// Log-probabilities of the chosen completions, and of the rejected where the method asked for both.
    pub fn new(chosen: TokenLogprobs, rejected: Option<TokenLogprobs>) -> Self {
        Self { chosen, rejected }
    }

    /// Of the rejected completions.
    ///
    /// # Errors
    /// Where the method's `Needs` asked for the chosen alone.
    pub fn rejected(&self) -> Result<&TokenLogprobs> {
        self.rejected.as_ref().ok_or_else(|| missing("log-probabilities of rejected completions", "logprobs: Both"))
    }
}

/// A batch of b pairs as a method sees it.
#[derive(Debug)]
pub struct Pairs {
    /// b.
    pub len: usize,
    /// One entry a tap; empty where the method asked for no states.
    pub taps: Vec<TapStates>,
    policy: Option<Logprobs>,
    reference: Option<Logprobs>,
}

impl Pairs {
    /// Made by the engine, and by the tests of a method.
    pub fn new(len: usize, taps: Vec<TapStates>, policy: Option<Logprobs>, reference: Option<Logprobs>) -> Self {
        Self { len, taps, policy, reference }
    }

    /// logp_π, with a gradient.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for it.
    pub fn policy(&self) -> Result<&Logprobs> {
        self.policy.as_ref().ok_or_else(|| missing("log-probabilities", "logprobs"))
    }

    /// logp_r, without one.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for it.
    pub fn reference(&self) -> Result<&Logprobs> {
        self.reference.as_ref().ok_or_else(|| missing("reference log-probabilities", "reference_logprobs"))
    }

    /// Δ⁺ and Δ⁻ = logp_π − logp_r of whole completions, each `[b]`; θ = Δ⁺ − Δ⁻.
    ///
    /// # Errors
    /// Where the method's `Needs` did not ask for both completions of both models.
    pub fn log_ratios(&self) -> Result<Sides> {
        let (policy, reference) = (self.policy()?, self.reference()?);
        Ok(Sides { chosen: policy.chosen.sum() - reference.chosen.sum(), rejected: policy.rejected()?.sum() - reference.rejected()?.sum() })
    }

    /// The mean of `per_tap` over the taps, each of which gives any shape.
    ///
    /// # Errors
    /// Where there is no tap, or one of them fails.
    pub fn mean_over_taps(&self, per_tap: impl Fn(&TapStates) -> Result<Tensor>) -> Result<Tensor> {
        let values = self.taps.iter().map(per_tap).collect::<Result<Vec<_>>>()?;
        if values.is_empty() {
            return Err(missing("states", "states"));
        }
        Ok(Tensor::stack(&values, 0).mean_dim(0, false, None::<Kind>))
    }
}

fn missing(what: &str, field: &str) -> Error {
    Error::internal(format!("the method reads {what} that it did not ask for")).hint(format!("set `{field}` in its `Needs`"))
}
