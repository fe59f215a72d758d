//! DPO whose parameter gradients are projected on the preference direction.

use reprpo_plugin::prelude::*;

use super::dpo::Dpo;
use super::projection::{Sign, check, excess, unit};

#[cfg(test)]
mod tests;

/// DPO with projected parameter gradients.
#[intervention(
    name = "projgrad",
    summary = "DPO, and after each backward pass every parameter's gradient is drawn towards the \
        preference direction",
    reference = "wassname, repr-preference-optimization (ProjGrad), with the clipping on the \
        coefficient and directions of whole steps",
    explain = "\
L = that of dpo; then, once an optimiser step, for every adapter parameter with gradient G and an \
axis in its module's
input or output space:
u = mean over the step's pairs of pool(h on y⁺) − pool(h on y⁻), at unit length; h = the module's \
input or output there
c = ⟨G, u⟩ along that axis    parallel = c⊗u    rest = G − parallel
G ← lrelu(c)⊗u + β·rest

lrelu(c) is c where `sign` lets it pass, and neg_slope·c elsewhere; with sign = \"both\" nothing \
is clipped. u is summed up
with the gradient, so micro-batches do not matter. Parameters without such an axis (rotations, \
the inner vector of vera)
keep their gradient. β = 1 with sign = \"both\" changes nothing; β = 0 leaves what moves along u \
alone.",
    example(source = "policy", mag_clip = 0.5)
)]
pub struct ProjGrad {
    /// β: share of the gradient across the direction that stays, 0 or more; 1 with `sign = "both"`
    /// is DPO itself.
    #[default(0.8)]
    pub beta: f64,
    /// Which coefficients along the direction pass.
    pub sign: Sign,
    /// What the others are scaled by, 0 to 1.
    pub neg_slope: f64,
    /// κ: first scales a parameter's gradient down to at most κ lengths of the preference
    /// direction; none = not at all.
    pub mag_clip: Option<f64>,
    /// Scales the part across the direction to the length of the part along it, before β.
    pub scale_orth: bool,
    /// Whose states make the direction.
    pub source: Source,
    /// The loss: fields of `dpo`.
    pub dpo: Dpo,
}

/// Whose states make the preference direction.
#[choice]
pub enum Source {
    /// The base model's.
    #[default]
    Reference,
    /// The model's as it is being trained; no pass of the base model is needed for them.
    Policy,
}

impl InterventionPlugin for ProjGrad {
    fn build(self, model: &ModelInfo) -> Result<Box<dyn Intervention>> {
        check(self.beta, self.neg_slope, self.mag_clip)?;
        let loss = self.dpo.clone().build(model)?;
        Ok(Box::new(Projected { config: self, loss }))
    }
}

/// The loss, and what is done to its gradients.
struct Projected {
    config: ProjGrad,
    loss: Box<dyn Intervention>,
}

impl Intervention for Projected {
    fn needs(&self) -> Needs {
        let directions = match self.config.source {
            Source::Reference => Directions::Reference,
            Source::Policy => Directions::Policy,
        };
        Needs { directions, parameter_grads: true, ..self.loss.needs() }
    }

    fn loss(&mut self, pairs: &Pairs, step: StepInfo) -> Result<Loss> {
        self.loss.loss(pairs, step)
    }

    fn parameter_grad(&self, grad: &Tensor, axis: Axis, direction: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        let u = unit(direction);
        // The axis stands last: G [… w].
        let mut g = grad.movedim_int(axis.dim() as i64, -1);
        if let Some(kappa) = config.mag_clip {
            g = &g / excess(&g.norm(), &(direction.norm() * kappa));
        }
        let c = (&g * &u).sum_dim_intlist(-1, true, None::<Kind>);
        let parallel = &c * &u;
        let mut rest = &g - &parallel;
        if config.scale_orth {
            rest = unit(&rest.flatten(0, -1)).reshape(rest.size()) * parallel.norm();
        }
        let projected = config.sign.clip(&c, config.neg_slope) * &u + rest * config.beta;
        Ok(projected.movedim_int(-1, axis.dim() as i64))
    }
}
