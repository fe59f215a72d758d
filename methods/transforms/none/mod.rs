//! The identity.

use reprpo_plugin::prelude::*;

/// The identity.
#[transform(
    name = "none",
    summary = "no transform: losses compare the activations themselves",
    reference = "this project",
    explain = "\
T(x) = x

Nothing is trained."
)]
pub struct Identity {}

impl TransformPlugin for Identity {
    fn build(self, _: &TransformCx<'_>, _: &mut Init) -> Result<Box<dyn Transform>> {
        Ok(Box::new(self))
    }
}

impl Transform for Identity {
    fn forward(&self, h: &Tensor, _: &Around) -> Result<Tensor> {
        Ok(h.shallow_clone())
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        true
    }
}
