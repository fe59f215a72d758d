//! Representation rerouting, the loss of circuit breakers: makes the states of rejected completions
//! orthogonal to those of the reference.

use reprpo_plugin::prelude::*;

use super::original::Variant;
use super::ranges::above_zero;
use super::vectors::{cos, norm, safe};

#[cfg(test)]
mod tests;

/// Representation rerouting.
#[intervention(
    name = "rr",
    summary = "representation rerouting (circuit breakers): make the rejected completion's states \
        orthogonal to the reference's, and keep the chosen one's",
    reference = "Zou et al. 2024, Improving Alignment and Robustness with Circuit Breakers, \
        algorithm 1",
    explain = "\
L = α_max[p·‖h_π⁺ − h_r⁺‖/‖h_r⁺‖ + (1 − p)·relu cos(h_π⁻, h_r⁻)]    p = step/(2·steps)
original: α_max[p·‖h_π⁺ − h_r⁺‖ + (1 − p)·relu cos(h_π⁻, h_r⁻)]

h± are the transformed states of each completion token at a tap, of the policy and of the
reference. The loss is the mean over the tokens of a completion, then over pairs and taps. Steps
count from 0, so p goes from 0 to ½. At π = r the cosine is 1 and its gradient is 0, so the
adapter starts with a small perturbation, where L is close to α_max. This loss does not use the
tap's pooling.
Differences of original: its retain term is the plain distance. In a residual stream whose states
have norms in the hundreds, that term outweighs the cosine from the first steps on, because the
gradient of the cosine shrinks as the norm grows. The adapter then returns to its start.
The chosen completions stand for the paper's retain set, and the rejected ones for its
circuit-breaker set.",
    example(alpha_max = 5),
    learning_rate = 2e-3
)]
pub struct Rr {
    /// Distance in the retain term: `default` divides it by the length of the reference's state,
    /// and `original` does not scale it, as in the paper.
    pub variant: Variant,
    /// α_max: weight of both terms before the schedule, greater than 0. The paper uses 10 for
    /// Llama 3 8B and 5 for Mistral 7B.
    #[default(10.0)]
    pub alpha_max: f64,
}

impl InterventionPlugin for Rr {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        above_zero("alpha_max", self.alpha_max)?;
        Ok(Box::new(self))
    }
}

impl Intervention for Rr {
    fn needs(&self) -> Needs {
        Needs {
            states: States::PerToken,
            reference_states: true,
            flat_start: true,
            ..Needs::default()
        }
    }

    fn loss(&mut self, pairs: &Pairs, step: StepInfo) -> Result<Loss> {
        let p = step.step as f64 / (2 * step.steps) as f64;
        let terms = pairs.mean_over_taps(|tap| {
            let (pi, r) = tap.tokens()?;
            let retain =
                mean_over_completion(&pi.chosen, &self.moved(&pi.chosen.states, &r.chosen.states));
            let reroute = mean_over_completion(
                &pi.rejected,
                &cos(&pi.rejected.states, &r.rejected.states).relu(),
            );
            Ok(Tensor::stack(&[retain, reroute], 0))
        })?;
        let (retain, reroute) = (terms.get(0), terms.get(1));
        let value = (&retain * p + &reroute * (1.0 - p)).mean(None::<Kind>) * self.alpha_max;
        Ok(Loss::new(value).metric("rr/retain", &retain).metric("rr/reroute", &reroute))
    }
}

impl Rr {
    /// Returns the distance of each token's state from the reference's state, `[m h]` → `[m]`.
    /// The default variant divides the distance by the norm of the reference's state. If this norm
    /// is 0, the result is 0.
    fn moved(&self, state: &Tensor, reference: &Tensor) -> Tensor {
        let distance = norm(&(state - reference));
        if self.variant == Variant::Original {
            return distance;
        }
        let length = norm(reference);
        let counts = length.gt(0.0);
        distance / safe(&length, &counts) * counts.to_kind(length.kind())
    }
}

/// Averages `values` over the completion tokens of each sequence, `[m]` → `[b]`.
fn mean_over_completion(tokens: &TokenStates, values: &Tensor) -> Tensor {
    let counted = tokens.completion.to_kind(values.kind());
    tokens.sum_by_sequence(&(values * &counted)) / tokens.sum_by_sequence(&counted)
}
