//! A full orthogonal matrix.

use reprpo_plugin::prelude::*;

use crate::reflections::Reflections;

/// A full orthogonal matrix.
#[transform(
    name = "ortho",
    summary = "a trainable orthogonal matrix, initially random",
    reference = "Lezcano-Casado and Martínez-Rubio 2019 (exp, cayley); Mhammedi et al. 2017 \
        (householder); wassname, repr-preference-optimization (the use)",
    explain = "\
T(x) = xQ
householder: Q = H₀H₁⋯H_{h−1} along the columns of tril(V)
cayley:      Q = (I + A)(I − A)⁻¹    matrix_exp: Q = exp(A)    A = stril(V) − stril(V)ᵀ

V [h h] is trained. It starts normal, with standard deviation 1 for householder and 1/√h
otherwise. Q keeps lengths and angles, so a loss cannot fall because T shrinks the states. A loss
that only depends on lengths and angles does not change with T: this transform matters for losses
that compare single coordinates. It trains h² numbers per tap; hra trains r·h.",
    example(map = "cayley")
)]
pub struct Ortho {
    /// Map from an unconstrained square matrix to an orthogonal one.
    pub map: Map,
}

/// Maps from the trained square matrix V to the orthogonal matrix Q.
#[choice]
pub enum Map {
    /// The product of Householder reflections, one along each column of tril(V).
    #[default]
    Householder,
    /// (I + A)(I − A)⁻¹ with the skew-symmetric A = stril(V) − stril(V)ᵀ.
    Cayley,
    /// exp(A) with the same A.
    MatrixExp,
}

impl TransformPlugin for Ortho {
    fn build(self, cx: &TransformCx<'_>, init: &mut Init) -> Result<Box<dyn Transform>> {
        let h = cx.width;
        let std = if self.map == Map::Householder { 1.0 } else { 1.0 / (h as f64).sqrt() };
        Ok(Box::new(OrthoTransform { map: self.map, weight: init.normal("weight", &[h, h], std) }))
    }
}

/// The transform of one tap.
struct OrthoTransform {
    map: Map,
    /// Parameter V `[h h]`.
    weight: Tensor,
}

impl OrthoTransform {
    /// Returns A `[h h]`.
    fn skew(&self) -> Tensor {
        let lower = self.weight.tril(-1);
        &lower - lower.tr()
    }
}

impl Transform for OrthoTransform {
    fn forward(&self, h: &Tensor, _: &Around) -> Result<Tensor> {
        let x = h.to_kind(self.weight.kind());
        Ok(match self.map {
            Map::Householder => Reflections::along(&self.weight.tril(0)).forward(&x),
            Map::Cayley => {
                let a = self.skew();
                let rows = x.f_reshape([-1, a.size()[0]])?;
                // The factors of Q commute, so y = xQ solves y(I − A) = x(I + A). Solving for y
                // avoids computing the inverse.
                let system = Tensor::eye(a.size()[0], (a.kind(), a.device())) - &a;
                Tensor::f_linalg_solve(&system, &(&rows + rows.f_matmul(&a)?), false)?
                    .f_reshape(x.size())?
            }
            Map::MatrixExp => x.f_matmul(&self.skew().f_linalg_matrix_exp()?)?,
        })
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("weight", &self.weight)]
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        true
    }
}
