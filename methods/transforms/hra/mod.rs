//! A product of few Householder reflections.

use reprpo_plugin::prelude::*;

use crate::reflections::{Reflections, equal_pairs};

/// A product of r Householder reflections.
#[transform(
    name = "hra",
    summary = "r trainable Householder reflections of the activations, the identity at the start",
    reference = "Yuan et al. 2024 (HRA), eq. 4, on activations as in wassname, \
        repr-preference-optimization",
    explain = "\
T(x) = x·H₀H₁⋯H_{r−1} = x − (xU)S·Uᵀ    H_i = I − 2ûᵢûᵢᵀ    S⁻¹ = ½I + striu(UᵀU)

ûᵢ are the columns of hra_u [h r] at unit length. They start as equal pairs, whose reflections \
cancel. T keeps lengths and
angles, so no loss can fall by T shrinking what it compares. Nor does a loss of lengths and \
angles alone see T: it
matters where coordinates are compared one by one.",
    example(r = 16)
)]
pub struct Hra {
    /// r: number of reflections, even and 2 or more.
    #[default(38)]
    pub r: u32,
}

impl TransformPlugin for Hra {
    fn build(self, cx: &TransformCx<'_>, init: &mut Init) -> Result<Box<dyn Transform>> {
        if self.r == 0 || self.r % 2 == 1 {
            return Err(Error::new(format!(
                "`transform.r` is {}, but has to be even and 2 or more",
                self.r
            ))
            .hint("with equal pairs of reflections the transform starts as the identity"));
        }
        Ok(Box::new(HraTransform { u: equal_pairs(init, "hra_u", cx.width, i64::from(self.r)) }))
    }
}

/// The transform of one tap.
struct HraTransform {
    /// `[h r]`, columns of any length but 0.
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
