//! Preference vectors: moves the states of both completions along the direction from rejected to
//! chosen.

use reprpo_plugin::prelude::*;

use super::direction::Direction;
use super::dpo::losses;
use super::original::{self, OriginalTap, Variant, Version};
use super::ranges::{above_zero, zero_or_more};
use super::rewards::log_rewards;
use super::vectors::{EPS, NO_DIRECTION, cos, dot, mean, norm, safe};

#[cfg(test)]
mod tests;

/// Preference vectors in a trust region.
#[intervention(
    name = "prefvec",
    summary = "move chosen and rejected states along the reference's preference direction, inside \
        a trust region",
    reference = "wassname, repr-preference-optimization (PrefVec), with the projection as a signed \
        length",
    explain = "\
L = ½[relu(τ − a⁺) + relu(τ − a⁻)]/τ + β_orth·½[‖m⁺ − a⁺v̂‖ + ‖m⁻ − a⁻v̂‖]
    + λ_angle[1 − cos(p⁺ − p⁻, d)] + λ_nll·relu(nll_π(y⁺) − nll_r(y⁺)) + λ_dpo·(−log σ(β θ))
d = r⁺ − r⁻    s = ‖d‖ + ε    v̂ = d/s    m± = (p± − r±)/s    a± = ⟨m±, v̂⟩
original: I + α·log σ(−θ)    I = |−1e5·mean(proj)| + β·1e6·|mean(orth)| − β·1e5·|cos(a, d)|, each \
term can be switched off
          a = p⁺ − p⁻    proj = ⟨a, v̂⟩v̂    orth = a − proj    means over h, then over taps

p± are the pooled and transformed states of the policy at a tap, and r± those of the reference.
The loss is a mean over pairs and taps. Distances are in units of the length s of the preference
vector: with τ = 1, both completions have to move by one preference vector. β_orth keeps the
states inside a trust region around that direction. λ_nll keeps the chosen text as likely as it
was; nll is the mean over completion tokens. The adapter gets no gradient through r±, s and v̂,
but T does: this keeps T from lowering the loss by shrinking the states. A pair is left out at a
tap where it has no preference direction, which means that d is 0 up to rounding, for example
because both completions are equal. A T that keeps lengths and angles (ortho, hra) does not change
this loss.
With direction = random, a control, a random direction takes the place of d everywhere in the
formula: d = ‖r⁺ − r⁻‖·u. Each tap has one random unit vector u for all pairs and steps, drawn
from train.seed, in the space of the transformed states. Targets, lengths and the pairs that count
stay the same. What remains of the effect does not come from the preference direction.
Differences of original: it pools over prompt and completion, leaving out tokens whose states are
unusually long. mean(proj) is ⟨a, v̂⟩ times the mean of the components of v̂, so its sign has no
meaning; the absolute value turns it into a penalty. log σ(−θ) has no lower bound; `dpo` with
loss_type = unbounded trains it without the other terms. The option use_sep of the original has no
effect, so it does not exist here.",
    example(lambda_dpo = 1.0),
    learning_rate = 2e-3
)]
pub struct PrefVec {
    /// Objective to use: this project's or the original one. `original` only uses the fields with
    /// the prefix `original_` and, for the logged rewards, `beta`.
    pub variant: Variant,
    /// Direction in which the states are moved: the preference direction, or, as a control, a
    /// random one. Only the default variant supports `random`.
    pub direction: Direction,
    /// τ: target distance along v̂, as a multiple of the preference vector's length; greater than
    /// 0.
    #[default(1.0)]
    pub tau: f64,
    /// β_orth: weight of the movement orthogonal to v̂, which is measured in multiples of the
    /// preference vector's length.
    #[default(0.1)]
    pub beta_orth: f64,
    /// λ_angle: weight of 1 − cos between the policy's preference vector and the reference's.
    pub lambda_angle: f64,
    /// λ_nll: weight of the penalty for making the chosen completion less likely than under the
    /// reference. The penalty is in nats per token.
    #[default(1.0)]
    pub lambda_nll: f64,
    /// λ_dpo: weight of −log σ(βθ).
    pub lambda_dpo: f64,
    /// β of the DPO term and of the logged rewards, per nat; greater than 0.
    #[default(0.1)]
    pub beta: f64,
    /// α in `original`: weight of log σ(−θ), at least 0.
    #[default(1.0)]
    pub original_alpha: f64,
    /// β in `original`: weight of the orth and angle terms, at least 0.
    #[default(1.0)]
    pub original_beta: f64,
    /// Adds the term −1e5·mean(proj) to `original`.
    #[default(true)]
    pub original_proj: bool,
    /// Uses the absolute value of the term that `original_proj` adds, which turns it into a
    /// penalty.
    #[default(true)]
    pub original_proj_abs: bool,
    /// Adds the term β·1e6·|mean(orth)| to `original`.
    pub original_orth: bool,
    /// Adds the term −β·1e5·|cos(a, d)| to `original`.
    pub original_angle: bool,
    /// Adds the term α·log σ(−θ) to `original`.
    #[default(true)]
    pub original_dpo: bool,
}

