//! DPO that projects gradients onto the preference direction during the backward pass.

use reprpo_plugin::prelude::*;

use super::direction::Direction;
use super::dpo::Dpo;
use super::original::Variant;
use super::projection::{Sign, check, excess, length, unit};

#[cfg(test)]
mod tests;

/// DPO with gradients that are projected during the backward pass.
#[intervention(
    name = "projbp",
    summary = "DPO that projects the gradient on the preference direction at the output of every \
        adapted module, so that earlier layers receive the projected gradient",
    reference = "wassname, repr-preference-optimization (ProjBP), with clipping of the \
        coefficient and one direction per pair",
    explain = "\
L as in dpo. In its backward pass, at the output of every adapted module and for every pair:
d = pool(h_r on y⁺) − pool(h_r on y⁻)    v̂ = d at unit length    g = the gradient of the \
pair's loss at that output
g ← g / max(1, ‖mean_t g‖/(κ‖d‖))    κ = mag_clip
c_t = ⟨g_t, v̂⟩    g_t ← lrelu(c_t)·v̂ + β(g_t − c_t·v̂), with keep_norm at the length it had before

h_r is the output of the module in the base model. lrelu(c) is c if `sign` lets it pass, and
neg_slope·c otherwise. At prompt tokens, g is the sum over both completions, so a prompt may be
shared within a pair but not between pairs. A pair whose reference states are equal has no v̂
there, so its c_t is 0.
With direction = random, a control, d = ‖pool(h_r on y⁺) − pool(h_r on y⁻)‖·u for a random unit
vector u. Each output has one u for all pairs and steps, drawn from train.seed.
Differences of original: it always uses sign = pos. A descent step moves against g, so this passes
steps towards the rejected completion and scales down the others: the loss rises.
The map is not linear, so the result is not the gradient of any loss, and finite differences do
not agree with it.",
    example(sign = "neg", dpo.beta = 0.3),
)]
pub struct ProjBp {
    /// Which of the gradient's coefficients along the preference direction to keep: those that
    /// `sign` selects (`default`), or only positive ones (`original`).
    pub variant: Variant,
    /// Direction of the projection: the preference direction of each pair, or, as a control, a
    /// random one.
    pub direction: Direction,
    /// β: factor for the gradient's component orthogonal to the direction, at least 0.
    #[default(0.2)]
    pub beta: f64,
    /// Sign of the coefficients to keep. The variant `original` ignores this field.
    pub sign: Sign,
    /// Factor for coefficients that are not kept, 0 to 1.
    #[default(0.01)]
    pub neg_slope: f64,
    /// κ: maximum length of a pair's gradient, averaged over tokens, as a multiple of the
    /// preference direction's length. Longer gradients are scaled down before the projection.
    /// `none` means no limit.
    #[default(Some(0.6))]
    pub mag_clip: Option<f64>,
    /// Restores the length that each token's gradient had before the projection.
    #[default(true)]
    pub keep_norm: bool,
    /// The loss: fields of `dpo`.
    pub dpo: Dpo,
}

impl InterventionPlugin for ProjBp {
    fn build(self, model: &ModelInfo) -> Result<Box<dyn Intervention>> {
        check(self.beta, self.neg_slope, self.mag_clip)?;
        let loss = self.dpo.clone().build(model)?;
        Ok(Box::new(Projected { config: self, loss }))
    }
}

impl ProjBp {
    /// Returns the sign of the coefficients that this variant keeps.
    fn kept(&self) -> Sign {
        match self.variant {
            Variant::Default => self.sign,
            Variant::Original => Sign::Pos,
        }
    }
}

/// Computes the loss of `dpo` and projects its gradients.
struct Projected {
    config: ProjBp,
    loss: Box<dyn Intervention>,
}

impl Intervention for Projected {
    fn needs(&self) -> Needs {
        Needs { directions: Directions::Reference, output_grads: true, ..self.loss.needs() }
    }

    fn loss(&mut self, pairs: &Pairs, step: StepInfo) -> Result<Loss> {
        self.loss.loss(pairs, step)
    }

    fn output_grad(&self, at: OutputGrad) -> Result<GradMap> {
        let config = self.config.clone();
        let pairs = at.direction.size()[0];
        let d = config.direction.of(&at.direction, &at.site, at.step.seed);
        let (v, limit) = (unit(&d), length(&d) * config.mag_clip.unwrap_or(f64::INFINITY));
        Ok(Box::new(move |grad| {
            // The gradient of each pair's unweighted loss, `[n out]`, converted to the dtype of
            // `v`.
            let mut g = grad.to_kind(v.kind()) / at.weight;
            let of_rows = |per_pair: &Tensor| per_pair.index_select(0, &at.owner);
            if config.mag_clip.is_some() {
                let zeros = Tensor::zeros([pairs, g.size()[1]], (g.kind(), g.device()));
                let tokens = Tensor::zeros([pairs, 1], (g.kind(), g.device())).index_add(
                    0,
                    &at.owner,
                    &g.ones_like().narrow(1, 0, 1),
                );
                let mean = zeros.index_add(0, &at.owner, &g) / tokens;
                g = &g / of_rows(&excess(&length(&mean), &limit));
            }
            let v = of_rows(&v);
            let c = (&g * &v).sum_dim_intlist(-1, true, None::<Kind>);
            let mut projected =
                config.kept().clip(&c, config.neg_slope) * &v + (&g - &c * &v) * config.beta;
            if config.keep_norm {
                projected = unit(&projected) * length(&g);
            }
            Ok((projected * at.weight).to_kind(grad.kind()))
        }))
    }
}
