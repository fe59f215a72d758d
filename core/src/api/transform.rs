//! Transforms: maps from the activations at a tap to the space in which a loss compares them.

use tch::Tensor;

use super::{Init, ModelInfo, Parameter, Plugin, Site};
use crate::error::Result;

/// Context that a transform can read in addition to the states of m tokens. For pooled states, all
/// fields are `None`. A transform that reads a field is never applied to pooled states.
#[derive(Debug, Default)]
pub struct Around {
    /// States of the same tokens at the previous tap, `[m h]`. `None` at the first tap, or if the
    /// previous tap has a different width.
    pub previous: Option<Tensor>,
    /// For each token, the row index of the last token in the same sequence, `[m]`, int64.
    pub last: Option<Tensor>,
}

/// A map T: R^h → R^h' that is applied to the state of each token.
pub trait Transform: Send {
    /// Applies T to each row: `[… h]` → `[… h']`.
    ///
    /// # Errors
    /// Fails if the width is not h, or if the transform reads a field of `around` that is `None`.
    fn forward(&self, h: &Tensor, around: &Around) -> Result<Tensor>;

    /// The trainable parameters; empty if the transform is fixed.
    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    /// True if T(a·x + b·y) = a·T(x) + b·T(y), whatever `around` contains. The engine then pools
    /// states before it applies T, and only caches the pooled states of the reference.
    fn linear(&self) -> bool;

    /// True if T preserves lengths and angles. The conformance tests verify this.
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
    /// The model's embedding matrix, `[vocab hidden]`.
    pub embedding: &'a Tensor,
    /// The matrix of the model's output head, `[vocab hidden]`. In models with tied embeddings,
    /// this is the embedding matrix.
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
