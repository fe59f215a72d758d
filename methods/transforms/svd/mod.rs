//! Removes the main directions of the embedding matrices from the states.

use reprpo_plugin::prelude::*;

use super::row_space::{RowSpace, needs_hidden_width};

/// Removes the main directions of the embedding matrices from the states.
#[transform(
    name = "svd",
    summary = "states without their projection on the main directions of the embedding matrices; \
        frozen",
    reference = "wassname, repr-preference-optimization (svd transform); there, soft weights by σ; \
        here, by a share of at most 1",
    explain = "\
T(x) = x − x·V diag(w) Vᵀ    W = U diag(σ) Vᵀ, the chosen matrix [vocab hidden], σ₁ ≥ σ₂ ≥ …

hard:     w = 1 for the first k directions (top = k, or a share of all), 0 for the others
soft = q: w = min(1, σ/τ), τ the q-quantile of σ

The remaining part is the one that the head reads least, or that the embeddings write least. V is
computed from the eigenvectors of WᵀW in float64. Nothing is trained. T is the same at every tap:
`--set train.share_transform=true` computes it once. States must have the width of the embeddings,
as those of the residual stream have. The original project reports that removing many directions
leaves little to train on.",
    example(top = 0.25)
)]
pub struct Svd {
    /// Matrix whose directions are removed.
    pub matrix: Matrix,
    /// Number of directions to remove, starting with the largest singular value. A value less than
    /// 1 is a fraction of all directions.
    #[default(0.5)]
    pub top: f64,
    /// Removes each direction in proportion to its singular value. Directions whose singular values
    /// reach this quantile (0 to 1) are removed completely. `none` uses the hard cut at `top`
    /// instead.
    pub soft: Option<f64>,
}

/// A model's matrices, each `[vocab hidden]`.
#[choice]
pub enum Matrix {
    /// The input embedding, which maps token ids to states.
    Embedding,
    /// The output head, which maps states to logits.
    #[default]
    Unembedding,
    /// Both matrices, stacked after scaling them to the same Frobenius norm.
    Both,
}

impl TransformPlugin for Svd {
    fn build(self, cx: &TransformCx<'_>, _: &mut Init) -> Result<Box<dyn Transform>> {
        needs_hidden_width(Svd::NAME, cx)?;
        let h = cx.width;
        let k = if self.top < 1.0 { (self.top * h as f64).round() } else { self.top };
        if !(self.top > 0.0
            && k >= 1.0
            && k < h as f64
            && (self.top < 1.0 || self.top.fract() == 0.0))
        {
            return Err(Error::new(format!(
                "`transform.top` must select at least one but not all of the {h} directions, \
                    got {}",
                self.top
            ))
            .hint(format!(
                "valid: a fraction greater than 0 and less than 1, or a whole number from 1 to {}",
                h - 1
            )));
        }
        if let Some(q) = self.soft.filter(|q| !(0.0..=1.0).contains(q)) {
            return Err(Error::new(format!(
                "`transform.soft` must be a quantile from 0 to 1 or `none`, got {q}"
            )));
        }
        let matrices: &[&Tensor] = match self.matrix {
            Matrix::Embedding => &[cx.embedding],
            Matrix::Unembedding => &[cx.unembedding],
            Matrix::Both => &[cx.embedding, cx.unembedding],
        };
        let RowSpace { values, directions } = RowSpace::of(matrices)?;
        let weights = match self.soft {
            // 0/0 is replaced by 0, so that directions with a singular value of 0 are not removed.
            Some(q) => (&values / values.f_quantile_scalar(q, 0, false, "linear")?)
                .nan_to_num(0.0, 1.0, 0.0)
                .clamp_max(1.0),
            None => Tensor::arange(h, (Kind::Double, values.device())).lt(k).to_kind(Kind::Double),
        };
        let outside = Tensor::eye(h, (Kind::Double, values.device()))
            - (&directions * weights).f_matmul(&directions.tr())?;
        let kind = if cx.embedding.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        Ok(Box::new(SvdTransform { outside: outside.f_to_kind(kind)? }))
    }
}

/// The transform of one tap.
struct SvdTransform {
    /// I − V diag(w) Vᵀ `[h h]`.
    outside: Tensor,
}

impl Transform for SvdTransform {
    fn forward(&self, h: &Tensor, _: &Around) -> Result<Tensor> {
        Ok(h.f_to_kind(self.outside.kind())?.f_matmul(&self.outside)?)
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        false
    }
}
