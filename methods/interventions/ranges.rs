//! What a number of a configuration may be, and the words that say so where it is not.

use reprpo_plugin::prelude::*;

/// Refuses a value of `intervention.FIELD` that is not above 0.
pub fn above_zero(field: &str, value: f64) -> Result<()> {
    within(field, value, value > 0.0 && value.is_finite(), "above 0")
}

/// Refuses a value of `intervention.FIELD` below 0.
pub fn zero_or_more(field: &str, value: f64) -> Result<()> {
    within(field, value, value >= 0.0 && value.is_finite(), "0 or more")
}

/// Refuses a value of `intervention.FIELD` that is not `fine`, which is to say not `wanted`.
pub fn within(field: &str, value: f64, fine: bool, wanted: &str) -> Result<()> {
    if fine {
        Ok(())
    } else {
        Err(Error::new(format!("`intervention.{field}` is {value}, but has to be {wanted}")))
    }
}
