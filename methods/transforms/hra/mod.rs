//! A product of r Householder reflections.

use reprpo_plugin::prelude::*;

use crate::reflections::{Reflections, equal_pairs};

/// A product of r Householder reflections.
#[transform(
    name = "hra",
    summary = "r trainable Householder reflections of the activations, initially the identity",
    reference = "Yuan et al. 2024 (HRA), eq. 4, applied to activations as in wassname, \
        repr-preference-optimization",
    explain = "\
T(x) = x·H₀H₁⋯H_{r−1} = x − (xU)S·Uᵀ    H_i = I − 2ûᵢûᵢᵀ    S⁻¹ = ½I + striu(UᵀU)

ûᵢ are the columns of hra_u [h r] at unit length. They start as equal pairs, whose reflections
cancel. T keeps lengths and angles, so a loss cannot fall because T shrinks the states. A loss
that only depends on lengths and angles does not change with T: this transform matters for losses
that compare single coordinates.",
    example(r = 16)
)]
pub struct Hra {
    /// r: number of reflections, even and at least 2.
    #[default(38)]
    pub r: u32,
}

impl TransformPlugin for Hra {
    fn build(self, cx: &TransformCx<'_>, init: &mut Init) -> Result<Box<dyn Transform>> {
        if self.r == 0 || self.r % 2 == 1 {
            return Err(Error::new(format!(
                "`transform.r` must be even and at least 2, got {}",
                self.r
            ))
            .hint("use an even number, so that the transform starts as the identity"));
        }
        Ok(Box::new(HraTransform { u: equal_pairs(init, "hra_u", cx.width, i64::from(self.r)) }))
    }
}

/// The transform of one tap.
struct HraTransform {
    /// Matrix `[h r]` whose columns are the directions of the reflections. A column can have any
    /// length except 0.
    u: Tensor,
}

impl Transform for HraTransform {
    fn forward(&self, h: &Tensor, _: &Around) -> Result<Tensor> {
        Ok(Reflections::along(&self.u).forward(&h.to_kind(self.u.kind())))
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("hra_u", &self.u)]
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        true
    }
}