impl InterventionPlugin for PrefVec {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        let c = &self;
        c.direction.check(c.variant)?;
        for (field, value) in [("tau", c.tau), ("beta", c.beta)] {
            above_zero(field, value)?;
        }
        for (field, value) in [
            ("beta_orth", c.beta_orth),
            ("lambda_angle", c.lambda_angle),
            ("lambda_nll", c.lambda_nll),
            ("lambda_dpo", c.lambda_dpo),
            ("original_alpha", c.original_alpha),
            ("original_beta", c.original_beta),
        ] {
            zero_or_more(field, value)?;
        }
        if c.variant == Variant::Original && !(c.moves_states() || c.original_dpo) {
            return Err(Error::new(
                "the original objective has no terms because all of them are disabled",
            )
            .hint(
                "enable at least one of `original_proj`, `original_orth`, `original_angle` and \
                `original_dpo`",
            ));
        }
        Ok(Box::new(self))
    }
}

impl Intervention for PrefVec {
    fn needs(&self) -> Needs {
        if self.variant == Variant::Original {
            let logprobs = if self.original_dpo { Completions::Both } else { Completions::None };
            let of_states = if self.moves_states() { original::NEEDS } else { Needs::default() };
            return Needs { logprobs, reference_logprobs: self.original_dpo, ..of_states };
        }
        let logprobs = match (self.lambda_dpo > 0.0, self.lambda_nll > 0.0) {
            (true, _) => Completions::Both,
            (false, true) => Completions::Chosen,
            (false, false) => Completions::None,
        };
        Needs {
            logprobs,
            reference_logprobs: logprobs.any(),
            states: States::Pooled,
            reference_states: true,
            ..Needs::default()
        }
    }

    fn loss(&mut self, pairs: &Pairs, step: StepInfo) -> Result<Loss> {
        match self.variant {
            Variant::Default => self.trust_region(pairs, step.seed),
            Variant::Original => self.original(&OriginalTap::of(pairs, Version::First)?, pairs),
        }
    }
}

