//! Keeps the coordinates whose contribution to the output head changes between taps.

use reprpo_plugin::prelude::*;

use super::row_space::{RowSpace, needs_hidden_width};

/// Singular values of the head below this fraction of the largest one are treated as 0.
const RANK_TOLERANCE: f64 = 1e-6;

/// Keeps the coordinates that change between taps, and sets the others to 0.
#[transform(
    name = "suppressed",
    summary = "the coordinates of the residual stream whose contribution to the head changes \
        between taps; frozen",
    reference = "wassname, repr-preference-optimization (SupressedHS transform); the idea of \
        suppression neurons: Gurnee et al. 2024",
    explain = "\
T(h_k) = m ⊙ h_k    m = [Δ > ε]    Δ = pinv(W)(W h_k − W h_{k−1}) at the last token of the sequence

W [vocab hidden] is the output head, and h_{k−1} is the state of the same token at the previous
tap. Each sequence has one mask, which is used at all its tokens and has no gradient. pinv(W)·W is
computed once as an h×h projection; it is the identity if W has full rank.

The first tap has no previous one, so its states stay unchanged: choose at least two layers. T is
not linear, so pooling is done after it, and the reference is computed at every step. Nothing is
trained. The tap must read the residual stream.",
    example(keep = "falling")
)]
pub struct Suppressed {
    /// ε: minimum change of a coordinate between taps, in the same units as the states; at least 0.
    #[default(0.1)]
    pub threshold: f64,
    /// Which coordinates to keep, by the direction of their change between the taps.
    pub keep: Keep,
}

/// Directions in which a coordinate can change between the previous tap and the current one.
#[choice]
pub enum Keep {
    /// Δ > ε, as in the original code.
    #[default]
    Rising,
    /// Δ < −ε, as the name of the transform suggests.
    Falling,
}

impl TransformPlugin for Suppressed {
    fn build(self, cx: &TransformCx<'_>, _: &mut Init) -> Result<Box<dyn Transform>> {
        if !(self.threshold >= 0.0 && self.threshold.is_finite()) {
            return Err(Error::new(format!(
                "`transform.threshold` must be at least 0, got {}",
                self.threshold
            )));
        }
        if !matches!(cx.site, Site::Residual(_) | Site::Block(_)) {
            return Err(Error::new(format!(
                "the transform `{}` reads the residual stream, but the tap reads `{}`",
                Suppressed::NAME,
                cx.site
            ))
            .hint("use `--tap hs`"));
        }
        needs_hidden_width(Suppressed::NAME, cx)?;
        let RowSpace { values, directions } = RowSpace::of(&[cx.unembedding])?;
        let rank = values
            .f_gt_tensor(&(values.f_max()? * RANK_TOLERANCE))?
            .f_sum(Kind::Int64)?
            .f_int64_value(&[])?;
        let kind = if cx.embedding.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let row_space = if rank == cx.width {
            None
        } else {
            let basis = directions.f_narrow(1, 0, rank)?;
            Some(basis.f_matmul(&basis.tr())?.f_to_kind(kind)?)
        };
        Ok(Box::new(SuppressedTransform { config: self, row_space }))
    }
}

/// The transform of one tap.
struct SuppressedTransform {
    config: Suppressed,
    /// pinv(W)·W, the projection `[h h]` onto the row space of the output head W; `None` if W has
    /// full rank.
    row_space: Option<Tensor>,
}

impl SuppressedTransform {
    /// Returns the mask m of b sequences, `[b h]`. The mask is 1 for kept coordinates and 0 for the
    /// others. `last` contains the row index of each sequence's last token.
    fn mask(&self, h: &Tensor, previous: &Tensor, last: &Tensor) -> Result<Tensor> {
        let _guard = reprpo_plugin::tch::no_grad_guard();
        let row = |t: &Tensor| t.f_index_select(0, last);
        let mut moved = row(h)?.f_sub(&row(previous)?)?;
        if let Some(row_space) = &self.row_space {
            moved = moved.f_matmul(&row_space.f_to_kind(moved.kind())?)?;
        }
        let kept = match self.config.keep {
            Keep::Rising => moved.f_gt(self.config.threshold)?,
            Keep::Falling => moved.f_lt(-self.config.threshold)?,
        };
        Ok(kept.f_to_kind(h.kind())?)
    }
}

impl Transform for SuppressedTransform {
    fn forward(&self, h: &Tensor, around: &Around) -> Result<Tensor> {
        let last = around.last.as_ref().ok_or_else(|| {
            Error::internal("`suppressed` needs the states of individual tokens, got pooled states")
        })?;
        let Some(previous) = &around.previous else { return Ok(h.shallow_clone()) };
        // Compute one mask per sequence. The tokens of a sequence are consecutive rows, and `last`
        // has the same value for all of them.
        let (rows, sequence, _) = last.f_unique_consecutive(true, false, 0)?;
        Ok(h.f_mul(&self.mask(h, previous, &rows)?.f_index_select(0, &sequence)?)?)
    }

    fn linear(&self) -> bool {
        false
    }

    fn orthogonal(&self) -> bool {
        false
    }
}
