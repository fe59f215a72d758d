//! The default learning rate, which depends on the chosen plugins.

use crate::registry::{AdapterEntry, InterventionEntry};

/// The default of `train.lr`, which is the intervention's rate or else the `engine`'s, times the
/// adapter's factor. Also gives the names of the plugins that it comes from.
pub(crate) fn default_learning_rate(
    engine: f64,
    intervention: &InterventionEntry,
    adapter: &AdapterEntry,
) -> (f64, Vec<&'static str>) {
    let (mut rate, mut of) = (engine, Vec::new());
    if let Some(own) = intervention.learning_rate {
        rate = own;
        of.push(intervention.about.name);
    }
    let factor = adapter.learning_rate_factor;
    if factor != 1.0 {
        // Rounded to six digits, so that 2e-3 times 3 is shown as 0.006.
        rate = format!("{:.5e}", rate * factor).parse().unwrap_or(rate * factor);
        of.push(adapter.about.name);
    }
    (rate, of)
}
