//! Compares the softmaxes of states over their coordinates. A softmax depends mainly on the largest
//! coordinates.

use reprpo_plugin::prelude::*;

use super::dpo::losses;
use super::original::{self, OriginalTap, Variant, Version, later_logps};
use super::ranges::{above_zero, zero_or_more};
use super::vectors::{EPS, dot, mean, safe};

#[cfg(test)]
mod tests;

/// A divergence of at most `ROUNDING`·ε·H is treated as a rounding error. ε is the machine epsilon
/// of the dtype, and H is the entropy of the reference distribution.
const ROUNDING: f64 = 8.0;

/// The reason why a pair is left out of the loss. In the run's log, it follows the words "each
/// has".
const NO_DIVERGENCE: &str = "no preference direction: the softmaxes of the reference's states of \
    both completions are equal";

/// States as distributions over their coordinates.
#[intervention(
    name = "rank",
    summary = "move the softmax of the rejected completion's states to that of the reference's \
        chosen ones, and keep the chosen ones in place",
    reference = "wassname, repr-preference-optimization (Rank), with divergences divided by the \
        one between the reference's states",
    explain = "\
L = [KL(P_r⁺‖P_π⁻) + α·KL(P_r⁺‖P_π⁺)]/(KL(P_r⁺‖P_r⁻) + ε)    P = softmax(pool(T h)/temperature) \
over h
original: −log σ(−βψ) + α·retain, the mean over h    q = pool(log_softmax(T h))    ψ = (q_π⁺ − \
q_r⁺) − (q_π⁻ − q_r⁻)
          retain = relu(−θ) + 100·relu(nll_π(x, y⁺) − nll_r(x, y⁺)) + (β(q_π⁺ − q_r⁺))², each \
          term can be switched off

P_π± are computed from the pooled and transformed states of the policy at a tap, and P_r± from
those of the reference. The loss is a mean over pairs and taps. At the first step π = r, so L = 1.
The adapter gets no gradient through P_r±, but T does, also through the denominator: this keeps T
from lowering the loss by shrinking the states. A pair is left out at a tap where KL(P_r⁺‖P_r⁻) is
0 up to rounding, for example because both completions are equal, or because the temperature is
too high for the states. The softmax depends on the basis, so a rotation T changes what is
compared.
Differences of original: it takes log-softmaxes before pooling, and pools over prompt and
completion, leaving out tokens whose states are unusually long. It compares the changes of both
completions; as implemented, it rewards moving the rejected ones up and the chosen ones down. θ is
the margin of log-probabilities. nll is −log p(token | tokens up to and including that token): the
original does not shift the labels.",
    example(temperature = 5),
    learning_rate = 5e-3
)]
pub struct Rank {
    /// Objective to use: this project's or the original one.
    pub variant: Variant,
    /// α: weight of the retain term, at least 0; dimensionless.
    #[default(0.25)]
    pub alpha: f64,
    /// States are divided by this value before the softmax; greater than 0. Coordinates of a
    /// residual stream can be in the hundreds, so at temperature 1 the softmax would only depend on
    /// the largest coordinate. `original` ignores this.
    #[default(100.0)]
    pub temperature: f64,
    /// β in the formula of `original`, per nat, greater than 0. Only `original` reads this and the
    /// fields below.
    #[default(1.0)]
    pub original_beta: f64,
    /// Adds relu(−θ) to the retain term of `original`.
    #[default(true)]
    pub original_dpo: bool,
    /// Adds 100·relu(nll_π − nll_r), in nats per token, to the retain term of `original`. This is a
    /// penalty if the chosen sequence becomes less likely.
    pub original_nll: bool,
    /// Adds (β(q_π⁺ − q_r⁺))², the squared change of the chosen states, to the retain term of
    /// `original`.
    pub original_retain: bool,
    /// Version of the original implementation that `original` computes. They differ in the pooling
    /// and in the log-probabilities of θ.
    pub original_version: Version,
}

impl InterventionPlugin for Rank {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        zero_or_more("alpha", self.alpha)?;
        above_zero("temperature", self.temperature)?;
        above_zero("original_beta", self.original_beta)?;
        self.original_version.check(self.variant)?;
        Ok(Box::new(self))
    }
}

