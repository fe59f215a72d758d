//! Norms and inner products over the hidden dimension h, the last axis.

use reprpo_plugin::prelude::*;

/// ε of the formulas in `docs/methods.md`.
pub const EPS: f64 = 1e-12;

/// Why a pair is left out of a loss on states. Used in a warning, after the words "each has".
pub const NO_DIRECTION: &str =
    "no preference direction, because the reference states of its completions are equal";

/// Replaces `scale` with 1 for the pairs that are left out of the loss, to avoid a division by 0.
/// `counts` is false for these pairs. Both tensors have the shape `[b]`.
pub fn safe(scale: &Tensor, counts: &Tensor) -> Tensor {
    scale.where_self(counts, &scale.ones_like())
}

/// Returns ⟨a, b⟩: `[… h]` → `[…]`.
pub fn dot(a: &Tensor, b: &Tensor) -> Tensor {
    (a * b).sum_dim_intlist(-1, false, None::<Kind>)
}

/// Returns ‖a‖: `[… h]` → `[…]`; its gradient at 0 is 0.
pub fn norm(a: &Tensor) -> Tensor {
    a.norm_scalaropt_dim(2.0, -1, false)
}

/// Returns cos(a, b): `[… h]` → `[…]`.
pub fn cos(a: &Tensor, b: &Tensor) -> Tensor {
    Tensor::cosine_similarity(a, b, -1, EPS)
}

/// Returns the mean over h: `[… h]` → `[…]`.
pub fn mean(a: &Tensor) -> Tensor {
    a.mean_dim(-1, false, None::<Kind>)
}
