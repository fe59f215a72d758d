//! DPO that projects parameter gradients onto the preference direction.

use reprpo_plugin::prelude::*;

use super::direction::Direction;
use super::dpo::Dpo;
use super::projection::{Sign, check, excess, unit};

#[cfg(test)]
mod tests;

/// DPO with projected parameter gradients.
#[intervention(
    name = "projgrad",
    summary = "DPO that projects the gradient of each adapter parameter on the preference \
        direction after the backward pass",
    reference = "wassname, repr-preference-optimization (ProjGrad), with clipping of the \
        coefficient and directions from whole steps",
    explain = "\
L as in dpo. Then, once per optimiser step, for every adapter parameter with gradient G and an axis
in the input or output space of its module:
u = mean over the step's pairs of pool(h on y⁺) − pool(h on y⁻), at unit length; h = the module's \
input or output there
c = ⟨G, u⟩ along that axis    parallel = c⊗u    rest = G − parallel
G ← lrelu(c)⊗u + β·rest

lrelu(c) is c if `sign` lets it pass, and neg_slope·c otherwise. With sign = \"both\", nothing is
clipped. u is accumulated along with the gradient, so the result does not depend on micro-batches.
Parameters without such an axis (rotations, the entries of shira, the inner vector of vera) keep
their gradient. β = 1 with sign = \"both\" changes nothing. β = 0 only keeps the part along u.
With direction = random, a control, u is a random unit vector instead. Each input or output of a
module has its own u, which is drawn from train.seed and is the same in all steps. The loss stays
the same.",
    example(source = "policy", mag_clip = 0.5)
)]
pub struct ProjGrad {
    /// Direction of the projection: the preference direction, or, as a control, a random one.
    pub direction: Direction,
    /// β: factor for the gradient's component orthogonal to the direction, at least 0. With β = 1
    /// and `sign = "both"`, the method equals DPO.
    #[default(0.8)]
    pub beta: f64,
    /// Which coefficients along the direction to keep: all of them, or only those with one sign.
    pub sign: Sign,
    /// Factor for coefficients that are not kept, 0 to 1.
    pub neg_slope: f64,
    /// κ: maximum length of a parameter's gradient before the projection, as a multiple of the
    /// preference direction's length. `none` means no limit.
    pub mag_clip: Option<f64>,
    /// Scales the orthogonal part to the length of the part along the direction before multiplying
    /// it by β.
    pub scale_orth: bool,
    /// Model whose states define the direction.
    pub source: Source,
    /// The loss: fields of `dpo`.
    pub dpo: Dpo,
}

/// Models whose states can define the preference direction.
#[choice]
pub enum Source {
    /// The base model.
    #[default]
    Reference,
    /// The model in training. No forward pass of the base model is needed.
    Policy,
}

impl InterventionPlugin for ProjGrad {
    fn build(self, model: &ModelInfo) -> Result<Box<dyn Intervention>> {
        check(self.beta, self.neg_slope, self.mag_clip)?;
        let loss = self.dpo.clone().build(model)?;
        Ok(Box::new(Projected { config: self, loss }))
    }
}

/// Computes the loss of `dpo` and projects its gradients.
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

    fn parameter_grad(&self, grad: &Tensor, at: ParameterGrad<'_>) -> Result<Tensor> {
        let (config, axis) = (&self.config, at.axis);
        let direction = config.direction.of(at.direction, at.site, at.step.seed);
        let u = unit(&direction);
        // Move the axis to the end, so that `g` has the shape [… w].
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
