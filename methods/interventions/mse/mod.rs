//! Minimises squared distances: moves the rejected states towards the reference's chosen states,
//! and keeps the chosen states where they are.

use reprpo_plugin::prelude::*;

use super::direction::Direction;
use super::original::{self, OriginalTap, Variant, Version};
use super::ranges::zero_or_more;
use super::vectors::{EPS, NO_DIRECTION, mean, norm, safe};

#[cfg(test)]
mod tests;

/// Constant that `log` adds to a distance before taking the logarithm.
const LOG_EPS: f64 = 1e-4;

/// Squared distances between states.
#[intervention(
    name = "mse",
    summary = "move the rejected completion's states to the reference's chosen ones, and keep the \
        chosen ones in place",
    reference = "wassname, repr-preference-optimization (MSE), with distances in units of the \
        preference vector",
    explain = "\
L = ‖p⁻ − r⁺‖²/s² + α‖p⁺ − r⁺‖²/s²    s = ‖r⁺ − r⁻‖ + ε
log:      log(‖p⁻ − r⁺‖²/s² + 1e-4) + α·log(‖p⁺ − r⁺‖²/s² + 1e-4)
original: 100·[D(r⁺, p⁻) + α·D(r⁺, p⁺)]    D(a, b) = log(‖a − b‖ + ε) − log s

p± are the pooled and transformed states of the policy at a tap, and r± those of the reference.
‖·‖² is the mean of squares over h. The loss is a mean over pairs and taps. At the first step π =
r, so L = 1. The adapter gets no gradient through r± and s, but T does: dividing by s keeps T from
lowering the loss by shrinking the states. A pair is left out at a tap where it has no preference
direction, which means that s is 0 up to rounding, for example because both completions are equal.
A T that keeps lengths (ortho, hra) does not change this loss. Another T can lower it without the
adapter, by losing rank if `log` is set, or by shrinking if transform_in = reroute.
With direction = random, a control, the rejected states move to a random target instead of r⁺:
L = ‖p⁻ − (r⁻ + ‖r⁺ − r⁻‖·u)‖²/s² + α‖p⁺ − r⁺‖²/s². The target has the same distance from r⁻. Each
tap has one random unit vector u for all pairs and steps, drawn from train.seed.
The first recipes of the original project used log = true, transform_in = reroute, a tap with
pooling = common, and α = 0.1 or 0.01.
Differences of original: it pools over prompt and completion, leaving out tokens whose states are
unusually long. It takes the logarithm of distances: the retain term starts at log ε without a
gradient, and its gradient grows as p⁺ approaches r⁺.",
    example(alpha = 0.1, log = true),
    learning_rate = 5e-3
)]
pub struct Mse {
    /// Objective to use: this project's or the original one.
    pub variant: Variant,
    /// Direction from r⁻ to the target of the rejected states: the preference direction, so that
    /// the target is r⁺, or, as a control, a random one. Only the default variant supports
    /// `random`.
    pub direction: Direction,
    /// α: weight of the distance between the policy's and the reference's chosen states, at least
    /// 0; dimensionless.
    #[default(0.6)]
    pub alpha: f64,
    /// Takes log(· + 1e-4) of each term, which gives small distances more weight. `original`
    /// ignores this, because it always uses logarithms.
    pub log: bool,
    /// Selects the distances that are computed on transformed states. `original` ignores this.
    pub transform_in: TransformIn,
    /// Version of the original implementation that `original` computes. They differ in the pooling.
    pub original_version: Version,
}

/// The terms that compare transformed states.
#[choice]
pub enum TransformIn {
    /// All distances, including the distance s between the reference's two states.
    #[default]
    All,
    /// Only the distance of the rejected states; all other distances use untransformed states.
    Reroute,
}

impl InterventionPlugin for Mse {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        zero_or_more("alpha", self.alpha)?;
        self.direction.check(self.variant)?;
        self.original_version.check(self.variant)?;
        Ok(Box::new(self))
    }
}

