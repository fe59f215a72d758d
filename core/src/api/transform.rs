//! Transforms: maps from the activations at a tap to the space in which a loss compares them.

use tch::Tensor;

use super::{Init, ModelInfo, Parameter, Plugin, Site};
use crate::error::Result;

/// The context of the states of m tokens that a transform receives. Both fields are `None` if the
/// states are pooled, which only happens to transforms that do not read the context.
#[derive(Debug, Default)]
pub struct Around {
    /// States of the same tokens at the run's previous tap, `[m h]`. `None` if there is no previous
    /// tap, or if it has another width.
    pub previous: Option<Tensor>,
    /// For each token, the row (0 to m − 1) of the last token of its sequence, `[m]`, int64.
    pub last: Option<Tensor>,
}

/// A map T: R^h → R^h' that is applied to the state of each token.
pub trait Transform: Send {
    /// Applies T to each row: `[… h]` → `[… h']`.
    ///
    /// # Errors
    /// Fails if the width is not h, or if `around` lacks a value that the transform reads.
    fn forward(&self, h: &Tensor, around: &Around) -> Result<Tensor>;

    /// The trainable parameters; empty if the transform is fixed.
    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    /// True if T(a·x + b·y) = a·T(x) + b·T(y) for every context. The engine then pools states
    /// before it applies T, and keeps the pooled states of the reference.
    fn linear(&self) -> bool;

    /// True if T preserves lengths and angles. The conformance tests check it.
    fn orthogonal(&self) -> bool;
}

/// The model and the site that a [`Transform`] is built for.
#[derive(Debug)]
pub struct TransformCx<'a> {
    /// Architecture and dimensions of the model.
    pub model: &'a ModelInfo,
    /// The site whose states the transform receives.
    pub site: &'a Site,
    /// Width h of the states at the site.
    pub width: i64,
    /// The model's embedding matrix `[vocab hidden]`.
    pub embedding: &'a Tensor,
    /// The matrix of the model's output head `[vocab hidden]`. It is the embedding matrix itself if
    /// the two are tied.
    pub unembedding: &'a Tensor,
}

/// A configuration that builds a [`Transform`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not implement `TransformPlugin`",
    label = "write `impl TransformPlugin for {Self}`"
)]
pub trait TransformPlugin: Plugin {
    /// Creates the transform of one tap.
    ///
    /// # Errors
    /// Fails if a value is out of range for this width.
    fn build(self, cx: &TransformCx<'_>, init: &mut Init) -> Result<Box<dyn Transform>>;
}
