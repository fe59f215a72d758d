//! What blocks are made of.

use tch::Tensor;

use super::decoder::View;
use super::linear::Linear;
use super::norm::Norm;
use super::pass::Pass;
use crate::error::Result;

/// A part of the network that maps the residual stream, or what a norm made of it, to the same width.
pub trait Module: std::fmt::Debug + Send {
    /// y `[n hidden]` of x `[n hidden]`.
    ///
    /// # Errors
    /// What libtorch or an adapter says.
    fn forward(&self, x: &Tensor, view: &View, pass: &mut Pass<'_>) -> Result<Tensor>;

    /// Its linear modules, in the order in which they run.
    fn linears(&self) -> Vec<&Linear>;

    /// The same, to exchange their weights.
    fn linears_mut(&mut self) -> Vec<&mut Linear>;
}

/// The block of Llama and most of what came after it: each half reads the stream through a norm and adds to it.
#[derive(Debug)]
pub struct PreNorm<N, A, M> {
    /// Before the attention.
    pub input_layernorm: N,
    /// The attention.
    pub attention: A,
    /// Before the MLP.
    pub post_attention_layernorm: N,
    /// The MLP.
    pub mlp: M,
}

impl<N: Norm, A: Module, M: Module> Module for PreNorm<N, A, M> {
    fn forward(&self, h: &Tensor, view: &View, pass: &mut Pass<'_>) -> Result<Tensor> {
        let h = h.f_add(&self.attention.forward(&self.input_layernorm.forward(h)?, view, pass)?)?;
        let mlp = self.mlp.forward(&self.post_attention_layernorm.forward(&h)?, view, pass)?;
        Ok(h.f_add(&mlp)?)
    }

    fn linears(&self) -> Vec<&Linear> {
        [self.attention.linears(), self.mlp.linears()].concat()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.attention.linears_mut().into_iter().chain(self.mlp.linears_mut()).collect()
    }
}
