//! The MLP: the second half of a block. It processes each token separately.

use tch::Tensor;

use super::activation::Activation;
use super::block::BlockCx;
use super::linear::Linear;
use super::weights::Weights;
use crate::error::Result;
use crate::ffi::fused_gate;

/// A projection to the inner width, an activation, and a projection back to the residual stream.
#[derive(Debug)]
pub struct Mlp {
    /// One or two projections to the inner width.
    pub input: InputProjection,
    /// The projection back to the residual stream.
    pub output: Linear,
    /// The activation between `input` and `output`.
    pub activation: Activation,
}

/// The projections to the inner width.
#[derive(Debug)]
pub enum InputProjection {
    /// act(up(x)) (Vaswani et al. 2017 §3.3).
    Plain(Linear),
    /// act(gate(x)) ⊙ up(x) (Shazeer 2020, GLU variants).
    Gated {
        /// The projection that computes the gate.
        gate: Linear,
        /// The projection that computes the values to multiply by the gate.
        up: Linear,
    },
    /// Like `Gated`, but with both projections in one module. The rows of the gate come first.
    FusedGated(Linear),
}

impl Mlp {
    /// Builds Llama's MLP from the modules `gate_proj`, `up_proj` and `down_proj` in `weights`.
    /// `hidden` is the width of the residual stream, and `inner` is the inner width.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has the wrong shape.
    pub fn gated(
        weights: &Weights<'_>,
        [hidden, inner]: [i64; 2],
        bias: bool,
        activation: Activation,
    ) -> Result<Self> {
        let input = InputProjection::Gated {
            gate: weights.linear("gate_proj", hidden, inner, bias)?,
            up: weights.linear("up_proj", hidden, inner, bias)?,
        };
        Ok(Self { input, output: weights.linear("down_proj", inner, hidden, bias)?, activation })
    }

    /// Applies the MLP to each row of x. Input and output have the shape `[n hidden]`.
    ///
    /// # Errors
    /// Fails if an adapter fails, or if memory runs out.
    pub fn forward(&self, x: &Tensor, cx: &BlockCx<'_>) -> Result<Tensor> {
        let inner = match &self.input {
            InputProjection::Plain(up) => self.activation.forward(&cx.linear(up, x)?)?,
            InputProjection::Gated { gate, up } => {
                self.gated_values(&cx.linear(gate, x)?, &cx.linear(up, x)?)?
            }
            InputProjection::FusedGated(gate_up) => {
                let [gate, up] = gate_up.split(&cx.linear(gate_up, x)?)?;
                self.gated_values(&gate, &up)?.f_flatten(1, 2)?
            }
        };
        cx.linear(&self.output, &inner)
    }

    /// Computes act(gate) ⊙ up.
    fn gated_values(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let fused = match self.activation {
            Activation::Silu => fused_gate(gate, up)?,
            Activation::Gelu | Activation::GeluTanh | Activation::Relu => None,
        };
        match fused {
            Some(values) => Ok(values),
            None => Ok(self.activation.forward(gate)?.f_mul(up)?),
        }
    }

    /// Calls `visit` with each linear module, in execution order.
    pub fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        match &self.input {
            InputProjection::Plain(one) | InputProjection::FusedGated(one) => visit(one),
            InputProjection::Gated { gate, up } => [gate, up].into_iter().for_each(&mut *visit),
        }
        visit(&self.output);
    }
}
