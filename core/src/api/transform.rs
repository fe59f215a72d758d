//! Transforms: a map of the activations at a tap into the space where a loss compares them.

use tch::Tensor;

use super::{Init, ModelInfo, Parameter, Plugin, Site};
use crate::error::Result;

/// What stands around the states of m tokens that a map is given. Both are absent where a map that
/// does not read them is given states that were pooled before.
#[derive(Debug, Default)]
pub struct Around {
    /// The states of the same tokens at the run's tap before this one `[m h]`, where there is one
    /// of the same width.
    pub previous: Option<Tensor>,
    /// The row, 0 to m − 1, of the last token of each token's sequence `[m]`, int64.
    pub last: Option<Tensor>,
}

/// A map T: R^h → R^h', applied per token.
pub trait Transform: Send {
    /// T of each row: `[… h]` → `[… h']`.
    ///
    /// # Errors
    /// Where the width does not fit, or something around that the map reads is absent.
    fn forward(&self, h: &Tensor, around: &Around) -> Result<Tensor>;

    /// What of it is trained; empty for a frozen map.
    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    /// Whether T(a·x + b·y) = a·T(x) + b·T(y), whatever stands around. Then pooling may come before
    /// T, and the reference is kept pooled.
    fn linear(&self) -> bool;

    /// Whether T keeps lengths and angles, which the conformance tests hold it to.
    fn orthogonal(&self) -> bool;
}

/// What a [`Transform`] is made for.
#[derive(Debug)]
pub struct TransformCx<'a> {
    /// The shape of the model.
    pub model: &'a ModelInfo,
    /// Where it reads.
    pub site: &'a Site,
    /// h.
    pub width: i64,
    /// The model's embedding matrix `[vocab hidden]`.
    pub embedding: &'a Tensor,
    /// The matrix of the model's output head `[vocab hidden]`: the embedding matrix itself where
    /// they are tied.
    pub unembedding: &'a Tensor,
}

/// A configuration that makes a [`Transform`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how it is built",
    label = "write `impl TransformPlugin for {Self}`"
)]
pub trait TransformPlugin: Plugin {
    /// Makes the transform of one tap.
    ///
    /// # Errors
    /// A value out of range for this width.
    fn build(self, cx: &TransformCx<'_>, init: &mut Init) -> Result<Box<dyn Transform>>;
}
