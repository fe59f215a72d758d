//! The second half of a block: each token on its own.

use tch::Tensor;

use super::activation::Activation;
use super::decoder::View;
use super::linear::Linear;
use super::module::Module;
use super::pass::Pass;
use super::weights::Weights;
use crate::error::Result;

/// down(act(gate(x)) ⊙ up(x)): Shazeer 2020 (GLU variants).
#[derive(Debug)]
pub struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl GatedMlp {
    /// That of `at.gate_proj` and so on, between widths `hidden` and `inner`.
    ///
    /// # Errors
    /// Where a tensor is missing or of another shape.
    pub fn new(weights: &mut Weights, at: &str, [hidden, inner]: [i64; 2], bias: bool, activation: Activation) -> Result<Self> {
        let mut linear = |name: &str, inputs, outputs| weights.linear(&format!("{at}.{name}"), inputs, outputs, bias);
        Ok(Self {
            gate_proj: linear("gate_proj", hidden, inner)?,
            up_proj: linear("up_proj", hidden, inner)?,
            down_proj: linear("down_proj", inner, hidden)?,
            activation,
        })
    }
}

impl Module for GatedMlp {
    fn forward(&self, x: &Tensor, _: &View, pass: &mut Pass<'_>) -> Result<Tensor> {
        let gate = self.activation.forward(&pass.linear(&self.gate_proj, x)?)?;
        let up = pass.linear(&self.up_proj, x)?;
        pass.linear(&self.down_proj, &gate.f_mul(&up)?)
    }

    fn linears(&self) -> Vec<&Linear> {
        vec![&self.gate_proj, &self.up_proj, &self.down_proj]
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        vec![&mut self.gate_proj, &mut self.up_proj, &mut self.down_proj]
    }
}

/// The same with gate and up in one module, the gate's rows first.
#[derive(Debug)]
pub struct FusedGatedMlp {
    gate_up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl FusedGatedMlp {
    /// That of `at.gate_up_proj` and `at.down_proj`, between widths `hidden` and `inner`.
    ///
    /// # Errors
    /// Where a tensor is missing or of another shape.
    pub fn new(weights: &mut Weights, at: &str, [hidden, inner]: [i64; 2], activation: Activation) -> Result<Self> {
        let gate_up_proj = weights.linear(&format!("{at}.gate_up_proj"), hidden, 2 * inner, false)?.fused(1, &[("gate_proj", inner), ("up_proj", inner)]);
        Ok(Self { gate_up_proj, down_proj: weights.linear(&format!("{at}.down_proj"), inner, hidden, false)?, activation })
    }
}

impl Module for FusedGatedMlp {
    fn forward(&self, x: &Tensor, _: &View, pass: &mut Pass<'_>) -> Result<Tensor> {
        let [gate, up] = self.gate_up_proj.split(&pass.linear(&self.gate_up_proj, x)?)?;
        let inner = self.activation.forward(&gate)?.f_mul(&up)?;
        pass.linear(&self.down_proj, &inner.f_flatten(1, 2)?)
    }

    fn linears(&self) -> Vec<&Linear> {
        vec![&self.gate_up_proj, &self.down_proj]
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        vec![&mut self.gate_up_proj, &mut self.down_proj]
    }
}

/// out(act(in(x))): Vaswani et al. 2017 §3.3.
#[derive(Debug)]
pub struct Mlp {
    /// To the inner width.
    pub inward: Linear,
    /// Back from it.
    pub outward: Linear,
    /// Between the two.
    pub activation: Activation,
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor, _: &View, pass: &mut Pass<'_>) -> Result<Tensor> {
        let inner = self.activation.forward(&pass.linear(&self.inward, x)?)?;
        pass.linear(&self.outward, &inner)
    }

    fn linears(&self) -> Vec<&Linear> {
        vec![&self.inward, &self.outward]
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        vec![&mut self.inward, &mut self.outward]
    }
}
