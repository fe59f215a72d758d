//! The right-singular directions of a model's embedding matrices, computed from WᵀW.

use reprpo_plugin::prelude::*;

/// Number of rows of W that are converted to float64 at a time, to limit memory use with large
/// vocabularies.
const ROWS: i64 = 8192;

/// The singular values and right-singular directions of a matrix of shape `[vocab h]`, in float64.
pub struct RowSpace {
    /// σ `[h]`, largest first.
    pub values: Tensor,
    /// V, of shape `[h h]`. Its columns are the directions, in the order of `values`.
    pub directions: Tensor,
}

impl RowSpace {
    /// Decomposes W, the stack of all `matrices`. Each matrix has the shape `[vocab h]`. Two or
    /// more matrices are first scaled to a Frobenius norm of 1 each.
    ///
    /// WᵀW = V σ² Vᵀ is only h×h. U in the singular value decomposition of W has vocab·h entries.
    /// In float64, the error of the singular values is at most 1e-8 times the largest one. This is
    /// far below the precision of the weights.
    ///
    /// # Errors
    /// Fails if the device runs out of memory, or if the weights are not finite.
    pub fn of(matrices: &[&Tensor]) -> Result<Self> {
        let _guard = reprpo_plugin::tch::no_grad_guard();
        let mut total: Option<Tensor> = None;
        for matrix in matrices {
            let mut gram = gram(matrix)?;
            if matrices.len() > 1 {
                gram = &gram / gram.f_trace()?;
            }
            total = Some(match total {
                Some(sum) => sum.f_add(&gram)?,
                None => gram,
            });
        }
        let total = total.ok_or_else(|| {
            Error::internal("at least one matrix is needed to compute directions")
        })?;
        let (squares, directions) = total.f_linalg_eigh("L")?;
        // libtorch sorts in ascending order. Rounding can make the smallest value negative.
        Ok(Self {
            values: squares.f_flip([0])?.f_clamp_min(0.0)?.f_sqrt()?,
            directions: directions.f_flip([1])?,
        })
    }
}

/// Returns WᵀW in float64, as a tensor of shape `[h h]`.
fn gram(matrix: &Tensor) -> Result<Tensor> {
    let (rows, h) = matrix.size2()?;
    let mut sum = Tensor::f_zeros([h, h], (Kind::Double, matrix.device()))?;
    for start in (0..rows).step_by(ROWS as usize) {
        let part = matrix.f_narrow(0, start, ROWS.min(rows - start))?.f_to_kind(Kind::Double)?;
        sum = sum.f_addmm(&part.f_tr()?, &part)?;
    }
    Ok(sum)
}

/// Checks that the states of a tap have the width of the embeddings.
///
/// # Errors
/// Fails if the states have a different width.
pub fn needs_hidden_width(transform: &str, cx: &TransformCx<'_>) -> Result<()> {
    let hidden = cx.embedding.size()[1];
    if cx.width == hidden {
        return Ok(());
    }
    Err(Error::new(format!(
        "the transform `{transform}` needs states of the width of the \
        embeddings, {hidden}, but those at `{}` have {}",
        cx.site, cx.width
    ))
    .hint("use a tap of the residual stream: `--tap hs`"))
}
