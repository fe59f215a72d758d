//! What projgrad and projbp do to a gradient: keep of it what lies along a preference direction.

use reprpo_plugin::prelude::*;

use super::ranges::{above_zero, within, zero_or_more};
use super::vectors::{EPS, norm};

/// Which coefficients c of a gradient along the direction pass. A descent step moves against them:
/// c above 0 takes the state towards the rejected completion.
#[choice]
pub enum Sign {
    /// All: nothing is clipped.
    #[default]
    Both,
    /// Those above 0; the others are scaled by `neg_slope`.
    Pos,
    /// Those below 0; the others are scaled by `neg_slope`.
    Neg,
}

impl Sign {
    /// lrelu(c).
    pub fn clip(self, c: &Tensor, neg_slope: f64) -> Tensor {
        match self {
            Sign::Both => c.shallow_clone(),
            Sign::Pos => c.clamp_min(0.0) + c.clamp_max(0.0) * neg_slope,
            Sign::Neg => c.clamp_max(0.0) + c.clamp_min(0.0) * neg_slope,
        }
    }
}

/// ‖x‖ over the last dimension, which stays with one entry.
pub fn length(x: &Tensor) -> Tensor {
    norm(x).unsqueeze(-1)
}

/// `direction` `[… w]` at unit length over its last dimension; 0 stays 0.
pub fn unit(direction: &Tensor) -> Tensor {
    direction / (length(direction) + EPS)
}

/// What `x` has to be divided by to be no longer than `limit`, both lengths.
pub fn excess(x: &Tensor, limit: &Tensor) -> Tensor {
    (x / (limit + EPS)).clamp_min(1.0)
}

/// Refuses a β below 0, a slope outside 0 to 1 and a κ that is not above 0.
pub fn check(beta: f64, neg_slope: f64, mag_clip: Option<f64>) -> Result<()> {
    zero_or_more("beta", beta)?;
    within("neg_slope", neg_slope, (0.0..=1.0).contains(&neg_slope), "from 0 to 1")?;
    mag_clip.map_or(Ok(()), |kappa| above_zero("mag_clip", kappa))
}
