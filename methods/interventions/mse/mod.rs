//! Squared distances: rejected states move to where the reference has the chosen ones, which stay.

use reprpo_plugin::prelude::*;

use super::original::{self, OriginalTap, Variant};
use super::ranges::zero_or_more;
use super::vectors::{EPS, NO_DIRECTION, mean, norm, safe};

#[cfg(test)]
mod tests;

/// What `log` adds to a distance before it takes the logarithm.
const LOG_EPS: f64 = 1e-4;

/// Squared distances between states.
#[intervention(
    name = "mse",
    summary = "move the rejected completion's states to the reference's chosen ones, and hold the \
        chosen ones there",
    reference = "wassname, repr-preference-optimization (MSE), with distances in units of the \
        preference vector",
    explain = "\
L = ‖p⁻ − r⁺‖²/s² + α‖p⁺ − r⁺‖²/s²    s = ‖r⁺ − r⁻‖ + ε
log:      log(‖p⁻ − r⁺‖²/s² + 1e-4) + α·log(‖p⁺ − r⁺‖²/s² + 1e-4)
original: 100·[D(r⁺, p⁻) + α·D(r⁺, p⁺)]    D(a, b) = log(‖a − b‖ + ε) − log s

p± are the policy's pooled and transformed states at a tap, r± the reference's; ‖·‖² is the mean \
of squares over h; means
over pairs and taps. The first step has π = r, so L = 1. r± and s carry no gradient into the \
adapter, but do into T, so
that T gains nothing by shrinking. A pair does not count at a tap where it has no preference \
direction: s is 0 there but for
rounding, for example because both completions are equal. A T that keeps lengths (ortho, hra) \
leaves this loss what it is
without one; another T can lower it by itself where `log` is on (it loses rank) or transform_in = \
reroute (it shrinks).
The earliest recipes: log = true, transform_in = reroute, a tap with pooling = common, α = 0.1 or \
0.01.
original differs in this: it pools prompt and completion without tokens of unusual length; it \
takes the logarithm of
distances, whose retain term begins at log ε with no gradient and pulls the harder the nearer p⁺ \
is to r⁺.",
    example(alpha = 0.1, log = true),
    learning_rate = 5e-3
)]
pub struct Mse {
    /// Whose objective.
    pub variant: Variant,
    /// α: weight of the chosen states' distance from the reference's, without a unit, 0 or more.
    #[default(0.6)]
    pub alpha: f64,
    /// Takes log(· + 1e-4) of each term, which weighs small distances up; not read by `original`,
    /// which has logarithms of its own.
    pub log: bool,
    /// Where the transform T acts; not read by `original`.
    pub transform_in: TransformIn,
}

/// The terms that compare transformed states.
#[choice]
pub enum TransformIn {
    /// In every state that is compared, s included.
    #[default]
    All,
    /// In the distance of the rejected states alone; the rest compares states as they are.
    Reroute,
}

impl InterventionPlugin for Mse {
    fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
        zero_or_more("alpha", self.alpha)?;
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

    fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
        match self.variant {
            Variant::Default => {
                let pairs = pairs.mean_over_counting_taps(|tap| self.terms(tap))?;
                let loss = Loss::over(pairs.mean(&self.sum(&pairs.values)), &pairs, NO_DIRECTION);
                Ok(logged(loss, &pairs.values))
            }
            Variant::Original => self.original(&OriginalTap::all(pairs)?),
        }
    }
}

/// Logs both terms `[2 b]` with the loss.
fn logged(loss: Loss, terms: &Tensor) -> Loss {
    loss.metric("mse/reroute", &terms.get(0)).metric("mse/retain", &terms.get(1))
}

impl Mse {
    /// Adds both terms up: `[2 b]` → `[b]`.
    fn sum(&self, terms: &Tensor) -> Tensor {
        terms.get(0) + terms.get(1) * self.alpha
    }

    /// The original's loss.
    pub(super) fn original(&self, taps: &[OriginalTap<'_>]) -> Result<Loss> {
        let terms = original::mean_over(taps, original_terms)?;
        Ok(logged(Loss::new(self.sum(&terms).mean(None::<Kind>) * 100.0), &terms))
    }

    /// Returns both terms `[2 b]` and which pairs have a preference direction at this tap, `[b]`,
    /// bool.
    fn terms(&self, tap: &TapStates) -> Result<(Tensor, Tensor)> {
        let (p, r) = (tap.policy()?, tap.reference()?);
        let (p_ret, r_ret) = match self.transform_in {
            TransformIn::All => (p, r),
            TransformIn::Reroute => tap.raw()?,
        };
        let counts = r_ret.differ();
        let s2 = safe(&(mean_square(&r_ret.chosen, &r_ret.rejected) + EPS * EPS), &counts);
        let reroute = mean_square(&p.rejected, &r.chosen) / &s2;
        let retain = mean_square(&p_ret.chosen, &r_ret.chosen) / &s2;
        let terms = Tensor::stack(&[reroute, retain], 0);
        Ok((if self.log { (terms + LOG_EPS).log() } else { terms }, counts))
    }
}

/// D(r⁺, p⁻) and D(r⁺, p⁺).
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

/// ‖a − b‖² as the mean over h, which T may have made smaller: `[b h]` → `[b]`.
fn mean_square(a: &Tensor, b: &Tensor) -> Tensor {
    mean(&(a - b).square())
}
