//! The coordinates that change from one tap to the next, as the output head sees them.

use reprpo_plugin::prelude::*;

use super::row_space::{RowSpace, needs_hidden_width};

/// Singular values of the head below this share of the largest count as 0.
const RANK_TOLERANCE: f64 = 1e-6;

/// States where a coordinate moves between taps, 0 elsewhere.
#[transform(
    name = "suppressed",
    summary = "the coordinates of the residual stream that move between successive taps, as the \
        head sees them; frozen",
    reference = "wassname, repr-preference-optimization (SupressedHS transform); the idea of \
        suppression neurons: Gurnee et al. 2024",
    explain = "\
T(h_k) = m ⊙ h_k    m = [Δ > ε]    Δ = pinv(W)(W h_k − W h_{k−1}) at the last token of the sequence

W [vocab hidden] is the output head, h_{k−1} the state of the same token at the tap before. One \
mask a sequence, used at all its
tokens; no gradient flows through it. pinv(W)·W is worked out as one h×h projection, and is the \
identity where W has full rank.

The first tap has none before it: its states go through unchanged. So choose two layers or more. \
T is not linear: pooling comes
after it, and the reference is computed at every step. Nothing is trained. States have to be \
those of the residual stream.",
    example(keep = "falling")
)]
pub struct Suppressed {
    /// ε: how far a coordinate has to move from one tap to the next, in the unit of the states, 0
    /// or more.
    #[default(0.1)]
    pub threshold: f64,
    /// Which way a coordinate has to move to be kept.
    pub keep: Keep,
}

/// Ways in which a coordinate moves from the tap before to this one.
#[choice]
pub enum Keep {
    /// Δ > ε, which is what the original computes.
    #[default]
    Rising,
    /// Δ < −ε, which is what its name says.
    Falling,
}

impl TransformPlugin for Suppressed {
    fn build(self, cx: &TransformCx<'_>, _: &mut Init) -> Result<Box<dyn Transform>> {
        if !(self.threshold >= 0.0 && self.threshold.is_finite()) {
            return Err(Error::new(format!(
                "`transform.threshold` is {}, but has to be 0 or more",
                self.threshold
            )));
        }
        if !matches!(cx.site, Site::Residual(_) | Site::Block(_)) {
            return Err(Error::new(format!(
                "the transform `{}` reads the residual stream, but the tap reads `{}`",
                Suppressed::NAME,
                cx.site
            ))
            .hint("take the tap `hs`: `--tap hs`"));
        }
        needs_hidden_width(Suppressed::NAME, cx)?;
        let RowSpace { values, directions } = RowSpace::of(&[cx.unembedding])?;
        let rank = values
            .f_gt_tensor(&(values.f_max()? * RANK_TOLERANCE))?
            .f_sum(Kind::Int64)?
            .f_int64_value(&[])?;
        let kind = if cx.embedding.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let seen = if rank == cx.width {
            None
        } else {
            let basis = directions.f_narrow(1, 0, rank)?;
            Some(basis.f_matmul(&basis.tr())?.f_to_kind(kind)?)
        };
        Ok(Box::new(SuppressedTransform { config: self, seen }))
    }
}

/// The transform of one tap.
struct SuppressedTransform {
    config: Suppressed,
    /// pinv(W)·W `[h h]`, the projection on what the head sees; none where that is everything.
    seen: Option<Tensor>,
}

impl SuppressedTransform {
    /// m `[b h]` of b sequences: 1 where the coordinate is kept. `last` are the rows of their last
    /// tokens `[b]`.
    fn mask(&self, h: &Tensor, previous: &Tensor, last: &Tensor) -> Result<Tensor> {
        let _guard = reprpo_plugin::tch::no_grad_guard();
        let row = |t: &Tensor| t.f_index_select(0, last);
        let mut moved = row(h)?.f_sub(&row(previous)?)?;
        if let Some(seen) = &self.seen {
            moved = moved.f_matmul(&seen.f_to_kind(moved.kind())?)?;
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
            Error::internal("`suppressed` was given states that were pooled before")
        })?;
        let Some(previous) = &around.previous else { return Ok(h.shallow_clone()) };
        // One mask a sequence, not one a token: the tokens of a sequence stand together.
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
