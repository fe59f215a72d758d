//! What a plugin may know of the model: names, places and widths.

use std::fmt;

use super::PartInfo;
use crate::error::{Error, Result};

/// A place in the network where activations can be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The residual stream, `hidden_states[k]` as transformers counts: 0 = the embeddings, the last = after the final
    /// norm.
    Residual(usize),
    /// The output of block k, from 0, before any final norm.
    Block(usize),
    /// The input of the linear module, or part of one, of that name.
    Input(String),
    /// The output of the linear module, or part of one, of that name.
    Output(String),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Residual(k) => write!(f, "hidden_states.{k}"),
            Site::Block(k) => write!(f, "blocks.{k}"),
            Site::Input(name) => write!(f, "in.{name}"),
            Site::Output(name) => write!(f, "out.{name}"),
        }
    }
}

/// One linear module of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearInfo {
    /// Its name in PyTorch's state dict without `.weight`, as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The transformer block it belongs to; `None` for the output head.
    pub layer: Option<usize>,
    /// Width of its input.
    pub inputs: i64,
    /// Width of its output.
    pub outputs: i64,
}

/// The shape of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Hugging Face's `model_type`.
    pub architecture: String,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: i64,
    /// Number of attention heads.
    pub heads: i64,
    /// Width of one attention head.
    pub head_dim: i64,
    /// Number of rows of the embedding.
    pub vocab: i64,
    /// The linear modules of the blocks, in the order in which they run.
    pub linears: Vec<LinearInfo>,
    /// The parts of those that are fused, in the order of their modules and rows.
    pub parts: Vec<PartInfo>,
}

impl ModelInfo {
    /// Width of the activations at `site`.
    ///
    /// # Errors
    /// Where the model has no such place.
    pub fn width(&self, site: &Site) -> Result<i64> {
        match site {
            Site::Residual(k) if *k <= self.layers => Ok(self.hidden),
            Site::Residual(k) => {
                Err(Error::new(format!("there is no hidden state {k}")).hint(format!("valid: 0 to {} (the last is after the final norm)", self.layers)))
            }
            Site::Block(k) if *k < self.layers => Ok(self.hidden),
            Site::Block(k) => Err(Error::new(format!("there is no block {k}")).hint(format!("valid: 0 to {}", self.layers - 1))),
            Site::Input(name) => Ok(self.linear(name)?.inputs),
            Site::Output(name) => Ok(self.linear(name)?.outputs),
        }
    }

    /// The block that computes `site`: a pass has to run that one and those before it. `None`: the embeddings.
    ///
    /// # Errors
    /// Where the model has no such place.
    pub fn block(&self, site: &Site) -> Result<Option<usize>> {
        self.width(site)?;
        match site {
            Site::Residual(k) => Ok(k.checked_sub(1)),
            Site::Block(k) => Ok(Some(*k)),
            Site::Input(name) | Site::Output(name) => Ok(self.linear(name)?.layer),
        }
    }

    /// The linear module of that name, or the part of one.
    ///
    /// # Errors
    /// Where there is none.
    pub fn linear(&self, name: &str) -> Result<&LinearInfo> {
        let mut all = self.linears.iter().chain(self.parts.iter().map(|p| &p.linear));
        all.find(|l| l.name == name).ok_or_else(|| Error::unknown("module", name, self.linears.iter().map(|l| &l.name)))
    }

    /// The part of that name, where the name is one of a part.
    pub fn part(&self, name: &str) -> Option<&PartInfo> {
        self.parts.iter().find(|p| p.linear.name == name)
    }
}