impl Intervention for Rank {
    fn needs(&self) -> Needs {
        match self.variant {
            Variant::Default => {
                Needs { states: States::Pooled, reference_states: true, ..Needs::default() }
            }
            Variant::Original => {
                let logprobs =
                    if self.original_dpo { Completions::Both } else { Completions::None };
                Needs {
                    logprobs,
                    reference_logprobs: self.original_dpo,
                    sequence_nll: self.original_nll,
                    ..original::NEEDS
                }
            }
        }
    }

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        match self.variant {
            Variant::Default => {
                let pairs = self.divergences(pairs)?;
                let (reroute, retain) = (pairs.values.get(0), pairs.values.get(1));
                let loss = Loss::over(
                    pairs.mean(&(&reroute + &retain * self.alpha)),
                    &pairs,
                    NO_DIVERGENCE,
                );
                Ok(logged(loss, &reroute, &retain))
            }
            Variant::Original => {
                let taps = OriginalTap::of(pairs, self.original_version)?;
                self.original(&taps, pairs, None)
            }
        }
    }
}

/// Adds the reroute and retain terms of the pairs to the loss as metrics. Both tensors are `[b]`.
fn logged(loss: Loss, reroute: &Tensor, retain: &Tensor) -> Loss {
    loss.metric("rank/reroute", reroute).metric("rank/retain", retain)
}

impl Rank {
    /// Returns the reroute and retain terms of all pairs, stacked into a tensor of shape `[2 b]`.
    /// The terms of a pair are averaged over the taps at which its two reference states have
    /// different softmaxes.
    fn divergences(&self, pairs: &Pairs) -> Result<Counted> {
        pairs.mean_over_counting_taps(|tap| {
            let (p, r) = (tap.policy()?, tap.reference()?);
            let log_p = |x: &Tensor| (x / self.temperature).log_softmax(-1, None::<Kind>);
            let r_cho = log_p(&r.chosen);
            let kl_from_r_cho = |other: &Tensor| dot(&r_cho.exp(), &(&r_cho - log_p(other)));
            let scale = kl_from_r_cho(&r.rejected) + EPS;
            // The divergence is a sum of terms p·log p, so its rounding error grows with the
            // entropy.
            let rounding =
                dot(&r_cho.exp(), &r_cho).detach() * (-ROUNDING * precision(r_cho.kind()));
            let counts = r.differ().logical_and(&scale.detach().gt_tensor(&rounding));
            let scale = safe(&scale, &counts);
            Ok((
                Tensor::stack(
                    &[kl_from_r_cho(&p.rejected) / &scale, kl_from_r_cho(&p.chosen) / &scale],
                    0,
                ),
                counts,
            ))
        })
    }

    /// Returns the loss of the original implementation. `attended` has shape `[m]`, and is false
    /// for padding tokens of the chosen sequences.
    pub(super) fn original(
        &self,
        taps: &[OriginalTap<'_>],
        pairs: &Pairs,
        attended: Option<&Tensor>,
    ) -> Result<Loss> {
        let beta = self.original_beta;
        let terms = original::mean_over(taps, |tap| {
            let [q_pi, q_r] = tap.pooled(|h| h.log_softmax(-1, None::<Kind>));
            let (chosen, rejected) = (q_pi.chosen - q_r.chosen, q_pi.rejected - q_r.rejected);
            let psi = &chosen - &rejected;
            Tensor::stack(
                &[mean(&losses::sigmoid(&psi, -beta)), mean(&(chosen * beta).square())],
                0,
            )
        })?;
        let reroute = terms.get(0);
        let mut retain = reroute.zeros_like();
        if self.original_dpo {
            let delta = match self.original_version {
                Version::First => pairs.log_ratios()?,
                Version::Later => {
                    let models = [pairs.policy()?, pairs.reference()?];
                    let [policy, reference] = models.map(|of| later_logps(of, true));
                    policy?.zip(reference?).map(|(policy, reference)| policy - reference)
                }
            };
            retain += (delta.rejected - delta.chosen).relu();
        }
        if self.original_nll {
            retain += worse(pairs.sequence_nll()?, attended, pairs.len).relu() * 100.0;
        }
        if self.original_retain {
            retain += terms.get(1);
        }
        let loss = Loss::new((&reroute + &retain * self.alpha).mean(None::<Kind>));
        Ok(logged(loss, &reroute, &retain))
    }
}

/// Returns mean_t(nll_π − nll_r) for each pair, as a tensor of shape `[b]`. The mean is over all
/// positions of the chosen sequence, and padding tokens contribute 0.
fn worse(nll: &SequenceNll, attended: Option<&Tensor>, pairs: usize) -> Tensor {
    let off = &nll.policy - &nll.reference;
    let off = attended
        .map_or_else(|| off.shallow_clone(), |attended| &off * attended.to_kind(off.kind()));
    let per_pair = |x: &Tensor| {
        Tensor::zeros([pairs as i64], (x.kind(), x.device())).index_add(0, &nll.owner, x)
    };
    per_pair(&off) / per_pair(&off.ones_like())
}
