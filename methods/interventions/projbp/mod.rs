//! DPO whose gradients are projected on the preference direction inside the backward pass.

use reprpo_plugin::prelude::*;

use super::dpo::Dpo;
use super::original::Variant;
use super::projection::{Sign, check, excess, length, unit};

#[cfg(test)]
mod tests;

/// DPO with a projected backward pass.
#[intervention(
    name = "projbp",
    summary = "DPO whose gradient is drawn towards the preference direction at every adapted \
        output, so that earlier layers see it",
    reference = "wassname, repr-preference-optimization (ProjBP), with the clipping on the \
        coefficient and one direction a pair",
    explain = "\
L = that of dpo; in its backward pass, at the output of every adapted module and for every pair:
d = pool(h_r on y⁺) − pool(h_r on y⁻)    v̂ = d at unit length    g = the gradient there, of the \
pair's own loss
g ← g / max(1, ‖mean_t g‖/(κ‖d‖))    κ = mag_clip
c_t = ⟨g_t, v̂⟩    g_t ← lrelu(c_t)·v̂ + β(g_t − c_t·v̂), with keep_norm at the length it had before

h_r is the module's output in the base model. lrelu(c) is c where `sign` lets it pass, and \
neg_slope·c elsewhere. On the
tokens of the prompt g is the sum over both completions, so a prompt is shared within a pair and \
never between pairs.
A pair whose reference states are equal there has no v̂, so its c_t is 0.
original differs in this: it always uses sign = pos. A descent step moves against g, so this \
passes what leads towards the
rejected completion and scales down the rest: the loss rises.
The map is not linear: what the loss falls by is not what its gradient says, and a finite \
difference will not agree.",
    example(sign = "neg", dpo.beta = 0.3),
)]
pub struct ProjBp {
    /// Who decides which coefficients pass: `sign`, or `original`, which ignores `sign` and passes
    /// those above 0.
    pub variant: Variant,
    /// β: share of the gradient across the direction that stays, 0 or more.
    #[default(0.2)]
    pub beta: f64,
    /// Which coefficients along the direction pass. `original` ignores this.
    pub sign: Sign,
    /// What the others are scaled by, 0 to 1.
    #[default(0.01)]
    pub neg_slope: f64,
    /// κ: first scales a pair's gradient down where its mean over tokens is longer than κ
    /// preference vectors; none = not at all.
    #[default(Some(0.6))]
    pub mag_clip: Option<f64>,
    /// Gives every token's gradient the length back that it had before the projection.
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
    /// Returns the coefficients that pass under this variant.
    fn passes(&self) -> Sign {
        match self.variant {
            Variant::Default => self.sign,
            Variant::Original => Sign::Pos,
        }
    }
}

/// The loss, and what is done to its gradients.
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
        let (v, limit) =
            (unit(&at.direction), length(&at.direction) * config.mag_clip.unwrap_or(f64::INFINITY));
        Ok(Box::new(move |grad| {
            // Of the pair's own loss, in the directions' precision: [n out].
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
                config.passes().clip(&c, config.neg_slope) * &v + (&g - &c * &v) * config.beta;
            if config.keep_norm {
                projected = unit(&projected) * length(&g);
            }
            Ok((projected * at.weight).to_kind(grad.kind()))
        }))
    }
}
