//! The description of a model that plugins receive: module names, sites and widths.

use std::fmt;
use std::ops::Range;

use tch::Tensor;

use super::Rows;
use crate::error::{Error, Result};

/// A point in the network where activations can be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The residual stream, numbered as `hidden_states[k]` in transformers: 0 is the embeddings,
    /// and the last one is taken after the final norm.
    Residual(usize),
    /// The output of block k, counted from 0, before any final norm.
    Block(usize),
    /// The input of the module with this name: a linear module, or a part of a fused one.
    Input(String),
    /// The output of the module with this name: a linear module, or a part of a fused one.
    Output(String),
    /// A range of columns of another site, such as the input that `o_proj` receives from one
    /// attention head. Created by [`Site::columns`].
    Columns {
        /// The site to select columns from. Must not be `Columns`.
        of: Box<Site>,
        /// The first column.
        start: i64,
        /// The end of the range, exclusive.
        end: i64,
    },
}

impl Site {
    /// Selects the columns `range` of this site. If the site is already a range of columns, the new
    /// range is relative to that range.
    #[must_use]
    pub fn columns(self, range: Range<i64>) -> Self {
        match self {
            Site::Columns { of, start, .. } => {
                Site::Columns { of, start: start + range.start, end: start + range.end }
            }
            whole => Site::Columns { of: Box::new(whole), start: range.start, end: range.end },
        }
    }

    /// Returns the site without its column selection.
    pub fn whole(&self) -> &Self {
        match self {
            Site::Columns { of, .. } => of,
            whole => whole,
        }
    }

    /// Selects the columns of this site from `state`, a state of the [`whole`](Self::whole) site.
    /// The result is a view of shape `[n width]`.
    ///
    /// # Errors
    /// Fails if `state` has too few columns.
    pub fn columns_of(&self, state: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Site::Columns { start, end, .. } => state.f_narrow(1, *start, end - start)?,
            _ => state.shallow_clone(),
        })
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Residual(k) => write!(f, "hidden_states.{k}"),
            Site::Block(k) => write!(f, "blocks.{k}"),
            Site::Input(name) => write!(f, "in.{name}"),
            Site::Output(name) => write!(f, "out.{name}"),
            Site::Columns { of, start, end } => write!(f, "{of}[{start}..{end}]"),
        }
    }
}

/// A linear module of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearInfo {
    /// Name in PyTorch's state dict without `.weight`, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Index of the transformer block that contains the module; `None` for the output head.
    pub layer: Option<usize>,
    /// Width of the input.
    pub inputs: i64,
    /// Width of the output.
    pub outputs: i64,
}

/// A part of a fused linear module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartInfo {
    /// The part, described as if it were a separate module. Its name is the name of the fused
    /// module followed by Llama's name for the part, e.g.
    /// `model.layers.0.self_attn.qkv_proj.q_proj`.
    pub linear: LinearInfo,
    /// Name of the fused module.
    pub holder: String,
    /// Rows of the fused module's weights that form the part.
    pub rows: Rows,
}

/// The architecture and the dimensions of a model.
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
    /// Number of rows in the embedding matrix.
    pub vocab: i64,
    /// The linear modules of the blocks, in the order in which they run.
    pub linears: Vec<LinearInfo>,
    /// The parts of all fused modules, ordered by module and row.
    pub parts: Vec<PartInfo>,
}

impl ModelInfo {
    /// Width of the activations at `site`.
    ///
    /// # Errors
    /// Fails if the model has no such site.
    pub fn width(&self, site: &Site) -> Result<i64> {
        match site {
            Site::Residual(k) if *k <= self.layers => Ok(self.hidden),
            Site::Residual(k) => Err(Error::new(format!("the model has no hidden state {k}"))
                .hint(format!("valid: 0 to {} (the last is after the final norm)", self.layers))),
            Site::Block(k) if *k < self.layers => Ok(self.hidden),
            Site::Block(k) => Err(Error::new(format!("the model has no block {k}"))
                .hint(format!("valid: 0 to {}", self.layers - 1))),
            Site::Input(name) => Ok(self.linear(name)?.inputs),
            Site::Output(name) => Ok(self.linear(name)?.outputs),
            Site::Columns { of, start, end } => {
                let width = self.width(of)?;
                if *start < 0 || end <= start || *end > width {
                    return Err(Error::new(format!(
                        "columns {start}..{end} of `{of}` are out of range"
                    ))
                    .hint(format!("valid: a range within 0..{width}")));
                }
                Ok(end - start)
            }
        }
    }

    /// Index of the last block that is needed to compute `site`. `None` if the embeddings are
    /// enough.
    ///
    /// # Errors
    /// Fails if the model has no such site.
    pub fn block(&self, site: &Site) -> Result<Option<usize>> {
        self.width(site)?;
        match site.whole() {
            Site::Residual(k) => Ok(k.checked_sub(1)),
            Site::Block(k) => Ok(Some(*k)),
            Site::Input(name) | Site::Output(name) => Ok(self.linear(name)?.layer),
            Site::Columns { .. } => {
                Err(Error::internal(format!("`{site}` is a column range of another column range")))
            }
        }
    }

    /// Looks up the linear module, or the part of a module, called `name`.
    ///
    /// # Errors
    /// Fails if the model has no such module.
    pub fn linear(&self, name: &str) -> Result<&LinearInfo> {
        let mut all = self.linears.iter().chain(self.parts.iter().map(|p| &p.linear));
        all.find(|l| l.name == name)
            .ok_or_else(|| Error::unknown("module", name, self.linears.iter().map(|l| &l.name)))
    }

    /// Looks up `name` among the parts of the fused modules.
    pub fn part(&self, name: &str) -> Option<&PartInfo> {
        self.parts.iter().find(|p| p.linear.name == name)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn model() -> ModelInfo {
        let o_proj = LinearInfo {
            name: "model.layers.0.self_attn.o_proj".to_owned(),
            layer: Some(0),
            inputs: 8,
            outputs: 6,
        };
        ModelInfo {
            architecture: "llama".to_owned(),
            layers: 1,
            hidden: 6,
            heads: 2,
            head_dim: 4,
            vocab: 8,
            linears: vec![o_proj],
            parts: Vec::new(),
        }
    }

    #[test]
    fn columns_of_a_site_have_a_name_and_a_width() {
        let (model, whole) = (model(), Site::Input("model.layers.0.self_attn.o_proj".to_owned()));
        let head = whole.clone().columns(4..8);
        assert_eq!(
            (head.to_string(), head.whole()),
            ("in.model.layers.0.self_attn.o_proj[4..8]".to_owned(), &whole)
        );
        assert_eq!((model.width(&head).unwrap(), model.block(&head).unwrap()), (4, Some(0)));
        assert_eq!(head.clone().columns(1..3), whole.clone().columns(5..7));
        let state = Tensor::arange(16, (Kind::Float, Device::Cpu)).reshape([2, 8]);
        assert_eq!(head.columns_of(&state).unwrap(), state.narrow(1, 4, 4));
        assert_eq!(whole.columns_of(&state).unwrap(), state);
        for range in [4..9, -1..2, 3..3] {
            let e = format!("{:?}", model.width(&whole.clone().columns(range)).unwrap_err());
            assert!(e.contains("within 0..8"), "{e}");
        }
        assert!(model.width(&Site::Residual(9).columns(0..1)).is_err());
    }
}
