//! What projgrad and projbp do to a gradient: keep of it what lies along a preference direction.

use reprpo_plugin::prelude::*;

/// Length below which a direction is taken for none.
const EPS: f64 = 1e-12;

/// Which coefficients c of a gradient along the direction pass. A descent step moves against them: c above 0 takes the
/// state towards the rejected completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", rename_all = "snake_case")]
#[schemars(crate = "reprpo_plugin::schemars")]
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

/// `direction` `[… w]` at unit length over its last dimension; 0 stays 0.
pub fn unit(direction: &Tensor) -> Tensor {
    direction / (norm(direction) + EPS)
}

/// ‖x‖ over the last dimension, which stays with one entry.
pub fn norm(x: &Tensor) -> Tensor {
    x.norm_scalaropt_dim(2.0, -1, true)
}

/// What `x` has to be divided by to be no longer than `limit`, both lengths.
pub fn excess(x: &Tensor, limit: &Tensor) -> Tensor {
    (x / (limit + EPS)).clamp_min(1.0)
}

/// A number that has to be 0 or more, and at most `most`.
pub fn within(field: &str, value: f64, most: f64) -> Result<()> {
    if (0.0..=most).contains(&value) {
        return Ok(());
    }
    let upper = if most.is_finite() { format!("from 0 to {most}") } else { "0 or more".to_owned() };
    Err(Error::new(format!("`intervention.{field}` is {value}, but has to be {upper}")))
}
