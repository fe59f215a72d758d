//! Splits a gradient into parts along and orthogonal to a preference direction, for projgrad and
//! projbp.

use reprpo_plugin::prelude::*;

use super::ranges::{above_zero, within, zero_or_more};
use super::vectors::{EPS, norm};

/// Filter on the sign of c, the coefficient of a gradient along the preference direction.
///
/// A descent step moves against the gradient, so c > 0 moves the state towards the rejected
/// completion.
#[choice]
pub enum Sign {
    /// Keeps all coefficients.
    #[default]
    Both,
    /// Keeps positive coefficients and scales negative ones by `neg_slope`.
    Pos,
    /// Keeps negative coefficients and scales positive ones by `neg_slope`.
    Neg,
}

impl Sign {
    /// Returns lrelu(c).
    pub fn clip(self, c: &Tensor, neg_slope: f64) -> Tensor {
        match self {
            Sign::Both => c.shallow_clone(),
            Sign::Pos => c.clamp_min(0.0) + c.clamp_max(0.0) * neg_slope,
            Sign::Neg => c.clamp_max(0.0) + c.clamp_min(0.0) * neg_slope,
        }
    }
}

/// Returns the lengths ‖x‖ of the vectors along the last dimension: `[… w]` → `[… 1]`.
pub fn length(x: &Tensor) -> Tensor {
    norm(x).unsqueeze(-1)
}

/// Scales each vector along the last dimension of `direction` to unit length. Zero vectors stay
/// zero.
pub fn unit(direction: &Tensor) -> Tensor {
    direction / (length(direction) + EPS)
}

/// Returns the divisor that shortens a vector of length `x` to the length `limit`. The divisor is 1
/// if the vector is already short enough.
pub fn excess(x: &Tensor, limit: &Tensor) -> Tensor {
    (x / (limit + EPS)).clamp_min(1.0)
}

/// Checks that β is not negative, that the slope is between 0 and 1, and that κ is greater than 0.
pub fn check(beta: f64, neg_slope: f64, mag_clip: Option<f64>) -> Result<()> {
    zero_or_more("beta", beta)?;
    within("neg_slope", neg_slope, (0.0..=1.0).contains(&neg_slope), "from 0 to 1")?;
    mag_clip.map_or(Ok(()), |kappa| above_zero("mag_clip", kappa))
}