impl PrefVec {
    fn trust_region(&self, pairs: &Pairs, seed: u64) -> Result<Loss> {
        // The terms at one tap: along, orth, angle, a⁺ and a⁻. Each has shape [b], with a value per
        // pair.
        let directed = pairs.mean_over_counting_taps(|tap| {
            let (p, r) = (tap.policy()?, tap.reference()?);
            let d = self.direction.of(&(&r.chosen - &r.rejected), &tap.site, seed);
            let counts = r.differ();
            let s = safe(&norm(&d), &counts).unsqueeze(-1) + EPS;
            let v = &d / &s;
            let (m_cho, m_rej) = ((&p.chosen - &r.chosen) / &s, (&p.rejected - &r.rejected) / &s);
            let (a_cho, a_rej) = (dot(&m_cho, &v), dot(&m_rej, &v));
            let along =
                ((self.tau - &a_cho).relu() + (self.tau - &a_rej).relu()) * (0.5 / self.tau);
            let orth = (norm(&(&m_cho - a_cho.unsqueeze(-1) * &v))
                + norm(&(&m_rej - a_rej.unsqueeze(-1) * &v)))
                * 0.5;
            let angle = 1.0 - cos(&(&p.chosen - &p.rejected), &d);
            Ok((Tensor::stack(&[along, orth, angle, a_cho, a_rej], 0), counts))
        })?;
        let [along, orth, angle, a_cho, a_rej] = [0, 1, 2, 3, 4].map(|i| directed.values.get(i));
        // A pair without a preference direction at any tap is left out of all terms, including
        // `nll` and `dpo`.
        let mut value =
            directed.mean(&(&along + &orth * self.beta_orth + &angle * self.lambda_angle));
        let mut metrics = vec![
            ("prefvec/along", along),
            ("prefvec/orth", orth),
            ("prefvec/angle", angle),
            ("prefvec/chosen", a_cho),
            ("prefvec/rejected", a_rej),
        ];
        if self.lambda_nll > 0.0 {
            let worse =
                (pairs.reference()?.chosen()?.mean() - pairs.policy()?.chosen()?.mean()).relu();
            value += directed.mean(&worse) * self.lambda_nll;
            metrics.push(("prefvec/nll", worse));
        }
        let mut ratios = None;
        if self.lambda_dpo > 0.0 {
            let sides = pairs.log_ratios()?;
            value += directed.mean(&losses::sigmoid(&(&sides.chosen - &sides.rejected), self.beta))
                * self.lambda_dpo;
            ratios = Some(sides);
        }
        let loss = Loss::over(value, &directed, NO_DIRECTION);
        let loss = metrics.iter().fold(loss, |loss, (name, t)| loss.metric(name, t));
        Ok(match ratios {
            Some(sides) => log_rewards(loss, &sides, self.beta),
            None => loss,
        })
    }

    /// Returns true if the original objective has a term on states.
    fn moves_states(&self) -> bool {
        self.original_proj || self.original_orth || self.original_angle
    }

    /// Returns the loss of the original implementation.
    pub(super) fn original(&self, taps: &[OriginalTap<'_>], pairs: &Pairs) -> Result<Loss> {
        let mut loss = Loss::new(Tensor::from(0.0f32));
        if self.moves_states() {
            // The terms mean(proj), |mean(orth)| and |cos|. Each has shape [b], with a value per
            // pair.
            let terms = original::mean_over(taps, |tap| {
                let [p, r] = tap.pooled(Tensor::shallow_clone);
                let (a, d) = (&p.chosen - &p.rejected, &r.chosen - &r.rejected);
                let v = &d / (norm(&d).unsqueeze(-1) + EPS);
                let proj = dot(&a, &v).unsqueeze(-1) * &v;
                let orth = &a - &proj;
                Tensor::stack(&[mean(&proj), mean(&orth).abs(), cos(&a, &d).abs()], 0)
            })?;
            let [proj, orth, angle] = [0, 1, 2].map(|i| terms.get(i));
            let mut i = proj.zeros_like();
            if self.original_proj {
                i -= &proj * 1e5;
            }
            if self.original_proj_abs {
                i = i.abs();
            }
            if self.original_orth {
                i += &orth * (self.original_beta * 1e6);
            }
            if self.original_angle {
                i -= &angle * (self.original_beta * 1e5);
            }
            loss = Loss::new(i.mean(None::<Kind>))
                .metric("prefvec/proj", &proj)
                .metric("prefvec/orth", &orth)
                .metric("prefvec/angle", &angle);
        }
        if self.original_dpo {
            let delta = pairs.log_ratios()?;
            let unbounded = losses::unbounded(&(&delta.chosen - &delta.rejected));
            loss.value = unbounded.mean(None::<Kind>) * self.original_alpha + loss.value;
            loss = log_rewards(loss, &delta, self.beta);
        }
        Ok(loss)
    }
}
