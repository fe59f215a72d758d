//! The loss functions of DPO: TRL's fifteen loss types, `ipo_relu`, `simper` and `unbounded`.
//!
//! All tensors have shape `[b]`. θ is the margin Δ⁺ − Δ⁻. With an f-divergence, θ is the difference
//! of the scores computed from Δ⁺ and Δ⁻.

use std::f64::consts::LN_2;

use reprpo_plugin::prelude::*;

/// log σ(x).
fn ls(x: Tensor) -> Tensor {
    x.log_sigmoid()
}

/// −log σ(βθ).
pub fn sigmoid(theta: &Tensor, beta: f64) -> Tensor {
    -ls(theta * beta)
}

/// relu(1 − βθ).
pub fn hinge(theta: &Tensor, beta: f64) -> Tensor {
    (theta * -beta + 1.0).relu()
}

/// (x − 1/(2β))², where x = Δ⁺/n⁺ − Δ⁻/n⁻ is the margin per token.
pub fn ipo(per_token: &Tensor, beta: f64) -> Tensor {
    (per_token - 0.5 / beta).square()
}

/// relu(1/(2β) − x)², where x is the margin per token as in [`ipo`].
pub fn ipo_relu(per_token: &Tensor, beta: f64) -> Tensor {
    (0.5 / beta - per_token).relu().square()
}

/// −(1 − e)·log σ(x) − e·log σ(−x).
pub fn smoothed(x: &Tensor, e: f64) -> Tensor {
    let loss = -x.log_sigmoid();
    if e == 0.0 { loss } else { loss * (1.0 - e) - (-x).log_sigmoid() * e }
}

/// P⁻ − P⁺, where P± = exp(logp_π(y±)/n±) is the inverse perplexity of a completion.
pub fn simper(inverse_perplexity: &Sides) -> Tensor {
    &inverse_perplexity.rejected - &inverse_perplexity.chosen
}

/// σ(βθ)[log σ(βθ) − log(1 − e)] + σ(−βθ)[log σ(−βθ) − log e].
pub fn exo_pair(theta: &Tensor, beta: f64, e: f64) -> Tensor {
    (theta * beta).sigmoid() * (ls(theta * beta) - (-e).ln_1p())
        + (theta * -beta).sigmoid() * (ls(theta * -beta) - e.ln())
}

/// −log σ(βΔ⁺) − ½log σ(−βΔ⁺) − ½log σ(−βΔ⁻).
pub fn nca_pair(delta: &Sides, beta: f64) -> Tensor {
    -ls(&delta.chosen * beta) - ls(&delta.chosen * -beta) * 0.5 - ls(&delta.rejected * -beta) * 0.5
}

/// [−(1 − e)log σ(βθ) + e log σ(−βθ)]/(1 − 2e).
pub fn robust(theta: &Tensor, beta: f64, e: f64) -> Tensor {
    (ls(theta * beta) * (e - 1.0) + ls(theta * -beta) * e) / (1.0 - 2.0 * e)
}

/// −log σ(βΔ⁺) − log σ(−βΔ⁻).
pub fn bco_pair(delta: &Sides, beta: f64) -> Tensor {
    -ls(&delta.chosen * beta) - ls(&delta.rejected * -beta)
}

/// (Δ⁺ − ½/β)² + (Δ⁻ + ½/β)².
pub fn sppo_hard(delta: &Sides, beta: f64) -> Tensor {
    (&delta.chosen - 0.5 / beta).square() + (&delta.rejected + 0.5 / beta).square()
}

/// −(1 − e)log σ(βδ) − e log σ(−βδ), δ = sort(a) − sort(b) over the batch.
///
/// For `aot`, `a` and `b` are logp(y⁺) − logp(y⁻) of the policy and of the reference. For
/// `aot_unpaired`, they are Δ⁺ and Δ⁻.
pub fn aot(a: &Tensor, b: &Tensor, beta: f64, e: f64) -> Tensor {
    let delta = a.sort(0, false).0 - b.sort(0, false).0;
    smoothed(&(delta * beta), e)
}

/// [1 − σ(βΔ⁺)] + σ(βΔ⁻).
pub fn apo_zero(delta: &Sides, beta: f64) -> Tensor {
    (1.0 - (&delta.chosen * beta).sigmoid()) + (&delta.rejected * beta).sigmoid()
}

/// σ(βΔ⁺) + [1 − σ(β(Δ⁺ − Δ⁻))].
pub fn apo_down(delta: &Sides, beta: f64) -> Tensor {
    (&delta.chosen * beta).sigmoid() + (1.0 - ((&delta.chosen - &delta.rejected) * beta).sigmoid())
}

/// (1 − m)(−log σ(l)) + m·e^{−l}, l = βθ, m = σ(l/τ).
pub fn discopop(theta: &Tensor, beta: f64, tau: f64) -> Tensor {
    let l = theta * beta;
    let m = (&l / tau).sigmoid();
    (1.0 - &m) * -l.log_sigmoid() + m * (-l).exp()
}

/// log σ(−θ), which has no β and no lower bound.
pub fn unbounded(theta: &Tensor) -> Tensor {
    ls(-theta)
}

/// 1 − e^{−Δ}.
pub fn forward_kl(delta: &Tensor) -> Tensor {
    1.0 - (-delta).exp()
}

/// log 2 + log σ(Δ).
pub fn js_divergence(delta: &Tensor) -> Tensor {
    delta.log_sigmoid() + LN_2
}

/// (e^{(α−1)Δ} − 1)/(α − 1), or its limit Δ at α = 1.
///
/// The exponent is clamped to 80, because float32 overflows near 88.
pub fn alpha_divergence(delta: &Tensor, alpha: f64) -> Tensor {
    let c = alpha - 1.0;
    if c.abs() < 1e-6 {
        delta.shallow_clone()
    } else {
        ((delta * c).clamp_max(80.0).exp() - 1.0) / c
    }
}
