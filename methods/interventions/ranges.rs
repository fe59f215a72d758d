//! Range checks of numbers in the configuration.

use reprpo_plugin::prelude::*;

/// Fails if the value of `intervention.FIELD` is not finite and greater than 0.
pub fn above_zero(field: &str, value: f64) -> Result<()> {
    within(field, value, value > 0.0 && value.is_finite(), "greater than 0")
}

/// Fails if the value of `intervention.FIELD` is not finite and at least 0.
pub fn zero_or_more(field: &str, value: f64) -> Result<()> {
    within(field, value, value >= 0.0 && value.is_finite(), "0 or more")
}

/// Fails unless `valid` is true. In the message, `wanted` describes the valid values of
/// `intervention.FIELD`.
pub fn within(field: &str, value: f64, valid: bool, wanted: &str) -> Result<()> {
    if valid {
        Ok(())
    } else {
        Err(Error::new(format!("`intervention.{field}` must be {wanted}, got {value}")))
    }
}
