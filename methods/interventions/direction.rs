//! The control with a random direction: the same objective and the same lengths, but a direction
//! that contains no information about the preference.

use reprpo_plugin::prelude::*;
use reprpo_plugin::tch::Device;

use super::original::Variant;
use super::projection::length;

#[cfg(test)]
mod tests;

/// The direction of a method on states or on gradients.
#[choice]
pub enum Direction {
    /// The preference direction d = pool(y⁺) − pool(y⁻).
    #[default]
    Preference,
    /// A control: ‖d‖·u, where u is a random unit vector. Each place in the model has its own u,
    /// which is drawn from `train.seed` and is the same for all pairs and steps.
    Random,
}

impl Direction {
    /// Returns `d`, or the random directions that replace it: a vector of the same length for each
    /// row. Rows of zeros stay zero. `d` has the shape `[… w]`, and `site` is where it was read.
    ///
    /// The random unit vector only depends on the seed, the site and the width w. It is normally
    /// distributed before it is scaled, so all directions are equally likely.
    pub fn of(self, d: &Tensor, site: &Site, seed: u64) -> Tensor {
        match self {
            Self::Preference => d.shallow_clone(),
            Self::Random => {
                let w = d.size().last().copied().unwrap_or_default();
                length(d) * unit_vector(site, w, seed).to_kind(d.kind()).to_device(d.device())
            }
        }
    }

    /// Checks that the variant of the objective supports this direction.
    ///
    /// # Errors
    /// Fails for a random direction with the variant `original`.
    pub fn check(self, variant: Variant) -> Result<()> {
        if self == Self::Random && variant == Variant::Original {
            return Err(Error::new(
                "`direction = \"random\"` is not possible with `variant = \"original\"`",
            )
            .hint("leave out one of the two"));
        }
        Ok(())
    }
}

/// Returns a random unit vector, float64 `[w]`.
fn unit_vector(site: &Site, w: i64, seed: u64) -> Tensor {
    let mut source = Init::new(seed, "random direction", Kind::Double, Device::Cpu);
    let values = source.normal(&site.to_string(), &[w], 1.0).detach();
    &values / values.norm()
}
