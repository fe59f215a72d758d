//! The second half of a block, which treats each token by itself.

use tch::Tensor;

use super::activation::Activation;
use super::block::BlockCx;
use super::linear::Linear;
use super::weights::Weights;
use crate::error::Result;

/// The projections to the inner width and back, with an activation between them.
#[derive(Debug)]
pub struct Mlp {
    /// To the inner width.
    pub inward: Inward,
    /// Back from it.
    pub outward: Linear,
    /// Between the two.
    pub activation: Activation,
}

/// The projections to the inner width.
#[derive(Debug)]
pub enum Inward {
    /// act(up(x)): Vaswani et al. 2017 §3.3.
    Plain(Linear),
    /// act(gate(x)) ⊙ up(x): Shazeer 2020 (GLU variants).
    Gated {
        /// The gate.
        gate: Linear,
        /// The values that it scales.
        up: Linear,
    },
    /// The same with both in one module, the gate's rows first.
    FusedGated(Linear),
}

impl Mlp {
    /// Llama's, with `gate_proj`, `up_proj` and `down_proj` between the widths `hidden` and
    /// `inner`.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has another shape.
    pub fn gated(
        weights: &Weights<'_>,
        [hidden, inner]: [i64; 2],
        bias: bool,
        activation: Activation,
    ) -> Result<Self> {
        let inward = Inward::Gated {
            gate: weights.linear("gate_proj", hidden, inner, bias)?,
            up: weights.linear("up_proj", hidden, inner, bias)?,
        };
        Ok(Self { inward, outward: weights.linear("down_proj", inner, hidden, bias)?, activation })
    }

    /// y `[n hidden]` of x `[n hidden]`.
    ///
    /// # Errors
    /// Fails if an adapter does, or if memory runs out.
    pub fn forward(&self, x: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor> {
        let inner = match &self.inward {
            Inward::Plain(up) => self.activation.forward(&cx.linear(up, x)?)?,
            Inward::Gated { gate, up } => {
                let gate = self.activation.forward(&cx.linear(gate, x)?)?;
                gate.f_mul(&cx.linear(up, x)?)?
            }
            Inward::FusedGated(gate_up) => {
                let [gate, up] = gate_up.split(&cx.linear(gate_up, x)?)?;
                self.activation.forward(&gate)?.f_mul(&up)?.f_flatten(1, 2)?
            }
        };
        cx.linear(&self.outward, &inner)
    }

    /// Calls `visit` with each linear module, in the order in which they run.
    pub fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        match &self.inward {
            Inward::Plain(one) | Inward::FusedGated(one) => visit(one),
            Inward::Gated { gate, up } => [gate, up].into_iter().for_each(&mut *visit),
        }
        visit(&self.outward);
    }
}
