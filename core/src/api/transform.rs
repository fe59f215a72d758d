//! Transforms: a map of the activations at a tap into the space where a loss compares them.

use tch::Tensor;

use super::{Init, Parameter, Plugin, Site};
use crate::error::Result;

/// A map T: R^h → R^h', applied per token.
pub trait Transform: Send {
    /// T of each row: `[… h]` → `[… h']`.
    ///
    /// # Errors
    /// Where the width does not fit.
    fn forward(&self, h: &Tensor) -> Result<Tensor>;

    /// What of it is trained; empty for a frozen map.
    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    /// Whether T(a·x + b·y) = a·T(x) + b·T(y). Then pooling may come before T, and the reference is kept pooled.
    fn linear(&self) -> bool;

    /// Whether T keeps lengths and angles, which the conformance tests hold it to.
    fn orthogonal(&self) -> bool;
}

/// What a [`Transform`] is made for.
#[derive(Debug)]
pub struct TransformCx<'a> {
    /// Where it reads.
    pub site: &'a Site,
    /// h.
    pub width: i64,
}

/// How a [`Transform`] is made from its configuration.
pub trait TransformPlugin: Plugin {
    /// Makes the transform of one tap.
    ///
    /// # Errors
    /// A value out of range for this width.
    fn build(config: Self::Config, cx: &TransformCx<'_>, init: &mut Init) -> Result<Box<dyn Transform>>;
}