impl Intervention for Mse {
    fn needs(&self) -> Needs {
        match self.variant {
            Variant::Default => {
                let raw_states = self.transform_in == TransformIn::Reroute;
                Needs {
                    states: States::Pooled,
                    reference_states: true,
                    raw_states,
                    ..Needs::default()
                }
            }
            Variant::Original => original::NEEDS,
        }
    }

    fn loss(&mut self, pairs: &Pairs, step: StepInfo) -> Result<Loss> {
        match self.variant {
            Variant::Default => {
                let pairs = pairs.mean_over_counting_taps(|tap| self.terms(tap, step.seed))?;
                let loss = Loss::over(pairs.mean(&self.sum(&pairs.values)), &pairs, NO_DIRECTION);
                Ok(logged(loss, &pairs.values))
            }
            Variant::Original => self.original(&OriginalTap::of(pairs, self.original_version)?),
        }
    }
}

/// Adds the reroute and retain terms to the metrics of the loss. `terms` has the shape `[2 b]`.
fn logged(loss: Loss, terms: &Tensor) -> Loss {
    loss.metric("mse/reroute", &terms.get(0)).metric("mse/retain", &terms.get(1))
}

impl Mse {
    /// Returns the weighted sum of the reroute and retain terms: `[2 b]` → `[b]`.
    fn sum(&self, terms: &Tensor) -> Tensor {
        terms.get(0) + terms.get(1) * self.alpha
    }

    /// Returns the loss of the original implementation.
    pub(super) fn original(&self, taps: &[OriginalTap<'_>]) -> Result<Loss> {
        let terms = original::mean_over(taps, original_terms)?;
        Ok(logged(Loss::new(self.sum(&terms).mean(None::<Kind>) * 100.0), &terms))
    }

    /// Returns the reroute and retain terms at one tap, stacked to shape `[2 b]`. Also returns a
    /// mask `[b]` of the pairs with a preference direction at this tap.
    fn terms(&self, tap: &TapStates, seed: u64) -> Result<(Tensor, Tensor)> {
        let (p, r) = (tap.policy()?, tap.reference()?);
        let (p_ret, r_ret) = match self.transform_in {
            TransformIn::All => (p, r),
            TransformIn::Reroute => tap.raw()?,
        };
        let counts = r_ret.differ();
        let s2 = safe(&(mean_square(&r_ret.chosen, &r_ret.rejected) + EPS * EPS), &counts);
        let target = match self.direction {
            Direction::Preference => r.chosen.shallow_clone(),
            random => &r.rejected + random.of(&(&r.chosen - &r.rejected), &tap.site, seed),
        };
        let reroute = mean_square(&p.rejected, &target) / &s2;
        let retain = mean_square(&p_ret.chosen, &r_ret.chosen) / &s2;
        let terms = Tensor::stack(&[reroute, retain], 0);
        Ok((if self.log { (terms + LOG_EPS).log() } else { terms }, counts))
    }
}

/// Returns D(r⁺, p⁻) and D(r⁺, p⁺), stacked to shape `[2 b]`.
fn original_terms(tap: &OriginalTap<'_>) -> Tensor {
    let [p, r] = tap.pooled(Tensor::shallow_clone);
    let log_distance = |a: &Tensor, b: &Tensor| (norm(&(a - b)) + EPS).log();
    let log_s = log_distance(&r.chosen, &r.rejected);
    Tensor::stack(
        &[
            log_distance(&r.chosen, &p.rejected) - &log_s,
            log_distance(&r.chosen, &p.chosen) - &log_s,
        ],
        0,
    )
}

/// Returns the mean of (a − b)² over the last dimension: `[b h]` → `[b]`.
fn mean_square(a: &Tensor, b: &Tensor) -> Tensor {
    mean(&(a - b).square())
}
